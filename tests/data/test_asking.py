"""Which relations a question asks for: drawn by seed, epoch and record alone, and no answer is lost or moved."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.asking import Asking, ask_all_parts, ask_parts, divide, draw_all, draw_rows, merge_answers, survey
from kg.metrics import triples_of
from kg.schema import read_schema
from kg.triples import render

seeded = settings(derandomize=True, deadline=None, database=None, max_examples=100)

NAMES = ["位于", "别名", "国籍", "作者", "面积"]


def record(
    names=NAMES, triples=(("乙", "作者", "甲"), ("甲", "位于", "丙"), ("甲", "别名", "丁")), cate="人物", number=0
):
    listed = ", ".join(f"'{name}'" for name in names)
    output = ",".join(f"({','.join(triple)})" for triple in triples) or "NAN"
    instruction = f"抽取实体类型为{{'人'}}，已知候选的关系列表：[{listed}]，请抽取。"
    return {"id": number, "cate": cate, "instruction": instruction, "input": "甲乙丙丁。", "output": output}


RECORDS = [record(), record(["父母", "配偶"], ()), record(["长度"], (), "建筑")]
SOURCE = survey(RECORDS)


def asked(rows):
    return [read_schema(row["instruction"]) for row in rows]


def test_the_source_knows_each_topics_relations_and_the_word_for_nothing():
    assert SOURCE.topics == {"人物": [*NAMES, "父母", "配偶"], "建筑": ["长度"]}
    assert SOURCE.nothing == "NAN"
    assert survey([record()]).nothing == "NAN"
    assert survey([record(), {**record([], ()), "output": ""}]).nothing == ""
    assert survey([record(["别名"])]).topics == {"人物": ["别名", "作者", "位于"]}  # answered, not asked


def test_a_shuffled_list_is_another_each_epoch_and_the_same_for_everybody():
    shuffled = [asked(draw_rows(RECORDS[0], 0, Asking(shuffle=True), SOURCE, epoch))[0] for epoch in range(6)]
    again = [asked(draw_rows(RECORDS[0], 0, Asking(shuffle=True), SOURCE, epoch))[0] for epoch in range(6)]
    assert shuffled == again
    assert len(set(map(tuple, shuffled))) > 3
    assert all(sorted(names) == sorted(NAMES) for names in shuffled)
    assert asked(draw_rows(RECORDS[0], 1, Asking(shuffle=True), SOURCE, 0))[0] != shuffled[0]
    assert asked(draw_rows(RECORDS[0], 0, Asking(shuffle=True, seed=7), SOURCE, 0))[0] != shuffled[0]
    (row,) = draw_rows(RECORDS[0], 0, Asking(shuffle=True), SOURCE, 0)
    assert row["output"] == RECORDS[0]["output"]
    assert "实体类型为{'人'}，" in row["instruction"]


def test_added_relations_are_of_the_topic_and_stand_at_any_place():
    places, added = set(), set()
    for epoch in range(40):
        (names,) = asked(draw_rows(RECORDS[0], 0, Asking(negatives=1), SOURCE, epoch))
        assert [name for name in names if name in NAMES] == NAMES
        (new,) = set(names) - set(NAMES)
        places.add(names.index(new))
        added.add(new)
    assert added == {"父母", "配偶"}
    assert places == set(range(6))
    (names,) = asked(draw_rows(RECORDS[0], 0, Asking(negatives=9), SOURCE, 0))
    assert sorted(names) == sorted([*NAMES, "父母", "配偶"])
    assert asked(draw_rows(RECORDS[2], 2, Asking(negatives=9), SOURCE, 0)) == [["长度"]]  # its topic has no other


def test_a_divided_record_has_each_answer_where_its_relation_is_asked():
    rows = draw_rows(RECORDS[0], 0, Asking(batch=2), SOURCE, 0)
    assert asked(rows) == [["位于"], ["别名", "国籍"], ["作者", "面积"]]
    assert [row["output"] for row in rows] == ["(甲,位于,丙)", "(甲,别名,丁)", "(乙,作者,甲)"]
    rows = draw_rows({**RECORDS[0], "output": "(乙,作者,甲)"}, 0, Asking(batch=3), SOURCE, 0)
    assert [row["output"] for row in rows] == ["NAN", "(乙,作者,甲)"]
    (row,) = draw_rows({**RECORDS[0], "output": "any (乙,作者,甲) words"}, 0, Asking(batch=5), SOURCE, 0)
    assert row["output"] == "any (乙,作者,甲) words"  # a list that is short enough is not touched


@pytest.mark.parametrize(
    "unfit",
    [
        {"instruction": "请抽取三元组"},
        {"instruction": "关系列表：[]，请抽取"},
        {"output": "作者：乙是甲写的，[乙，作者，甲]。"},  # in no notation that could be written again
        {"output": "(甲,父母,乙)"},  # which is not asked
    ],
)
def test_what_cannot_be_divided_stays_as_it_is_and_is_said_once(unfit, capsys):
    other = {**record(), **unfit}
    assert draw_all([record(), other], Asking(batch=2), SOURCE, "training records")[1] is None
    assert capsys.readouterr().err.count("relations: 1 of 2 training records stay as they are") == 1


def test_a_question_is_drawn_once_and_divided(capsys):
    plain = {"instruction": "请抽取三元组", "input": "甲"}
    parts = ask_all_parts([record(), plain], Asking(shuffle=True, batch=2))
    assert [len(part) for part in parts] == [3, 1]
    assert parts[1] == [plain]
    assert "relations: 1 of 2 records stay as they are" in capsys.readouterr().err
    assert parts == ask_all_parts([record(), plain], Asking(shuffle=True, batch=2))
    names = [name for part in asked(parts[0]) for name in part]
    assert sorted(names) == sorted(NAMES)
    assert names != NAMES
    assert ask_all_parts([record()], Asking()) == [[record()]]
    assert asked(ask_parts(record(), 0, Asking(batch=5))) == [NAMES]


def test_answers_are_merged_in_the_lists_order_each_once():
    answers = [("甲乙", "(乙,作者,甲),(甲,父母,乙)"), ("甲乙", "(甲,位于,丙),(乙,作者,甲)"), ("甲", "NAN")]
    assert render(merge_answers(record(), answers, True)) == "(甲,位于,丙),(乙,作者,甲),(甲,父母,乙)"
    assert render(merge_answers(record(), answers, False)) == "(乙,作者,甲),(甲,父母,乙),(甲,位于,丙)"
    assert merge_answers(record(), [("甲", "NAN"), ("甲", "")], True) == []


@seeded
@given(names=st.lists(st.integers(), max_size=30), most=st.integers(0, 9))
def test_parts_hold_all_names_in_order_and_are_nearly_of_a_size(names, most):
    parts = divide(names, most)
    assert [name for part in parts for name in part] == names
    sizes = [len(part) for part in parts]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert not most or (len(parts) == max(1, -(-len(names) // most)) and max(sizes, default=0) <= most)


@seeded
@given(
    triples=st.lists(st.tuples(st.sampled_from("甲乙"), st.sampled_from(NAMES), st.sampled_from("丙丁")), max_size=6),
    asking=st.builds(Asking, st.booleans(), st.integers(0, 3), st.integers(0, 4), st.integers(0, 99)),
    epoch=st.integers(0, 3),
)
def test_all_rows_together_say_what_the_record_says(triples, asking, epoch):
    triples = list(dict.fromkeys(triples))
    rows = draw_rows(record(triples=triples), 0, asking, SOURCE, epoch)
    assert sorted(one for row in rows for one in triples_of(row)) == sorted(triples)
    for row in rows:
        held = triples_of(row)
        assert {one[1] for one in held} <= set(read_schema(row["instruction"]))
        assert held == [one for one in triples if one in held]  # in the record's order
