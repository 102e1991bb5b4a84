"""Files that are whole or not there: lines and rows written beside a file, then renamed; and their fingerprints."""

import hashlib
import json
import os
from pathlib import Path

from common.errors import UserError
from common.refusals import naming, shorten

BESIDE = ".run.json.tmp"  # of a results file


def write_rows(path: str | Path, rows) -> None:
    """JSON lines: `path` is whole or not there."""
    write_lines(path, map(to_line, rows))


def to_line(row: dict) -> str:
    """The row as one line of JSON: characters as they are, unless it holds half a surrogate pair, which UTF-8 lacks."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(row)
    return line


def write_lines(path: str | Path, lines) -> None:
    """Write the lines to a temporary file beside `path`, on disk, and then rename it. A link keeps pointing to it."""
    check_output(path, beside=".tmp")
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    try:
        with naming(path):
            with open(partial, "w", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_output(path: str | Path, flag: str = "", *inputs: str | Path | None, beside: str = BESIDE) -> None:
    """UserError when no file can be written at `path` (given as `flag`), or when it is one of the `inputs`.

    `beside`: the longest ending of the files that are made with its name.
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
        longest = os.pathconf(above, "PC_NAME_MAX") - len(beside) if hasattr(os, "pathconf") else 200
    except (OSError, RuntimeError) as error:  # pathlib's RuntimeError: a circle of links, before Python 3.13
        reason = getattr(error, "strerror", None) or "its links lead in a circle"
        raise UserError(f"{said}: {reason}; give another path") from None
    if not above.is_dir():
        raise UserError(f"{said}: {above} is a file, not a folder; give another path")
    if len(os.fsencode(target.name)) > longest:
        raise UserError(f"{said}: the name is too long ({longest} bytes are left for it here); give a shorter one")
    if any(one and os.path.realpath(one) == str(target) for one in inputs):
        raise UserError(f"{said}: is an input of this command, and would be lost; give another path")


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
