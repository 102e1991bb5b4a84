"""What a run needs of the card's memory, estimated before anything is loaded, and what would make it fit.

The estimate is that of torch's allocator at its peak, in bytes. Its constants were fitted to measured peaks of
LLaMA-shaped models (docs/memory.md) and checked against others there.
"""

import math
from typing import NamedTuple

import torch

from common.errors import UserError, say
from common.machine import all_bytes, free_bytes
from loading.precision import Precision
from loading.quantised import QUANTISATIONS
from loading.shape import Shape

MB = 2**20  # as --max_memory_MB and torch count
OPTIMIZER = {"paged": 0, "8bit": 2, "adafactor": 4, "sgd": 0}  # bytes a trained weight; AdamW: 8, and 4 while it steps
# Numbers kept of a token in a layer for its gradient: per hidden unit and per unit of the feed-forward's width.
PER_HIDDEN, PER_WIDE = 9, 3.5
PER_WIDE_FUSED = 2  # with liger-kernel
PER_SCORE = 22  # bytes a pair of tokens in a head, where attention is computed step by step (no fused kernel)
PER_LOGIT = 14  # bytes a logit: itself, in 32 bits, its logarithm, its gradient
FIXED = 220 * MB  # the products' own workspace, what lies between the parts
FAR = 2  # times a machine's memory and swap: what needs more never ends there, even if the estimate is wrong by half
SAFE = 0.95  # share of the free memory that a choice made by the estimate may take, so that it does not end a run


class Load(NamedTuple):
    """The largest batch of a run."""

    tokens: int  # that are computed, padding included
    longest: int  # of one row
    logits: int  # positions that get logits


def weight_bytes(shape: Shape, precision: Precision) -> int:
    """Of the base, as it lies on the card."""
    size = precision.dtype.itemsize
    return int(shape.linear * (QUANTISATIONS[precision.bits].bytes_a_weight or size) + shape.other * size)


def adapter_weights(shape: Shape, targets: tuple[str, ...], rank: int) -> int:
    """Number of an adapter's weights: rank × (inputs + outputs) of every layer it is on."""
    every = targets == ("all-linear",)
    return rank * sum(sum(size) for name, size in shape.sizes.items() if every or name.split(".")[-1] in targets)


def trained_bytes(count: int, optim: str) -> int:
    """Of `count` trained weights in 32 bits with their gradients and the optimizer's state."""
    return count * (8 + next((size for name, size in OPTIMIZER.items() if name in optim), 12))


def activation_bytes(
    shape: Shape, load: Load, precision: Precision, recompute: bool, fused: bool = False, piece: int | None = None
) -> int:
    """Of one forward and backward pass; `recompute` (gradient checkpointing) keeps one layer's at a time.

    `fused`: with liger-kernel, whose feed-forward keeps less; `piece`: most logits that are made at a time, None: all.
    """
    size, per_wide = precision.dtype.itemsize, PER_WIDE_FUSED if fused else PER_WIDE
    layer = int(load.tokens * (PER_HIDDEN * shape.hidden + per_wide * shape.wide) * size)
    layer += load.tokens * load.longest * shape.step_heads * PER_SCORE
    between = load.tokens * shape.hidden * (4 if shape.norms32 else size) * shape.layers
    logits = PER_LOGIT * min(load.logits * shape.vocabulary, piece or math.inf)
    bias = load.tokens * load.longest * shape.pair_bytes
    return bias + (between + max(layer, logits) if recompute else shape.layers * layer + logits)


def answer_bytes(shape: Shape, tokens: int, precision: Precision) -> int:
    """Of one record being answered: keys and values of `tokens` tokens, and a layer's activations of its prompt."""
    return tokens * ((shape.cached + PER_HIDDEN * shape.hidden) * precision.dtype.itemsize + tokens * shape.pair_bytes)


def workspace_bytes(shape: Shape) -> int:
    """What fits nowhere else, and the largest weight in 16 bits, twice: dequantised or cast for a product."""
    return FIXED + 4 * max((inputs * outputs for inputs, outputs in shape.sizes.values()), default=0)


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
        others = "fewer --num_beams, a smaller --max_new_tokens or --batch_size, or a smaller base"
        refuse(device, cap, "prediction", need(precision.bits), free, fitting or [others])


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
    if needed > FAR * all_bytes(device):
        raise UserError(f"memory: {message} (this machine has {all_bytes(device) // MB:,} MB, swap included)")
    say(f"warning: {message}")


def limit_memory(max_memory_mb: int | None, device: torch.device) -> None:
    """Hold this process to `max_memory_mb` MB of its card; torch raises out-of-memory beyond."""
    if max_memory_mb is None:
        return
    if device.type != "cuda":
        say("max_memory_MB: no effect without a GPU")
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max_memory_mb * 2**20 / total), device)
    say(f"memory: at most {max_memory_mb} MB of the GPU's {total // 2**20} MB (--max_memory_MB)")
