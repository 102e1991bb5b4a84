import errno
import subprocess
import sys

import pytest
from helpers import ROOT

from common.errors import UserError, run_script

SRC = ROOT / "src"


def failing(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("a.json:3: no id"), "error: a.json:3: no id\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out.json"),
            "error: No space left on device (out.json); what was finished before is kept\n",
        ),
        (OSError(errno.EACCES, "Permission denied"), "error: Permission denied; what was finished before is kept\n"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_status_2(capsys, error, message):
    with pytest.raises(SystemExit) as ended:
        run_script(failing(error))
    assert ended.value.code == 2
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "the disk is broken")])
def test_anything_else_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_script(failing(error))


def test_a_closed_pipe_ends_the_script_without_a_word():
    script = f"import sys; sys.path.insert(0, '{SRC}'); from common.errors import run_script\n"
    script += "run_script(lambda: print('line\\n' * 100_000))"
    command = f'"{sys.executable}" -c "{script}" | head -n 1'  # the shell closes the pipe
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "line\n"
    assert done.stderr == ""
