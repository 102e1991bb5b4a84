"""Which names are one entity: by evidence that can be shown, never by how similar they look.

Evidence for it: names that differ in width, white space or marks around them only; an alias that was extracted.
Evidence against it: facts that contradict each other, two birth dates, a person and a place. Pure functions over names.
"""

import re
import unicodedata
from collections import defaultdict
from functools import lru_cache
from typing import NamedTuple

MODES = ("none", "normal", "alias")
KIND = "kind"  # the aspect of a fact that says what kind of thing a name is
MARKS = {"《": "》", "〈": "〉", "「": "」", "『": "』", '"': '"', "'": "'"}
_QUOTES = str.maketrans("“”‘’", "\"\"''")
_OWN_MEANING = ("<super>", "<sub>", "<fraction>", "<circle>")  # that NFKC would lose: 10² is not 102
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_CJK = "\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
_SPACES, _BESIDE_CJK = re.compile(r"\s+"), re.compile(rf"(?<=[{_CJK}]) | (?=[{_CJK}])")


class Fact(NamedTuple):
    """What a source says of a name: `aspect` is a relation of which one value is right, or KIND."""

    aspect: str
    value: str
    source: str


class Resolution(NamedTuple):
    """same: name -> (the name it is merged into, why); parts: name -> {source: what its entity is told apart by};
    apart: (name, why it was not merged, or is several entities).
    """

    same: dict[str, tuple[str, str]]
    parts: dict[str, dict[str, str]]
    apart: list[tuple[str, str]]


@lru_cache(maxsize=2**16)
def normal_form(name: str) -> str:
    """The name in NFKC without white space that carries nothing, and without title or quotation marks around it."""
    text = name
    if not unicodedata.is_normalized("NFKC", text):
        keep = (unicodedata.decomposition(c).startswith(_OWN_MEANING) for c in text)
        pieces = (c if own else unicodedata.normalize("NFKC", c) for c, own in zip(text, keep, strict=True))
        text = unicodedata.normalize("NFC", "".join(pieces))
    text = _SPACES.sub(" ", _INVISIBLE.sub("", text)).strip()
    text = _BESIDE_CJK.sub("", text).translate(_QUOTES)
    while len(text) > 2 and MARKS.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text or name


def resolve(names, aliases, facts_of, mode: str, aspects: tuple[str, ...]) -> Resolution:
    """Which of the names are one entity. The names hold all that may be merged with one of them.

    `aliases`: (head, relation, tail), that the tail is another name of the head; `facts_of(name)`: its Facts;
    `aspects`: of which two values are two entities. The result depends on the set of names, aliases and facts only.
    """
    names = sorted(names)
    if mode == "none":
        return Resolution({}, {}, [])
    aspects = (KIND, *aspects)
    facts = {name: list(facts_of(name)) for name in names}
    parts = {name: found for name in names if (found := _tell_apart(facts[name], aspects))}
    apart = [(name, f"several entities, told apart by {_listed(set(found.values()))}") for name, found in parts.items()]
    group = {name: [name] for name in names}  # the names that each is one entity with, one list for all of them
    why = {}

    def join(one: str, other: str, reason: str) -> bool:
        if group[one] is group[other]:
            return True
        together = group[one] + group[other]
        if one in parts or other in parts:
            return False
        if told := _tell_apart([fact for name in together for fact in facts[name]], aspects, keep_main=False):
            apart.append((one, f"not merged ({reason}): {_listed(set(told.values()))}"))
            return False
        why.setdefault(other, reason)
        why.setdefault(one, reason)
        for name in together:
            group[name] = together
        return True

    by_form = defaultdict(list)
    for name in names:
        by_form[normal_form(name)].append(name)
    for form, several in sorted(by_form.items()):
        first = form if form in several else several[0]
        for name in several:
            if name != first:
                join(first, name, f"the same but for width, white space or marks: {form}")
    aliases = sorted(set(aliases)) if mode == "alias" else []
    apart += _join_aliases(aliases, group, join)
    tails = {tail for head, _, tail in aliases if head in group and tail in group and group[head] is group[tail]}
    same = {}
    for name in names:
        main = min(group[name], key=lambda one: (one in tails, one != normal_form(one), len(one), one))
        if main != name:
            same[name] = (main, why[name])
    return Resolution(same, parts, sorted(set(apart)))


def _join_aliases(aliases, group, join) -> list[tuple[str, str]]:
    """Join each alias with its head. One that several entities have is none of theirs: it would chain them."""
    form = {name: several[0] for name, several in group.items()}  # the same name in other marks has the same heads
    heads = defaultdict(list)
    for head, relation, tail in aliases:
        if head in group and tail in group and form[head] != form[tail]:
            heads[form[tail]].append((head, relation, tail))
    open_tails, before = sorted(heads), None
    while len(open_tails) != before:
        before, still = len(open_tails), []
        for tail in open_tails:
            others = {id(group[head]) for head, _, _ in heads[tail] if group[head] is not group[tail]}
            if len(others) > 1:
                still.append(tail)
                continue
            for head, relation, said in heads[tail]:
                join(head, said, f"{head} {relation} {said}")
        open_tails = still
    return [(tail, f"an alias of several: {_listed({head for head, _, _ in heads[tail]})}") for tail in open_tails]


def _tell_apart(facts: list[Fact], aspects: tuple[str, ...], keep_main: bool = True) -> dict[str, str]:
    """Source -> what tells its entity apart, for facts that cannot be of one entity; {} where they can.

    Sources that say nothing of the aspect stay with the name; with them (`keep_main`) the entity that most speak of.
    """
    for number, aspect in enumerate(aspects):
        said = defaultdict(set)
        for fact in facts:
            if fact.aspect == aspect:
                said[fact.source].add(fact.value)
        if len(said) < 2:
            continue
        agreed = {source: most[0] for source, values in said.items() if len(most := _most_exact(values)) == 1}
        exact = _most_exact(set(agreed.values()))
        if len(exact) < 2:
            continue
        parts = {}
        for source, value in agreed.items():
            fitting = [one for one in exact if _less_exact(value, one)]
            if len(fitting) == 1:
                parts[source] = fitting[0] if aspect == KIND else f"{aspect} {fitting[0]}"
        by_part = defaultdict(list)
        for source, part in parts.items():
            by_part[part].append(source)
        sizes = sorted(map(len, by_part.values()))
        if keep_main and sizes[-1] > sizes[-2]:
            largest = max(by_part, key=lambda part: len(by_part[part]))
            parts = {source: part for source, part in parts.items() if part != largest}
        rest = [fact for fact in facts if fact.source not in parts]
        return parts | _tell_apart(rest, aspects[number + 1 :], keep_main)
    return {}


def contradict(values) -> bool:
    """Whether of several values of a relation that has one more than one would have to be right."""
    return len(_most_exact(set(values))) > 1


def _most_exact(values: set[str]) -> list[str]:
    """The values that no other makes more exact: of 1982年 and 1982年2月26日 the second."""
    kept = []
    for value in sorted(values, key=lambda one: (-len(_parts_of(one)), -len(one), one)):
        if not any(_less_exact(value, other) for other in kept):
            kept.append(value)
    return kept


def _less_exact(value: str, other: str) -> bool:
    """Whether `other` says the same as `value`, or more: by the numbers in them, if there are any, else by the text."""
    mine, right = _parts_of(value), _parts_of(other)
    return right[: len(mine)] == mine if mine and right else normal_form(value) in normal_form(other)


@lru_cache(maxsize=2**14)
def _parts_of(value: str) -> tuple:
    """The numbers of a date or an amount, in order; those before our era are others than those after it."""
    text = normal_form(value)
    numbers = tuple(int(found) for found in re.findall(r"\d{1,18}", re.sub(r"(?<=\d),(?=\d{3})", "", text)))
    return ("前", *numbers) if numbers and re.search(r"前\s*\d|\bB\.?C\b", text) else numbers


def _listed(values) -> str:
    shown = sorted(values)
    return " / ".join(shown[:5]) + (f" / … {len(shown) - 5} more" if len(shown) > 5 else "")
