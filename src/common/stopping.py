"""Ctrl-C and SIGTERM: first an exception, so that files and locks are left well; the second time an end at once.

Before a script's own work begins, while it imports torch, nothing is held, and it ends at once, too.
"""

import os
import signal
import sys
import threading
import time
from contextlib import suppress

from common.processes import this_process

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
SAME = (
    0.5  # seconds in which another signal is the first one once more: launchers pass on what their processes have got
)
GRACE = 20.0  # seconds to leave well; a process that hangs in a foreign library ends then
NOTHING_BEGUN = "nothing was begun; give the same command again"

# Of this process, for its signal handler: whether its work has begun, what stopped it, when, and whether that was said.
_state: dict = {"working": False, "number": None, "at": 0.0, "said": False}


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Libraries leave what they are doing as they do for a KeyboardInterrupt."""


def watch_signals() -> None:
    """Take Ctrl-C and SIGTERM over, for this process alone; scripts call it before they import what takes seconds."""
    for number in NAMES:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup, or a shell's background job, has set it
            signal.signal(number, _stop)
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_leave_it_to_the_parent)


def begin_work() -> None:
    """From here on the first signal raises `Stopped` in the main thread."""
    _state["working"] = True


def stopped_by() -> int | None:
    """The number of the signal that stops this process. Whatever is raised from then on comes of it."""
    return _state["number"]


def status_of(number: int) -> int:
    """The exit status by which shells know that a signal ended a process: 130 or 143."""
    return 128 + number


def say_stopped(number: int, kept: str) -> None:
    """The one line of a run that is stopped, from its first process."""
    if this_process().rank == 0 and not _state["said"]:
        _state["said"] = True
        with suppress(OSError):  # past what the interrupted thread may just be writing to sys.stderr
            os.write(2, f"stopped by {NAMES[number]}; {kept}\n".encode(errors="replace"))


def _stop(number: int, frame) -> None:
    now = time.monotonic()
    if not _state["working"]:
        say_stopped(number, NOTHING_BEGUN)
        os._exit(status_of(number))
    if stopped_by() is None:
        _state.update(number=number, at=now)
        sys.unraisablehook = threading.excepthook = lambda _: None  # what breaks from now on was broken off
        last = threading.Timer(GRACE, _end_at_once, [number])
        last.daemon = True
        last.start()
        raise Stopped
    if now - _state["at"] > SAME:
        _end_at_once(number)


def _end_at_once(number: int) -> None:
    say_stopped(number, "ended at once; what was on disk is kept, and the same command can be given again")
    os._exit(status_of(number))


def _leave_it_to_the_parent() -> None:
    """In a forked process (of a DataLoader, of datasets): its parent ends it, or it ends with its parent's pipes."""
    if signal.getsignal(signal.SIGINT) == _stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if signal.getsignal(signal.SIGTERM) == _stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
