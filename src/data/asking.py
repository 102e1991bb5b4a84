"""Which relations a question asks for: the record's list shuffled, with others of its topic, or in several parts.

Everything drawn follows from (seed, epoch, number of the record) alone: any process, at any time, draws the same.
"""

import random
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

from common.errors import say
from kg.metrics import triples_of
from kg.objects import NAN
from kg.replacing import replace_schema
from kg.schema import read_schema
from kg.triples import BETWEEN, parse, render


class Asking(NamedTuple):
    """How records are asked. As it stands: by their own lists."""

    shuffle: bool = False  # --shuffle_schema
    negatives: int = 0  # --negative_relations: most relations of the topic that are added to a list
    batch: int = 0  # --schema_batch: most relations of a question; 0: any number
    seed: int = 42

    @property
    def changes(self) -> bool:
        return self[:3] != (False, 0, 0)

    @property
    def settings(self) -> dict:
        """What is not as it stands by default, for run.json and partial files, by the flags' names."""
        flags = {"shuffle_schema": self.shuffle, "negative_relations": self.negatives, "schema_batch": self.batch}
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
    outputs = [record["output"]] if len(parts) == 1 else _divide_output(record, parts, source.nothing)
    if outputs is None or None in asked:
        return None
    return [
        {**record, "instruction": instruction, "output": output, "kg": None}
        for instruction, output in zip(asked, outputs, strict=True)
    ]


def ask_parts(record: dict, number: int, asking: Asking) -> list[dict] | None:
    """The records that one is predicted as, drawn once; None as for `draw_rows`: it is asked as it is."""
    names = read_schema(record["instruction"])
    if not names:
        return None
    if asking.shuffle:
        random.Random(f"{asking.seed} {number}").shuffle(names)
    asked = [replace_schema(record["instruction"], part) for part in divide(names, asking.batch)]
    return None if None in asked else [{**record, "instruction": instruction} for instruction in asked]


def draw_all(records: list[dict], asking: Asking, source: Source, what: str) -> list[list[dict] | None]:
    """`draw_rows` of every record in epoch 0; says how many stay as they are. `what`: what messages call them."""
    rows = [draw_rows(record, number, asking, source, 0) for number, record in enumerate(records)]
    say_unchanged(sum(one is None for one in rows), len(records), what)
    return rows


def ask_all_parts(records: list[dict], asking: Asking, what: str = "records") -> list[list[dict]]:
    """`ask_parts` of every record; says once how many are asked as they are."""
    if not asking.changes:
        return [[record] for record in records]
    parts = [ask_parts(record, number, asking) for number, record in enumerate(records)]
    say_unchanged(sum(part is None for part in parts), len(records), what)
    return [part or [record] for part, record in zip(parts, records, strict=True)]


def say_unchanged(count: int, of: int, what: str) -> None:
    if count:
        say(f"relations: {count} of {of} {what} stay as they are (no list of relations that can be rewritten)")


def merge_answers(record: dict, answers: list[tuple[str, str]], in_list_order: bool) -> str:
    """One output of several (text asked about, output): their triples, each once.

    `in_list_order`: sorted by the places of their relations in the record's own list, otherwise as they come.
    """
    names = read_schema(record["instruction"])
    found = dict.fromkeys(one for text, output in answers for one in parse(output, names, text))
    if in_list_order:
        place = {name: at for at, name in enumerate(names or [])}
        found = sorted(found, key=lambda triple: place.get(triple[1], len(place)))
    return render(found)


def divide(names: list[str], most: int) -> list[list[str]]:
    """The names in their order, in as few parts of at most `most` as hold them, of nearly equal size; 0: in one."""
    count = max(1, -(-len(names) // most)) if most else 1
    ends = [len(names) * part // count for part in range(count + 1)]
    return [names[start:end] for start, end in pairwise(ends)]


def _divide_output(record: dict, parts: list[list[str]], nothing: str) -> list[str] | None:
    """The output's triples by the part that asks for their relation, in its own notation; None where that is another
    than the three that `render` writes, or none of the parts asks for a relation.
    """
    triples = parse(record["output"], [name for part in parts for name in part], record["input"])
    style = next((style for style in BETWEEN if render(triples, style) == record["output"]), None)
    if triples and style is None:
        return None
    shares = [[one for one in triples if one[1] in part] for part in parts]
    if sum(map(len, shares)) < len(triples):
        return None
    return [render(share, style) if share else nothing for share in shares]


def _topic(record: dict) -> str:
    return str(record.get("cate") or "")
