"""Triples as text: the relations an instruction asks for, the triples an answer holds, and the text of triples.

Pure functions of the standard library. Every part of the project that reads an answer calls `parse`.
"""

import re
from itertools import combinations
from typing import NamedTuple

OPEN, CLOSE, COMMAS = "(（[【", ")）]】", ",，"
QUOTES = "\"'"  # a model's or Python's quotes around a part; Chinese quotation marks belong to the entity
LONGEST_TRIPLE = 1000  # characters; a bracket that stays open for longer does not hold a triple

_NAME = r"""\s*(?:'[^']*'|"[^"]*"|‘[^’]*’|“[^”]*”)\s*"""
_LIST = re.compile(
    r"(?:(?:候选)?关系(?:列表|类型)|relation list)\s*(?:为|是|is|[:：=])?\s*"
    rf"[\[{{【（(]({_NAME}(?:[,，、]{_NAME})*|.*?)[\]}}】）)]",  # a quoted name may hold brackets
    re.DOTALL | re.IGNORECASE,
)
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"|‘([^’]*)’|“([^”]*)”")


class Triple(NamedTuple):
    head: str
    relation: str
    tail: str


def schema(instruction: str) -> list[str] | None:
    """The relations an instruction asks for, in its order; `[]` for an empty list, None when it names no list."""
    found = _LIST.search(instruction or "")
    if not found:
        return None
    inside = found[1]
    quoted = [next(part for part in match if part) for match in _QUOTED.findall(inside) if any(match)]
    names = quoted or re.split(r"[,，、]", inside)
    return [name.strip() for name in names if name.strip()]


def parse(text: str, schema: list[str] | None = None, source: str | None = None) -> list[Triple]:
    """The triples of an answer, in order, each once; nothing in them is normalised.

    `schema` (the relations asked for) and `source` (the record's input) decide where the commas of an entity end and
    those between the parts begin. Empty parts, `NAN`, prose and a last triple that was cut off are dropped.
    """
    triples = dict.fromkeys(_split(body, schema or [], source or "") for body in _bodies(text))
    return [triple for triple in triples if triple]


def render(triples) -> str:
    """`(h,r,t),(h,r,t)`, the form of the contest; the empty string for no triples."""
    return ",".join(f"({head},{relation},{tail})" for head, relation, tail in triples)


def _bodies(text: str):
    """Yield what stands between a triple's outer brackets, of any style and mixture."""
    start = 0
    while start < len(text):
        if text[start] not in OPEN:
            start += 1
            continue
        if _around_triples(text, start):
            start += 1
            continue
        end = _end(text, start)
        if end is None:
            start += 1
        else:
            yield text[start + 1 : end]
            start = end + 1


def _around_triples(text: str, start: int) -> bool:
    """Whether the bracket is that of a list, `[(a,b,c),(d,e,f)]`, and not of a triple `((10199)a,b,c)`."""
    if text[start + 1 : start + 2] not in tuple(OPEN):
        return False
    end, outer = _end(text, start + 1), _end(text, start)
    if end is None or outer in (None, end):
        return True
    rest = text[end + 1 :].lstrip(" \t\r\n;；、" + COMMAS)
    if not rest or rest[0] in OPEN + CLOSE:
        return True
    return _commas(text, start, end) >= 2 and not text[end + 1 :].startswith(rest)


def _commas(text: str, start: int, end: int) -> int:
    return sum(text.count(comma, start, end) for comma in COMMAS)


def _end(text: str, start: int) -> int | None:
    """Where the bracket opened at `start` closes; brackets inside an entity may nest, or be left open."""
    depth, first_close = 0, None
    for position in range(start, min(len(text), start + LONGEST_TRIPLE)):
        if text[position] in OPEN:
            if first_close is not None and _between_triples(text, start, first_close, position):
                return first_close  # `(a(b,r,t),(…`: the entity's own bracket was never closed
            depth += 1
        elif text[position] in CLOSE:
            depth -= 1
            first_close = position
            if depth == 0:
                return position
    return first_close


def _between_triples(text: str, start: int, close: int, opening: int) -> bool:
    if _commas(text, start, close) < 2 or text[close + 1 : opening].strip() not in (*COMMAS, "", ";", "；", "、"):
        return False
    depth = 0
    for position in range(opening, min(len(text), opening + LONGEST_TRIPLE)):
        depth += (text[position] in OPEN) - (text[position] in CLOSE)
        if depth == 0:  # `中野站(东京都)(中野区)`: no triple opens here
            return _commas(text, opening, position) >= 2
    return True


def _split(body: str, relations: list[str], source: str) -> Triple | None:
    """Head, relation and tail of one body, or None when it holds no complete triple."""
    commas = [position for position, char in enumerate(body) if char in COMMAS]
    if len(commas) < 2:
        return None
    cuts = list(combinations(commas[:12], 2))
    asked = [cut for cut in cuts if body[cut[0] + 1 : cut[1]].strip(" " + QUOTES) in relations]
    asked.sort(key=lambda cut: cut[0] - cut[1])  # the longest relation first
    triples = [_triple(body, *cut) for cut in asked or cuts]
    if not asked:  # the plain three-way split: what follows the second comma belongs to the tail
        triples.sort(key=lambda triple: "," in triple.relation or "，" in triple.relation)
    known = [triple for triple in triples if source and triple.head in source and triple.tail in source]
    best = (known or triples)[0]
    return best if all(part and part.upper() != "NAN" for part in best) else None


def _triple(body: str, first: int, second: int) -> Triple:
    return Triple(_clean(body[:first]), _clean(body[first + 1 : second]), _clean(body[second + 1 :]))


def _clean(part: str) -> str:
    part = part.strip()
    if len(part) > 1 and part[0] in QUOTES and part[0] == part[-1]:
        part = part[1:-1].strip()
    return part
