"""Triples as text: what an instruction asks for, the triples an answer holds, and the text of triples.

Pure functions of the standard library. Every part of the project that reads an answer calls `parse`.

The text form has no escapes, so some texts have two readings. With the relations asked for (`schema`) and the record's
`input` (`source`), `parse(render(triples))` gives the triples back unless an entity itself holds what stands between
two triples, such as `),(`, or an asked relation between two commas, or a bracket without a partner. Without them, an
entity with a comma may be cut at the wrong place too: docs/triples.md counts how often real gold has one.
"""

import json
import re
from bisect import bisect_left, bisect_right
from functools import lru_cache, partial
from itertools import islice, pairwise
from typing import NamedTuple

from kg.objects import CLOSE, NAN, OPEN, cut_reasoning, read_objects

COMMAS = ",，"
MARKS, MARKS_CLOSE = "《“「『", "》”」』"  # title and quotation marks: a comma between them belongs to the entity
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’"}  # around all parts of a triple they are the format's
PLACEHOLDERS = {("Subject", "Relation", "Object"), ("头实体", "关系", "尾实体")}  # an instruction's, said again
BETWEEN = {"contest": ",", "older": "", "lines": "\n"}  # what stands between two triples in each text style of `render`
STYLES = (*BETWEEN, "json")
LONGEST_TRIPLE = 1000  # characters; a bracket that stays open for longer does not hold a triple
TRIES, MANY = (8, 2), 1000  # closing brackets and commas tried for a triple; fewer where more brackets open than MANY
_OPEN, _PART = r"[(（\[【]", r"([^()（）\[\]【】,，]*)"
_ENDS_TRIPLE = re.compile(rf"(?:\s*[,，;；、。.])?\s*(?:{_OPEN}|<|\n|$)")  # what may follow a triple's last bracket
_ENDS_LISTED = re.compile(r"[)）\]】]?" + _ENDS_TRIPLE.pattern)  # the same where the triples stand in a list's brackets
_OPENS_LIST = re.compile(rf"[^(（\[【]*{_OPEN}\s*{_OPEN}")
_PILE = re.compile(_OPEN + "{6}")
# a triple with nothing to doubt: no bracket in its parts and no third comma
_PLAIN = re.compile(rf"{_OPEN}{_PART}[,，]{_PART}[,，]{_PART}[)）\]】]{_ENDS_TRIPLE.pattern}")


class Triple(NamedTuple):
    """(head, relation, tail), as text."""

    head: str
    relation: str
    tail: str


class _Reading(NamedTuple):
    rank: tuple  # the higher, the better
    end: int  # position of the closing bracket
    triple: Triple
    whole: bool  # its brackets are paired, and what follows it may follow a triple
    likely: bool  # false for `甲),(甲),(甲`, where nothing speaks for a triple across several brackets


def parse(text: str, schema: list[str] | None = None, source: str | None = None) -> list[Triple]:
    """The triples of an answer, in order, each once; nothing in them is normalised.

    `schema` (the relations asked for) and `source` (the record's input) decide where the commas of an entity end and
    those between the parts begin. Empty parts, `NAN`, prose and a last triple that was cut off are dropped. Any `str`
    is accepted; the time is linear in its length.
    """
    return parse_with_rest(text, schema, source)[0]


def parse_with_rest(
    text: str, schema: list[str] | None = None, source: str | None = None
) -> tuple[list[Triple], list[str]]:
    """As `parse`, and beside the triples what began like one and was dropped: cut off, or with an empty part.

    A triple with a part `NAN` says that there is nothing; it is dropped and stands in neither list.
    """
    triples, rest = {}, []
    read_text = partial(_read, relations=schema or [], source=source or "")
    text = cut_reasoning(text)
    objects = read_objects(text, schema or [], read_text)
    if objects and "{" not in text and all(isinstance(one, str) for one in objects):
        # Quotation marks may be the entities' own: an asked relation without any between two commas is the text form's.
        objects = None if any(f",{name}," in text for name in schema or []) else objects
    for found in read_text(text) if objects is None else objects:
        if isinstance(found, str):
            rest.append(found)
        elif not all(found):
            rest.append(f"({','.join(found)})")
        elif found not in PLACEHOLDERS and not any(part in (NAN, "nan", "NaN") for part in found):
            triples[Triple(*found)] = None
    return list(triples), rest


def render(triples, style: str = "contest") -> str:
    """`(h,r,t),(h,r,t)`, the form of the contest; nothing between the triples in style `older`, newlines in `lines`.

    Style `json`: `[{"head": h, "relation": r, "tail": t}]`, which says every triple without doubt.
    """
    if style == "json":
        keys = ("head", "relation", "tail")
        return json.dumps([dict(zip(keys, triple, strict=True)) for triple in triples], ensure_ascii=False)
    return BETWEEN[style].join(f"({head},{relation},{tail})" for head, relation, tail in triples)


def _read(text: str, relations: list[str], source: str):
    """Yield the triples of `text` in order, parts possibly empty, and as plain strings the pieces of broken ones."""
    opens, closes, commas = ([m.start() for m in re.finditer(f"[{re.escape(c)}]", text)] for c in (OPEN, CLOSE, COMMAS))
    asked, tries = _asked_relations(tuple(relations)), TRIES[len(opens) > MANY]
    ends_triple = _ENDS_LISTED if _OPENS_LIST.match(text) else _ENDS_TRIPLE

    @lru_cache(maxsize=2)
    def reading(number: int) -> _Reading | None:
        """The best way to close the triple that the bracket of this number opens; None when no bracket near it can."""
        start, best = opens[number], None
        second = bisect_right(commas, start) + 1
        first = bisect_left(closes, commas[second]) if second < len(commas) else len(closes)
        for end in closes[first : first + tries]:
            if end - start > LONGEST_TRIPLE:
                break
            triple, is_asked, stands = _split(text[start + 1 : end], asked, source, tries)
            paired, ends = _paired(triple), bool(ends_triple.match(text, end + 1))
            # Entities that stand in the source are believed although a bracket in them has no partner.
            sure = is_asked and (stands or paired)  # else the relation may be that of a later triple
            rank = (sure, stands, *((ends, paired) if stands else (paired, ends)), start - end)
            if best is None or rank > best.rank:
                known = is_asked or stands or not _closes_early(triple.head)
                best = _Reading(rank, end, triple, paired and ends, known)
            if paired and ends:
                break
        return best

    done = 0  # what stands before this position has been read
    for number, start in enumerate(opens):
        if start < done or _PILE.match(text, start):
            continue  # inside the last triple, or far out in a pile of brackets
        plain = _PLAIN.match(text, start)
        if plain:
            done = plain.end(3) + 1
            yield _triple(*plain.groups(), source)
            continue
        second = bisect_right(commas, start) + 1
        if second >= len(commas) or not closes or closes[-1] < commas[second]:  # nothing from here on is a triple
            rest = text[start:]
            if sum(map(rest.count, OPEN)) > sum(map(rest.count, CLOSE)) and sum(map(rest.count, COMMAS)):
                yield rest
            return
        # `[(a,b,c),…` or `（例如）(a,b,c)`: the triple may open only at the next bracket
        leads = number + 1 < len(opens) and (
            _only_leads(text, start, opens[number + 1])
            or (asked and asked.search(text, start, opens[number + 1]))  # `(a,位于,b(c,位于,d)`: never closed
        )
        inner = reading(number + 1) if leads else None
        best = inner if inner and inner.whole and opens[number + 1] == start + 1 else reading(number)
        if best is None or not best.likely:
            continue
        if inner and inner.end <= best.end and inner.rank >= best.rank:
            skipped = text[start : opens[number + 1]]
            if sum(map(skipped.count, COMMAS)) > 1:
                yield skipped
            continue
        done = best.end + 1
        yield text[start:done] if _cut_off(text, best, source) else best.triple


def _only_leads(text: str, start: int, following: int) -> bool:
    """Whether the bracket at `start` may be a list's, or one of the prose before the bracket that follows."""
    if following - start > LONGEST_TRIPLE:
        return False
    between = text[start + 1 : following]
    if any(close in between for close in CLOSE):
        return sum(map(between.count, COMMAS)) < 2
    prose = between.rstrip()
    return not prose or prose[-1] in ":：,，;；" or "\n" in between[len(prose) :]


def _split(body: str, asked: re.Pattern | None, source: str, tries: int) -> tuple[Triple, bool, bool]:
    """Head, relation and tail of a body, whether the relation was asked for, and whether head and tail are in `source`.

    Preferred are an asked relation, then entities of the source, then the longest relation; with no asked relation:
    entities of the source, paired brackets, commas that are not a number's, commas of one kind, and the first two.
    """
    if asked:
        triples = [
            _triple(body[: m.start()], m[0][1:], body[m.end() + 1 :], source)
            for m in islice(asked.finditer(body), tries)
        ]
        if triples:
            best = max(triples, key=lambda triple: (_stands(triple, source), len(triple.relation)))
            return best, True, _stands(best, source)
    commas = [position for position, char in enumerate(body) if char in COMMAS][: tries + 1]
    pairs = list(pairwise(commas))
    triples = [_triple(body[:first], body[first + 1 : second], body[second + 1 :], source) for first, second in pairs]
    if len(triples) == 1:
        return triples[0], False, _stands(triples[0], source)

    def worth(number: int) -> tuple:
        triple, (first, second) = triples[number], pairs[number]
        numeric = any(body[comma - 1 : comma + 2 : 2].isdigit() for comma in (first, second))  # `2,424人` `1,3-丁二烯`
        return _stands(triple, source), _paired(triple, marks=True), not numeric, body[first] == body[second], -number

    best = triples[max(range(len(triples)), key=worth)]
    return best, False, _stands(best, source)


@lru_cache(maxsize=1024)
def _asked_relations(relations: tuple[str, ...]) -> re.Pattern | None:
    """Finds `,RELATION` where a comma follows, the longest relation first."""
    names = "|".join(re.escape(name) for name in sorted(relations, key=len, reverse=True) if name.strip())
    return re.compile(rf"[,，]\s*[\"'“‘]?(?:{names})[\"'”’]?\s*(?=[,，])") if names else None


@lru_cache(maxsize=256)  # models that loop say one triple over and over
def _triple(head: str, relation: str, tail: str, source: str) -> Triple:
    """The parts without the spaces and quotes of the format.

    They are the format's if the relation has them too. Else the source decides; without one, spaces go and quotes stay.
    """
    name = relation.strip()
    spaced, quoted = name != relation, _quoted(name)
    name = name[1:-1].strip() if quoted else name
    return Triple(_entity(head, source, spaced, quoted), name, _entity(tail, source, spaced, quoted))


def _entity(part: str, source: str, spaced: bool, quoted: bool) -> str:
    bare = part.strip()
    if bare != part and not spaced and source and bare and part in source:
        return part
    if _quoted(bare):
        inside = bare[1:-1].strip()
        if quoted or (source and bare not in source and inside in source):
            return inside
    return bare


def _quoted(part: str) -> bool:
    return len(part) > 1 and QUOTES.get(part[0]) == part[-1]


def _stands(triple: Triple, source: str) -> bool:
    return bool(source and triple.head and triple.tail) and triple.head in source and triple.tail in source


def _paired(triple: Triple, marks: bool = False) -> bool:
    """Whether in each part every bracket has its partner, of whatever kind; `marks`: title and quotation marks too."""
    opening, closing = (OPEN + MARKS, CLOSE + MARKS_CLOSE) if marks else (OPEN, CLOSE)
    for part in triple:
        depth = 0
        for char in part:
            if char in opening:
                depth += 1
            elif char in closing:
                depth -= 1
                if depth < 0:
                    return False
        if depth or (marks and part.count('"') % 2):
            return False
    return True


def _closes_early(head: str) -> bool:
    """Whether a bracket closes in the head that did not open there: the triple's own."""
    depth = 0
    for char in head:
        depth += (char in OPEN) - (char in CLOSE)
        if depth < 0:
            return True
    return False


def _cut_off(text: str, reading: _Reading, source: str) -> bool:
    """Whether the text ends inside a tail with an open bracket, `(甲,位于,中野站(东京都)`: that bracket closed it."""
    tail, close = reading.triple.tail, text[reading.end]
    is_open = sum(map(tail.count, OPEN)) > sum(map(tail.count, CLOSE))
    return is_open and not text[reading.end + 1 :].strip() and (not source or tail + close in source)
