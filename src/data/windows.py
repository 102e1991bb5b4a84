"""Texts too long for one prompt, cut at sentence ends into windows that overlap by a sentence. Pure functions."""

import re
from itertools import accumulate

# A sentence ends behind its mark and the quotes and brackets that close with it. A full stop is one only before a
# blank, and not behind a single capital letter (J. Smith).
_SENTENCE = re.compile(r".*?(?:[。！？!?；;…]+[”’」』》）)\"']*|(?<![A-Z])\.[\"')]*(?=\s)|\n|\Z)\s*", re.DOTALL)
_CLAUSE = re.compile(r".*?(?:[，,、：:]+|\Z)\s*", re.DOTALL)
FIRST_STEP = 256  # characters of a clause that are tried first


def sentences(text: str) -> list[str]:
    """The sentences of a Chinese or English text; put together again, they are the text."""
    return [part for part in _SENTENCE.findall(text) if part]


def windows(text: str, fits) -> list[str] | None:
    """The stretches of `window_places`, as texts."""
    places = window_places(text, fits)
    return None if places is None else [text[start:end] for start, end in places]


def window_places(text: str, fits) -> list[tuple[int, int]] | None:
    """Stretches of a text, in order, each as long as `fits(stretch)` allows: (first character, the one behind the
    last) of each; None when not even one character fits, or, of a text of blanks alone, not even "".

    They begin and end with sentences, and each begins with the sentence that the one before ends with, where that
    leaves room for another. A sentence that is too long is cut at its commas, and a clause anywhere. A text that does
    not fit loses the blanks around its stretches, which count for nothing. Nothing is tried that is much longer than
    what is found: a text of a million characters takes as long as a thousand of a thousand.
    """
    if fits(text):
        return [(0, len(text))]
    bare = text.lstrip()
    if not bare:
        return [(0, 0)] if fits("") else None

    def fits_bare(part: str) -> bool:
        return fits(part.strip())

    pieces = sentences(bare)
    ends = list(accumulate(map(len, pieces), initial=len(text) - len(bare)))  # where each begins, and the last one ends
    found, first, start, begun = [], 0, 0, 0  # `begun`: the first piece that no window holds
    while begun < len(pieces):
        end = _largest(start, len(pieces), lambda end, start=start: fits_bare(text[ends[start] : ends[end]]))
        if end <= begun and start < begun:  # the overlap takes all the room
            start = begun
        elif end == start:
            parts = _smaller_pieces(pieces[start], fits_bare)
            if parts is None:
                return None
            pieces[start : start + 1] = parts
            ends[start : start + 1] = accumulate(map(len, parts[:-1]), initial=ends[start])
            start = first
        else:
            found.append((ends[start], ends[start] + len(text[ends[start] : ends[end]].rstrip())))
            first = start = max(end - 1, start + 1)
            begun = end
    return found or None


def _smaller_pieces(sentence: str, fits) -> list[str] | None:
    """A sentence that is too long in pieces that fit each: clauses, or, of a clause too long, as much as fits."""
    pieces = []
    for clause in filter(None, _CLAUSE.findall(sentence)):
        while clause:
            size = _largest(0, len(clause), lambda size, clause=clause: fits(clause[:size]), FIRST_STEP)
            if not size:
                return None
            pieces.append(clause[:size])
            clause = clause[size:]
    return pieces


def _largest(low: int, high: int, fits, step: int = 1) -> int:
    """The largest number from `low` to `high` that fits, if all below it do; `low` when none above it does.

    The steps from `low` on double.
    """
    while low < high and fits(min(low + step, high)):
        low, step = min(low + step, high), 2 * step
    high = min(high, low + step) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
