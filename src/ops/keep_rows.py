"""Keys and values of a pass written to where they are kept, on a card: in one reading and writing of both, where torch
would take up to six.
"""

import torch
import triton
import triton.language as tl


def keep_rows(key, value, kept_key, kept_value, at) -> None:
    """Write key and value, (tokens, heads, size) of any strides, to the rows `at` (tokens) of what is kept, contiguous
    tensors (kept tokens, heads, size), in its numbers; those beyond the largest 8-bit float become that one.
    """
    key, value = (part if part.stride(2) == 1 else part.contiguous() for part in (key, value))
    tokens, heads, size = key.shape
    narrow = kept_key.element_size() == 1
    largest = torch.finfo(kept_key.dtype).max if narrow else 0.0
    width = triton.next_power_of_2(heads * size)
    strides = *key.stride()[:2], *value.stride()[:2]
    sizes = heads, size, narrow, width
    _keep[(tokens, 2)](
        key, value, kept_key, kept_value, at, largest, *strides, *sizes, num_warps=max(1, min(8, width // 512))
    )


def try_out(device: torch.device, dtype: torch.dtype) -> None:
    """Run the kernel once; it raises what keeps it from working."""
    one = torch.ones(1, 1, 16, dtype=dtype, device=device)
    keep_rows(one, one, one.clone(), one.clone(), torch.zeros(1, dtype=torch.long, device=device))


@triton.jit
def _keep(
    key, value, kept_key, kept_value, at, largest, key_token, key_head, value_token, value_head,
    heads: tl.constexpr, size: tl.constexpr, narrow: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    token, unit = tl.program_id(0).to(tl.int64), tl.arange(0, width)
    there = unit < heads * size
    head, within = unit // size, unit % size
    target = tl.load(at + token).to(tl.int64) * (heads * size) + unit
    if tl.program_id(1) == 0:
        new = tl.load(key + token * key_token + head * key_head + within, mask=there)
        if narrow:
            new = tl.clamp(new.to(tl.float32), -largest, largest, tl.PropagateNan.ALL)
        tl.store(kept_key + target, new.to(kept_key.dtype.element_ty), mask=there)
    else:
        new = tl.load(value + token * value_token + head * value_head + within, mask=there)
        if narrow:
            new = tl.clamp(new.to(tl.float32), -largest, largest, tl.PropagateNan.ALL)
        tl.store(kept_value + target, new.to(kept_value.dtype.element_ty), mask=there)
