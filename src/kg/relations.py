"""What is known of relations, as data: relations.json, or a user's own file of the same form."""

from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import read_json

OWN = Path(__file__).with_name("relations.json")
LISTS = ("alias", "apart", "single", "symmetric")
ADVICE = f"expected an object with the lists {', '.join(LISTS)} and the object kinds, as src/kg/relations.json has them"


class Relations(NamedTuple):
    """alias: their tail is another name of the head; apart: two values of them are two entities; single: one value is
    right; symmetric: both directions are; head_kind, tail_kind: relation -> the kind of thing at that end.
    """

    alias: frozenset[str]
    apart: tuple[str, ...]
    single: frozenset[str]
    symmetric: frozenset[str]
    head_kind: dict[str, str]
    tail_kind: dict[str, str]


def relations_of(found: dict, name: str = str(OWN)) -> Relations:
    """The table that a JSON object describes; UserError with `name` for one of another form."""
    lists = [found.get(key, []) for key in LISTS] if isinstance(found, dict) else [None]
    kinds = found.get("kinds", {}) if isinstance(found, dict) else None
    if not isinstance(kinds, dict) or not all(isinstance(ends, dict) for ends in kinds.values()):
        raise UserError(f"{name}: {ADVICE}")
    lists += [ends.get(end, []) for ends in kinds.values() for end in ("head", "tail")]
    if not all(isinstance(one, list) and all(isinstance(word, str) for word in one) for one in lists):
        raise UserError(f"{name}: {ADVICE}")
    heads, tails = (
        {relation: kind for kind, ends in kinds.items() for relation in ends.get(end, [])} for end in ("head", "tail")
    )
    alias, apart, single, symmetric = lists[: len(LISTS)]
    return Relations(frozenset(alias), tuple(apart), frozenset(single), frozenset(symmetric), heads, tails)


def read_relations(path: str | Path | None) -> dict:
    """The object of a file (--relations), checked; of the project's own one without a path."""
    try:
        found = read_json(path or OWN, ADVICE)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"--relations {path or OWN}: {error.strerror}; {ADVICE}") from None
    relations_of(found, str(path or OWN))
    return found
