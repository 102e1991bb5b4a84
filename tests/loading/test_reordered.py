"""Weights of linear layers reordered for a CPU: the same products, to the bit."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from loading.reordered import _multiplies_bfloat16, use_reordered

pytestmark = pytest.mark.skipif(not _multiplies_bfloat16(), reason="a CPU without products of bfloat16")
LAYERS = 2 * 7  # of the model below


def make_model(dtype=torch.bfloat16, tied: bool = True):
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=200, tie_word_embeddings=tied, attention_bias=True, **sizes)
    return LlamaForCausalLM(config).to(dtype).eval()


@torch.inference_mode()
def logits_of(model, tokens: int = 12):
    return model(torch.arange(tokens)[None], use_cache=False).logits


@pytest.mark.parametrize("tied", [True, False])
def test_products_are_equal_and_weights_are_not_kept_twice(tied):
    model = make_model(tied=tied)
    before = [logits_of(model, count) for count in (1, 12)]
    assert use_reordered(model) == LAYERS + 1
    assert all(torch.equal(logits_of(model, count), old) for count, old in zip((1, 12), before, strict=True))
    assert model.model.embed_tokens.weight.shape == (200, 48)
    assert model.lm_head.weight.numel() == 0
    assert model.dtype == torch.bfloat16


def test_32_bits_stay_as_they_are():
    assert use_reordered(make_model(torch.float32)) == 0


@pytest.mark.parametrize(("dora", "count"), [(False, LAYERS + 1), (True, 1)])
def test_an_adapters_own_weights_stay(dora, count):
    settings = LoraConfig(r=2, target_modules="all-linear", use_dora=dora, init_lora_weights=False)
    model = get_peft_model(make_model(), settings).to(torch.bfloat16).eval()
    plain = copy.deepcopy(model)
    assert use_reordered(model) == count
    assert torch.equal(logits_of(model), logits_of(plain))
