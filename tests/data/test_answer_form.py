"""Answers as JSON: asked for, learnt, divided, and read back."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.answer_form import CHINESE, ENGLISH, answer_in_json, ask_json
from data.asking import Asking, ask_all_parts, ask_all_votes, draw_rows, survey
from data.wording import word_instruction
from kg.schema import read_schema
from kg.triples import parse, render

WORDINGS = [
    json.loads(line)["instruction"]
    for line in (Path(__file__).parents[1] / "kg" / "wordings.jsonl").read_text(encoding="utf-8").splitlines()
]
RECORD = {
    "id": 1,
    "cate": "人物",
    "instruction": word_instruction(["国籍", "位于"], "甲"),
    "input": "甲在乙",
    "output": "(甲,位于,乙)",
}


@pytest.mark.parametrize(
    "instruction", [*WORDINGS, word_instruction(["国籍"], "甲"), word_instruction(["met"], "a"), "抽取", ""]
)
def test_every_wording_asks_for_json_once_and_for_the_same_relations(instruction):
    asked = ask_json({"instruction": instruction})
    assert read_schema(asked["instruction"]) == read_schema(instruction)
    assert sum(asked["instruction"].count(sentence) for sentence in (CHINESE, ENGLISH)) == 1
    assert ask_json(asked) == asked


@pytest.mark.parametrize(("names", "text"), [(["国籍"], "甲"), (["met"], "a")])
def test_the_sentence_that_asked_for_brackets_is_gone(names, text):
    asked = ask_json({"instruction": word_instruction(names, text)})["instruction"]
    assert "(Subject,Relation,Object)" not in asked
    assert "(Subject)" in asked


def test_records_learn_a_list_of_objects(capsys):
    rows = [RECORD, {**RECORD, "output": "NAN"}, {**RECORD, "output": "没有三元组"}, {**RECORD, "output": "", "kg": []}]
    learnt = answer_in_json(rows, "training")
    assert json.loads(learnt[0]["output"]) == [{"head": "甲", "relation": "位于", "tail": "乙"}]
    assert [row["output"] for row in learnt[1:]] == ["[]"] * 3
    assert all(CHINESE in row["instruction"] for row in learnt)
    assert "1 of 4 training outputs hold words but no triple" in capsys.readouterr().err


def test_parts_and_votes_ask_for_json_and_divide_answers_in_json():
    asking = Asking(batch=1, as_json=True)
    assert [CHINESE in part["instruction"] for part in ask_all_parts([RECORD], asking)[0]] == [True, True]
    votes = ask_all_votes([RECORD], Asking(lists=2, as_json=True))[0]
    assert [CHINESE in part["instruction"] for vote in votes for part in vote] == [True, True]
    assert CHINESE not in ask_all_parts([RECORD], Asking(batch=1))[0][0]["instruction"]
    learnt = answer_in_json([RECORD], "training")
    rows = draw_rows(learnt[0], 0, asking, survey(learnt), 0)
    assert [row["output"] for row in rows] == ["[]", learnt[0]["output"]]
    assert asking.settings["answer_format"] == "json"
    assert "answer_format" not in Asking().settings


WORD = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp", "Cf"]), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(WORD, st.sampled_from(["国籍", "位于"]), WORD), min_size=1, max_size=4, unique=True))
def test_triples_in_json_are_read_as_they_are(triples):
    triples = [one for one in triples if not any(part in ("NAN", "nan", "NaN") for part in one)]
    if not any("<" in part or "◁" in part or "[" in part for one in triples for part in one):
        assert [tuple(one) for one in parse(render(triples, "json"), ["国籍", "位于"], "")] == triples
