"""What every command line has in common: empty values, ranges, paths that cannot be."""

import math

import pytest

from common.errors import UserError
from common.flags import MOST_COUNT, Range, check_flags, check_ranges, check_values, command


class Given:
    def __init__(self, **values):
        self.__dict__.update(values)


def error_of(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize("words", [["--a", ""], ["--a", " \t"], ["--a="], ["--a=\u3000"], ["--b", "x", "--a", "y", ""]])
def test_an_empty_value_is_an_error_that_names_its_flag(words):
    assert error_of(check_values, words) == "--a: a value is empty; give one, or leave the flag out"


def test_an_empty_word_without_a_flag_is_an_error_too():
    assert error_of(check_values, ["", "--a", "x"]).startswith("the command line: a value is empty")


def test_a_path_that_no_file_can_have_is_an_error_that_names_its_flag(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert error_of(check_values, ["--a_file", str(tmp_path / "one")]).endswith(
        "its links lead in a circle; give another path"
    )
    assert error_of(check_values, [f"--out={tmp_path / 'one' / 'x'}"]).startswith(f"--out {tmp_path}"[:30])
    long = error_of(check_values, ["--path_raw", "x" * 300])
    assert long == f"--path_raw {'x' * 60}…: the name is too long; give another path"
    check_values(["--out", str(tmp_path / "not there"), "--list", ",".join(["q_proj"] * 100), "--number", "-1"])


def test_settings_in_json_that_are_none_are_an_error_that_names_the_flag():
    assert error_of(check_values, ["--more_kwargs", "{bad"]).startswith(
        "--more_kwargs {bad: not JSON (Expecting property"
    )
    check_values(["--more_kwargs", '{"a": 1}', "--other_config", "file.json"])


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(1), (1, 10**8, 2.5), (0, -1, math.nan, math.inf), "at least 1"),
        (Range(0, above=True), (1e-9, 1e38), (0, -1, math.nan, math.inf), "a number above 0"),
        (Range(0, 1, below=True), (0, 0.999), (1, -0.1, math.nan), "0 or more, and less than 1"),
        (Range(0, 1, above=True), (0.1, 1), (0, 1.1, math.nan), "more than 0, and 1 at most"),
        (Range(2, 5, words="two to five"), (2, 5), (1, 6), "two to five"),
    ],
)
def test_a_number_outside_its_range_is_an_error_that_names_the_flag(allowed, inside, outside, words):
    for value in inside:
        check_ranges(Given(size=value), {"size": allowed})
    for value in outside:
        finite = "" if math.isfinite(value) else "a finite number, "
        assert (
            error_of(check_ranges, Given(size=value), {"size": allowed}) == f"--size {value}: expected {finite}{words}"
        )


def test_what_was_left_out_has_no_range_and_a_count_has_an_end():
    check_ranges(Given(size=None), {"size": Range(1), "other": Range(1)})
    check_ranges(Given(size=float(10**12)), {"size": Range(1)})
    assert error_of(check_ranges, Given(size=10**400), {"size": Range(1)}).endswith(f"…: expected {MOST_COUNT} at most")


def parser():
    made = command("about")
    made.add_argument("--path", required=True)
    made.add_argument("--size", type=int)
    return made


def test_an_unknown_flag_is_named_before_one_that_is_missing():
    assert error_of(check_flags, parser(), ["--siz", "1"]) == "--siz: unknown flag; did you mean --size?"
    assert error_of(check_flags, parser(), ["--file=x"], {"--file": "--path"}.get) == (
        "--file: unknown flag; did you mean --path?"
    )
    assert error_of(check_flags, parser(), ["--size", "1"]).endswith("required: --path")


def test_a_value_that_is_missing_or_very_long_is_said_shortly():
    assert error_of(check_flags, parser(), ["--path"]) == "--path: its value is missing"
    message = error_of(check_flags, parser(), ["--path", "x", "--size", "9" * 5000])
    assert message.startswith("--size: invalid int value: '999")
    assert len(message) < 200


def test_help_says_each_default_that_its_words_do_not_name():
    parser = command("x")
    parser.add_argument("--rows", type=int, default=0, help="how many")
    parser.add_argument("--where", default="out", help="a folder; default: out")
    parser.add_argument("--name", help="of it")
    parser.add_argument("--quick", action="store_true", help="soon")
    said = [" ".join(line.split()) for line in parser.format_help().splitlines()[-4:]]
    assert said == [
        "--rows ROWS how many (default: 0)",
        "--where WHERE a folder; default: out",
        "--name NAME of it",
        "--quick soon",
    ]
