"""How much the engine `fast` does at a time, by the memory and the device: rows, drafts, what is kept once."""

import math
from collections.abc import Collection
from typing import NamedTuple

import torch

from common.flags import MOST_DRAFTS
from common.machine import free_bytes
from decoding.batch_engine import choose_batch_size
from decoding.laid import takes_more
from decoding.places import count_alike
from loading.memory import SAFE
from loading.shape import cached_numbers, kept_shape
from ops import available


class Tuning(NamedTuple):
    """Sizes that decide how fast the engine is, never what it answers; measured (docs/log.md)."""

    steps: int = 8  # tokens made between two looks at what is finished
    watched: int = 1  # the same on a CPU where answers are constrained: a row computes in vain what is not permitted
    drafted: int = 2  # the same on a CPU with drafts, where a step may make many
    together: int = 4  # on a CPU with drafts: rows that wait until their prompts are computed by one reading of weights
    block: int = 64  # new tokens of a record between two looks for loops
    pass_tokens: int = 12288  # of one pass over new prompts
    most: int = 512  # rows on a card
    enough: int = 64  # rows: with fewer, a card mostly reads weights
    ahead: int = 128  # new tokens that a record gets room for at first, where the memory has none for all of them
    at_once: int = 256  # tokens that a card computes in a step at little more than what reading the weights takes
    spared: int = 4 * 2**30  # bytes of a card's memory, at most, for what lies between pieces in use
    shared: int = 16  # tokens: so long a beginning, in common with a prompt that is kept, is copied
    common: int | None = None  # tokens: so long a beginning of all prompts is kept once; None: COMMON on a card


MEASURED = Tuning()
COMMON = 64


def choose_rows(
    config,
    lengths: list[int],
    max_new_tokens: int,
    num_beams: int,
    device: torch.device,
    fp8: bool = False,
    common: int = 0,
    tuning: Tuning = MEASURED,
) -> int:
    """How many records of average length the free memory holds, at most `tuning.most`, or 32 on a CPU.

    Where few fit with all the tokens that they may have, only `tuning.ahead` new ones are counted. `common`: tokens of
    each that are kept once (`count_common`).
    """
    if device.type != "cuda":
        return choose_batch_size(config, lengths, max_new_tokens, num_beams, device)
    fit, mean = room(config, device, tuning, fp8) - common, sum(lengths) / len(lengths) - common
    whole, short = (int(fit / (mean + new)) for new in (max_new_tokens, min(max_new_tokens, tuning.ahead)))
    return max(1, min(tuning.most, len(lengths), max(whole, min(short, tuning.enough))))


def choose_drafts(device: torch.device, rows: int, tuning: Tuning = MEASURED) -> tuple[int, str]:
    """Most tokens of a draft that `auto` takes with so many records at a time, and why."""
    if device.type == "cuda":
        most = min(MOST_DRAFTS, tuning.at_once // rows - 1)
        if most < 1:
            return 0, f"{rows} records at a time keep the GPU busy"
        return most, f"a GPU computes {tuning.at_once} tokens in little more time than one"
    return 8, "a CPU computes several tokens in the time of one; with many records at a time, drafts are shorter"


def count_common(model, codec, prompts: Collection[list[int]], drafts: int = 0, tuning: Tuning = MEASURED) -> int:
    """How many tokens all prompts begin with, the last of each left out, if they are so many that they are kept once;
    else 0.

    On a card it takes the kernel of ops/decode_attention.py, with so many drafts too, and a model to which a prompt is
    its ids alone. A CPU would have to copy them in every step.
    """
    device = model.device
    if len(prompts) < 2 or not takes_more(model, codec) or (device.type != "cuda" and tuning.common is None):
        return 0
    alike = count_alike(min(prompts), max(prompts))  # those between begin as these two do
    count = min(alike, min(map(len, prompts)) - 1)
    if count < (COMMON if tuning.common is None else tuning.common):
        return 0
    if device.type == "cuda":
        if available.why_not("decode_attention", device, model.dtype):
            return 0
        from ops.decode_attention import serves  # Triton, which comes with torch where there are cards

        config = model.config.get_text_config()
        if not serves(config.num_attention_heads, *kept_shape(config)[1:], 1 + drafts):
            return 0
    return count


def room(config, device: torch.device, tuning: Tuning, fp8: bool = False) -> float:
    """Tokens whose keys and values the free memory of a card holds beside a pass; on a CPU any number."""
    if device.type != "cuda":
        return math.inf
    config, free = config.get_text_config(), free_bytes(device)
    free -= min((1 - SAFE) * free, tuning.spared)
    free -= tuning.pass_tokens * config.hidden_size * 16 * 2  # of a pass: 16 numbers a hidden unit
    return free / ((1 if fp8 else 2) * cached_numbers(config))  # of 16 bits, or 8
