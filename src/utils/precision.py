"""Which numbers the weights are kept and multiplied in: a decision with its reason."""

from typing import NamedTuple

import torch

from utils.errors import UserError, say


class Precision(NamedTuple):
    name: str  # of a torch dtype: float32, float16, bfloat16
    bits: int  # of a base weight: 16 (as the dtype says), 8 or 4

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.name)


def has_cuda(use_cpu: bool = False) -> bool:
    return torch.cuda.is_available() and not use_cpu


def choose_precision(fp16: bool, bf16: bool, bits: int, use_cpu: bool = False) -> Precision:
    """What the flags ask for, as far as the machine can do it; every deviation is said in one line."""
    if fp16 and bf16:
        raise UserError("--fp16 and --bf16 contradict each other; drop one of them")
    if not has_cuda(use_cpu):
        if bits != 16:
            say(f"weights: not quantised (--bits {bits} needs a GPU)")
        if fp16:
            say("dtype: float32 (--fp16 needs a GPU)")
        else:
            say("dtype: " + ("bfloat16 (--bf16)" if bf16 else "float32 (no GPU)"))
        return Precision("bfloat16" if bf16 else "float32", 16)
    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    if bf16 and not supported:
        raise UserError("--bf16: this card has no bfloat16 (it needs Ampere or newer); use --fp16")
    name = "float16" if fp16 else "bfloat16" if bf16 or supported else "float16"
    why = "--fp16" if fp16 else "--bf16" if bf16 else f"the card {'supports it' if supported else 'has no bfloat16'}"
    say(f"dtype: {name} ({why})" + (f"; base weights in {bits} bits" if bits != 16 else ""))
    return Precision(name, bits)
