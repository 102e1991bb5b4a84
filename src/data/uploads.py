"""Files that people have, as records: JSON, JSON lines, CSV with a column of texts, or one text a line."""

import csv
import io
from pathlib import Path

from common.errors import UserError
from common.files import write_rows
from data.records import TEXT_NAMES, check_records, is_kg, read_with_lines

KINDS = (".json", ".jsonl", ".csv", ".txt")
KEPT = ("id", "cate")  # columns of a CSV that records have too


def read_upload(path: Path, name: str, instruction: str | None) -> list[dict]:
    """The records of the file at `path`, which its owner calls `name`; one without an instruction gets the given one.

    UserError that names `name` and the line.
    """
    ending = Path(name).suffix.lower()
    if ending not in KINDS:
        raise UserError(f"{name[:80]}: expected a file of the kinds {', '.join(KINDS)}")
    try:
        if ending in (".json", ".jsonl"):
            pairs = read_with_lines(path)
        else:
            text = path.read_bytes().decode("utf-8-sig")
            pairs = _read_csv(text, name) if ending == ".csv" else _read_lines(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None
    pairs = [(line, _complete(record, instruction)) for line, record in pairs]
    if not pairs:
        raise UserError(f"{name}: it holds no record")
    if any("instruction" not in record for _, record in pairs):
        raise UserError(f"{name}: its records have no instruction; give the relations to look for")
    return check_records(name, pairs, ("instruction", "input"))


def labels_of(records: list[dict]) -> list[dict] | None:
    """The records with their right triples, if every one has them as kg or output; else None."""
    labelled = all(
        (isinstance(record.get("kg"), list) and is_kg(record["kg"])) or isinstance(record.get("output"), str)
        for record in records
    )
    return records if labelled else None


def write_upload(path: Path, name: str, instruction: str | None, target: Path) -> int:
    """Write the records of an upload to `target`, each with an id; how many there are."""
    records = read_upload(path, name, instruction)
    if not all("id" in record for record in records):
        records = [{"id": number, **{k: v for k, v in r.items() if k != "id"}} for number, r in enumerate(records, 1)]
    write_rows(target, records)
    return len(records)


def _complete(record: dict, instruction: str | None) -> dict:
    named = next((key for key in TEXT_NAMES if key in record), None)
    made = record if named in (None, "input") else {"input": record[named], **record}
    return made if "instruction" in made or instruction is None else {"instruction": instruction, **made}


def _read_csv(text: str, name: str) -> list[tuple[int, dict]]:
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = rows.fieldnames or []
        column = next((one for one in TEXT_NAMES if one in columns), None)
        if column is None:
            raise UserError(f"{name}:1: no column of texts; its first line has to name one of {', '.join(TEXT_NAMES)}")
        kept = [one for one in (*KEPT, "instruction") if one in columns]
        return [
            (rows.line_num, {"input": row[column] or "", **{one: row[one] for one in kept if row[one]}}) for row in rows
        ]
    except csv.Error as error:
        raise UserError(f"{name}: not CSV ({error})") from None


def _read_lines(text: str) -> list[tuple[int, dict]]:
    lines = enumerate(text.split("\n"), 1)
    return [(number, {"input": line.strip()}) for number, line in lines if line.strip()]
