"""Products with 4-bit weights in bitsandbytes' layout on a card, in Triton: for few inputs, as in decoding, straight
from the codes, which are read once, half a byte each. bitsandbytes writes many weights to memory in 16 bits first, and
reads them again, but for one or two inputs, which its own kernels are the fastest for.

A card reads 4-bit weights faster than it can work on them, so instructions count. A code is looked up in its table of
16 numbers by permuting bytes: one instruction takes four bytes out of eight, as four codes say it. The table is kept in
float16, its upper and lower bytes apart, so that four codes take 8 of them. Loads from a table in memory would be one
a code, each with an address of 64 bits to be made, and a tree of choices 15 a code.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

BLOCK = 64  # weights in a row that share a scale; the width of a weight must be a multiple of it
COARSE = 256  # scales in a row that share a scale of their own
ADDED = 1024  # outputs that one program adds up


def _write_look_up() -> str:
    """PTX that makes of 8 codes ($8, two in each byte, the first in its upper half) their float32 numbers ($0 to $7).

    The table is in float16: the lower bytes of the numbers of codes 0 to 15 ($9 to $12), and the upper ones ($13 to
    $16). A byte permutation takes the bytes that four codes without their upper bit say out of 8, once for codes below
    8 and once for those above; a third one chooses by the upper bits.
    """
    lines = ["{ .reg .b32 code, above, low, high, l, u, pair; .reg .b16 first, second;"]
    lines += ["and.b32 code, $8, 0x77777777; shr.u32 above, $8, 1;"]
    lines += ["and.b32 above, above, 0x44444444; or.b32 above, above, 0x32103210;"]
    for half in (0, 4):
        for name, at in (("l", 9), ("u", 13)):
            lines += [f"prmt.b32 low, ${at}, ${at + 1}, code; prmt.b32 high, ${at + 2}, ${at + 3}, code;"]
            lines += [f"prmt.b32 {name}, low, high, above;"]
        for number, order in ((half, 0x5140), (half + 2, 0x7362)):
            lines += [f"prmt.b32 pair, l, u, {order:#x}; mov.b32 {{second, first}}, pair;"]
            lines += [f"cvt.f32.f16 ${number}, first; cvt.f32.f16 ${number + 1}, second;"]
        if half == 0:
            lines += ["shr.u32 code, code, 16; shr.u32 above, above, 16;"]
    return "\n".join([*lines, "}"])


LOOK_UP = tl.constexpr(_write_look_up())


class Nested(NamedTuple):
    """How the scales are quantised: scale = table[code] * scales[block of COARSE codes] + offset."""

    table: torch.Tensor  # (256; float32)
    scales: torch.Tensor  # (one for COARSE codes; float32)
    offset: torch.Tensor  # (one number; float32)


class Weight(NamedTuple):
    """A weight (outs, width), row after row: table[code] * scales[block of BLOCK codes]."""

    outs: int
    width: int
    codes: torch.Tensor  # (8 in an int32) two in each byte, from the lowest byte on, the upper half first
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
    16: Tile(16, 64, 64, 4, 3, 512),
    32: Tile(32, 64, 64, 4, 3, 512),
    64: Tile(64, 64, 64, 4, 3, 512),
    128: Tile(128, 64, 64, 4, 3, 256),
}
LEAST = 3  # for fewer, bitsandbytes' own product is faster
FEW = max(TILES)  # for many more, it is as well


def serves(inputs, weight: Weight) -> bool:
    """Whether `multiply` is for these inputs (count, width) and this weight: they are LEAST to FEW, and the card
    multiplies by its tensor cores, which Triton has from Ampere's generation on.
    """
    count, width = inputs.shape
    if not LEAST <= count <= FEW or width != weight.width:
        return False
    return torch.cuda.get_device_capability(inputs.device) >= (8, 0)


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Run each kernel once, for scales that are quantised; it raises what keeps it from working."""
    outs, width = 16, 16 * BLOCK
    codes = torch.zeros(outs * width // 8, dtype=torch.int32, device=device)
    scales = torch.zeros(outs * width // BLOCK, dtype=torch.uint8, device=device)
    numbers = torch.ones(COARSE, device=device)
    weight = Weight(outs, width, codes, numbers[:16], scales, Nested(numbers, numbers, numbers[0]))
    for count in TILES:
        inputs = torch.ones(count, width, dtype=dtype, device=device)
        if serves(inputs, weight):
            multiply(inputs, weight)


def multiply(inputs, weight: Weight, bias=None, tile: Tile | None = None):
    """(count, outs) = inputs (count, width; in 16 bits) that it `serves`, or fewer, · weightᵀ + bias (outs; None: 0).
    Weights are rounded to the dtype of the inputs, as bitsandbytes does it, but their table to float16 before, so that
    some differ in their last bit; sums are in 32 bits. `tile`: not that of TILES.
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


@triton.jit(do_not_specialize=["count", "some"])  # one kernel for all numbers of inputs
def _multiply_kernel(
    inputs, codes, table, scales, scale_table, coarse, offset, bias, out, count, outs, width, some,
    some_inputs: tl.constexpr, some_outs: tl.constexpr, some_blocks: tl.constexpr, even: tl.constexpr,
):  # fmt: skip
    """Neighbours in the first axis share the weight: all but the first find it in the cache. Those in the third each
    take `some` steps of the width. Codes are read two steps ahead of their product, and looked up one ahead: Triton
    sends for inputs early by itself, but not for scales, which are few bytes.
    """
    inner: tl.constexpr = some_blocks * 64
    row = tl.program_id(0) * some_inputs + tl.arange(0, some_inputs)
    column = tl.program_id(1) * some_outs + tl.arange(0, some_outs)
    unit = tl.arange(0, inner)
    asked = (row < count)[:, None]
    from_inputs = inputs + row[:, None] * width + unit[None, :]
    first = tl.program_id(2) * some
    last = min(first + some, tl.cdiv(width, inner))
    dtype: tl.constexpr = inputs.dtype.element_ty
    read, scale, rough = _read(codes, scales, coarse, column, outs, width // 64, first, some_blocks)
    l0, u0 = _split_numbers(table)
    l1, u1 = _split_numbers(table + 4)
    l2, u2 = _split_numbers(table + 8)
    l3, u3 = _split_numbers(table + 12)
    weights = _look_up(read, scale, rough, scale_table, offset, l0, l1, l2, l3, u0, u1, u2, u3, dtype)
    read, scale, rough = _read(codes, scales, coarse, column, outs, width // 64, first + 1, some_blocks)
    total = tl.zeros([some_inputs, some_outs], tl.float32)
    for step in range(first, last):
        there = asked if even else asked & (step * inner + unit < width)[None, :]
        values = tl.load(from_inputs + step * inner, mask=there, other=0.0)
        total = tl.dot(values, weights.T, total)
        weights = _look_up(read, scale, rough, scale_table, offset, l0, l1, l2, l3, u0, u1, u2, u3, dtype)
        read, scale, rough = _read(codes, scales, coarse, column, outs, width // 64, step + 2, some_blocks)
    known = column < outs
    if bias is not None:
        total += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)[None, :]
    at = out + (tl.program_id(2) * count + row[:, None]).to(tl.int64) * outs + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=asked & known[None, :])


@triton.jit
def _split_numbers(table):
    """The lower bytes of four numbers in float16, and their upper ones, in 32 bits each."""
    which = tl.arange(0, 4)
    bits = tl.load(table + which).to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
    return tl.sum((bits & 255) << which * 8), tl.sum((bits >> 8 & 255) << which * 8)


@triton.jit
def _read(codes, scales, coarse, column, outs, blocks, step, some_blocks: tl.constexpr):
    """What `_look_up` needs of one step: codes (outs, blocks, 8 words), scales and their scales (outs, blocks)."""
    block = step * some_blocks + tl.arange(0, some_blocks)
    there = (column < outs)[:, None] & (block < blocks)[None, :]
    at = column[:, None].to(tl.int64) * blocks + block[None, :]
    word = tl.arange(0, 8)[None, None, :]
    read = tl.load(codes + (at[:, :, None] * 8 + word), mask=there[:, :, None], other=0)
    scale = tl.load(scales + at, mask=there, other=0)
    rough = scale
    if coarse is not None:
        rough = tl.load(coarse + (at >> 8), mask=there, other=0.0)
    return read, scale, rough


@triton.jit
def _look_up(read, scale, rough, scale_table, offset, l0, l1, l2, l3, u0, u1, u2, u3, dtype: tl.constexpr):
    """The weights (outs, 64 · blocks)."""
    if scale_table is not None:
        scale = tl.load(scale_table + scale.to(tl.int32)) * rough + tl.load(offset)
    n0, n1, n2, n3, n4, n5, n6, n7 = tl.inline_asm_elementwise(
        LOOK_UP, "=f,=f,=f,=f,=f,=f,=f,=f,r,r,r,r,r,r,r,r,r", [read, l0, l1, l2, l3, u0, u1, u2, u3],
        (tl.float32,) * 8, is_pure=True, pack=1,
    )  # fmt: skip
    scale = scale[:, :, None]
    even = tl.join(_pair(n0 * scale, n4 * scale, dtype), _pair(n2 * scale, n6 * scale, dtype))
    odd = tl.join(_pair(n1 * scale, n5 * scale, dtype), _pair(n3 * scale, n7 * scale, dtype))
    weights = tl.join(even, odd)
    return weights.reshape(weights.shape[0], weights.shape[1] * 64)


@triton.jit
def _pair(one, other, dtype: tl.constexpr):
    return tl.join(one.to(dtype), other.to(dtype))


@triton.jit(do_not_specialize=["count", "parts"])
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
