from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers_prediction import RECORDS, loaded

from data.prompts import load_template, make_prompt
from decoding import fast_engine


@pytest.fixture(scope="module")
def tiny(random_base):
    """A model of random weights, whose draws differ from record to record, its codec, and prompts."""
    model, codec = loaded(random_base)
    template = load_template("alpaca")
    return model, codec, [codec.encode(make_prompt(template, r["instruction"], r["input"])) for r in RECORDS[:7]]


@pytest.fixture
def as_on_a_card(monkeypatch):
    """`fast` goes on while answers are handed over and tokens looked at, though there is no card."""
    monkeypatch.setattr(fast_engine, "_stream_beside", lambda _: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda _: None))
