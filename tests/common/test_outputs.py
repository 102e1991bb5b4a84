"""Outputs: what cannot be written, or would replace something else, is refused before any work is done."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

from common.errors import UserError
from common.files import check_output, write_lines

SRC = ROOT / "src"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.symlink("/dev/stdout", "link")
    os.symlink("one", "two")
    os.symlink("two", "one")
    (tmp_path / "file").touch()
    return tmp_path


STREAMS = ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/1", "/dev/null", "fifo", "link"]


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_is_no_output(here, path):
    with pytest.raises(UserError, match=f"--output_file {path}: is no ordinary file"):
        check_output(path, "--output_file")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("one", "one: its links lead in a circle"),
        ("one/out.json", "its links lead in a circle"),
        ("a" * 300, "File name too long; give another path"),
        ("a" * 300 + "/out.json", "File name too long"),
        ("a" * 250, "the name is too long .242 bytes are left for it here"),
        ("识" * 83, "the name is too long"),  # 249 bytes
        ("x/" * 3000, "File name too long"),
        ("file/out.json", "file is a file, not a folder"),
        ("", "the path is empty"),
    ],
)
def test_a_path_that_cannot_be_is_one_clear_line(here, path, message):
    with pytest.raises(UserError, match=message) as caught:
        check_output(path, "--output_file")
    assert len(str(caught.value)) < 500


def test_the_longest_name_that_is_allowed_holds_all_that_is_written_beside_it(here):
    check_output("a" * 242, "--output_file")
    for ending in (".run.json", ".partial"):
        write_lines("a" * 242 + ending, ["x"])


def test_a_file_that_another_process_writes_is_refused_and_stays_whole(tmp_path):
    out = tmp_path / "out.json"
    (tmp_path / "out.json.tmp").write_text("left by a run that was killed")

    def lines():
        yield "one"
        with pytest.raises(UserError, match="out.json: another process is writing it; wait"):
            write_lines(out, ["two"])
        yield "three"

    write_lines(out, lines())
    assert out.read_text() == "one\nthree\n"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("stream", ["/dev/stdout", "/dev/null", "fifo"])
def test_commands_refuse_a_stream_at_once(here, stream):
    """The other flags' files, which are not there, are not even looked for."""
    for command in (
        f"utils/convert.py --pred_path none.json --tgt_path {stream}",
        f"utils/score.py --pred none.json --gold none.json --json {stream}",
    ):
        script, *flags = command.split()
        done = subprocess.run([sys.executable, SRC / script, *flags], capture_output=True, text=True, timeout=600)
        assert done.returncode == 2
        assert f"{stream}: is no ordinary file" in done.stderr
        assert done.stderr.count("\n") == 1
