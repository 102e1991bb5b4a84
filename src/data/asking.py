"""Which relations a question asks for: the record's list shuffled, with others of its topic, in several parts, or
several times; and in which order an answer says a triple's parts.

Everything drawn follows from (seed, epoch, number of the record) alone: any process, at any time, draws the same.
"""

import random
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from common.errors import UserError, say
from data.answer_form import ask_json
from kg.metrics import triples_of
from kg.objects import NAN
from kg.replacing import replace_schema
from kg.schema import read_schema
from kg.triples import STYLES, Triple, parse, render

GROUPS = "schema_groups"  # the field of a record whose relations are asked in parts: a list of lists of them


class Asking(NamedTuple):
    """How records are asked. As it stands: by their own lists."""

    shuffle: bool = False  # --shuffle_schema
    negatives: int = 0  # --negative_relations: most relations of the topic that are added to a list
    batch: int = 0  # --schema_batch: most relations of a question; 0: any number
    seed: int = 42
    tail_first: bool = False  # --answer_order tail: answers say (tail,relation,head)
    lists: int = 1  # --votes: so many orders of each list are asked, the first of them the list's own
    draws: int = 1  # --votes with --do_sample: each record is asked so often
    least: int = 0  # --min_votes: answers that must have a triple; 0: more than half
    as_json: bool = False  # --answer_format json: answers are lists of objects with head, relation and tail

    @property
    def changes(self) -> bool:
        """Whether a record is asked in another way than by its own list."""
        return self[:3] != (False, 0, 0)

    @property
    def votes(self) -> int:
        return max(self.lists, self.draws)

    @property
    def share(self) -> float:
        """The share of a record's answers that must have a triple."""
        return (self.least or self.votes // 2 + 1) / self.votes

    @property
    def settings(self) -> dict:
        """What is not as it stands by default, for run.json and partial files, by the flags' names."""
        flags = {"shuffle_schema": self.shuffle, "negative_relations": self.negatives, "schema_batch": self.batch}
        flags |= {"answer_order": "tail" if self.tail_first else None}
        flags |= {"answer_format": "json" if self.as_json else None}
        if self.votes > 1:
            flags |= {"votes": self.votes, "min_votes": self.least}
        return {name: value for name, value in flags.items() if value}


PLAINLY = Asking()


class Source(NamedTuple):
    """What the records of a training file say together."""

    topics: dict[str, list[str]]  # the relations that records of a topic ask for or answer with, in their order
    nothing: str  # how they say that there is nothing


def survey(records: list[dict]) -> Source:
    """What `draw_rows` needs to know of all records; one without a topic (`cate`) belongs to a topic of its own."""
    topics: dict[str, dict[str, None]] = {}
    silences: Counter = Counter()
    for record in records:
        triples = triples_of(record)
        known = topics.setdefault(_topic(record), {})
        known.update(dict.fromkeys([*(read_schema(record["instruction"]) or []), *(one[1] for one in triples)]))
        silences[record["output"]] += not triples
    (nothing, count) = silences.most_common(1)[0]
    return Source({topic: list(known) for topic, known in topics.items()}, nothing if count else NAN)


def draw_rows(record: dict, number: int, asking: Asking, source: Source, epoch: int) -> list[dict] | None:
    """The records that one is learnt as in an epoch, each with the answers of the relations it asks for, in their
    order; None where that cannot be: no list, one that cannot be rewritten, or an output that cannot be divided.

    `number`: which of the training records it is. Added relations take drawn places, for none to be told by its place.
    """
    names = read_schema(record["instruction"])
    if not names:
        return None
    draw = random.Random(f"{asking.seed} {epoch} {number}")
    own = set(names)
    others = [name for name in source.topics.get(_topic(record), []) if name not in own]
    for name in draw.sample(others, min(asking.negatives, len(others))):
        names.insert(draw.randint(0, len(names)), name)
    if asking.shuffle:
        draw.shuffle(names)
    parts = divide(names, asking.batch)
    asked = [replace_schema(record["instruction"], part) for part in parts]
    nothing = render([], "json") if asking.as_json else source.nothing
    outputs = [record["output"]] if len(parts) == 1 else _divide_output(record, parts, nothing)
    if outputs is None or None in asked:
        return None
    return [
        {**record, "instruction": instruction, "output": output, "kg": None}
        for instruction, output in zip(asked, outputs, strict=True)
    ]


def ask_parts(record: dict, number: int, asking: Asking, vote: int = 0) -> list[dict] | None:
    """The records that one is predicted as, drawn once for each `vote`; None as for `draw_rows`: asked as it is."""
    names = read_schema(record["instruction"])
    if not names:
        return None
    if asking.shuffle or (vote and asking.lists > 1):
        random.Random(f"{asking.seed} {number} {vote}" if vote else f"{asking.seed} {number}").shuffle(names)
    parts = [
        part
        for group in groups_of(record, names)
        for part in divide([name for name in names if name in group], asking.batch)
    ]
    asked = [replace_schema(record["instruction"], part) for part in parts]
    return None if None in asked else [{**record, "instruction": instruction} for instruction in asked]


def draw_all(records: list[dict], asking: Asking, source: Source, what: str) -> list[list[dict] | None]:
    """`draw_rows` of every record in epoch 0; says how many stay as they are. `what`: what messages call them."""
    rows = [draw_rows(record, number, asking, source, 0) for number, record in enumerate(records)]
    say_unchanged(sum(one is None for one in rows), len(records), what)
    return rows


def ask_all_parts(records: list[dict], asking: Asking, what: str = "records") -> list[list[dict]]:
    """`ask_parts` of every record; says once how many are asked as they are."""
    asked = [asking.changes or bool(record.get(GROUPS)) for record in records]
    parts = [ask_parts(record, number, asking) if asked[number] else None for number, record in enumerate(records)]
    say_unchanged(sum(here and part is None for here, part in zip(asked, parts, strict=True)), len(records), what)
    asked = [part or [record] for part, record in zip(parts, records, strict=True)]
    return [[ask_json(part) for part in several] for several in asked] if asking.as_json else asked


def ask_all_votes(records: list[dict], asking: Asking) -> list[list[list[dict]]]:
    """For every record its votes, each as the records that it is predicted as (`ask_parts`).

    An order that was asked already, as of a list of one relation, is not asked again: its answer would be the same. Nor
    are the same questions in another order, as of a list that is asked relation by relation.
    """
    votes = [[parts] for parts in ask_all_parts(records, asking)]
    for number, (record, mine) in enumerate(zip(records, votes, strict=True)):
        if asking.lists == 1:
            mine += mine[:1] * (asking.draws - 1)
        asked = {_questions_of(mine[0])}
        for vote in range(1, asking.lists):
            parts = ask_parts(record, number, asking, vote)
            parts = parts and [ask_json(part) if asking.as_json else part for part in parts]
            if parts and _questions_of(parts) not in asked:
                asked.add(_questions_of(parts))
                mine.append(parts)
    if asking.votes > 1:
        counts = Counter(map(len, votes))
        say(f"votes: {', '.join(f'{of} records are asked {count} times' for count, of in sorted(counts.items()))}")
    return votes


def _questions_of(parts: list[dict]) -> frozenset[str]:
    return frozenset(part["instruction"] for part in parts)


def groups_of(record: dict, names: list[str]) -> list[list[str]]:
    """The relations of a record in the parts that they are asked in: its schema_groups, if these hold just `names`."""
    groups = record.get(GROUPS)
    lists = isinstance(groups, list) and all(isinstance(group, list) and group for group in groups)
    whole = [name for group in groups for name in group] if lists else []
    return groups if all(isinstance(name, str) for name in whole) and {*whole} == {*names} else [names]


def ask_apart(records: list[dict]) -> list[dict]:
    """Records to learn from, those with schema_groups as one for each group, with the answers of its relations."""
    return [part for record in records for part in _split_groups(record) or [record]]


def _split_groups(record: dict) -> list[dict] | None:
    names = read_schema(record["instruction"])
    if not names:
        return None
    groups = groups_of(record, names)
    asked = [replace_schema(record["instruction"], group) for group in groups]
    if len(groups) == 1 or None in asked:
        return None
    triples = triples_of(record)
    shares = [[triple for triple in triples if triple[1] in group] for group in groups]
    kept = {name: value for name, value in record.items() if name != GROUPS}
    return [
        {**kept, "instruction": instruction, "output": render(share) or NAN, "kg": [list(one) for one in share]}
        for instruction, share in zip(asked, shares, strict=True)
    ]


def say_unchanged(count: int, of: int, what: str) -> None:
    if count:
        say(f"relations: {count} of {of} {what} stay as they are (no list of relations that can be rewritten)")


def merge_answers(
    record: dict, answers: list[tuple[str, str]], in_list_order: bool, tail_first: bool = False
) -> list[Triple]:
    """The triples of several (text asked about, output), each once.

    `in_list_order`: sorted by the places of their relations in the record's own list, otherwise as they come.
    `tail_first`: the outputs say (tail,relation,head).
    """
    names = read_schema(record["instruction"])
    found = list(dict.fromkeys(one for text, output in answers for one in parse(output, names, text)))
    if in_list_order:
        place = {name: at for at, name in enumerate(names or [])}
        found = sorted(found, key=lambda triple: place.get(triple[1], len(place)))
    return [turn(triple) for triple in found] if tail_first else found


def turn(triple: Triple) -> Triple:
    """The triple with head and tail exchanged: as a model says it whose answers begin with the tail, and back."""
    return Triple(triple[2], triple[1], triple[0])


def turn_records(records: list[dict], what: str) -> list[dict]:
    """The records with the tail first in each triple of their output, in its own notation; says how many are left out
    because theirs is none that `render` writes. UserError when none is left.
    """
    turned = []
    for record in records:
        triples, style = _read_output(record, read_schema(record["instruction"]))
        if not triples:
            turned.append(record)
        elif style is not None:
            turned.append({**record, "output": render(map(turn, triples), style), "kg": None})
    if not turned:
        raise UserError(f"--answer_order tail: no {what} record has an output like (head,relation,tail); drop the flag")
    if lost := len(records) - len(turned):
        say(f"warning: {lost} of {len(records)} {what} records are left out: their output is not like (h,r,t),(h,r,t)")
    return turned


def divide(names: list[str], most: int) -> list[list[str]]:
    """The names in their order, in as few parts of at most `most` as hold them, of nearly equal size; 0: in one."""
    count = max(1, -(-len(names) // most)) if most else 1
    ends = [len(names) * part // count for part in range(count + 1)]
    return [names[start:end] for start, end in pairwise(ends)]


def _divide_output(record: dict, parts: list[list[str]], nothing: str) -> list[str] | None:
    """The output's triples by the part that asks for their relation, in its own notation; None where that is another
    than the three that `render` writes, or none of the parts asks for a relation.
    """
    triples, style = _read_output(record, [name for part in parts for name in part])
    if triples and style is None:
        return None
    shares = [[one for one in triples if one[1] in part] for part in parts]
    if sum(map(len, shares)) < len(triples):
        return None
    return [render(share, style) if share else nothing for share in shares]


def _read_output(record: dict, names: list[str] | None) -> tuple[list[Triple], str | None]:
    """The output's triples, and in which style of `render` they stand there; None: in none."""
    triples = parse(record["output"], names, record["input"])
    return triples, next((style for style in STYLES if render(triples, style) == record["output"]), None)


def _topic(record: dict) -> str:
    return str(record.get("cate") or "")
