"""Products with 4-bit weights in bitsandbytes' layout on a card, in Triton: for few inputs, as in decoding, straight
from the codes, which are read once, half a byte each. bitsandbytes writes most weights to memory in 16 bits first, and
reads them again.

A code is looked up in its table of 16 numbers by a load: all 16 lie in one line of the first cache, so that one load
serves 32 codes. To choose among 16 values by comparing would take 15 instructions a code, and through shared memory
(tl.gather) the loads would be as many, with two barriers more.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

BLOCK = 64  # weights in a row that share a scale; the width of a weight must be a multiple of it
COARSE = 256  # scales in a row that share a scale of their own
ADDED = 1024  # outputs that one program adds up


class Nested(NamedTuple):
    """How the scales are quantised: scale = table[code] * scales[block of COARSE codes] + offset."""

    table: torch.Tensor  # (256; float32)
    scales: torch.Tensor  # (one for COARSE codes; float32)
    offset: torch.Tensor  # (one number; float32)


class Weight(NamedTuple):
    """A weight (outs, width), row after row: table[code] * scales[block of BLOCK codes]."""

    outs: int
    width: int
    codes: torch.Tensor  # two in a byte (uint8), the first in the upper half
    table: torch.Tensor  # (16; float32)
    scales: torch.Tensor  # (one for BLOCK codes; float32, or uint8 if `nested`)
    nested: Nested | None


class Tile(NamedTuple):
    """What one program multiplies. Its stages take at most 60 KiB, of the 99 that a program has on cards of 24 GB."""

    inputs: int
    outs: int
    inner: int  # read at a time; a multiple of BLOCK
    warps: int
    stages: int
    programs: int  # the width is split until there are about so many: looking up codes waits less with more at once


TILES = {  # for so many inputs and fewer; scripts/bench_8bit.py --bits 4 has their times
    16: Tile(16, 32, 128, 4, 4, 512),
    32: Tile(32, 32, 128, 4, 4, 512),
    64: Tile(64, 64, 64, 4, 4, 384),
    128: Tile(128, 64, 64, 4, 3, 256),
    256: Tile(128, 128, 64, 8, 3, 256),
}
FEW = max(TILES)  # for more, dequantising first is faster


def serves(inputs, weight: Weight) -> bool:
    """Whether `multiply` is for these inputs (count, width) and this weight: they are few, no scale is shared by two
    rows, and the card multiplies by its tensor cores, which Triton has from Ampere's generation on.
    """
    count, width = inputs.shape
    if not 0 < count <= FEW or width != weight.width or width % BLOCK:
        return False
    return torch.cuda.get_device_capability(inputs.device) >= (8, 0)


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Run each kernel once; it raises what keeps it from working."""
    outs, width = 16, 16 * BLOCK
    codes = torch.zeros(outs * width // 2, dtype=torch.uint8, device=device)
    numbers = torch.ones(COARSE, device=device)
    nested = Nested(numbers, numbers, numbers[0])
    weight = Weight(outs, width, codes, numbers[:16], torch.zeros(outs * width // BLOCK, device=device), None)
    for count in TILES:
        inputs = torch.ones(count, width, dtype=dtype, device=device)
        for one in (weight, weight._replace(scales=weight.scales.to(torch.uint8), nested=nested)):
            if serves(inputs, one):
                multiply(inputs, one)


def multiply(inputs, weight: Weight, bias=None, tile: Tile | None = None):
    """(count, outs) = inputs (count, width; in 16 bits) that it `serves` · weightᵀ + bias (outs; None: 0). Weights are
    rounded to the dtype of the inputs, as bitsandbytes does it; sums are in 32 bits. `tile`: not that of TILES.
    """
    count, outs, width = len(inputs), weight.outs, weight.width
    tile = tile or TILES[min(most for most in TILES if most >= count)]
    grid = triton.cdiv(count, tile.inputs), triton.cdiv(outs, tile.outs)
    steps = triton.cdiv(width, tile.inner)
    some = triton.cdiv(steps, max(1, min(round(tile.programs / (grid[0] * grid[1])), steps // 2)))
    parts = triton.cdiv(steps, some)
    out = torch.empty((count, outs), dtype=inputs.dtype, device=inputs.device)
    sums = out if parts == 1 else torch.empty((parts, count, outs), dtype=torch.float32, device=inputs.device)
    nested = weight.nested or (None, None, None)
    sizes = count, outs, width, some, tile.inputs, tile.outs, tile.inner // BLOCK, width % tile.inner == 0
    with torch.cuda.device(inputs.device):  # of a base on several cards each has its layers
        _multiply_kernel[(*grid, parts)](
            inputs.contiguous(), weight.codes, weight.table, weight.scales, *nested,
            None if parts > 1 else bias, sums, *sizes, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if parts > 1:
            _add_kernel[(count, triton.cdiv(outs, ADDED))](sums, bias, out, count, outs, parts, ADDED)
    return out


@triton.jit
def _multiply_kernel(
    inputs, codes, table, scales, scale_table, coarse, offset, bias, out, count, outs, width, some,
    some_inputs: tl.constexpr, some_outs: tl.constexpr, some_blocks: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """Neighbours in the first axis share the weight: all but the first find it in the cache. Those in the third each
    take `some` steps of the width. Weights are looked up a step ahead of their product and codes read two, because
    Triton lets no load of its own accord wait for another that it does not think worth it.
    """
    inner: tl.constexpr = some_blocks * 64
    row = tl.program_id(0) * some_inputs + tl.arange(0, some_inputs)
    column = tl.program_id(1) * some_outs + tl.arange(0, some_outs)
    unit = tl.arange(0, inner)
    asked = (row < count)[:, None]
    from_inputs = inputs + row[:, None] * width + unit[None, :]
    first = tl.program_id(2) * some
    last = min(first + some, tl.cdiv(width, inner))
    dtype = inputs.dtype.element_ty
    read, scale, rough = _read(codes, scales, coarse, column, outs, width // 64, first, some_blocks)
    weights = _look_up(read, scale, rough, table, scale_table, offset, dtype)
    read, scale, rough = _read(codes, scales, coarse, column, outs, width // 64, first + 1, some_blocks)
    total = tl.zeros([some_inputs, some_outs], tl.float32)
    for step in range(first, last):
        there = asked if even else asked & (step * inner + unit < width)[None, :]
        values = tl.load(from_inputs + step * inner, mask=there, other=0.0)
        total = tl.dot(values, weights.T, total)
        weights = _look_up(read, scale, rough, table, scale_table, offset, dtype)
        read, scale, rough = _read(codes, scales, coarse, column, outs, width // 64, step + 2, some_blocks)
    known = column < outs
    if bias is not None:
        total += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
    at = out + (tl.program_id(2) * count + row[:, None]).to(tl.int64) * outs + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=asked & known[None, :])


@triton.jit
def _read(codes, scales, coarse, column, outs, blocks, step, some_blocks: tl.constexpr):
    """What `_look_up` needs of one step: codes (outs, blocks, 32 bytes), scales and their scales (outs, blocks)."""
    block = step * some_blocks + tl.arange(0, some_blocks)
    there = (column < outs)[:, None] & (block < blocks)[None, :]
    at = column[:, None].to(tl.int64) * blocks + block[None, :]
    byte = tl.arange(0, 32)[None, None, :]
    read = tl.load(codes + (at[:, :, None] * 32 + byte), mask=there[:, :, None], other=0)
    scale = tl.load(scales + at, mask=there, other=0)
    rough = scale
    if coarse is not None:
        rough = tl.load(coarse + at // 256, mask=there, other=0.0)
    return read, scale, rough


@triton.jit
def _look_up(read, scale, rough, table, scale_table, offset, dtype: tl.constexpr):
    """The weights (outs, 64 · blocks)."""
    if scale_table is not None:
        scale = tl.load(scale_table + scale.to(tl.int32)) * rough + tl.load(offset)
    upper = tl.load(table + (read >> 4).to(tl.int32)) * scale[:, :, None]
    lower = tl.load(table + (read & 15).to(tl.int32)) * scale[:, :, None]
    both = tl.join(upper.to(dtype), lower.to(dtype))
    return both.reshape(both.shape[0], both.shape[1] * 64)


@triton.jit
def _add_kernel(sums, bias, out, count, outs, parts, block: tl.constexpr):
    """The sum over the parts, in their order, + bias."""
    row, column = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    there = column < outs
    total = tl.zeros([block], tl.float32)
    for part in range(parts):
        at = (part * count + row).to(tl.int64) * outs + column
        total += tl.load(sums + at, mask=there, other=0.0)
    if bias is not None:
        total += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * outs + column, total.to(out.dtype.element_ty), mask=there)
