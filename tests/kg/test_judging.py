"""Verdicts on triples: kept line by line, made training records, and the wordings these ask in."""

import json

import pytest
from helpers import ROOT

from common.errors import UserError
from kg.evidence import Run, Source, text_digest
from kg.graph import build, usual_settings
from kg.judging import append_verdicts, put_right, read_verdicts, right_triples, write_corrections
from kg.queries import source
from kg.schema import read_schema
from kg.store import open_graph
from kg.terms import source_iri
from kg.wordings import ask_for


def said(*triples, text="文本", complete=True, relations=("位于",)):
    known = {"topic": "建筑", "entities": [], "wording": "contest"}
    return {"text": text, "complete": complete, "relations": list(relations), "triples": list(triples), **known}


def test_the_last_verdict_of_a_triple_counts_and_half_a_line_is_not_read(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    append_verdicts(file, said(["accept", ["甲", "位于", "乙"], None], ["add", ["丙", "位于", "丁"], None]))
    append_verdicts(file, said(["reject", ["甲", "位于", "乙"], None]))
    append_verdicts(file, said(["correct", ["甲", "位于", "戊"], ["甲", "属于", "戊"]], complete=False))
    with open(file, "a", encoding="utf-8") as half:
        half.write('{"text": "文')
    found = read_verdicts(file)["文本"]
    assert right_triples(found) == [("丙", "位于", "丁"), ("甲", "属于", "戊")]
    assert write_corrections(file, tmp_path / "corrections.jsonl") == 0
    append_verdicts(file, said(["accept", ["己", "位于", "庚"], None]))  # in place of the half line
    assert right_triples(read_verdicts(file)["文本"])[-1] == ("己", "位于", "庚")


def test_records_ask_for_what_was_asked_and_answered(tmp_path):
    file, target = tmp_path / "verdicts.jsonl", tmp_path / "corrections.jsonl"
    append_verdicts(file, said(["correct", ["甲", "位于", "乙"], ["甲", "属于", "乙"]], relations=("位于", "高度")))
    append_verdicts(file, said(["reject", ["甲", "位于", "乙"], None], text="另一段"))
    assert write_corrections(file, target) == 2
    first, second = map(json.loads, target.read_text(encoding="utf-8").splitlines())
    assert read_schema(first["instruction"]) == ["位于", "高度", "属于"]
    assert first["output"] == "(甲,属于,乙)"
    assert (second["output"], second["kg"]) == ("NAN", [])


def test_no_verdict_keeps_those_of_other_texts_from_their_records(tmp_path):
    file, target = tmp_path / "verdicts.jsonl", tmp_path / "corrections.jsonl"
    append_verdicts(file, said(["reject", ["甲", "位于", "乙"], None], relations=()))  # nobody said what was asked
    for first in (0, 60):  # one text, judged after two questions
        names = [f"关系{number}" for number in range(first, first + 60)]
        append_verdicts(file, said(["accept", ["甲", names[0], "乙"], None], text="另一段", relations=names))
    assert write_corrections(file, target) == 2
    asked = [json.loads(line)["instruction"] for line in target.read_text(encoding="utf-8").splitlines()]
    assert read_schema(asked[0]) == ["位于"]
    assert len(read_schema(asked[1])) == 120


@pytest.mark.parametrize("with_text", [True, False])
def test_what_is_left_of_a_source_is_known_as_before(tmp_path, with_text):
    triples = [("甲", "位于", "乙"), ("甲", "位于", "丙")]
    build(tmp_path, [Source(1, triples, "甲在乙")], Run("a run"), usual_settings(), with_text=with_text)
    put_right(tmp_path, "甲在乙", "", triples[:1], triples[1:])
    known = source(open_graph(tmp_path)[0], source_iri("a run", "", 1))
    assert known["detail"] == {"places": {"甲": [0, 1], "乙": [2, 3]}, "text": text_digest("甲在乙")}
    assert known.get("text") == ("甲在乙" if with_text else None)


def test_the_wordings_are_those_of_the_sample():
    topics = json.loads((ROOT / "data" / "sample" / "relations.json").read_text(encoding="utf-8"))
    lines = (ROOT / "data" / "sample" / "train.json").read_text(encoding="utf-8").splitlines()
    seen = set()
    for record in map(json.loads, lines):
        wording = "older" if record["instruction"].startswith("使用") else "contest"
        seen.add(wording)
        entities = topics[record["cate"]]["entities"]
        made = ask_for(read_schema(record["instruction"]), wording, entities)
        if wording == "contest":
            assert made == record["instruction"]
        else:  # the order of the kinds is drawn there
            assert sorted(made) == sorted(record["instruction"])
    assert seen == {"contest", "older"}


@pytest.mark.parametrize(
    "names", [[], ["位于', '高度"], ["甲\n乙"], ["\udcc4\udce3"], [" "], ["长" * 61], [f"关系{n}" for n in range(101)]]
)
def test_names_that_cannot_stand_in_a_list_are_refused(names):
    for wording in ("contest", "older"):
        with pytest.raises(UserError):
            ask_for(names, wording)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["位于", "甲\r乙"], r"the relation '甲\\r乙' cannot stand in a list"),
        (["头", "尾"], "the relations 头, 尾 are not read as a list of relations together; rename one"),
    ],
)
def test_a_list_that_is_refused_is_named(names, said):
    with pytest.raises(UserError, match=said):
        ask_for(names)
