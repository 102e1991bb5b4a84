"""The passes of the engine `fast` over the model: new prompts, and one more token of many records.

Each gives the likeliest tokens and, where the places ask for it, how likely they are.
"""

from collections.abc import Callable, Iterator
from itertools import compress, takewhile
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from decoding.choosing import chances_of
from decoding.kept import Kept, Spans
from decoding.lookup import NONE, look_up
from decoding.places import BROKEN, Place, Places


class Drafting(NamedTuple):
    """How tokens are proposed to the steps of so many rows."""

    counts: tuple[int, ...]  # tokens of a row of which 1, 2, … last ones stood before; the last number is of all more
    whole: bool = False  # whether every row has as many, NONE among them, so that shapes are fixed
    longest: int = 4  # last tokens that are looked up


class Made(NamedTuple):
    """New tokens of rows and their probabilities, (rows, steps, most of a step) each; a step that says fewer has NONE
    behind them. The second is None where nobody asked. `coming`: of each step of a card, where they are looked at one
    by one, its tokens on the CPU and when they are there.
    """

    tokens: torch.Tensor
    chances: torch.Tensor | None
    coming: list[tuple[torch.Tensor, torch.cuda.Event]]

    def arriving(self) -> Iterator[torch.Tensor]:
        """The tokens on the CPU, some steps at a time: those that a card has ended since."""
        if not self.coming:
            yield self._on_cpu()
        first = 0
        while first < len(self.coming):
            self.coming[first][1].synchronize()
            ended = takewhile(lambda step: step[1].query(), self.coming[first + 1 :])
            steps = [self.coming[first][0], *(said for said, _ in ended)]
            yield torch.stack(steps, 1)
            first += len(steps)

    def of(self, rows: list[int]) -> list[tuple[list[int], list[float], list[int]]]:
        """For each of the rows its tokens, their probabilities, if any, and how many there were after each step."""
        steps = self._on_cpu()[rows]
        ends = (steps != NONE).sum(-1).cumsum(-1).tolist()
        tokens = steps.flatten(1).tolist()
        chances = [[]] * len(rows) if self.chances is None else self.chances[rows].flatten(1).tolist()
        made = []
        for said, sure, end in zip(tokens, chances, ends, strict=True):
            there = [token != NONE for token in said]
            made.append((list(compress(said, there)), list(compress(sure, there)), end))
        return made

    def _on_cpu(self) -> torch.Tensor:
        """`tokens` on the CPU."""
        if not self.coming:
            return self.tokens.cpu()
        self.coming[-1][1].synchronize()
        return torch.stack([said for said, _ in self.coming], 1)


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
    kept, common, counts = places.kept, places.common, [len(prompt) for prompt in prompts]
    lengths, starts = torch.tensor([[count, place.start] for count, place in zip(counts, taken, strict=True)]).T
    copied, sources = torch.tensor(shared).T
    if (copied > common).any():
        inside, own = _ranges(torch.full_like(copied, common), copied), copied - common
        kept.copy(*((inside + first.repeat_interleave(own)).to(kept.device) for first in (sources, starts)))
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
    spans = [_spans(ends - firsts, starts - learnt, ends + learnt, kept, common) for firsts, ends in parts]
    front = len(ids) - int((lengths - begins).sum())
    seen = spans[-1]._replace(front=front, whole=spans[0]) if front else spans[0]
    more = {} if about is None else {"about": told[records].to(kept.device)}
    last = (front + (lengths - begins).cumsum(0) - 1).to(kept.device)
    given = (part.to(kept.device) for part in given)
    logits = _pass(model, places, *given, seen, logits_to_keep=last, **more)
    tokens = _likeliest(logits)
    chances = chances_of(logits, tokens) if places.sure is not None else None
    return tokens.masked_fill(_are_broken(logits, tokens), BROKEN), chances


@torch.inference_mode()
def compute_common(model, places: Places, ids: list[int]) -> None:
    """Keys and values of the tokens that all prompts begin with, to where all records see them."""
    count, at = torch.tensor([len(ids)]), torch.arange(len(ids), device=places.kept.device)
    spans = _spans(count, torch.zeros_like(count), count, places.kept)
    _pass(model, places, torch.tensor(ids, device=at.device), at, at, spans, logits_to_keep=at[-1:])


def _likeliest(logits: torch.Tensor) -> torch.Tensor:
    """argmax of each row, the first of equals, or of NaN. On a CPU torch's own looks at one number after the other; the
    largest of a block it finds by many at once, several times faster.
    """
    size = logits.shape[-1]
    block = next((block for block in range(1024, 127, -1) if size % block == 0), None)
    if logits.device.type != "cpu" or block is None:
        return logits.argmax(-1)
    blocks = logits.reshape(len(logits), -1, block)
    best = blocks.amax(-1).argmax(-1)
    return best * block + blocks[torch.arange(len(logits)), best].argmax(-1)


def _are_broken(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Whether a row's logits are not finite; its likeliest token's tells: argmax takes a NaN where there is one."""
    best = logits.gather(-1, tokens[:, None])[:, 0]
    return best - best != 0


def _ranges(firsts: torch.Tensor, lasts: torch.Tensor) -> torch.Tensor:
    """first, first + 1, … last - 1 of each pair, one behind the other."""
    return torch.cat([torch.arange(first, last) for first, last in zip(firsts, lasts, strict=True)])


def _spans(counts, starts, seen, kept: Kept, common: int = 0) -> Spans:
    """Of records with so many tokens in a pass, which see the `seen` kept ones from `starts` on, but for the `common`
    first ones.
    """
    bounds = (pad(counts.cumsum(0), (1, 0)), pad(starts, (0, 1)), seen)
    made = Spans(*(part.to(kept.device, torch.int32) for part in bounds), int(counts.max()), common=common)
    if not kept.fp8 and not common:
        return made
    inside = _ranges(torch.zeros_like(seen), seen)
    at = torch.where(inside < common, inside, inside + starts.repeat_interleave(seen)).to(kept.device)
    return made._replace(copied=(at, pad(seen.cumsum(0), (1, 0)).to(kept.device, torch.int32)))


def _pass(model, places: Places, ids, positions, at, spans: Spans, **more):
    """The logits of tokens (each argument one number a token) whose keys and values go to `at`.

    transformers' models hand `spans` on to the attention; this project's own find them in what is kept.
    """
    spans = places.kept.pad(spans)
    places.kept.begin(at, spans)
    given = {"input_ids": ids[None], "position_ids": positions[None], "past_key_values": places.kept}
    logits = model(**given, use_cache=True, spans=spans, **places.given, **more).logits[0]
    places.kept.begin(None, None)  # what the pass was told is let go
    return logits


def make_steps(model, places: Places, enough: int) -> dict[int, Callable]:
    """The steps there are: number of rows, the first ones -> a function that makes one token of each, or more where
    drafts are right; in their order.

    Each has to be captured on a card, which has two at most: all rows and, where so many keep it busy (twice `enough`),
    half of them.
    """
    rows, sizes = len(places.tokens), range(1, len(places.tokens) + 1)
    if places.tokens.device.type == "cuda":
        sizes = [rows // 2, rows] if rows >= 4 * enough else [rows]
    return {size: make_step(model, places, size) for size in sizes}


@torch.inference_mode()
def decode(
    places: Places, rows: int, step: Callable, steps: int, mend: Callable | None = None, watched: bool = False
) -> Made:
    """`steps` times one more token of the first `rows`, or more, that `step` makes; no record's mean nothing.

    `mend(logits, firsts)` may change what the first of them says. `watched`: somebody looks at the tokens of a card
    while it makes those behind them.
    """
    tokens, chances, coming = [], [], []
    for number in range(steps):
        made = step()
        if mend and number == 0:
            mend(*made)
        tokens.append(places.said[:rows].clone())
        if places.sure is not None:
            chances.append(places.sure[:rows].clone())
        if watched and places.tokens.device.type == "cuda":
            said, there = tokens[-1].to("cpu", non_blocking=True), torch.cuda.Event()
            there.record()
            coming.append((said, there))
    return Made(torch.stack(tokens, 1), torch.stack(chances, 1) if chances else None, coming)


# On a CPU: in steps of so many rows (None: more) the tokens of a draft where one last token stood before, and where
# two or more did; from how often drafts are right and what a pass costs (docs/log.md).
COUNTS = ((2, (15, 15)), (4, (5, 6)), (8, (2, 4)), (16, (1, 2)), (None, (0, 1)))


def choose_drafting(places: Places, size: int) -> Drafting | None:
    """How a step of `size` rows drafts; None: not at all. A card gives every row as many, for its graph has fixed
    shapes; a CPU computes few tokens in the time of one, and of many each costs, so that only likely ones pay.
    """
    if not places.drafts:
        return None
    if places.tokens.device.type == "cuda":
        return Drafting((places.drafts,), whole=True)
    counts = next(counts for rows, counts in COUNTS if rows is None or size <= rows)
    return Drafting(tuple(min(places.drafts, count) for count in counts))


@torch.inference_mode()
def make_step(model, places: Places, size: int):
    """A function that makes one token of each of the first `size` rows, or more where drafts are right. It gives the
    logits and which of them are of the rows' first tokens, which hold until its next call; on a card it is the replay
    of a CUDA graph.
    """
    tokens, positions, starts = places.tokens[:size], places.positions[:size], places.starts[:size]
    said, learnt, drafting = places.said[:size], places.learnt, choose_drafting(places, size)
    more = {} if places.about is None else {"about": places.about[:size]}
    if drafting:
        most, counts = max(drafting.counts), torch.tensor([0, *drafting.counts])  # of a CPU: no graph may read them

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        bounds = pad(starts - learnt, (0, 1)).int(), (positions + 1 + learnt).int()
        spans = Spans(places.each[: size + 1], *bounds, 1, common=places.common)
        logits = _pass(model, places, tokens, positions, starts + positions, spans, **more)
        chosen = _likeliest(logits)
        tokens.copy_(chosen)
        said[:, 0].copy_(chosen).masked_fill_(_are_broken(logits, chosen), BROKEN)  # seen when answers are handed over
        if places.sure is not None:
            places.sure[:size, 0].copy_(chances_of(logits, chosen))
        positions.copy_(torch.minimum(positions + 1, places.last[:size]))
        return logits, places.each[:size]

    def step_with_drafts() -> tuple[torch.Tensor, torch.Tensor]:
        drafts, matched = look_up(places.texts[:size], positions, drafting.longest, most)
        if not drafting.whole:
            beyond = torch.arange(most) >= counts[matched.clamp(max=len(counts) - 1)][:, None]
            drafts = drafts.masked_fill(beyond, NONE)
        return _verify(model, places, drafts, drafting.whole)

    step = step_with_drafts if drafting else step
    if tokens.device.type != "cuda":
        return step
    before = [part.clone() for part in (places.tokens, places.positions, *([places.texts] if drafting else []))]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # kernels are loaded, workspaces made
    torch.cuda.current_stream().wait_stream(stream)
    for part, old in zip((places.tokens, places.positions, places.texts), before, strict=False):
        part.copy_(old)  # what trying it changed is put back
    del before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # whose workspaces the replay will use: no other stream may share them
        made = step()

    def replay() -> tuple[torch.Tensor, torch.Tensor]:
        graph.replay()
        return made

    return replay


def _verify(model, places: Places, drafts: torch.Tensor, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass over the newest token of each of the first rows and the drafts behind it (rows, most; NONE where there
    is none). What it says is places.said: the likeliest token behind each draft that was right, and the first
    behind them. The logits of all tokens, and which of these are the rows' first.

    `whole`: NONE is computed, too, as token 0, which is as harmless as any wrong draft: one is taken only where it is
    the likeliest token, and what was computed behind wrong ones is overwritten before it is seen.
    """
    size = len(drafts)
    positions, starts = places.positions[:size], places.starts[:size]
    given = torch.cat([places.tokens[:size, None], drafts], 1)
    cells = torch.arange(given.shape[1], device=given.device)
    if whole:
        counts, most = torch.full_like(positions, len(cells)), len(cells)
        index = torch.arange(given.numel(), device=given.device)
    else:
        there = given != NONE
        counts, index = there.sum(1), there.flatten().nonzero()[:, 0]
        most = int(counts.max())
    at = positions[:, None] + cells
    bounds = pad(counts.cumsum(0), (1, 0))
    spans = Spans(bounds.int(), pad(starts, (0, 1)).int(), (positions + counts).int(), most, common=places.common)
    ids, inside, kept_at = (part.flatten()[index] for part in (given.clamp(min=0), at, starts[:, None] + at))
    logits = _pass(model, places, ids, inside, kept_at, spans)
    chosen = _likeliest(logits)

    def spread(numbers: torch.Tensor, empty: float) -> torch.Tensor:
        """One number a token as (size, most of a row)."""
        return numbers.new_full((given.numel(),), empty).index_copy_(0, index, numbers).view(given.shape)

    said = spread(chosen, NONE)
    right = (given[:, 1:] == said[:, :-1]).long().cumprod(1).sum(1)
    newest = positions + 1 + right
    places.texts[:size].scatter_(1, at + 1, said.clamp(min=0))
    places.tokens[:size] = said.gather(1, right[:, None])[:, 0]
    said = said.masked_fill(spread(_are_broken(logits, chosen), False), BROKEN)
    places.said[:size] = NONE
    places.said[:size, : len(cells)] = said.masked_fill(cells > right[:, None], NONE)
    if places.sure is not None:
        places.sure[:size, : len(cells)] = spread(chances_of(logits, chosen), 0.0)
    places.positions[:size] = torch.minimum(newest, places.last[:size])
    return logits, bounds[:-1]
