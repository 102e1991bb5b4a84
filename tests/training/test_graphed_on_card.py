"""Passes captured as CUDA graphs on a card learn what passes computed kernel by kernel do.

TEST_ON_CARD=1 python -m pytest tests/training/test_graphed_on_card.py
"""

import json

import pytest
import torch
from helpers import random_llama
from helpers_training import flags
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import test_finetune
from ops.answer_loss import by_pieces
from ops.packed_attention import use_packed_attention
from tokens.batches import IGNORED, REAL, pack_in_sizes
from training.graphed import Graphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card and TEST_ON_CARD=1")


def make_model(model_type, dropout=0.0):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 1000, "pad_token_id": 0}
    if model_type == "gemma3_text":
        sizes |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 100}
    config = AutoConfig.for_model(model_type, **sizes, initializer_range=0.06)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).cuda()
    use_packed_attention(model)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", r=8, lora_dropout=dropout))
    for weight in model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    return model.train()


def make_batches(count):
    """Six batches of two sizes, again and again, on the card."""
    for number in (index % 6 for index in range(count)):
        draw, lengths = torch.Generator().manual_seed(number), (200, 90, 7) if number % 3 else (400, 390, 380)
        rows = [torch.randint(10, 1000, (length - number,), generator=draw).tolist() for length in lengths]
        rows = [{"input_ids": ids, "labels": [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in rows]
        batch = {name: part for name, part in pack_in_sizes(rows, 4).items() if name != REAL}
        yield {name: part.cuda() if torch.is_tensor(part) else part for name, part in batch.items()}


def train(model, graphs, most=None, synchronises=False, steps=12):
    """The losses of steps of two passes. `most`: logits of a piece; `synchronises`: nothing can be captured then."""

    def compute(batch, count):
        with torch.autocast("cuda", torch.bfloat16), by_pieces(model.get_base_model(), most):
            loss = model(**batch, num_items_in_batch=count, use_cache=False).loss
        loss.backward()
        if synchronises:
            loss.item()
        return loss.detach()

    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-3)
    losses, batches = [], make_batches(2 * steps)
    for _ in range(steps):
        pair = [next(batches), next(batches)]
        count = sum((batch["labels"] != IGNORED).sum() for batch in pair)
        learn = graphs.learn if graphs else lambda compute, *given: compute(*given)
        losses.append(sum(learn(compute, batch, count) for batch in pair))
        optimizer.step()
        optimizer.zero_grad()  # to None, as the Trainer does
    return torch.stack(losses)


def graphs_of(model):
    return Graphs(weight for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("most", [None, 100_000])  # 100 positions a piece
def test_steps_with_graphs_learn_what_others_do(model_type, most):
    usual, graphed = make_model(model_type), make_model(model_type)
    graphs = graphs_of(graphed)
    expected, found = train(usual, None, most), train(graphed, graphs, most)
    assert graphs.works
    assert len(graphs.replays) == 2
    assert all(graphs.replays.values())
    assert expected[-1] < expected[0] - 0.1
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=0)


def test_dropout_is_drawn_anew_in_every_replay():
    model = make_model("llama", dropout=0.5)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    graphs, batch = graphs_of(model), next(make_batches(1))

    def compute(batch, count):
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(**batch, num_items_in_batch=count, use_cache=False).loss
        loss.backward()
        return loss.detach()

    count = (batch["labels"] != IGNORED).sum()
    losses = [graphs.learn(compute, batch, count).item() for _ in range(6)]
    assert graphs.works
    assert len(set(losses)) == 6


def test_a_pass_that_waits_for_the_card_is_computed_as_usual(capsys):
    usual, graphed = make_model("llama"), make_model("llama", dropout=0.0)
    graphs = graphs_of(graphed)
    expected, found = train(usual, None), train(graphed, graphs, synchronises=True)
    assert not graphs.works
    assert capsys.readouterr().err.count("cuda graphs: off from here on") == 1
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=0)
    # What a broken capture leaves: the stream, dropout and the memory are as before.
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.nn.functional.dropout(torch.ones(1000, device="cuda")).count_nonzero() < 600
    assert torch.isfinite(train(make_model("llama", dropout=0.1), None, steps=2)).all()
    again = make_model("llama")
    assert torch.isfinite(train(again, later := graphs_of(again))).all()
    assert later.works


def test_a_run_with_graphs_has_the_losses_of_one_without(tmp_path, capsys):
    (tmp_path / "base").mkdir()
    random_llama(tmp_path / "base", hidden_size=256, num_attention_heads=4, num_key_value_heads=4)
    losses = {}
    for asked in (False, True):
        more = {"cuda_graphs": asked, "max_steps": 12, "gradient_accumulation_steps": 2, "lora_dropout": 0}
        more |= {"model_name_or_path": tmp_path / "base", "lora_target_modules": "all-linear", "packing": True}
        test_finetune.main(flags(tmp_path / str(asked), "--bf16", **more))
        lines = (tmp_path / str(asked) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        losses[asked] = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
        run = json.loads((tmp_path / str(asked) / "run.json").read_text(encoding="utf-8"))
        assert run["decided"]["cuda_graphs"] == {"value": asked, "why": "as asked"}
    assert "off from here on" not in capsys.readouterr().err
    assert len(losses[True]) == 12
    assert losses[True] == pytest.approx(losses[False], rel=5e-3)
