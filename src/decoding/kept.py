"""Keys and values of many records, one behind the other in one tensor a layer, and the attention that reads them."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from loading.shape import kept_shape
from ops import available

NAME = "kept"  # of the attention, among those of transformers
FEW = 16  # tokens of a record in a pass, as drafts are, on a CPU


class Spans(NamedTuple):
    """What the tokens of a pass see: those of record i, queries[i] to queries[i + 1], see the `seen[i]` kept ones from
    keys[i] on, their own the last of them. All int32; `keys`, too, has one number more than there are records.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    seen: torch.Tensor
    most: int  # tokens of one record in the pass


class Kept:
    """Keys and values of `count` tokens, one behind the other: what a model takes for its cache."""

    def __init__(self, model, count: int):
        layers, heads, per_head = kept_shape(model.config.get_text_config())
        self.device = model.device
        shape, like = (count, heads, per_head), {"device": self.device, "dtype": model.dtype}
        self.layers = [(torch.zeros(shape, **like), torch.zeros(shape, **like)) for _ in range(layers)]
        self.at = None  # where those of the pass's tokens go

    def update(self, key, value, layer: int, *_, **__):
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            _wide(kept).index_copy_(0, self.at, _wide(new[0].transpose(0, 1).to(kept.dtype)))
        return tuple(kept.transpose(0, 1)[None] for kept in self.layers[layer])

    def copy(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """What stands at `sources` also to `targets`, in all layers; it is read before anything is written."""
        for layer in self.layers:
            for kept in layer:
                _wide(kept)[targets] = _wide(kept)[sources]

    def get_seq_length(self, *_) -> int:
        return 0


def _wide(numbers: torch.Tensor) -> torch.Tensor:
    """The same in pieces of eight bytes, if they are whole ones: torch copies by index number by number."""
    return numbers.view(torch.int64) if numbers.shape[-1] * numbers.itemsize % 8 == 0 else numbers


def use_kept_attention(model) -> str:
    """Give `model` the attention that reads what is kept; the name of the one it had."""
    usual = model.config._attn_implementation
    AttentionInterface.register(NAME, _attention)
    model.set_attn_implementation(NAME)
    return usual


def _attention(module, query, key, value, mask, scaling=None, sliding_window=None, spans: Spans | None = None, **more):
    """transformers' contract: (1, heads, tokens, size) in, (1, tokens, heads, size) and no weights out."""
    parts = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if query.device.type != "cuda":
        return _attend_each(*parts, spans, scaling, sliding_window)[None], None
    alike = query.shape[2] == len(spans.seen) * spans.most  # all records have as many tokens in the pass
    if alike and not available.why_not("decode_attention", query.device, query.dtype):
        from ops.decode_attention import attend, serves  # Triton, which comes with torch where there are cards

        if serves(query.shape[1], key.shape[1], query.shape[-1], spans.most):
            return attend(*parts, spans.keys, spans.seen, scaling, sliding_window)[None], None
    bounds = spans.queries, spans.keys, spans.most, key.shape[2]
    seen = {"scale": scaling, "seqused_k": spans.seen, "window_size_left": sliding_window and sliding_window - 1}
    return torch.ops.aten._flash_attention_forward(*parts, *bounds, 0.0, True, False, **seen)[0][None], None


def _attend_each(query, key, value, spans: Spans, scale: float | None, window: int | None):
    """On a CPU: one record after the other. `window`: tokens that each one sees, itself included; None: all."""
    out, first = torch.empty_like(query), 0
    bounds = (part.tolist() for part in (spans.queries[1:], spans.keys[:-1], spans.seen))
    for last, start, seen in zip(*bounds, strict=True):
        rows, end = last - first, start + seen
        begin = start if window is None else max(start, end - rows - window + 1)  # none of them sees those before
        parts = query[first:last], key[begin:end], value[begin:end]
        attend = _attend_once if rows == 1 else _attend_few if rows <= FEW else _attend_many
        out[first:last] = attend(*parts, scale, window)
        first = last
    return out


def _attend_once(query, key, value, scale: float | None, window: int | None):
    """A record's one new token: heads that share keys are rows of one product, and a row alone stands twice, for in 16
    bits torch multiplies several rows many times faster than one (docs/log.md).
    """
    kept, size = key.shape[1:]
    rows = query.view(kept, -1, size)
    share = rows.shape[1]
    rows = rows if share > 1 else rows.expand(-1, 2, -1)
    made = scaled_dot_product_attention(rows[None], key.transpose(0, 1)[None], value.transpose(0, 1)[None], scale=scale)
    return made[0, :, :share].reshape(query.shape)


def _attend_few(query, key, value, scale: float | None, window: int | None):
    """A record's newest token and drafts behind it: all of them, with all heads that share keys, are rows of one
    product, each with what it sees.
    """
    count, (kept, size) = len(query), key.shape[1:]
    rows = query.view(count, kept, -1, size).transpose(0, 1).reshape(1, kept, -1, size)
    mask = _mask_few(count, len(key), query.shape[1] // kept, window, query.dtype)
    parts = (part.transpose(0, 1)[None] for part in (key, value))
    made = scaled_dot_product_attention(rows, *parts, attn_mask=mask, scale=scale)
    return made.view(kept, count, -1, size).transpose(0, 1).reshape(query.shape)


@lru_cache(maxsize=256)  # the same in all layers of a pass
def _mask_few(count: int, seen: int, share: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores of the last `count` of `seen` tokens, `share` heads of each: (count * share, seen)"""
    there = torch.ones(count, seen, dtype=torch.bool).tril(seen - count)
    there = there if window is None else there.triu(seen - count - window + 1)
    return torch.zeros(count, seen, dtype=dtype).masked_fill(~there, -torch.inf).repeat_interleave(share, 0)


def _attend_many(query, key, value, scale: float | None, window: int | None):
    """The last tokens of a record, which see those before them."""
    rows, seen = len(query), len(key)
    windowed, mask = window is not None and window < seen, None
    if rows < seen or windowed:
        mask = torch.ones(rows, seen, dtype=torch.bool).tril(seen - rows)
        mask = mask.triu(seen - rows - window + 1) if windowed else mask
    parts = (part.transpose(0, 1)[None] for part in (query, key, value))
    causal = {"attn_mask": mask, "is_causal": mask is None}  # its own mask is of a square alone
    return scaled_dot_product_attention(*parts, **causal, scale=scale, enable_gqa=True)[0].transpose(0, 1)
