"""Tokenised rows: made once, read back while nothing that decides them has changed, made anew otherwise."""

import json
import os
import shutil

import datasets
import pytest
from helpers import GOLDEN, python
from helpers_training import RECORDS, SCRIPT, flags

from checkpoints.family import find_family
from common import manifest
from data.prompts import load_template
from tokens import cache
from tokens.dataset import Tokenising, tokenise
from tokens.readers import load_codec
from tokens.rows import Limits

READ = "training: rows read from the cache ("


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "rows"


@pytest.fixture
def base(tmp_path):
    return shutil.copytree(GOLDEN / "checkpoint", tmp_path / "base")


def made(base, records=RECORDS, template="alpaca", limits=(512,), **more):
    """The rows as a list of dicts."""
    codec = load_codec(base, find_family(base)[0])
    how = Tokenising(codec, load_template(template), base, Limits(*limits), **more)
    return tokenise(how, records, "training").to_list()


def test_a_second_run_reads_the_rows_back(store, base, capsys):
    first = made(base)
    said = capsys.readouterr().err
    assert READ not in said
    assert made(base) == first
    again = capsys.readouterr().err
    (entry,) = store.iterdir()  # no temporary folder either
    assert f"{READ}{entry})\n" in again
    line = next(line for line in said.splitlines() if line.startswith("training: "))
    assert line in again.splitlines()  # the lengths are said all the same


def edit(file, change):
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


def other_template(base, monkeypatch, tmp_path):
    template = load_template("alpaca")
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**template, "prompt_input": template["prompt_input"] + " "}), encoding="utf-8")
    return {"template": str(file)}


def other_tokenizer(base, monkeypatch, tmp_path):
    edit(base / "tokenizer_config.json", lambda text: json.dumps({**json.loads(text), "eos_token": "</s>"}))
    return {}


def other_versions(base, monkeypatch, tmp_path):
    monkeypatch.setattr(manifest, "versions", lambda packages: {"tokenizers": "0.0"})
    return {}


def other_code(base, monkeypatch, tmp_path):
    shutil.copytree(cache.SOURCE, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    edit(tmp_path / "src" / "tokens" / "rows.py", lambda text: text + "\n")
    monkeypatch.setattr(cache, "SOURCE", tmp_path / "src")
    return {}


CHANGES = {
    "one letter of a text": lambda *_: {"records": [{**RECORDS[0], "input": RECORDS[0]["input"] + "x"}, *RECORDS[1:]]},
    "another order": lambda *_: {"records": RECORDS[::-1]},
    "a letter moved between fields": lambda *_: {
        "records": [
            {**one, "instruction": one["instruction"] + one["input"][:1], "input": one["input"][1:]} for one in RECORDS
        ]
    },
    "template": other_template,
    "tokenizer": other_tokenizer,
    "limits": lambda *_: {"limits": (511,)},
    "train_on_inputs": lambda *_: {"train_on_inputs": True},
    "anew": lambda *_: {"anew": True},
    "versions": other_versions,
    "code": other_code,
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_are_made_anew_when_anything_changes(store, base, change, monkeypatch, tmp_path, capsys):
    made(base)
    made(base)
    assert READ in capsys.readouterr().err
    changed = CHANGES[change](base, monkeypatch, tmp_path)
    made(base, **changed)
    assert READ not in capsys.readouterr().err
    assert len(list(store.iterdir())) == (1 if change == "anew" else 2)


def test_what_no_row_depends_on_changes_nothing(store, base, capsys):
    rows = made(base)
    moved = shutil.copytree(base, base.parent / "moved")
    assert made(moved, [{**record, "kg": [], "id": f"n{number}"} for number, record in enumerate(RECORDS)]) == rows
    assert READ in capsys.readouterr().err


def cut(entry):
    (file,) = entry.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-2000])


def lose_rows(entry):
    datasets.load_from_disk(entry).select([0]).save_to_disk(entry.with_name("other"))
    shutil.rmtree(entry)
    entry.with_name("other").rename(entry)


BREAKS = {
    "cut": cut,
    "rows missing": lose_rows,
    "a file missing": lambda entry: (entry / "state.json").unlink(),
    "zeros": lambda entry: [file.write_bytes(bytes(file.stat().st_size)) for file in entry.glob("*.arrow")],
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_entry_is_made_anew(store, base, how, capsys):
    rows = made(base)
    (entry,) = store.iterdir()
    BREAKS[how](entry)
    assert made(base) == rows
    said = capsys.readouterr().err
    assert "training: the cache holds broken rows, which are made anew (" in said
    assert READ not in said
    assert made(base) == rows
    assert READ in capsys.readouterr().err
    assert list(store.iterdir()) == [entry]


def test_a_cache_that_cannot_be_written_is_said_and_no_error(store, base, capsys):
    store.parent.mkdir()
    store.write_text("a file where a folder should be")
    rows = made(base)
    assert len(rows) == len(RECORDS)
    assert "training: rows not kept for the next run (" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llama", "chatglm"])
def test_more_workers_make_the_same_rows(store, base, chatglm, family):
    folder = {"llama": base, "chatglm": chatglm[0]}[family]
    limits = {"llama": (512,), "chatglm": (None, 640, 60)}[family]
    rows = made(folder, limits=limits)
    assert made(folder, limits=limits, workers=3, anew=True) == rows
    assert made(folder, limits=limits, workers=3) == rows


def test_the_first_of_two_processes_tokenises_and_the_other_reads(tmp_path):
    script = tmp_path / "counted.py"
    script.write_text(
        f"""import os, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import test_finetune
from tokens import cache
write = cache._write
def counted(rows, entry):
    with open({str(tmp_path / "made")!r}, "a") as file:
        file.write(os.environ["RANK"])
    write(rows, entry)
cache._write = counted
test_finetune.main()
"""
    )
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    command = flags(tmp_path / "out", "--overwrite_cache", max_steps=1)
    done = python(script, *command, launcher=launcher, env={**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").read_text() == "0"
