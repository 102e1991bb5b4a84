"""Rows rounded to 8-bit floats on a card, in Triton: read once, written once. torch would go over them five times."""

import torch
import triton
import triton.language as tl

MOST = 32768  # numbers of a row: a program holds all of them


def round_rows_on_card(inputs: torch.Tensor, kind: torch.dtype, factors: torch.Tensor | None, least: float):
    """See ops.fp8_product.round_rows; `least`: the smallest number that counts as a row's largest."""
    rows, width = inputs.shape
    codes = torch.empty(inputs.shape, dtype=kind, device=inputs.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=inputs.device)
    block = triton.next_power_of_2(width)
    if block > MOST:
        raise ValueError(f"a row of {width} numbers is too wide to be rounded to 8 bits")
    given = inputs if factors is None else factors
    sizes = width, torch.finfo(kind).max, least, factors is not None, block
    with torch.cuda.device(inputs.device):
        _round_kernel[(rows,)](inputs, given, codes, scales, *sizes, num_warps=8 if block > 2048 else 4)
    return codes, scales


@triton.jit
def _round_kernel(inputs, factors, codes, scales, width, largest, least, scaled: tl.constexpr, block: tl.constexpr):
    row, unit = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    there = unit < width
    values = tl.load(inputs + row * width + unit, mask=there, other=0.0).to(tl.float32)
    if scaled:
        values *= tl.load(factors + unit, mask=there, other=0.0)
    scale = tl.maximum(tl.max(tl.abs(values), 0), least) / largest
    rounded = tl.clamp(values / scale, -largest, largest)  # a quotient may be the largest number and a bit
    tl.store(codes + row * width + unit, rounded.to(codes.dtype.element_ty), mask=there)
    tl.store(scales + row, scale)
