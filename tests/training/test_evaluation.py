"""Evaluation that predicts: a prompt that the base has no room for is not computed, and counts as no answer."""

from types import SimpleNamespace

import torch
from helpers_prediction import BASE, RECORDS, loaded

from data.asking import Asking
from data.prompts import load_template
from decoding import batch_engine
from decoding.answers import Answer
from training import evaluation

ARGS = SimpleNamespace(
    device=torch.device("cpu"), precision=SimpleNamespace(dtype=torch.float32), bf16=False, fp16=False
)
ARGS.process_index, ARGS.world_size = 0, 1


def test_a_validation_record_beyond_the_context_is_left_out_and_said(monkeypatch, capsys):
    model, codec = loaded(BASE)
    long = {**RECORDS[0], "id": "long", "input": "北京是中国的首都。" * 5_000}
    records = [{**record, "output": "(a,b,c)"} for record in (RECORDS[0], long, RECORDS[1])]
    asked, real = [], batch_engine.answer

    def answer(model, codec, prompts, *more):
        asked.extend(map(len, prompts))
        return real(model, codec, prompts, *more)

    monkeypatch.setattr(batch_engine, "answer", answer)
    monkeypatch.setattr(evaluation, "score_records", lambda predicted, gold: predicted)
    score = evaluation.make_score_answers(codec, load_template("alpaca"), records, 2, 4, ARGS, 2048)
    assert "1 validation records are not predicted and count as answered by nothing (the first: id long" in (
        capsys.readouterr().err
    )
    predicted = score(model)
    assert len(asked) == 2
    assert max(asked) < 2048
    assert predicted[1]["output"] == ""
    assert [row["id"] for row in predicted] == [RECORDS[0]["id"], "long", RECORDS[1]["id"]]


def test_a_validation_record_is_asked_in_parts_and_scored_whole(monkeypatch):
    model, codec = loaded(BASE)
    instruction = "关系列表：['位于', '别名', '国籍']，请抽取。"
    records = [{"id": 1, "instruction": instruction, "input": "甲", "output": "(甲,位于,乙),(甲,国籍,丙)"}]
    records.append({"id": 2, "instruction": "请抽取。", "input": "甲", "output": ""})

    def answer(model, codec, prompts, *_):
        texts = [codec.decode(prompt) for prompt in prompts]
        said = [
            "(甲,国籍,丙)" if "国籍" in text else "(甲,位于,乙)" if "位于" in text else "as it is" for text in texts
        ]
        return [Answer(one, "eos", 1) for one in said]

    monkeypatch.setattr(batch_engine, "answer", answer)
    monkeypatch.setattr(evaluation, "score_records", lambda predicted, gold: (predicted, gold))
    score = evaluation.make_score_answers(codec, load_template("plain"), records, 2, 4, ARGS, 2048, Asking(batch=2))
    predicted, gold = score(model)
    assert [row["output"] for row in predicted] == ["(甲,位于,乙),(甲,国籍,丙)", "as it is"]
    assert [row["instruction"] for row in predicted] == [instruction, "请抽取。"]
    assert gold == records


def test_memory_that_runs_out_does_not_end_a_training(monkeypatch, capsys):
    model, codec = loaded(BASE)
    records = [{**record, "output": ""} for record in RECORDS[:3]]

    def answer(model, codec, prompts, *_):
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Answer("(甲,位于,乙)", "eos", 1)]

    monkeypatch.setattr(batch_engine, "answer", answer)
    monkeypatch.setattr(evaluation, "score_records", lambda predicted, gold: predicted)
    score = evaluation.make_score_answers(codec, load_template("alpaca"), records, 3, 4, ARGS, 2048)
    assert [row["output"] for row in score(model)] == ["(甲,位于,乙)"] * 3
    assert "batch_size: 1 (out of memory with 3" in capsys.readouterr().err
