"""Errors that are the user's to mend: one sentence, no traceback."""

import errno
import os
import sys

from common.processes import this_process

FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR)


class UserError(Exception):
    """Bad input. The message names the file and line, or the flag, what was found, what was expected and what to do."""


def run_script(main) -> None:
    """Call `main()`; a `UserError`, a full disk or a forbidden file becomes one message on stderr and exit status 2."""
    print_anything()
    try:
        check_working_folder()
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more when it ends
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL_OR_FORBIDDEN + NO_PATH:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}; what was finished before is kept", file=sys.stderr)
        sys.exit(2)


def print_anything() -> None:
    """Let stdout and stderr take every character: one that the terminal's encoding lacks is escaped (\\u7532)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def check_working_folder() -> None:
    """UserError when the folder that a command was started in has been removed: no path from there leads anywhere."""
    try:
        os.getcwd()
    except OSError:
        raise UserError("the folder that this was started in is gone; change to another one (cd)") from None


def say(message: str) -> None:
    """One line for the person at the terminal: to stderr, at once, and only from the first process of a run."""
    if this_process().rank == 0:
        print(message, file=sys.stderr, flush=True)


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
