"""Which numbers the weights are kept and multiplied in: a decision with its reason."""

from typing import NamedTuple

import torch

from utils.errors import UserError, say

FLAGS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


class Precision(NamedTuple):
    name: str  # of a torch dtype: float32, float16, bfloat16
    bits: int  # of a base weight: 16 (as the dtype says), 8 or 4

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.name)


def has_cuda(use_cpu: bool = False) -> bool:
    return torch.cuda.is_available() and not use_cpu


def asked_dtype(arguments) -> str | None:
    """The dtype that the flags of FLAGS name in a script's arguments, None when none is given."""
    given = [flag for flag in FLAGS if getattr(arguments, flag)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(f'--{flag}' for flag in given)} contradict each other; drop one of them")
    return FLAGS[given[0]] if given else None


def choose_dtype(asked: str | None, use_cpu: bool = False) -> str:
    """The asked dtype as far as the machine can do it, else what suits it; the decision is said with its reason."""
    if not has_cuda(use_cpu):
        name, why = "float32", "float16 needs a GPU" if asked == "float16" else "no GPU"
        if asked == "bfloat16":
            name, why = asked, "as asked"
    elif asked:
        name, why = asked, "as asked"
        if name == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError("bfloat16: this card has none (it needs Ampere or newer); use --fp16")
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        name, why = "bfloat16", "the card supports it"
    else:
        name, why = "float16", "the card has no bfloat16"
    say(f"dtype: {name} ({why})")
    return name


def choose_bits(bits: int, use_cpu: bool = False) -> int:
    """Bits of a base weight; quantised weights need a GPU, and without one the base stays as its dtype says."""
    if bits == 16:
        return 16
    if not has_cuda(use_cpu):
        say(f"weights: not quantised (--bits {bits} needs a GPU)")
        return 16
    say(f"weights: {bits} bits (--bits {bits}), products in the dtype above")
    return bits
