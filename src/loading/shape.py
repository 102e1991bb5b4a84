"""The sizes of a base, from its config.json alone, and what is checked against them."""

import math
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from checkpoints.config import pad_beyond
from checkpoints.family import usable_config
from common.errors import UserError
from ops.answer_loss import head_is_apart


class Shape(NamedTuple):
    """What the estimate needs to know of a base."""

    linear: int  # weights of the linear layers but the head: --bits quantises them
    other: int  # all other weights
    layers: int
    hidden: int
    wide: int  # of the feed-forward's inner units
    cached: int  # numbers kept of one token in all layers for generation: keys and values
    vocabulary: int
    norms32: bool  # layer norms of torch, whose results autocast keeps in 32 bits: so are those between the layers
    step_heads: int  # heads of an attention without a fused kernel; 0: it has one
    pair_bytes: int  # of each pair of tokens, once for all layers: a learnt bias of the attention
    sizes: dict  # name of each linear layer but the head -> (inputs, outputs)
    head_is_apart: bool = False  # ops.answer_loss: logits are made in pieces


def read_shape(model_path, trust_remote_code: bool = False) -> Shape | None:
    """Sizes of a checkpoint, from its config.json alone; None when they cannot be told from it.

    UserError for a config.json that transformers can make no model of.
    """
    try:
        with usable_config(model_path, trust_remote_code):
            options = {"trust_remote_code": trust_remote_code}
            config = AutoConfig.from_pretrained(model_path, **options, **pad_beyond(model_path))
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, **options)
    except UserError:
        if trust_remote_code:  # somebody's own model code may fail in any way; loading itself will say why
            return None
        raise
    try:
        config, head = config.get_text_config(), model.get_output_embeddings()
        layers, heads = config.num_hidden_layers, config.num_attention_heads  # without heads nothing below is right
    except Exception:  # noqa: BLE001 - another kind of model, which has no such settings
        return None
    sizes = {name: linear_size(module) for name, module in model.named_modules() if module is not head}
    sizes = {name: size for name, size in sizes.items() if size}
    count = sum(inputs * outputs for inputs, outputs in sizes.values())
    return Shape(
        linear=count,
        other=sum(p.numel() for p in model.parameters()) - count,
        layers=layers,
        hidden=config.hidden_size,
        wide=max((outputs for _, outputs in sizes.values()), default=config.hidden_size),
        cached=cached_numbers(config),
        vocabulary=model.get_input_embeddings().weight.shape[0],
        norms32=any(isinstance(module, torch.nn.LayerNorm) for module in model.modules()),
        step_heads=0 if model._supports_sdpa else heads,
        pair_bytes=getattr(model, "pair_bytes", 0),
        sizes=sizes,
        head_is_apart=head_is_apart(model),
    )


def kept_shape(config) -> tuple[int, int, int]:
    """(layers, heads of keys and values, numbers a head): what generation keeps of a token, once for keys and values.

    A model without attention counts as one of a single head.
    """
    heads = getattr(config, "num_attention_heads", 1)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, head_size


def cached_numbers(config) -> int:
    """Numbers kept of one token for generation: keys and values in every layer (2 · layers · kv heads · head size)."""
    return 2 * math.prod(kept_shape(config))


def linear_size(module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, GPT-2's turned ones among them; None of any other module."""
    if isinstance(module, Conv1D):
        return tuple(module.weight.shape)
    return (module.in_features, module.out_features) if isinstance(module, torch.nn.Linear) else None


def check_targets(sizes: dict[str, tuple[int, int]], targets: tuple[str, ...]) -> None:
    """UserError for a name of --lora_target_modules that no linear layer has."""
    known = {name.split(".")[-1] for name in sizes}
    missing = [target for target in targets if target not in known]
    if missing and targets != ("all-linear",):
        raise UserError(
            f"--lora_target_modules {','.join(missing)}: this model has no such layer; its linear layers are "
            f"{', '.join(sorted(known))} (all-linear, alone, means every one)"
        )


def check_vocabulary(shape: Shape | None, rows) -> None:
    """UserError when a row of token ids has one that the base's embedding lacks."""
    largest = max((max(ids) for ids in rows if len(ids)), default=0)
    if shape and largest >= shape.vocabulary:
        raise UserError(
            f"--model_name_or_path: its tokenizer made the id {largest}, its embedding has {shape.vocabulary} rows; "
            "tokenizer and weights are not of the same model"
        )
