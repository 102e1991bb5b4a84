"""A results file that survives interruption: finished batches stand in FILE.partial until all are there.

The first line of the partial file holds the settings it belongs to; each further line is one batch. A line that a
killed process left half-written is cut off, and its batch is computed again.
"""

import json
import os
from pathlib import Path

from utils.errors import UserError
from utils.records import to_line, write


def partial_path(output: str | Path) -> Path:
    return Path(str(output) + ".partial")


def recorded_settings(output: str | Path) -> dict | None:
    """The settings of the partial file of `output`; None when there is none (or only half its first line)."""
    path = partial_path(output)
    if not path.is_file():
        return None
    with open(path, encoding="utf-8", errors="replace") as file:
        first = file.readline()
    try:
        return json.loads(first) if first.endswith("\n") else None
    except json.JSONDecodeError:
        raise UserError(
            f"{path}:1: not a partial file of predictions; delete it, or give another --output_file"
        ) from None


def check(output: str | Path, settings: dict) -> None:
    """UserError when the partial file belongs to other settings: its rows would be mixed with different ones."""
    there = recorded_settings(output)
    if there is None:
        return
    names = sorted({**there, **settings})
    other = [f"{n}: {there.get(n)} there, {settings.get(n)} now" for n in names if there.get(n) != settings.get(n)]
    if other:
        raise UserError(
            f"{partial_path(output)} holds the unfinished predictions of another command ({'; '.join(other)}); repeat "
            "that command to finish them, or delete the file to start over"
        )


def resume(output: str | Path, settings: dict) -> dict[int, dict]:
    """What earlier runs with these settings finished: index -> row. Starts the partial file when there is none."""
    path = partial_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    check(output, settings)
    if recorded_settings(output) is None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(settings, ensure_ascii=False) + "\n")
        return {}
    whole = path.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        os.truncate(path, end)
    batches = [json.loads(line) for line in whole[:end].decode("utf-8").split("\n")[1:] if line]
    return {int(index): row for batch in batches for index, row in batch.items()}


def append(output: str | Path, batch: dict[int, dict]) -> None:
    """Add one finished batch, on disk when this returns."""
    with open(partial_path(output), "a", encoding="utf-8") as file:
        file.write(to_line(batch) + "\n")
        file.flush()
        os.fsync(file.fileno())


def finish(output: str | Path, rows: list[dict]) -> None:
    """Write the whole file, then drop the partial one."""
    write(output, rows)
    partial_path(output).unlink(missing_ok=True)
