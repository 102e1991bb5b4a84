"""Evaluation that predicts: a prompt that the base has no room for is not computed, and counts as no answer."""

from types import SimpleNamespace

import torch
from helpers_prediction import BASE, RECORDS, loaded

from data.prompts import load_template
from training import evaluation


def test_a_validation_record_beyond_the_context_is_left_out_and_said(monkeypatch, capsys):
    model, codec = loaded(BASE)
    long = {**RECORDS[0], "id": "long", "input": "北京是中国的首都。" * 5_000}
    records = [{**record, "output": "(a,b,c)"} for record in (RECORDS[0], long, RECORDS[1])]
    asked, real = [], evaluation.answer

    def answer(model, codec, prompts, rules):
        asked.extend(map(len, prompts))
        return real(model, codec, prompts, rules)

    monkeypatch.setattr(evaluation, "answer", answer)
    monkeypatch.setattr(evaluation, "score_records", lambda predicted, gold: predicted)
    precision = SimpleNamespace(dtype=torch.float32)
    args = SimpleNamespace(device=torch.device("cpu"), precision=precision, bf16=False, fp16=False)
    args.process_index, args.world_size = 0, 1
    score = evaluation.make_score_answers(codec, load_template("alpaca"), records, 2, 4, args, 2048)
    assert "1 validation records are not predicted and count as answered by nothing (the first: id long" in (
        capsys.readouterr().err
    )
    predicted = score(model)
    assert len(asked) == 2
    assert max(asked) < 2048
    assert predicted[1]["output"] == ""
    assert [row["id"] for row in predicted] == [RECORDS[0]["id"], "long", RECORDS[1]["id"]]
