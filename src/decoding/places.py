"""Where the records of the engine `fast` stand: their rows of a step, and the stretches of what is kept."""

from bisect import bisect, bisect_left
from collections.abc import Iterable
from typing import NamedTuple

import torch

from decoding.kept import Kept
from decoding.lookup import NONE

BROKEN = -2  # stands for a token whose logits are not finite; no id


class Place(NamedTuple):
    """The row of a record, and its stretch of the kept tokens."""

    row: int
    start: int  # of its stretch of the kept tokens: where its first token stands, or would (Places.common)
    end: int


class Started(NamedTuple):
    """Records whose prompts are computed, and the token that follows each of these."""

    numbers: list[int]
    places: list[Place]
    prompts: list[list[int]]
    copied: int  # tokens of them, without those that all have in common
    firsts: torch.Tensor  # BROKEN where its logits are not finite
    chances: torch.Tensor | None = None  # how likely they were; None: nobody asked
    about: list[tuple[int, ...]] | None = None  # what the model is told of each (Laid.about)
    cut: bool = False  # whether there is room for more, which would have made the pass too long


class Places:
    """`size` rows, each with a stretch of the kept tokens; a row without a record has one token, behind the others.

    `count`: tokens of all stretches. `shared`: so long a beginning, in common with a prompt that is kept, is copied.
    `scored`: how likely each token was is kept too. `about`: numbers that the model is told of each record; 0: it is
    told nothing. `given`: what it is given in every pass. `learnt`: keys and values (tokens, heads, size) of each
    layer that stand in front of every record's; a stretch is counted from behind them. `drafts`: most tokens of a row
    that a step looks up and verifies beside its newest one; each stretch has room for as many more, so that wrong ones
    overwrite nothing. `longest`: tokens of the longest record, needed for drafts alone. `fp8`: keys and values are kept
    in 8-bit floats. `common`: tokens that all prompts begin with, kept once, in front of all stretches; a stretch has
    none of them, and is counted from as many tokens before it, so that a record's token stands where its stretch starts
    and its position say, but for these. Nothing is learnt then.
    """

    def __init__(
        self,
        model,
        size: int,
        count: int,
        shared: int,
        scored: bool = False,
        drafts: int = 0,
        longest: int = 0,
        about: int = 0,
        given: dict | None = None,
        learnt: list = (),
        fp8: bool = False,
        common: int = 0,
    ):
        self.shared, self.drafts, self.learnt = shared, drafts, len(learnt[0][0]) if learnt else 0
        self.common, self.begun = common, False  # whether these are computed
        self.before = self.learnt - common  # tokens between where a stretch begins and where it is counted from
        self.count = common + count  # where the last stretch ends
        self.kept = Kept(model, self.count + size * (1 + drafts), learnt, fp8)
        self.tokens = torch.zeros(size, dtype=torch.long, device=model.device)  # the newest, not kept yet
        # what the last step said, in order: ids, BROKEN, or NONE behind the last; and their probabilities
        self.said = self.tokens.new_zeros(size, 1 + drafts)
        self.sure = torch.zeros(size, 1 + drafts, device=model.device) if scored else None
        # prompt and answer of each row, up to its newest token and what may be said beyond its room
        self.texts = self.tokens.new_zeros(size, longest + drafts + 1) if drafts else None
        self.positions = torch.zeros_like(self.tokens)  # where it stands in its record
        self.each = torch.arange(size + 1, dtype=torch.int32, device=model.device)
        self.starts = torch.zeros_like(self.tokens)  # of the row's stretch
        self.last = torch.zeros_like(self.tokens)  # position that the stretch has room for
        self.given = given or {}
        self.about = torch.zeros(size, about, dtype=torch.long, device=model.device) if about else None
        self.taken = {}  # row -> Place
        # (tokens, where their keys and values stand), also of records that are done; in order
        self.prompts = []
        self.clear(list(range(size)))

    def clear(self, rows: list[int]) -> None:
        for row in rows:
            self.taken.pop(row, None)
        where = torch.tensor(rows, dtype=torch.long, device=self.tokens.device)
        self.starts[where] = self.count + where * (1 + self.drafts)
        self.positions[where], self.last[where] = 0, 0

    def hold(self, new: Started) -> None:
        """The places of records are theirs from now on, and what their prompts begin with can be copied."""
        self.taken |= {place.row: place for place in new.places}
        self.prompts += [(ids, place.start) for ids, place in zip(new.prompts, new.places, strict=True)]
        self.prompts.sort()

    def admit(self, new: Started) -> list[tuple[int, int, int, float]]:
        """Records whose places are held get their rows: (number, row, first new token, its probability or 0) of each.

        A card is waited for.
        """
        rows, starts, ends = torch.tensor(new.places, device=self.tokens.device).T
        lengths = torch.tensor(list(map(len, new.prompts)), device=self.tokens.device)
        self.tokens[rows], self.positions[rows] = new.firsts.clamp(min=0), lengths
        self.starts[rows], self.last[rows] = starts, ends - starts - 1 - self.drafts
        if self.about is not None:
            self.about[rows] = torch.tensor(new.about, device=self.tokens.device)
        if self.drafts:
            texts = [torch.tensor(ids) for ids in new.prompts]
            texts = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(rows.device)
            self.texts[rows, : texts.shape[1]] = texts
            self.texts[rows, lengths] = self.tokens[rows]
        chances = [0.0] * len(rows) if new.chances is None else new.chances.tolist()
        return list(zip(new.numbers, (place.row for place in new.places), new.firsts.tolist(), chances, strict=True))

    def set_back(self, texts: dict[int, list[int]]) -> None:
        """Rows go on behind these tokens (row -> prompt and answer so far), whatever they have said since.

        The last one's keys and values are computed again, those behind it overwritten as the answer goes on.
        """
        if not texts:
            return
        where = [[row, ids[-1], len(ids) - 1] for row, ids in texts.items()]
        rows, tokens, positions = torch.tensor(where, device=self.tokens.device).T
        self.tokens[rows], self.positions[rows] = tokens, positions
        if self.drafts:
            self.texts[rows, positions] = tokens

    def say(self, rows: torch.Tensor, before: torch.Tensor, said: torch.Tensor, sure: torch.Tensor | None) -> None:
        """Rows whose newest token stood at positions `before` have said, behind it, one more token each (an id, or
        BROKEN; `sure`: its probability), whatever the last step made of them.
        """
        tokens = said.clamp(min=0)
        self.said[rows] = NONE
        self.said[rows, 0], self.tokens[rows] = said, tokens
        self.positions[rows] = torch.minimum(before + 1, self.last[rows])
        if sure is not None:
            self.sure[rows, 0] = sure
        if self.drafts:
            self.texts[rows, before + 1] = tokens

    def gather(self, busy: dict[int, int]) -> dict[int, int]:
        """Records move to the first rows, what is kept of them stays; `busy` (row -> number) anew."""
        moved = {row: at for at, row in enumerate(sorted(busy))}
        rows = torch.tensor(list(moved), device=self.tokens.device)
        for part in (self.tokens, self.positions, self.starts, self.last, self.about, self.texts):
            if part is not None:
                part[: len(rows)] = part[rows]
        self.taken = {at: self.taken[row]._replace(row=at) for row, at in moved.items()}
        self.clear(list(range(len(rows), len(self.tokens))))
        return {moved[row]: number for row, number in busy.items()}

    def find(self, needs: Iterable[int]) -> list[Place]:
        """Where records of so many tokens go, in their order, while there are rows and room."""
        found, gaps, start = [], [], self.common
        for place in sorted(self.taken.values(), key=lambda place: place.start):
            gaps.append([start, place.start - self.before])
            start = place.end
        gaps.append([start, self.count])
        for row, need in zip((row for row in range(len(self.tokens)) if row not in self.taken), needs, strict=False):
            need += self.drafts + self.before
            gap = next((gap for gap in gaps if gap[1] - gap[0] >= need), None)
            if gap is None:
                break
            found.append(Place(row, gap[0] + self.before, gap[0] + need))
            gap[0] += need
        return found

    def overwrite(self, places: list[Place]) -> None:
        """Forget the prompts that stand at `places`."""
        places = sorted(places, key=lambda place: place.start)
        starts, kept = [place.start - self.before for place in places], []
        for ids, start in self.prompts:
            at = bisect_left(starts, start + len(ids))  # of those that begin before its end, only the last may reach it
            if not at or places[at - 1].end <= start + self.common:
                kept.append((ids, start))
        self.prompts = kept

    def beginnings(self, prompts: list[list[int]]) -> list[tuple[int, int]]:
        """The longest beginning of each prompt that stands here already, without its last token: (tokens, where), what
        all have in common among them.
        """
        there, found, least = self.prompts, [], self.common + self.shared
        for prompt in prompts:
            at = bisect(there, (prompt,))  # what has most in common with it is one of its neighbours
            near = [(count_alike(prompt[:-1], ids), start) for ids, start in there[max(0, at - 1) : at + 1]]
            found.append(max((pair for pair in near if pair[0] >= least), default=(self.common, 0)))
        return found


def count_alike(one: list[int], other: list[int]) -> int:
    """How many tokens two prompts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (mine, its) in pairs if mine != its), min(len(one), len(other)))
