"""Errors that are the user's to mend: one sentence, no traceback."""

import errno
import os
import re
import signal
import sys
from contextlib import contextmanager, suppress

from common import stopping
from common.processes import this_process

# What the system says no with -> what to do about it.
ADVICE = {
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
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "free memory, or raise its limit (ulimit -v)",
}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what another error may have come of
KEPT = "what was finished before is kept"
NOWHERE = "the working folder was deleted; go to another one (cd)"
LONGEST = 200  # characters of a path that are shown


class UserError(Exception):
    """Bad input. The message names the file and line, or the flag, what was found, what was expected and what to do."""


def begin_script() -> None:
    """What scripts do before they import what takes seconds: from here on Ctrl-C is one line."""
    stopping.watch_signals()
    if not _stands_somewhere():
        _say_error(NOWHERE)
        sys.exit(2)


def run_script(main) -> None:
    """Call `main()`. A `UserError` and what the system refuses become one message on stderr and exit status 2, Ctrl-C
    and SIGTERM one line and exit status 130 or 143.
    """
    stopping.begin_work()
    try:
        main()
        sys.stdout.flush()
        return
    except BaseException as error:
        number = stopping.stopped_by() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
        if isinstance(error, SystemExit) and not number:
            raise
        _close_bars()
        kept = getattr(error, "kept", KEPT)
        if number:
            stopping.say_stopped(number, kept)
            status = stopping.status_of(number)
        elif isinstance(error, UserError):
            _say_error(str(error))
            status = 2
        elif isinstance(error, BrokenPipeError):  # `| head` has read enough
            status = 1
        elif refusal := why_refused(error):
            _say_error(f"{refusal}; {kept}")
            status = 2
        elif lost_others(error):  # whose own message, or signal, says more
            status = 1
        else:
            raise
    _end(status)


@contextmanager
def keeping(describe):
    """If the block is broken off, the message ends with `describe()`: what is kept, and how to go on. Of several such
    blocks, one in another, the inner one's.
    """
    try:
        yield
    except BaseException as error:
        if not hasattr(error, "kept"):
            with suppress(Exception):
                error.kept = describe()
        raise


@contextmanager
def naming(path):
    """An error of the system's in this block that names no file, as those of writing do not, is about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


def why_refused(error: BaseException) -> str | None:
    """What the system refused (a full disk, a forbidden file, …), where, and what to do; None for any other error."""
    seen = set()
    cause = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        number = _errno_of(cause)
        if number in ADVICE and (cause is error or number in NO_ROOM):
            name = getattr(cause, "filename", None)
            where = f" ({shorten(name)})" if name else ""
            return f"{os.strerror(number)}{where}; {ADVICE[number]}"
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if isinstance(error, RuntimeError) and re.search("PytorchStreamWriter failed|unexpected pos", text):
        return "a file could not be written to its end; make room, or raise the quota or ulimit -f"
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop"):  # of pathlib, before Python 3.13
        return f"{text}; {ADVICE[errno.ELOOP]}"
    if isinstance(error, FileNotFoundError) and "temporary directory" in text:
        return f"{error.strerror}; make room in one of them, or name another folder by TMPDIR"
    if isinstance(error, FileNotFoundError) and not _stands_somewhere():
        return NOWHERE
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return f"out of memory; {ADVICE[errno.ENOMEM]}"
    return None


def _stands_somewhere() -> bool:
    """Whether the folder this process works in is still there."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _errno_of(error: BaseException) -> int | None:
    """The system's number of an error; libraries in Rust (safetensors, tokenizers) give it as text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def lost_others(error: BaseException) -> bool:
    """Whether an error says that another process of this run has ended."""
    pattern = r"[Cc]onnection (was )?(closed|reset) by (remote )?peer|Broken pipe|recvValue failed|[Ss]ocket Timeout"
    return this_process().count > 1 and isinstance(error, RuntimeError) and re.search(pattern, str(error)) is not None


def shorten(path) -> str:
    """A path as a message can hold it."""
    text = str(path)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 4 :]}"


def _close_bars() -> None:
    """tqdm's bars, so that what is said next has a line of its own."""
    if "tqdm.std" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm.std"].tqdm, "_instances", ())):
            with suppress(Exception):
                bar.close()


def _say_error(message: str) -> None:
    with suppress(OSError):
        print(f"error: {message}", file=sys.stderr, flush=True)


def _end(status: int) -> None:
    """Leave Python. What stdout still holds and cannot be written would be complained about once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if this_process().count > 1:  # the others may have ended: nothing that waits for them may run
        os._exit(status)
    sys.exit(status)


def say(message: str) -> None:
    """One line for the person at the terminal: to stderr, at once, and only from the first process of a run."""
    if this_process().rank == 0:
        print(message, file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
