"""What a script does before its own work - imports, reading a model - without what only costs time there."""

import gc
import os
from contextlib import contextmanager

from common import stopping

NO_COMPILER = "TORCHDYNAMO_DISABLE"  # torch reads it whenever torch.compile is called


@contextmanager
def quick_startup():
    """While the block imports torch and opens a model, two things are left out that take seconds.

    Python's search for garbage: nearly all that is made there stays. In a script it is not looked at later either, so
    that the search does not interrupt the first answers. And torch's compiler, which bitsandbytes, imported by peft,
    loads for functions that are called on no CPU and no card of NVIDIA's, but for odd sizes of weights.
    """
    collecting, compiler = gc.isenabled(), os.environ.get(NO_COMPILER)
    gc.disable()
    os.environ.setdefault(NO_COMPILER, "1")
    try:
        yield
    finally:
        if compiler is None:
            os.environ.pop(NO_COMPILER, None)
        if stopping.is_watching():  # where main() is called by others, they may want what is there collected
            gc.freeze()
        if collecting:
            gc.enable()
