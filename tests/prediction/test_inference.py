"""src/inference.py: the same answers at every batch size, every record kept, nothing lost by an interruption."""

import json
import os
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from helpers import GOLDEN, ROOT, kill_when, python, rows
from helpers_prediction import ADAPTER, BASE, RECORDS, VALID, flags, interrupted_at, loaded

import inference
from common import machine, manifest
from common.errors import UserError
from data.prompts import load_template, make_prompt
from decoding import batch_engine
from decoding.answers import Answer, Rules, cut_answer, plan_batches
from decoding.batch_engine import choose_batch_size, generate
from decoding.engines import ENGINES
from decoding.fast_sizes import Tuning, count_common
from prediction import partial, settings
from prediction.predicting import size_for_engine
from utils.args_predict import parse_inference

EXPECTED = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["predictions"]


@pytest.mark.parametrize("adapter", [False, True])
def test_answers_are_the_golden_ones_in_batches_of_any_size(adapter):
    model, codec = loaded(BASE, ADAPTER if adapter else None)
    cases = {case["id"]: case for case in EXPECTED if case["adapter"] == adapter}
    prompts = [codec.encode(make_prompt(load_template("alpaca"), r["instruction"], r["input"])) for r in RECORDS]
    assert prompts == [cases[record["id"]]["prompt_ids"] for record in RECORDS]
    wanted = [cut_answer(codec, cases[record["id"]]["new_ids"]) for record in RECORDS]
    for batch_size in (1, 5, 12):
        got = {}
        for batch in plan_batches([len(ids) for ids in prompts], batch_size):
            got |= dict(zip(batch, generate(model, codec, [prompts[i] for i in batch], Rules(48)), strict=True))
        assert [got[i] for i in range(len(RECORDS))] == wanted, batch_size


def test_the_embedded_base_answers_alike_alone_and_in_a_batch(embedded_base):
    model, codec = loaded(embedded_base)
    template = load_template("plain")
    texts = ["北京是中国的首都。", "《边城》的作者是沈从文。", "长江全长6,300千米，流经十一个省级行政区。"]
    prompts = [codec.encode(make_prompt(template, "已知候选的关系列表：['作者', '长度']", text)) for text in texts]
    together = generate(model, codec, prompts, Rules(16))
    assert together == [generate(model, codec, [ids], Rules(16))[0] for ids in prompts]


def test_every_field_and_the_order_are_kept_and_the_reason_is_given(tmp_path):
    inference.main(flags(tmp_path / "out.json", batch_size=5))
    out = rows(tmp_path / "out.json")
    assert [{k: v for k, v in row.items() if k not in ("output", "finish_reason")} for row in out] == RECORDS
    assert all(row["finish_reason"] in ("eos", "length") for row in out)
    assert not partial.partial_path(tmp_path / "out.json").exists()


def test_an_answer_ends_at_its_first_eos_whatever_its_text_holds():
    _, codec = loaded(BASE)
    ids = codec.encode([])[1:]
    text = codec.tokenizer("### Response: a", add_special_tokens=False)["input_ids"]
    assert cut_answer(codec, [*ids, *text, 2, 2, 2]) == Answer("### Response: a", "eos", len(text) + 1)
    assert cut_answer(codec, text) == Answer("### Response: a", "length", len(text))


def test_merging_and_beams_run_and_merging_changes_no_answer(tmp_path):
    inference.main(flags(tmp_path / "plain.json", batch_size=4))
    inference.main(flags(tmp_path / "merged.json", "--merge_lora", batch_size=4))
    inference.main(flags(tmp_path / "beams.json", batch_size=4, num_beams=3))
    assert rows(tmp_path / "plain.json") == rows(tmp_path / "merged.json")
    assert [row["id"] for row in rows(tmp_path / "beams.json")] == [record["id"] for record in RECORDS]


def test_interrupted_and_started_again_the_file_is_the_same(tmp_path, monkeypatch, capsys):
    inference.main(flags(tmp_path / "whole.json", batch_size=2))
    third_call_fails, calls = interrupted_at(3)
    monkeypatch.setattr(batch_engine, "generate", third_call_fails)
    with pytest.raises(KeyboardInterrupt):
        inference.main(flags(tmp_path / "cut.json", batch_size=2))
    assert not (tmp_path / "cut.json").exists()
    inference.main(flags(tmp_path / "cut.json"))  # the batch size is taken from the partial file
    assert "resume: 4 of 12 answers" in capsys.readouterr().err
    assert len(calls) == 3 + 4
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_kill_9_loses_no_finished_batch(tmp_path):
    inference.main(flags(tmp_path / "whole.json", batch_size=1, max_new_tokens=64))
    out = tmp_path / "killed.json"
    command = [sys.executable, str(ROOT / "src" / "inference.py"), *flags(out, batch_size=1, max_new_tokens=64)]

    def some():
        with suppress(FileNotFoundError):  # not there yet, or no longer
            return partial.partial_path(out).read_bytes().count(b"\n") > 3

    kill_when(some, command, out, out, manifest.run_file_of(out))
    inference.main(flags(out, max_new_tokens=64))
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_partial_file_of_other_settings_is_refused_before_the_base_is_loaded(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    other = {"input": "x", "max_new_tokens": 99}
    partial.resume_partial(out, other)
    monkeypatch.setattr(batch_engine, "load_base", lambda *_, **__: pytest.fail("the base was loaded first"))
    with pytest.raises(UserError, match="max_new_tokens: 99 there, 12 now.*delete the file to start over"):
        inference.main(flags(out))
    assert partial.recorded_settings(out) == other


def test_a_second_run_with_the_same_output_is_refused_before_the_base_is_loaded(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    monkeypatch.setattr(batch_engine, "load_base", lambda *_, **__: pytest.fail("the base was loaded first"))
    with partial.hold_partial(out), pytest.raises(UserError, match="out.json.partial: another process is writing it"):
        inference.main(flags(out))


def test_answers_that_vanish_are_no_empty_ones(tmp_path, monkeypatch):
    out, real = tmp_path / "out.json", partial.read_finished
    monkeypatch.setattr(partial, "read_finished", lambda output: dict(list(real(output).items())[:-2]))
    with pytest.raises(UserError, match="2 answers that were made are not in it"):
        inference.main(flags(out))
    assert not out.exists()
    monkeypatch.undo()
    inference.main(flags(out))
    assert "error" not in {row["finish_reason"] for row in rows(out)}


def test_run_json_fills_the_flags_and_a_contradiction_is_said(tmp_path, capsys):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in ADAPTER.iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    run = {"base": str(BASE), "model_name": "zhixi", "template_name": "mine", "template": load_template("vicuna")}
    manifest.write_run(adapter, run)
    inference.main(flags(tmp_path / "a.json", model_name_or_path=None, lora_weights=adapter))
    assert "family: llama, as zhixi" in capsys.readouterr().err
    inference.main(flags(tmp_path / "b.json", lora_weights=adapter, prompt_template_name="vicuna"))
    assert "warning: --prompt_template_name vicuna contradicts run.json, which says mine" in capsys.readouterr().err
    assert rows(tmp_path / "a.json") == rows(tmp_path / "b.json")


def test_a_base_without_an_adapter_predicts(tmp_path):
    inference.main(flags(tmp_path / "out.json", lora_weights=None))
    assert len(rows(tmp_path / "out.json")) == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_weights": BASE}, r"is a whole model, no adapter; give it as --model_name_or_path; found config.json"),
        ({"lora_weights": GOLDEN}, r"the newest adapter near it is .*adapter"),
        ({"input_file": GOLDEN / "no.json"}, "no such file"),
        ({"model_name_or_path": None}, "--model_name_or_path is missing, and no run.json"),
        ({"device": "cuda:7"}, r"--device cuda:7: this machine shows \d+ GPUs"),
        ({"device": "gpu"}, "--device gpu: expected cpu, cuda"),
        ({"device": "mps"}, "--device mps: expected cpu, cuda"),
        ({"output_file": VALID}, "is an input of this command"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        inference.main(flags(change.pop("output_file", tmp_path / "out.json"), **change))


def test_an_adapter_of_another_shape_does_not_fit(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((ADAPTER / "adapter_config.json").read_bytes())
    tensors = torch.load(ADAPTER / "adapter_model.bin", weights_only=True)
    torch.save({name: torch.ones(3, 3) for name in tensors}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="does not fit this base model"):
        inference.main(flags(tmp_path / "out.json", lora_weights=folder))


def test_merging_without_an_adapter_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--merge_lora without --lora_weights"):
        inference.main(flags(tmp_path / "out.json", "--merge_lora", lora_weights=None))


def test_batch_size_follows_memory(monkeypatch):
    model, _ = loaded(BASE)
    sizes = []
    for free in (1, 10**7, 10**12):
        monkeypatch.setattr(machine.psutil, "virtual_memory", lambda free=free: type("M", (), {"available": free}))
        sizes.append(choose_batch_size(model.config, [300] * 1000, 200, 1, torch.device("cpu")))
    assert sizes[0] == 1
    assert sizes[0] < sizes[1] < sizes[2] == 32


def test_batch_size_counts_once_what_the_engine_keeps_once(monkeypatch):
    """`fast` does on a card; on a CPU only as it is told."""
    model, codec = loaded(BASE)
    engine = ENGINES["fast"]._replace(
        batch_size=lambda *given: given, common=lambda *given: count_common(*given, Tuning(common=1))
    )
    monkeypatch.setitem(ENGINES, "fast", engine)
    plan = SimpleNamespace(engine="fast", codec=codec, serving=SimpleNamespace(rules=Rules(8), drafts=None))
    prompts = [[5, 6, 7, 8], [5, 6, 9]]
    for given, common in ((prompts, 2), ((), 0)):
        assert size_for_engine(model, plan, [4, 3], given) == (model.config, [4, 3], 8, 1, model.device, False, common)


def test_the_script_reports_errors_without_a_traceback(tmp_path):
    done = python(ROOT / "src" / "inference.py", "--lora_weights", tmp_path, "--input_file", VALID)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --lora_weights")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["inference", "inference --ray auto", "inference_pt --model_dir x"])
def test_a_broken_file_is_said_before_torch_is_imported(tmp_path, script):
    name, *more = script.split()
    file = tmp_path / "broken.json"
    file.write_text("{", encoding="utf-8")
    given = [*more, "--input_file", str(file), "--output_file", str(tmp_path / "out.json")]
    code = (
        f"import sys, {name}\ntry:\n    {name}.main({given})\n"
        "except Exception as error:\n    print(error, {'torch', 'ray'} & sys.modules.keys())"
    )
    done = python("-c", code, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert done.stdout.startswith(f"{file}:1: not JSON")
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    ("typed", "recorded", "expected", "warned"),
    [
        ({}, {}, ("float32", 16), False),
        ({}, {"name": "bfloat16", "bits": 8}, ("bfloat16", 8), False),
        ({"bf16": True}, {"name": "float16"}, ("bfloat16", 16), True),
        ({"fp16": True}, {"name": "float16"}, ("float32", 16), False),
        ({"fp16": True}, {"name": "float32"}, ("float32", 16), False),
        ({"fp32": True}, {"name": "bfloat16"}, ("float32", 16), True),
    ],
)
def test_dtype_and_bits_come_from_the_flags_else_from_the_run(typed, recorded, expected, warned, capsys):
    model_args, args = parse_inference([word for name in typed for word in (f"--{name}",)])
    precision, decided = settings.choose_precision(model_args, args, recorded, on_cpu=True)
    assert precision == expected
    assert (decided["dtype"].why == "as trained, by run.json") == (not typed and bool(recorded))
    assert ("contradicts run.json" in capsys.readouterr().err) == warned


def test_right_triples_of_a_labelled_record_do_not_pass_as_predicted_ones(tmp_path):
    labelled = tmp_path / "in.json"
    labelled.write_text(json.dumps({**RECORDS[0], "kg": [["a", "b", "c"]]}), encoding="utf-8")
    inference.main(flags(tmp_path / "out.json", input_file=labelled))
    assert "kg" not in rows(tmp_path / "out.json")[0]
