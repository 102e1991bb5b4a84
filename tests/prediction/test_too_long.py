"""Prompts far beyond the context fail by themselves, at once; all that does not depend on them is answered."""

import json

import pytest
from helpers import rows
from helpers_prediction import BASE, RECORDS, flags

import inference
from common.errors import UserError
from decoding import batch_engine
from prediction import partial

LONG = {**RECORDS[0], "id": "long", "input": "北京是中国的首都。" * 22_000}
MANY = {**RECORDS[1], "id": "many", "instruction": f"已知候选的关系列表：{[f'关系{n}' for n in range(500)]}"}


@pytest.fixture
def asked(tmp_path):
    """A file of two ordinary records and two whose prompts are too long."""
    file = tmp_path / "in.json"
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in (RECORDS[0], LONG, MANY, RECORDS[1])]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def test_a_prompt_beyond_the_context_fails_alone_with_its_reason(tmp_path, asked, capsys):
    out = tmp_path / "out.json"
    with pytest.raises(UserError, match="2 of 4 records failed"):
        inference.main(flags(out, input_file=asked))
    said = capsys.readouterr().err
    assert "tokens leaves no room for an answer in the base's context of 2048; --window splits its text" in said
    assert "failed: id many: its prompt of " in said
    assert "context of 2048; its instruction alone is too long" in said
    assert said.index("2 of 4 records cannot be asked (the first: id long: ") < said.index("predicting")
    inference.main(flags(out, "--skip_failed", input_file=asked))
    made = rows(out)
    assert [row["id"] for row in made] == [RECORDS[0]["id"], "long", "many", RECORDS[1]["id"]]
    assert [row["finish_reason"] == "error" for row in made] == [False, True, True, False]
    alone = tmp_path / "alone.json"
    alone.write_text("\n".join(json.dumps(record) for record in RECORDS[:2]), encoding="utf-8")
    inference.main(flags(tmp_path / "other.json", input_file=alone))
    assert [made[0], made[3]] == rows(tmp_path / "other.json")


def test_where_every_prompt_is_too_long_no_base_is_loaded_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batch_engine, "load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    out, alone = tmp_path / "out.json", tmp_path / "in.json"
    alone.write_text(json.dumps(LONG), encoding="utf-8")
    with pytest.raises(UserError, match="1 of 1 records failed.*out.json is not written"):
        inference.main(flags(out, input_file=alone))
    assert not partial.partial_path(out).exists()  # it would stand in the way of the same command with --window
    inference.main(flags(out, "--skip_failed", input_file=alone))
    assert [(row["output"], row["finish_reason"]) for row in rows(out)] == [("", "error")]
    assert json.loads((tmp_path / "out.run.json").read_text())["results"]["error"] == 1


def test_a_window_serves_the_text_and_an_instruction_too_long_for_it_still_fails_alone(tmp_path, asked, monkeypatch):
    monkeypatch.setattr(batch_engine, "answer", lambda model, codec, prompts, *_: [answer_of(ids) for ids in prompts])
    inference.main(flags(tmp_path / "out.json", "--skip_failed", input_file=asked, window=1000, batch_size=64))
    made = {row["id"]: row for row in rows(tmp_path / "out.json")}
    assert made["long"]["windows"] > 100
    assert made["long"]["finish_reason"] == "eos"
    assert made["many"]["finish_reason"] == "error"


def answer_of(ids):
    assert len(ids) <= 1000
    return batch_engine.Answer("", "eos", 1)


def test_a_prompt_that_fits_is_answered_although_its_answer_may_pass_the_context(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch_engine, "answer", lambda model, codec, prompts, *_: [answer_of([])] * len(prompts))
    inference.main(flags(tmp_path / "out.json", max_new_tokens=2000))
    assert "records (the first: id" in (said := capsys.readouterr().err)
    assert "may pass the base's context of 2048 tokens" in said


@pytest.mark.parametrize("change", [{"num_beams": 1024, "batch_size": 1000}, {"max_new_tokens": 10**9}])
def test_what_exceeds_the_machines_memory_by_far_is_refused_on_a_cpu_too(tmp_path, monkeypatch, change):
    monkeypatch.setattr(batch_engine, "load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    with pytest.raises(UserError, match=r"memory: prediction needs about .* swap included\)"):
        inference.main(flags(tmp_path / "out.json", model_name_or_path=BASE, **change))
