"""The engine `fast` where what all prompts begin with is kept once: the answers of one record at a time."""

import random
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT
from helpers_prediction import loaded, windowed

from decoding import constrained, fast_engine, passes
from decoding.answers import Failure, Rules
from decoding.batch_engine import generate
from decoding.constrained import make_limits
from decoding.fast_engine import Live
from decoding.fast_sizes import Tuning, count_common
from decoding.kept import Spans, _attend_all, _attend_each, _pad_all, _records_of
from decoding.lookup import NONE
from decoding.places import Place, Places, Started
from tokens.codec import Codec

ONCE = "with which all begin are kept once"


def fast(model, codec, prompts, rules, limits=None, **tuning):
    waiting, made = dict(sorted(enumerate(prompts), key=lambda item: -len(item[1]))), {}
    for group in fast_engine.answers(model, codec, waiting, rules, Tuning(**{"common": 1, **tuning}), limits):
        made |= group
    return [made[number] for number in range(len(prompts))]


def alike(codec, vocabulary: int, lengths: list[int], common: int = 60) -> list[list[int]]:
    """Prompts that begin alike, some of them further than all do, one of them with hardly more than that."""
    draw = random.Random(0)
    start, more = ([draw.randrange(5, vocabulary) for _ in range(count)] for count in (common, 30))
    ends = [[draw.randrange(5, vocabulary) for _ in range(length)] for length in lengths]
    return [start + (more if number % 3 == 1 else []) + end for number, end in enumerate(ends)] + [[*start, 7]]


LENGTHS = [25, 3, 40, 1, 9, 17]


@pytest.fixture(scope="module")
def asked(tiny):
    model, codec, _ = tiny
    return model, codec, alike(codec, model.config.vocab_size, LENGTHS)


def test_answers_are_those_of_one_at_a_time_and_rows_are_filled_anew(asked, capsys):
    model, codec, prompts = asked
    said = model.generate(torch.tensor([prompts[0]]), max_new_tokens=8, do_sample=False)[0, len(prompts[0]) :].tolist()
    own = Codec(**{**vars(codec), "eos_id": said[5]})
    model.generation_config.eos_token_id = own.eos_id
    alone = [generate(model, own, [ids], Rules(30))[0] for ids in prompts]
    model.generation_config.eos_token_id = codec.eos_id
    assert len({answer.tokens for answer in alone}) > 1
    for size, tokens, shared in ((1, 8192, 16), (2, 1, 1), (3, 40, 4), (7, 8192, 16)):
        tuning = {"steps": 3, "pass_tokens": tokens, "shared": shared}
        assert fast(model, own, prompts, Rules(30, batch_size=size), **tuning) == alone, (size, tokens)
        told = capsys.readouterr().err
        assert f"; 60 {ONCE}" in told
        assert ("copied from" in told) == (size < 7)  # what some begin with beyond that
    fast(model, own, prompts, Rules(30, batch_size=7))
    assert f"{60 + sum(len(ids) - 60 for ids in prompts)} tokens computed; 60 {ONCE}" in capsys.readouterr().err


@pytest.mark.parametrize("window", [3, 40, 75])  # 75: reaches into what is common at first, and soon no further
@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("drafts", [0, 3])
def test_layers_that_see_only_the_last_tokens(tiny, model_type, window, drafts):
    base, codec, _ = tiny
    model = windowed(tiny, model_type, window, layers=2)
    prompts = alike(codec, base.config.vocab_size, LENGTHS[:3])
    alone = [generate(model, codec, [ids], Rules(12))[0] for ids in prompts]
    assert len({answer.text for answer in alone}) > 1
    for size in (1, 3):
        assert fast(model, codec, prompts, Rules(12, batch_size=size, drafts=drafts)) == alone


def test_moss_whose_own_attention_reads_what_is_kept():
    model, codec = loaded(ROOT / "tests" / "golden" / "moss")
    prompts = alike(codec, 300, LENGTHS)
    alone = [generate(model, codec, [ids], Rules(14))[0] for ids in prompts]
    assert len({answer.text for answer in alone}) > 2
    for size, drafts in ((1, 0), (4, 0), (4, 3), (7, 0)):
        assert fast(model, codec, prompts, Rules(14, batch_size=size, drafts=drafts)) == alone, (size, drafts)


@pytest.fixture
def propose(monkeypatch):
    """A function: drafts are made of these prompts with their answers, now and then with a wrong token."""

    def look_up(known, texts, newest, count):
        drafts = torch.full((len(texts), count), NONE)
        for row, (ids, at) in enumerate(zip(texts.tolist(), newest.tolist(), strict=True)):
            for whole in known:
                if at % 5 and ids[: at + 1] == whole[: at + 1] and at + 1 < len(whole):
                    draft = whole[at + 1 : at + 1 + count]
                    draft[at % 3 :] = [5 + token % 1000 for token in draft[at % 3 :]] if at % 2 else draft[at % 3 :]
                    drafts[row, : len(draft)] = torch.tensor(draft)
        return drafts, (drafts[:, 0] != NONE) * 4

    return lambda known: monkeypatch.setattr(passes, "look_up", lambda t, n, _, count: look_up(known, t, n, count))


@pytest.mark.parametrize("whole", [False, True])  # True: all rows have as many, as on a card
def test_drafts(asked, whole, propose, monkeypatch, capsys):
    model, codec, prompts = asked
    more = {"max_new_tokens": 20, "do_sample": False}
    propose([model.generate(torch.tensor([ids]), **more, eos_token_id=None)[0].tolist() for ids in prompts])
    if whole:
        monkeypatch.setattr(passes, "choose_drafting", lambda places, _: passes.Drafting((places.drafts,), True))
    alone = [generate(model, codec, [ids], Rules(20))[0] for ids in prompts]
    for size in (1, 3):
        assert fast(model, codec, prompts, Rules(20, batch_size=size, drafts=5)) == alone
        told = capsys.readouterr().err
        assert float(told.split("drafts: ")[1].split()[0]) > 1.2
        assert ONCE in told


@pytest.mark.parametrize("drafts", [0, 4])
def test_rows_that_are_set_back(asked, drafts, monkeypatch):
    model, codec, prompts = asked
    codec = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)), eos_id=codec.eos_id)

    def advance(asked, state, piece):  # of one token or several
        return state if all(int(token) % 7 for token in piece.split()) else None

    monkeypatch.setattr(constrained, "advance", advance)
    pieces = [b"%d " % token for token in range(model.config.vocab_size)]
    limits = make_limits(pieces, codec.eos_id, dict.fromkeys(range(len(prompts))))
    rules = Rules(16, batch_size=3)
    expected = fast(model, codec, prompts, rules, limits, common=None)
    assert expected != fast(model, codec, prompts, rules)
    assert fast(model, codec, prompts, rules._replace(drafts=drafts), limits, watched=4) == expected


def test_where_memory_is_short_more_records_fit(asked, monkeypatch, capsys):
    """And answers that get more room later go on; out of memory, rows begin anew with half as many."""
    model, codec, prompts = asked
    alone = [generate(model, codec, [ids], Rules(30))[0] for ids in prompts]
    most, real = {}, fast_engine.decode

    def decode(places, *given):
        most[places.common] = max(most.get(places.common, 0), len(places.taken))
        return real(places, *given)

    with monkeypatch.context() as patch:
        patch.setattr(fast_engine, "room", lambda *_: 330)
        patch.setattr(fast_engine, "decode", decode)
        for common in (1, None):
            assert fast(model, codec, prompts, Rules(30, batch_size=7, max_repeats=0), ahead=5, common=common) == alone
    assert most == {60: 7, 0: 4}

    def small(*given):
        if given[1] > 3:
            raise torch.OutOfMemoryError("no room")
        return real(*given)

    monkeypatch.setattr(fast_engine, "decode", small)
    assert fast(model, codec, prompts, Rules(30, batch_size=7)) == alone
    told = capsys.readouterr().err
    assert "batch_size: 3 (out of memory)" in told
    assert f"; 60 {ONCE}" in told


def test_what_fails_in_common_fails_each_record_and_the_others_go_on(asked, monkeypatch):
    model, codec, prompts = asked
    alone = [generate(model, codec, [ids], Rules(6))[0] for ids in prompts]
    bad = [[*prompts[0][:9], 10**6, *ids[10:]] for ids in prompts[:3]]
    made = fast(model, codec, bad, Rules(6, batch_size=3))
    assert all(isinstance(one, Failure) and "IndexError" in one.reason for one in made)
    tries, real = [], fast_engine.compute_common

    def fails_at_first(*given):
        tries.append(given)
        if len(tries) == 1:
            raise ValueError("early")
        real(*given)

    monkeypatch.setattr(fast_engine, "compute_common", fails_at_first)
    assert fast(model, codec, prompts, Rules(6, batch_size=4)) == alone
    assert len(tries) == 2


@pytest.mark.parametrize("common", [0, 5, 30])
def test_what_beginnings_are_said_to_stand_somewhere_does(tiny, common):
    """Records come and go at random; `cells` are the tokens whose keys stand in each place."""
    draw, size, count = random.Random(common), 5, 90
    start = [draw.randrange(2) for _ in range(common)]
    places = Places(tiny[0], size, count, shared=2, drafts=2, longest=common + 40, common=common)
    cells, numbers = start + [None] * count, iter(range(10**6))
    copied = 0
    for _ in range(150):
        prompts = [start + [draw.randrange(2) for _ in range(draw.randrange(1, 20))] for _ in range(3)]
        needs = [len(ids) + draw.randrange(10) for ids in prompts]
        found = places.find(needs)
        prompts, shared = prompts[: len(found)], places.beginnings(prompts[: len(found)])
        places.overwrite(found)
        there = [[cells[at if at < common else where + at] for at in range(n)] for n, where in shared]
        for place, ids, need, (tokens, _), stood in zip(found, prompts, needs, shared, there, strict=False):
            assert common <= tokens < len(ids)
            assert stood == ids[:tokens]
            copied += tokens - common
            rows = range(place.start + common, place.end)
            assert len(rows) == need - common + 2
            assert common <= rows[0] < rows[-1] < places.count == common + count
            others = [range(one.start + common, one.end) for one in places.taken.values()]
            assert all(rows[-1] < other[0] or other[-1] < rows[0] for other in others)
            for at in rows:
                cells[at] = ids[at - place.start] if at - place.start < len(ids) else None
            places.hold(Started([next(numbers)], [place], [ids], 0, torch.tensor([1])))
        if places.taken:
            places.clear(draw.sample(sorted(places.taken), draw.randrange(len(places.taken)) + 1))
    assert copied > 100


def test_a_stretch_is_counted_from_before_it(tiny):
    places = Places(tiny[0], 3, 50, shared=2, common=10)
    kept = [[*range(10), 1, 2, 3, 4], [*range(10), 1, 5]]
    found = places.find([20, 12, 60])
    assert found == [Place(0, 0, 20), Place(1, 10, 22)]  # a third one would need 50, of 38
    assert places.beginnings([kept[0]]) == [(10, 0)]
    new = Started([4, 5], found, kept, 0, torch.tensor([7, 8]))
    places.hold(new)
    places.admit(new)
    assert places.starts.tolist() == [0, 10, 62]
    assert (places.starts + places.last).tolist() == [19, 21, 62]
    asked = [[*range(10), 1, 2, 9], [*range(10), 1, 5, 6], [*range(10), 1, 9]]
    assert places.beginnings(asked) == [(12, 0), (12, 10), (10, 0)]  # of 1 more nothing is copied
    places.clear([1])
    places.overwrite(places.find([11]))
    assert places.beginnings(asked) == [(12, 0), (10, 0), (10, 0)]


@pytest.mark.parametrize("window", [None, 1, 5, 12, 99])
def test_attention_sees_what_is_common_and_then_its_own(window):
    torch.manual_seed(0)
    common, counts, starts, seen = 10, [1, 4, 1, 6, 18, 1], [0, 10, 40, 50, 60, 95], [11, 19, 27, 16, 30, 1]
    query, (key, value) = torch.randn(sum(counts), 4, 16), torch.randn(2, 110, 2, 16)
    bounds = torch.tensor([0, *counts]).cumsum(0).int()
    spans = Spans(bounds, torch.tensor([*starts, 0]).int(), torch.tensor(seen).int(), 18, common=common)
    made = _attend_each(query, key, value, _records_of(spans), 0.3, window)
    for count, first, start, most in zip(counts, bounds.tolist(), starts, seen, strict=False):
        at = torch.tensor([at if at < common else start + at for at in range(most)])
        one = Spans(torch.tensor([0, count]).int(), torch.tensor([0, 0]).int(), torch.tensor([most]).int(), count)
        alone = _attend_each(query[first : first + count], key[at], value[at], _records_of(one), 0.3, window)
        torch.testing.assert_close(made[first : first + count], alone)
    newest = bounds[1:].long() - 1
    spans = spans._replace(queries=torch.arange(7).int(), most=1)
    padded = _attend_all(query[newest], key, value, _pad_all(spans, max(seen), 2, torch.float32), 0.3)
    torch.testing.assert_close(padded, _attend_each(query[newest], key, value, _records_of(spans), 0.3, None))


def test_where_what_a_prompt_sees_is_copied_from_on_a_card(tiny):
    kept = Places(tiny[0], 2, 30, shared=1, common=3).kept
    counts, starts, seen = (torch.tensor(numbers) for numbers in ([2, 1], [10, 0], [6, 4]))
    spans = passes._spans(counts, starts, seen, kept, 3)
    assert [part.tolist() for part in spans.copied] == [[0, 1, 2, 13, 14, 15, 0, 1, 2, 3], [0, 6, 10]]
    assert passes._spans(counts, starts, seen, kept).copied is None


def test_so_many_tokens_are_common(asked):
    model, codec, prompts = asked
    once = Tuning(common=10)
    assert count_common(model, codec, prompts, 0, once) == 60
    assert count_common(model, codec, [prompts[-1]] * 3, 0, once) == 60  # of equal ones the last token is computed
    assert count_common(model, codec, [*prompts, prompts[0][:11]], 0, once) == 10
    assert count_common(model, codec, [*prompts, prompts[0][:10]], 0, once) == 0
    assert count_common(model, codec, prompts[:1], 0, once) == count_common(model, codec, [], 0, once) == 0
    assert count_common(model, codec, prompts) == 0  # on a CPU
    own = SimpleNamespace(lay_out=None)
    assert count_common(model, own, prompts, 0, once) == 0  # prompts that are more than their ids


def test_prompts_that_come_later_have_nothing_in_common(asked, capsys):
    model, codec, prompts = asked
    live = Live(600, 300, lambda *_: None, lambda *_: True)
    made, waiting = {}, dict(enumerate(prompts))
    for group in fast_engine.answers(model, codec, waiting, Rules(6, batch_size=3), Tuning(common=1), live=live):
        made |= group
    assert [made[number] for number in waiting] == [generate(model, codec, [ids], Rules(6))[0] for ids in prompts]
    assert ONCE not in capsys.readouterr().err
