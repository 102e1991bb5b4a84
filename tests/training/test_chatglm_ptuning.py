"""ChatGLM-6B learns by P-Tuning v2: eight records by heart, on a frozen base of random weights."""

import json
import shutil

import pytest
import torch
from overfit import EIGHT

import finetuning_pt
import inference_pt
from kg.metrics import f1
from kg.triples import parse
from models.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration


@pytest.fixture(scope="module")
def base(chatglm, tmp_path_factory):
    """A ChatGLM whose attention weighs as much as its residual: of the released factor a tiny one has no use."""
    folder, codec = chatglm
    out = tmp_path_factory.mktemp("base")
    torch.manual_seed(1)
    config = ChatGLMConfig(
        hidden_size=64,
        inner_hidden_size=128,
        num_layers=3,
        num_attention_heads=4,
        vocab_size=1024,
        bos_token_id=codec.bos_id,
        pad_token_id=codec.pad_id,
        residual_layers=1,
    )
    model = ChatGLMForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3 if "word_embeddings" in name else 0.2)
    model.save_pretrained(out)
    for name in ("ice_text.model", "tokenizer_config.json"):
        shutil.copy(folder / name, out)
    return out


@pytest.mark.parametrize(("projection", "rate", "steps"), [("true", 1e-2, 1200), ("false", 1e-1, 1000)])
def test_it_overfits_eight_records(base, tmp_path, projection, rate, steps):
    train, out, predicted = tmp_path / "train.json", tmp_path / "out", tmp_path / "predicted.json"
    train.write_text("\n".join(json.dumps(record) for record in EIGHT), encoding="utf-8")
    flags = (
        f"--train_path {train} --model_dir {base} --output_dir {out} --train_batch_size 8 --max_steps {steps} "
        f"--learning_rate {rate} --prefix_projection {projection} --pre_seq_len 32 --save_steps {steps} "
        "--log_steps 200 --warmup_steps 10 --lr_scheduler_type cosine"
    )
    finetuning_pt.main(flags.split())
    command = f"--test_path {train} --model_dir {out / f'global_step-{steps}'} --output_file {predicted}"
    inference_pt.main([*command.split(), "--max_new_tokens", "40"])
    rows = [json.loads(line) for line in predicted.read_text(encoding="utf-8").splitlines()]
    found = ([parse(record["output"]) for record in records] for records in (rows, EIGHT))
    assert f1(*found)["f1"] == 1.0
