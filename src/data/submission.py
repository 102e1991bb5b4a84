"""Predictions turned into a contest submission, and a submission checked against its test file."""

import json
from typing import NamedTuple

from tqdm import tqdm

from common.errors import UserError
from common.files import to_line
from data.answers import read_confidence
from data.forms import how_to_turn
from data.records import MOST_DIGITS, is_kg, stream_records
from kg.objects import NAN
from kg.schema import read_schema
from kg.triples import parse_with_rest, render

# What prediction scripts of 2023 called these fields: P-Tuning `cata`, ChatGLM's LoRA `text` and `answer`, CPM-Bee
# `prompt` and `<ans>`; and LLaMA-Factory `predict`.
OLD_NAMES = {
    "cata": "cate",
    "text": "input",
    "prompt": "instruction",
    "answer": "output",
    "<ans>": "output",
    "predict": "output",
}
MOST_NAMED = 20  # bad lines, or faults of a submission, that are listed one by one


class Spooled(NamedTuple):
    """A converted row in the temporary file, and what is counted of it."""

    identity: object
    offset: int  # bytes
    triples: int
    dropped: int  # fragments of the answer that began like a triple
    unasked: int  # triples with a relation that was not asked for


def convert_record(record: dict, strict: bool = False, surest: float = 0) -> tuple[dict, int, int]:
    """The submission's row of a prediction, how many fragments were dropped, how many relations were not asked for.

    Every field is kept. `strict` leaves the triples out whose relation was not asked for, `surest` those with less
    `confidence`. An instruction without a list, or with an empty one (three test records of the contest have it), asks
    for any relation. UserError when a text field is not a string, or `confidence` is needed and missing.
    """
    record = record | {name: record[old] for old, name in OLD_NAMES.items() if old in record and name not in record}
    if "output" not in record and record.get("kg") is not None and is_kg(record["kg"]):
        record["output"] = render(record["kg"])
    for name in ("output", "instruction", "input"):
        text = record.get(name)
        if not isinstance(text, str) and (name == "output" or text is not None):
            found = f"{text!r:.40}" if name in record else "missing"
            hint = how_to_turn(record, ("output",)) or "is this a predictions file?"
            raise UserError(f"{name} is {found}, expected a string; {hint}")
    asked = read_schema(record.get("instruction"))
    triples, dropped = parse_with_rest(record["output"], asked, record.get("input"))
    unasked = [triple for triple in triples if asked and triple.relation not in asked]
    confidence = read_confidence(record, len(triples))
    if surest and confidence is None and triples:
        raise UserError("--min_confidence: the row has no confidence; predict with --confidence or --votes")
    kept = [
        number
        for number, triple in enumerate(triples)
        if not (strict and asked and triple.relation not in asked) and not (surest and confidence[number] < surest)
    ]
    triples = [triples[number] for number in kept]
    row = {**record, "output": render(triples), "kg": [list(triple) for triple in triples]}
    if confidence is not None:
        row["confidence"] = [confidence[number] for number in kept]
    return row, len(dropped), len(unasked)


def spool(path: str, file, strict: bool, bad: list[str] | None, surest: float = 0) -> list[Spooled]:
    """Convert the predictions of `path` into `file` (binary), one by one, so that memory holds only this index."""
    index = []
    for line, record in tqdm(
        stream_records(path, bad), desc="converting", unit=" rows", delay=3, mininterval=1, leave=False
    ):
        try:
            row, dropped, unasked = convert_record(record, strict, surest)
        except UserError as error:
            if bad is None:
                raise UserError(f"{path}:{line}: {error}") from None
            bad.append(f"{path}:{line}: {error}")
            continue
        index.append(Spooled(row.get("id"), file.tell(), len(row["kg"]), dropped, unasked))
        file.write(to_line(row).encode() + b"\n")
    return index


def sort_key(identity) -> tuple[int, float]:
    """What rows are sorted by: numbers, also written as text, and behind them all other ids as they come."""
    if isinstance(identity, str) and identity.isdecimal() and len(identity) <= MOST_DIGITS:
        return 0, int(identity)
    number = isinstance(identity, (int, float)) and not isinstance(identity, bool) and identity == identity
    return (0, identity) if number else (1, 0)


def id_key(identity) -> int | str | tuple:
    """What two equal ids share, and can be looked up; 7 and "7" are different."""
    return identity if type(identity) in (int, str) else (json.dumps(identity, sort_keys=True),)


def last_of_each(index: list[Spooled]) -> list[Spooled]:
    """The rows, of several with the same id only the last, at its place."""
    last = {id_key(row.identity): row.offset for row in index}
    return [row for row in index if row.identity is None or last[id_key(row.identity)] == row.offset]


def check_submission(path: str, test_path: str) -> str:
    """One line about a valid submission for the test file; UserError lists what is wrong with any other."""
    tests = {}
    for line, record in stream_records(test_path):
        if record.get("id") is None:
            raise UserError(f"{test_path}:{line}: no id; a submission is matched with its test file by id")
        if id_key(record["id"]) in tests:
            raise UserError(f"{test_path}:{line}: id {record['id']!r} stands there twice; ids must be unique")
        tests[id_key(record["id"])] = record
    faults, seen, triples, before = [], {}, 0, None
    for line, row in stream_records(path):
        identity = row.get("id")
        test, name = tests.get(id_key(identity)), f"{path}:{line}: id {identity!r}"
        if test is None:
            faults.append(f"{name} is not in {test_path}")
        elif id_key(identity) in seen:
            faults.append(f"{name} already stands on line {seen[id_key(identity)]}")
        else:
            faults += [f"{name}: the field {field} is missing" for field in test if field not in row]
            changed = [f for f in test if f in row and f not in ("output", "kg") and row[f] != test[f]]
            faults += [f"{name}: the field {field} is not the test file's" for field in changed]
        seen.setdefault(id_key(identity), line)
        if not is_kg(row.get("kg")):
            faults.append(f"{name}: kg is not a list of [head, relation, tail], all strings")
        elif row.get("output") != render(row["kg"]):
            faults.append(f"{name}: output is not the text of kg, (h,r,t),(h,r,t)")
        else:
            triples += len(row["kg"])
            if len(set(map(tuple, row["kg"]))) < len(row["kg"]):
                faults.append(f"{name}: kg holds a triple twice")
            if any(not part.strip() or part == NAN for triple in row["kg"] for part in triple):
                faults.append(f"{name}: kg holds a triple with an empty part or NAN")
        if before is not None and sort_key(identity) < sort_key(before):
            faults.append(f"{name} stands behind {before!r}; expected the rows in id order")
        before = identity
    missing = [record["id"] for identity, record in tests.items() if identity not in seen]
    faults += [f"{path}: no row for id {identity!r}" for identity in missing]
    if faults:
        raise UserError(f"{path}: not a valid submission for {test_path}, {len(faults)} faults\n" + listed(faults))
    return f"{path}: a valid submission for {test_path}: {len(seen)} rows, {triples} triples"


def listed(lines: list[str]) -> str:
    """The first lines, indented, and how many more there are."""
    more = [f"… and {len(lines) - MOST_NAMED} more"] if len(lines) > MOST_NAMED else []
    return "\n".join("  " + line for line in lines[:MOST_NAMED] + more)
