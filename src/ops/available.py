"""Kernels beyond torch's own: those of the package liger-kernel and this project's in Triton, and where they work."""

import functools
import importlib
import importlib.util
import logging

import torch

from common.decisions import Decision, decide
from common.errors import UserError, reason_of

# Only its layers: logits are computed at the answers alone, which is more than its fused losses would save.
LIGER = {"fused_linear_cross_entropy": False, "cross_entropy": False}


@functools.cache
def why_not(module: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels of ops/`module`.py cannot serve a card; None: they can. Its `try_out` runs each once.

    The first of all asks for a C compiler; any may need more shared memory than an older card has.
    """
    try:
        with torch.cuda.device(device):
            importlib.import_module(f"ops.{module}").try_out(device, dtype)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # not the kernels' fault, and not to be remembered
    except Exception as error:  # noqa: BLE001 - a missing compiler, header, package: torch's own kernels remain
        return reason_of(error)
    return None


def has_liger() -> bool:
    """Whether liger-kernel is there; it is told not to warn of other makers' kernels, which it looks for in vain."""
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
    return importlib.util.find_spec("liger_kernel") is not None


def choose_liger(asked: bool | None, device: torch.device, dtype: torch.dtype, model_type: str) -> Decision:
    """Whether training takes liger-kernel, said with its reason; `asked`: --use_liger_kernel, None: left out."""
    if asked is False or (asked is None and device.type != "cuda"):
        return Decision(False, "no GPU" if asked is None else "as asked")
    reason = _why_no_liger(device, dtype, model_type)
    if asked and reason:
        raise UserError(f"--use_liger_kernel: {reason}; drop it")
    return decide("liger-kernel", reason is None, reason or "it is installed")


def _why_no_liger(device: torch.device, dtype: torch.dtype, model_type: str) -> str | None:
    if device.type != "cuda":
        return "its kernels need a GPU"
    if not has_liger():
        return "it is not installed"
    if reason := why_not("decode_attention", device, dtype):
        return reason
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # imported only where Triton works

    return None if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN else f"it does not know model_type {model_type}"
