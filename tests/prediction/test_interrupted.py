"""Prediction loses nothing: kills, full disks, records that fail, too little memory; one process or several."""

import errno
import json
import os

import pytest
import torch
from helpers import ROOT, python, rows
from helpers_prediction import RECORDS, VALID, flags

import inference
from common import manifest
from common.errors import UserError
from decoding import batch_engine
from prediction import partial
from tokens.codec import Codec

LENGTHS = {"max_new_tokens": 24}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # as torchrun sets it


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted run, as bytes."""
    out = tmp_path_factory.mktemp("whole") / "out.json"
    inference.main(flags(out, batch_size=2, **LENGTHS))
    return out.read_bytes()


@pytest.mark.parametrize(("processes", "engine"), [(1, "batch"), (2, "batch"), (1, "fast")])
def test_killed_at_20_random_moments_the_file_is_the_same(tmp_path, whole, processes, engine):
    out = tmp_path / "out.json"
    more = flags(None, batch_size=1, engine=engine, **LENGTHS)
    done = python(ROOT / "tests" / "kill_often.py", 20, 3, processes, out, *more, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "killed 20 times" in done.stdout
    assert int(done.stdout.split("with ")[1].split()[0]) > 4  # most kills came between the first record and the last
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.run.json"]


def test_torchrun_shares_the_records_and_another_number_of_processes_goes_on(tmp_path, whole):
    out = tmp_path / "out.json"
    settings = started_by_two(out)
    assert partial.partial_path(out, 2).is_file()
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    done = python("src/inference.py", *flags(out, batch_size=2, **LENGTHS), launcher=launcher, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"resume: {settings} of 12 answers" in done.stderr
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.run.json"]


def started_by_two(out):
    """Partial files as the first and the third of three processes leave them; how many records are in them."""
    copy = out.with_name("copy.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partial, "finish_file", lambda *_: None)
        patch.setattr(manifest, "write_run_of", lambda *_: None)
        inference.main(flags(copy, batch_size=2, **LENGTHS))
    first, *lines = partial.partial_path(copy).read_text(encoding="utf-8").splitlines(keepends=True)
    partial.partial_path(copy).unlink()
    partial.partial_path(out).write_text(first + lines[0], encoding="utf-8")
    partial.partial_path(out, 2).write_text(first + lines[3] + lines[4][:40], encoding="utf-8")
    return 4


def test_a_full_disk_is_said_and_what_was_written_stays(tmp_path, whole, monkeypatch):
    out, real, calls = tmp_path / "out.json", os.fsync, []

    def full(handle):
        calls.append(1)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"partial: cannot be written \(No space left on device\).*is kept"):
            inference.main(flags(out, batch_size=2, **LENGTHS))
    assert len(partial.read_finished(out)) >= 4
    inference.main(flags(out, **LENGTHS))
    assert out.read_bytes() == whole


def test_a_disk_that_is_full_at_the_end_keeps_every_answer(tmp_path, whole, monkeypatch):
    out = tmp_path / "out.json"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(partial, "write_rows", full)
        with pytest.raises(UserError, match=r"out.json: cannot be written .*every answer is kept in .*\.partial"):
            inference.main(flags(out, batch_size=2, **LENGTHS))
    assert len(partial.read_finished(out)) == len(RECORDS)
    monkeypatch.setattr(batch_engine, "answer", lambda *_: pytest.fail("answered again"))
    inference.main(flags(out, **LENGTHS))
    assert out.read_bytes() == whole


@pytest.mark.parametrize("where", ["encode", "answer"])
def test_a_record_that_raises_is_named_the_others_are_kept_and_it_alone_is_asked_again(
    tmp_path, whole, monkeypatch, capsys, where
):
    place = {"encode": Codec, "answer": batch_engine}[where]
    out, real, bad = tmp_path / "out.json", getattr(place, where), RECORDS[4]
    asked = []

    def fails(*arguments):
        if where == "answer":
            _, codec, prompts, *_ = arguments
            texts = [codec.decode(ids) for ids in prompts]
        else:
            texts = ["".join(piece.text for piece in arguments[1])]
        if any(bad["input"] in text for text in texts):
            raise ValueError("no such thing\nand more")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(place, where, fails)
        with pytest.raises(UserError, match=r"1 of 12 records failed.*out.json is not written.*--skip_failed"):
            inference.main(flags(out, batch_size=2, **LENGTHS))
    assert f"failed: id {bad['id']}: ValueError: no such thing\n" in capsys.readouterr().err
    assert not out.exists()
    assert len(partial.read_finished(out)) == 11

    answer = batch_engine.answer

    def counts(model, codec, prompts, *more):
        asked.extend(prompts)
        return answer(model, codec, prompts, *more)

    monkeypatch.setattr(batch_engine, "answer", counts)
    inference.main(flags(out, **LENGTHS))
    assert len(asked) == 1
    assert out.read_bytes() == whole


def test_skip_failed_writes_the_file_with_an_empty_answer(tmp_path, whole, monkeypatch, capsys):
    out, real = tmp_path / "out.json", Codec.encode

    def fails(codec, pieces):
        if any(RECORDS[4]["input"] in piece.text for piece in pieces):
            raise ValueError("no")
        return real(codec, pieces)

    monkeypatch.setattr(Codec, "encode", fails)
    inference.main(flags(out, "--skip_failed", batch_size=2, **LENGTHS))
    wanted = [json.loads(line) for line in whole.decode().splitlines()]
    wanted[4] |= {"output": "", "finish_reason": "error"}
    assert rows(out) == wanted
    assert "warning: 1 of 12 records failed" in capsys.readouterr().err


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(tmp_path, whole, monkeypatch, capsys):
    out, real, refused = tmp_path / "out.json", batch_engine.answer, []

    def small(model, codec, prompts, *more):
        if len(prompts) * max(map(len, prompts)) > 700:
            refused.append(len(prompts))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, codec, prompts, *more)

    monkeypatch.setattr(batch_engine, "answer", small)
    inference.main(flags(out, batch_size=12, **LENGTHS))
    assert out.read_bytes() == whole
    said = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert said[0].startswith("batch_size: 6 (out of memory with 12;")
    assert [int(line.split("memory with ")[1].split(";")[0]) for line in said] == refused


def test_a_record_too_large_even_alone_fails_by_itself(tmp_path, whole, monkeypatch, capsys):
    out, real = tmp_path / "out.json", batch_engine.answer
    longest = max(RECORDS, key=lambda record: len(record["instruction"] + record["input"]))

    def small(model, codec, prompts, *more):
        if any(longest["input"] in codec.decode(ids) for ids in prompts):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, codec, prompts, *more)

    monkeypatch.setattr(batch_engine, "answer", small)
    with pytest.raises(UserError, match="1 of 12 records failed"):
        inference.main(flags(out, batch_size=4, **LENGTHS))
    assert f"failed: id {longest['id']}: out of memory, even alone" in capsys.readouterr().err
    assert len(partial.read_finished(out)) == 11


def test_a_line_that_is_no_record_is_an_error_that_names_it(tmp_path):
    broken = tmp_path / "in.json"
    broken.write_text(VALID.read_text(encoding="utf-8") + '{"id": 1, "instr\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"in.json:13: not JSON"):
        inference.main(flags(tmp_path / "out.json", input_file=broken))
