"""What earlier runs have found in the texts of a corpus, so that only what is new, or has failed, is asked."""

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from common import manifest
from common.errors import UserError, say
from common.files import read_json, to_line
from data.documents import Document
from prediction import partial

PLACES = ("documents", "encoding", "text_field", "shard_size")  # settings of a corpus that change no text's answer

HELD = {"windows": {"place", "output", "finish_reason"}, "triples": {"triple"}}  # what a row has found, and in each


def open_table(file: Path) -> sqlite3.Connection:
    """A table digest of a text -> number, on disk: every run makes it anew, and it need not outlive a crash."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    table = sqlite3.connect(file, isolation_level=None)
    for line in ("journal_mode = off", "synchronous = off", "cache_size = -65536"):
        table.execute(f"pragma {line}")
    table.execute("create table texts (digest blob primary key, number integer) without rowid")
    return table


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()[:16]


def add_text(table: sqlite3.Connection, text: str, number: int) -> bool:
    """Enter a text; False where it stands there already."""
    return bool(table.execute("insert or ignore into texts values (?, ?)", (digest_of(text), number)).rowcount)


def find_text(table: sqlite3.Connection, text: str) -> int | None:
    """The number of a text."""
    found = table.execute("select number from texts where digest = ?", (digest_of(text),)).fetchone()
    return found and found[0]


def read_row(line: bytes) -> dict:
    """A row of a part, or of the output; {} of a damaged line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def found_in(row: dict) -> dict | None:
    """What a row says was found in its text; None of one that nobody asked about, or that a hand has damaged."""
    if "same_as" in row or not isinstance(row.get("text", ""), str):
        return None
    found = {name: row.get(name) for name in HELD}
    whole = all(
        isinstance(found[name], list) and all(isinstance(one, dict) and keys <= one.keys() for one in found[name])
        for name, keys in HELD.items()
    )
    return found if whole else None


def count_failed(found: dict) -> int:
    """The windows of a document that could not be asked about, or whose answer failed."""
    return sum("reason" in window for window in found["windows"])


def read_made(output: str | Path, replaces: bool) -> dict | None:
    """What stands beside an output file about how it was made (`common.manifest.made_of`); None where there is no such
    file. Damaged, it is a UserError, or, where the run `replaces` the output (--overwrite_output_file), None and a
    line.
    """
    file = manifest.run_file_of(output)
    if not Path(output).is_file() or not file.is_file():
        return None
    told = f"it says how {output} was made"
    if replaces:
        advice = f"{told}: no answer in that file is reused, and it is replaced (--overwrite_output_file)"
    else:
        advice = f"{told}: restore it, give another --output_file, or --overwrite_output_file to replace {output}"
    try:
        made = read_json(file, advice)
    except UserError as error:
        if not replaces:
            raise
        say(f"warning: {error}")
        return None
    return manifest.made_of(made, output)


def check_made(output: str | Path, settings: dict, made: dict | None) -> None:
    """UserError for an output file that was not made with these settings: it may have taken a night. `made`: of
    `read_made`.
    """
    if not Path(output).is_file() or not Path(output).stat().st_size:
        return
    if made is None:
        what = f"there is nothing beside it, as {manifest.run_file_of(output).name}, about how it was made"
    else:
        what = partial.tell_differences(made["settings"], json.loads(to_line(settings)), ("shard_size",))
    if what:
        raise UserError(
            f"{output} is there, but not as this command makes it ({what}); give another --output_file, or "
            "--overwrite_output_file to replace it"
        )


@contextmanager
def recall(output: str | Path, settings: dict, made: dict | None, folder: Path):
    """Text -> what an output file that is whole has found in it, if it was made with the same settings; else None.
    `made`: of `read_made`.

    Where in it each text stands is listed on disk in `folder`, when the first is asked for.
    """
    made = made["settings"] if made else {}
    now = json.loads(to_line(settings))
    other = any(made.get(name) != now.get(name) for name in {*made, *now} - {*PLACES})
    opened = []
    with ExitStack() as stack:

        def find(text: str) -> dict | None:
            if other:
                return None
            if not opened:
                file, table = open(output, "rb"), _list_texts(output, folder / "answered.db")  # noqa: SIM115
                opened.extend((stack.enter_context(file), stack.enter_context(closing(table))))
            file, table = opened
            at = find_text(table, text)
            if at is None:
                return None
            file.seek(at)
            return found_in(read_row(file.readline()))

        yield find


def _list_texts(output: str | Path, table_file: Path) -> sqlite3.Connection:
    """A table of the output's texts -> the byte that the line begins at."""
    table, at = open_table(table_file), 0
    with open(output, "rb") as file:
        for line in file:
            row = read_row(line)
            if found_in(row):
                add_text(table, row.get("text", ""), at)
            at += len(line)
    return table


def find_known(documents: list[Document], part: Path, recalled: Callable[[str], dict | None]) -> dict[int, dict]:
    """Of those documents that were asked about, by their place in the list, what was found then: as the file `part`
    of their shard says, which may be about others in part, else as `recalled` says. A text without any has nothing.
    """
    rows = {}
    if part.is_file():
        with open(part, "rb") as file:
            file.readline()
            rows = {row.get("text", ""): found for row in map(read_row, file) if (found := found_in(row))}
    known = {}
    for number, document in enumerate(documents):
        if document.reason:
            continue
        if not document.text.strip():
            known[number] = {"windows": [], "triples": []}
        elif found := rows.get(document.text) or recalled(document.text):
            known[number] = found
    return known
