"""Tokenised rows kept between runs: found again when nothing changed, made anew when anything did."""

import json
import shutil

import datasets
import pytest
from conftest import GOLDEN

from utils import cache
from utils.families import find_family
from utils.prompter import load_template
from utils.records import load
from utils.tokens import Limits, load_codec
from utils.training import tokenise

PLAIN, LIMITS = load_template("plain"), Limits(512)


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return shutil.copytree(GOLDEN / "checkpoint", tmp_path / "base")


def rows_of(base, records, workers=1, anew=False, codec=None):
    codec = codec or load_codec(base, find_family(base)[0])
    file = cache.rows_file(base, PLAIN, records, LIMITS, False)
    return tokenise(codec, PLAIN, records, LIMITS, False, workers, "training", file, anew)


class Untouched:
    """A codec that must not be asked for a row."""

    context = None

    def row(self, *_):
        raise AssertionError("tokenised again")


def test_the_second_run_reads_what_the_first_made(base, capsys):
    records = load(GOLDEN / "train.json")
    first = rows_of(base, records)
    assert "from the cache" not in capsys.readouterr().err
    second = rows_of(base, records, codec=Untouched())
    assert second.to_dict() == first.to_dict()
    assert "training: rows from the cache" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="tokenised again"):
        rows_of(base, records, anew=True, codec=Untouched())


def test_more_processes_make_the_same_rows_and_read_them(base):
    records = load(GOLDEN / "train.json")
    one = rows_of(base, records).to_dict()
    assert rows_of(base, records, workers=2, anew=True).to_dict() == one


def test_every_difference_has_its_own_file(base):
    records = load(GOLDEN / "train.json")
    made_of = (PLAIN, records, LIMITS, False)
    names = {cache.rows_file(base, *made_of)}
    assert cache.rows_file(base, *made_of) in names
    names.add(cache.rows_file(base, load_template("alpaca"), *made_of[1:]))
    names.add(cache.rows_file(base, PLAIN, records[1:], LIMITS, False))
    names.add(cache.rows_file(base, PLAIN, records, Limits(511), False))
    names.add(cache.rows_file(base, PLAIN, records, LIMITS, True))
    config = base / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"changed": True}))
    names.add(cache.rows_file(base, *made_of))
    assert len(names) == 6
    (base / "model.safetensors").write_bytes(b"other weights")
    assert cache.rows_file(base, *made_of) in names


def test_a_damaged_file_is_made_anew(base):
    records = load(GOLDEN / "train.json")
    first = rows_of(base, records).to_dict()
    file = cache.rows_file(base, PLAIN, records, LIMITS, False)
    file.write_bytes(b"\x00" * 100)
    assert rows_of(base, records).to_dict() == first
    assert rows_of(base, records, codec=Untouched()).to_dict() == first


def test_a_cache_that_cannot_be_written_ends_no_run(base, capsys):
    (base.parent / "cache").write_text("a file where the folder should be")
    assert len(rows_of(base, load(GOLDEN / "train.json"))) == 12
    assert "rows are not kept" in capsys.readouterr().err
