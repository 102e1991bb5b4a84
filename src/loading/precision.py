"""Which numbers the weights are kept and multiplied in: a decision with its reason."""

import importlib.util
from typing import NamedTuple

import torch

from common.decisions import Decision, decide
from common.errors import UserError, say
from common.machine import has_cuda

FLAGS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


class Precision(NamedTuple):
    name: str  # of a torch dtype: float32, float16, bfloat16
    bits: int  # of a base weight: 16 (as the dtype says), 8 or 4

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.name)


def asked_dtype(arguments) -> str | None:
    """The dtype that the flags of FLAGS name in a script's arguments, None when none is given."""
    given = [flag for flag in FLAGS if getattr(arguments, flag)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(f'--{flag}' for flag in given)} contradict each other; drop one of them")
    return FLAGS[given[0]] if given else None


def choose_dtype(asked: str | None, use_cpu: bool = False, asked_by: str = "as asked") -> Decision:
    """The asked dtype as far as the machine can do it, else what suits it; the decision is said with its reason."""
    if not has_cuda(use_cpu):
        name, why = (asked, asked_by) if asked else ("float32", "no GPU")
        if asked == "float16":
            name, why = "float32", "float16 needs a GPU"
    elif asked:
        name, why = asked, asked_by
        if name == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError("bfloat16: this GPU has none (it needs Ampere or newer); use --fp16")
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        name, why = "bfloat16", "the GPU supports it"
    else:
        name, why = "float16", "the GPU has no bfloat16"
    return decide("dtype", name, why)


def choose_bits(bits: int, use_cpu: bool = False) -> Decision:
    """Bits of a base weight. bitsandbytes quantises it; a CPU without the package leaves it as its dtype says."""
    if bits == 16:
        return Decision(16, "as the dtype says")
    if importlib.util.find_spec("bitsandbytes") is None:
        if has_cuda(use_cpu):
            raise UserError(f"--bits {bits} needs bitsandbytes: pip install -r requirements.txt")
        why = f"--bits {bits} needs bitsandbytes: pip install -r requirements.txt"
        return decide("weights", 16, why, "not quantised")
    where = "products in the dtype above" if has_cuda(use_cpu) else "on a CPU this saves memory, not time"
    say(f"weights: {bits} bits (--bits {bits}), {where}")
    return Decision(bits, f"--bits {bits}")
