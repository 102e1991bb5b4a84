"""CSV and Parquet files as records."""

import pytest
from datasets import Dataset

from common.errors import UserError
from data.records import load_records

ROW = {"id": 7, "cate": "人物", "instruction": "抽取, 甲\n乙", "input": '说 "是"', "output": "NAN"}
TRIPLES = {"output": "(甲,位于,乙)", "kg": [["甲", "位于", "乙"]]}


def save_csv(path, rows, separator=","):
    import csv
    import json

    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(rows[0])
        for row in rows:
            cells = (
                json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for value in row.values()
            )
            writer.writerow(cells)
    return path


@pytest.mark.parametrize(("name", "separator"), [("x.csv", ","), ("x.tsv", "\t"), ("X.CSV", ",")])
def test_a_csv_file_has_its_texts_as_they_are(tmp_path, name, separator):
    rows = [{**ROW, "kg": []}, {**ROW, "id": 8, **TRIPLES}]
    assert load_records(save_csv(tmp_path / name, rows, separator)) == rows


def test_a_parquet_file_of_any_form_is_read(tmp_path):
    Dataset.from_list([{**ROW, **TRIPLES}]).to_parquet(tmp_path / "ours.parquet")
    assert load_records(tmp_path / "ours.parquet") == [{**ROW, **TRIPLES}]
    plain, complex_one = {"@value": "乙"}, {"@value": "丙", "inArea": "丁"}
    spos = [{"subject": "甲", "predicate": "位于", "object": tail} for tail in (plain, complex_one)]
    Dataset.from_list([{"text": "文", "spo_list": spos}]).to_parquet(tmp_path / "duie.parquet")
    (record,) = load_records(tmp_path / "duie.parquet")
    assert record["kg"] == [["甲", "位于", "乙"], ["甲", "位于", "丙"]]


def test_a_csv_file_of_conversations_has_them_as_json(tmp_path):
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    (record,) = load_records(save_csv(tmp_path / "x.csv", [{"messages": turns}]))
    assert (record["id"], record["instruction"], record["output"]) == (1, "问", "答")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "x.csv:1: expected the names of the columns"),
        ("x.csv", b"id,id\n1,2\n", "x.csv:1: expected the names of the columns, each once; found id, id"),
        ("x.csv", "id,input\n1,文\n".encode("gbk"), "x.csv: "),
        ("x.csv", b"id,input\n", "x.csv: the table has no row"),
        ("x.csv", b'instruction,input,output\na,"b,c\n', "x.csv: cannot be read as csv"),
        ("x.parquet", b"PAR1 no", "x.parquet: cannot be read as parquet"),
        ("x.csv", b"instruction,input\na,b\n", "none of its 1 records has the field output"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_clear_error(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_records(tmp_path / name)
    assert message in str(caught.value)
