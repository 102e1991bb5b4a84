"""Files that are whole or not there: lines and rows written beside a file, then renamed; JSON read; fingerprints."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from common.locks import take_file
from common.refusals import naming, shorten

CHECKPOINTS = ("checkpoint-", "global_step-")  # how the names of a training's own folders begin
BESIDE = (".tmp", ".partial", ".partial.9999", ".run.json.tmp")  # what is added to an output's name while it is written


def write_rows(path: str | Path, rows, ready: Callable[[Path], None] | None = None) -> None:
    """JSON lines: `path` is whole or not there. `ready`: as of `write_lines`."""
    write_lines(path, map(to_line, rows), ready)


def to_line(row: dict, indent: int | None = None) -> str:
    """The row as one line of JSON, or indented: characters as they are, unless it holds half a surrogate pair, which
    UTF-8 lacks. NaN and infinity, which JSON lacks, become null.
    """
    try:
        line = json.dumps(row, ensure_ascii=False, indent=indent, allow_nan=False)
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(row, indent=indent, allow_nan=False)
    except ValueError:
        return to_line(_finite(row), indent)
    return line


def _finite(value):
    """The value with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: str | Path, advice: str):
    """What a JSON file holds, with or without a byte order mark; UserError with file and line that ends in `advice`."""
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save it as UTF-8; {advice}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({what_is_wrong(error)}); {advice}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in thousands of brackets
        raise UserError(f"{path}: not JSON ({error}); {advice}") from None


def what_is_wrong(error: json.JSONDecodeError) -> str:
    """json's message without its last words where these only lead to the place: `Invalid control character at`."""
    return re.sub(r"( starting)? at$", "", error.msg)


def peek_json(path: str | Path):
    """What a file of JSON holds; None where it is missing or damaged."""
    try:
        return read_json(path, "")
    except (UserError, OSError):
        return None


def write_lines(path: str | Path, lines, ready: Callable[[Path], None] | None = None) -> None:
    """Write the lines to a temporary file beside `path`, on disk, and then rename it. A link keeps pointing to it.

    `ready(file)` is called with the temporary file when it is whole, before it takes the place of what is there.
    UserError while another process writes the same file: the two would write into one temporary file.
    """
    check_output(path, beside=(".tmp",))
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with naming(path), open(partial, "a", encoding="utf-8") as file:
        if not take_file(partial, file):
            raise UserError(f"{path}: another process is writing it; wait for its end, then repeat the command")
        try:
            file.truncate(0)  # what a killed run left
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
            if ready:
                ready(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def check_output(
    path: str | Path, flag: str = "", *inputs: str | Path | None, beside: tuple[str, ...] = BESIDE
) -> None:
    """UserError when no file can be written at `path` (given as `flag`), or when it is one of the `inputs`.

    `beside`: what is added to its name for files that are made on the way.
    """
    said = f"{flag} {shorten(path)}".strip()
    if not str(path):
        raise UserError(f"{flag or 'the output'}: the path is empty; give a file")
    try:
        target = Path(path).resolve()
        if target.is_dir():
            raise UserError(f"{said}: is a folder; give a file in it")
        if _is_open_file(Path(path)) or (target.exists() and not target.is_file()):
            raise UserError(f"{said}: is no ordinary file, and would be replaced by one; give another path")
        above = next(parent for parent in target.parents if parent.exists())
        longest = os.pathconf(above, "PC_NAME_MAX") - max(map(len, beside)) if hasattr(os, "pathconf") else 200
    except (OSError, RuntimeError) as error:  # pathlib's RuntimeError: a circle of links, before Python 3.13
        reason = getattr(error, "strerror", None) or "its links lead in a circle"
        raise UserError(f"{said}: {reason}; give another path") from None
    if not above.is_dir():
        raise UserError(f"{said}: {above} is a file, not a folder; give another path")
    if len(os.fsencode(target.name)) > longest:
        raise UserError(f"{said}: the name is too long ({longest} bytes are left for it here); give a shorter one")
    lost = {str(target), *(f"{target}{end}" for end in beside)}
    if any(one and os.path.realpath(one) in lost for one in inputs):
        raise UserError(f"{said}: is an input of this command, and would be lost; give another path")


def check_apart(output_dir: str | Path, flag: str, base: str | Path) -> None:
    """UserError for an --output_dir that is the base's folder (given as `flag`), or that would delete it with a
    checkpoint of its own. Links are followed.
    """
    out, there = Path(os.path.realpath(output_dir)), Path(os.path.realpath(base))
    if out == there:
        raise UserError(
            f"--output_dir {output_dir}: is the folder of {flag}, whose files would be replaced; give another folder"
        )
    if out in there.parents and there.relative_to(out).parts[0].startswith(CHECKPOINTS):
        raise UserError(
            f"--output_dir {output_dir}: {flag} {base} is one of its checkpoints, which this run may delete; give "
            "another folder"
        )


def _is_open_file(path: Path) -> bool:
    """Whether a path leads to what a process has open (/dev/stdout, /dev/fd/1), be it a pipe or a file."""
    for _ in range(40):  # links that a system follows
        if path.absolute().is_relative_to("/proc") or path.absolute().is_relative_to("/dev/fd"):
            return True
        if not path.is_symlink():
            return False
        path = path.parent / path.readlink()
    return False


def fingerprint(*files: str | Path) -> str:
    """SHA-256 of the files' content, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
