import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from common.errors import UserError
from data import submission
from utils import convert

SCRIPT = Path(convert.__file__)
ASKED = "已知候选的关系列表：['位于', '别名', '面积']，请你根据关系列表抽取。"


def predicted(number, output, **more):
    return {"id": number, "cate": "建筑", "instruction": ASKED, "input": "甲在乙", "output": output, **more}


def save(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# convert: one record


def test_a_converted_record_keeps_its_fields_and_gains_output_and_kg():
    row = predicted(
        3, "输入中包含的关系三元组是：\n（甲，位于，乙）\n（甲，面积，2,424公顷）", finish_reason="eos", extra=[1]
    )
    assert submission.convert_record(row)[0] == {
        **row,
        "output": "(甲,位于,乙),(甲,面积,2,424公顷)",
        "kg": [["甲", "位于", "乙"], ["甲", "面积", "2,424公顷"]],
    }


@pytest.mark.parametrize("output", ["", "NAN", "nan", "输入中包含的关系三元组是：\nNAN", "(甲,位于,NAN)", "没有。"])
def test_no_triple_becomes_an_empty_output_and_an_empty_kg(output):
    row = submission.convert_record(predicted(0, output))[0]
    assert (row["output"], row["kg"]) == ("", [])


def test_a_prediction_that_brings_a_kg_gets_the_one_its_output_says():
    assert submission.convert_record(predicted(0, "(甲,位于,乙)", kg=[["丙", "位于", "丁"]]))[0]["kg"] == [
        ["甲", "位于", "乙"]
    ]


def test_the_records_schema_decides_where_an_entity_with_commas_ends():
    assert submission.convert_record(predicted(0, "(甲,乙,位于,丙)"))[0]["kg"] == [["甲,乙", "位于", "丙"]]


def test_the_records_input_decides_when_the_relation_was_not_asked_for():
    row = predicted(0, "(甲,乙,首都,丙)", input="甲,乙的首都是丙")
    assert submission.convert_record(row)[0]["kg"] == [["甲,乙", "首都", "丙"]]


def test_a_record_without_instruction_and_input_is_converted():
    assert submission.convert_record({"output": "(a,b,c)"})[0]["kg"] == [["a", "b", "c"]]


def test_the_fragments_that_were_dropped_and_the_relations_not_asked_for_are_counted():
    row, dropped, unasked = submission.convert_record(predicted(0, "(甲,位于,乙),(甲,首都,丙),(甲,,乙),(甲,位于,"))
    assert (row["kg"], dropped, unasked) == ([["甲", "位于", "乙"], ["甲", "首都", "丙"]], 2, 1)


def test_strict_leaves_out_what_was_not_asked_for():
    row, dropped, unasked = submission.convert_record(predicted(0, "(甲,位于,乙),(甲,首都,丙)"), strict=True)
    assert (row["output"], row["kg"], dropped, unasked) == ("(甲,位于,乙)", [["甲", "位于", "乙"]], 0, 1)


@pytest.mark.parametrize("instruction", ["已知候选的关系列表：[]，请抽取。", "请抽取三元组。", None])
def test_an_instruction_that_names_no_relation_asks_for_any(instruction):
    row, _, unasked = submission.convert_record(predicted(0, "(甲,首都,丙)", instruction=instruction), strict=True)
    assert (row["kg"], unasked) == ([["甲", "首都", "丙"]], 0)


OLD_SHAPES = {
    "P-Tuning": {"id": 1, "cata": "建筑", "instruction": ASKED, "input": "甲,乙在丙", "output": "(甲,乙,位于,丙)"},
    "ChatGLM with LoRA": {"text": "甲,乙在丙", "answer": "(甲,乙,位于,丙)"},
    "CPM-Bee": {"input": "甲,乙在丙", "prompt": ASKED, "<ans>": "(甲,乙,位于,丙)"},
}


@pytest.mark.parametrize("shape", OLD_SHAPES)
def test_the_shapes_of_2023_are_read_and_keep_their_fields(shape):
    row = submission.convert_record(OLD_SHAPES[shape])[0]
    assert row["kg"] == [["甲,乙", "位于", "丙"]]
    assert row["input"] == "甲,乙在丙"
    assert row.get("cate") == OLD_SHAPES[shape].get("cata")
    assert {name: row[name] for name in OLD_SHAPES[shape] if name != "output"} == {
        name: value for name, value in OLD_SHAPES[shape].items() if name != "output"
    }


def test_a_prediction_that_has_only_kg_gets_its_output_from_it():
    assert submission.convert_record({"kg": [["甲", "位于", "乙"]]})[0]["output"] == "(甲,位于,乙)"


def test_todays_name_of_a_field_beats_the_old_one():
    row = submission.convert_record({"output": "(甲,位于,乙)", "answer": "(丙,位于,丁)", "input": "", "text": "x"})[0]
    assert (row["kg"], row["input"], row["answer"]) == ([["甲", "位于", "乙"]], "", "(丙,位于,丁)")


# convert: the command


def run(folder, rows, *flags):
    """The submission that convert makes of `rows`."""
    target = folder / "made.json"
    convert.main(["--pred_path", str(save(folder / "pred.json", rows)), "--tgt_path", str(target), *flags])
    return load(target)


def test_convert_writes_the_submission_in_id_order_and_counts_it(tmp_path, capsys):
    rows = [
        predicted(12, "(甲,位于,乙)(甲,首都,丙)", finish_reason="eos"),
        predicted(2, "NAN"),
        predicted(10, "(丁,别名,戊),(己,位于,", finish_reason="length"),
    ]
    target = tmp_path / "result" / "new.json"
    convert.main(["--pred_path", str(save(tmp_path / "pred.json", rows)), "--tgt_path", str(target)])
    made = load(target)
    assert [row["id"] for row in made] == [2, 10, 12]
    assert [row["output"] for row in made] == ["", "(丁,别名,戊)", "(甲,位于,乙),(甲,首都,丙)"]
    assert [row["kg"] for row in made] == [[], [["丁", "别名", "戊"]], [["甲", "位于", "乙"], ["甲", "首都", "丙"]]]
    assert made[2] == {**rows[0], "output": made[2]["output"], "kg": made[2]["kg"]}
    said = capsys.readouterr().err
    assert (
        f"{target}: 3 rows, 3 triples, 1 rows without a triple, 1 dropped fragments, "
        "1 relations not asked for (kept)\n" == said
    )


def test_convert_reads_a_json_list_too(tmp_path):
    (tmp_path / "pred.json").write_text(json.dumps([predicted(1, "(甲,位于,乙)"), predicted(0, "")]), encoding="utf-8")
    convert.main(["--pred_path", str(tmp_path / "pred.json"), "--tgt_path", str(tmp_path / "made.json")])
    assert [row["id"] for row in load(tmp_path / "made.json")] == [0, 1]


def test_ids_that_are_no_numbers_stand_behind_in_file_order(tmp_path):
    rows = [{"id": "b", "output": ""}, {"id": 7, "output": ""}, {"output": ""}, {"id": "a", "output": ""}]
    assert [row.get("id") for row in run(tmp_path, rows)] == [7, "b", None, "a"]


def test_ids_that_are_digits_count_as_numbers(tmp_path):
    rows = [{"id": identity, "output": ""} for identity in ("10", "9", "9" * 5000, 9.5)]
    assert [str(row["id"]) for row in run(tmp_path, rows)] == ["9", "9.5", "10", "9" * 5000]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_what_is_no_number_in_json_is_neither_read_nor_written(tmp_path, number):
    source, target = tmp_path / "pred.json", tmp_path / "made.json"
    source.write_text(f'{{"id": 0, "output": ""}}\n{{"id": 1, "output": "", "extra": {number}}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"pred.json:2: not JSON \(.* is no number in JSON; write null"):
        convert.main(["--pred_path", str(source), "--tgt_path", str(target)])
    convert.main(["--pred_path", str(source), "--tgt_path", str(target), "--skip_bad"])
    assert [row["id"] for row in load(target)] == [0]


@pytest.mark.parametrize("target", ["", "folder", "pred.json/made.json"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, target):
    (tmp_path / "folder").mkdir()
    source = save(tmp_path / "pred.json", [predicted(0, "")])
    monkeypatch.setattr(submission, "spool", lambda *_: pytest.fail("converted first"))
    with pytest.raises(UserError, match="--tgt_path"):
        convert.main(["--pred_path", str(source), "--tgt_path", str(tmp_path / target) if target else ""])


def test_a_pipe_is_not_replaced_and_a_link_keeps_pointing(tmp_path):
    source = save(tmp_path / "pred.json", [predicted(0, "")])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no ordinary file"):
        convert.main(["--pred_path", str(source), "--tgt_path", str(tmp_path / "pipe")])
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    convert.main(["--pred_path", str(source), "--tgt_path", str(tmp_path / "link.json")])
    assert (tmp_path / "link.json").is_symlink()
    assert len(load(tmp_path / "real.json")) == 1


def test_a_failed_run_leaves_no_folder_and_no_half_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        convert.main(["--pred_path", str(tmp_path / "no.json"), "--tgt_path", str(tmp_path / "new" / "made.json")])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_flag_names_the_nearest_and_check_takes_no_other(tmp_path):
    with pytest.raises(UserError, match="--pred_pth: unknown flag; did you mean --pred_path"):
        convert.main(["--pred_pth", "x"])
    for flag in ("--dedupe", "--sort=input"):
        with pytest.raises(UserError, match=f"--check converts nothing, so {flag.split('=')[0]} would have no effect"):
            convert.main(["--check", "x", flag])


def test_sort_input_keeps_the_order_of_the_predictions(tmp_path):
    rows = [predicted(number, "") for number in (3, 1, 2)]
    assert [row["id"] for row in run(tmp_path, rows, "--sort", "input")] == [3, 1, 2]


def test_schema_strict_counts_what_it_drops(tmp_path, capsys):
    (row,) = run(tmp_path, [predicted(0, "(甲,位于,乙),(甲,首都,丙)")], "--schema", "strict")
    assert row["kg"] == [["甲", "位于", "乙"]]
    assert "1 rows, 1 triples, 0 rows without a triple, 0 dropped fragments, 1 relations not asked for (dropped)" in (
        capsys.readouterr().err
    )


REPEATED = [predicted(1, "(甲,位于,乙)"), predicted(0, ""), predicted(1, "(甲,位于,丙)"), predicted("1", "")]


def test_dedupe_keeps_the_last_row_of_an_id(tmp_path, capsys):
    made = run(tmp_path, REPEATED, "--dedupe")
    assert [(row["id"], row["output"]) for row in made] == [(0, ""), (1, "(甲,位于,丙)"), ("1", "")]
    said = capsys.readouterr().err
    assert "3 rows, 1 triples" in said
    assert "1 earlier rows of an id dropped" in said
    assert "warning" not in said


def test_how_the_answers_were_made_is_copied_whatever_its_texts_hold(tmp_path):
    made = {"template": "one\u2028two\x85three"}  # which Python's splitlines takes for ends of lines
    save(tmp_path / "valid.json", [predicted(1, "(甲,位于,乙)")])
    save(tmp_path / "valid.run.json", [made])
    convert.main(["--pred_path", str(tmp_path / "valid.json"), "--tgt_path", str(tmp_path / "made.json")])
    assert json.loads((tmp_path / "made.run.json").read_text(encoding="utf-8")) == made


def test_without_dedupe_every_row_stays_and_the_repetition_is_told(tmp_path, capsys):
    assert [row["id"] for row in run(tmp_path, REPEATED)] == [0, 1, 1, "1"]
    assert "warning: 1 rows have an id that came before; --dedupe keeps the last" in capsys.readouterr().err


def test_rows_without_an_id_are_never_taken_for_the_same(tmp_path):
    rows = [{"output": "(甲,位于,乙)"}, {"output": ""}]
    assert len(run(tmp_path, rows, "--dedupe")) == 2


def test_half_a_surrogate_pair_survives(tmp_path):
    source = tmp_path / "pred.json"
    source.write_text('{"id": 0, "output": "(\\ud83d,位于,乙)"}\n', encoding="utf-8")
    convert.main(["--pred_path", str(source), "--tgt_path", str(tmp_path / "made.json")])
    assert load(tmp_path / "made.json")[0]["kg"] == [["\ud83d", "位于", "乙"]]


def test_the_predictions_themselves_are_never_overwritten(tmp_path):
    source = save(tmp_path / "pred.json", [predicted(0, "(甲,位于,乙)")])
    before = source.read_bytes()
    with pytest.raises(UserError, match="--tgt_path .* is an input of this command, and would be lost"):
        convert.main(["--pred_path", str(source), "--tgt_path", str(source)])
    assert source.read_bytes() == before


def test_memory_does_not_grow_with_the_texts(tmp_path):
    """Ten times the bytes (12 MB), at most a tenth more memory at the peak, as tracemalloc counts it."""
    peaks = []
    for length in (2_000, 20_000):
        source = save(tmp_path / "pred.json", [predicted(n, "(甲,位于,乙)", input="字" * length) for n in range(200)])
        tracemalloc.start()
        convert.main(["--pred_path", str(source), "--tgt_path", str(tmp_path / "made.json")])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 6e6


BAD = {
    "half a line": '{"id": 1, "output": "(a,b',
    "no output": '{"id": 1, "input": "a"}',
    "output is no text": '{"id": 1, "output": null}',
    "no object": '["a"]',
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_prediction_is_an_error_with_its_line_and_leaves_the_old_submission(tmp_path, bad):
    source, target = tmp_path / "pred.json", tmp_path / "made.json"
    convert.main(["--pred_path", str(save(source, [predicted(0, "(甲,位于,乙)")])), "--tgt_path", str(target)])
    before = target.read_bytes()
    source.write_text(source.read_text(encoding="utf-8") + "\n" + BAD[bad] + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        convert.main(["--pred_path", str(source), "--tgt_path", str(target)])
    assert f"{source}:3: " in str(caught.value)
    assert target.read_bytes() == before


@pytest.mark.parametrize("bad", BAD)
def test_skip_bad_lists_a_bad_line_and_converts_the_others(tmp_path, capsys, bad):
    source, target = tmp_path / "pred.json", tmp_path / "made.json"
    save(source, [predicted(0, "(甲,位于,乙)")])
    source.write_text(source.read_text(encoding="utf-8") + BAD[bad] + "\n", encoding="utf-8")
    convert.main(["--pred_path", str(source), "--tgt_path", str(target), "--skip_bad"])
    assert [row["id"] for row in load(target)] == [0]
    said = capsys.readouterr().err
    assert f"  {source}:2: " in said
    assert "1 bad lines skipped" in said


def test_skip_bad_of_nothing_but_bad_lines_is_an_error(tmp_path):
    source = tmp_path / "pred.json"
    source.write_text("{\n{\n", encoding="utf-8")
    with pytest.raises(UserError, match="no prediction could be read"):
        convert.main(["--pred_path", str(source), "--tgt_path", str(tmp_path / "made.json"), "--skip_bad"])
    assert not (tmp_path / "made.json").exists()


def test_skip_bad_skips_a_bad_item_of_a_list(tmp_path):
    source, target = tmp_path / "pred.json", tmp_path / "made.json"
    source.write_text(json.dumps([3, {"id": 1}, predicted(0, "(甲,位于,乙)")], indent=1), encoding="utf-8")
    convert.main(["--pred_path", str(source), "--tgt_path", str(target), "--skip_bad"])
    assert [row["id"] for row in load(target)] == [0]


def test_a_failing_disk_leaves_the_old_submission(tmp_path, monkeypatch):
    source, target = save(tmp_path / "pred.json", [predicted(0, "(甲,位于,乙)")]), tmp_path / "made.json"
    target.write_text("old", encoding="utf-8")

    def full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        convert.main(["--pred_path", str(source), "--tgt_path", str(target)])
    assert target.read_text(encoding="utf-8") == "old"


def test_the_script_runs_from_any_folder_and_ends_a_users_error_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--pred_path", "no.json", "--tgt_path", "made.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no.json: no such file")
    assert "Traceback" not in done.stderr


# convert: --check

TESTS = [{"id": n, "cate": "建筑", "instruction": ASKED, "input": text, "extra": n} for n, text in enumerate("甲乙丙")]
VALID = [
    {**TESTS[0], "output": "(甲,位于,乙)", "kg": [["甲", "位于", "乙"]]},
    {**TESTS[1], "output": "", "kg": []},
    {**TESTS[2], "output": "(丙,别名,丁),(丙,位于,戊)", "kg": [["丙", "别名", "丁"], ["丙", "位于", "戊"]]},
]


def checked(folder, rows):
    tests, made = save(folder / "valid.json", TESTS), save(folder / "made.json", rows)
    convert.main(["--check", str(tests), "--tgt_path", str(made)])


def test_check_passes_what_convert_makes(tmp_path, capsys):
    predictions = [{**test, "output": f"({test['input']},位于,乙)"} for test in TESTS[::-1]]
    run(tmp_path, predictions)
    convert.main(["--check", str(save(tmp_path / "valid.json", TESTS)), "--tgt_path", str(tmp_path / "made.json")])
    assert "made.json: a valid submission for" in capsys.readouterr().err
    checked(tmp_path, VALID)
    assert "3 rows, 3 triples" in capsys.readouterr().err


def changed(number, **fields):
    rows = [dict(row) for row in VALID]
    rows[number] = {name: value for name, value in (rows[number] | fields).items() if value is not ...}
    return rows


FAULTS = {
    "no row for id 1": [VALID[0], VALID[2]],
    ":4: id 3 is not in": [*VALID, {**VALID[0], "id": 3}],
    ":3: id 0 already stands on line 1": [VALID[0], VALID[1], VALID[0], VALID[2]],
    ":2: id '1' is not in": changed(1, id="1"),
    ":2: id None is not in": changed(1, id=...),
    ":2: id 1: the field extra is missing": changed(1, extra=...),
    ":2: id 1: the field input is not the test file's": changed(1, input="x"),
    ":2: id 1: kg is not a list": changed(1, kg=...),
    ":3: id 2: kg is not a list": changed(2, kg=[["a", "b"]]),
    ":1: id 0: kg is not a list": changed(0, kg=[["a", "b", 3]]),
    ":1: id 0: output is not the text of kg": changed(0, output="(甲,位于,乙)(甲,位于,丙)"),
    ":2: id 1: output is not the text of kg": changed(1, output=...),
    ":1: id 0: kg holds a triple twice": changed(0, output="(a,b,c),(a,b,c)", kg=[["a", "b", "c"]] * 2),
    ":1: id 0: kg holds a triple with an empty part or NAN": changed(0, output="(a,b,NAN)", kg=[["a", "b", "NAN"]]),
    ":2: id 0 stands behind 1": [VALID[1], VALID[0], VALID[2]],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_names_each_fault_of_a_submission(tmp_path, fault):
    with pytest.raises(UserError, match="not a valid submission") as caught:
        checked(tmp_path, FAULTS[fault])
    assert fault in str(caught.value)


def test_check_lists_the_first_faults_and_counts_the_others(tmp_path):
    with pytest.raises(UserError) as caught:
        checked(tmp_path, [{"id": number, "kg": None} for number in range(10, 40)])
    lines = str(caught.value).splitlines()
    assert "63 faults" in lines[0]  # 30 unknown ids, 30 without kg, 3 missing
    assert lines[-1] == "  … and 43 more"
    assert len(lines) == 22


def test_check_wants_every_id_of_the_test_file_once(tmp_path):
    tests = save(tmp_path / "valid.json", [TESTS[0], TESTS[0]])
    with pytest.raises(UserError, match=r"valid.json:2: id 0 stands there twice"):
        convert.main(["--check", str(tests), "--tgt_path", str(save(tmp_path / "made.json", VALID[:1]))])
