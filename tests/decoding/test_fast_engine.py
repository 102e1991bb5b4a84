"""The engine `fast`: the answers of one record at a time, whoever shares the places; one that fails fails alone."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers_prediction import BASE, flags, windowed

import inference
from checkpoints.family import find_family
from common.errors import UserError
from decoding import fast_engine, fast_limits, fast_sizes, passes
from decoding.answers import ALONE, Failure, Rules
from decoding.batch_engine import generate
from decoding.fast_engine import Tuning
from decoding.serving import Serving
from loading.precision import Precision
from tokens.codec import Codec


def fast(model, codec, prompts, rules, **tuning):
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    made, waiting = {}, {index: prompts[index] for index in order}
    for group in fast_engine.answers(model, codec, waiting, rules, Tuning(**tuning)):
        assert not set(made) & set(group)
        made |= group
    return [made[index] for index in range(len(prompts))]


def serving(base, **more):
    precision, family = Precision("float32", 16), find_family(BASE)[0]
    return Serving(str(base), family, None, precision, torch.device("cpu"), Rules(8), **more)


@pytest.mark.parametrize("more", [{}, {"max_repeats": 2}])
def test_every_number_of_places_answers_as_one_at_a_time(tiny, more):
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
            for steps, tokens, shared in ((16, 8192, 16), (3, 1, 1)):  # prompts computed together, and each by itself
                tuning = {"steps": steps, "block": steps, "pass_tokens": tokens, "shared": shared}
                assert fast(model, own, prompts, rules._replace(batch_size=size), **tuning) == alone, (size, steps)
    model.generation_config.eos_token_id = codec.eos_id
    assert len({answer.tokens for answer in alone}) > 1


def test_rows_are_filled_before_the_first_step(tiny):
    model, codec, prompts = tiny
    own = Codec(**{**vars(codec), "eos_id": -1})  # nothing ends an answer
    passes_of = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, given: passes_of.append(given["position_ids"].numel()), with_kwargs=True
    )
    answers = fast(model, own, prompts, Rules(9, batch_size=len(prompts)), pass_tokens=1)
    hook.remove()
    assert {answer.tokens for answer in answers} == {9}
    assert len(passes_of) == len(prompts) + 8  # each prompt by itself, its first token with it
    assert passes_of[-8:] == [len(prompts)] * 8


@pytest.mark.parametrize("window", [3, 40])  # tokens; the prompts have more
@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
def test_layers_that_see_only_the_last_tokens_answer_as_one_at_a_time(tiny, model_type, window):
    _, codec, prompts = tiny
    model = windowed(tiny, model_type, window, layers=3)
    prompts = prompts[:4]
    alone = [generate(model, codec, [ids], Rules(8))[0] for ids in prompts]
    assert len({answer.text for answer in alone}) > 1 or window == 3  # the last three are the template's
    for size, shared in ((1, 1), (3, 16)):
        assert fast(model, codec, prompts, Rules(8, batch_size=size), shared=shared) == alone


@pytest.mark.parametrize("ahead", [1, 5, 30])
def test_where_memory_is_short_an_answer_gets_more_room_when_it_needs_it(tiny, ahead, monkeypatch):
    model, codec, prompts = tiny
    computed, real = [], fast_engine.compute
    monkeypatch.setattr(fast_engine, "compute", lambda *given: computed.extend(given[2]) or real(*given))
    for new in (ahead, ahead + 1, ahead + 2, 40):
        computed.clear()
        room = 2.6 * (sum(map(len, prompts)) / len(prompts) + new)  # of the three that are asked for
        monkeypatch.setattr(fast_engine, "room", lambda *_, room=room: room)
        rules = Rules(new, batch_size=3)
        alone = [generate(model, codec, [ids], rules)[0] for ids in prompts]
        assert {answer.tokens for answer in alone} == {new}
        assert fast(model, codec, prompts, rules, ahead=ahead) == alone
        again = [ids for ids in computed if ids not in prompts]
        assert len(again) == (len(prompts) if new > ahead + 1 else 0)
        assert {len(ids) - ahead - 1 for ids in again} <= {len(ids) for ids in prompts}


def test_a_beginning_in_common_with_a_prompt_that_is_kept_is_copied(tiny, monkeypatch, capsys):
    """Answers are those of one at a time; only what differs is computed, and of an equal prompt the last token."""
    model, codec, prompts = tiny
    common = [ids for prompt in prompts for ids in prompt][:40]
    own = [[7, *range(9, 9 + more)] for more in (20, 11, 2)] + [[5, 6], [5, 6], [8]]
    prompts = [[*common, *ids] for ids in own] + [[*common[:15], 9, 8, 7]]
    copied, real = [], fast_engine.compute
    monkeypatch.setattr(
        fast_engine, "compute", lambda *given: copied.extend(tokens for tokens, _ in given[4]) or real(*given)
    )
    rules = Rules(12, batch_size=3)
    alone = [generate(model, codec, [ids], rules)[0] for ids in prompts]
    assert fast(model, codec, prompts, rules, pass_tokens=1) == alone  # each by itself
    assert copied == [0, 51, 42, 40, 41, 40, 0]  # the last has too little in common
    computed = sum(map(len, prompts)) - sum(copied)
    assert f"prompts: {computed} tokens computed, {sum(copied)} copied from" in capsys.readouterr().err


def test_rows_are_those_of_whole_answers_or_where_few_fit_of_their_beginnings(monkeypatch):
    card = torch.device("cuda")
    for room, rows in ((10**6, 400), (90_000, 100), (27_000, 53), (2_700, 5), (10, 1)):
        monkeypatch.setattr(fast_sizes, "room", lambda *_, room=room: room)
        assert fast_sizes.choose_rows(None, [350, 410] * 200, 512, 1, card) == rows, room
    for room, rows in ((10**6, 400), (90_000, 146), (27_000, 64), (2_700, 10), (10, 1)):  # of 280 tokens kept once
        monkeypatch.setattr(fast_sizes, "room", lambda *_, room=room: room)
        assert fast_sizes.choose_rows(None, [350, 410] * 200, 512, 1, card, common=280) == rows, room


def test_a_loop_ends_its_row_at_once(tiny, monkeypatch):
    model, codec, prompts = tiny
    monkeypatch.setattr(fast_engine, "loops", lambda text, times: True)
    steps, real = [], fast_engine.decode
    monkeypatch.setattr(fast_engine, "decode", lambda *given: steps.append(1) or real(*given))
    fast(model, codec, prompts, Rules(400, batch_size=7, max_repeats=2), block=4)
    assert len(steps) == 1
    monkeypatch.setattr(fast_engine, "loops", None)  # is not called
    fast(model, codec, prompts, Rules(20, batch_size=7))


SHORT = {
    "a card": lambda: torch.OutOfMemoryError("no room"),
    "a CPU": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 6 bytes"),
}


@pytest.mark.parametrize("device", SHORT)
@pytest.mark.parametrize("where", ["Places", "make_step", "decode", "compute"])
@pytest.mark.parametrize("rows", [1, 3])
def test_out_of_memory_halves_the_rows_says_so_and_goes_on(
    tiny,
    where,
    rows,
    device,
    monkeypatch,
    capsys,
):
    model, codec, prompts = tiny
    module = passes if where == "make_step" else fast_engine
    real, sizes, made_for = getattr(module, where), [], []
    rows_of = {
        "Places": lambda given: given[1],
        "make_step": lambda given: given[2],
        "decode": lambda given: given[1],
        "compute": lambda given: made_for[-1],
    }[where]

    def small(*given, **more):
        sizes.append(rows_of(given))
        if sizes[-1] > rows:
            raise SHORT[device]()
        return real(*given, **more)

    make = fast_engine.Places
    if where == "compute":
        monkeypatch.setattr(
            fast_engine, "Places", lambda *given, **more: made_for.append(given[1]) or make(*given, **more)
        )
    monkeypatch.setattr(module, where, small)
    made = fast(model, codec, prompts, Rules(20, batch_size=7))
    assert made == [generate(model, codec, [ids], Rules(20))[0] for ids in prompts]
    assert "batch_size: 3 (out of memory)" in capsys.readouterr().err
    assert rows in sizes
    assert min(sizes) == rows or where in ("make_step", "decode")  # smaller ones are made anyway


@pytest.mark.parametrize("failing", range(1, 12, 2))
def test_answers_kept_back_while_a_card_works_are_not_lost_or_said_twice(tiny, failing, monkeypatch, as_on_a_card):
    model, codec, prompts = tiny
    calls, real = [], fast_engine.decode

    def short_of_memory(*given):
        calls.append(1)
        if len(calls) == failing:
            raise torch.OutOfMemoryError("no room")
        return real(*given)

    monkeypatch.setattr(fast_engine, "decode", short_of_memory)
    made = fast(model, codec, prompts, Rules(20, batch_size=3), pass_tokens=1, steps=4)
    assert len(calls) > failing
    assert made == [generate(model, codec, [ids], Rules(20))[0] for ids in prompts]


@pytest.mark.parametrize("device", SHORT)
def test_a_record_too_large_even_alone_fails_by_itself(tiny, device, monkeypatch):
    model, codec, prompts = tiny
    longest = max(prompts, key=len)
    for where in ("Places", "compute"):
        real = getattr(fast_engine, where)

        def small(*given, where=where, real=real, **more):
            if given[2] > len(longest) + 19 if where == "Places" else longest in given[2]:
                raise SHORT[device]()
            return real(*given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(fast_engine, where, small)
            made = fast(model, codec, prompts, Rules(20, batch_size=1))
        assert made.pop(prompts.index(longest)) == Failure(ALONE)
        assert made == [generate(model, codec, [ids], Rules(20))[0] for ids in prompts if ids != longest]


def test_an_answer_that_cannot_be_read_fails_alone(tiny):
    model, codec, prompts = tiny
    bad = generate(model, codec, [prompts[2]], Rules(6))[0].text

    def decode(ids):
        text = codec.decode(ids)
        if text.strip() == bad:
            raise ValueError("no such token")
        return text

    own = SimpleNamespace(decode=decode, eos_id=codec.eos_id, pad_id=codec.pad_id)
    made = fast(model, own, prompts, Rules(6, batch_size=4))
    assert made.pop(2) == Failure("ValueError: no such token")
    assert not any(isinstance(answer, Failure) for answer in made)


def test_a_prompt_that_raises_fails_alone(tiny):
    model, codec, prompts = tiny
    broken = [*prompts[:3], [10**6, 5], *prompts[3:]]
    made = fast(model, codec, broken, Rules(6, batch_size=4))
    assert isinstance(made.pop(3), Failure)
    assert made == [generate(model, codec, [ids], Rules(6))[0] for ids in prompts]


def test_what_a_prompt_that_failed_wrote_over_is_not_copied(tiny, monkeypatch):
    model, codec, prompts = tiny
    common, bad = (prompts[0] * 2)[:30], [9, *range(700, 731)]
    asked = [[*common, 7, 8, 9], bad, [*common, 5]]
    real = fast_engine.compute

    def compute(*given):
        firsts = real(*given)
        if bad in given[2]:
            raise ValueError("late")
        return firsts

    monkeypatch.setattr(fast_engine, "compute", compute)
    made = fast(model, codec, asked, Rules(6, batch_size=1))
    assert made.pop(1) == Failure("ValueError: late")
    assert made == [generate(model, codec, [ids], Rules(6))[0] for ids in asked if ids != bad]


def test_the_script_writes_what_the_engine_batch_writes(tmp_path, capsys):
    for engine in ("batch", "fast", "auto"):
        inference.main(flags(tmp_path / f"{engine}.json", engine=engine, max_new_tokens=24))
    assert "engine: fast (it knows this base)" in capsys.readouterr().err
    texts = {(tmp_path / f"{engine}.json").read_bytes() for engine in ("batch", "fast", "auto")}
    assert len(texts) == 1


@pytest.mark.parametrize("more", [[], ["--merge_lora"]])
def test_over_8_bits_no_answer_depends_on_the_records_beside_it(tmp_path, more):
    runs = [("batch", 1), ("batch", 4), ("batch", 12), ("fast", 1), ("fast", 12)]
    for engine, size in runs:
        chosen = {"engine": engine, "batch_size": size, "max_new_tokens": 24, "bits": 8}
        inference.main(flags(tmp_path / f"{engine}-{size}.json", "--fp32", *more, **chosen))
    assert len({(tmp_path / f"{engine}-{size}.json").read_bytes() for engine, size in runs}) == 1


def test_what_it_cannot_do_is_refused_and_auto_takes_the_other(tmp_path, capsys):
    why = "it answers greedily, on one GPU, without --num_beams"
    with pytest.raises(UserError, match=f"--engine fast: {why}; use --engine batch"):
        inference.main(flags(tmp_path / "x.json", engine="fast", num_beams=2))
    inference.main(flags(tmp_path / "x.json", engine="auto", num_beams=2))
    assert f"engine: batch (fast: {why})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "gpt2"}, "model_type gpt2 is not known to keep records apart"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type dynamic"),
        ({"model_type": "made-up"}, "made-up"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "comes quantised (gptq)"),
    ],
)
def test_a_base_that_it_does_not_know_is_named(tmp_path, changes, why):
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    assert fast_limits.why_not(serving(BASE)) is None
    assert why in fast_limits.why_not(serving(tmp_path))


def test_an_adapter_of_another_kind_is_answered_by_the_engine_batch(tmp_path):
    settings = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(BASE)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert fast_limits.why_not(serving(BASE, adapter=tmp_path)) == "adapters of kind PREFIX_TUNING are not known to it"
