"""Answers that hold only what was asked for (`--constrain`): which token may come next, and which does.

Greedy answers need no mask as long as the likeliest token may be said. So tokens are looked at when they are made, and
only where one may not, the likeliest that may takes its place.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from transformers import LogitsProcessor

from decoding.answers import Answer
from decoding.choosing import chances_of
from kg.permitted import AGAIN, Asked, State, advance, keep_whole, may_end

LIKELIEST = 64  # tokens that are tried one after the other
MORE = 512  # and so many, where none of those may be said, before all that may be are listed, which takes longer


class Limits(NamedTuple):
    """What the answers to some prompts may hold."""

    pieces: list[bytes | None]  # of each token (tokens.pieces.token_bytes)
    sorted: list[tuple[bytes, int]]  # the same and the tokens, in the order of the bytes
    eos_id: int
    asked: dict[int, Asked]  # by the numbers of the prompts


def make_limits(pieces: list[bytes | None], eos_id: int, asked: dict[int, Asked]) -> Limits:
    """Limits for prompts by their numbers; what eos may stand for in a text is never said."""
    pieces = [None if token == eos_id else piece for token, piece in enumerate(pieces)]
    return Limits(pieces, sorted((piece, token) for token, piece in enumerate(pieces) if piece), eos_id, asked)


class Walks:
    """Where the answers to prompts stand, by the prompts' numbers."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.states = {}
        self.ended = set()  # answers that have their eos
        self.refused = set()  # answers whose next token, as the model would have it, may not be said

    def take(self, number: int, new: list[int]) -> list[int]:
        """The new tokens of an answer as far as they may be said.

        An eos stands where a triple would be said again. Tokens that are no id (of logits that are not finite) are
        taken with all that follow.
        """
        self.refused.discard(number)
        if number in self.ended:
            return []
        state = self.states.get(number, State())
        if len(new) > 1 and self._take_together(number, state, new):
            return new
        for count, token in enumerate(new):
            if token < 0:
                return new
            following = self._next(number, state, token)
            if following is None:
                self.refused.add(number)
                return new[:count]
            self.states[number] = state = following
            if token == self.limits.eos_id or state.phase == AGAIN:
                self.ended.add(number)
                return [*new[:count], self.limits.eos_id]
        return new

    def _take_together(self, number: int, state: State, new: list[int]) -> bool:
        """Whether all tokens may be said, none of them eos: told by their bytes together, which is quicker."""
        pieces = self.limits.pieces
        if min(new) < 0 or max(new) >= len(pieces):
            return False
        said = [pieces[token] for token in new]
        if None in said or b"" in said:
            return False
        following = advance(self.limits.asked[number], state, b"".join(said))
        if following is None or following.phase == AGAIN:
            return False
        self.states[number] = following
        return True

    def choose(self, number: int, likeliest: list[int], logits: torch.Tensor) -> int:
        """The likeliest token that may be said next; eos where a triple would be said again, or nothing may be said.

        `likeliest`: the first tokens in the order of `logits` (one a token).
        """
        state, eos = self.states.get(number, State()), self.limits.eos_id
        for token in chain(likeliest, _more_of(logits)):
            following = self._next(number, state, token)
            if following is not None:
                if following.phase == AGAIN:
                    self.states[number] = following
                    return eos
                return token
        permitted = [*list_permitted(self.limits, self.limits.asked[number], state), *([eos] if may_end(state) else [])]
        permitted = [token for token in permitted if token < len(logits)]
        if not permitted:
            self.states[number] = State(AGAIN)
            return eos
        return permitted[int(logits[permitted].argmax())]

    def mend(self, busy: dict[int, int], places) -> Callable[[torch.Tensor, torch.Tensor], None] | None:
        """A function that lets the rows that were refused a token (busy: row -> number) say one that they may, and no
        draft behind it, by the logits and which of them are of the rows' first tokens; None where no row was.
        """
        numbers = {row: number for row, number in busy.items() if number in self.refused}
        if not numbers:
            return None
        rows = torch.tensor(list(numbers), device=places.tokens.device)
        before = places.positions[rows]  # a copy

        def say_others(logits: torch.Tensor, firsts: torch.Tensor) -> None:
            logits, tokens = logits[firsts[rows]], places.said[rows, 0].tolist()
            likeliest = order(logits)
            for at, number in enumerate(numbers.values()):
                if tokens[at] >= 0:  # its logits are finite
                    tokens[at] = self.choose(number, likeliest[at], logits[at])
            said = torch.tensor(tokens, device=rows.device)
            sure = None if places.sure is None else chances_of(logits, said.clamp(min=0))
            places.say(rows, before, said, sure)

        return say_others

    def end(self, number: int, answer: Answer) -> Answer:
        """The answer; where a triple would have been said again, up to there, as a loop."""
        state = self.states.get(number)
        if state is None or state.phase != AGAIN:
            return answer
        return answer._replace(text=keep_whole(self.limits.asked[number], answer.text), finish_reason="loop")

    def forget(self, number: int) -> None:
        """Nothing is kept of an answer that was handed over: a server gives numbers for ever."""
        self.states.pop(number, None)
        self.ended.discard(number)
        self.refused.discard(number)

    def _next(self, number: int, state: State, token: int) -> State | None:
        limits = self.limits
        if token == limits.eos_id:
            return state if may_end(state) else None
        piece = limits.pieces[token] if token < len(limits.pieces) else None
        return advance(limits.asked[number], state, piece) if piece else None


def order(logits: torch.Tensor, count: int = LIKELIEST) -> list[list[int]]:
    """The likeliest tokens of each row, the likeliest first."""
    return logits.topk(min(count, logits.shape[-1])).indices.tolist()


def _more_of(logits: torch.Tensor) -> Iterator[int]:
    """MORE tokens of one row; they are looked for only when they are needed. Of equal ones any may come first."""
    yield from order(logits[None], MORE)[0]


def list_permitted(limits: Limits, asked: Asked, state: State, start: int = 0, depth: int = 0) -> Iterator[int]:
    """The tokens that may be said next, eos and those that say a triple again left out.

    Tokens that begin alike are looked at once: from place `start` of `limits.sorted` on, all that have the first
    `depth` bytes of the token there, to which `state` belongs.
    """
    order, at = limits.sorted, start
    beginning = order[start][0][:depth] if depth else b""
    while at < len(order) and order[at][0].startswith(beginning):
        piece, token = order[at]
        if len(piece) == depth:
            yield token
            at += 1
            continue
        following = advance(asked, state, piece[depth : depth + 1])
        if following is not None and following.phase != AGAIN:
            yield from list_permitted(limits, asked, following, at, depth + 1)
        at = bisect_left(order, (_behind(piece[: depth + 1]),), at)


def _behind(beginning: bytes) -> bytes:
    """The first bytes behind all that begin so."""
    stripped = beginning.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\xff" * 1000


class Constrain(LogitsProcessor):
    """Leaves of each row the one token that `walks` take, and greedy search with it; rows by their numbers."""

    def __init__(self, walks: Walks, numbers: list[int]):
        self.walks, self.numbers = walks, numbers

    def __call__(self, input_ids, scores):
        (best, tokens), changed = scores.max(-1), None
        tokens = tokens.masked_fill(~best.isfinite(), -1).tolist()
        for row, (number, token) in enumerate(zip(self.numbers, tokens, strict=True)):
            if token < 0 or number in self.walks.ended:
                continue
            taken = self.walks.take(number, [token])
            if not taken:
                (likeliest,) = order(scores[row : row + 1])
                taken = self.walks.take(number, [self.walks.choose(number, likeliest, scores[row])])
            if taken != [token]:
                changed = scores.clone() if changed is None else changed  # others look at the model's own logits, too
                changed[row] = -torch.inf
                changed[row, taken[0]] = 0.0
        return scores if changed is None else changed
