"""Logits that are not finite: the records that they are of fail, by name; the others are answered as ever."""

import copy
import math

import pytest
import torch
from helpers_cpmbee import FOLDER, WEIGHTS, folder_with
from helpers_prediction import RECORDS, flags, loaded
from safetensors.torch import load_file, save_file

import inference
from common.errors import UserError
from decoding import batch_engine, fast_engine
from decoding.answers import NOT_FINITE, Answer, Failure, Rules, blame
from decoding.fast_engine import Tuning
from tokens.codec import Codec

ENGINES = {"batch": batch_engine.answers, "fast": fast_engine.answers}


def in_all(engine, model, codec, prompts, rules, **more):
    """Answer or failure of all prompts, in order."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    made = {}
    for group in ENGINES[engine](model, codec, {index: prompts[index] for index in order}, rules, **more):
        made |= group
    return [made[index] for index in range(len(prompts))]


def said(model, prompts, new=8):
    """The ids of each greedy answer."""
    given = {"max_new_tokens": new, "do_sample": False}
    return [model.generate(torch.tensor([ids]), **given)[0, len(ids) :].tolist() for ids in prompts]


def broken(model, token):
    """A copy that cannot read a token."""
    model = copy.deepcopy(model)
    model.get_input_embeddings().weight.data[token, 0] = math.nan
    return model


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_record_whose_prompt_cannot_be_read_fails(tiny, engine):
    model, codec, prompts = tiny
    others = {token for at, ids in enumerate(prompts) if at != 3 for token in ids}
    others |= {token for ids in said(model, prompts) for token in ids}
    token = next(token for token in prompts[3] if token not in others)
    for size in (2, 7):
        rules = Rules(8, batch_size=size)
        expected = in_all(engine, model, codec, prompts, rules)
        expected[3] = Failure(NOT_FINITE)
        assert in_all(engine, broken(model, token), codec, prompts, rules) == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("step", [0, 5])
def test_an_answer_that_breaks_at_any_step_fails(tiny, engine, step):
    """A token of its own that it cannot read back; the last token of an answer is never read."""
    model, codec, prompts = tiny
    answers = said(model, prompts)
    token = answers[2][step]
    assert token not in {token for ids in prompts for token in ids}
    more = {"tuning": Tuning(steps=3, block=3)} if engine == "fast" else {}
    step = answers[2].index(token)
    for new in (step + 1, step + 2, 8):
        expected = in_all(engine, model, codec, prompts, Rules(new, batch_size=3))
        for at, ids in enumerate(answers):
            if token in ids[: new - 1]:
                expected[at] = Failure(NOT_FINITE)
        assert (expected[2] == Failure(NOT_FINITE)) == (new > step + 1)
        assert in_all(engine, broken(model, token), codec, prompts, Rules(new, batch_size=3), **more) == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_computed_behind_the_end_of_an_answer_does_not_count(tiny, engine):
    """The token that ends the first answer, and pads it while the others go on, cannot be read."""
    model, codec, prompts = tiny
    prompts = [ids[-min(map(len, prompts)) :] for ids in prompts]  # of one length: nothing is padded on the left
    answers = said(model, prompts, 12)
    end = next(token for token in answers[0][1:] if token not in {token for ids in prompts for token in ids})
    own = Codec(**{**vars(codec), "eos_id": end, "pad_id": end})
    expected = in_all(engine, model, own, prompts, Rules(12, batch_size=7))
    assert {one.finish_reason for one in expected} == {"eos", "length"}
    assert in_all(engine, broken(model, end), own, prompts, Rules(12, batch_size=7)) == expected


RULES = {
    "beams": {"num_beams": 3},
    "drawn": {"do_sample": True, "temperature": 1.5},
    "penalty": {"repetition_penalty": 1.3},
    "loops": {"max_repeats": 2},
}


@pytest.mark.parametrize("name", RULES)
def test_every_way_to_choose_a_token_notices(tiny, name):
    model, codec, prompts = tiny
    rules = Rules(6, batch_size=3, **RULES[name])
    for part, value in (("lm_head.weight", math.inf), ("model.norm.weight", math.nan)):
        bad = copy.deepcopy(model)
        bad.get_parameter(part).data.view(-1)[5] = value
        assert set(in_all("batch", bad, codec, prompts, rules)) == {Failure(NOT_FINITE)}
    assert all(isinstance(one, Answer) for one in in_all("batch", model, codec, prompts, rules))


def test_numbers_that_grow_too_large_are_told_from_weights_that_are_none(tiny):
    model = copy.deepcopy(tiny[0])
    assert blame(model).startswith("every weight is finite")
    model.config.dtype = torch.float16
    assert "--bf16 or --fp32 may help" in blame(model)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.inf
    assert blame(model).startswith("model.layers.1.mlp.up_proj.weight holds NaN or infinity")


@pytest.mark.parametrize("beams", [1, 2])
def test_cpm_bee_notices_too(tmp_path, beams):
    name = next(name for name in WEIGHTS if name.endswith("output_layernorm.weight"))
    weights = {**WEIGHTS, name: torch.full_like(WEIGHTS[name], math.nan)}
    folder = folder_with(tmp_path / "base", weights)
    for file in FOLDER.glob("*"):
        if file.suffix in (".txt", ".json") and not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    model, codec = loaded(folder)
    prompts = [codec.encode([]), codec.encode([])]
    made = in_all("batch", model, codec, prompts, Rules(4, batch_size=2, num_beams=beams))
    assert made == [Failure(NOT_FINITE)] * 2


@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_names_records_and_weight_and_writes_no_file(tmp_path, random_base, engine, capsys):
    base, out = tmp_path / "base", tmp_path / "out.json"
    base.mkdir()
    for file in random_base.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.input_layernorm.weight"][0] = math.nan
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    given = flags(out, model_name_or_path=base, lora_weights=None, engine=engine, max_new_tokens=3)
    with pytest.raises(UserError, match="12 of 12 records failed, for the reasons above"):
        inference.main(given)
    told = capsys.readouterr().err
    assert f"failed: id {RECORDS[0]['id']}: {NOT_FINITE}" in told
    assert "model.layers.0.input_layernorm.weight holds NaN or infinity" in told
    assert not out.exists()
