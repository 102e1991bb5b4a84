"""CSV and Parquet files as records, read by the package datasets: a row is a record, a column a field."""

import csv
import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError

READERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}  # how a file's name ends -> how it is read
MOST_DIGITS = 15  # of a cell that is a whole number: an id


def is_table(path: str | Path) -> bool:
    """Whether a file is a table, told by its name."""
    return Path(path).suffix.lower() in READERS


def read_table(path: str | Path, kind: str | None = None) -> Iterator[tuple[int, dict]]:
    """Yield (number of the row, from 1, record); `kind`: csv or parquet, left out: told by the name.

    Cells of a CSV file are texts: NAN stays one, an empty cell is an empty text; an `id` of digits is a number, and a
    cell that is a JSON list or object is that. Empty cells of a Parquet file are left out. UserError for a file that
    cannot be read, or has no row.
    """
    import datasets

    kind = kind or READERS[Path(path).suffix.lower()]
    datasets.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as cache:
        how = {"cache_dir": cache, "keep_in_memory": True}
        try:
            if kind == "csv":
                delimiter = "\t" if Path(path).suffix.lower() == ".tsv" else ","
                header = _header(path, delimiter)
                how |= {"keep_default_na": False, "delimiter": delimiter, "encoding": "utf-8-sig"}
                how["features"] = datasets.Features({name: datasets.Value("string") for name in header})
                table = datasets.Dataset.from_csv(str(path), **how)
            else:
                table = datasets.Dataset.from_parquet(str(path), **how)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged file makes the readers raise anything
            reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
            if "corresponds to no data" in reason:  # what datasets says of a table of a header alone
                raise UserError(f"{path}: the table has no row") from None
            raise UserError(f"{path}: cannot be read as {kind} ({reason})") from None
        if not len(table):
            raise UserError(f"{path}: the table has no row")
        clean = _csv_row if kind == "csv" else _pruned
        for number, row in enumerate(table, 1):
            yield number, clean(row)


def _header(path: str | Path, delimiter: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter), [])
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if not any(map(str.strip, names)) or len(set(names)) < len(names):
        raise UserError(f"{path}:1: expected the names of the columns, each once; found {', '.join(names) or 'none'}")
    return names


def _csv_row(row: dict) -> dict:
    return {name: _cell(name, "" if value is None else value) for name, value in row.items()}


def _cell(name: str, text: str):
    if name == "id" and re.fullmatch(rf"0|[1-9]\d{{0,{MOST_DIGITS - 1}}}", text):
        return int(text)
    if name not in ("instruction", "input", "output") and text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _pruned(value):
    """The value as JSON has it: what is empty in an object is left out, what JSON lacks is a text."""
    if isinstance(value, dict):
        return {key: _pruned(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_pruned(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
