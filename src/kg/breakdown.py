"""Where a score comes from: kinds of error, tables by relation and topic, completion, intervals; and all that as text.

Pure functions over the rows that score.py compares; only `intervals` needs more than the standard library.
"""

import unicodedata
from bisect import bisect
from collections import Counter, defaultdict
from itertools import accumulate
from typing import NamedTuple

from kg.triples import render

PERCENTILES = (2.5, 97.5)  # the ends of a 95 % interval
MOST_LINES = 20  # of a table, as text
NAME_WIDTH, TRIPLE_WIDTH = 24, 48  # columns of a terminal; what is longer is cut
NO_CATE = "-"


class Mark(NamedTuple):
    """A predicted triple, the gold triple it was paired with, or both; `kind` is right or a kind of error."""

    kind: str
    predicted: tuple | None
    gold: tuple | None


class Row(NamedTuple):
    """A record with its answers. A missing prediction has no `predicted`, an extra one no `gold` and no `rouge`."""

    id: int | str
    cate: str
    text: str  # the record's input
    predicted: list[tuple]  # (head, relation, tail), as they were said, repetitions too
    gold: list[tuple]  # each once
    marks: list[Mark]  # of `predicted` and `gold`, by `align`
    rouge: float | None  # ROUGE-2 f of the two answers, 0 to 1; None: there is no gold text to compare with


def rates(right: int, predicted: int, gold: int) -> dict[str, float]:
    """precision, recall and f1 (their harmonic mean) of counted triples; 0 where there is nothing to divide by."""
    return {
        "precision": right / max(1, predicted),
        "recall": right / max(1, gold),
        "f1": 2 * right / max(1, predicted + gold),
    }


def _overlap(one: str, other: str) -> bool:
    return one == other or bool(one and other and (one in other or other in one))


# How a predicted triple p may be paired with a gold triple g, each (head, relation, tail); in order.
PAIRED = {
    "right": lambda p, g: p == g,
    "direction": lambda p, g: p == (g[2], g[1], g[0]),
    "relation": lambda p, g: (p[0], p[2]) == (g[0], g[2]),
    "boundary": lambda p, g: p[1] == g[1] and _overlap(p[0], g[0]) and _overlap(p[2], g[2]),
    "tail": lambda p, g: p[:2] == g[:2],
    "head": lambda p, g: p[1:] == g[1:],
}
ERRORS = (*(kind for kind in PAIRED if kind != "right"), "repeated", "spurious", "missed")


def align(predicted: list[tuple], gold: list[tuple]) -> list[Mark]:
    """Every predicted and every (distinct) gold triple of a record, in exactly one mark.

    Rule by rule of `PAIRED`, each predicted triple still open is paired with the first open gold triple that the rule
    fits. What stays open is spurious or missed; a triple predicted once more is repeated, be it right or wrong.
    """
    open_predicted, open_gold = list(dict.fromkeys(predicted)), list(dict.fromkeys(gold))
    marks = [Mark("repeated", triple, None) for triple in (Counter(predicted) - Counter(open_predicted)).elements()]
    for kind, fits in PAIRED.items():
        for mine in list(open_predicted):
            found = next((right for right in open_gold if fits(mine, right)), None)
            if found is not None:
                marks.append(Mark(kind, mine, found))
                open_predicted.remove(mine)
                open_gold.remove(found)
    marks += [Mark("spurious", triple, None) for triple in open_predicted]
    return marks + [Mark("missed", None, triple) for triple in open_gold]


def count_errors(rows: list[Row]) -> dict[str, int]:
    """How often each kind of error occurs.

    With the right ones, all but missed add up to the triples predicted; all but repeated and spurious to gold's.
    """
    counts = Counter(mark.kind for row in rows for mark in row.marks)
    return {kind: counts[kind] for kind in ERRORS}


def examples(rows: list[Row]) -> dict[str, dict]:
    """The first error of each kind that occurs: the record's id, the triple predicted, the gold triple."""
    found = {}
    for row in rows:
        for kind, predicted, gold in row.marks:
            found.setdefault(kind, {"id": row.id, "predicted": predicted, "gold": gold})
    return {kind: found[kind] for kind in ERRORS if kind in found}


def by_relation(rows: list[Row]) -> list[dict]:
    """The table by relation: precision by the relation predicted, recall by gold's."""
    return _table(rows, lambda row, triple: triple[1])


def by_cate(rows: list[Row]) -> list[dict]:
    """The table by topic of the record."""
    return _table(rows, lambda row, triple: row.cate)


def _table(rows: list[Row], name_of) -> list[dict]:
    """name, gold, predicted, right (triples), precision, recall, f1; lowest F1 first, then most gold triples."""
    counts = defaultdict(Counter)
    for row in rows:
        for kind, predicted, gold in row.marks:
            if predicted is not None:
                counts[name_of(row, predicted)]["predicted"] += 1
            if gold is not None:
                counts[name_of(row, gold)]["gold"] += 1
                counts[name_of(row, gold)]["right"] += kind == "right"
    table = [
        {"name": name, "gold": n["gold"], "predicted": n["predicted"], "right": n["right"]}
        | rates(n["right"], n["predicted"], n["gold"])
        for name, n in counts.items()
    ]
    return sorted(table, key=lambda line: (line["f1"], -line["gold"], -line["predicted"], line["name"]))


def completion(rows: list[Row]) -> dict:
    """Gold triples whose head or tail is not in the record's text: total, found, and the share found (None of none).

    Records without a text are left out: there it cannot be told.
    """
    lost = [
        triple in row.predicted
        for row in rows
        for triple in row.gold
        if row.text and not (triple[0] in row.text and triple[2] in row.text)
    ]
    return {"total": len(lost), "found": sum(lost), "share": sum(lost) / len(lost) if lost else None}


def intervals(rows: list[Row], resamples: int, seed: int) -> dict[str, list[float]]:
    """[low, high] of f1, rouge2 and contest: the bootstrap's 95 % percentile interval, over records.

    Each resample draws as many rows as there are, with replacement (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13).
    """
    import numpy as np

    right = [sum(mark.kind == "right" for mark in row.marks) for row in rows]
    triples = [len(row.predicted) + len(row.gold) for row in rows]
    rouge = [row.rouge or 0.0 for row in rows]
    compared = [row.rouge is not None for row in rows]
    columns = np.array([right, triples, rouge, compared], dtype=float).T  # a record a line
    random = np.random.default_rng(seed)
    draws = (random.integers(len(rows), size=len(rows)) for _ in range(resamples))
    right, triples, rouge, compared = np.array([columns[draw].sum(axis=0) for draw in draws]).T
    f1, rouge2 = 2 * right / np.maximum(1, triples), rouge / np.maximum(1, compared)
    figures = {"f1": f1, "rouge2": rouge2, "contest": (f1 + rouge2) / 2}
    return {name: np.percentile(values, PERCENTILES).tolist() for name, values in figures.items()}


def breakdown(rows: list[Row], resamples: int, seed: int) -> dict:
    """Everything above, of the rows; `interval` is None for no resamples."""
    interval = {**intervals(rows, resamples, seed), "resamples": resamples, "seed": seed} if resamples else None
    return {
        "interval": interval,
        "completion": completion(rows),
        "errors": count_errors(rows),
        "examples": examples(rows),
        "by_relation": by_relation(rows),
        "by_cate": by_cate(rows),
    }


def as_text(found: dict) -> list[str]:
    """The lines to print of what `breakdown` returns."""
    lines = []
    if found["interval"]:
        ends = "  ".join(
            "{} {:.4f} to {:.4f}".format(name, *found["interval"][name]) for name in ("f1", "rouge2", "contest")
        )
        lines.append(f"95 % interval  {ends}  ({found['interval']['resamples']} resamples of the records)")
    lost = found["completion"]
    share = "" if lost["share"] is None else f", {lost['found']} of them found ({lost['share']:.4f})"
    lines += [f"completion  {lost['total']} gold triples with a head or tail that is not in the text{share}", ""]
    lines.append(f"{'error':12}{'count':>6}  example: predicted -> gold")
    for kind, count in found["errors"].items():
        lines.append(f"{kind:12}{count:6}  {_example(found['examples'].get(kind))}".rstrip())
    lines += _table_text("relation", found["by_relation"])
    if any(line["name"] != NO_CATE for line in found["by_cate"]):
        lines += _table_text("cate", found["by_cate"])
    return lines


def _example(error: dict | None) -> str:
    if error is None:
        return ""
    sides = (render([triple]) if triple else "-" for triple in (error["predicted"], error["gold"]))
    return f"id {printable(str(error['id']))}  " + " -> ".join(fit(side, TRIPLE_WIDTH).rstrip() for side in sides)


def _table_text(title: str, table: list[dict]) -> list[str]:
    counts, shares = ("gold", "predicted", "right"), ("precision", "recall", "f1")
    lines = ["", fit(title, NAME_WIDTH) + "".join(f"{name:>10}" for name in counts + shares)]
    for line in table[:MOST_LINES]:
        numbers = [f"{line[name]:10}" for name in counts] + [f"{line[name]:10.4f}" for name in shares]
        lines.append(fit(line["name"], NAME_WIDTH) + "".join(numbers))
    if len(table) > MOST_LINES:
        lines.append(f"… and {len(table) - MOST_LINES} more (all in --json)")
    return lines


def fit(text: str, width: int) -> str:
    """The text in exactly `width` columns of a terminal; what was cut ends in `…`."""
    text = printable(text)
    ends = list(accumulate(map(_columns_of, text)))
    if ends and ends[-1] > width:
        text = text[: bisect(ends, width - 1)] + "…"
    return text + " " * (width - columns(text))


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: a Chinese character two (Unicode Standard Annex 11)."""
    return sum(map(_columns_of, text))


def _columns_of(char: str) -> int:
    return 0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")


def printable(text: str) -> str:
    """Line ends and other control characters, which would spoil a line, and halves of surrogate pairs, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
