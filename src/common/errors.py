"""Errors that are the user's to mend: one sentence, no traceback."""

import atexit
import os
import re
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress

from common import stopping, threads
from common.processes import this_process, why_odd
from common.refusals import NOWHERE, naming, shorten, stands_somewhere, why_refused

KEPT = "what was finished before is kept"
_HEARD = threading.local()  # .blocks of `hearing` that are open in a thread: (the lines, whether they are printed)
PATIENCE = 5.0  # seconds in which the launcher ends the other processes of a run once its first has spoken
LONG_WORD = re.compile(r"\S{500,}")  # paths are shorter, as a rule


class UserError(Exception):
    """Bad input. The message names the file and line, or the flag, what was found, what was expected and what to do."""


def begin_script() -> None:
    """What scripts do before they import what takes seconds: from here on Ctrl-C is one line, and threads that wait
    for each other leave the cores to others.
    """
    stopping.watch_signals()
    threads.bound_waiting()
    if wrong := (None if stands_somewhere() else NOWHERE) or why_odd():
        _say_error(wrong)
        sys.exit(2)


def run_script(main, patience: float = PATIENCE) -> None:
    """Call `main()`. A `UserError` and what the system refuses become one message on stderr and exit status 2, Ctrl-C
    and SIGTERM one line and exit status 130 or 143. `patience`: seconds, of `_let_the_first_speak`.
    """
    stopping.begin_work()
    print_anything()
    try:
        main()
        with naming("stdout"):
            if sys.stdout:  # None: it was closed when this began
                sys.stdout.flush()
        stopping.end_work()
        return
    except BaseException as error:
        number = stopping.stopped_by() or (signal.SIGINT if isinstance(error, KeyboardInterrupt) else None)
        if not number:
            stopping.end_work()
        if isinstance(error, SystemExit) and not number:
            raise
        _close_bars()
        kept = getattr(error, "kept", None)
        if number:
            stopping.say_stopped(number, kept)
        elif isinstance(error, UserError):
            _let_the_first_speak(patience)
            _say_error(str(error))
            status = 2
        elif isinstance(error, BrokenPipeError):  # `| head` has read enough
            status = 1
        elif refusal := why_refused(error):
            _let_the_first_speak(patience)
            _say_error(f"{refusal}; {kept or KEPT}")
            status = 2
        elif lost_others(error):  # whose own message, or signal, says more
            status = 1
        else:
            raise
    _flush()
    several = this_process().count > 1  # of which some may have ended: nothing that waits for them may run
    if number:  # at once: Python takes seconds to tidy up after torch
        if not several:
            atexit._run_exitfuncs()
        stopping.end(number)
    if several:
        os._exit(status)
    sys.exit(status)


@contextmanager
def keeping(describe):
    """If the block is broken off, the message ends with `describe()`: what is kept, and how to go on. Of several such
    blocks, one in another, the inner one's.
    """
    with stopping.describing(describe):
        try:
            yield
        except BaseException as error:
            if not hasattr(error, "kept"):
                with suppress(Exception):
                    error.kept = describe()
            raise


def lost_others(error: BaseException) -> bool:
    """Whether an error says that another process of this run has ended."""
    pattern = r"[Cc]onnection (was )?(closed|reset) by (remote )?peer|Broken pipe|recvValue failed|[Ss]ocket Timeout"
    return this_process().count > 1 and isinstance(error, RuntimeError) and re.search(pattern, str(error)) is not None


def _let_the_first_speak(patience: float) -> None:
    """In another process than a run's first, wait: a wrong file or flag the first one finds, too, and as it ends, the
    launcher ends this one (SIGTERM, which is silent by now). Whoever is still there has an error of its own to say, or
    found it long before the first. One waits longer than the other, so that of these, too, one speaks.
    """
    process = this_process()
    if process.count > 1 and process.rank > 0:
        time.sleep(patience * (1 + process.local_rank / 4))


def _close_bars() -> None:
    """tqdm's bars, so that what is said next has a line of its own."""
    if "tqdm.std" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm.std"].tqdm, "_instances", ())):
            with suppress(Exception):
                bar.close()


def _say_error(message: str) -> None:
    with suppress(OSError):
        print(f"error: {LONG_WORD.sub(lambda word: shorten(word[0]), message)}", file=sys.stderr, flush=True)


def _flush() -> None:
    """What stdout still holds, and cannot be written, is dropped: Python would complain of it once more."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_anything() -> None:
    """Let stdout and stderr take every character: one that the terminal's encoding lacks is escaped (\\u7532)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(message: str) -> None:
    """One line for the person at the terminal: to stderr, at once, and only from the first process of a run."""
    if this_process().rank == 0:
        blocks = getattr(_HEARD, "blocks", ())
        if all(printed for _, printed in blocks):
            print(f"{message}\n", end="", file=sys.stderr, flush=True)  # in one piece: Ctrl-C may come between two
        for heard, _ in blocks:
            heard.append(message)


@contextmanager
def hearing(printed: bool = True):
    """The list of what this thread says until the block ends: for a process whose stderr nobody reads, or where it is
    not `printed`.
    """
    outer = getattr(_HEARD, "blocks", ())
    _HEARD.blocks = (*outer, ([], printed))
    try:
        yield _HEARD.blocks[-1][0]
    finally:
        _HEARD.blocks = outer


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
