"""Texts too long for one prompt, cut at sentence ends into windows that overlap by a sentence. Pure functions."""

import re

# A sentence ends behind its mark and the quotes and brackets that close with it. A full stop is one only before a
# blank, and not behind a single capital letter (J. Smith).
_SENTENCE = re.compile(r".*?(?:[。！？!?；;…]+[”’」』》）)\"']*|(?<![A-Z])\.[\"')]*(?=\s)|\n|\Z)\s*", re.DOTALL)
_CLAUSE = re.compile(r".*?(?:[，,、：:]+|\Z)\s*", re.DOTALL)


def sentences(text: str) -> list[str]:
    """The sentences of a Chinese or English text; put together again, they are the text."""
    return [part for part in _SENTENCE.findall(text) if part]


def windows(text: str, fits) -> list[str] | None:
    """Stretches of a text, in order, each as long as `fits(stretch)` allows; None when not even one character fits,
    or, of a text without any, not even that.

    They begin and end with sentences, and each begins with the sentence that the one before ends with, where that
    leaves room for another. A sentence that is too long is cut at its commas, and a clause anywhere.
    """
    if fits(text):
        return [text]
    pieces = _small_pieces(text, fits)
    if pieces is None:
        return None
    found, start, begun = [], 0, 0  # `begun`: the first piece that no window holds yet
    while begun < len(pieces):
        end = _last_that_fits(pieces, start, fits)
        if end <= begun:  # the overlap takes all the room
            start = begun
            end = _last_that_fits(pieces, start, fits)
        found.append("".join(pieces[start:end]))
        start, begun = max(end - 1, start + 1), end
    return found


def _last_that_fits(pieces: list[str], start: int, fits) -> int:
    """The largest `end` with which pieces[start:end] fit; one piece always does."""
    low, high = start + 1, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits("".join(pieces[start:middle])) else (low, middle - 1)
    return low


def _small_pieces(text: str, fits) -> list[str] | None:
    """The text in pieces that fit each: sentences, or clauses, or, of a clause too long, as much as fits."""
    pieces = []
    for sentence in sentences(text):
        for clause in [sentence] if fits(sentence) else [part for part in _CLAUSE.findall(sentence) if part]:
            while not fits(clause):
                size = _longest_beginning(clause, fits)
                if not size:
                    return None
                pieces.append(clause[:size])
                clause = clause[size:]
            pieces.append(clause)
    return pieces or None


def _longest_beginning(text: str, fits) -> int:
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    return low
