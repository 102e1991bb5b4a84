"""Which topic a text is about, and with it the relations to ask for: naive Bayes over its characters.

Built from labelled records in a moment, of plain dictionaries: it needs neither a model nor another package.
"""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import read_json
from data.records import read_with_lines

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"
RELATIONS, RECORDS = SAMPLE / "relations.json", SAMPLE / "train.json"
# Lengths of the stretches that are counted, and what is added to each count: the best of 5-fold trials on the sample's
# training records (docs/corpus.md).
SIZES, ADDED = (1, 2, 3), 0.03
MOST = 2_000  # characters of a text that are looked at
ADVICE = 'expected an object like {"建筑": {"relations": ["位于", "高度"]}, …}'


class Topics(NamedTuple):
    """How likely stretches of text are in each topic. All numbers are logarithms."""

    prior: dict[str, float]
    likely: dict[str, dict[str, float]]  # topic -> stretch -> its chance there
    unseen: dict[str, float]  # topic -> chance of a stretch that no record of it has


def read_topics(path: str | Path) -> dict[str, list[str]]:
    """Topic -> its relations, from a file like data/sample/relations.json. UserError for another form."""
    if not Path(path).is_file():
        raise UserError(f"--topics {path}: no such file; {ADVICE}")
    found = read_json(path, ADVICE)
    topics = {}
    for name, one in found.items() if isinstance(found, dict) else ():
        relations = one.get("relations") if isinstance(one, dict) else one
        if not isinstance(relations, list) or not relations or not all(isinstance(word, str) for word in relations):
            raise UserError(f"--topics {path}: {name}: {ADVICE}")
        topics[name] = relations
    if not topics:
        raise UserError(f"--topics {path}: no topic in it; {ADVICE}")
    return topics


def learn_topics(path: str | Path, wanted: set[str]) -> Topics:
    """What the records of a file (`cate` and `input`) say about the topics `wanted`. UserError where one has none."""
    records = [record for _, record in read_with_lines(path)]
    labelled = [(one["cate"], one["input"]) for one in records if {"cate", "input"} <= one.keys()]
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
