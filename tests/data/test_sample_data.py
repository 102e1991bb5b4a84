import importlib.util
import json
import re

import pytest
from helpers import ROOT

from data.records import read_records
from kg.schema import read_schema
from kg.triples import parse, render

SAMPLE = ROOT / "data" / "sample"
TOPICS = {
    "建筑",
    "运输",
    "人物",
    "天文对象",
    "医学",
    "事件",
    "地理地区",
    "人造物件",
    "自然科学",
    "组织",
    "作品",
    "生物",
}
CONTEST = re.compile(
    r"已知候选的关系列表：\['[^'\]]+'(, '[^'\]]+')*\]，请你根据关系列表，从以下输入中抽取出可能存在的"
    r"头实体\(Subject\)与尾实体\(Object\)，并给出对应的关系三元组。请按照 \(Subject,Relation,Object\) 的格式回答。"
)
OLDER = re.compile(
    r"使用自然语言抽取三元组,已知下列句子,请从句子中抽取出可能的实体、关系,抽取实体类型为\{'[^}]+'\},关系类型为\{'[^}]+'\},"
    r"你可以先识别出实体再判断实体之间的关系,以\(头实体,关系,尾实体\)的形式回答"
)

PARTS = {"train": read_records(SAMPLE / "train.json"), "gold": read_records(SAMPLE / "valid_gold.json")}
TRAIN, GOLD = PARTS["train"], PARTS["gold"]
QUESTIONS = read_records(SAMPLE / "valid.json")
each_part = pytest.mark.parametrize("part", PARTS)


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("sample_make", SAMPLE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def facts(rows):
    return [tuple(triple) for row in rows for triple in row["kg"]]


def entities(rows):
    return {entity for head, _, tail in facts(rows) for entity in (head, tail)}


def test_the_files_are_what_make_makes(make):
    made = make.files()
    assert set(made) == {"train.json", "valid.json", "valid_gold.json"}
    for name, text in made.items():
        assert (SAMPLE / name).read_text(encoding="utf-8") == text, (
            f"{name} is out of date; run python data/sample/make.py"
        )


@pytest.mark.parametrize(
    "source",
    [
        {"text": "甲在乙。", "kg": [["甲", "位于", "丙"]]},
        {"text": "甲在乙。", "kg": [["丁", "位于", "乙"]]},
        {"text": "甲在乙，乙在甲。", "kg": [["甲", "位于", "乙"]], "removed": "乙"},
        {"text": "甲在乙。", "kg": [["甲", "位于", "乙"]], "removed": "丙"},
    ],
    ids=["tail not in the text", "head not in the text", "removed twice", "removed never"],
)
def test_make_refuses_a_source_line_that_contradicts_its_text(make, source):
    with pytest.raises(SystemExit) as caught:
        make.check(source, "建筑", 5)
    assert "建筑.jsonl:5" in str(caught.value)


def test_there_are_enough_records():
    assert len(TRAIN) >= 400
    assert len(GOLD) >= 100


@each_part
def test_every_topic_of_the_contest_is_there_and_no_other(part):
    assert {row["cate"] for row in PARTS[part]} == TOPICS


@each_part
def test_fields_are_the_contests_in_its_order_and_types(part):
    for row in PARTS[part]:
        assert list(row) == ["id", "cate", "instruction", "input", "output", "kg"]
        assert type(row["id"]) is int
        assert row["input"].strip() == row["input"] != ""
        assert all(len(triple) == 3 and all(p and p == p.strip() for p in triple) for triple in row["kg"])


def test_ids_are_unique_over_both_parts():
    identities = [row["id"] for row in TRAIN + GOLD]
    assert len(set(identities)) == len(identities)


def test_the_held_out_questions_are_gold_without_its_answers():
    wanted = [{key: value for key, value in row.items() if key not in ("output", "kg")} for row in GOLD]
    assert wanted == QUESTIONS
    assert all(list(row) == ["id", "cate", "instruction", "input"] for row in QUESTIONS)


@each_part
def test_both_wordings_are_there_and_no_other(part):
    wordings = [bool(OLDER.fullmatch(row["instruction"])) for row in PARTS[part]]
    assert all(older or CONTEST.fullmatch(row["instruction"]) for older, row in zip(wordings, PARTS[part], strict=True))
    assert 0.05 < sum(wordings) / len(wordings) < 0.5


@each_part
def test_every_relation_is_asked_for_and_an_absent_one_too(part):
    for row in PARTS[part]:
        asked, held = read_schema(row["instruction"]), {relation for _, relation, _ in row["kg"]}
        assert held < set(asked), row
        assert len(asked) == len(set(asked)), row


@each_part
def test_at_least_8_percent_are_completion_records(part):
    rows = PARTS[part]
    lost = [row for row in rows if any(h not in row["input"] or t not in row["input"] for h, _, t in row["kg"])]
    assert len(lost) >= 0.08 * len(rows)


@each_part
@pytest.mark.parametrize("marks", [",，", "(（", "《"], ids=["comma", "bracket", "title mark"])
def test_entities_hold_what_makes_parsing_hard(part, marks):
    assert sum(any(mark in entity for mark in marks) for entity in entities(PARTS[part])) >= 5


@each_part
def test_a_few_records_have_no_triple(part):
    empty = [row for row in PARTS[part] if not row["kg"]]
    assert 3 <= len(empty) <= 0.1 * len(PARTS[part])
    assert {row["output"] for row in empty} == {"NAN" if part == "train" else ""}


def test_no_fact_stands_in_both_parts():
    assert not set(facts(TRAIN)) & set(facts(GOLD))


def test_no_head_entity_stands_in_both_parts():
    assert not {head for head, _, _ in facts(TRAIN)} & {head for head, _, _ in facts(GOLD)}


def test_no_text_stands_twice():
    texts = [row["input"] for row in TRAIN + GOLD]
    assert len(set(texts)) == len(texts)


@each_part
def test_no_triple_stands_twice_in_a_record(part):
    for row in PARTS[part]:
        assert len(facts([row])) == len(set(facts([row]))), row


@each_part
def test_every_output_is_parsed_into_its_kg(part):
    for row in PARTS[part]:
        found = parse(row["output"], read_schema(row["instruction"]), row["input"])
        assert [list(triple) for triple in found] == row["kg"]


@each_part
def test_every_output_is_its_kg_in_the_form_of_the_contest(part):
    for row in PARTS[part]:
        assert row["output"] == (render(row["kg"]) or ("NAN" if part == "train" else ""))


def test_the_files_are_json_lines_with_readable_chinese():
    for name in ("train.json", "valid.json", "valid_gold.json"):
        lines = (SAMPLE / name).read_text(encoding="utf-8").split("\n")
        assert lines.pop() == ""
        assert all(isinstance(json.loads(line), dict) and "\\u" not in line for line in lines)
