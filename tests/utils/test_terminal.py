"""Every command prints on a terminal of any encoding, and what it writes to files is whole."""

import json
import os

import pytest
from helpers import ROOT, python

GOLD = [
    {"id": n, "instruction": "已知候选的关系列表：['注册资本']", "input": "甲", "kg": [[head, "注册资本", "5€"]]}
    for n, head in enumerate(("𠮷野家", "Ångström", "甲\ud83d", "مصر"))
]
COMMANDS = [f"src/utils/{name}.py" for name in ("convert", "score", "weight_diff", "gguf_to_hf")]
TERMINALS = [{"PYTHONIOENCODING": name} for name in ("gbk", "ascii", "latin-1", "cp1252:strict", "cp437")]
TERMINALS += [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]


@pytest.mark.parametrize("terminal", TERMINALS, ids=lambda terminal: next(iter(terminal.values())))
def test_scores_are_printed_and_written_whatever_the_terminal_takes(tmp_path, terminal):
    gold, out = tmp_path / "gold.json", tmp_path / "out.json"
    gold.write_text("".join(json.dumps(record) + "\n" for record in GOLD))
    words = ["--pred", gold, "--gold", gold, "--show", 4, "--json", out, "--bootstrap", 0]
    done = python("src/utils/score.py", *words, env={**os.environ, **terminal}, errors="replace")
    assert done.returncode == 0, done.stderr
    assert "f1 1.0000" in done.stdout
    assert "\\ud83d" in done.stdout
    assert json.loads(out.read_text(encoding="utf-8"))["f1"] == 1


def test_an_error_about_chinese_is_printed_on_an_ascii_terminal(tmp_path):
    done = python(
        "src/utils/score.py", "--gold", tmp_path / "甲.json", "--pred", "x", env={**os.environ, **TERMINALS[1]}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "\\u7532.json: no such file" in done.stderr


def test_the_figures_are_written_before_a_closed_terminal_ends_the_command(tmp_path):
    gold, out = tmp_path / "gold.json", tmp_path / "out.json"
    gold.write_text("".join(json.dumps(record) + "\n" for record in GOLD))
    read, write = os.pipe()
    os.close(read)
    script = (
        f"import sys; sys.path.insert(0, '{ROOT}/src'); from utils import score; from common.errors import run_script"
    )
    words = ["--pred", gold, "--gold", gold, "--json", out, "--show", "4"]
    code = f"{script}; run_script(lambda: score.main({[str(word) for word in words]}))"
    start = ["-c", f"import os; os.dup2({write}, 1); {code}"]
    done = python(*start, pass_fds=[write])
    os.close(write)
    assert "Traceback" not in done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["f1"] == 1


@pytest.mark.parametrize("command", COMMANDS, ids=lambda path: path)
def test_help_is_printed_on_an_ascii_terminal(command):
    done = python(command, "--help", env={**os.environ, **TERMINALS[1]})
    assert (done.returncode, done.stderr) == (0, "")
    assert "--" in done.stdout
