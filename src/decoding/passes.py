"""The passes of the engine `fast` over the model: new prompts, and one more token of many records.

Each gives the likeliest tokens and, where the places ask for it, how likely they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from decoding.choosing import chances_of
from decoding.kept import Spans
from decoding.places import BROKEN, Place, Places


class Made(NamedTuple):
    """New tokens of rows and their probabilities, (rows, steps) each; the second None where nobody asked."""

    tokens: torch.Tensor
    chances: torch.Tensor | None

    def of(self, rows: list[int]) -> list[tuple[list[int], list[float]]]:
        """For each of the rows its tokens and their probabilities, if any."""
        tokens = self.tokens[rows].tolist()
        return list(zip(tokens, [[]] * len(rows) if self.chances is None else self.chances[rows].tolist(), strict=True))


@torch.inference_mode()
def compute(
    model,
    places: Places,
    prompts: list[list[int]],
    taken: list[Place],
    shared: list[tuple[int, int]],
    about: list[tuple[int, ...]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Keys and values of prompts into the places `taken`, `shared` beginnings copied; the tokens that follow, and how
    likely they are. `about`: of each prompt, as in Laid.
    """
    kept, counts = places.kept, [len(prompt) for prompt in prompts]
    lengths, starts = torch.tensor([[count, place.start] for count, place in zip(counts, taken, strict=True)]).T
    copied, sources = torch.tensor(shared).T
    if copied.any():
        inside = _ranges(torch.zeros_like(copied), copied)
        kept.copy(*((inside + first.repeat_interleave(copied)).to(kept.device) for first in (sources, starts)))
    if places.learnt:
        each = (starts - places.learnt)[:, None] + torch.arange(places.learnt)
        kept.copy(kept.learnt.repeat(len(prompts)), each.flatten().to(kept.device))
    told = None if about is None else torch.tensor(about)
    whole = torch.zeros_like(lengths) if about is None else told[:, 0]
    begins = torch.maximum(copied, whole)
    # What is seen whole stands in front; what is behind it sees what is before it.
    parts = [(torch.zeros_like(whole), whole), (begins, lengths)] if whole.any() else [(begins, lengths)]
    positions = torch.cat([_ranges(*part) for part in parts])
    records = torch.cat([torch.arange(len(prompts)).repeat_interleave(ends - firsts) for firsts, ends in parts])
    ids = [prompts[record][at] for record, at in zip(records.tolist(), positions.tolist(), strict=True)]
    given = torch.tensor(ids), positions, positions + starts[records]
    learnt = places.learnt  # tokens in front of all
    spans = [_spans(ends - firsts, starts - learnt, ends + learnt, kept.device) for firsts, ends in parts]
    front = len(ids) - int((lengths - begins).sum())
    seen = spans[-1]._replace(front=front, whole=spans[0]) if front else spans[0]
    more = {} if about is None else {"about": told[records].to(kept.device)}
    last = (front + (lengths - begins).cumsum(0) - 1).to(kept.device)
    given = (part.to(kept.device) for part in given)
    logits = _pass(model, places, *given, seen, logits_to_keep=last, **more)
    tokens = logits.argmax(-1)
    chances = chances_of(logits, tokens) if places.sure is not None else None
    return tokens.masked_fill(_are_broken(logits, tokens), BROKEN), chances


def _are_broken(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Whether a row's logits are not finite; its likeliest token's tells: argmax takes a NaN where there is one."""
    best = logits.gather(-1, tokens[:, None])[:, 0]
    return best - best != 0


def _ranges(firsts: torch.Tensor, lasts: torch.Tensor) -> torch.Tensor:
    """first, first + 1, … last - 1 of each pair, one behind the other."""
    return torch.cat([torch.arange(first, last) for first, last in zip(firsts, lasts, strict=True)])


def _spans(counts, starts, seen, device) -> Spans:
    """Of records with so many tokens in a pass, which see the `seen` kept ones from `starts` on."""
    bounds = (pad(counts.cumsum(0), (1, 0)), pad(starts, (0, 1)), seen)
    return Spans(*(part.to(device, torch.int32) for part in bounds), int(counts.max()))


def _pass(model, places: Places, ids, positions, at, spans: Spans, **more):
    """The logits of tokens (each argument one number a token) whose keys and values go to `at`.

    transformers' models hand `spans` on to the attention; this project's own find them in what is kept.
    """
    places.kept.begin(at, spans)
    given = {"input_ids": ids[None], "position_ids": positions[None], "past_key_values": places.kept}
    logits = model(**given, use_cache=True, spans=spans, **places.given, **more).logits[0]
    places.kept.begin(None, None)  # what the pass was told is let go
    return logits


def make_steps(model, places: Places, enough: int) -> dict[int, Callable]:
    """The steps there are: number of rows, the first ones -> a function that makes one token of each; in their order.

    Each has to be captured on a card, which has two at most: all rows and, where so many keep it busy (twice `enough`),
    half of them.
    """
    rows, sizes = len(places.tokens), range(1, len(places.tokens) + 1)
    if places.tokens.device.type == "cuda":
        sizes = [rows // 2, rows] if rows >= 4 * enough else [rows]
    return {size: make_step(model, places, size) for size in sizes}


@torch.inference_mode()
def decode(places: Places, rows: int, step: Callable, steps: int, mend: Callable | None = None) -> Made:
    """`steps` more tokens of the first `rows`, that `step` makes; no record's mean nothing.

    `mend(logits)` may change what the first of them says.
    """
    tokens, chances = [], []
    for number in range(steps):
        logits = step()
        if mend and number == 0:
            mend(logits)
        tokens.append(places.said[:rows].clone())
        if places.sure is not None:
            chances.append(places.sure[:rows].clone())
    return Made(torch.stack(tokens, 1), torch.stack(chances, 1) if chances else None)


@torch.inference_mode()
def make_step(model, places: Places, size: int):
    """A function that makes one token of each of the first `size` rows and gives their logits, which hold until its
    next call; on a card the replay of a CUDA graph.
    """
    tokens, positions, starts = places.tokens[:size], places.positions[:size], places.starts[:size]
    said, learnt = places.said[:size], places.learnt
    more = {} if places.about is None else {"about": places.about[:size]}

    def step() -> torch.Tensor:
        bounds = pad(starts - learnt, (0, 1)).int(), (positions + 1 + learnt).int()
        spans = Spans(places.each[: size + 1], *bounds, 1)
        logits = _pass(model, places, tokens, positions, starts + positions, spans, **more)
        chosen = logits.argmax(-1)
        tokens.copy_(chosen)
        said.copy_(chosen).masked_fill_(_are_broken(logits, chosen), BROKEN)  # seen when answers are handed over
        if places.sure is not None:
            places.sure[:size].copy_(chances_of(logits, chosen))
        positions.copy_(torch.minimum(positions + 1, places.last[:size]))
        return logits

    if tokens.device.type != "cuda":
        return step
    before = tokens.clone(), positions.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # kernels are loaded, workspaces made
    torch.cuda.current_stream().wait_stream(stream)
    tokens.copy_(before[0])  # what trying it changed is put back
    positions.copy_(before[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # whose workspaces the replay will use: no other stream may share them
        logits = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return logits

    return replay
