"""Attention of one new token a record, or of a few, on a card: the time it takes is that of reading keys and values,
each of them once for all rows that see it, which torch's fused attention, made for many queries, does slower
(docs/log.md).
"""

import torch
import triton
import triton.language as tl

TOKENS = 32  # read at a time
ROWS = 16  # of the smallest product of matrices: the heads that share keys, the rest of them empty
MOST_ROWS = 64  # of the largest: so many numbers a row are kept in registers


def attend(query, key, value, starts, seen, scale: float, window: int | None = None, bias=None, common: int = 0):
    """(records * new, heads, size) from as much: the last `new` tokens of each record, in their order. Record i sees
    seen[i] of the (tokens, kept heads, size) from starts[i] on, each of its tokens those up to itself, of them the last
    `window` alone (None: all). But the first `common` of what each record sees are the first of all.

    `size` is a power of 2, 16 or more; `new` times the heads that share a kept one are MOST_ROWS at most. `bias`, added
    to the scores of one new token: None, or the contiguous tensors table (rows, heads), marks (tokens), apart (marks,
    marks) and near (2 far + 1). The row for a query and a key is that of apart for their marks or, where it is below 0,
    that of near for the key's place - the query's + far. With a bias nothing is common.
    """
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    tokens, heads, size = query.shape
    records, kept = len(seen), key.shape[1]
    new, share = tokens // records, heads // kept
    strides = query.stride(0), query.stride(1)
    if share == new == 1 and key.element_size() == 1 and bias is None:
        sizes, one = (kept, size, TOKENS, window or 0, common > 0), (query, key, value, out, starts, seen)
        _attend_alone[(kept, records)](*one, scale, *strides, common, *sizes, num_warps=1)
        return out
    rows = max(ROWS, triton.next_power_of_2(new * share))
    narrow = size <= 128
    more = {"num_warps": 2 if narrow and rows == ROWS else 4, "num_stages": 3 if narrow else 2}  # an older card's room
    table, marks, apart, near = (query,) * 4 if bias is None else bias
    kinds, far = (0, 0) if bias is None else (len(apart), len(near) // 2)
    sizes = kept, share, size, TOKENS, rows, window or 0, new, kinds, far, common > 0
    added = table, marks, apart, near
    _attend[(kept, records)](query, key, value, out, *added, starts, seen, scale, *strides, common, *sizes, **more)
    return out


def serves(heads: int, kept: int, size: int, new: int = 1) -> bool:
    """Whether the kernel knows these shapes."""
    return new * heads <= (ROWS if new == 1 else MOST_ROWS) * kept and size >= 16 and size & (size - 1) == 0


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Run the kernel once; it raises what keeps it from working."""
    one, span = torch.ones(1, 1, 16, dtype=dtype, device=device), torch.ones(2, dtype=torch.int32, device=device)
    attend(one, one, one, span - 1, span[:1], 1.0)
    marks = torch.zeros(1, dtype=torch.long, device=device)
    attend(one, one, one, span - 1, span[:1], 1.0, None, (one[0, :, :1], marks, marks[None] - 1, marks))


@triton.jit
def _attend(
    query, key, value, out, table, marks, apart, near, starts, seen, scale, record_stride, head_stride, common,
    kept: tl.constexpr, share: tl.constexpr, size: tl.constexpr, tokens: tl.constexpr, rows: tl.constexpr,
    window: tl.constexpr, new: tl.constexpr, kinds: tl.constexpr, far: tl.constexpr, split: tl.constexpr,
):  # fmt: skip
    """The heads of one record's new tokens that share a kept one: their softmax is built up while keys and values pass
    by. The heads of one token are rows one behind the other. `kinds`: of marks; 0: there is no bias. `split`: whether
    anything is common.
    """
    head, record = tl.program_id(0), tl.program_id(1)
    first, count = tl.load(starts + record).to(tl.int64), tl.load(seen + record)
    if kinds > 0:
        of_mine = apart + tl.load(marks + first + count - 1) * kinds
    unseen = 0
    if window > 0:
        unseen = tl.maximum(count - new + 1 - window, 0)  # by the first of the new tokens, and so by all
        first, count = first + unseen, count - unseen
    unit, token, row = tl.arange(0, size), tl.arange(0, tokens), tl.arange(0, rows)
    mine = (row < share * new)[:, None]
    heads = (head * share + row % share)[:, None]
    asked_by = (record * new + row // share)[:, None].to(tl.int64)
    limit = count - new + 1 + row // share  # of what each row sees
    asked = tl.load(query + asked_by * record_stride + heads * head_stride + unit[None, :], mask=mine, other=0.0)
    if key.dtype.element_ty.is_fp8():
        asked = asked.to(tl.float16)  # which cards make 8-bit floats in one instruction, bfloat16 they do not
    highest, total = tl.full([rows], -float("inf"), tl.float32), tl.zeros([rows], tl.float32)
    mean = tl.zeros([rows, size], tl.float32)
    for begin in range(0, count, tokens):
        there = begin + token < count
        place = first + begin + token
        if split:
            place = tl.where(unseen + begin + token < common, unseen + begin + token, place)
        at = ((place * kept + head) * size)[:, None] + unit[None, :]
        keys = tl.load(key + at, mask=there[:, None], other=0.0).to(asked.dtype)
        values = tl.load(value + at, mask=there[:, None], other=0.0).to(asked.dtype)
        score = tl.dot(asked, tl.trans(keys)) * scale
        if kinds > 0:
            by_marks = tl.load(of_mine + tl.load(marks + first + begin + token, mask=there, other=0))
            by_place = tl.load(near + far + tl.maximum(begin + token - (count - 1), -far), mask=there, other=0)
            chosen = tl.where(by_marks < 0, by_place, by_marks)
            added = table + chosen[None, :] * (kept * share) + heads
            score += tl.load(added, mask=mine & there[None, :], other=0.0).to(tl.float32)
        sees = there[None, :]
        if new > 1:
            sees = sees & ((begin + token)[None, :] < limit[:, None])
            if window > 0:
                sees = sees & ((begin + token)[None, :] >= limit[:, None] - window)
        score = tl.where(sees, score, -float("inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        shift = higher
        if new > 1 and window > 0:
            shift = tl.where(higher == -float("inf"), 0.0, higher)  # of a row that has seen nothing yet
        weight, shrink = tl.exp(score - shift[:, None]), tl.exp(highest - shift)
        total = total * shrink + tl.sum(weight, 1)
        mean = tl.dot(weight.to(values.dtype), values, mean * shrink[:, None])
        highest = higher
    at = asked_by * (kept * share * size) + heads * size + unit[None, :]
    tl.store(out + at, (mean / total[:, None]).to(out.dtype.element_ty), mask=mine)


@triton.jit
def _attend_alone(
    query, key, value, out, starts, seen, scale, record_stride, head_stride, common,
    kept: tl.constexpr, size: tl.constexpr, tokens: tl.constexpr, window: tl.constexpr, split: tl.constexpr,
):  # fmt: skip
    """As `_attend` for one new token, a head of which shares 8-bit keys with no other: without products of matrices,
    whose rows would be empty but for one, keys and values go straight to registers (docs/log.md).
    """
    head, record = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first, count = tl.load(starts + record).to(tl.int64), tl.load(seen + record)
    unseen = 0
    if window > 0:
        unseen = tl.maximum(count - window, 0)
        first, count = first + unseen, count - unseen
    unit, token = tl.arange(0, size), tl.arange(0, tokens)
    asked = tl.load(query + record * record_stride + head * head_stride + unit).to(tl.float32) * scale
    highest, total = -float("inf"), 0.0
    mean = tl.zeros([size], tl.float32)
    for begin in range(0, count, tokens):
        there = begin + token < count
        place = first + begin + token
        if split:
            place = tl.where(unseen + begin + token < common, unseen + begin + token, place)
        at = ((place * kept + head) * size)[:, None] + unit[None, :]
        keys = tl.load(key + at, mask=there[:, None], other=0.0).to(tl.float16).to(tl.float32)
        values = tl.load(value + at, mask=there[:, None], other=0.0).to(tl.float16).to(tl.float32)
        score = tl.where(there, tl.sum(keys * asked[None, :], 1), -float("inf"))
        higher = tl.maximum(highest, tl.max(score, 0))
        weight, shrink = tl.exp(score - higher), tl.exp(highest - higher)
        total = total * shrink + tl.sum(weight, 0)
        mean = mean * shrink + tl.sum(weight[:, None] * values, 0)
        highest = higher
    tl.store(out + (record * kept + head) * size + unit, (mean / total).to(out.dtype.element_ty))
