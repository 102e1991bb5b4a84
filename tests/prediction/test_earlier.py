"""A finished results file of other settings is kept under another name when a new one takes its place."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest
from helpers import rows
from helpers_prediction import ADAPTER, flags

import inference
from common.errors import UserError
from common.manifest import run_file_of
from prediction import partial
from prediction.earlier import place_results

SETTINGS = {"adapter": "a" * 64, "num_beams": 1, "batch_size": 4}
OLD, NEW = [{"output": "old"}], [{"output": "new"}]
ALONE = ["out.json", "out.run.json"]
BOTH = ["out.before.json", "out.before.run.json", *ALONE]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.json"


def place(output, made, overwrite=False, failed=0, path="lora/a", **settings):
    """What the end of a run does whose answers are all in the partial file."""
    settings = {**SETTINGS, **settings}
    partial.resume_partial(output, settings)
    run = {"output": output.name, "adapter": path, "settings": settings, "results": {"error": failed}}
    place_results(output, made, run, overwrite)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_of_the_same_settings_is_replaced_without_a_word(output, capsys):
    place(output, OLD)
    place(output, NEW, batch_size=8)
    assert names_in(output.parent) == ALONE
    assert rows(output) == NEW
    assert capsys.readouterr().err == ""


def test_files_of_other_settings_are_kept_with_their_runs_and_numbered(output, capsys):
    place(output, OLD)
    run = run_file_of(output).read_bytes()
    place(output, NEW, num_beams=4)
    place(output, OLD, adapter="b" * 64, path="lora/b", num_beams=4)
    first, second = output.with_name("out.before.json"), output.with_name("out.before-2.json")
    assert (rows(first), rows(second), rows(output)) == (OLD, NEW, OLD)
    assert run_file_of(first).read_bytes() == run
    assert json.loads(run_file_of(second).read_text(encoding="utf-8"))["settings"]["num_beams"] == 4
    assert capsys.readouterr().err.splitlines() == [
        f"{output}: the file that was there is kept as {first} (num_beams: 1 there, 4 now)",
        f"{output}: the file that was there is kept as {second} (adapter: lora/a there, lora/b now)",
    ]


def test_of_an_adapter_that_was_trained_again_the_fingerprints_are_said(output, capsys):
    place(output, OLD)
    place(output, NEW, adapter="b" * 64)
    assert "(adapter: aaaaaaaaaaaa… there, bbbbbbbbbbbb… now)" in capsys.readouterr().err


def test_an_adapter_that_was_moved_is_the_same(output):
    place(output, OLD)
    place(output, NEW, path="elsewhere/a")
    assert names_in(output.parent) == ALONE


@pytest.mark.parametrize("beside", [None, "{", "[]", '{"settings": 1}', "of another file", "of an earlier version"])
def test_a_file_that_nothing_is_known_of_is_kept(output, capsys, beside):
    if beside and beside.startswith("of"):
        place(output, NEW)
        run = json.loads(run_file_of(output).read_text(encoding="utf-8"))
        run |= {"output": "out.jsonl"} if "another" in beside else {"settings": None}
        beside = json.dumps(run)
    if beside:
        run_file_of(output).write_text(beside, encoding="utf-8")
    output.write_text("made by hand", encoding="utf-8")
    place(output, NEW)
    assert output.with_name("out.before.json").read_text(encoding="utf-8") == "made by hand"
    assert names_in(output.parent) == ["out.before.json", *ALONE]
    assert "(nothing beside it says how it was made)" in capsys.readouterr().err


def test_a_file_that_was_changed_since_is_kept(output, capsys):
    place(output, OLD)
    output.write_text('{"output": "mended"}\n', encoding="utf-8")
    place(output, NEW)
    assert rows(output.with_name("out.before.json")) == [{"output": "mended"}]
    assert "(it was changed after it was made)" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "words"), [(0, "none"), (1, "1")])
def test_a_file_is_kept_when_more_records_fail_now(output, capsys, before, words):
    place(output, OLD, failed=before)
    place(output, NEW, failed=2)
    assert rows(output.with_name("out.before.json")) == OLD
    assert f"({words} of its records had failed, and 2 have now)" in capsys.readouterr().err
    place(output, OLD, failed=2)
    place(output, NEW)
    assert names_in(output.parent) == BOTH


def test_a_file_of_another_ending_has_a_run_of_its_own(output, capsys):
    other = output.with_suffix(".jsonl")
    place(output, OLD)
    place(other, NEW, num_beams=4)
    place(output, OLD)
    place(other, NEW, num_beams=4)
    assert names_in(output.parent) == ["out.json", "out.jsonl", "out.jsonl.run.json", "out.run.json"]
    assert capsys.readouterr().err == ""
    place(other, NEW)
    place(output, OLD, num_beams=2)
    runs = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in output.parent.glob("*.run.json")}
    assert {name: (run["output"], run["settings"]["num_beams"]) for name, run in runs.items()} == {
        "out.before.run.json": ("out.jsonl", 4),
        "out.before-2.run.json": ("out.json", 1),
        "out.jsonl.run.json": ("out.jsonl", 1),
        "out.run.json": ("out.json", 2),
    }
    assert [rows(output.with_name(name)) for name in ("out.before.jsonl", "out.before-2.json")] == [NEW, OLD]


def test_an_empty_file_is_no_work(output):
    output.touch()
    place(output, NEW)
    assert names_in(output.parent) == ALONE


def test_nothing_is_kept_that_may_be_overwritten(output, capsys):
    place(output, OLD)
    place(output, NEW, overwrite=True, num_beams=4)
    assert names_in(output.parent) == ALONE
    assert rows(output) == NEW
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("taken", ["out.before.json", "out.before.run.json"])
def test_no_file_is_replaced_by_the_one_that_is_kept(output, taken):
    output.with_name(taken).write_text("another", encoding="utf-8")
    place(output, OLD)
    place(output, NEW, num_beams=4)
    assert output.with_name(taken).read_text(encoding="utf-8") == "another"
    assert rows(output.with_name("out.before-2.json")) == OLD


def test_a_link_stays_one_and_its_file_is_kept_beside_that_file(output, tmp_path):
    there = tmp_path / "disk" / "real.json"
    there.parent.mkdir()
    output.symlink_to(there)
    place(output, OLD)
    place(output, NEW, num_beams=4)
    assert output.is_symlink()
    assert rows(there) == NEW
    assert rows(there.with_name("real.before.json")) == OLD


def killed_at(number, output) -> bool:
    """Place NEW in a process of its own, which is killed at its file operation of this number; False: it had fewer."""
    pid = os.fork()
    if pid == 0:
        done = []

        def count(event, arguments):
            watched = event in ("os.rename", "os.remove") or (
                event == "open" and str(output.parent) in str(arguments[0])
            )
            if watched:
                done.append(event)
                if len(done) == number:
                    os._exit(9)

        sys.addaudithook(count)
        place(output, NEW, num_beams=4)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_no_file_is_lost_and_the_same_command_keeps_it(tmp_path):
    number = 0
    while True:
        number += 1
        output = tmp_path / str(number) / "out.json"
        output.parent.mkdir()
        place(output, OLD)
        killed = killed_at(number, output)
        kept = output.with_name("out.before.json")
        assert OLD in [rows(path) for path in (output, kept) if path.exists()]
        place(output, NEW, num_beams=4)
        assert (rows(output), rows(kept)) == (NEW, OLD)
        assert json.loads(run_file_of(kept).read_text(encoding="utf-8"))["settings"] == SETTINGS
        assert names_in(output.parent) == BOTH
        if not killed:
            break
    assert number > 10


def test_a_file_that_cannot_be_renamed_stays_and_the_answers_too(output, monkeypatch):
    place(output, OLD)

    def refuse(*_):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(UserError, match=r"out.json: cannot be written \(Permission denied\); every answer is kept"):
            place(output, NEW, num_beams=4)
    assert rows(output) == OLD
    place(output, NEW, num_beams=4)
    assert names_in(output.parent) == BOTH


def test_commands_with_one_output_and_other_adapters_lose_none_of_their_results(output, capsys):
    inference.main(flags(output))
    inference.main(flags(output))
    assert names_in(output.parent) == ALONE
    first = output.read_bytes()
    inference.main(flags(output, lora_weights=None))
    kept = output.with_name("out.before.json")
    assert kept.read_bytes() == first != output.read_bytes()
    said = f"{output}: the file that was there is kept as {kept} (adapter: {ADAPTER.resolve()} there, None now)"
    assert said in capsys.readouterr().err
    inference.main(flags(output, "--overwrite_output_file"))
    assert names_in(output.parent) == BOTH
    assert output.read_bytes() == first
