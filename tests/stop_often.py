"""Stop the scripts at chosen moments; Python starts only once, each run is a fork.

python tests/stop_often.py RUNS

RUNS: JSON, a list of [script, flags, signal, text, seconds]; the script, a module of src/, gets the signal so many
seconds after its output holds the text. Prints JSON, a list of [exit status, output].
"""

import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import begin_script, run_script
from prediction import opening, predicting, questions  # noqa: F401 - what scripts import once they have their flags

LONGEST_RUN = 120  # seconds


def start(script, flags: list[str], output: str) -> int:
    """The id of a process that runs the script in a group of its own, as a shell would start it."""
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    begin_script()
    sys.argv = [script.__name__, *flags]
    code = 0
    try:
        run_script(script.main)
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code or 0)


def stop(script, flags: list[str], name: str, text: str, seconds: float) -> tuple[int, str]:
    with tempfile.NamedTemporaryFile() as file:
        pid = start(script, flags, file.name)
        began = time.time()
        while text.encode() not in Path(file.name).read_bytes() and time.time() - began < LONGEST_RUN:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.01)
        time.sleep(seconds)
        os.killpg(pid, getattr(signal, name))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, Path(file.name).read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    RUNS = json.loads(sys.argv[1])
    SCRIPTS = {name: importlib.import_module(name) for name, *_ in RUNS}
    print(json.dumps([stop(SCRIPTS[name], *how) for name, *how in RUNS]))
