"""Weights in the order in which a CPU multiplies by them, made once instead of at every product."""

import functools

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer


def use_reordered(model) -> int:
    """Keep the weights of linear layers of `model`, which is to answer only, as oneDNN multiplies by them; how many.

    For bfloat16 on a CPU that multiplies it. The products are oneDNN's as before, to the bit, but torch would have
    each of them reorder the whole weight first, which takes longer than multiplying a few rows by it (docs/log.md).
    A weight that another part of the model has, too, as embeddings are the head's, stays beside it. A base with code
    of its own keeps its weights, which that code may read by itself.
    """
    if model.device.type != "cpu" or not _multiplies_bfloat16() or _has_own_code(model):
        return 0
    others, count = _read_by_others(model), 0
    for layer in list(model.modules()):
        if type(layer) is not torch.nn.Linear or id(layer) in others or layer.weight.dtype != torch.bfloat16:
            continue
        weight = layer.weight.data
        layer.forward = functools.partial(_multiply, torch.ops.mkldnn._reorder_linear_weight(weight), layer.bias)
        layer.weight = torch.nn.Parameter(weight.new_empty(0), requires_grad=False)  # its dtype may be asked for
        count += 1
    return count


def _multiplies_bfloat16() -> bool:
    """Whether oneDNN is there, with operations that torch's compiler has for it, and knows the CPU's products."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return there and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _has_own_code(model) -> bool:
    """Whether transformers has fetched the code of a part from the base's folder (--trust_remote_code)."""
    return any(type(part).__module__.startswith("transformers_modules.") for part in model.modules())


def _read_by_others(model) -> set[int]:
    """Layers within an adapter's, which reads weights itself; but for the base's layer in one of plain LoRA."""
    found = set()
    for tuner in model.modules():
        if isinstance(tuner, BaseTunerLayer):
            plain = isinstance(tuner, LoraLayer) and not tuner.lora_variant
            found |= {id(part) for part in tuner.modules() if not (plain and part is tuner.get_base_layer())}
    return found


def _multiply(weight, bias, inputs):
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
