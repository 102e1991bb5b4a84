"""Keys and values of many records, one behind the other in one tensor a layer, and the attention that reads them."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from loading.shape import kept_shape
from ops import available
from ops.fp8_product import NARROW

NAME = "kept"  # of the attention, among those of transformers
# Bytes: keys and values of a record in a layer that are sooner copied than asked for apart, on a CPU; a quarter of it
# where more than half of what is copied is padding.
COPIED = 2**19
MOST = torch.finfo(NARROW).max
FEW = 16  # tokens of a record in a pass, as drafts are, on a CPU


class Spans(NamedTuple):
    """What the tokens of a pass see: those of record i, queries[i] to queries[i + 1], see the `seen[i]` kept ones from
    keys[i] on, their own the last of them. All int32; `keys`, too, has one number more than there are records.

    The first `common` of what each sees stand at the beginning of all that is kept, and not from keys[i] on.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    seen: torch.Tensor
    most: int  # tokens of one record in the pass
    front: int = 0  # tokens of the pass in front of all these
    # of keys that torch's fused attention cannot read, in 8 bits or in two pieces: where all that is seen stands, in
    # the order of records, and its bounds there; it is copied for the pass
    copied: tuple[torch.Tensor, torch.Tensor] | None = None
    whole: "Spans | None" = None  # about those in front: each sees all that its record has there, those behind it too
    common: int = 0
    padded: "Padded | None" = None  # on a CPU, where the pass's records are few tokens each, and better asked at once


class Padded(NamedTuple):
    """Records of a pass as one tensor: of each as many tokens and as many keys as any has, those beyond unseen."""

    tokens: torch.Tensor  # (records * most): the number of each in the pass
    back: torch.Tensor  # (tokens of the pass): where each stands among these
    keys: torch.Tensor  # (records * longest): where they stand in what is kept
    longest: int
    mask: torch.Tensor  # added to the scores: (records, heads kept or 1, most * heads that share keys, longest)


class Bias(NamedTuple):
    """What is added to the score of a query and a key of one record: a row of a table with one number a head.

    Tokens have marks. Of two with the same one, the distance chooses the row, of others their marks do.
    """

    table: torch.Tensor  # (rows, heads)
    marks: torch.Tensor  # of all kept tokens
    apart: torch.Tensor  # (marks, marks): the row for a query's mark and a key's, -1 where they are the same
    near: torch.Tensor  # (2 far + 1): the row for a key's place - the query's, at most `far` apart, + far


class Kept:
    """Keys and values of `count` tokens, one behind the other: what a model takes for its cache. Behind them, to be
    copied, stand those `learnt` of each layer, (tokens, heads, size), if there are any.

    transformers' models read them by the attention NAME; this project's own ask `attend`. `fp8`: in 8-bit floats, as
    they are, without a scale: normalised layers keep them far below the largest of these.
    """

    def __init__(self, model, count: int, learnt: list = (), fp8: bool = False):
        config = model.config.get_text_config()
        layers, heads, per_head = kept_shape(config)
        self.device, self.share = model.device, config.num_attention_heads // heads
        self.learnt = torch.arange(count, count + (len(learnt[0][0]) if learnt else 0), device=model.device)
        shape, like = (
            (count + len(self.learnt), heads, per_head),
            {"device": self.device, "dtype": NARROW if fp8 else model.dtype},
        )
        self.fp8, self.dtype = fp8, model.dtype
        self.layers = [(torch.zeros(shape, **like), torch.zeros(shape, **like)) for _ in range(layers)]
        for both, own in zip(self.layers, learnt, strict=False):
            for kept, numbers in zip(both, own, strict=True):
                kept[count:] = numbers
        self.marks = torch.zeros(count, dtype=torch.long, device=self.device)  # for a model whose scores have a Bias
        self.begin(None, None)

    def begin(self, at, spans: Spans | None) -> None:
        """A new pass: where keys and values of its tokens go, and what these see."""
        self.at, self.spans, self._records = at, spans, {}

    def attend(self, query, key, value, layer: int, bias: tuple | None = None) -> torch.Tensor:
        """A layer's attention: the pass's tokens, (tokens, heads, size) each, are kept; what they see is of that shape.

        Scores are divided by √size; `bias`: the parts of a Bias.
        """
        bias = bias and Bias(*bias)
        self.update(*(part.transpose(0, 1)[None] for part in (key, value)), layer)
        key, value = self.layers[layer]
        query, spans, front = query.to(self.dtype), self.spans, self.spans.front
        rest = self._attend(query[front:], key, value, spans, True, bias)
        return torch.cat([self._attend(query[:front], key, value, spans.whole, False, bias), rest]) if front else rest

    def _attend(self, query, key, value, spans: Spans, causal: bool, bias: Bias | None):
        scale = query.shape[-1] ** -0.5
        if query.device.type == "cuda" and (bias is None or spans.most == 1):
            return _attend_on_card(query, key, value, spans, scale, None, causal, bias)
        if spans.padded is not None:
            if "biased" not in self._records:
                padding = spans, spans.padded.longest, self.share, self.dtype
                self._records["biased"] = spans.padded if bias is None else _pad_all(*padding, bias)
            return _attend_all(query, key, value, self._records["biased"], scale)
        if causal not in self._records:  # the same in all layers
            self._records[causal] = _records_of(spans, causal, bias)
        return _attend_each(query, key, value, self._records[causal], scale, None, causal)

    def pad(self, spans: Spans) -> Spans:
        """The spans with `padded`, on a CPU, where asking all at once is faster (docs/log.md): their keys and values
        are copied for it, in every layer.
        """
        if self.device.type != "cpu" or len(spans.seen) == 1 or spans.most > FEW:
            return spans
        key, longest = self.layers[0][0], int(spans.seen.max())
        alike = longest * len(spans.seen) <= 2 * int(spans.seen.sum())
        if 2 * longest * math.prod(key.shape[1:]) * key.itemsize >= (COPIED if alike else COPIED // 4):
            return spans
        return spans._replace(padded=_pad_all(spans, longest, self.share, self.dtype))

    def update(self, key, value, layer: int, *_, **__):
        news = tuple(new[0].transpose(0, 1) for new in (key, value))
        if self.device.type == "cuda" and not available.why_not("keep_rows", self.device, self.dtype):
            from ops.keep_rows import keep_rows  # Triton, which comes with torch where there are cards

            keep_rows(*news, *self.layers[layer], self.at)
        else:
            for kept, new in zip(self.layers[layer], news, strict=True):
                new = new.clamp(-MOST, MOST) if self.fp8 else new  # a larger one would be no number in 8 bits
                _wide(kept).index_copy_(0, self.at, _wide(new.to(kept.dtype)))
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
    if query.device.type == "cuda":
        return _attend_on_card(*parts, spans, scaling, sliding_window)[None], None
    if spans.padded is not None and (sliding_window is None or sliding_window >= spans.padded.longest):
        return _attend_all(*parts, spans.padded, scaling)[None], None
    return _attend_each(*parts, _records_of(spans), scaling, sliding_window)[None], None


def _attend_on_card(query, key, value, spans: Spans, scale, window: int | None, causal=True, bias: Bias | None = None):
    """All records at once, by a kernel. With a bias, one token a record."""
    alike = len(query) == len(spans.seen) * spans.most  # all records have as many tokens in the pass
    if causal and alike and not available.why_not("decode_attention", query.device, query.dtype):
        from ops.decode_attention import attend, serves  # Triton, which comes with torch where there are cards

        if serves(query.shape[1], key.shape[1], query.shape[-1], spans.most):
            return attend(query, key, value, spans.keys, spans.seen, scale, window, bias, spans.common)
    if bias is not None:
        raise NotImplementedError("a bias of the scores needs the kernel of ops/decode_attention.py")
    keys = spans.keys
    if spans.copied is not None:
        at, keys = spans.copied
        key, value = (_wide(kept).index_select(0, at).view(kept.dtype).to(query.dtype) for kept in (key, value))
    bounds = spans.queries, keys, spans.most, key.shape[0]
    seen = {"scale": scale, "seqused_k": spans.seen, "window_size_left": window and window - 1}
    return torch.ops.aten._flash_attention_forward(query, key, value, *bounds, 0.0, causal, False, **seen)[0]


class Record(NamedTuple):
    """One record of a pass, as `_attend_each` takes it."""

    first: int  # of its tokens in the pass
    last: int
    start: int  # of the kept tokens that it sees
    end: int
    bias: torch.Tensor | None  # (heads, its tokens, those it sees), -inf where one is not seen
    common: int = 0  # as of Spans


def _records_of(spans: Spans, causal: bool = True, bias: Bias | None = None) -> list[Record]:
    """The records of a pass. On a card it is waited for."""
    bounds, found = (part.tolist() for part in (spans.queries[:-1], spans.queries[1:], spans.keys[:-1], spans.seen)), []
    for first, last, start, seen in zip(*bounds, strict=True):
        added = None if bias is None else _bias_of(bias, last - first, start, start + seen, causal)
        found.append(Record(first, last, start, start + seen, added, spans.common))
    return found


def _bias_of(bias: Bias, rows: int, start: int, end: int, causal: bool) -> torch.Tensor:
    """Record.bias of the last `rows` kept tokens from `start` to `end`. Its last axis is laid out in steps of 8, which
    torch's kernels ask for.
    """
    device = bias.marks.device
    keys = torch.arange(start, end + (start - end) % 8, device=device).clamp(max=end - 1)
    queries = torch.arange(end - rows, end, device=device)[:, None]
    index = _rows_of(bias, queries, keys[None])
    added = bias.table.t().index_select(1, index.flatten()).unflatten(1, index.shape)
    if causal and rows > 1:
        added = added.masked_fill(keys > queries, -torch.inf)
    return added[..., : end - start]


def _rows_of(bias: Bias, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The rows of a bias's table, by where queries (…, 1) and keys (…, keys) stand."""
    far = len(bias.near) // 2
    apart = bias.apart[bias.marks[queries], bias.marks[keys]]
    return torch.where(apart < 0, bias.near[(keys - queries).clamp(-far, far) + far], apart)


def _pad_all(spans: Spans, longest: int, share: int, dtype: torch.dtype, bias: Bias | None = None) -> Padded:
    """The Padded of a pass whose tokens have the dtype, and whose keys `share` heads each."""
    firsts, lasts = spans.queries[:-1, None].long(), spans.queries[1:, None].long()
    starts, seen = spans.keys[:-1, None].long(), spans.seen[:, None].long()
    token, place = firsts + torch.arange(spans.most), torch.arange(longest)
    back = (token < lasts).flatten().nonzero()[:, 0]
    token = token.clamp(max=lasts - 1)
    newest, inside = seen - lasts + token, torch.minimum(place, seen - 1)
    keys = torch.where(inside < spans.common, inside, starts + inside)
    unseen = place > newest[:, :, None]
    if bias is None:
        added = torch.zeros(*unseen.shape, share, dtype=dtype)
    else:
        added = bias.table[_rows_of(bias, (starts + newest)[:, :, None], keys[:, None])]
    # (records, tokens, keys, heads) -> (records, heads kept or 1, tokens, heads that share them, keys)
    added = added.unflatten(-1, (-1, share)).permute(0, 3, 1, 4, 2).contiguous()
    mask = added.masked_fill_(unseen[:, None, :, None], -torch.inf).flatten(2, 3)
    return Padded(token.flatten(), back, keys.flatten(), longest, mask)


def _attend_all(query, key, value, padded: Padded, scale: float | None):
    """All records at once, from copies of what they see; heads that share keys are rows of one product."""
    (heads, size), kept = query.shape[1:], key.shape[1]
    records, _, rows, longest = padded.mask.shape
    copied = (
        _wide(part).index_select(0, padded.keys).view(part.dtype).to(query.dtype).view(records, longest, kept, size)
        for part in (key, value)
    )
    asked = query[padded.tokens].view(records, -1, kept, heads // kept, size).transpose(1, 2)
    parts = asked.reshape(records, kept, rows, size), *(part.transpose(1, 2) for part in copied)
    made = scaled_dot_product_attention(*parts, attn_mask=padded.mask, scale=scale)
    made = made.view(records, kept, -1, heads // kept, size).transpose(1, 2)
    return made.reshape(-1, heads, size)[padded.back]


def _attend_each(query, key, value, records: list[Record], scale: float | None, window: int | None, causal=True):
    """One record after the other. `window`: tokens that each one sees, itself included; None: all."""
    out = torch.empty_like(query)
    for first, last, start, end, bias, common in records:
        rows = last - first
        begin = start if window is None else max(start, end - rows - window + 1)  # none of them sees those before
        seen = (_seen(part, start, begin, end, common).to(query.dtype) for part in (key, value))
        parts = query[first:last], *seen
        if rows == 1:
            out[first:last] = _attend_once(*parts, scale, bias)
        elif rows <= FEW and causal and bias is None:
            out[first:last] = _attend_few(*parts, scale, window)
        else:
            out[first:last] = _attend_many(*parts, scale, window, causal, bias)
    return out


def _seen(kept: torch.Tensor, start: int, begin: int, end: int, common: int) -> torch.Tensor:
    """Of what a record has from `start` on, that from `begin` to `end`; a copy where that is in two pieces."""
    if begin - start >= common:
        return kept[begin:end]
    return torch.cat([kept[begin - start : min(common, end - start)], kept[start + common : end]])


def _attend_once(query, key, value, scale: float | None, bias=None):
    """A record's one new token: heads that share keys are rows of one product, and a row alone stands twice, for in 16
    bits torch multiplies several rows many times faster than one (docs/log.md).
    """
    kept, size = key.shape[1:]
    rows = query.view(kept, -1, size)
    share = rows.shape[1]
    rows = rows if share > 1 else rows.expand(-1, 2, -1)
    more = {"scale": scale, "attn_mask": None if bias is None else bias.view(1, kept, share, -1)}
    made = scaled_dot_product_attention(rows[None], key.transpose(0, 1)[None], value.transpose(0, 1)[None], **more)
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


def _attend_many(query, key, value, scale: float | None, window: int | None, causal=True, bias=None):
    """The last tokens of a record, which see those before them; not `causal`: those behind them, too."""
    rows, seen = len(query), len(key)
    windowed, mask = window is not None and window < seen, bias
    if mask is None and causal and (rows < seen or windowed):
        mask = torch.ones(rows, seen, dtype=torch.bool, device=query.device).tril(seen - rows)
        mask = mask.triu(seen - rows - window + 1) if windowed else mask
    parts = (part.transpose(0, 1)[None] for part in (query, key, value))
    more = {"attn_mask": mask, "is_causal": causal and mask is None}  # its own mask is of a square alone
    return scaled_dot_product_attention(*parts, **more, scale=scale, enable_gqa=key.shape[1] < query.shape[1])[
        0
    ].transpose(0, 1)
