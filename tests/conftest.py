import atexit
import os
import shutil
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

if not os.environ.get("TEST_ON_CARD"):  # of tests that say so; all others are about the CPU, on any machine
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a runner in the background, and so of all that it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_DATASETS_CACHE"] = ROWS = tempfile.mkdtemp()  # rows of earlier tests, not those of the person's own runs
atexit.register(shutil.rmtree, ROWS, ignore_errors=True)
# What @given draws is the same in every run, and no test fails because the machine was busy while it drew.
settings.register_profile(
    "same", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")

from helpers import EMBEDDED, published, random_llama  # noqa: E402 - what it imports reads the variables above


@pytest.fixture(scope="session")
def embedded_base():
    """The real base that comes inside a PyPI package; scripts/test.bash has made it."""
    assert (EMBEDDED / "config.json").is_file(), "run bash scripts/test.bash, or python src/utils/gguf_to_hf.py"
    return EMBEDDED


@pytest.fixture(scope="session")
def random_base(tmp_path_factory):
    """The folder of such a LLaMA."""
    folder = tmp_path_factory.mktemp("base")
    random_llama(folder, intermediate_size=128)
    return folder


@pytest.fixture(scope="session")
def chatglm(tmp_path_factory):
    return published("base", tmp_path_factory.mktemp("chatglm") / "base")
