"""Several answers to a record and how they are counted; how likely an answer's words were; answers tail first."""

import json

import pytest
from helpers import rows
from helpers_prediction import ADAPTER, flags, loaded

import inference
from common.errors import UserError
from data.asking import Asking, ask_all_votes, turn_records
from data.prompts import load_template, make_prompt
from decoding import fast_engine
from decoding.answers import Rules
from decoding.batch_engine import generate
from decoding.constrained import make_limits
from kg.permitted import ask
from kg.schema import read_schema
from prediction.questions import make_questions, make_rows
from tokens.codec import Codec
from tokens.pieces import token_bytes
from utils.args_predict import parse_inference

NAMES = ["位于", "别名", "国籍"]
RECORD = {"id": 1, "instruction": f"关系列表：{NAMES}，请抽取。", "input": "甲在乙，又名丙。"}
ONE = {"id": 2, "instruction": "关系列表：['位于']，请抽取。", "input": "丁在戊。"}


def test_votes_ask_for_the_relations_in_other_orders_and_never_twice_in_one(capsys):
    asked, alone = ask_all_votes([RECORD, ONE], Asking(lists=4))
    orders = [read_schema(parts[0]["instruction"]) for parts in asked]
    assert orders[0] == NAMES
    assert 1 < len(orders) == len({tuple(order) for order in orders}) <= 4
    assert alone == [[ONE]]
    assert ask_all_votes([RECORD], Asking(lists=4)) == [asked]
    assert ask_all_votes([RECORD, ONE], Asking(draws=3)) == [[[RECORD]] * 3, [[ONE]] * 3]
    assert list(map(len, ask_all_votes([RECORD], Asking(lists=4, batch=1)))) == [1]  # whatever comes first
    assert "1 records are asked 1 times" in capsys.readouterr().err


def test_triples_that_enough_votes_have_are_kept_with_their_share():
    asking = Asking(draws=3)
    questions = make_questions([RECORD, ONE], lambda one: [7], asking=asking)
    said = ["(甲,位于,乙),(甲,别名,丙)", "(甲,别名,丙)", "(甲,国籍,乙)", "(丁,位于,戊)", "NAN", ""]
    answers = {number: {"output": text, "finish_reason": "eos"} for number, text in enumerate(said)}
    first, second = make_rows([RECORD, ONE], questions, answers, asking)
    assert (first["output"], first["confidence"]) == ("(甲,别名,丙)", [0.6667])
    assert (second["output"], second["confidence"]) == ("", [])
    first, second = make_rows([RECORD, ONE], questions, answers, asking._replace(least=1))
    assert first["output"] == "(甲,位于,乙),(甲,别名,丙),(甲,国籍,乙)"
    assert first["confidence"] == [0.3333, 0.6667, 0.3333]
    assert second["confidence"] == [0.3333]


def test_answers_that_begin_with_the_tail_are_turned_and_keep_their_confidence():
    asking = Asking(tail_first=True)
    questions = make_questions([RECORD], lambda one: [7], asking=asking)
    answers = {0: {"output": "(乙,位于,甲),(丙,别名,甲)", "finish_reason": "eos", "confidence": [0.5, 0.25]}}
    (row,) = make_rows([RECORD], questions, answers, asking)
    assert (row["output"], row["confidence"]) == ("(甲,位于,乙),(甲,别名,丙)", [0.5, 0.25])
    (turned, odd) = turn_records([{**RECORD, "output": row["output"]}, {**RECORD, "output": "NAN"}], "training")
    assert (turned["output"], odd["output"]) == ("(乙,位于,甲),(丙,别名,甲)", "NAN")
    with pytest.raises(UserError, match="--answer_order tail: no training record"):
        turn_records([{**RECORD, "output": "甲 位于 乙 (甲,位于,乙)"}], "training")


def test_what_an_earlier_prediction_said_of_a_record_does_not_stay_in_its_row():
    questions = make_questions([{**RECORD, "confidence": [0.9, 0.8], "windows": 3, "cate": "人物"}], lambda one: [7])
    earlier = [{**RECORD, "confidence": [0.9, 0.8], "windows": 3, "cate": "人物"}]
    (row,) = make_rows(earlier, questions, {0: {"output": "(甲,位于,乙)", "finish_reason": "eos"}})
    assert row == {**RECORD, "cate": "人物", "output": "(甲,位于,乙)", "finish_reason": "eos"}


@pytest.mark.parametrize("bound", [None, "text"])  # of random weights: all that is said was not the likeliest
def test_both_engines_say_alike_how_likely_each_token_was(tiny_answers, bound):
    model, codec, prompts = tiny_answers
    rules, limits = Rules(10, batch_size=3, confidence=True), None
    if bound:
        asked = {number: ask(NAMES, one["input"], bound) for number, one in enumerate((RECORD, ONE))}
        limits = make_limits(token_bytes(codec), codec.eos_id, asked)
    alone = [generate(model, codec, [ids], rules, [number], limits)[0] for number, ids in enumerate(prompts)]
    made = {}
    for group in fast_engine.answers(model, codec, dict(enumerate(prompts)), rules, limits=limits):
        made |= group
    for number, one in enumerate(alone):
        assert made[number].text == one.text
        assert [end for end, _ in made[number].sure] == [end for end, _ in one.sure]
        assert one.sure[-1][0] == len(codec.decode(codec.text_ids(one.text)))
        chances = [chance for _, chance in one.sure]
        assert [chance for _, chance in made[number].sure] == pytest.approx(chances, abs=2e-4)
        assert all(0 <= chance <= 1 for chance in chances)
        assert bound is None or min(chances) < 0.1


@pytest.fixture(scope="module")
def tiny_answers(random_base):
    model, codec = loaded(random_base)
    template = load_template("plain")
    return (
        model,
        codec,
        [codec.encode(make_prompt(template, one["instruction"], one["input"])) for one in (RECORD, ONE)],
    )


@pytest.mark.parametrize("engine", ["fast", "batch"])
def test_a_file_has_the_confidence_of_every_triple(tmp_path, engine, monkeypatch):
    text = "(甲,位于,乙),(丙,位于,丁)"
    monkeypatch.setattr(Codec, "decode", lambda self, ids: text[: len(ids)])  # a character a token
    out, more = tmp_path / "out.json", {"engine": engine, "lora_weights": ADAPTER, "max_new_tokens": len(text)}
    inference.main(flags(out, "--confidence", **more))
    for row in rows(out):
        assert row["output"] == text
        assert len(row["confidence"]) == 2
        assert all(0 < chance <= 1 for chance in row["confidence"])
    inference.main(flags(tmp_path / "votes.json", votes=3, min_votes=1, **more))
    assert {tuple(row["confidence"]) for row in rows(tmp_path / "votes.json")} == {(1.0, 1.0)}
    assert json.loads((tmp_path / "votes.run.json").read_text())["asking"] == {"votes": 3, "min_votes": 1}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--min_votes", "2"], "--min_votes without --votes"),
        (["--votes", "2", "--min_votes", "3"], "no triple can have so many"),
        (["--votes", "0"], "--votes 0: expected 1 or more"),
        (["--confidence", "--num_beams", "2"], "--confidence and --num_beams 2"),
    ],
)
def test_votes_that_cannot_be_are_named(words, why):
    with pytest.raises(UserError, match=why):
        parse_inference(["--model_name_or_path", "x", *words])
