"""Read, check, split and write records: JSON lines, or one JSON list, in UTF-8."""

import json
import os
import random
from pathlib import Path

from utils.errors import UserError

TEXT_FIELDS = ("instruction", "input", "output")


def read(path: str | Path) -> list[dict]:
    """All records of a file. UserError (file, line, found, expected) for anything that is not a list of objects."""
    return [record for _, record in read_with_lines(path)]


def read_with_lines(path: str | Path) -> list[tuple[int, dict]]:
    """The records with the line each one starts on."""
    path = Path(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.json*")) if path.parent.is_dir() else []
        there = f"{path.parent} holds {', '.join(near)}" if near else f"{path.parent} holds no .json file"
        raise UserError(f"{path}: no such file ({there})")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; expected JSON lines or a JSON list of records")
    pairs = list(_list_items(path, text) if text.lstrip()[0] == "[" else _lines(path, text))
    if not pairs:
        raise UserError(f"{path}: the list is empty; expected JSON lines or a JSON list of records")
    for line, record in pairs:
        if not isinstance(record, dict):
            raise UserError(f"{path}:{line}: found {_kind(record)}, expected an object with {', '.join(TEXT_FIELDS)}")
    return pairs


def _lines(path, text):
    # Only "\n" ends a record: str.splitlines would also cut at U+2028, which JSON strings may hold as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not JSON ({error.msg} at column {error.colno}): {line[:60]!r}; "
                    "expected one whole object a line (a line cut in the middle? then remove it)"
                ) from None


def _list_items(path, text):
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    line, counted = 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            if text[position + 1 :].strip():
                raise UserError(f"{path}:{line}: something stands behind the ] that closes the list; remove it")
            return
        try:
            record, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); "
                "expected one JSON list of objects, closed by ]"
            ) from None
        yield line, record


def check(path: str | Path, pairs: list[tuple[int, dict]], needs: tuple[str, ...]) -> list[dict]:
    """The records of `read_with_lines`, once every one has the text fields `needs` and no id stands twice."""
    if "output" in needs and all("output" not in record for _, record in pairs):
        raise UserError(
            f"{path}: none of its {len(pairs)} records has the field output: this looks like the test set "
            "(the contest calls it valid.json); train on the file whose records hold instruction, input and output"
        )
    seen = {}
    for line, record in pairs:
        for field in needs:
            if field not in record:
                raise UserError(f"{path}:{line}: the field {field} is missing; found {', '.join(record) or 'none'}")
            if not isinstance(record[field], str):
                raise UserError(f"{path}:{line}: {field} is {_kind(record[field])}, expected a string")
        if record.get("kg") is not None and not _is_kg(record["kg"]):
            raise UserError(f"{path}:{line}: kg is not a list of [head, relation, tail], all strings")
        identity = record.get("id", "")
        if isinstance(identity, (int, str)) and identity != "":
            if identity in seen:
                raise UserError(
                    f"{path}:{line}: id {identity!r} already stands on line {seen[identity]}; ids must be unique"
                )
            seen[identity] = line
    return [record for _, record in pairs]


def load(path: str | Path, needs: tuple[str, ...] = TEXT_FIELDS) -> list[dict]:
    """Read and check."""
    return check(path, read_with_lines(path), needs)


def split(records: list[dict], held_out: int, seed: int) -> tuple[list[dict], list[dict]]:
    """`held_out` records drawn with `seed`, and the others; both in file order."""
    if held_out < 0:
        raise UserError(f"--val_set_size {held_out}: expected 0 (no split) or more")
    if held_out >= len(records):
        raise UserError(
            f"--val_set_size {held_out}: there are only {len(records)} records, and some must remain for training; "
            "give a smaller number, 0 for no split, or --valid_file"
        )
    chosen = set(random.Random(seed).sample(range(len(records)), held_out))
    train = [record for index, record in enumerate(records) if index not in chosen]
    return train, [records[index] for index in sorted(chosen)]


def write(path: str | Path, rows) -> None:
    """JSON lines: `path` is whole or not there."""
    write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def write_lines(path: str | Path, lines) -> None:
    """Write the lines to a temporary file beside `path`, on disk, and then rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _is_kg(kg) -> bool:
    triples = kg if isinstance(kg, list) else [None]
    return all(isinstance(t, list) and len(t) == 3 and all(isinstance(part, str) for part in t) for t in triples)


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
