"""Predictions of the golden LLaMA, which several test files make."""

import json

import torch
from helpers import GOLDEN
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.family import find_family
from decoding import batch_engine
from loading.base import load_base
from loading.lora import load_adapter
from loading.precision import Precision
from tokens.readers import load_codec

BASE, ADAPTER, VALID = GOLDEN / "checkpoint", GOLDEN / "adapter", GOLDEN / "valid.json"
RECORDS = [json.loads(line) for line in VALID.read_text(encoding="utf-8").splitlines()]


def flags(output, *more, **values):
    """Of the engine batch; tests/decoding/test_fast_engine.py is about the other one, and about auto."""
    chosen = {
        "model_name_or_path": BASE,
        "lora_weights": ADAPTER,
        "input_file": VALID,
        "output_file": output,
        "max_new_tokens": 12,
        "engine": "batch",
        **values,
    }
    return [*more, *(str(part) for name, value in chosen.items() if value for part in (f"--{name}", value))]


def corpus_flags(folder, output, *more, **values):
    """Of src/extract.py with a folder of documents."""
    named = {"input_file": None, "input": folder, "relations": "位于,类型,别名", **values}
    return flags(output, *more, **named)


def interrupted_at(number):
    """`generating.generate`, whose call of this number is interrupted; and a list with one entry a call."""
    real, calls = batch_engine.generate, []

    def generate(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    return generate, calls


def loaded(base, adapter=None):
    codec = load_codec(base, find_family(base)[0])
    model = load_base(base, Precision("float32", 16), "cpu", codec)
    return (load_adapter(model, adapter) if adapter else model).eval(), codec


def windowed(tiny, model_type: str, window: int, layers: int):
    """A small model of random weights with the vocabulary and eos of `tiny`. All layers see the last `window` tokens
    alone, but for the second one of gemma3_text.
    """
    base, codec, _ = tiny
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
    sizes |= {"vocab_size": base.config.vocab_size, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    if model_type == "gemma3_text":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        sizes |= {"layer_types": kinds[:layers], "use_sliding_window": True}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, sliding_window=window))
    for parameter in model.eval().parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id, model.config._attn_implementation = codec.eos_id, "sdpa"
    return model
