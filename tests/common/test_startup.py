"""What a script leaves out while it imports and opens a model, and what it does again behind that."""

import gc
import logging
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


@pytest.mark.parametrize(
    ("name", "message", "heard"),
    [
        ("DeepSpeed", "Setting accelerator to CPU. If you have GPU or other accelerator, …", False),
        ("DeepSpeed", "%s is broken", True),
        ("transformers.configuration_utils", "Model config: pad_token_id must be `None` or …, got -1.", False),
        ("transformers.configuration_utils", "Model config: eos_token_id must be `None` or …, got -1.", True),
        ("transformers.generation.configuration_utils", "The following generation flags are not valid …: ['x']", True),
    ],
)
def test_of_what_libraries_say_only_what_nobody_can_do_anything_about_is_left_out(name, message, heard):
    logger, said, handler = logging.getLogger(name), [], logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        logger.error(message, *(["a file"] if "%s" in message else []))
    finally:
        logger.removeHandler(handler)
    assert bool(said) == heard
