"""Another list of relations in an instruction, written as the instruction writes its own. Pure functions."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise

from kg.schema import find_schema, read_schema

_QUOTES = "'\"‘’“”`「」"
_NUMBER = re.compile(r"\d{1,3}(?=[.、)）])|[①-⑳]")
_CONNECTS = re.compile(rf"(?:[\s{_QUOTES},，、;；/|\-*+•·●○.()（）\d①-⑳]|以及|和|与|及|and|or)*", re.IGNORECASE)
# Behind a name what describes it, and then what parts it from the next name or closes the list.
_PARTED = re.compile(
    rf"(.*?)([{_QUOTES}]?\s*[,，、;；]\s*[{_QUOTES}]?|\n\s*(?:[-*+•·●○]|[（(]?\d{{1,3}}[.、)）])?\s*)", re.DOTALL
)
_CLOSED = re.compile(rf"(.*?)([{_QUOTES}]?\s*,?\s*[\]}}】）)]+|\n?)", re.DOTALL)
_BRACKETS = dict(zip("[{【（(", "]}】）)", strict=True))


def replace_schema(instruction: str, names: list[str]) -> str | None:
    """The instruction with `names` in place of the relations it asks for, its brackets, quotes, separators and numbers
    kept; None when it has no list, or when `read_schema` would not read just these names in the new one.

    Descriptions of relations move with their names; where there are some, `names` must be among the old ones.
    """
    found = find_schema(instruction)
    if found is None:
        return None
    if found.names == names:
        return instruction
    before, region, behind = instruction[: found.start], instruction[found.start : found.end], instruction[found.end :]
    for new in _rewrite(region, found.names, names, instruction):
        if read_schema(replaced := before + new + behind) == names:
            return replaced
    return None


def _rewrite(region: str, old: list[str], names: list[str], instruction: str) -> Iterator[str]:
    """What may stand in place of the `region`, which holds the `old` names; the likeliest form first."""
    if not old or not names:
        opener, close = region.lstrip()[:1], _BRACKETS.get(region.lstrip()[:1])
        if close and not names:
            yield f"{opener}{close}"
        elif close:
            yield from (f"{opener}{quote}{f'{quote}, {quote}'.join(names)}{quote}{close}" for quote in ("'", '"'))
        return
    for spell in (str, _escape):  # as they are, or in the ASCII of JSON
        places = _find_in_order(region, [spell(name) for name in old])
        if places is not None:
            break
    else:
        return
    new = [spell(name) for name in names]
    first, last = region[: places[0][0]], region[places[-1][1] :]
    gaps = [region[end:start] for (_, end), (start, _) in pairwise(places)]
    if all(_CONNECTS.fullmatch(gap) for gap in gaps) and not _describes(last):
        for between in _fill_gaps(first, last, gaps, len(names), instruction):
            yield first + "".join(f"{name}{gap}" for name, gap in zip(new, [*between, last], strict=True))
    elif len(set(gaps)) == 1 and len(gaps) > 1:  # objects that hold nothing but a name
        yield first + gaps[0].join(new) + last
    yield from _move_described(first, last, gaps, old, names, spell)


def _escape(name: str) -> str:
    return json.dumps(name)[1:-1]


def _describes(last: str) -> bool:
    """Whether a description follows the last name of a list."""
    return bool(re.match(rf"[{_QUOTES}]?\s*(?:[:：]|——|- |– |— )", last))


def _find_in_order(text: str, words: list[str]) -> list[tuple[int, int]] | None:
    """Where the words stand in the text, each behind the one before it; None unless all do."""
    places, at = [], 0
    for word in words:
        start = text.find(word, at)
        if start < 0:
            return None
        at = start + len(word)
        places.append((start, at))
    return places


def _fill_gaps(first: str, last: str, gaps: list[str], count: int, instruction: str) -> Iterator[list[str]]:
    """What may stand between `count` names, where `gaps` stand now."""
    if count == len(gaps) + 1:
        yield gaps
    elif not gaps:
        opens, closes = first[-1:] if first[-1:] in _QUOTES else "", last[:1] if last[:1] in _QUOTES else ""
        usual = [f"{closes}{part}{opens}" for part in (", ", ",", "，", "、", "\n", "\n- ")]
        # another list of the instruction, that of the entities' types, shows how it parts names
        for gap in sorted(usual, key=lambda gap: not (opens and gap in instruction)):
            yield [gap] * (count - 1)
    elif _NUMBER.search(first) and all(map(_NUMBER.search, gaps)):
        yield [_NUMBER.sub(_number_like(gaps[0], number), gaps[0], count=1) for number in range(2, count + 1)]
    else:
        yield ([gaps[0]] * (count - 2) + [gaps[-1]])[: count - 1] if count > 1 else []


def _number_like(gap: str, number: int) -> str:
    ringed = _NUMBER.search(gap)[0] in "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳"
    return chr(ord("①") + number - 1) if ringed and number <= 20 else str(number)


def _move_described(first: str, last: str, gaps: list[str], old: list[str], names: list[str], spell) -> Iterator[str]:
    """The list of those `names` with what describes each, if all are among the old ones."""
    parted, closed = [_PARTED.fullmatch(gap) for gap in gaps], _CLOSED.fullmatch(last)
    if not closed or not all(parted) or not set(names) <= set(old):
        return
    about = dict(zip(old, [*(found[1] for found in parted), closed[1]], strict=True))
    blocks = [f"{spell(name)}{about[name]}" for name in names]
    for between in _fill_gaps(first, last, [found[2] for found in parted], len(names), ""):
        yield first + "".join(f"{block}{gap}" for block, gap in zip(blocks, [*between, closed[2]], strict=True))
