import json
import subprocess
import sys
from pathlib import Path

import pytest

from utils import convert
from utils.errors import UserError

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
    assert convert.convert(row) == {
        **row,
        "output": "(甲,位于,乙),(甲,面积,2,424公顷)",
        "kg": [["甲", "位于", "乙"], ["甲", "面积", "2,424公顷"]],
    }


@pytest.mark.parametrize("output", ["", "NAN", "nan", "输入中包含的关系三元组是：\nNAN", "(甲,位于,NAN)", "没有。"])
def test_no_triple_becomes_an_empty_output_and_an_empty_kg(output):
    row = convert.convert(predicted(0, output))
    assert (row["output"], row["kg"]) == ("", [])


def test_a_prediction_that_brings_a_kg_gets_the_one_its_output_says():
    assert convert.convert(predicted(0, "(甲,位于,乙)", kg=[["丙", "位于", "丁"]]))["kg"] == [["甲", "位于", "乙"]]


def test_the_records_schema_decides_where_an_entity_with_commas_ends():
    assert convert.convert(predicted(0, "(甲,乙,位于,丙)"))["kg"] == [["甲,乙", "位于", "丙"]]


def test_the_records_input_decides_when_the_relation_was_not_asked_for():
    row = predicted(0, "(甲,乙,首都,丙)", input="甲,乙的首都是丙")
    assert convert.convert(row)["kg"] == [["甲,乙", "首都", "丙"]]


def test_a_record_without_instruction_and_input_is_converted():
    assert convert.convert({"output": "(a,b,c)"})["kg"] == [["a", "b", "c"]]


# convert: the command


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
    assert f"{target}: 3 rows, 3 triples, 1 rows without a triple, 1 triples with a relation" in said


def test_convert_reads_a_json_list_too(tmp_path):
    (tmp_path / "pred.json").write_text(json.dumps([predicted(1, "(甲,位于,乙)"), predicted(0, "")]), encoding="utf-8")
    convert.main(["--pred_path", str(tmp_path / "pred.json"), "--tgt_path", str(tmp_path / "made.json")])
    assert [row["id"] for row in load(tmp_path / "made.json")] == [0, 1]


def test_ids_that_are_no_numbers_stand_behind_in_file_order(tmp_path):
    rows = [{"id": "b", "output": ""}, {"id": 7, "output": ""}, {"output": ""}, {"id": "a", "output": ""}]
    convert.main(["--pred_path", str(save(tmp_path / "pred.json", rows)), "--tgt_path", str(tmp_path / "made.json")])
    assert [row.get("id") for row in load(tmp_path / "made.json")] == [7, "b", None, "a"]


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
