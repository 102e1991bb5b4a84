"""Attention of one new token a record, on a card: the time it takes is that of reading keys and values, each of them
once for all heads that share it, which torch's fused attention, made for many queries, does slower (docs/log.md).
"""

import torch
import triton
import triton.language as tl

TOKENS = 32  # read at a time
ROWS = 16  # of the smallest product of matrices: the heads that share keys, the rest of them empty


def attend(query, key, value, starts, seen, scale: float, window: int | None = None, bias=None):
    """(records, heads, size) from as much, where record i sees seen[i] of the (tokens, kept heads, size) from starts[i]
    on, of them the last `window` alone (None: all); up to ROWS heads share a kept one.

    `size` is a power of 2, 16 or more. `bias`, added to the scores: None, or the contiguous tensors table (rows,
    heads), marks (tokens), apart (marks, marks) and near (2 far + 1). The row for a query and a key is that of apart
    for their marks or, where it is below 0, that of near for the key's place - the query's + far.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    records, heads, size = query.shape
    kept = key.shape[1]
    strides = query.stride(0), query.stride(1)
    more = {"num_warps": 2 if size <= 128 else 4, "num_stages": 3 if size <= 128 else 2}  # what an older card holds
    table, marks, apart, near = (query,) * 4 if bias is None else bias
    kinds, far = (0, 0) if bias is None else (len(apart), len(near) // 2)
    sizes = kept, heads // kept, size, TOKENS, ROWS, window or 0, kinds, far
    added = table, marks, apart, near
    _attend[(kept, records)](query, key, value, out, *added, starts, seen, scale, *strides, *sizes, **more)
    return out


def serves(heads: int, kept: int, size: int) -> bool:
    """Whether the kernel knows these shapes."""
    return heads <= ROWS * kept and size >= 16 and size & (size - 1) == 0


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Run the kernel once; it raises what keeps it from working."""
    one, span = torch.ones(1, 1, 16, dtype=dtype, device=device), torch.ones(2, dtype=torch.int32, device=device)
    attend(one, one, one, span - 1, span[:1], 1.0)
    marks = torch.zeros(1, dtype=torch.long, device=device)
    attend(one, one, one, span - 1, span[:1], 1.0, None, (one[0, :, :1], marks, marks[None] - 1, marks))


@triton.jit
def _attend(
    query, key, value, out, table, marks, apart, near, starts, seen, scale, record_stride, head_stride,
    kept: tl.constexpr, share: tl.constexpr, size: tl.constexpr, tokens: tl.constexpr, rows: tl.constexpr,
    window: tl.constexpr, kinds: tl.constexpr, far: tl.constexpr,
):  # fmt: skip
    """The heads of one record that share a kept one: their softmax is built up while keys and values pass by.

    `kinds`: of marks; 0: there is no bias.
    """
    head, record = tl.program_id(0), tl.program_id(1)
    first, count = tl.load(starts + record).to(tl.int64), tl.load(seen + record)
    if kinds > 0:
        of_mine = apart + tl.load(marks + first + count - 1) * kinds
    if window > 0:
        unseen = tl.maximum(count - window, 0)
        first, count = first + unseen, count - unseen
    unit, token, row = tl.arange(0, size), tl.arange(0, tokens), tl.arange(0, rows)
    mine = (row < share)[:, None]
    heads = (head * share + row)[:, None]
    asked = tl.load(query + record * record_stride + heads * head_stride + unit[None, :], mask=mine, other=0.0)
    highest, total = tl.full([rows], -float("inf"), tl.float32), tl.zeros([rows], tl.float32)
    mean = tl.zeros([rows, size], tl.float32)
    for begin in range(0, count, tokens):
        there = begin + token < count
        at = (((first + begin + token) * kept + head) * size)[:, None] + unit[None, :]
        keys = tl.load(key + at, mask=there[:, None], other=0.0)
        values = tl.load(value + at, mask=there[:, None], other=0.0)
        score = tl.dot(asked, tl.trans(keys)) * scale
        if kinds > 0:
            by_marks = tl.load(of_mine + tl.load(marks + first + begin + token, mask=there, other=0))
            by_place = tl.load(near + far + tl.maximum(begin + token - (count - 1), -far), mask=there, other=0)
            chosen = tl.where(by_marks < 0, by_place, by_marks)
            added = table + chosen[None, :] * (kept * share) + heads
            score += tl.load(added, mask=mine & there[None, :], other=0.0).to(tl.float32)
        score = tl.where(there[None, :], score, -float("inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight, shrink = tl.exp(score - higher[:, None]), tl.exp(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        mean = tl.dot(weight.to(values.dtype), values, mean * shrink[:, None])
        highest = higher
    at = (record * kept * share + heads) * size + unit[None, :]
    tl.store(out + at, (mean / total[:, None]).to(out.dtype.element_ty), mask=mine)
