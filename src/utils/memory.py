"""What a run needs of the card's memory, estimated before anything is loaded, and what would make it fit.

The estimate is that of torch's allocator at its peak, in bytes. Its constants were fitted to measured peaks of
LLaMA-shaped models (docs/memory.md) and checked against others there.
"""

import math
from itertools import product
from typing import NamedTuple

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from utils.errors import UserError, say
from utils.precision import Precision

MB = 2**20  # as --max_memory_MB and torch count
QUANTISED = {16: None, 8: 1.0, 4: 0.53}  # bytes of a quantised weight with its scales; 16: as the dtype says
OPTIMIZER = {"paged": 0, "8bit": 2, "adafactor": 4, "sgd": 0}  # bytes a trained weight; AdamW: 8, and 4 while it steps
# Numbers kept of a token in a layer for its gradient: per hidden unit and per unit of the feed-forward's width.
PER_HIDDEN, PER_WIDE = 9, 3.5
PER_WIDE_FUSED = 2  # with liger-kernel
PER_SCORE = 22  # bytes a pair of tokens in a head, where attention is computed step by step (no fused kernel)
PER_LOGIT = 14  # bytes a logit: itself, in 32 bits, its logarithm, its gradient
FIXED = 220 * MB  # the products' own workspace, what lies between the parts
SAFE = 0.95  # share of the free memory that a choice made by the estimate may take, so that it does not end a run
MOST_PASS = 64  # records of a pass: more gain nothing


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


class Load(NamedTuple):
    """The largest batch of a run."""

    tokens: int  # that are computed, padding included
    longest: int  # of one row
    logits: int  # positions that get logits


def read_shape(model_path, trust_remote_code: bool = False) -> Shape | None:
    """Sizes of a checkpoint, from its config.json alone; None when they cannot be told from it."""
    try:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        config, head = config.get_text_config(), model.get_output_embeddings()
        layers, heads = config.num_hidden_layers, config.num_attention_heads  # without heads nothing below is right
    except Exception:  # noqa: BLE001 - somebody's own model code may fail in any way; loading itself will say why
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


def weight_bytes(shape: Shape, precision: Precision) -> int:
    """Of the base, as it lies on the card."""
    size = precision.dtype.itemsize
    return int(shape.linear * (QUANTISED[precision.bits] or size) + shape.other * size)


def adapter_weights(shape: Shape, targets: tuple[str, ...], rank: int) -> int:
    """Number of an adapter's weights: rank × (inputs + outputs) of every layer it is on."""
    every = targets == ("all-linear",)
    return rank * sum(sum(size) for name, size in shape.sizes.items() if every or name.split(".")[-1] in targets)


def trained_bytes(count: int, optim: str) -> int:
    """Of `count` trained weights in 32 bits with their gradients and the optimizer's state."""
    return count * (8 + next((size for name, size in OPTIMIZER.items() if name in optim), 12))


def activation_bytes(shape: Shape, load: Load, precision: Precision, recompute: bool, fused: bool = False) -> int:
    """Of one forward and backward pass; `recompute` (gradient checkpointing) keeps one layer's at a time.

    `fused`: with liger-kernel, whose feed-forward keeps less.
    """
    size, per_wide = precision.dtype.itemsize, PER_WIDE_FUSED if fused else PER_WIDE
    layer = int(load.tokens * (PER_HIDDEN * shape.hidden + per_wide * shape.wide) * size)
    layer += load.tokens * load.longest * shape.step_heads * PER_SCORE
    between = load.tokens * shape.hidden * (4 if shape.norms32 else size) * shape.layers
    logits = load.logits * shape.vocabulary * PER_LOGIT
    bias = load.tokens * load.longest * shape.pair_bytes
    return bias + (between + max(layer, logits) if recompute else shape.layers * layer + logits)


def answer_bytes(shape: Shape, tokens: int, precision: Precision) -> int:
    """Of one record being answered: keys and values of `tokens` tokens, and a layer's activations of its prompt."""
    return tokens * ((shape.cached + PER_HIDDEN * shape.hidden) * precision.dtype.itemsize + tokens * shape.pair_bytes)


def workspace_bytes(shape: Shape) -> int:
    """What fits nowhere else, and the largest weight in 16 bits, twice: dequantised or cast for a product."""
    return FIXED + 4 * max((inputs * outputs for inputs, outputs in shape.sizes.values()), default=0)


def largest_load(rows, batch_size: int, packed: bool = False) -> Load:
    """The largest batch that rows (with `length` and `labels`) can make; `packed`: without padding."""
    lengths = rows["length"]
    longest = sorted(range(len(rows)), key=lambda index: -lengths[index])[:batch_size]
    answers = [
        len(labels) - next(i for i, label in enumerate(labels) if label >= 0) + 1
        for labels in (rows[index]["labels"] for index in longest)
    ]
    most = max(lengths)
    if packed:
        return Load(sum(lengths[index] for index in longest), most, sum(answers))
    return Load(batch_size * most, most, batch_size * max(answers))


class Plan(NamedTuple):
    """The settings of a training run that decide what it needs."""

    batch: int  # records of one forward pass
    accumulation: int
    precision: Precision
    recompute: bool  # gradient checkpointing
    answered: int = 0  # records that evaluation answers at a time; 0: none
    answer_tokens: int = 0  # most new tokens of an answer
    packed: bool = False  # the records of a pass in one row without padding
    fused: bool = False  # liger-kernel

    def flags(self, other: "Plan") -> str:
        """The flags that turn `other` into this plan."""
        flags = []
        if self.recompute != other.recompute:
            flags.append("--gradient_checkpointing True")
        if self.batch != other.batch:
            flags.append(
                f"--per_device_train_batch_size {self.batch} --gradient_accumulation_steps {self.accumulation}"
            )
        if self.precision.bits != other.precision.bits:
            flags.append(f"--bits {self.precision.bits}")
        if self.answered != other.answered:
            flags.append(f"--per_device_eval_batch_size {self.answered}")
        return " ".join(flags)


def training_bytes(shape: Shape, rows, plan: Plan, trained: int, full: bool, optim: str) -> dict[str, int]:
    """What a plan needs, by purpose; `trained` weights are an adapter's, or with `full` the base's own."""
    load = largest_load(rows, min(plan.batch, len(rows)), plan.packed)
    answering = plan.answered * answer_bytes(shape, load.longest + plan.answer_tokens, plan.precision)
    return {
        "weights": 0 if full else weight_bytes(shape, plan.precision),
        "trained": trained_bytes(trained, optim),
        "activations": max(activation_bytes(shape, load, plan.precision, plan.recompute, plan.fused), answering),
        "workspace": workspace_bytes(shape),
    }


def plans_that_fit(plan: Plan, full: bool, fits) -> list[Plan]:
    """The plans that change the fewest settings and fit: for every such set of settings the one that changes least."""
    batches = [size for size in range(plan.batch, 0, -1) if plan.batch % size == 0]
    answered = [plan.answered >> shift for shift in range(plan.answered.bit_length())] or [0]
    bits = [plan.precision.bits, *(bits for bits in (8, 4) if bits < plan.precision.bits and not full)]
    found = {}
    for recompute, batch, bit, rows in product(sorted({plan.recompute, True}, reverse=True), batches, bits, answered):
        precision, accumulation = plan.precision._replace(bits=bit), plan.accumulation * plan.batch // batch
        other = plan._replace(
            batch=batch, accumulation=accumulation, precision=precision, recompute=recompute, answered=rows
        )
        changed = tuple(i for i, (old, new) in enumerate(zip(plan, other, strict=True)) if old != new and i != 1)
        if changed not in found and fits(other):
            found[changed] = other
    fewest = min(map(len, found), default=0)
    return [other for changed, other in found.items() if len(changed) == fewest]


def choose_plan(plan: Plan, may_skip: bool, may_regroup: bool, fits) -> Plan:
    """The fastest plan that `fits`, with as many records a step; `plan` itself, saving most, when none does.

    Computing no activation twice (if gradient checkpointing `may_skip` it) comes first; then as many records a pass as
    fit (if they `may_regroup` them): at least those of `plan`, with gradient checkpointing at most those.
    """
    records = plan.batch * plan.accumulation
    sizes = [size for size in range(min(records, MOST_PASS), 0, -1) if records % size == 0]
    for recompute in (False, True) if may_skip else (plan.recompute,):
        for size in sizes if may_regroup else [plan.batch]:
            other = plan._replace(batch=size, accumulation=records // size, recompute=recompute)
            if (size <= plan.batch if recompute else size >= plan.batch) and fits(other):
                return other
    return plan


def fit_training(
    shape: Shape | None,
    rows,
    plan: Plan,
    trained: int,
    full: bool,
    optim: str,
    device,
    cap,
    may_skip: bool = False,
    may_regroup: bool = False,
) -> Plan:
    """The plan that is taken, and what it will need, said; UserError with the flags that would make it fit when a card
    has less.

    `cap`: --max_memory_MB, or None; `may_skip`, `may_regroup`: what `choose_plan` may decide. On a CPU, which can swap,
    too little is a warning.
    """
    if shape is None:
        say("memory: not estimated (the sizes of this model cannot be told from its config.json)")
        return plan
    free = available(device, cap)

    def need(other: Plan) -> dict[str, int]:
        return training_bytes(shape, rows, other, trained, full, optim)

    def fits(other: Plan, share: float = 1.0) -> bool:
        return sum(need(other).values()) <= share * free

    if may_skip or may_regroup:
        plan = choose_plan(plan, may_skip, may_regroup, lambda other: fits(other, SAFE))
    needs = need(plan)
    parts = ", ".join(f"{name} {size // MB:,}" for name, size in needs.items() if size)
    say(f"memory: about {sum(needs.values()) // MB:,} MB needed ({parts}), {free // MB:,} MB free")
    if not fits(plan):
        others = [other.flags(plan) for other in plans_that_fit(plan, full, fits)]
        last = "LoRA instead of --full_finetune" if full else "a smaller --cutoff_len, or a smaller base"
        refuse(device, cap, "the run", sum(needs.values()), free, others or [last])
    return plan


def check_prediction(shape: Shape | None, tokens: int, precision: Precision, device, cap) -> None:
    """UserError with the flags that would help when base and one record of `tokens` tokens exceed a card's memory."""
    if shape is None:
        return

    def need(bits: int) -> int:
        numbers = precision._replace(bits=bits)
        return weight_bytes(shape, numbers) + answer_bytes(shape, tokens, numbers) + workspace_bytes(shape)

    free = available(device, cap)
    if need(precision.bits) > free:
        fitting = [f"--bits {bits}" for bits in (8, 4) if bits < precision.bits and need(bits) <= free]
        refuse(device, cap, "prediction", need(precision.bits), free, fitting or ["a larger card, or a smaller base"])


def free_bytes(device: torch.device) -> int:
    """What this process may still take: of a card what is free, and at most what `loading.limit_memory` left it."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    mine = torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.get_device_properties(device).total_memory
    return min(torch.cuda.mem_get_info(device)[0], int(mine) - torch.cuda.memory_allocated(device))


def available(device: torch.device, cap: int | None) -> int:
    """Bytes that this process may take: what is free of the card, at most `cap` MB; or of the machine's memory.

    Of several processes training together the one with the least counts: all must decide alike.
    """
    free = free_bytes(device)
    if cap and device.type == "cuda":
        free = min(free, cap * MB)
    if torch.distributed.is_initialized():
        least = torch.tensor(free, device=device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        free = int(least)
    return free


def refuse(device, cap, what: str, needed: int, free: int, others: list[str]) -> None:
    limit = f"--max_memory_MB {cap} allows" if cap and free == cap * MB else "are free"
    message = (
        f"{what} needs about {needed // MB:,} MB and {free // MB:,} MB {limit}; what would fit: {', or '.join(others)}"
    )
    if device.type == "cuda":
        raise UserError(f"memory: {message}")
    say(f"warning: {message}")
