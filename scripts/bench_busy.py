"""What the threads' waiting costs: training and prediction on an idle machine and beside busy processes.

python scripts/bench_busy.py --model models/smollm2-135m-instruct --out results/bench-busy

Each setting of OpenMP is a row: samples/s of a short training, answers/s of a short prediction, and the CPU seconds of
both, on an idle machine, beside programs of one thread that compute all the time, and beside a program of torch whose
threads wait as torch's do by default. Nothing else should run meanwhile.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script, say
from common.threads import NAMES

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 50000": {"GOMP_SPINCOUNT": "50000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
PLAIN = "while True: pass"
TORCH = "import torch; one = torch.randn(300, 300)\nwhile True: one @ one"
NEIGHBOURS = {
    "idle": [],
    "plain": [PLAIN] * len(os.sched_getaffinity(0)),
    "torch": [TORCH],
}  # what computes beside a run


@contextmanager
def busy_processes(programs: list[str]):
    """Processes that compute all the time, until the block ends."""
    own = {name: value for name, value in os.environ.items() if name not in NAMES}
    started = [subprocess.Popen([sys.executable, "-c", program], env=own) for program in programs]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def run(command: list, environment: dict[str, str]) -> tuple[float, float]:
    """(seconds, CPU seconds) of a command; UserError with its last words when it fails."""
    # What this process set for itself must not decide for a row.
    inherited = {name: value for name, value in os.environ.items() if name not in NAMES}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=inherited | environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise UserError(f"{command[0]} failed: {done.stderr[-500:]}")
    return time.time() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(model: str, out: Path, steps: int, records: int, environment: dict[str, str]) -> dict[str, float]:
    """samples/s of training, answers/s of prediction, and CPU seconds of both commands."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    texts = (ROOT / "data/sample/valid.json").read_text(encoding="utf-8").splitlines()[:records]
    (out / "in.json").write_text("\n".join(texts) + "\n", encoding="utf-8")
    train = ["src/test_finetune.py", "--do_train", "--model_name_or_path", model, "--output_dir", out / "run", "--bf16"]
    train += ["--train_file", "data/sample/train.json", "--prompt_template_name", "plain", "--cutoff_len", 640]
    train += ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 1, "--max_steps", steps]
    train += ["--lora_r", 32, "--lora_target_modules", "all-linear", "--save_strategy", "no"]
    _, trained = run(train, environment)
    answer = ["src/inference.py", "--lora_weights", out / "run", "--input_file", out / "in.json"]
    _, answered = run([*answer, "--output_file", out / "out.json", "--max_new_tokens", 48], environment)
    pace = json.loads((out / "run" / "run.json").read_text(encoding="utf-8"))["results"]
    speed = json.loads((out / "out.run.json").read_text(encoding="utf-8"))["results"]
    return {
        "samples/s": pace["samples_per_second"],
        "answers/s": speed["answers_per_second"],
        "CPU s": round(trained + answered, 1),
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m-instruct", help="folder of the base")
    parser.add_argument("--out", default="results/bench-busy", help="folder for the runs, made anew for each")
    parser.add_argument("--steps", type=int, default=10, help="of training; the first two are not timed")
    parser.add_argument("--records", type=int, default=8, help="to predict")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="rows, by their names")
    arguments = parser.parse_args(argv)
    heads = [f"{name}: {what}" for name in NEIGHBOURS for what in ("samples/s", "answers/s", "CPU s")]
    print(f"| setting | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|", flush=True)
    for name in arguments.settings.split(","):
        if name not in SETTINGS:
            raise UserError(f"--settings {name}: expected some of {', '.join(SETTINGS)}")
        cells = []
        for neighbour, programs in NEIGHBOURS.items():
            say(f"{name}, {neighbour}")
            with busy_processes(programs):
                found = measure(
                    arguments.model, Path(arguments.out), arguments.steps, arguments.records, SETTINGS[name]
                )
            cells += [str(value) for value in found.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_script(main)
