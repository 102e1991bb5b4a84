"""What the system refuses, a full disk or a forbidden file, in words: what, where, and what to do."""

import errno
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

ADVICE = {  # what it says no with -> what to do about it
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "give another path, or have its rights changed",
    errno.EPERM: "give another path, or have its rights changed",
    errno.EROFS: "give a path on a disk that can be written",
    errno.EIO: "the disk or its connection has a fault",
    errno.ESTALE: "the disk or its connection has a fault",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "remove one of the links",
    errno.ENOTDIR: "give another path",
    errno.EISDIR: "move that folder away, or give another path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "free memory, or raise its limit (ulimit -v)",
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what another error may have come of
FULL = 2**20  # bytes: a disk with less that is free is full
LONGEST = 200  # characters of a path that are shown
NOWHERE = "the working folder was deleted; go to another one (cd)"


@contextmanager
def naming(path):
    """What the system refuses in this block is about `path`, if the error names no file: those of writing do not."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "about"):
            error.about = path
        raise


def why_refused(error: BaseException) -> str | None:
    """What the system refused, where, and what to do; None for any other error."""
    text, seen, cause = str(error), [], error
    while cause is not None and not any(cause is one for one in seen):
        seen.append(cause)
        number = _number_of(cause)
        if number in ADVICE and (cause is error or number in NO_ROOM):
            return f"{os.strerror(number)}{_said_where(cause, error)}; {ADVICE[number]}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, RuntimeError) and re.search("PytorchStreamWriter failed|unexpected pos", text):
        if _is_full(_where(error)):  # torch does not say why
            return f"{os.strerror(errno.ENOSPC)}{_said_where(error)}; {ADVICE[errno.ENOSPC]}"
        return f"a file could not be written whole{_said_where(error)}; make room, or raise the quota or ulimit -f"
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop"):  # of pathlib, before Python 3.13
        return f"{shorten(text)}; {ADVICE[errno.ELOOP]}"
    if isinstance(error, FileNotFoundError) and "temporary directory" in text:
        return f"{error.strerror}; make room in one of them, or name another folder by TMPDIR"
    if isinstance(error, FileNotFoundError) and not stands_somewhere():
        return NOWHERE
    unmapped = isinstance(error, ImportError) and "failed to map segment" in text
    if isinstance(error, MemoryError) or unmapped or "DefaultCPUAllocator" in text:
        return f"out of memory; {ADVICE[errno.ENOMEM]}"
    return None


def advice_for(error: OSError) -> str:
    return ADVICE.get(error.errno, ADVICE[errno.ENOSPC])


def stands_somewhere() -> bool:
    """Whether the folder this process works in is still there."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def shorten(path) -> str:
    """A path as a message can hold it."""
    text = str(path)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 4 :]}"


def _number_of(error: BaseException) -> int | None:
    """The system's number of an error; libraries in Rust (safetensors, tokenizers, pyoxigraph) give it as text, and
    torch's sockets its name.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    named = re.search(r"name: (E[A-Z]+)", str(error))
    return int(found[1]) if found else getattr(errno, named[1], None) if named else None


def _where(*errors: BaseException) -> str | None:
    """The file that the first of the errors names which names one; of a copy, the one that was written."""
    names = (getattr(error, name, None) for error in errors for name in ("filename2", "filename", "about"))
    return next(filter(None, names), None)


def _said_where(*errors: BaseException) -> str:
    where = _where(*errors)
    return f" ({shorten(where)})" if where else ""


def _is_full(path) -> bool:
    """Whether the disk of a path, which need not be there, is full."""
    above = [one for one in (Path(path), *Path(path).parents) if one.exists()] if path else []
    return bool(above) and shutil.disk_usage(above[0]).free < FULL
