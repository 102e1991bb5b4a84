"""Rows as text: a table for a terminal, CSV, JSON."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice

from common.files import to_line
from kg.breakdown import columns, fit, printable

WIDEST = 40  # columns of a terminal that a column of a table takes at most
FORMULA = tuple("=+-@\t\r'")  # how a cell begins that a spreadsheet would compute, or that is escaped
END = "\r\n"  # of a line while it is written, so that line ends within cells are quoted
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def as_table(titles: list[str], rows: Iterable[list], most: int) -> Iterator[str]:
    """The lines of a table of the first rows; the last says when there are more than `most`."""
    rows = iter(rows)
    shown = [[printable(_text(cell)) for cell in row] for row in islice(rows, most)]
    if not titles:
        return
    widths = [min(WIDEST, max(map(columns, column))) for column in zip(titles, *shown, strict=True)]
    for cells in (titles, ["-" * width for width in widths], *shown):
        yield "  ".join(fit(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip()
    if next(rows, None) is not None:
        yield f"… and more; shown are {most}"


def as_csv(titles: list[str], rows: Iterable[list]) -> Iterator[str]:
    """The lines of a CSV file. A cell that a spreadsheet would take for a formula has a ' before it, and so has one
    that begins with ' itself.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=END)
    yield _written(writer, buffer, titles)
    for row in rows:
        yield _written(writer, buffer, [harmless(_text(cell)) for cell in row])


def harmless(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA) and not _NUMBER.fullmatch(cell) else cell


def _written(writer, buffer, row) -> str:
    buffer.seek(0)
    buffer.truncate()
    writer.writerow(row)
    return buffer.getvalue().removesuffix(END)


def as_json(titles: list[str], rows: Iterable[list]) -> Iterator[str]:
    """The lines of a JSON list, an object a row."""
    before = "["
    for row in rows:
        yield before + to_line(dict(zip(titles, row, strict=True)))
        before = ","
    yield "]" if before == "," else "[]"


def _text(cell) -> str:
    return "" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)


FORMATS = {"json": as_json, "csv": as_csv}
