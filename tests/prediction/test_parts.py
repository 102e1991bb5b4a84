"""Questions about parts of a record's relations: as large as those trained on, merged in the order of its list."""

import json
import shutil

import pytest
from helpers import GOLDEN
from helpers_prediction import ADAPTER, BASE, flags, loaded

import inference
from common import manifest
from common.errors import UserError
from common.files import write_rows
from data.asking import Asking
from data.prompts import load_template
from prediction.questions import ask_cut, make_questions, make_rows
from utils.args_predict import parse_inference
from utils.args_pt import parse_ptuning

NAMES = ["位于", "别名", "国籍"]


def record(number):
    """One that asks for three relations, or two."""
    return {"id": number, "instruction": f"关系列表：{NAMES[number % 2 :]}，请抽取。", "input": f"甲{number}在乙。"}


def test_prediction_asks_in_parts_as_large_as_those_trained_on(tmp_path, capsys):
    adapter, records = shutil.copytree(ADAPTER, tmp_path / "adapter"), [record(number) for number in range(4)]
    manifest.write_run(adapter, {"training": {"schema_batch": 2}})
    write_rows(tmp_path / "in.json", records)
    common = {"lora_weights": adapter, "input_file": tmp_path / "in.json", "max_new_tokens": 2}

    def predict(name, *more):
        inference.main(flags(tmp_path / name, *more, **common))
        run = json.loads((tmp_path / name).with_suffix(".run.json").read_text())
        return run["asking"], run["results"]["answers"], capsys.readouterr().err

    asking, answers, said = predict("a.json")
    assert (asking, answers) == ({"schema_batch": 2}, 6)
    assert "schema_batch: 2 (as trained with, by run.json" in said
    assert "schema_batch: 2 of 4 lists of relations are asked about in 4 parts" in said
    rows = [json.loads(line) for line in (tmp_path / "a.json").read_text(encoding="utf-8").splitlines()]
    assert [row.get("schema_parts") for row in rows] == [2, None, 2, None]
    assert [row["instruction"] for row in rows] == [one["instruction"] for one in records]
    asking, answers, said = predict("b.json", "--schema_batch", "0", "--shuffle_schema", "--seed", "3")
    assert (asking, answers) == ({"shuffle_schema": True}, 4)
    assert "warning: --schema_batch 0 contradicts run.json, which says 2; using 0" in said
    assert "drawn once, by seed 3" in said


def test_an_unfinished_file_of_another_order_is_refused(tmp_path):
    (tmp_path / "out.json.partial").write_text(json.dumps({"asking_seed": 3, "shuffle_schema": True}) + "\n")
    with pytest.raises(UserError, match=r"asking_seed: 3 there, 4 now"):
        inference.main(flags(tmp_path / "out.json", "--shuffle_schema", "--seed", "4"))
    with pytest.raises(UserError, match=r"shuffle_schema: True there, None now"):
        inference.main(flags(tmp_path / "out.json"))


def test_parts_of_the_list_and_windows_of_the_text_go_together(capsys):
    records = [record(0), {**record(1), "input": "短"}]
    fits = lambda one: len(one["input"]) <= 3  # noqa: E731 - as it is given
    questions = make_questions(records, lambda one: [len(one["instruction"])], fits, asking=Asking(batch=2))
    assert [(q.record, q.part, q.text) for q in questions[:4]] == [
        (0, 0, "甲0在"),
        (0, 0, "乙。"),
        (0, 1, "甲0在"),
        (0, 1, "乙。"),
    ]
    assert len(questions) == 5
    said = capsys.readouterr().err
    assert "windows: 1 of 2 texts are asked about in 2 parts" in said
    assert "schema_batch: 1 of 2 lists of relations are asked about in 2 parts" in said
    outputs = ["(甲,国籍,丙)", "(甲,位于,乙)", "(甲,国籍,丙),(甲,别名,丁)", "", "as it is"]
    answers = {n: {"output": said, "finish_reason": "length" if n == 1 else "eos"} for n, said in enumerate(outputs)}
    both, plain = make_rows(records, questions, answers)
    assert both["output"] == "(甲,位于,乙),(甲,别名,丁),(甲,国籍,丙)"
    assert (both["windows"], both["schema_parts"], both["finish_reason"]) == (2, 2, "length")
    assert plain["output"] == "as it is"
    assert not {"windows", "schema_parts"} & set(plain)


def test_p_tuning_asks_in_parts_too(capsys):
    codec, template = loaded(BASE)[1], load_template("plain")
    whole = ask_cut(codec, template, [record(0)], 4096)
    parts = ask_cut(codec, template, [record(0)], 4096, asking=Asking(batch=2))
    assert [one.part for one in parts] == [0, 1]
    assert all(len(one.ids) < len(whole[0].ids) for one in parts)
    assert "texts lost their end" not in capsys.readouterr().err


def test_a_seed_may_be_that_of_the_order_alone(tmp_path):
    given = ["--output_file", str(tmp_path / "out.json"), "--seed", "3"]
    assert parse_inference([*given, "--shuffle_schema"])[1].seed == 3
    with pytest.raises(UserError, match="--seed without --do_sample"):
        parse_inference(given)
    with pytest.raises(UserError, match="--schema_batch -1: expected at least 0"):
        parse_inference([*given, "--shuffle_schema", "--schema_batch", "-1"])
    with pytest.raises(UserError, match="--negative_relations: P-Tuning makes its rows once"):
        parse_ptuning(["--train_path", str(GOLDEN / "train.json"), "--negative_relations", "2"])
