"""What a script leaves out while it imports and opens a model, and what it does again behind that."""

import gc
import os
import subprocess
import sys
from contextlib import suppress

import pytest
from helpers import ROOT

from common.startup import NO_COMPILER, quick_startup, without_compiler


@pytest.mark.parametrize("before", [None, "0"])
def test_all_is_as_it_was_behind_the_block_even_after_an_error(monkeypatch, before):
    monkeypatch.delenv(NO_COMPILER, raising=False)
    if before:
        monkeypatch.setenv(NO_COMPILER, before)
    frozen = gc.get_freeze_count()
    with suppress(ValueError), quick_startup(), without_compiler():
        inside = gc.isenabled(), os.environ[NO_COMPILER]
        raise ValueError
    assert inside == (False, before or "1")
    assert gc.isenabled()
    assert os.environ.get(NO_COMPILER) == before
    assert gc.get_freeze_count() == frozen  # others' garbage is collected


def test_a_script_imports_peft_without_torchs_compiler_and_does_not_search_for_garbage_in_it():
    script = """
import gc, sys
from common import stopping
from common.startup import quick_startup, without_compiler
stopping.watch_signals()
with quick_startup(), without_compiler():
    import peft, bitsandbytes
assert "torch._inductor.compile_fx" not in sys.modules
assert gc.isenabled() and gc.get_freeze_count() > 100_000
import torch
assert hasattr(torch.compile(torch.nn.Identity()), "_orig_mod")  # who wants it has it
"""
    pytest.importorskip("bitsandbytes")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "src", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
