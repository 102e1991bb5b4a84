"""What only a card computes: the fused attention of packed batches and of the engine `fast`, and the memory cap.

TEST_ON_CARD=1 python -m pytest tests/test_on_card.py
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

from utils import decoding, packing
from utils.batches import IGNORED, make_collator
from utils.generating import Rules

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card and TEST_ON_CARD=1")
KINDS = [("llama", 8), ("llama", 2), ("mistral", 2), ("qwen2", 2), ("qwen3", 2), ("qwen3", 8)]


def make(model_type: str, kv_heads: int):
    """A small model of 8 heads, whose random weights are large enough to prefer some tokens clearly."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 8}
    sizes |= {"num_key_value_heads": kv_heads, "head_dim": 64, "vocab_size": 1000, "initializer_range": 0.06}
    config = AutoConfig.for_model(model_type, **sizes, max_position_embeddings=2048)
    config.sliding_window = None
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).cuda()


def make_rows():
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(10, 1000, (length,), generator=draw).tolist() for length in (7, 300, 1, 129, 64, 511)]
    return [{"input_ids": ids, "labels": [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in rows]


@pytest.mark.parametrize(("model_type", "kv_heads"), KINDS)
def test_packed_losses_and_gradients_are_padded_ones(model_type, kv_heads):
    model = make(model_type, kv_heads)
    rows = [row for row in make_rows() if len(row["input_ids"]) > 1]
    reference, exact = learn(model, make_collator(0, 8)(rows), torch.float32)
    padded, rough = learn(model, make_collator(0, 8)(rows), torch.bfloat16)
    packing.use_packed_attention(model)
    packed, fused = learn(model, packing.pack(rows), torch.bfloat16)
    assert packed == pytest.approx(reference, rel=2e-3)
    assert padded == pytest.approx(reference, rel=2e-3)
    for name, gradient in exact.items():
        mistake, usual = (torch.dist(other[name], gradient) / gradient.norm() for other in (fused, rough))
        assert mistake < 1.3 * usual + 2e-3, name


def learn(model, batch, dtype):
    model.zero_grad()
    batch = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("model_type", "kv_heads"), KINDS)
@pytest.mark.parametrize("size", [1, 4, 24])
def test_fast_takes_the_likeliest_tokens(model_type, kv_heads, size):
    exact, model = make(model_type, kv_heads), make(model_type, kv_heads).to(torch.bfloat16)
    codec = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)), eos_id=-1)
    prompts = {number: row["input_ids"] for number, row in enumerate(make_rows() * 4)}
    prompts = dict(sorted(prompts.items(), key=lambda item: -len(item[1])))
    said = {}
    for made in decoding.answers(model, codec, prompts, Rules(40, batch_size=size)):
        said |= {number: [int(token) for token in answer.text.split()] for number, answer in made.items()}
    assert {len(ids) for ids in said.values()} == {40}
    for number, ids in prompts.items():
        whole = torch.tensor([ids + said[number]], device="cuda")
        with torch.inference_mode():
            logits = exact(whole).logits[0, len(ids) - 1 : -1]
        taken = logits.gather(1, whole[0, len(ids) :, None])[:, 0]
        assert ((logits.max(-1).values - taken) < 0.5 * logits.std(-1)).all()  # rounding decides near ties only


@pytest.mark.parametrize("expandable", [False, True])  # pieces of memory that grow, as the training scripts ask for
def test_the_cap_holds(expandable):
    code = """
import torch
from utils.loading import limit_memory
limit_memory(2000, torch.device("cuda:0"))
parts = []
try:
    while len(parts) < 100:
        parts.append(torch.empty(100 * 2**20, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError:
    print(len(parts))
"""
    more = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    more["PYTORCH_ALLOC_CONF"] = f"expandable_segments:{expandable}"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True, check=True
    )
    assert 15 <= int(ran.stdout) <= 20
