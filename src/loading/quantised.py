"""Weights of 8 and 4 bits: one row of a table each; and products with them in the dtype of the inputs.

bitsandbytes' own product with 8 bits looks for outliers in all inputs of a pass, so that an answer depends on the
records beside it, and keeps every input of every layer until the backward pass, where gradient checkpointing cannot
free it (docs/log.md has the figures). The gradient of a frozen layer needs its weight alone, which is at hand. Its
product with 4 bits stays, but for a few inputs without gradients on a card, which its codes are read for directly.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import BitsAndBytesConfig

from common.errors import say
from ops import available

HALVES = (torch.bfloat16, torch.float16)


class _FrozenProduct(torch.autograd.Function):
    """inputs · weightᵀ, the weight being codes (int8) × scales (absolute maximum of each output row) / 127."""

    @staticmethod
    def forward(ctx, inputs, codes, scales):
        ctx.save_for_backward(codes, scales)
        return inputs @ _dequantise(codes, scales, inputs.dtype).T

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ _dequantise(*ctx.saved_tensors, gradient.dtype), None, None


def _has_kernels(module: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Those of ops/`module`.py, in Triton, which comes with torch where there are cards."""
    return device.type == "cuda" and dtype in HALVES and not available.why_not(module, device, dtype)


def _dequantise(codes, scales, dtype):
    if _has_kernels("int8_product", codes.device, dtype):
        from ops.int8_product import dequantise

        return dequantise(codes, scales, dtype)
    return dequantise_by_torch(codes, scales, dtype)


def dequantise_by_torch(codes, scales, dtype):
    """The weight (outs, width) as ops.int8_product.dequantise makes it, anywhere, in two passes."""
    scales = scales / torch.full_like(scales, 127)  # by a number, torch on a card multiplies with a rounded 1/127
    return codes.to(dtype, copy=True).mul_(scales.unsqueeze(1))


def _multiply(inputs, codes, scales):
    """inputs (…, width) · weightᵀ."""
    if not torch.is_grad_enabled() and _has_kernels("int8_product", inputs.device, inputs.dtype):
        from ops.int8_product import multiply, serves

        flat = inputs.reshape(-1, inputs.shape[-1])
        if serves(flat):
            return multiply(flat, codes, scales).view(*inputs.shape[:-1], -1)
    return _FrozenProduct.apply(inputs, codes, scales)


def _forward(layer, inputs):
    if layer.weight.SCB is not None:  # else they are there: DoRA of peft moves a weight about, without its scales
        layer.init_8bit_state()
    kind = inputs.device.type
    inputs = inputs.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype)
    with torch.autocast(kind, enabled=False):
        out = _multiply(inputs, layer.state.CB, layer.state.SCB)
    return out if layer.bias is None else out + layer.bias.to(out.dtype)


def use_plain_product(model) -> int:
    """Give the 8-bit layers of `model`, which must stay frozen, this product; how many there are.

    A card's kernels are tried for its dtype before anything depends on them.
    """
    from bitsandbytes.nn import Linear8bitLt  # imported only where --bits 8 asks for it

    return _give(model, Linear8bitLt, _forward, "int8_product", "8-bit products: torch's, slower")


def _give(model, kind, forward, module: str, otherwise: str) -> int:
    """Every layer of `kind` gets `forward(layer, inputs)`; how many there are. It says `otherwise` and why where a
    card cannot run the kernels of ops/`module`.py.
    """
    layers = [one for one in model.modules() if isinstance(one, kind)]
    for layer in layers:
        layer.forward = functools.partial(forward, layer)
    for device in {layer.weight.device for layer in layers}:
        halves = device.type == "cuda" and model.dtype in HALVES
        if halves and (reason := available.why_not(module, device, model.dtype)):
            say(f"{otherwise} ({reason})")
    return len(layers)


def weight_of(codes, state):
    """bitsandbytes' 4-bit codes and their QuantState as ops.nf4_product reads them (its `Weight`); None: it cannot, as
    where two rows share a scale.
    """
    from ops.nf4_product import BLOCK, COARSE, Nested, Weight

    more = state.state2
    if state.blocksize != BLOCK or (more and more.blocksize != COARSE) or len(state.shape) != 2:
        return None
    if state.shape[1] % BLOCK:
        return None
    nested = Nested(more.code, more.absmax, state.offset) if more else None
    return Weight(*state.shape, codes.detach().view(-1).view(torch.int32), state.code, state.absmax, nested)


def _forward_four(layer, inputs):
    """The product of a Linear4bit: bitsandbytes' own, or, without gradients and for a few inputs, from the codes."""
    dtype, state = layer.compute_dtype, getattr(layer.weight, "quant_state", None)
    if torch.is_grad_enabled() or state is None or not _has_kernels("nf4_product", inputs.device, dtype):
        return type(layer).forward(layer, inputs)
    from ops.nf4_product import multiply, serves

    flat, weight = inputs.reshape(-1, inputs.shape[-1]).to(dtype), weight_of(layer.weight, state)
    if weight is None or not serves(flat, weight):
        return type(layer).forward(layer, inputs)
    return multiply(flat, weight, layer.bias).view(*inputs.shape[:-1], -1).to(inputs.dtype)


def use_codes(model) -> int:
    """Let the 4-bit layers of `model` multiply few inputs straight from their codes on a card; how many there are."""
    from bitsandbytes.nn import Linear4bit  # imported only where --bits 4 asks for it

    return _give(model, Linear4bit, _forward_four, "nf4_product", "4-bit products: bitsandbytes', slower")


class Quantisation(NamedTuple):
    """How a base weight of so many bits is kept and multiplied."""

    bytes_a_weight: float | None  # with its scales; None: as the dtype says
    engines: tuple[str, ...]  # of decoding.engines.ENGINES that serve it
    config: Callable | None  # (dtype, modules that stay as they are, or None) -> what transformers loads it with
    use_product: Callable | None = None  # gives a loaded model another product than bitsandbytes' own


def _eight_bits(dtype: torch.dtype, skipped: list[str] | None) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)


def _four_bits(dtype: torch.dtype, skipped: list[str] | None) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


QUANTISATIONS = {  # by --bits
    16: Quantisation(None, ("batch", "fast", "vllm"), None),
    8: Quantisation(1.0, ("batch", "fast"), _eight_bits, use_plain_product),
    4: Quantisation(0.53, ("batch", "fast", "vllm"), _four_bits, use_codes),
}
