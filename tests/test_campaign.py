"""tests/campaign.py: what it calls right, wrong and poor; and a short run of it, in which nothing may be wrong."""

import json

import pytest
from helpers import ROOT, python
from hostile.commands import COMMANDS, Case
from hostile.judge import VERDICTS, judge, judge_stopped, why_no_command, why_not_right, why_not_whole
from hostile.process import Run

CASE = Case("files", "predict", "valid.json", "empty", "error", lambda place, flags: None)
CLEAR = Run(2, "", "family: llama\nerror: valid.json: the file is empty\n", 1.0, True)
TRACE = "Traceback (most recent call last):\n  File x\nValueError: no\n"
SHORT = "convert,check,score"  # without torch, a case takes a few hundredths of a second


@pytest.mark.parametrize(
    ("verdict", "run", "case", "more"),
    [
        ("clear error", {}, {}, {}),
        ("poor error", {}, {"expected": "right"}, {}),
        ("poor error", {"code": 1}, {}, {}),
        ("poor error", {"error": "usage: inference.py\n"}, {}, {}),
        ("poor error", {"error": CLEAR.error * 2}, {}, {}),
        ("poor error", {"error": "error: something is wrong\n"}, {}, {}),
        ("poor error", {"error": "error: valid.json: set weights_only=False\n"}, {}, {}),
        ("traceback", {"error": TRACE, "code": 1}, {}, {}),
        ("traceback", {"error": TRACE + CLEAR.error}, {}, {}),
        ("traceback", {"code": -11}, {}, {}),
        ("wrong in silence", {"code": 0}, {}, {}),
        ("wrong in silence", {"code": 0}, {"expected": "either"}, {"wrong": "it differs"}),
        ("wrong in silence", {}, {}, {"spoilt": ["base/config.json"]}),
        ("wrong in silence", {}, {}, {"written": ["out.json"]}),
        ("wrong in silence", {}, {}, {"written": ["code-ran"]}),
        ("clear error", {}, {}, {"written": ["out.json.partial"]}),
        ("right result", {"code": 0}, {"expected": "either"}, {}),
        ("right result", {"code": 0}, {"expected": "right"}, {"written": ["out.json"]}),
        ("hang", {"code": None}, {}, {}),
        ("hang", {"code": 0, "alone": False}, {"expected": "right"}, {}),
    ],
)
def test_every_verdict_is_told_from_the_others(verdict, run, case, more):
    facts = {"written": [], "spoilt": [], "wrong": "", **more}
    assert judge(CASE._replace(**case), [], CLEAR._replace(**run), **facts).what == verdict


@pytest.mark.parametrize(
    ("verdict", "code", "error"),
    [(None, 130, "stopped"), (None, 0, ""), ("poor error", 1, ""), ("traceback", -2, ""), ("traceback", 130, TRACE)],
)
def test_a_run_that_ctrl_c_stops_ends_with_130_and_no_traceback(verdict, code, error):
    found = judge_stopped(CLEAR._replace(code=code, error=error), 2)
    assert (found and found.what) == verdict


def test_a_result_is_compared_whole_but_for_one_record_or_by_itself(tmp_path):
    place, right = tmp_path / "case", tmp_path / "right"
    rows = [{"output": f"(a,b,{number})", "finish_reason": "eos"} for number in range(9)]
    for folder in (place, right):
        folder.mkdir()
        (folder / "out.json").write_text("\n".join(map(json.dumps, rows)))

    def wrong(compare, content=None):
        if content is not None:
            (place / "out.json").write_text(content)
        return why_not_right(CASE._replace(compare=compare), CLEAR, place, right)

    assert not wrong("equal")
    rows[1]["output"] = "(c,d,e)"
    assert "differs" in wrong("equal", "\n".join(map(json.dumps, rows)))
    assert not wrong("others")
    assert "9 of 9 lines differ" in wrong("others", '{"output": "a", "finish_reason": "eos"}')
    assert not wrong("whole")
    assert "NaN is no JSON" in wrong("whole", '{"output": NaN}')
    assert "empty answers only" in wrong("whole", '{"output": "", "finish_reason": "eos"}')
    (place / "out.json").unlink()
    assert "no out.json" in wrong("whole")


def test_weights_that_are_not_finite_are_not_whole(tmp_path):
    import torch
    from safetensors.torch import save_file

    for number, why in ((1.0, ""), (float("nan"), "x.safetensors holds NaN or infinity")):
        save_file({"w": torch.tensor([number])}, tmp_path / "x.safetensors")
        assert why_not_whole(tmp_path / "x.safetensors") == why


@pytest.mark.parametrize(
    ("line", "right"),
    [("python x --m a\\ b", True), ("python x --m $'a b'", True), ("python x --m a b", False), ("", False)],
)
def test_a_printed_command_holds_the_path_as_one_word(line, right):
    assert bool(why_no_command(line, "a b")) != right


def test_in_a_short_run_nothing_is_wrong(tmp_path):
    found = tmp_path / "found.json"
    flags = ("--cases", 60, "--seed", 1, "--jobs", 1, "--commands", SHORT, "--json", found, "--real_every", 30)
    done = python(ROOT / "tests" / "campaign.py", *flags)
    verdicts = [row["verdict"] for row in json.loads(found.read_text(encoding="utf-8"))]
    assert len(verdicts) == 60
    assert set(verdicts) <= set(VERDICTS)
    assert done.returncode == 0, done.stdout


def test_every_command_is_one_of_the_project():
    assert all((ROOT / command.script).is_file() for command in COMMANDS.values())
