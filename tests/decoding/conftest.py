import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers_prediction import RECORDS, loaded

from data.prompts import load_template, make_prompt
from decoding import fast_engine, passes


@pytest.fixture(scope="module")
def tiny(random_base):
    """A model of random weights, whose draws differ from record to record, its codec, and prompts."""
    model, codec = loaded(random_base)
    template = load_template("alpaca")
    return model, codec, [codec.encode(make_prompt(template, r["instruction"], r["input"])) for r in RECORDS[:7]]


@pytest.fixture
def as_on_a_card(monkeypatch):
    """`fast` goes on while answers are handed over, and looks at tokens as their steps end, though there is no card;
    how many steps each look has found.
    """
    chance, found, decode = random.Random(1), [], fast_engine.decode

    def decode_step_by_step(*given):
        made, ends = decode(*given), SimpleNamespace(synchronize=lambda: None, query=lambda: chance.random() < 0.5)
        return made._replace(coming=[(said, ends) for said in made.tokens.unbind(1)])

    def arrive(made, arriving=passes.Made.arriving):
        for steps in arriving(made):
            found.append(steps.shape[1])
            yield steps

    monkeypatch.setattr(fast_engine, "decode", decode_step_by_step)
    monkeypatch.setattr(passes.Made, "arriving", arrive)
    monkeypatch.setattr(fast_engine, "_stream_beside", lambda _: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda _: None))
    return found
