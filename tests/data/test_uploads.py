"""Uploads of every kind as records, and what is said of those that are none."""

import json

import pytest

from common.errors import UserError
from data.uploads import labels_of, read_upload, write_upload

ASK = "关系列表：['位于']"


def read(tmp_path, name, content, instruction=ASK):
    file = tmp_path / "upload-1.tmp"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_upload(file, name, instruction)


@pytest.mark.parametrize(
    ("name", "content", "inputs"),
    [
        ("a.txt", "\ufeff甲\r\n\n 乙\u2028丙 \n", ["甲", "乙\u2028丙"]),
        ("a.csv", '\ufefftext,cate\n"甲,\n乙",建筑\n丙,\n', ["甲,\n乙", "丙"]),
        ("A.CSV", "input\r\n甲\r\n", ["甲"]),
        ("a.jsonl", '{"文本": "甲"}\n{"input": "乙", "text": "不是"}', ["甲", "乙"]),
        ("a.json", '[{"instruction": "问", "input": "甲"}]', ["甲"]),
    ],
)
def test_texts_are_found_in_every_kind(tmp_path, name, content, inputs):
    records = read(tmp_path, name, content)
    assert [record["input"] for record in records] == inputs
    assert all(record["instruction"] in (ASK, "问") for record in records)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pdf", "x", "expected a file of the kinds"),
        ("a", "x", "expected a file"),
        ("a.txt", b"\xff\xfe", "a.txt: not UTF-8"),
        ("a.txt", "\n \n", "holds no record"),
        ("a.csv", "甲\n乙\n", "a.csv:1: no column"),
        ("a.csv", 'text\n"甲', "a.csv: not CSV"),
        ("a.jsonl", '{"input": "甲"}\n{"input"', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"input": 1}', "a.jsonl:1: input is a number"),
        ("a.jsonl", '{"id": 1, "input": "甲"}\n{"id": 1, "input": "乙"}', "a.jsonl:2: id 1 already"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_owners_name(tmp_path, name, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, name, content)
    assert str(tmp_path) not in str(caught.value)


def test_without_a_relation_records_need_an_instruction(tmp_path):
    with pytest.raises(UserError, match="give the relations"):
        read(tmp_path, "a.txt", "甲", None)


def test_records_get_ids_and_labels_are_seen(tmp_path):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("甲\n乙", encoding="utf-8")
    assert write_upload(source, "a.txt", ASK, target) == 2
    rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [1, 2]
    assert labels_of(rows) is None
    assert labels_of([{"output": "x"}, {"kg": []}]) is not None
