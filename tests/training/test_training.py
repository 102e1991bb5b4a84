"""src/test_finetune.py on a tiny LLaMA checkpoint: what it learns, saves, refuses, and how it goes on after a kill."""

import contextlib
import json
import os
import sys

import pytest
import torch
from helpers import GOLDEN, kill_when, python
from helpers_training import BASE, RECORDS, SCRIPT, TRAIN, flags
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from checkpoints.adapters import check_saved, check_weights
from checkpoints.family import find_family
from common import locks, machine
from common.errors import UserError
from data.prompts import load_template
from loading.base import load_base
from loading.lora import add_lora
from loading.precision import Precision
from ops.answer_loss import by_pieces
from test_finetune import main
from tokens.batches import IGNORED, make_collator
from tokens.readers import load_codec
from tokens.rows import Limits, encode_row
from training import trainer
from training.order import order_epoch


def tiny():
    codec = load_codec(BASE, find_family(BASE)[0])
    return load_base(BASE, Precision("float32", 16), "cpu", codec), codec


def log(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_the_first_loss_is_the_originals():
    model, codec = tiny()
    row = encode_row(codec, load_template("alpaca"), RECORDS[0], Limits(512))
    batch = make_collator(codec.pad_id)([row._asdict()])
    expected = json.loads((GOLDEN / "golden.json").read_text())["train_losses_bs1_adamw3e-3"][0]
    assert model(**batch).loss.item() == pytest.approx(expected, abs=2e-4)


def test_logits_at_answers_only_give_the_plain_loss():
    model, codec = tiny()
    rows = [encode_row(codec, load_template("alpaca"), record, Limits(1024))._asdict() for record in RECORDS[:5]]
    batch = make_collator(codec.pad_id)(rows)
    width = batch["input_ids"].shape[1]
    labels = torch.tensor([row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows])
    plain = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    assert batch["logits_to_keep"].numel() < width
    torch.testing.assert_close(model(**batch).loss, plain, rtol=1e-6, atol=1e-6)


def test_a_run_computes_its_losses_in_pieces(tmp_path, monkeypatch):
    entered, losses = [], []
    for way in (lambda base: by_pieces(base, most=1000), lambda base: contextlib.nullcontext()):
        monkeypatch.setattr(trainer, "by_pieces", lambda base, way=way: entered.append(way) or way(base))
        more = {"valid_file": TRAIN, "eval_strategy": "steps", "eval_steps": 2}
        main(flags(tmp_path / str(len(losses)), "--do_eval", **more))
        losses.append([row.get("loss", row.get("eval_loss")) for row in log(tmp_path / str(len(losses)))])
    assert len(entered) >= 2 * 6  # four steps, and two evaluations, of each
    assert losses[0][:-1] == pytest.approx(losses[1][:-1], rel=1e-5)


def test_padding_is_masked_even_when_pad_is_eos():
    rows = [{"input_ids": [5, 6, 7, 2], "labels": [IGNORED, 6, 7, 2]}, {"input_ids": [5, 2], "labels": [IGNORED, 2]}]
    batch = make_collator(pad_id=2)(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[6, 7, 2], [2, IGNORED, IGNORED]]


def test_a_run_leaves_adapter_manifest_curve_log_and_scores(tmp_path):
    main(
        flags(
            tmp_path,
            "--do_eval",
            "--predict_with_generate",
            val_set_size=3,
            max_target_length=8,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            preprocessing_num_workers=2,
        )
    )
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == "finished"
    assert (run["family"], run["template_name"], run["precision"]["name"]) == ("llama", "alpaca", "float32")
    assert run["data"]["train"] == 9
    assert run["data"]["valid"] == 3
    assert run["lora"]["lora_target_modules"] == ["q_proj", "v_proj"]
    best = tmp_path / f"checkpoint-{run['results']['best_step']}" / "adapter_model.safetensors"
    assert best.read_bytes() == (tmp_path / "adapter_model.safetensors").read_bytes()
    rows = log(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval_contest" in row] == [2, 4]
    assert all(
        {"eval_precision", "eval_recall", "eval_f1", "eval_rouge2"} <= set(r) for r in rows if "eval_contest" in r
    )
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("adapter_config.json", "trainer_state.json", "tokenizer.model"):
        assert (tmp_path / name).is_file()
    assert all(tensor.dtype == torch.float32 for tensor in check_weights(tmp_path).values())


def test_training_lowers_the_loss_and_bf16_keeps_float32_adapters(tmp_path):
    main(flags(tmp_path, "--bf16", max_steps=30, learning_rate=1e-2, lora_target_modules="all-linear"))
    losses = [row["loss"] for row in log(tmp_path) if "loss" in row]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    saved = check_weights(tmp_path)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert len(saved) == 3 * 7 * 2


def test_full_fine_tuning_saves_a_model_that_loads_as_a_base(tmp_path):
    main(flags(tmp_path, "--full_finetune", max_steps=2))
    codec = load_codec(BASE, find_family(BASE)[0])
    trained, base = load_base(tmp_path, Precision("float32", 16), "cpu", codec), tiny()[0]
    changed = [n for n, p in trained.named_parameters() if not torch.equal(p, base.get_parameter(n))]
    assert len(changed) == len(list(base.parameters()))


@pytest.mark.parametrize("moment", [1, 2])
def test_killed_and_resumed_gives_the_same_bits_as_uninterrupted(tmp_path, moment):
    """kill -9 when a checkpoint appears, written or half-written; LoRA dropout draws random numbers."""
    long = {"max_steps": 24, "save_strategy": "steps", "save_steps": 4, "lora_dropout": 0.1, "save_total_limit": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(flags(whole, **long))
    command = [sys.executable, str(SCRIPT), *flags(killed, resume_from_checkpoint="auto", **long)]
    kill_when(
        lambda: len(list(killed.glob("checkpoint-*"))) >= moment, command, killed / "adapter_model.safetensors", killed
    )
    with open(killed / "log.jsonl", "a") as file:
        file.write('{"step": 3, "lo')  # a row that the kill cut in half
    main(flags(killed, resume_from_checkpoint="auto", **long))
    assert [row["step"] for row in log(killed) if "loss" in row] == list(range(1, 25))
    one, two = load_file(whole / "adapter_model.safetensors"), load_file(killed / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_learn_what_one_learns(tmp_path):
    """torchrun with gloo on the CPU: half the batch each, the same global batches (8 records, 4 a step)."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    switches = ("--do_eval", "--predict_with_generate")
    common = {"max_steps": 5, "lora_dropout": 0.0, "val_set_size": 4, "max_target_length": 6}
    common |= {"eval_strategy": "steps", "eval_steps": 5}
    main(flags(alone, *switches, **common, per_device_train_batch_size=4))
    done = python(
        SCRIPT,
        *flags(both, *switches, **common),
        launcher=["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([row["loss"] for row in log(folder) if "loss" in row] for folder in (alone, both))
    assert one == pytest.approx(two, rel=1e-4)
    one, two = ([row for row in log(folder) if "eval_f1" in row][-1] for folder in (alone, both))
    assert (one["eval_f1"], one["eval_rouge2"]) == pytest.approx((two["eval_f1"], two["eval_rouge2"]), abs=1e-6)
    a, b = load_file(alone / "adapter_model.safetensors"), load_file(both / "adapter_model.safetensors")
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)
    assert done.stderr.count("family: llama") == 1


def test_a_run_is_not_overwritten_or_continued_otherwise_in_silence(tmp_path):
    main(flags(tmp_path, save_strategy="steps", save_steps=2))
    with pytest.raises(UserError, match="holds a run already .finished.; .* --resume_from_checkpoint auto"):
        main(flags(tmp_path))
    with pytest.raises(UserError, match="the run to resume was started otherwise .seed: 42 then, 7 now"):
        main(flags(tmp_path, resume_from_checkpoint="auto", seed=7))
    with pytest.raises(UserError, match="no such layer"):  # a mistake must not cost the checkpoints
        main(flags(tmp_path, "--overwrite_output_dir", lora_target_modules="q_prj"))
    assert list(tmp_path.glob("checkpoint-*"))
    main(flags(tmp_path, "--overwrite_output_dir", max_steps=1))
    assert json.loads((tmp_path / "run.json").read_text())["results"]["steps"] == 1
    assert not list(tmp_path.glob("checkpoint-*"))
    assert len([row for row in log(tmp_path) if "loss" in row]) == 1


def test_a_second_training_does_not_touch_what_another_is_writing(tmp_path):
    with locks.hold_file(tmp_path / "training.lock", "", ""):
        (tmp_path / "checkpoint-2").mkdir()
        with pytest.raises(UserError, match=f"--output_dir {tmp_path}: another training is writing it"):
            main(flags(tmp_path, "--overwrite_output_dir"))
    assert (tmp_path / "checkpoint-2").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output_dir .*file/out: cannot be written"):
        main(flags(tmp_path / "file" / "out"))
    with pytest.raises(UserError, match="no such layer"):
        main(flags(tmp_path / "new", lora_target_modules="q_prj"))
    assert not (tmp_path / "new").exists()


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    main(flags(tmp_path, resume_from_checkpoint="auto"))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    main(flags(tmp_path, resume_from_checkpoint="auto"))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "finished already, nothing to train" in capsys.readouterr().err
    with pytest.raises(UserError, match="finished run without checkpoints, which cannot be prolonged"):
        main(flags(tmp_path, resume_from_checkpoint="auto", max_steps=6))
    with pytest.raises(UserError, match="started otherwise .training: .*0.003.* then, .*0.1.* now"):
        main(flags(tmp_path, resume_from_checkpoint="auto", learning_rate=0.1))


@pytest.mark.parametrize("how", ["group_by_length", "random"])
def test_the_order_is_the_seeds_and_the_epochs_alone(how):
    lengths = [5, 9, 2, 7, 1, 8, 3, 3]
    first = order_epoch(lengths, 2, 1, 0, how)
    torch.rand(10)
    assert order_epoch(lengths, 2, 1, 0, how) == first
    assert order_epoch(lengths, 2, 1, 1, how) != first
    assert order_epoch(lengths, 2, 2, 0, how) != first
    assert sorted(order_epoch(lengths, 2, 1, 1, how)) == list(range(8))


def test_cut_and_dropped_rows_are_counted_and_the_sufficient_cutoff_named(tmp_path, capsys):
    main(flags(tmp_path, max_steps=1, cutoff_len=420))
    line = next(part for part in capsys.readouterr().err.splitlines() if part.startswith("training: 12 records"))
    longest = max(encode_row(tiny()[1], load_template("alpaca"), record, Limits(10_000)).whole for record in RECORDS)
    assert f"--cutoff_len {longest} would cut none" in line
    assert "5 texts shortened to fit --cutoff_len 420;" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_file": GOLDEN / "valid.json"}, "looks like the test set"),
        ({"train_file": GOLDEN / "nothing.json"}, r"nothing.json: no such file .*holds golden.json, train.json"),
        ({"model_name_or_path": GOLDEN / "adapter"}, "is a LoRA adapter, not a base"),
        ({"model_name": "lama"}, "not a family; known"),
        ({"prompt_template_name": "alpaka"}, "no such template; known: alpaca"),
        ({"eval_strategy": "epoch", "val_set_size": 12}, "there are only 12 records"),
        ({"cutoff_len": 40}, "no training record fits"),
        (
            {"label_smoothing_factor": 0.1},
            "--label_smoothing_factor cannot be set here: the loss is that of the answers",
        ),
        ({"data_seed": 3}, "--data_seed cannot be set here: --seed orders the records"),
        ({"predict_with_generate": True}, "--predict_with_generate: nothing is evaluated; add --do_eval"),
        ({"eval_strategy": "epochs"}, "--eval_strategy: invalid choice: 'epochs'"),
        (
            {"lora_target_modules": "q_proj,query_key_value"},
            "query_key_value: this model has no such layer; .*down_proj",
        ),
        ({"resume_from_checkpoint": "/nowhere/checkpoint-3"}, "no whole checkpoint"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        main(flags(tmp_path, **change))


def test_the_script_ends_with_status_2_and_no_traceback(tmp_path):
    done = python(SCRIPT, *flags(tmp_path), "--lora_rang", "4")
    assert done.returncode == 2
    assert done.stderr == "error: --lora_rang: unknown flag; did you mean --lora_r?\n"


def test_more_processes_than_cards_is_an_error(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(machine, "has_cuda", lambda use_cpu=False: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--nproc_per_node 3: this machine shows 2 GPUs"):
        machine.check_processes()


def test_empty_zero_and_changed_adapters_are_errors(tmp_path):
    model, _ = tiny()
    model = add_lora(model, ("q_proj", "v_proj"), 4, 8, 0.0)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="every lora_B is zero"):
        check_saved(get_peft_model_state_dict(model), tmp_path)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    assert check_saved(get_peft_model_state_dict(model), tmp_path) == sum(
        p.numel() for n, p in model.named_parameters() if "lora" in n
    )
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).add_(1)
    with pytest.raises(UserError, match="differs from the trained one in 1 tensors"):
        check_saved(get_peft_model_state_dict(model), tmp_path)
    torch.save({}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no tensor"):
        check_weights(tmp_path)


def test_a_fully_fine_tuned_model_is_predicted_with_its_own_template_and_tokens(tmp_path):
    import inference

    main(flags(tmp_path / "model", "--full_finetune", max_steps=1, prompt_template_name="vicuna"))
    out = tmp_path / "out.json"
    inference.main(
        f"--model_name_or_path {tmp_path / 'model'} --input_file {GOLDEN / 'valid.json'} --output_file {out} "
        "--max_new_tokens 2 --batch_size 12".split()
    )
    family, name, _ = find_family(tmp_path / "model")
    assert (family.name, name) == ("llama", "llama")
    assert load_codec(tmp_path / "model", family).prefix_ids == (1,)
    assert len(out.read_text().splitlines()) == 12
