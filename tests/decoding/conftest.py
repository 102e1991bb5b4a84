import pytest
from helpers_prediction import RECORDS, loaded

from data.prompts import load_template, make_prompt


@pytest.fixture(scope="module")
def tiny(random_base):
    """A model of random weights, whose draws differ from record to record, its codec, and prompts."""
    model, codec = loaded(random_base)
    template = load_template("alpaca")
    return model, codec, [codec.encode(make_prompt(template, r["instruction"], r["input"])) for r in RECORDS[:7]]
