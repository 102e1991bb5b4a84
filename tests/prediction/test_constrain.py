"""`--constrain` as it is typed: what it does to a file, with what it goes together, what an unfinished file holds."""

import json
from types import SimpleNamespace

import pytest
from helpers import rows
from helpers_prediction import RECORDS, VALID, flags

import inference
from common.errors import UserError
from common.manifest import run_file_of
from data.asking import Asking
from decoding import batch_engine
from decoding.answers import Rules
from decoding.engines import choose_engine
from kg.permitted import State, ask, say
from kg.schema import read_schema
from models.families import FAMILIES
from prediction import partial
from prediction.questions import Question, permit
from utils.args_predict import parse_inference


def permitted(row, bound):
    """Whether the output of a row, which may have been cut anywhere, may be said."""
    asked = ask(read_schema(row["instruction"]), row["input"], bound)
    return say(asked, State(), row["output"].rstrip("\ufffd")) is not None


def test_both_engines_write_the_same_answers_which_hold_only_what_was_asked(tmp_path):
    whole = {}
    for engine in ("batch", "fast"):
        out = tmp_path / f"{engine}.json"
        inference.main(flags(out, "--constrain", "text", engine=engine))
        whole[engine] = out.read_bytes()
        run = json.loads(run_file_of(out).read_text(encoding="utf-8"))
        assert (run["rules"]["constrain"], run["rules"]["constrain_exempt"]) == ("text", None)
    assert whole["batch"] == whole["fast"]
    assert all(row["output"] and permitted(row, "text") for row in rows(out))


def test_records_that_are_exempt_are_not_bound_to_their_text(tmp_path):
    first = {**RECORDS[0], "instruction": f"请补全。{RECORDS[0]['instruction']}"}
    file, out = tmp_path / "in.json", tmp_path / "out.json"
    file.write_text("\n".join(map(json.dumps, [first, *RECORDS[1:3]])), encoding="utf-8")
    inference.main(flags(out, "--constrain", "text", "--constrain_exempt", "补全|complete", input_file=file))
    made = rows(out)
    assert [permitted(row, "text") for row in made] == [False, True, True]
    assert permitted(made[0], "relations")


def test_each_question_is_bound_to_its_own_window_and_to_what_the_tokenizer_makes_of_it(capsys):
    rules = Rules(9, constrain="text", constrain_exempt="任意")
    codec = SimpleNamespace(text_ids=lambda text: text, decode=lambda text: text.replace("Ａ", "A"))
    plan = SimpleNamespace(serving=SimpleNamespace(rules=rules), codec=codec, asking=Asking())
    listed, free = {"instruction": "关系列表：['位于', '别名']"}, {"instruction": "任意的关系"}
    questions = [Question(0, "甲在Ａ", [1], **listed), Question(0, "丙", [1], **listed)]
    questions += [Question(1, "乙", [1], **free), Question(1, "丁", [], **free)]
    asked = permit(plan, dict(enumerate(questions)))
    assert "constrain_exempt: 1 of 2 records may name what is not in their text" in capsys.readouterr().err
    assert [asked[n].relations for n in asked] == [("位于", "别名"), ("位于", "别名"), ()]
    assert [asked[n].tails for n in asked] == [True, True, False]
    for number, head in ((0, "甲"), (0, "Ａ"), (0, "A"), (1, "丙")):
        assert say(asked[number], State(), f"({head},位")
    assert say(asked[0], State(), "(丙") is None


@pytest.mark.parametrize(("tail_first", "permitted"), [(False, "(甲,位于,丁)"), (True, "(丁,位于,甲)")])
def test_heads_are_bound_to_the_text_wherever_they_stand_in_a_triple(tail_first, permitted):
    plan = SimpleNamespace(
        serving=SimpleNamespace(rules=Rules(9, constrain="head")),
        codec=SimpleNamespace(text_ids=lambda text: text, decode=lambda text: text),
        asking=Asking(tail_first=tail_first),
    )
    asked = permit(plan, {0: Question(0, "甲在乙", [1], instruction="关系列表：['位于']")})[0]
    triples = ("(甲,位于,丁)", "(丁,位于,甲)")
    assert [text for text in triples if say(asked, State(), text)] == [permitted]


def test_answers_of_other_limits_are_not_mixed(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    monkeypatch.setattr(batch_engine, "load_base", lambda *_, **__: pytest.fail("the base was loaded first"))
    partial.resume_partial(out, {"constrain": None})
    with pytest.raises(UserError, match="constrain: None there, relations now.*delete the file to start over"):
        inference.main(flags(out, "--constrain"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--constrain --do_sample", "--constrain and --do_sample do not go together: constrained answers are greedy"),
        ("--constrain --num_beams 3", "--constrain and --num_beams 3 do not go together"),
        ("--constrain words", "--constrain: invalid choice: 'words'"),
        ("--constrain_exempt 补全", "--constrain_exempt without --constrain text or head"),
        ("--constrain --constrain_exempt 补全", "--constrain_exempt without --constrain text or head"),
        ("--constrain text --constrain_exempt (", "--constrain_exempt (: no regular expression"),
    ],
)
def test_what_does_not_go_together_is_said(typed, message):
    with pytest.raises(UserError) as error:
        parse_inference(typed.split())
    assert message in str(error.value)


@pytest.mark.parametrize("flag", ["--constrain", "--confidence"])
def test_vllm_refuses(tmp_path, flag):
    with pytest.raises(UserError, match=f"--engine vllm and {flag} do not go together: it is for the engines batch"):
        inference.main(flags(tmp_path / "out.json", flag, engine="vllm", lora_weights=None, input_file=VALID))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(9, constrain="relations"), "--constrain: not for family cpm-bee, whose own generation takes no rules"),
        (Rules(9, confidence=True), "--confidence: not for family cpm-bee, whose own generation does not tell how"),
    ],
)
def test_a_family_that_generates_by_itself_refuses(rules, message):
    family = next(one for one in FAMILIES if not one.draws)
    with pytest.raises(UserError, match=message):
        choose_engine("auto", SimpleNamespace(family=family, rules=rules))
