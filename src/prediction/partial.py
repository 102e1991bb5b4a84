"""A results file that survives interruption: finished answers stand in FILE.partial until all are there.

The first line of a partial file holds the settings it belongs to; each further line is a group of answers that were
finished together, by number. A line that a killed process left half-written is cut off, and its answers are made
again. Of several processes each writes a file of its own (FILE.partial, FILE.partial.1, …), and all are read. While a
process is at work, its file is locked: a second run, or one that left its processes behind, would mix its answers in.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from common import locks
from common.errors import UserError
from common.files import to_line, write_rows
from common.refusals import advice_for

FREE = ("batch_size",)  # settings that decide when an answer is made, not what it is
SHOWN = 80  # characters of a setting that a message shows
SAID = {"documents": "--input", "instructions": "what is asked"}  # settings that messages call otherwise


def partial_path(output: str | Path, rank: int = 0) -> Path:
    """Where a process keeps what is finished of `output`."""
    return Path(f"{output}.partial" + (f".{rank}" if rank else ""))


def partial_paths(output: str | Path) -> list[Path]:
    """The partial files that are there, of however many processes."""
    first = partial_path(output)
    if not first.parent.is_dir():
        return []
    others = [path for path in first.parent.iterdir() if path.name.startswith(f"{first.name}.")]
    others = [path for path in others if path.name[len(first.name) + 1 :].isdigit()]
    return [path for path in (first, *sorted(others)) if path.is_file()]


def hold_partial(output: str | Path, rank: int = 0):
    """Keep this process's partial file from others until the block ends; UserError when one writes it already."""
    path = partial_path(output, rank)
    refusal = (
        f"{path}: another process is writing it, of a run that goes on or of one whose main process alone was killed "
        "(ps and nvidia-smi show it); wait for it, or end it, then repeat the command"
    )
    return locks.hold_file(path, f"--output_file {output}: {path}", refusal)


def recorded_settings(output: str | Path) -> dict | None:
    """The settings of the partial files of `output`; None when there is none (or only half a first line)."""
    return next(filter(None, map(_settings_of, partial_paths(output))), None)


def _settings_of(path: Path) -> dict | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            first = file.readline()
        settings = json.loads(first) if first.endswith("\n") else None
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, RecursionError):
        settings = first
    if not isinstance(settings, dict | None):
        raise UserError(f"{path}:1: not a partial file of predictions; delete it, or give another --output_file")
    return settings


def check_partial(output: str | Path, settings: dict) -> None:
    """UserError when a partial file belongs to other settings: its answers would be mixed with different ones."""
    for path in partial_paths(output):
        there = _settings_of(path)
        if there is None:
            continue
        other = tell_differences(there, settings, FREE)
        if other:
            raise UserError(
                f"{path} holds the unfinished predictions of another command ({other}); repeat that command to finish "
                "them, or delete the file to start over"
            )


def tell_differences(there: dict, now: dict, free: tuple[str, ...]) -> str:
    """How the settings of two commands differ, but for the `free` ones; "" where they do not."""
    pairs = {name: (there.get(name), now.get(name)) for name in sorted({*there, *now} - {*free})}
    shown = {name: _show_apart(*pair) for name, pair in pairs.items() if pair[0] != pair[1]}
    return "; ".join(f"{SAID.get(name, name)}: {old} there, {new} now" for name, (old, new) in shown.items())


def _show_apart(*values) -> list[str]:
    """Two values, long ones from a little before they begin to differ. Of a fingerprint its beginning says enough."""
    texts = [_show(one) for one in values]
    if max(map(len, texts)) <= SHOWN:
        return texts
    same = next((at for at, pair in enumerate(zip(*texts, strict=False)) if len({*pair}) > 1), min(map(len, texts)))
    start = max(0, same - SHOWN // 4)
    return [f"{'…' if start else ''}{text[start : start + SHOWN]}" for text in texts]


def _show(value) -> str:
    if isinstance(value, dict):  # instructions by their topics; "": for texts of every topic
        return ", ".join(f"{name}: {one}" if name else str(one) for name, one in value.items())
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"
    return str(value)


def read_finished(output: str | Path) -> dict[int, dict]:
    """Number -> row of everything in the partial files; of two rows of one number the one with the larger `budget`.

    An answer that was asked again may stand in the file of another process than the first one.
    """
    rows = {}
    for path in partial_paths(output):
        whole = path.read_bytes()
        for number, line in enumerate(whole[: whole.rfind(b"\n") + 1].split(b"\n")[1:], start=2):
            try:
                for question, row in json.loads(line or b"{}").items():
                    if row.get("budget", 0) >= rows.get(int(question), row).get("budget", 0):
                        rows[int(question)] = row
            except (ValueError, AttributeError, RecursionError):
                raise UserError(f"{path}:{number}: damaged; delete this line: its answers are made again") from None
    return rows


def resume_partial(output: str | Path, settings: dict, rank: int = 0) -> dict[int, dict]:
    """What earlier runs with these settings finished: number -> row. Starts, or mends, this process's partial file."""
    path = partial_path(output, rank)
    check_partial(output, settings)
    rows = read_finished(output)
    if not path.is_file() or _settings_of(path) is None:
        _write(path, "w", to_line(settings) + "\n")
    else:
        whole = path.read_bytes()
        if not whole.endswith(b"\n"):
            os.truncate(path, whole.rfind(b"\n") + 1)
    return rows


def append_answers(output: str | Path, rows: dict[int, dict], rank: int = 0) -> None:
    """Add rows that were finished together, on disk when this returns."""
    path = partial_path(output, rank)
    if not path.is_file():
        raise UserError(f"{path} is gone: somebody removed it, or another run made {output}; repeat the command")
    _write(path, "a", to_line(rows) + "\n")


def kept_answers(output: str | Path, asked: int) -> str:
    """What is left of a prediction that was broken off, and how to go on: see common.errors.keeping."""
    if not partial_paths(output):
        return f"{output} is whole"
    done = len(read_finished(output))
    kept = f"{done} of {asked} answers are kept in {partial_path(output)}" if done else "nothing was answered yet"
    return f"{kept}, and the same command {'goes on' if done else 'begins anew'}"


def _write(path: Path, mode: str, line: str) -> None:
    try:
        with open(path, mode, encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); what was finished before is kept there. To go on, "
            f"{advice_for(error)} and repeat the command"
        ) from error


def finish_file(output: str | Path, rows: list[dict], ready: Callable[[Path], None] | None = None) -> None:
    """Write the whole file, then drop the partial ones. `ready`: as of common.files.write_lines."""
    try:
        write_rows(output, rows, ready)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); every answer is kept in {partial_path(output)}. To go "
            f"on, {advice_for(error)} and repeat the command"
        ) from error
    # The first one, which says that work is left, goes last.
    for path in reversed(partial_paths(output)):
        path.unlink(missing_ok=True)
