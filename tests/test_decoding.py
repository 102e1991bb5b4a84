"""The engine `fast`: the answers of one record at a time, whoever shares the places; one that fails fails alone."""

import pytest
import torch
from test_answers import tiny  # noqa: F401 - a fixture
from test_inference import flags

import inference
from utils import decoding
from utils.errors import UserError
from utils.generating import Failure, Rules, generate
from utils.tokens import Codec


def fast(model, codec, prompts, rules):
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    made = {}
    for group in decoding.answers(model, codec, {index: prompts[index] for index in order}, rules):
        assert not set(made) & set(group)
        made |= group
    return [made[index] for index in range(len(prompts))]


@pytest.mark.parametrize("more", [{}, {"max_repeats": 2}])
def test_every_number_of_places_answers_as_one_at_a_time(tiny, more, monkeypatch):  # noqa: F811
    model, codec, prompts = tiny
    # A token that some answers hold ends them, so that rows end at different times and are filled anew.
    ends = generate(model, codec, [prompts[0]], Rules(8))[0]
    assert ends.finish_reason == "length"
    said = model.generate(torch.tensor([prompts[0]]), max_new_tokens=8, do_sample=False)[0, len(prompts[0]) :].tolist()
    for eos in (codec.eos_id, said[5]):
        own = Codec(**{**vars(codec), "eos_id": eos})
        model.generation_config.eos_token_id = eos
        rules = Rules(40, **more)
        alone = [generate(model, own, [ids], rules)[0] for ids in prompts]
        for size in (1, 2, 3, 7):
            for steps, tokens in ((16, 8192), (3, 1)):  # prompts computed together, and each by itself
                monkeypatch.setattr(decoding, "STEPS", steps)
                monkeypatch.setattr(decoding, "PASS", tokens)
                assert fast(model, own, prompts, rules._replace(batch_size=size)) == alone, (size, steps)
    model.generation_config.eos_token_id = codec.eos_id
    assert len({answer.tokens for answer in alone}) > 1


def test_an_answer_ends_where_the_positions_do(tiny):  # noqa: F811
    model, codec, prompts = tiny
    short = Codec(**{**vars(codec), "context": max(map(len, prompts)) + 5})
    rules = Rules(12, batch_size=3)
    assert fast(model, short, prompts, rules) == [generate(model, short, [ids], rules)[0] for ids in prompts]


def test_a_prompt_that_raises_fails_alone(tiny):  # noqa: F811
    model, codec, prompts = tiny
    broken = [*prompts[:3], [10**6, 5], *prompts[3:]]
    made = fast(model, codec, broken, Rules(6, batch_size=4))
    assert isinstance(made.pop(3), Failure)
    assert made == [generate(model, codec, [ids], Rules(6))[0] for ids in prompts]


def test_the_script_writes_what_the_engine_batch_writes(tmp_path):
    for engine in ("batch", "fast"):
        inference.main(flags(tmp_path / f"{engine}.json", "--engine", engine, max_new_tokens=24))
    assert (tmp_path / "fast.json").read_bytes() == (tmp_path / "batch.json").read_bytes()


def test_what_it_cannot_do_is_refused(tmp_path):
    with pytest.raises(UserError, match="--engine fast and --num_beams: it answers greedily"):
        inference.main(flags(tmp_path / "x.json", "--engine", "fast", num_beams=2))
