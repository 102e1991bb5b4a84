"""Rows drawn anew each epoch: the same for everybody, as many in each, none lost where a later one does not fit."""

import datasets
import pytest
from helpers import GOLDEN

from checkpoints.family import find_family
from data.asking import Asking, draw_rows, survey
from data.prompts import load_template
from tokens.dataset import Tokenising, tokenise
from tokens.drawn import DrawnRows
from tokens.readers import load_codec
from tokens.rows import Limits

BASE = GOLDEN / "checkpoint"
CODEC, TEMPLATE = load_codec(BASE, find_family(BASE)[0]), load_template("plain")
LISTED = "关系列表：['位于', '别名', '国籍']，请抽取。"
LONG = "关系列表：['一个名字非常长的关系而且只在这里出现', '面积']，请抽取。"
RECORDS = [
    {"cate": "人", "instruction": LISTED, "input": "甲在乙。", "output": "(甲,位于,乙)"},
    {"cate": "人", "instruction": LONG, "input": "甲。", "output": "NAN"},
    {"cate": "人", "instruction": "请抽取。", "input": "甲。", "output": "(甲,位于,丙)"},
]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def how(limit=512):
    return Tokenising(CODEC, TEMPLATE, BASE, Limits(limit))


def held(rows):
    return [rows[at] for at in range(len(rows))]


def test_the_rows_of_an_epoch_are_those_of_its_records():
    asking = Asking(shuffle=True, negatives=2, batch=2, seed=3)
    rows = DrawnRows(how(), RECORDS, asking)
    source = survey(RECORDS)
    for epoch in (0, 1, 2, 1, 0):
        rows.draw_epoch(epoch)
        drawn = [draw_rows(one, number, asking, source, epoch) or [one] for number, one in enumerate(RECORDS)]
        flat = [row for part in drawn for row in part]
        assert held(rows) == tokenise(how(), flat, "training").to_list()
        assert len(rows) == len(flat) == 3 + 2 + 1
        if not epoch:
            assert rows["length"] == [row["length"] for row in held(rows)]


def test_what_is_only_divided_is_never_made_again(capsys):
    rows = DrawnRows(how(), RECORDS, Asking(batch=2))
    first = held(rows)
    rows.encode = None
    rows.draw_epoch(5)
    assert held(rows) == first
    said = capsys.readouterr().err
    assert "relations: at most 2 a question: 4 rows of 3 records" in said
    assert "relations: 1 of 3 training records stay as they are" in said


def size(record):
    """Tokens of the shortest row that a record may have."""
    return len(CODEC.row(TEMPLATE, {**record, "input": record["input"][:1]}, Limits(None))["input_ids"])


def test_a_row_that_no_longer_fits_is_that_of_the_first_epoch():
    records = [RECORDS[1], RECORDS[0]]  # the first asks for a long name, which the second may be given
    source, short = survey(records), "['位于', '别名', '国籍', '面积']"

    def lists(seed):
        asking = Asking(shuffle=False, negatives=1, seed=seed)
        return [draw_rows(records[1], 1, asking, source, epoch)[0] for epoch in range(6)]

    seed = next(seed for seed in range(99) if short in lists(seed)[0]["instruction"])
    drawn = lists(seed)
    assert len({row["instruction"] for row in drawn}) > 1
    least = size(drawn[0])
    rows = DrawnRows(how(least), records, Asking(negatives=1, seed=seed))
    assert len(rows) == 1  # the record that asks for the long name never fits
    first, unfit = rows[0], 0
    for epoch, row in enumerate(drawn):
        rows.draw_epoch(epoch)
        fits = size(row) <= least
        unfit += not fits
        assert (rows[0] == first) == (short in row["instruction"] or not fits)
        assert rows[0]["length"] > 0
    assert unfit
