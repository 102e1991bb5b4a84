"""The engine `fast` with a source of prompts that come while others are answered."""

import pytest
import torch
from helpers_prediction import BASE, loaded

from decoding import fast_engine
from decoding.answers import STOPPED, Failure, Rules
from decoding.batch_engine import generate
from decoding.fast_engine import Live, Tuning

TEXTS = ["勾股定理", "北京市位于华北平原", "鲁迅，原名周树人", "月球", "长城全长两万多千米", "水", "李白是诗人"]


def test_prompts_that_come_while_others_are_answered_have_the_answers_of_one_at_a_time():
    model, codec = loaded(BASE)
    prompts = dict(enumerate(codec.text_ids(text) for text in TEXTS))
    alone = {number: generate(model, codec, [ids], Rules(12))[0] for number, ids in prompts.items()}
    coming, offered, seen, stopped = list(prompts.items()), [], {}, 4

    def more(free, idle):
        offered.append((free, idle))
        if not coming:
            return None if idle else {}
        return dict(coming.pop(0) for _ in range(min(free, 2, len(coming))))

    def took(number, ids):
        assert ids[: len(seen.get(number, []))] == seen.get(number, [])
        seen[number] = ids
        return number != stopped or len(ids) < 3

    made, live = {}, Live(200, 60, more, took)
    for group in fast_engine.answers(model, codec, {}, Rules(12, batch_size=2), Tuning(steps=1), live=live):
        made |= group
    assert made.keys() == prompts.keys()
    for number, answer in alone.items():
        assert made[number] == (Failure(STOPPED) if number == stopped else answer)
    assert len(seen[stopped]) == 3
    assert offered[0] == (2, True)
    assert max(len(ids) for ids in seen.values()) > 5  # they come as they are made


def test_records_at_work_can_be_stopped_when_no_more_come():
    model, codec = loaded(BASE)
    coming = [{0: codec.text_ids(TEXTS[0])}]
    live = Live(200, 60, lambda *_: coming.pop() if coming else None, lambda *_: False)
    made = next(fast_engine.answers(model, codec, {}, Rules(30), Tuning(steps=1), live=live))
    assert made == {0: Failure(STOPPED)}


def test_a_prompt_that_is_longer_than_was_said_fails_alone():
    model, codec = loaded(BASE)
    coming = [{0: [5] * 49, 1: [5] * 48}]
    live = Live(60, 60, lambda *_: coming.pop() if coming else None, lambda *_: True)
    groups = list(fast_engine.answers(model, codec, {}, Rules(12), Tuning(steps=1), live=live))
    made = {number: answer for group in groups for number, answer in group.items()}
    assert made[0] == Failure("prompt and answer may have 61 tokens, of 60")
    assert made[1] == generate(model, codec, [[5] * 48], Rules(12))[0]


@pytest.mark.parametrize(
    ("asked", "said", "fits", "tries"),
    [
        (240, 1000, 130, [(4, 240), (2, 120)]),
        (240, 1000, 70, [(4, 240), (2, 120), (1, 60)]),
        (1000, 240, 130, [(4, 240), (2, 120)]),  # there seemed to be less than was asked for
    ],
)
def test_out_of_memory_halves_the_room_beside_the_rows(monkeypatch, asked, said, fits, tries):
    model, codec = loaded(BASE)
    prompts = dict(enumerate(codec.text_ids(text) for text in TEXTS))
    coming, tried, real = [prompts], [], fast_engine.Places

    def make(model, size, count, *more, **about):
        tried.append((size, count))
        if count > fits:
            raise torch.OutOfMemoryError
        return real(model, size, count, *more, **about)

    monkeypatch.setattr(fast_engine, "Places", make)
    monkeypatch.setattr(fast_engine, "room", lambda *_: said)
    live = Live(asked, 60, lambda *_: coming.pop() if coming else None, lambda *_: True)
    groups = list(fast_engine.answers(model, codec, {}, Rules(12, batch_size=4), Tuning(steps=1), live=live))
    assert tried == tries
    for number, answer in ((number, answer) for group in groups for number, answer in group.items()):
        assert answer == generate(model, codec, [prompts[number]], Rules(12))[0]
    assert sum(map(len, groups)) == len(TEXTS)


@pytest.mark.parametrize("ahead", [1, 5])
def test_where_memory_is_short_who_comes_gets_more_room_when_it_is_needed(ahead, monkeypatch):
    model, codec = loaded(BASE)
    prompts = dict(enumerate(codec.text_ids(text) for text in TEXTS))
    alone = {number: generate(model, codec, [ids], Rules(12))[0] for number, ids in prompts.items()}
    computed, real = [], fast_engine.compute
    monkeypatch.setattr(fast_engine, "compute", lambda *given: computed.extend(given[2]) or real(*given))
    monkeypatch.setattr(fast_engine, "room", lambda *_: 70)
    coming, made = list(prompts.items()), {}

    def more(free, idle):
        if not coming:
            return None if idle else {}
        return dict(coming.pop(0) for _ in range(min(free, len(coming))))

    live = Live(200, 60, more, lambda *_: True)
    tuning = Tuning(steps=1, ahead=ahead)
    for group in fast_engine.answers(model, codec, {}, Rules(12, batch_size=3), tuning, live=live):
        made |= group
    assert made == alone
    assert len(computed) > len(prompts)  # some went on with more room
