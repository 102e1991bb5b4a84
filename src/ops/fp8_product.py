"""Products with frozen weights in 8-bit floats, for cards that multiply such numbers (Ada, Hopper and newer).

A weight is kept in e4m3 with a scale for each of its rows. The inputs of a product are rounded to e4m3 with a scale a
token, gradients, which spread wider, to e5m2; sums are in 32 bits. The recipe of two formats: Micikevicius et al., FP8
Formats for Deep Learning, arXiv 2209.05433; scales a row as in torch._scaled_mm, which multiplies.
"""

import weakref
from typing import NamedTuple

import torch

NARROW, WIDE = torch.float8_e4m3fn, torch.float8_e5m2  # of weights and inputs; of gradients
STEP = 16  # torch multiplies weights whose sides are multiples of it
LEAST = 1e-12  # of a row's largest number: a row of zeros stays one
NEEDED = (8, 9)  # the compute capability


class Weight(NamedTuple):
    """A frozen weight of a layer: codes (outs, width) × scales (outs, 1)."""

    codes: torch.Tensor
    scales: torch.Tensor  # float32
    turned: torch.Tensor | None  # codes as (width, outs), each row one behind the other: for gradients of inputs


def keep_weight(weight: torch.Tensor, trained_through: bool) -> Weight:
    """`weight` (outs, width) in 8 bits; `trained_through`: gradients will be asked for, which takes its codes twice."""
    codes, scales = round_rows(weight, NARROW)
    return Weight(codes, scales, codes.T.contiguous() if trained_through else None)


class Latest:
    """The inputs that were rounded last: layers that take the same tensor one after the other, as those of query, key
    and value do, round it once. Nothing may write into that tensor in between.
    """

    def __init__(self):
        self._inputs, self._rounded = None, None

    def round(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`inputs` (…, width) in e4m3: codes (tokens, width) and scales (tokens, 1)."""
        if self._inputs is None or self._inputs() is not inputs:
            self._rounded = None  # its memory first
            self._rounded = round_rows(inputs.detach().reshape(-1, inputs.shape[-1]).contiguous(), NARROW)
            self._inputs = weakref.ref(inputs)  # which is not kept alive, nor what autograd keeps for it
        return self._rounded


def multiply(inputs: torch.Tensor, weight: Weight, latest: Latest | None = None) -> torch.Tensor:
    """inputs (…, width) · weightᵀ -> (…, outs) in the inputs' numbers, bfloat16 on a card."""
    rounded = (latest or Latest()).round(inputs)
    if torch.is_grad_enabled():
        made = _Product.apply(inputs.reshape(-1, inputs.shape[-1]), *rounded, *weight)
    else:
        made = _scaled(*rounded, weight.codes, weight.scales, inputs.dtype)
    return made.view(*inputs.shape[:-1], -1)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, rows, own, codes, scales, turned):
        ctx.save_for_backward(scales, turned)
        return _scaled(rows, own, codes, scales, inputs.dtype)

    @staticmethod
    def backward(ctx, gradient):
        scales, turned = ctx.saved_tensors
        # The weight's scales lie along what is summed here, so they go into the gradient before it is rounded.
        rows, own = round_rows(gradient.contiguous(), WIDE, scales)
        ones = torch.ones(len(turned), 1, device=turned.device)
        return _scaled(rows, own, turned, ones, gradient.dtype), *[None] * 5


def _scaled(rows, own, codes, scales, dtype):
    """(rows × own) · (codes × scales)ᵀ, by the card's tensor cores; elsewhere the same numbers, slowly."""
    if rows.device.type == "cuda":
        return torch._scaled_mm(rows, codes.T, own, scales.T, out_dtype=dtype, use_fast_accum=True)
    return ((rows.float() @ codes.float().T) * own * scales.T).to(dtype)


def round_rows(inputs: torch.Tensor, kind: torch.dtype, factors: torch.Tensor | None = None):
    """`inputs` (rows, width), with `factors` (width, 1) multiplied column by column, in 8 bits: codes, and the scales
    (rows, 1; float32) that make its largest number in each row the largest of `kind`.
    """
    if inputs.device.type == "cuda":
        from ops.fp8_rounding import round_rows_on_card  # Triton, which comes with torch where there are cards

        return round_rows_on_card(inputs, kind, factors, LEAST)
    wide = inputs.float() if factors is None else inputs.float() * factors.T
    scales = wide.abs().amax(1, keepdim=True).clamp(min=LEAST) / torch.finfo(kind).max
    return (wide / scales).to(kind), scales


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Multiply once, there and back; it raises what keeps it from working."""
    weight = keep_weight(torch.ones(STEP, STEP, dtype=dtype, device=device), True)
    inputs = torch.ones(STEP, STEP, dtype=dtype, device=device, requires_grad=True)
    multiply(inputs, weight).sum().backward()
    if not inputs.grad.isfinite().all():
        raise FloatingPointError("a product in 8-bit floats is not finite")
