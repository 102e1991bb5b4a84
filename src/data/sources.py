"""Predictions and labelled records as what a graph is built from."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from common.files import CHECKPOINTS, read_json
from common.manifest import run_file_of
from data.records import is_kg, stream_records
from data.submission import OLD_NAMES, convert_record
from kg.evidence import Run, Source, text_digest
from kg.schema import read_schema
from kg.triples import render

WORST = ("error", "length", "loop", "eos")  # finish reasons, the first that a text has counts
UNNAMED = "unnamed"  # the run of records that no run.json stands beside
_read_schema = lru_cache(maxsize=2**12)(read_schema)


def read_sources(path: str | Path, bad: list[str] | None = None) -> Iterator[Source]:
    """The records of a file, one by one, in every shape that convert.py reads. UserError with file and line."""
    for line, record in tqdm(
        stream_records(path, bad), desc="reading", unit=" records", delay=3, mininterval=1, leave=False
    ):
        try:
            yield source_of(record)._replace(where=f"{path}:{line}")
        except UserError as error:
            if bad is None:
                raise UserError(f"{path}:{line}: {error}") from None
            bad.append(f"{path}:{line}: {error}")


def source_of(record: dict) -> Source:
    """A record's triples and what is known of them. kg is taken as it is where output is its text, or missing.

    A record without an id is known by a digest of what it was asked.
    """
    record = record | {name: record[old] for old, name in OLD_NAMES.items() if old in record and name not in record}
    kg, output = record.get("kg"), record.get("output")
    if not (kg and is_kg(kg) and (output is None or output == render(kg))):
        record = convert_record(record)[0]
        kg = record["kg"]
    triples = list(dict.fromkeys(tuple(triple) for triple in kg if all(part.strip() for part in triple)))
    text = record.get("input") or ""
    identity = record.get("id")
    if identity in (None, ""):
        asked = f"{record.get('instruction') or ''}\n{text}"
        identity = f"text {text_digest(asked if asked.strip() else json.dumps(record, sort_keys=True))}"
    asked = _read_schema(record.get("instruction"))
    confidence, reason = record.get("confidence"), record.get("finish_reason")
    number = isinstance(confidence, int | float) and not isinstance(confidence, bool) and math.isfinite(confidence)
    return Source(
        identity=identity,
        triples=triples,
        text=text,
        topic=_text(record.get("cate")),
        confidence=float(confidence) if number else None,
        finish_reason=_text(reason),
        unasked=tuple({relation for _, relation, _ in triples if relation not in asked}) if asked else (),
    )


def _text(value) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def find_run(path: str | Path, run_file: str | Path | None = None, name: str | None = None) -> Run:
    """The run of a file of predictions, from run.json: that of `run_file`, else the one beside it, NAME.run.json.

    Its name, if none is given, is made of base and adapter: what the same model answers later replaces this.
    """
    file = Path(run_file) if run_file else run_file_of(path)
    if not file.is_file():
        if run_file:
            raise UserError(f"--run_file {file}: no such file")
        return Run(name or UNNAMED)
    found = read_json(file, "mend it, or give --run NAME and another --run_file")
    if not isinstance(found, dict):
        raise UserError(f"{file}: no JSON object; give the run.json of a prediction")
    base, date = _text(found.get("base")), _text(found.get("date"))
    adapter = _text(found.get("adapter") or found.get("prefix"))
    return Run(name or name_run(base, adapter) or UNNAMED, base, adapter, date)


def name_run(base: str, adapter: str) -> str:
    """What a run is called where nobody names it, by the folders of base and adapter ("": none)."""
    return " + ".join(map(_short_path, filter(None, (base, adapter))))


def _short_path(path: str) -> str:
    """The last folder's name; of a run's checkpoint the run's before it."""
    last = Path(path)
    return f"{last.parent.name}/{last.name}" if last.name.startswith(CHECKPOINTS) else last.name


def read_corpus(path: str | Path) -> Iterator[Source]:
    """The documents of a file that src/extract.py wrote, one by one, without those that could not be read.

    Their topic is that of most windows; their confidence, if triples have one, the mean.
    """
    for line, row in stream_records(path):
        if "triples" not in row:
            continue
        try:
            yield _source_of_row(row)._replace(where=f"{path}:{line}")
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}:{line}: no row as src/extract.py writes it, something has changed it; delete this line, and "
                "the same command asks about its document again"
            ) from None


def _source_of_row(row: dict) -> Source:
    """A document. Whatever error a row of another form raises."""
    triples, windows, text = [tuple(one["triple"]) for one in row["triples"]], row["windows"], row.get("text", "")
    if not is_kg([*map(list, triples)]) or not isinstance(text, str):
        raise ValueError
    topics = Counter(window["cate"] for window in windows if "cate" in window)
    chances = [one["confidence"] for one in row["triples"] if "confidence" in one]
    reasons = [window["finish_reason"] for window in windows]
    return Source(
        identity=row["id"],
        triples=[triple for triple in triples if all(map(str.strip, triple))],
        text=text,
        topic=topics.most_common(1)[0][0] if topics else "",
        confidence=sum(chances) / len(chances) if chances else None,
        finish_reason=min(reasons, key=WORST.index) if reasons else "",
    )
