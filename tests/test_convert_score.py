import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import convert, score
from utils.errors import UserError

SCRIPTS = Path(convert.__file__).parent
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


@pytest.mark.parametrize(
    "command",
    [
        ["convert.py", "--pred_path", "no.json", "--tgt_path", "made.json"],
        ["score.py", "--pred", "no.json", "--gold", "no.json"],
    ],
    ids=["convert", "score"],
)
def test_the_script_runs_from_any_folder_and_ends_a_users_error_without_a_traceback(tmp_path, command):
    done = subprocess.run(
        [sys.executable, SCRIPTS / command[0], *command[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no.json: no such file")
    assert "Traceback" not in done.stderr


# score: F1

TRIPLES = st.tuples(st.sampled_from("甲乙"), st.sampled_from("位别"), st.sampled_from("丙丁"))
CORPUS = st.lists(st.tuples(st.lists(TRIPLES, max_size=6), st.lists(TRIPLES, max_size=6)), max_size=5)


def counted_by_hand(rows):
    """Tick off each predicted triple against the distinct gold ones of its row."""
    right = said = wanted = 0
    for predicted_triples, gold in rows:
        open_triples = []
        for triple in gold:
            if triple not in open_triples:
                open_triples.append(triple)
        wanted += len(open_triples)
        for triple in predicted_triples:
            said += 1
            if triple in open_triples:
                open_triples.remove(triple)
                right += 1
    precision = right / said if said else 0
    recall = right / wanted if wanted else 0
    return precision, recall, 2 * right / (said + wanted) if said + wanted else 0


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(CORPUS)
def test_f1_equals_a_count_by_hand(rows):
    found = score.f1([predicted_triples for predicted_triples, _ in rows], [gold for _, gold in rows])
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(counted_by_hand(rows))


A, B, C, X = ("甲", "位于", "乙"), ("甲", "别名", "丙"), ("丁", "位于", "乙"), ("甲", "位于", "丁")


def test_f1_of_a_worked_example():
    # 2 of 3 predicted are right, 2 of 4 wanted are found: 2 · 2/3 · 1/2 / (2/3 + 1/2) = 4/7
    found = score.f1([[A, X], [C], []], [[A, B], [C], [A]])
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7})


def test_a_repeated_prediction_counts_against_precision_alone():
    assert score.f1([[A, A]], [[A]]) == pytest.approx({"precision": 1 / 2, "recall": 1, "f1": 2 / 3})


def test_a_triple_is_right_only_in_its_own_row_and_its_own_order():
    assert score.f1([[A], [B]], [[B], [A]])["f1"] == 0
    assert score.f1([[A[::-1]]], [[A]])["f1"] == 0


# score: ROUGE-2


@pytest.mark.parametrize(
    ("mine", "right", "value"),
    [
        ("", "", 1),
        (" ", "\n", 1),
        ("", "(甲,位于,乙)", 0),
        ("(甲,位于,乙)", "", 0),
        ("(甲,位于,乙)", "(甲,位于,乙)", 1),
        ("北京，上海？", "一二三四", 0),
        # 6 pairs of neighbours in the 7 words `( 甲 , 位于 , 乙 )`; the first 4 are shared with the other text
        ("(甲,位于,乙)", "(甲,位于,丙)", 4 / 6),
    ],
)
def test_rouge2_of_one_row(mine, right, value):
    assert score.rouge2([mine], [right]) == pytest.approx(value, abs=1e-6)


def test_rouge2_is_the_mean_of_the_rows():
    assert score.rouge2(["", "", "(甲,位于,乙)"], ["", "(甲,位于,乙)", "(甲,位于,丙)"]) == pytest.approx(
        (1 + 0 + 4 / 6) / 3
    )


def test_rouge2_depends_on_the_order_of_the_triples():
    swapped = score.rouge2(["(甲,位于,乙),(丙,别名,丁)"], ["(丙,别名,丁),(甲,位于,乙)"])
    assert 0 < swapped < 1


# score: whole records


def gold(number, *triples):
    return {"id": number, "instruction": ASKED, "input": "甲乙丙丁", "kg": [list(triple) for triple in triples]}


GOLD = [gold(0, A, B), gold(1, C), gold(2)]


def test_gold_scored_against_itself_is_perfect():
    assert score.score(GOLD, GOLD) == pytest.approx(
        dict.fromkeys(("precision", "recall", "f1", "rouge2", "contest"), 1)
    )


def test_contest_is_the_mean_of_f1_and_rouge2():
    figures = score.score([gold(0, A), gold(1, X), gold(2)], GOLD)
    assert figures["contest"] == pytest.approx((figures["f1"] + figures["rouge2"]) / 2)
    assert 0 < figures["f1"] < figures["rouge2"] < 1


def test_a_prediction_without_kg_is_scored_by_its_output():
    raw = [
        predicted(0, "输入中包含的关系三元组是：\n（甲，位于，乙）（甲，别名，丙）"),
        predicted(1, "[丁,位于,乙]"),
        predicted(2, "NAN"),
    ]
    assert score.score(raw, GOLD)["contest"] == pytest.approx(1)


def test_a_submission_scores_what_its_predictions_score():
    raw = [predicted(0, "(甲,位于,乙)(甲,位于,丁)"), predicted(1, "没有"), predicted(2, "(甲,别名,丙)")]
    assert score.score([convert.convert(row) for row in raw], GOLD) == pytest.approx(score.score(raw, GOLD))


def test_predictions_are_paired_by_id_whatever_their_order():
    paired, notes = score.pair(GOLD[::-1], GOLD)
    assert paired == GOLD
    assert notes == []


def test_missing_and_extra_ids_are_reported_and_a_missing_one_is_an_empty_answer():
    paired, notes = score.pair([gold(2), gold(0, A, B), gold(77, A), gold(78, A)], GOLD)
    assert [row["kg"] for row in paired] == [GOLD[0]["kg"], [], []]
    assert len(notes) == 2
    assert notes[0].startswith("1 records of the gold file have no prediction")
    assert "id 1" in notes[0]
    assert notes[1].startswith("2 predictions are of no record")


def without_id(rows):
    return [{key: value for key, value in row.items() if key != "id"} for row in rows]


@pytest.mark.parametrize("side", ["predictions", "gold", "both"])
def test_records_without_ids_are_refused_for_they_cannot_be_paired(side):
    """They all have the id None: each gold row would be compared with the last prediction."""
    mine, right = (without_id(GOLD) if side in (name, "both") else GOLD for name in ("predictions", "gold"))
    with pytest.raises(UserError, match=r"\bid\b"):
        score.pair(mine, right)


def test_an_id_predicted_twice_is_reported():
    _, notes = score.pair([gold(0, X), *GOLD], GOLD)
    assert len(notes) == 1
    assert "0" in notes[0]


def test_score_prints_the_figures_warns_and_writes_them(tmp_path, capsys):
    save(tmp_path / "gold.json", GOLD)
    save(tmp_path / "pred.json", [gold(1, C), gold(0, A), gold(9)])
    figures = tmp_path / "figures.json"
    score.main(
        [
            "--pred",
            str(tmp_path / "pred.json"),
            "--gold",
            str(tmp_path / "gold.json"),
            "--json",
            str(figures),
            "--show",
            "1",
        ]
    )
    said = capsys.readouterr()
    assert "records 3  precision 1.0000  recall 0.6667  f1 0.8000  rouge2 " in said.out
    assert "id 0  predicted (甲,位于,乙)\n" in said.out
    assert "gold (甲,位于,乙),(甲,别名,丙)\n" in said.out
    assert said.err.count("warning: 1 ") == 2
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert written["f1"] == pytest.approx(0.8)
    assert set(written) == {"precision", "recall", "f1", "rouge2", "contest"}


def test_a_gold_file_without_answers_is_refused(tmp_path):
    save(tmp_path / "valid.json", [{"id": 0, "instruction": ASKED, "input": "甲"}])
    with pytest.raises(UserError, match="no record has kg or output"):
        score.main(["--pred", str(tmp_path / "valid.json"), "--gold", str(tmp_path / "valid.json")])
