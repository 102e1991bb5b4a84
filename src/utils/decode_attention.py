"""Attention of one new token a record, on a card, where every head has keys of its own: the time it takes is that of
reading keys and values, which torch's fused attention, made for many queries, reads a quarter slower (docs/log.md).
"""

import torch
import triton
import triton.language as tl

TOKENS = 32  # read at a time


def attend(query, key, value, starts, seen, scale: float):
    """(records, heads, size) from as much, where record i sees seen[i] of the (tokens, heads, size) from starts[i] on.

    `size` is a power of 2.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    records, heads, size = query.shape
    strides = query.stride(0), query.stride(1)
    _attend[(heads, records)](
        query, key, value, out, starts, seen, scale, *strides, heads, size, TOKENS, num_warps=2, num_stages=3
    )
    return out


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Run the kernel once; it raises what keeps it from working."""
    one, span = torch.ones(1, 1, 16, dtype=dtype, device=device), torch.ones(2, dtype=torch.int32, device=device)
    attend(one, one, one, span - 1, span[:1], 1.0)


@triton.jit
def _attend(
    query, key, value, out, starts, seen, scale, record_stride, head_stride,
    heads: tl.constexpr, size: tl.constexpr, tokens: tl.constexpr,
):  # fmt: skip
    """One head of one record: the softmax is built up while keys and values pass by, each read once."""
    head, record = tl.program_id(0), tl.program_id(1)
    first, count = tl.load(starts + record).to(tl.int64), tl.load(seen + record)
    unit, token = tl.arange(0, size), tl.arange(0, tokens)
    asked = tl.load(query + record * record_stride + head * head_stride + unit).to(tl.float32) * scale
    highest, total, mean = -float("inf"), 0.0, tl.zeros([size], tl.float32)
    for begin in range(0, count, tokens):
        there = begin + token < count
        at = (((first + begin + token) * heads + head) * size)[:, None] + unit[None, :]
        keys = tl.load(key + at, mask=there[:, None], other=0.0).to(tl.float32)
        values = tl.load(value + at, mask=there[:, None], other=0.0).to(tl.float32)
        score = tl.where(there, tl.sum(keys * asked[None, :], 1), -float("inf"))
        higher = tl.maximum(highest, tl.max(score, 0))
        weight, shrink = tl.exp(score - higher), tl.exp(highest - higher)
        total = total * shrink + tl.sum(weight, 0)
        mean = mean * shrink + tl.sum(weight[:, None] * values, 0)
        highest = higher
    tl.store(out + (record * heads + head) * size + unit, (mean / total).to(out.dtype.element_ty))
