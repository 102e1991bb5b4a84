"""Predictions and gold records, read and paired by id."""

import json
from pathlib import Path

from common.errors import UserError
from data.forms import how_to_turn
from data.records import check_records, read_with_lines


def load_answers(path: str | Path, hint: str) -> list[dict]:
    """The records of a file, each with an id of its own and with kg or output; UserError with file and line if not."""
    pairs = read_with_lines(path)
    for line, record in pairs:
        identity = record.get("id")
        if isinstance(identity, bool) or not isinstance(identity, (int, str)) or identity == "":
            found = "no id" if identity is None else f"the id {identity!r}"
            raise UserError(
                f"{path}:{line}: {found}; predictions and gold are paired by id, expected a whole number (7, not 7.0) "
                "or a text"
            )
        for field in ("instruction", "input", "output"):
            if not isinstance(record.get(field), (str, type(None))):
                raise UserError(f"{path}:{line}: {field} is {record[field]!r:.60}, expected a string")
        if record.get("kg") is None and record.get("output") is None:
            raise UserError(f"{path}:{line}: neither kg nor output; {how_to_turn(record, ('output',)) or hint}")
    return check_records(path, pairs, ())


def read_confidence(record: dict, triples: int) -> list[float] | None:
    """A prediction's `confidence`, one number from 0 to 1 for each of its triples; None where it has none.

    What is no list is another program's field. UserError for a list of anything else.
    """
    found = record.get("confidence")
    if not isinstance(found, list):
        return None
    numbers = all(type(one) in (int, float) and 0 <= one <= 1 for one in found)
    if not numbers or len(found) != triples:
        raise UserError(
            f"confidence is {found!r:.60}; expected a number from 0 to 1 for each of the {triples} triples, or no field"
        )
    return found


def pair_answers(predicted: list[dict], gold: list[dict]) -> tuple[list[tuple[dict | None, dict | None]], list[str]]:
    """(prediction, gold record) by id, in gold's order and then the extra predictions; and what was odd, in words.

    None stands where one of the two is missing. Both lists are those of `load_answers`. A prediction that lacks
    instruction or input, which decide how its output is parsed, has gold's. UserError when ids differ in type only.
    """
    by_id, wanted = {row["id"]: row for row in predicted}, {row["id"] for row in gold}
    missing = [row["id"] for row in gold if row["id"] not in by_id]
    extra = [row for row in predicted if row["id"] not in wanted]
    other_type = {str(identity): identity for identity in missing}
    for row in extra:
        if str(row["id"]) in other_type:
            mine, right = json.dumps(row["id"]), json.dumps(other_type[str(row["id"])])
            raise UserError(
                f"--pred has the id {mine}, --gold has {right}: a text in one file, a number in the other; write "
                "the ids of the predictions as those of gold"
            )
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} of {len(gold)} gold records have no prediction, e.g. id {missing[0]}: "
            "all their triples count as missed, their ROUGE-2 as 0"
        )
    if extra:
        notes.append(
            f"{len(extra)} of {len(predicted)} predictions have an id that gold lacks, e.g. id {extra[0]['id']}: "
            "their triples count as spurious"
        )
    pairs = []
    for row in gold:
        mine = by_id.get(row["id"])
        if mine is not None:
            mine = mine | {field: mine.get(field) or row.get(field) for field in ("instruction", "input")}
        pairs.append((mine, row))
    return pairs + [(row, None) for row in extra], notes
