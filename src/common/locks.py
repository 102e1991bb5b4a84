"""Locks on files, which end with the process that holds them, however it ends."""

import os
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind
    fcntl = None


@contextmanager
def hold_file(path: Path, what: str, refusal: str):
    """Keep the file at `path`, made with its folders if it is not there, from others until the block ends, and remove
    it if it is empty then.

    UserError: `refusal` when another process has it, one about `what` (a flag, its value) when it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror}); give another path") from error
    with file:
        if not take_file(path, file):
            raise UserError(refusal)
        try:
            yield
        finally:
            if _stands_at(path, file) and not os.fstat(file.fileno()).st_size:
                path.unlink(missing_ok=True)


def take_lock(file: int, shared: bool = False) -> bool:
    """Lock an open file, `shared` with others that do so; False when another process has it. Where files cannot be
    locked, nobody has.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def take_file(path: Path, file) -> bool:
    """Lock the open `file`; False when another process has it, or when a run that ended since it was opened took it
    away from `path`: another file, or none, stands there.
    """
    return take_lock(file.fileno()) and _stands_at(path, file)


def _stands_at(path: Path, file) -> bool:
    """Whether the open `file` is still the one at `path`: a run that ends takes its file away."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
