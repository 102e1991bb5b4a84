"""Ctrl-C and SIGTERM in scripts that import nothing: one line, the exit status, and what is left of the run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from common import stopping

BEGINNING = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT / "src")!r})
from common.errors import keeping, run_script
from common.stopping import begin_work, watch_signals
watch_signals(GRACE, SAME)
def stop(number=signal.SIGINT):
    os.kill(os.getpid(), number)
"""
SIGNALS = [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]


def script(body, grace=20, same=stopping.SAME, **more):
    """The finished process of a script in which `main` is defined, and then run; how long it took in `.seconds`."""
    text = BEGINNING.replace("GRACE, SAME", f"{grace}, {same}") + body + "\nrun_script(main)\n"
    began = time.time()
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300, **more)
    done.seconds = time.time() - began
    return done


@pytest.mark.parametrize(("number", "status", "name"), SIGNALS)
def test_a_stop_leaves_all_blocks_and_says_what_is_kept_in_one_line(number, status, name):
    done = script(f"""
def main():
    try:
        with keeping(lambda: "two of three are kept, and the same command goes on"):
            stop({int(number)})
            time.sleep(30)
    finally:
        print("left well")
""")
    assert (done.returncode, done.stdout) == (status, "left well\n")
    assert done.stderr == f"stopped by {name}; two of three are kept, and the same command goes on\n"


@pytest.mark.parametrize(("number", "status", "name"), SIGNALS)
def test_a_stop_while_a_script_still_imports_ends_it_at_once(number, status, name):
    done = script(f"stop({int(number)})\ndef main(): print('began')")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"stopped by {name}; nothing was begun; give the same command again\n"


def test_whatever_is_raised_while_it_stops_comes_of_it():
    done = script("""
def main():
    try:
        stop()
        time.sleep(30)
    finally:
        raise RuntimeError("DataLoader worker (pid 12) exited unexpectedly")
""")
    assert done.returncode == 130
    assert done.stderr.startswith("stopped by Ctrl-C; what was finished before is kept")
    assert done.stderr.count("\n") == 1


LONG_LEAVING = """
def main():
    try:
        stop()
        time.sleep(30)
    finally:
        time.sleep({first})
        stop()
        time.sleep({second})
        print("left well")
"""


def test_a_second_stop_ends_it_at_once():
    done = script(LONG_LEAVING.format(first=0.7, second=30))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.count("\n") == 1
    assert done.seconds < 20


def test_the_same_stop_passed_on_by_a_launcher_is_no_second_one():
    done = script(LONG_LEAVING.format(first=0, second=0.2), same=20)
    assert (done.returncode, done.stdout) == (130, "left well\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["finally: time.sleep(30)", "except BaseException: time.sleep(30)"])
def test_what_hangs_or_swallows_a_stop_is_ended_after_a_while(how):
    done = script(f"def main():\n    try:\n        stop()\n        time.sleep(30)\n    {how}\n", grace=0.5)
    assert done.returncode == 130
    assert done.seconds < 20


def test_a_run_in_the_background_that_is_to_ignore_ctrl_c_does():
    ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    done = script("def main():\n    stop()\n    print('went on')", **ignored)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")


def test_the_processes_that_a_script_forks_leave_the_stop_to_it():
    """Those of a DataLoader or of datasets, which would each print a traceback."""
    done = script("""
import multiprocessing
def work(queue):
    queue.put("ready")
    time.sleep(30)
def main():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=work, args=[queue])
    worker.start()
    queue.get()
    try:
        os.kill(worker.pid, signal.SIGINT)
        time.sleep(0.2)
        print(worker.exitcode)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    finally:
        worker.terminate()
        worker.join()
        print(worker.exitcode)
""")
    assert (done.returncode, done.stdout) == (130, "None\n-15\n")
    assert done.stderr.count("\n") == 1


def test_only_the_first_of_several_processes_speaks():
    done = script("def main():\n    stop()\n    time.sleep(30)", env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"})
    assert (done.returncode, done.stderr) == (130, "")


def test_a_stop_when_all_is_done_is_silent():
    done = script("import atexit\natexit.register(stop)\ndef main():\n    print('all is done')")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "all is done\n", "")


@pytest.mark.parametrize("name", ["score", "convert", "weight_diff", "gguf_to_hf"])
def test_every_command_takes_ctrl_c_over_before_it_imports(name):
    text = (ROOT / "src" / "utils" / f"{name}.py").read_text(encoding="utf-8")
    taken, heavy = text.index("    begin_script()"), text.find("import torch")
    assert heavy == -1 or taken < heavy


@pytest.mark.parametrize("name", ["test_finetune", "finetuning_pt", "inference", "inference_pt"])
def test_every_recipe_takes_ctrl_c_over_before_it_imports_torch(name):
    """A file that stands for torch stops the script that imports it."""
    stand_in = f"import os, signal\nos.kill(os.getpid(), {int(signal.SIGINT)})\n"

    finder = f"""
import runpy, sys
class Torch:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "transformers", "peft", "psutil"):
            exec({stand_in!r})
sys.meta_path.insert(0, Torch())
sys.path.insert(0, {str(ROOT / "src")!r})
sys.argv = ["{name}.py"]
runpy.run_path({str(ROOT / "src" / f"{name}.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", finder], capture_output=True, text=True, timeout=300)
    # Prediction reads its flags first.
    kept = stopping.KEPT if name.startswith("inference") else stopping.NOTHING_BEGUN
    assert (done.returncode, done.stderr) == (
        130,
        f"stopped by Ctrl-C; {kept}\n",
    )
