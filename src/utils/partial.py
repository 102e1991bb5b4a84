"""A results file that survives interruption: finished answers stand in FILE.partial until all are there.

The first line of a partial file holds the settings it belongs to; each further line is a group of answers that were
finished together, by number. A line that a killed process left half-written is cut off, and its answers are made
again. Of several processes each writes a file of its own (FILE.partial, FILE.partial.1, …), and all are read.
"""

import json
import os
from pathlib import Path

from utils.errors import UserError
from utils.records import to_line, write


def partial_path(output: str | Path, rank: int = 0) -> Path:
    return Path(f"{output}.partial" + (f".{rank}" if rank else ""))


def partial_paths(output: str | Path) -> list[Path]:
    """The partial files that are there, of however many processes."""
    first = partial_path(output)
    if not first.parent.is_dir():
        return []
    others = [path for path in first.parent.iterdir() if path.name.startswith(f"{first.name}.")]
    others = [path for path in others if path.name[len(first.name) + 1 :].isdigit()]
    return [path for path in (first, *sorted(others)) if path.is_file()]


def recorded_settings(output: str | Path) -> dict | None:
    """The settings of the partial files of `output`; None when there is none (or only half a first line)."""
    return next(filter(None, map(_settings_of, partial_paths(output))), None)


def _settings_of(path: Path) -> dict | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            first = file.readline()
        return json.loads(first) if first.endswith("\n") else None
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        raise UserError(
            f"{path}:1: not a partial file of predictions; delete it, or give another --output_file"
        ) from None


def check(output: str | Path, settings: dict) -> None:
    """UserError when a partial file belongs to other settings: its answers would be mixed with different ones."""
    for path in partial_paths(output):
        there = _settings_of(path)
        if there is None:
            continue
        found = {name: (there.get(name), settings.get(name)) for name in sorted({**there, **settings})}
        if None in found.get("batch_size", ()):  # an engine that has none
            del found["batch_size"]
        other = [f"{name}: {old} there, {new} now" for name, (old, new) in found.items() if old != new]
        if other:
            raise UserError(
                f"{path} holds the unfinished predictions of another command ({'; '.join(other)}); repeat "
                "that command to finish them, or delete the file to start over"
            )


def finished(output: str | Path) -> dict[int, dict]:
    """Number -> row of everything in the partial files. A later row of one number replaces an earlier one."""
    rows = {}
    for path in partial_paths(output):
        whole = path.read_bytes()
        for line in whole[: whole.rfind(b"\n") + 1].decode("utf-8").split("\n")[1:]:
            if line:
                rows |= {int(number): row for number, row in json.loads(line).items()}
    return rows


def resume(output: str | Path, settings: dict, rank: int = 0) -> dict[int, dict]:
    """What earlier runs with these settings finished: number -> row. Starts, or mends, this process's partial file."""
    path = partial_path(output, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    check(output, settings)
    rows = finished(output)
    if not path.is_file() or _settings_of(path) is None:
        _write(path, "w", json.dumps(settings, ensure_ascii=False) + "\n")
    else:
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            os.truncate(path, whole.rfind(b"\n") + 1)
    return rows


def append(output: str | Path, rows: dict[int, dict], rank: int = 0) -> None:
    """Add rows that were finished together, on disk when this returns."""
    _write(partial_path(output, rank), "a", to_line(rows) + "\n")


def _write(path: Path, mode: str, line: str) -> None:
    try:
        with open(path, mode, encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); what was finished before is kept there. Make room, and "
            "repeat the command to go on"
        ) from error


def finish(output: str | Path, rows: list[dict]) -> None:
    """Write the whole file, then drop the partial ones."""
    try:
        write(output, rows)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); every answer is kept in {partial_path(output)}. Make "
            "room, and repeat the command"
        ) from error
    # The first one, which says that work is left, goes last.
    for path in reversed(partial_paths(output)):
        path.unlink(missing_ok=True)
