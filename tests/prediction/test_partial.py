import json

import pytest

from common import locks
from common.errors import UserError
from prediction import partial

SETTINGS = {
    "base": "models/tiny",
    "precision": ["float32", 16],
    "template": {"prompt_input": "{input}\n"},
    "batch_size": 2,
}
BATCHES = [
    {1: {"id": 7, "output": "(甲,位于,乙)"}, 0: {"id": 5, "output": "a\u2028b\nc"}},
    {2: {"id": 9, "output": ""}},
]
ROWS = {**BATCHES[0], **BATCHES[1]}


@pytest.fixture
def output(tmp_path):
    path = tmp_path / "results" / "valid.json"
    path.parent.mkdir()
    return path


def interrupted(output, batches=BATCHES):
    """The partial file of a run that finished these batches."""
    partial.resume_partial(output, SETTINGS)
    for batch in batches:
        partial.append_answers(output, batch)
    return partial.partial_path(output)


def test_a_first_run_starts_with_no_rows(output):
    assert partial.recorded_settings(output) is None
    assert partial.resume_partial(output, SETTINGS) == {}
    assert partial.recorded_settings(output) == SETTINGS
    assert not output.exists()


def test_appended_batches_come_back_by_index(output):
    interrupted(output)
    assert partial.resume_partial(output, SETTINGS) == ROWS


@pytest.mark.parametrize("line", ["[1]", "7", "half of a lin"])
def test_a_file_that_is_no_partial_file_is_said(output, line):
    partial.partial_path(output).write_text(line + "\n")
    with pytest.raises(UserError, match=r"valid.json.partial:1: not a partial file of predictions; delete it"):
        partial.resume_partial(output, SETTINGS)


@pytest.mark.parametrize("ranks", [(0, 0), (0, 1), (1, 0)])
def test_an_answer_that_was_asked_again_counts_whichever_process_made_it(output, ranks):
    for rank, budget in zip(ranks, (8, 16), strict=True):
        partial.resume_partial(output, SETTINGS, rank)
        partial.append_answers(output, {3: {"output": f"of {budget}", "budget": budget}}, rank)
    assert partial.read_finished(output) == {3: {"output": "of 16", "budget": 16}}


def test_a_run_can_be_interrupted_more_than_once(output):
    interrupted(output, BATCHES[:1])
    assert partial.resume_partial(output, SETTINGS) == BATCHES[0]
    partial.append_answers(output, BATCHES[1])
    assert partial.resume_partial(output, SETTINGS) == ROWS


def test_each_batch_is_on_disk_when_append_returns(output):
    path = interrupted(output, BATCHES[:1])
    assert path.read_bytes().endswith(b"\n")
    assert len(path.read_bytes().split(b"\n")) == 3  # settings, one batch, nothing


def test_killed_at_any_byte_the_whole_batches_count_and_the_rest_can_be_appended(output):
    path = interrupted(output)
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 3
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        done = max(0, sum(end <= size for end in ends) - 1)
        expected = {index: row for batch in BATCHES[:done] for index, row in batch.items()}
        assert partial.resume_partial(output, SETTINGS) == expected
        for batch in BATCHES[done:]:
            partial.append_answers(output, batch)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("key", "there", "now"),
    [("base", "models/tiny", "models/other"), ("precision", "['float32', 16]", ["bfloat16", 16])],
)
def test_other_settings_are_refused_with_both_values_and_nothing_is_lost(output, key, there, now):
    path = interrupted(output)
    before = path.read_bytes()
    with pytest.raises(UserError) as caught:
        partial.resume_partial(output, {**SETTINGS, key: now})
    assert f"{key}: {there} there, {now} now" in str(caught.value)
    assert str(path) in str(caught.value)
    assert [name for name in SETTINGS if f"{name}: " in str(caught.value)] == [key]  # what agrees is not listed
    assert path.read_bytes() == before


def test_another_batch_size_goes_on(output):
    interrupted(output)
    assert partial.resume_partial(output, {**SETTINGS, "batch_size": 1}) == ROWS


def test_of_an_input_that_changed_the_fingerprints_are_shortened(output):
    partial.resume_partial(output, SETTINGS | {"input": "a" * 64})
    with pytest.raises(UserError, match=f"input: {'a' * 12}… there, {'b' * 12}… now"):
        partial.resume_partial(output, SETTINGS | {"input": "b" * 64})


def test_one_process_at_a_time_writes_a_partial_file(tmp_path):
    output = tmp_path / "made" / "valid.json"
    with partial.hold_partial(output):
        interrupted(output)
        with (
            pytest.raises(UserError, match=r"valid.json.partial: another process is writing it"),
            partial.hold_partial(output),
        ):
            pass
        with partial.hold_partial(output, rank=1):  # of the same run
            pass
    with partial.hold_partial(output):
        assert partial.resume_partial(output, SETTINGS) == ROWS
    with pytest.raises(KeyboardInterrupt), partial.hold_partial(tmp_path / "other.json"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["made"]  # nothing was begun: no file is left
    assert [path.name for path in output.parent.iterdir()] == ["valid.json.partial"]


def test_a_run_that_ends_leaves_the_file_of_the_next_one_alone(output):
    with partial.hold_partial(output):
        partial.partial_path(output).unlink()  # it is over
    with partial.hold_partial(output):
        partial.partial_path(output).unlink()
        partial.partial_path(output).touch()  # the next one begins before this one has left
    assert partial.partial_path(output).is_file()


def test_a_file_that_was_replaced_before_it_was_locked_is_not_taken_for_the_one_there(output, monkeypatch):
    def lock(_):
        partial.partial_path(output).unlink()
        partial.partial_path(output).touch()
        return True

    monkeypatch.setattr(locks, "take_lock", lock)
    with pytest.raises(UserError, match="another process is writing it"), partial.hold_partial(output):
        pass


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    wanted = pytest.raises(UserError, match=r"--output_file .*out.json: .* cannot be written \(")
    with wanted, partial.hold_partial(tmp_path / "file" / "out.json"):
        pass


def test_what_another_run_finished_is_not_begun_anew(output):
    path = interrupted(output)
    partial.finish_file(output, [ROWS[index] for index in range(3)])
    with pytest.raises(UserError, match="is gone: somebody removed it, or another run made"):
        partial.append_answers(output, BATCHES[0])
    assert not path.exists()


def test_a_damaged_line_is_named(output):
    path = interrupted(output)
    settings, first, second = path.read_bytes().splitlines(keepends=True)
    for line in (first[:-20] + b"\n", b"3\n", b"\xe4\n", b"[" * 10**5 + b"\n"):
        path.write_bytes(settings + second + line)
        with pytest.raises(UserError, match="partial:3: damaged; delete this line"):
            partial.resume_partial(output, SETTINGS)


@pytest.mark.parametrize("extra", ["here", "there"])
def test_a_setting_that_only_one_side_knows_is_refused_too(output, extra):
    more = {**SETTINGS, "num_beams": 4}
    partial.resume_partial(output, SETTINGS if extra == "here" else more)
    with pytest.raises(UserError, match="num_beams"):
        partial.resume_partial(output, more if extra == "here" else SETTINGS)


def test_finish_writes_the_whole_file_and_drops_the_partial_one(output):
    path = interrupted(output)
    partial.finish_file(output, [ROWS[index] for index in range(3)])
    assert [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]] == [
        ROWS[0],
        ROWS[1],
        ROWS[2],
    ]
    assert [found.name for found in output.parent.iterdir()] == [output.name]
    assert not path.exists()


def test_an_exception_while_finishing_loses_neither_the_old_file_nor_the_partial_one(output):
    path = interrupted(output)
    output.write_text("old", encoding="utf-8")
    with pytest.raises(TypeError):
        partial.finish_file(output, [ROWS[0], {"output": object()}])
    assert output.read_text(encoding="utf-8") == "old"
    assert partial.resume_partial(output, SETTINGS) == ROWS
    assert path.exists()


def test_the_partial_file_stands_beside_its_output(output):
    assert partial.partial_path(output) == output.with_name("valid.json.partial")
    assert partial.partial_path(str(output)) == output.with_name("valid.json.partial")
