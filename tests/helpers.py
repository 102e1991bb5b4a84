"""What the tests of several rooms share: where things are, small bases, a script run as a user would."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.family import find_family
from tokens.readers import load_codec

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "llama"
CHATGLM = ROOT / "tests" / "golden" / "chatglm"
EMBEDDED = ROOT / "models" / "smollm2-135m-instruct"


def rows(file):
    """The records of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def python(*command, launcher=(), **more):
    """Run a script of the project as a user would; the finished process, its stderr in `.stderr`."""
    start = [sys.executable, *launcher, *map(str, command)]
    return subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=900, **more)


def kill_when(holds, command, result, *made):
    """Start a command and kill it (-9) as soon as `holds()`, before its `result` is there. When that comes too late, it
    is done once more, without what was `made`: who waits may get less of a busy machine than who is waited for.
    """
    for _ in range(5):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 600
        while process.poll() is None and not holds():
            assert time.monotonic() < end
            time.sleep(0.002)
        process.kill()
        if process.wait() == -signal.SIGKILL and not result.exists():
            return
        for path in made:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    raise AssertionError(f"killed too late each time; its status was {process.returncode}")


@contextmanager
def linear_time(most=5.0):
    """The block takes so many seconds of the CPU at most: far more than linear time, 0.7 s at worst where this was
    written, so that no slow machine fails; and far less than quadratic time, which is minutes for what is given to it.
    """
    start = time.process_time()
    yield
    assert time.process_time() - start < most


def random_llama(folder, **sizes):
    """A LLaMA of random weights, larger than a trained one's, so that its layers do look at a prefix or an adapter."""
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(GOLDEN / "checkpoint" / name, folder)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(GOLDEN / "checkpoint", pad_token_id=0, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def published(name, folder):
    """A tiny ChatGLM-6B as published, tokenizer and all: its folder and its codec."""
    shutil.copytree(CHATGLM / name, folder)
    shutil.copy(CHATGLM / "ice_text.model", folder)
    return folder, load_codec(folder, find_family(folder)[0])
