"""Ctrl-C and SIGTERM: first an exception, so that files and locks are left well; the second time an end at once.

Before a script's own work begins, while it imports torch, nothing is held, and it ends at once, too.
"""

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress

from common.processes import this_process

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
SAME = 0.5  # seconds in which another signal is the first one once more: launchers pass on what all have got
GRACE = 5.0  # seconds to leave well; a process that hangs in a library, as in those that share work, ends then
AGAIN = 0.05  # seconds until a `Stopped` that Python had to drop is raised once more
NOTHING_BEGUN = "nothing was begun; give the same command again"
KEPT = "what was finished before is kept, and the same command can be given again"

# Of this process, for its signal handler: which one it is, whether its work has begun, what stopped it, when, what is
# kept (what tells it, of the blocks that are entered), whether that was said, whether `Stopped` is to be raised again.
_state: dict = {"pid": 0, "working": False, "number": None, "at": 0.0, "kept": [], "said": False, "again": False}


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. Libraries leave what they are doing as they do for a KeyboardInterrupt."""


def watch_signals(grace: float = GRACE, same: float = SAME) -> None:
    """Take Ctrl-C and SIGTERM over, for this process alone; scripts call it before they import what takes seconds.

    `grace`: seconds that the first one leaves for leaving well; `same`: in which another one is that one, passed on.
    """
    _state.update(pid=os.getpid(), grace=grace, same=same)
    for number in NAMES:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup, or a shell's background job, has set it
            signal.signal(number, _stop)
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_leave_it_to_the_parent)


def is_watching() -> bool:
    """Whether this process is a script's own, as `watch_signals` knows it."""
    return _state["pid"] == os.getpid()


def begin_work() -> None:
    """From here on the first signal raises `Stopped` in the main thread."""
    _state["working"] = True


def end_work() -> None:
    """From here on a signal ends the process in silence: all that was to be done, or said, is."""
    for number in NAMES:
        if signal.getsignal(number) == _stop:
            signal.signal(number, signal.SIG_DFL)


def stopped_by() -> int | None:
    """The number of the signal that stops this process. Whatever is raised from then on comes of it."""
    return _state["number"]


def _status_of(number: int) -> int:
    """The exit status by which shells know that a signal ended a process: 130 or 143."""
    return 128 + number


@contextmanager
def describing(describe):
    """While the block runs, `describe()` says what of its work is kept, and how to go on."""
    _state["kept"].append(describe)
    try:
        yield
    finally:
        if stopped_by() is None:  # of a run that stops, the innermost block speaks
            _state["kept"].pop()


def say_stopped(number: int, kept: str | None = None) -> None:
    """The one line of a run that is stopped, from its first process; `kept`: what is, if no block describes it."""
    if this_process().rank == 0 and not _state["said"]:
        _state["said"] = True
        for describe in reversed(_state["kept"]):
            with suppress(Exception):
                kept = kept or describe()
        kept = kept or KEPT
        with suppress(OSError):  # past what the interrupted thread may just be writing to sys.stderr
            os.write(2, f"stopped by {NAMES[number]}; {kept}\n".encode(errors="replace"))


def _stop(number: int, frame) -> None:
    now = time.monotonic()
    if os.getpid() != _state["pid"]:  # forked a moment ago: see _leave_it_to_the_parent
        if number == signal.SIGTERM:
            os._exit(_status_of(number))
    elif not _state["working"]:
        say_stopped(number, NOTHING_BEGUN)
        os._exit(_status_of(number))
    elif stopped_by() is None:
        _state.update(number=number, at=now)
        sys.unraisablehook, threading.excepthook = _raise_again, lambda _: None  # threads break off, too
        _call_later(_state["grace"], _end_at_once, number)
        raise Stopped
    elif _state["again"]:
        _state["again"] = False
        raise Stopped
    elif now - _state["at"] > _state["same"]:
        _end_at_once(number)


def _raise_again(dropped) -> None:
    """Python drops an exception out of a hook of fork or of a destructor; of others, nothing need be said now."""
    if dropped.exc_type is Stopped:
        _state["again"] = True
        _call_later(AGAIN, os.kill, os.getpid(), stopped_by())


def _call_later(seconds: float, function, *arguments) -> None:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


def _end_at_once(number: int) -> None:
    say_stopped(number)
    end(number)


def end(number: int) -> None:
    """End this process, and those it has started: some may wait for locks of others that are gone."""
    with suppress(Exception):
        import psutil  # here: commands that need nothing else start faster without

        for child in psutil.Process().children(recursive=True):
            child.kill()
    os._exit(_status_of(number))


def _leave_it_to_the_parent() -> None:
    """In a forked process (of a DataLoader, of datasets): it goes when its parent wants it to, or with its pipes."""
    if signal.getsignal(signal.SIGINT) == _stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if signal.getsignal(signal.SIGTERM) == _stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
