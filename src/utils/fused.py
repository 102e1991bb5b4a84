"""Kernels beyond torch's own: those of the package liger-kernel, and whether Triton, which they need, works here."""

import functools
import importlib.util
import logging

import torch

from utils.errors import say
from utils.generating import reason_of

# Only its layers: logits are computed at the answers alone, which is more than its fused losses would save.
KERNELS = {"fused_linear_cross_entropy": False, "cross_entropy": False}


def installed() -> bool:
    """Whether liger-kernel is there; it is told not to warn of other makers' kernels, which it looks for in vain."""
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
    return importlib.util.find_spec("liger_kernel") is not None


def choose_for_training(asked: bool | None, device: torch.device) -> bool:
    """Whether training takes liger-kernel's, said with its reason; `asked`: --use_liger_kernel, None: left out."""
    if device.type != "cuda" or asked is not None:
        return bool(asked)
    reason = why_no_triton(device) if installed() else "liger-kernel is not installed"
    say(f"kernels: torch's ({reason})" if reason else "kernels: liger-kernel's (it is installed)")
    return reason is None


@functools.cache
def why_no_triton(device: torch.device) -> str | None:
    """Why kernels in Triton cannot be made for a card (the first asks for a C compiler); None: they can."""
    try:
        from utils.decode_attention import attend

        with torch.cuda.device(device):
            one = torch.ones(1, 1, 16, dtype=torch.float16, device=device)
            span = torch.ones(2, dtype=torch.int32, device=device)
            attend(one, one, one, span - 1, span[:1], 1.0)
    except Exception as error:  # noqa: BLE001 - a missing compiler, header, package: torch's own kernels remain
        return reason_of(error)
    return None
