"""What a script does before its own work - imports, and what it decides - without what only costs time there."""

import gc
import os
from contextlib import contextmanager

from common import stopping

NO_COMPILER = "TORCHDYNAMO_DISABLE"  # torch reads it whenever torch.compile is called


@contextmanager
def quick_startup():
    """Python does not search for garbage while the block imports and reads a tokenizer: nearly all of that stays.

    A script's later searches leave it out as well; they would interrupt the first answers. Nothing large may become
    garbage in the block, such as a base's weights: what refers to itself in a circle would never be let go.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if stopping.is_watching():  # others who call main() may let go of what is there
            gc.freeze()
        if collecting:
            gc.enable()


@contextmanager
def without_compiler():
    """Import peft without torch's compiler, which takes a second or two.

    bitsandbytes, imported by peft, calls torch.compile for functions of its own. They serve no CPU and no card of
    NVIDIA's, but for weights of odd sizes, and work without it.
    """
    before = os.environ.get(NO_COMPILER)
    os.environ.setdefault(NO_COMPILER, "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(NO_COMPILER, None)
