"""Training where something is not as it should be: padding without a row in the embedding, numbers that are none."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import GOLDEN, random_llama, rows
from helpers_training import flags
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, TrainingArguments

import finetuning_pt
import inference_pt
import test_finetune
from checkpoints.family import find_family
from common.errors import UserError
from data.prompts import load_template
from loading.precision import Precision
from tokens.readers import load_codec
from training.evaluation import make_score_answers
from training.trainer import TripleTrainer

TRAIN, VALID = GOLDEN / "train.json", GOLDEN / "valid.json"
PREFIX = {"train_path": TRAIN, "max_steps": 1, "pre_seq_len": 4, "prefix_projection": "false"}
EVALUATED = {"valid_file": TRAIN, "eval_strategy": "steps", "eval_steps": 1, "max_target_length": 4}


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A base whose [PAD] lies behind the last row of its embedding, in its tokenizer and in its config."""
    folder = tmp_path_factory.mktemp("padded")
    random_llama(folder, num_hidden_layers=1, intermediate_size=64)
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tokenizer_vicuna_style")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.pad_token_id == config["vocab_size"]
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": tokenizer.pad_token_id}))
    return folder


def logged(output):
    return [row["loss"] for row in rows(output / "log.jsonl") if "loss" in row]


def test_padding_beyond_the_embedding_trains_evaluates_and_predicts(tmp_path, padded):
    """The losses are those of one record a pass, which is padded with nothing."""
    for name, batch, passes in (("padded", 4, 1), ("alone", 1, 4)):
        more = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": passes,
            "max_steps": 2,
            "lora_dropout": 0,
        }
        more |= {"model_name_or_path": padded, "per_device_eval_batch_size": 3, **EVALUATED}
        given = flags(tmp_path / name, "--do_eval", "--predict_with_generate", "--eval_generate_samples", "3", **more)
        test_finetune.main(given)
    assert logged(tmp_path / "padded") == pytest.approx(logged(tmp_path / "alone"), abs=1e-4)


def test_padding_beyond_the_embedding_tunes_a_prefix(tmp_path, padded):
    out, answered = tmp_path / "prefix", tmp_path / "out.json"
    words = {**PREFIX, "model_dir": padded, "output_dir": out, "train_batch_size": 3}
    finetuning_pt.main([str(word) for name, value in words.items() for word in (f"--{name}", value)])
    words = {"ori_model_dir": padded, "model_dir": out / "global_step-1", "test_path": VALID, "output_file": answered}
    words |= {"max_new_tokens": 4, "batch_size": 3}
    inference_pt.main([str(word) for name, value in words.items() for word in (f"--{name}", value)])
    assert len(rows(answered)) == len(rows(VALID))


def broken(folder, name, value):
    """A small base, one number of one weight being `value`."""
    random_llama(folder, num_hidden_layers=1, intermediate_size=64)
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
def test_a_base_with_a_number_that_is_none_is_named_by_its_weight(tmp_path, name):
    base, out = broken(tmp_path, name, math.nan), tmp_path / "out"
    words = {**PREFIX, "model_dir": base, "output_dir": out}
    words = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    for train, given in ((test_finetune.main, flags(out, model_name_or_path=base)), (finetuning_pt.main, words)):
        with pytest.raises(UserError, match=rf"{name} holds NaN or infinity; download it again"):
            train(given)
        assert not out.exists() or not list(out.iterdir())


def test_a_row_that_no_text_needs_may_hold_such_numbers(tmp_path):
    base = broken(tmp_path, "model.embed_tokens.weight", math.inf)  # the first number of <unk>'s
    test_finetune.main(flags(tmp_path / "out", model_name_or_path=base, max_steps=1, per_device_train_batch_size=1))
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_training_that_diverges_ends_with_the_step_and_keeps_what_was_saved_before(tmp_path):
    out = tmp_path / "out"
    more = {"learning_rate": 1e30, "max_steps": 5, "save_strategy": "steps", "save_steps": 1, "logging_steps": 100}
    with pytest.raises(UserError, match=r"step \d: the loss or a trained weight is NaN or infinity; lower --learning"):
        test_finetune.main(flags(out, lr_scheduler_type="constant_with_warmup", warmup_steps=2, **more))
    for file in out.glob("checkpoint-*/adapter_model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())
    assert not (out / "adapter_model.safetensors").exists()


def test_weights_that_the_last_step_broke_are_not_saved(tmp_path):
    """No loss was computed with them."""
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none")
    trainer = TripleTrainer(model=random_llama(tmp_path, num_hidden_layers=1, intermediate_size=16), args=args)
    trainer.save_model()
    (tmp_path / "out" / "model.safetensors").unlink()
    trainer.model.lm_head.weight.data[0, 0] = -math.inf
    trainer.log({"loss": 1.0})
    with pytest.raises(UserError, match="step 0: the loss or a trained weight is NaN or infinity"):
        trainer.save_model()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_evaluation_that_gives_no_numbers_names_the_record(tmp_path):
    model = random_llama(tmp_path, num_hidden_layers=1, intermediate_size=16)
    codec, records = load_codec(tmp_path, find_family(tmp_path)[0]), rows(TRAIN)[:3]
    args = SimpleNamespace(device=model.device, precision=Precision("float32", 16), bf16=False, fp16=False)
    args.process_index, args.world_size = 0, 1
    score = make_score_answers(codec, load_template("alpaca"), records, 2, 3, args, None)
    assert score(model)["f1"] == 0
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(UserError, match=r"id \d+, predicted: the model gave NaN.*model.norm.weight holds NaN"):
        score(model)
