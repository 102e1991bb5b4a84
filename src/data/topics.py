"""Which topic a text is about, and with it the relations to ask for: naive Bayes over its characters.

Built from labelled records in a moment, of plain dictionaries: it needs neither a model nor another package.
"""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.refusals import shorten
from data.records import read_with_lines

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
RELATIONS, RECORDS = SAMPLE / "relations.json", SAMPLE / "train.json"
# Lengths of the stretches that are counted, and what is added to each count: the best of 5-fold trials on the sample's
# training records (docs/corpus.md).
SIZES, ADDED = (1, 2, 3), 0.03
MOST = 2_000  # characters of a text that are looked at
ADVICE = (
    'expected an object like {"建筑": ["位于", "高度"], …} or {"建筑": {"relations": ["位于", "高度"]}, …}, or for all '
    "topics a JSON list of names, or lines with a predicate each"
)


class Topics(NamedTuple):
    """How likely stretches of text are in each topic. All numbers are logarithms."""

    prior: dict[str, float]
    likely: dict[str, dict[str, float]]  # topic -> stretch -> its chance there
    unseen: dict[str, float]  # topic -> chance of a stretch that no record of it has


def read_topics(path: str | Path, flag: str = "--topics") -> dict[str, list[str]]:
    """Topic -> its relations, each once; "" for those of every topic. UserError, which names `flag`, for another form.

    The file is like data/sample/relations.json, holds {topic: list of names} or a list of names, or is DuIE's schema:
    JSON lines, each with a predicate.
    """
    if not os.path.isfile(path):  # pathlib's raises where the name is too long
        what = "is a folder, not a file" if os.path.isdir(path) else "no such file"
        raise UserError(f"{flag} {shorten(path)}: {what}; {ADVICE}")
    topics = {}
    for topic, one in _by_topic(path, flag).items():
        names = one.get("relations") if isinstance(one, dict) and "predicate" not in one else one
        names = names if isinstance(names, list) else [names]
        names = [name.get("predicate") if isinstance(name, dict) else name for name in names]
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise UserError(f"{flag} {path}: {f'{topic}: ' if topic else ''}{ADVICE}")
        topics[topic] = list(dict.fromkeys(names))
    if not topics:
        raise UserError(f"{flag} {path}: no topic in it; {ADVICE}")
    return topics


def _by_topic(path: str | Path, flag: str) -> dict[str, object]:
    """What a file says of each topic, unchecked."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
        except (ValueError, RecursionError):
            raise UserError(f"{flag} {path}: not JSON; {ADVICE}") from None
    return found if isinstance(found, dict) and "predicate" not in found else {"": found}


def learn_topics(path: str | Path, wanted: set[str]) -> Topics:
    """What the records of a file (`cate` and `input`) say about the topics `wanted`. UserError where one has none."""
    records = [record for _, record in read_with_lines(path)]
    labelled = [(one.get("cate"), one.get("input")) for one in records]
    labelled = [pair for pair in labelled if all(isinstance(part, str) and part.strip() for part in pair)]
    if lacking := sorted(wanted - {topic for topic, _ in labelled}):
        raise UserError(
            f"--topic_records {path}: no record has the topic {lacking[0]} (as cate, beside input); give labelled "
            "records of every topic in --topics"
        )
    return count_topics([pair for pair in labelled if pair[0] in wanted])


def count_topics(labelled: list[tuple[str, str]], sizes: tuple = SIZES, added: float = ADDED) -> Topics:
    """Topics of pairs (topic, text). A stretch counts once a text; `added`: what one that never stood there has."""
    texts, counts = Counter(topic for topic, _ in labelled), {}
    for topic, text in labelled:
        counts.setdefault(topic, Counter()).update(stretches(text, sizes))
    known = len(set().union(*counts.values()))
    prior = {topic: math.log(count / len(labelled)) for topic, count in texts.items()}
    whole = {topic: math.log(sum(found.values()) + added * known) for topic, found in counts.items()}
    likely = {
        topic: {one: math.log(count + added) - whole[topic] for one, count in found.items()}
        for topic, found in counts.items()
    }
    return Topics(prior, likely, {topic: math.log(added) - whole[topic] for topic in counts})


def pick_topic(topics: Topics, text: str, sizes: tuple = SIZES) -> str:
    """The likeliest topic of a text; of an empty one that of most records."""
    found = stretches(text, sizes)

    def chance(topic: str) -> float:
        likely, unseen = topics.likely[topic], topics.unseen[topic]
        return topics.prior[topic] + sum(likely.get(one, unseen) for one in found)

    return max(topics.prior, key=chance)


def stretches(text: str, sizes: tuple = SIZES) -> set[str]:
    """Every stretch of `sizes` characters in the beginning of a text."""
    text = text.strip()[:MOST]
    return {text[at : at + size] for size in sizes for at in range(len(text) - size + 1)}
