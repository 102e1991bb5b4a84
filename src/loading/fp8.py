"""A base whose frozen products run in 8-bit floats (--fp8)."""

import functools

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from checkpoints.adapters import read_adapter_config
from common.decisions import Decision, decide
from common.errors import UserError
from loading.precision import Precision
from ops import available
from ops.fp8_product import NEEDED, STEP, Latest, Weight, keep_weight, multiply

PLAIN = Decision(False, "not asked for")


def choose_fp8(asked: bool, precision: Precision, device: torch.device) -> Decision:
    """Whether frozen products run in 8-bit floats, said with its reason; UserError where they were asked for and
    cannot.
    """
    if not asked:
        return PLAIN
    if precision.bits != 16:
        raise UserError(f"--fp8 and --bits {precision.bits} contradict each other; drop one of them")
    if device.type != "cuda":
        raise UserError("--fp8: there is no GPU, and a CPU has no products of 8-bit floats; drop it")
    if torch.cuda.get_device_capability(device) < NEEDED:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"--fp8: {name} has no products of 8-bit floats (Ada, Hopper and newer ones have); drop it")
    if precision.dtype != torch.bfloat16:
        raise UserError(f"--fp8: the other numbers are bfloat16 then, not {precision.name}; drop --fp16 or --fp32")
    if reason := available.why_not("fp8_product", device, precision.dtype):
        raise UserError(f"--fp8: its products do not run here ({reason}); drop it")
    return decide("fp8", True, "as asked: frozen weights and what they are multiplied with have 8 bits")


def check_fp8_adapter(folder, merge: bool) -> None:
    """UserError for an adapter that multiplies with the base's weights itself, unless it is merged."""
    settings = read_adapter_config(folder)
    if not merge and (settings["peft_type"] != "LORA" or settings.get("use_dora")):
        kind = "DoRA" if settings.get("use_dora") else settings["peft_type"]
        raise UserError(f"--fp8: {folder} is of kind {kind}, which reads the base's weights; add --merge_lora")


def use_fp8(model, trained_through: bool = False) -> int:
    """Keep the frozen weights of the linear layers of `model` in 8-bit floats and multiply so; how many layers.

    The head stays as it is, and so do an adapter's layers, and those whose sides are no multiples of 16.
    `trained_through`: gradients will go through them. UserError when there is none.
    """
    head = model.get_output_embeddings()
    own = {id(part) for part in (head.modules() if head is not None else ())}  # a trained copy of it among them
    for tuner in model.modules():
        if isinstance(tuner, BaseTunerLayer):
            own |= {id(part) for part in tuner.modules() if part is not tuner.get_base_layer()}
    count, latest = 0, Latest()
    for layer in model.modules():
        if type(layer) is not torch.nn.Linear or id(layer) in own or layer.weight.requires_grad:
            continue
        if any(side % STEP for side in layer.weight.shape):
            continue
        weight = keep_weight(layer.weight.data, trained_through)
        layer.weight = torch.nn.Parameter(weight.codes, requires_grad=False)
        layer.forward = functools.partial(_forward, layer, weight, latest)
        count += 1
    if not count:
        raise UserError(f"--fp8: {type(model).__name__} has no linear layers that it could serve; drop it")
    return count


def _forward(layer, weight: Weight, latest: Latest, inputs):
    kind = inputs.device.type
    inputs = inputs.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype)
    out = multiply(inputs, weight, latest)
    return out if layer.bias is None else out + layer.bias.to(out.dtype)
