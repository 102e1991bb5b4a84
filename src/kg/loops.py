"""Answers that go round in circles: the same triple, said again and again. Pure functions of the standard library."""

from kg import triples
from kg.triples import COMMAS

OPEN, CLOSE = triples.OPEN + "{", triples.CLOSE + "}"  # of triples as text, and as objects


def loop_end(text: str, times: int) -> int | None:
    """Where the `times`-th occurrence of one triple ends in an answer (an index into `text`); None: none is that often.

    A triple is what stands in a pair of brackets, or braces, with two commas or more between them; blanks do not count.
    The time is linear in the text but for brackets within brackets.
    """
    opened, seen = [], {}  # of every open bracket: its index, and the commas since that no other bracket holds
    for index, character in enumerate(text):
        if character in OPEN:
            opened.append([index, 0])
        elif character in COMMAS and opened:
            opened[-1][1] += 1
        elif character in CLOSE and opened:
            start, commas = opened.pop()
            if commas >= 2:
                triple = "".join(text[start + 1 : index].split())
                seen[triple] = seen.get(triple, 0) + 1
                if seen[triple] == times:
                    return index + 1
    return None


def loops(text: str, times: int) -> bool:
    """Whether an answer, whole or so far, says one triple `times` times or more; never with `times` 0."""
    return times > 0 and loop_end(text, times) is not None
