"""Products with 8-bit weights on a card, in Triton: for few inputs, as in decoding, straight from the codes, which are
read once, a byte each; for many, dequantised first in one pass. torch would move 7 bytes a weight to dequantise it, and
2 more to use it (docs/log.md has the times).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

INNER = 128  # the width of a weight must be a multiple of it
BLOCK = 4096  # codes dequantised by one program


class Tile(NamedTuple):
    """What one program multiplies. Its stages take at most 60 KiB, of the 99 that a program has on cards of 24 GB."""

    inputs: int
    outs: int
    inner: int  # read at a time; divides INNER
    warps: int
    stages: int


TILES = {  # the fastest for so many inputs and fewer, by scripts/bench_8bit.py on an H100
    16: Tile(16, 32, 128, 4, 5),
    32: Tile(32, 32, 128, 4, 5),
    128: Tile(64, 32, 128, 4, 3),
    256: Tile(128, 64, 64, 4, 3),
}
FEW = max(TILES)  # for more, dequantising first is faster


def serves(inputs) -> bool:
    """Whether `multiply` is for these inputs (count, width): they are few, read in whole steps, and the card multiplies
    codes by its tensor cores, which Triton has from Ampere's generation on.
    """
    count, width = inputs.shape
    return 0 < count <= FEW and width % INNER == 0 and torch.cuda.get_device_capability(inputs.device) >= (8, 0)


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Run each kernel once; it raises what keeps it from working."""
    codes = torch.ones(16, INNER, dtype=torch.int8, device=device)
    dequantise(codes, codes[:, 0].float(), dtype)
    for count in TILES:
        inputs = torch.ones(count, INNER, dtype=dtype, device=device)
        if serves(inputs):
            multiply(inputs, codes, codes[:, 0].float())


def multiply(inputs, codes, scales):
    """(count, outs) = inputs (count, width; in 16 bits) that it `serves` · weightᵀ; the weight: codes (outs, width;
    int8) × scales (outs; float32) / 127. Sums are in 32 bits.
    """
    (count, width), outs = inputs.shape, len(codes)
    tile = TILES[min(most for most in TILES if most >= count)]
    out = torch.empty((count, outs), dtype=inputs.dtype, device=inputs.device)
    grid = triton.cdiv(count, tile.inputs), triton.cdiv(outs, tile.outs)
    sizes = count, outs, width, tile.inputs, tile.outs, tile.inner
    with torch.cuda.device(inputs.device):  # of a base on several cards each has its layers
        _multiply_kernel[grid](
            inputs.contiguous(), codes, scales, out, *sizes, num_warps=tile.warps, num_stages=tile.stages
        )
    return out


@triton.jit
def _multiply_kernel(
    inputs, codes, scales, out, count, outs, width,
    some_inputs: tl.constexpr, some_outs: tl.constexpr, some_inner: tl.constexpr,
):  # fmt: skip
    """Neighbours in the first axis share the weight: all but the first find it in the cache."""
    row = tl.program_id(0) * some_inputs + tl.arange(0, some_inputs)
    column = tl.program_id(1) * some_outs + tl.arange(0, some_outs)
    unit = tl.arange(0, some_inner)
    asked, there = (row < count)[:, None], (column < outs)[:, None]
    from_inputs = inputs + row[:, None] * width + unit[None, :]
    from_codes = codes + column[:, None].to(tl.int64) * width + unit[None, :]
    total = tl.zeros([some_inputs, some_outs], tl.float32)
    for begin in range(0, width, some_inner):
        values = tl.load(from_inputs + begin, mask=asked, other=0.0)
        weights = tl.load(from_codes + begin, mask=there, other=0).to(values.dtype)  # exact: at most 127
        total = tl.dot(values, weights.T, total)
    total *= tl.load(scales + column, mask=column < outs, other=0.0)[None, :] / 127
    at = out + row[:, None].to(tl.int64) * outs + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=asked & (column < outs)[None, :])


def dequantise(codes, scales, dtype):
    """The weight (outs, width): codes (outs, width; int8) × scales (outs; float32) / 127."""
    outs, width = codes.shape
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    with torch.cuda.device(codes.device):
        _dequantise_kernel[(outs, triton.cdiv(width, BLOCK))](codes, scales, weight, width, BLOCK)
    return weight


@triton.jit
def _dequantise_kernel(codes, scales, weight, width, block: tl.constexpr):
    out, unit = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    at, there = out.to(tl.int64) * width + unit, unit < width
    values = tl.load(codes + at, mask=there, other=0).to(tl.float32) * tl.div_rn(tl.load(scales + out), 127.0)
    tl.store(weight + at, values.to(weight.dtype.element_ty), mask=there)
