import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, python
from safetensors import SafetensorError

from common.errors import UserError, keeping, run_script
from common.processes import NUMBERS, why_odd
from common.refusals import naming

SRC = ROOT / "src"


def failing(error):
    def main():
        raise error

    return main


FULL = OSError(errno.ENOSPC, "No space left on device", "out.json")
COPY = OSError(errno.EDQUOT, "Disk quota exceeded", "base/vocab.txt")
COPY.filename2 = "out/vocab.txt"
TORCH = "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0: file write failed"
HALF = "a file could not be written whole; make room, or raise the quota or ulimit -f"
REFUSALS = [
    (FULL, "No space left on device (out.json); make room"),
    (COPY, "Disk quota exceeded (out/vocab.txt); make room, or have the quota raised"),
    (OSError(errno.EFBIG, "File too large"), "File too large; raise the limit on the size of files (ulimit -f)"),
    (OSError(errno.EACCES, "", "x"), "Permission denied (x); give another path, or have its rights changed"),
    (OSError(errno.ENAMETOOLONG, "", "a" * 5000), f"File name too long ({'a' * 100}…{'a' * 50}); give a shorter path"),
    (OSError(errno.ELOOP, "", "x"), "Too many levels of symbolic links (x); remove one of the links"),
    (RuntimeError("Symlink loop from '/x'"), "Symlink loop from '/x'; remove one of the links"),
    (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "No space left on device; make room",
    ),
    (Exception("Disk quota exceeded (os error 122)"), "Disk quota exceeded; make room, or have the quota raised"),
    (RuntimeError(TORCH), HALF),
    (RuntimeError("unexpected pos 64 vs 0"), HALF),
    (MemoryError(), "out of memory; free memory, or raise its limit (ulimit -v)"),
]


@pytest.mark.parametrize(("error", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_what_the_system_refuses_is_one_message_and_status_2(capsys, error, message):
    with pytest.raises(SystemExit) as ended:
        run_script(failing(error))
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {message}; what was finished before is kept\n"


def test_a_users_error_is_one_message_and_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(failing(UserError("a.json:3: no id")))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: a.json:3: no id\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EINVAL, "a bug"), FileNotFoundError(2, "", "x")])
def test_anything_else_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_script(failing(error))


def test_a_full_disk_is_named_though_the_library_raises_something_else(capsys):
    def main():
        with keeping(lambda: "checkpoint-2 is kept"), naming("cache/rows"):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError as error:
                raise ValueError("generation of the dataset failed") from error

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err == ("error: No space left on device (cache/rows); make room; checkpoint-2 is kept\n")


def test_of_what_is_kept_the_innermost_block_speaks():
    with pytest.raises(ValueError, match="x") as caught, keeping(lambda: "outer"), keeping(lambda: "inner"):
        raise ValueError("x")
    assert caught.value.kept == "inner"
    with pytest.raises(ValueError, match="x") as caught, keeping(lambda: "outer"), keeping(lambda: 1 / 0):
        raise ValueError("x")
    assert caught.value.kept == "outer"


def test_a_deleted_working_folder_is_one_message(tmp_path):
    command = f'mkdir gone && cd gone && rmdir ../gone && "{sys.executable}" {SRC}/utils/score.py --pred a --gold b'
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: the working folder was deleted; go to another one (cd)\n")


def test_a_process_that_loses_another_one_is_quiet(monkeypatch, capsys):
    lost = RuntimeError("[../third_party/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:5432")
    with pytest.raises(RuntimeError):
        run_script(failing(lost))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        run_script(failing(lost))
    assert (ended.value.code, capsys.readouterr().err) == (1, "")


@pytest.mark.parametrize(("failing", "patience", "speaker"), [("01", 60, 0), ("1", 0.1, 1)])
def test_of_several_processes_one_says_what_is_wrong(tmp_path, failing, patience, speaker):
    """The second process fails before the first, which has the same error, or none."""
    (tmp_path / "work.py").write_text(f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(SRC)!r})
from common.errors import UserError, begin_script, run_script
begin_script()
rank, second = os.environ["RANK"], Path({str(tmp_path / "second")!r})
def main():
    while rank == "0" and not (second.exists() and "0" in {failing!r}):
        time.sleep(0.01)
    if rank == "1":
        second.touch()
    raise UserError(f"said by {{rank}}")
run_script(main, patience={patience})
""")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    done = python(tmp_path / "work.py", launcher=launcher)
    assert done.returncode == 1  # torchrun's own
    assert re.findall(r"^error: (.*)", done.stderr, re.MULTILINE) == [f"said by {speaker}"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_behind_stdout_or_stderr_is_no_traceback():
    script = f"import sys; sys.path.insert(0, '{SRC}'); from common.errors import run_script, UserError\n"
    for main, where in (("lambda: print('x')", "stdout"), ("lambda: (_ for _ in ()).throw(UserError('x'))", "stderr")):
        with open("/dev/full", "w") as full:
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, where: full}
            done = subprocess.run([sys.executable, "-c", f"{script}run_script({main})"], text=True, **streams)
        assert done.returncode == 2
        if where == "stdout":
            assert done.stderr.startswith("error: No space left on device")
            assert done.stderr.count("\n") == 1


def test_a_closed_pipe_ends_the_script_without_a_word():
    script = f"import sys; sys.path.insert(0, '{SRC}'); from common.errors import run_script\n"
    script += "run_script(lambda: print('line\\n' * 100_000))"
    command = f'"{sys.executable}" -c "{script}" | head -n 1'  # the shell closes the pipe
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "line\n"
    assert done.stderr == ""


@pytest.mark.parametrize(("value", "why"), [("x", "RANK=x; expected a whole number"), ("", "no such")])
def test_a_launcher_variable_that_is_no_number_is_named(value, why, tmp_path):
    done = python("src/utils/convert.py", "--pred_path", tmp_path / "none.json", env={**os.environ, "RANK": value})
    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("odd", [{"WORLD_SIZE": "0"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"LOCAL_WORLD_SIZE": "0"}])
def test_a_launcher_whose_numbers_contradict_each_other_is_named(odd, monkeypatch):
    for name in NUMBERS:
        monkeypatch.delenv(name, raising=False)
    assert why_odd() is None
    for name, value in odd.items():
        monkeypatch.setenv(name, value)
    assert "expected a number below" in why_odd()
