"""Kill a prediction at random moments and start it again, many times; Python starts only once, each run is a fork.

python tests/kill_often.py KILLS SEED PROCESSES OUTPUT FLAGS… of src/inference.py, or with --input of src/extract.py
"""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from torch.distributed import TCPStore

import extract
import inference
from prediction import opening, partial, predicting, questions, whole_corpus  # noqa: F401 - what recipes import late
from prediction.corpus import parts_folder

LONGEST_RUN = 60  # seconds


def start(flags: list[str], processes: int, store: TCPStore) -> list[int]:
    """The ids of the processes that predict, a group of their own, as torchrun would start them.

    `store`: where they meet. It is this process's, as torchrun's is torchrun's: a port that was merely free before may
    be another's by then.
    """
    started = []
    for rank in range(processes):
        if pid := os.fork():
            os.setpgid(pid, started[0] if started else pid)
            started.append(pid)
            continue
        code = 1
        try:
            if processes > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
                os.environ.update({name: str(value) for name, value in place.items()})
            (extract if "--input" in flags else inference).main(flags)
            code = 0
        finally:
            os._exit(code)
    return started


def written(output: str) -> int:
    """Lines in the partial files; settings are one of them. A run that ends takes its files away meanwhile."""
    lines = 0
    for path in (*partial.partial_paths(output), *parts_folder(output).glob("*.jsonl*")):
        with suppress(FileNotFoundError):
            lines += path.read_bytes().count(b"\n")
    return lines


def wait_for(lines: int, output: str, pids: list[int]) -> None:
    """Until so many lines are written, or a process has ended."""
    end = time.time() + LONGEST_RUN
    while written(output) < lines and not Path(output).exists() and time.time() < end:
        if any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in pids):
            return
        time.sleep(0.002)


def main(kills: int, seed: int, processes: int, output: str, flags: list[str]) -> None:
    moments, killed, whole, resumed = random.Random(seed), 0, None, set()
    while True:
        before = written(output)
        resumed.add(before)
        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # each run has its own
        pids = start([*flags, "--output_file", output], processes, store)
        if killed < kills:
            # While it loads, or soon after it has written 1 to 3 more lines: in the middle of an answer, or of a line.
            wait_for(before + moments.randrange(4), output, pids)
            time.sleep(moments.uniform(0, 0.06))
            os.killpg(pids[0], signal.SIGKILL)  # all at once: who outlives another would fail by itself
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
        killed += any(os.WIFSIGNALED(code) for code in codes)
        if not any(codes) and not Path(output).exists():
            sys.exit("it ended well and left no file")
        if any(os.WIFEXITED(code) and code for code in codes):
            sys.exit(f"it failed: {codes}")
        if Path(output).exists():
            now = Path(output).read_bytes()
            if whole not in (None, now):
                sys.exit("two files differ")
            whole = now
            if killed >= kills:
                break
            Path(output).unlink()
    print(f"killed {killed} times, resumed with {len(resumed)} different numbers of lines")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
