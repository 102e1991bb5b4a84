"""Drafts of the engine `fast`: whatever is looked up and verified, answers are those without, to the token."""

import copy
import math
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers_prediction import flags, windowed

import inference
from common.errors import UserError
from decoding import constrained, fast_engine, fast_sizes, passes
from decoding.answers import Failure, Rules, cut_answer
from decoding.constrained import make_limits
from decoding.fast_engine import Live, Tuning
from decoding.lookup import NONE
from decoding.passes import Drafting
from tokens.codec import Codec

NEW = 24


def fast(model, codec, prompts, rules, limits=None, **tuning):
    waiting, made = dict(sorted(enumerate(prompts), key=lambda item: -len(item[1]))), {}
    for group in fast_engine.answers(model, codec, waiting, rules, Tuning(**tuning), limits):
        made |= group
    return [made[number] for number in range(len(prompts))]


def tokens_a_step(told: str) -> float:
    return float(re.search(r"drafts: ([\d.]+) tokens a step", told)[1])


def greedy(model, prompts, new=NEW):
    """Each prompt and its greedy answer."""
    given = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None}
    return [model.generate(torch.tensor([ids]), **given)[0].tolist() for ids in prompts]


@pytest.fixture(scope="module")
def said(tiny):
    model, _, prompts = tiny
    return greedy(model, prompts)


@pytest.fixture(params=[False, True], ids=["ragged", "as on a card"])
def propose(request, monkeypatch):
    """A function: what drafts are to be made of (prompts with their answers). Random models do not copy, so drafts are
    given: now and then none, else the right tokens, after some of them a wrong one and right ones behind it. Rows have
    as many as there are, or all of them as many, as the graphs of a card need it.
    """

    def choose_drafting(places, size):
        return Drafting((places.drafts,), whole=True) if places.drafts else None

    if request.param:
        monkeypatch.setattr(passes, "choose_drafting", choose_drafting)

    def look_up(known, texts, newest, longest, count):
        drafts = torch.full((len(texts), count), NONE)
        for row, (ids, at) in enumerate(zip(texts.tolist(), newest.tolist(), strict=True)):
            for whole in known:
                if at % 7 and ids[: at + 1] == whole[: at + 1] and at + 1 < len(whole):
                    draft = whole[at + 1 : at + 1 + count]
                    wrong = at % 5 + row % 2
                    if wrong < len(draft):
                        draft[wrong] = 5 + draft[wrong] % 1000
                    drafts[row, : len(draft)] = torch.tensor(draft)
        return drafts, (drafts[:, 0] != NONE) * longest

    return lambda known: monkeypatch.setattr(passes, "look_up", partial(look_up, known))


@pytest.mark.parametrize("drafts", [1, 6])
def test_answers_are_those_without_drafts(tiny, said, drafts, propose, capsys):
    """Whoever shares the rows, and where a draft holds the end of an answer."""
    model, codec, prompts = tiny
    propose(said)
    for eos in (codec.eos_id, said[0][len(prompts[0]) + 17]):
        own = Codec(**{**vars(codec), "eos_id": eos})
        alone = [cut_answer(own, ids[len(prompt) :]) for ids, prompt in zip(said, prompts, strict=True)]
        for size, steps in ((1, 1), (3, 3)):
            rules = Rules(NEW, batch_size=size, drafts=drafts)
            made = fast(model, own, prompts, rules, steps=steps, drafted=steps, shared=1 if steps == 1 else 16)
            assert made == alone, (size, steps)
            assert 1.2 < tokens_a_step(capsys.readouterr().err) < 1 + drafts
    assert len({answer.tokens for answer in alone}) > 1


def test_loops_and_answers_that_are_cut_are_those_without(tiny, said, propose, monkeypatch):
    model, codec, prompts = tiny
    propose(said)
    for new in (1, 5):
        rules = Rules(new, batch_size=3)
        assert fast(model, codec, prompts, rules._replace(drafts=5)) == fast(model, codec, prompts, rules)
    codec = SimpleNamespace(decode=lambda ids: "(a,b,c)" * (len(ids) // 9), eos_id=codec.eos_id)  # a loop from 18 on
    made = fast(model, codec, prompts, Rules(NEW, batch_size=3, max_repeats=2, drafts=5), block=4)
    assert {answer.finish_reason for answer in made} == {"loop"}
    assert {answer.text for answer in made} == {"(a,b,c)(a,b,c)"}


def test_answers_to_prompts_that_come_later_are_those_without_and_grow_as_they_are_made(tiny, said, propose, capsys):
    model, codec, prompts = tiny
    propose(said)
    alone = [cut_answer(codec, ids[len(prompt) :]) for ids, prompt in zip(said, prompts, strict=True)]
    coming, seen, made = list(enumerate(prompts)), {number: [[]] for number in range(len(prompts))}, {}

    def more(free, idle):
        if not coming:
            return None if idle else {}
        return dict(coming.pop(0) for _ in range(min(free, 2, len(coming))))

    def took(number, ids):
        seen[number].append(ids)
        return True

    longest = max(map(len, prompts)) + NEW
    live, rules = Live(3 * longest, longest, more, took), Rules(NEW, batch_size=3, drafts=6)
    for group in fast_engine.answers(model, codec, {}, rules, Tuning(steps=1, drafted=1), live=live):
        made |= group
    assert [made[number] for number in range(len(prompts))] == alone
    assert 1.2 < tokens_a_step(capsys.readouterr().err) < 7
    for number, steps in seen.items():
        whole = said[number][len(prompts[number]) :]
        assert all(ids == whole[: len(ids)] for ids in steps)
        assert 3 < len(steps) < len(steps[-1])  # several tokens at a time
        assert sorted(map(len, steps)) == list(map(len, steps))


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("window", [3, 20])
def test_layers_that_see_only_the_last_tokens(tiny, model_type, window, propose, capsys):
    _, codec, prompts = tiny
    model = windowed(tiny, model_type, window, layers=2)
    prompts = prompts[:3]
    known = greedy(model, prompts, 16)
    propose(known)
    alone = [cut_answer(codec, ids[len(prompt) :]) for ids, prompt in zip(known, prompts, strict=True)]
    for size in (1, 3):
        assert fast(model, codec, prompts, Rules(16, batch_size=size, drafts=4)) == alone
        assert tokens_a_step(capsys.readouterr().err) > 1.3


def test_where_memory_is_short(tiny, said, propose, monkeypatch, capsys):
    """Rows begin anew with half as many; and answers get more room when they need it."""
    model, codec, prompts = tiny
    propose(said)
    alone = [cut_answer(codec, ids[len(prompt) :]) for ids, prompt in zip(said, prompts, strict=True)]
    real = fast_engine.decode

    def small(*given):
        if given[1] > 3:
            raise torch.OutOfMemoryError("no room")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(fast_engine, "decode", small)
        assert fast(model, codec, prompts, Rules(NEW, batch_size=7, drafts=4)) == alone
    assert "batch_size: 3 (out of memory)" in capsys.readouterr().err
    for ahead in (1, 9):
        room = 2.6 * (sum(map(len, prompts)) / len(prompts) + ahead)
        monkeypatch.setattr(fast_engine, "room", lambda *_, room=room: room)
        assert fast(model, codec, prompts, Rules(NEW, batch_size=3, drafts=4), ahead=ahead) == alone


def test_how_likely_tokens_were_is_what_it_is_without(tiny, said, propose):
    model, codec, prompts = tiny
    propose(said)
    rules = Rules(NEW, batch_size=3, confidence=True)
    for mine, other in zip(
        fast(model, codec, prompts, rules._replace(drafts=4)), fast(model, codec, prompts, rules), strict=True
    ):
        assert mine._replace(sure=None) == other._replace(sure=None)
        assert [end for end, _ in mine.sure] == [end for end, _ in other.sure]
        assert [chance for _, chance in mine.sure] == pytest.approx([chance for _, chance in other.sure], abs=2e-4)


def test_constrained_answers_are_those_without(tiny, propose, monkeypatch, capsys):
    """A draft is taken as far as it may be said; the logits of the refused token, alone, choose another."""
    model, codec, prompts = tiny
    codec = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)), eos_id=codec.eos_id)

    def advance(asked, state, piece):  # of one token or several
        return state if all(int(token) % 7 for token in piece.split()) else None

    monkeypatch.setattr(constrained, "advance", advance)
    pieces = [b"%d " % token for token in range(model.config.vocab_size)]
    limits = make_limits(pieces, codec.eos_id, dict.fromkeys(range(len(prompts))))
    rules = Rules(NEW, batch_size=3, confidence=True)
    expected = fast(model, codec, prompts, rules, limits)
    free = fast(model, codec, prompts, rules)
    assert all(one.text != other.text for one, other in zip(expected, free, strict=True))
    answers = [list(map(int, answer.text.split())) for answer in expected]
    for known in (answers, [list(map(int, answer.text.split())) for answer in free]):  # what is refused, too
        propose([prompt + ids for prompt, ids in zip(prompts, known, strict=True)])
        watched = 1 if known is answers else 4
        made = fast(model, codec, prompts, rules._replace(drafts=4), limits, watched=watched, drafted=4)
        assert tokens_a_step(capsys.readouterr().err) > (1.2 if known is answers else 0.8)  # a refused one says none
        assert [one._replace(sure=None) for one in made] == [one._replace(sure=None) for one in expected]
        for mine, other in zip(made, expected, strict=True):
            chances = ([chance for _, chance in one.sure] for one in (mine, other))
            assert next(chances) == pytest.approx(next(chances), abs=2e-4)


def test_a_record_whose_logits_are_not_finite_fails_alone(tiny, said, propose):
    model, codec, prompts = tiny
    answer = said[2][len(prompts[2]) :]
    token = answer[5]
    propose([ids[: ids.index(token)] if token in ids else ids for ids in said])  # what was looked up was read before
    bad = copy.deepcopy(model)
    bad.get_input_embeddings().weight.data[token, 0] = math.nan
    for new in (answer.index(token) + 1, NEW):
        rules = Rules(new, batch_size=3)
        made = fast(bad, codec, prompts, rules._replace(drafts=4))
        assert made == fast(bad, codec, prompts, rules)
        assert any(isinstance(one, Failure) for one in made) == (new == NEW)


@pytest.mark.parametrize("size", [1500, 2048, 1013])  # 1013 has no blocks
def test_the_likeliest_token_is_the_first_of_equals(size):
    torch.manual_seed(0)
    logits = torch.randn(40, size).to(torch.bfloat16)  # so few numbers that there are equals
    logits[3, 700], logits[3, 900], logits[4] = math.nan, math.nan, -math.inf
    assert torch.equal(passes._likeliest(logits), logits.argmax(-1))
    assert any((row == row.max()).sum() > 1 for row in logits)


def test_the_script_says_what_was_drafted_and_writes_the_same(tmp_path, capsys):
    for drafts in ("0", "auto", "3"):
        inference.main(flags(tmp_path / f"{drafts}.json", engine="fast", max_new_tokens=24, drafts=drafts))
    told = capsys.readouterr().err
    assert "drafts: none (as asked)" in told
    assert "drafts: 8 tokens at most (a CPU" in told
    assert "drafts: 3 tokens at most (as asked)" in told
    assert tokens_a_step(told) >= 1
    assert len({(tmp_path / f"{drafts}.json").read_bytes() for drafts in ("0", "auto", "3")}) == 1
    with pytest.raises(UserError, match="--drafts 3 and --engine batch: only fast has drafts"):
        inference.main(flags(tmp_path / "x.json", engine="batch", drafts="3"))
    for wrong in ("-1", "16", "many"):
        with pytest.raises(UserError, match=f"--drafts {wrong}: expected auto, or tokens from 0 to 15"):
            inference.main([*flags(tmp_path / "x.json"), f"--drafts={wrong}"])


def test_a_card_drafts_as_much_as_its_step_has_room_for():
    most = [fast_sizes.choose_drafts(torch.device("cuda"), rows)[0] for rows in (1, 16, 17, 64, 128, 129, 512)]
    assert most == [15, 15, 14, 3, 1, 0, 0]
