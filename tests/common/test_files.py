"""Files that are written and read: names that fit, folders kept apart, JSON that is JSON."""

import json
import os

import pytest

from common.errors import UserError
from common.files import check_apart, check_output, read_json, to_line


def error_of(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize("size", [243, 247, 255])
def test_a_name_that_leaves_no_room_for_the_files_beside_it_is_refused(tmp_path, size):
    message = error_of(check_output, tmp_path / ("x" * size), "--out")
    assert message.endswith("the name is too long (242 bytes are left for it here); give a shorter one")
    check_output(tmp_path / ("x" * 242), "--out")
    assert "the name is too long" in error_of(check_output, tmp_path / ("字" * 81), "--out")


def test_a_circle_of_links_is_no_output(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert error_of(check_output, tmp_path / "one", "--out").endswith("its links lead in a circle; give another path")


@pytest.mark.parametrize("ending", ["", ".tmp", ".partial"])
def test_an_input_that_would_be_replaced_while_writing_is_refused(tmp_path, ending):
    out, given = tmp_path / "out.json", tmp_path / f"out.json{ending}"
    given.write_text("{}")
    assert "is an input of this command, and would be lost" in error_of(check_output, out, "--out", given)


def test_a_training_is_kept_out_of_its_bases_folder(tmp_path):
    base, link = tmp_path / "base", tmp_path / "link"
    base.mkdir()
    link.symlink_to(base)
    for same in (base, link, f"{base}/", base / "." / ".." / "base", os.path.relpath(base)):
        assert "is the folder of --base, whose files would be replaced" in error_of(check_apart, same, "--base", base)
    step = tmp_path / "out" / "checkpoint-5"
    assert "is one of its checkpoints" in error_of(check_apart, tmp_path / "out", "--base", step)
    for apart in (base / "lora", tmp_path, tmp_path / "base2"):
        check_apart(apart, "--base", base)


def test_what_is_no_number_in_json_is_written_as_null():
    row = {"a": float("nan"), "b": [1.5, float("inf"), {"c": float("-inf")}], "d": "NaN", "e": "\ud83d"}
    assert json.loads(to_line(row)) == {"a": None, "b": [1.5, None, {"c": None}], "d": "NaN", "e": "\ud83d"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n"a": oops}', "x.json:2: not JSON (Expecting value); do this"),
        (b'{"a": "\t"}', "x.json:1: not JSON (Invalid control character); do this"),
        (b'{"a": "', "x.json:1: not JSON (Unterminated string); do this"),
        ("{}".encode("utf-16"), "x.json: not UTF-8 (byte 0); save it as UTF-8"),
        (b"[" * 100_000, "x.json: not JSON ("),
        (b"9" * 5000, "x.json: not JSON ("),
    ],
)
def test_json_that_cannot_be_read_is_one_clear_line(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    said = error_of(read_json, tmp_path / "x.json", "do this")
    assert message in said
    assert said.endswith("; do this")


def test_json_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "x.json").write_text('{"a": "一"}', encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json", "") == {"a": "一"}
