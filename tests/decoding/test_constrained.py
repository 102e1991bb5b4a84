"""`--constrain`: every token is the likeliest that may be said, in the engines and a token at a time; what may be said
is never touched.
"""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from helpers import GOLDEN, published
from helpers_prediction import RECORDS

from checkpoints.family import find_family
from common.errors import UserError
from decoding import batch_engine, constrained, fast_engine, passes
from decoding.answers import Answer, Rules, cut_answer
from decoding.constrained import Walks, list_permitted, make_limits, order
from decoding.fast_engine import Live, Tuning
from kg.permitted import AGAIN, BOUND, State, advance, ask, keep_whole, may_end, say
from kg.schema import read_schema
from kg.triples import parse
from tokens.pieces import token_bytes
from tokens.readers import load_codec

NEW = 16  # tokens of an answer
SAID = "(甲,位于,乙),(乙(丙),人口,2,424人)"


def limit(codec, bound="relations", records=RECORDS[:4]):
    asked = {n: ask(read_schema(r["instruction"]), r["input"], bound) for n, r in enumerate(records)}
    return make_limits(token_bytes(codec), codec.eos_id, asked)


@torch.inference_mode()
def one_by_one(model, codec, prompt, limits, number) -> Answer:
    """An answer made a token at a time, of all tokens that there are the likeliest that may be said."""
    asked, state, new = limits.asked[number], State(), []
    while len(new) < NEW and codec.eos_id not in new:
        for token in model(torch.tensor([prompt + new])).logits[0, -1].argsort(descending=True, stable=True).tolist():
            if token == codec.eos_id:
                following = state if may_end(state) else None
            else:
                following = advance(asked, state, limits.pieces[token]) if limits.pieces[token] else None
            if following is not None:
                break
        else:
            following = State(AGAIN)
        new.append(codec.eos_id if following.phase == AGAIN else token)
        state = following
    answer = cut_answer(codec, new)
    return Answer(keep_whole(asked, answer.text), "loop", len(new)) if state.phase == AGAIN else answer


@pytest.mark.parametrize("bound", ["relations", "text"])
def test_both_engines_say_the_likeliest_that_may_be_said(tiny, bound):
    model, codec, prompts = tiny
    prompts = prompts[:4]
    limits, waiting = limit(codec, bound), dict(enumerate(prompts))
    expected = {n: one_by_one(model, codec, ids, limits, n) for n, ids in waiting.items()}
    free = batch_engine.generate(model, codec, prompts, Rules(NEW))
    assert all(expected[n].text != answer.text for n, answer in enumerate(free))
    for size, watched in ((1, 1), (3, 8)):
        rules, made = Rules(NEW, batch_size=size), {}
        for group in batch_engine.answers(model, codec, waiting, rules, limits=limits):
            made |= group
        assert made == expected
        made = {}
        for group in fast_engine.answers(model, codec, waiting, rules, Tuning(watched=watched, shared=1), limits):
            made |= group
        assert made == expected, (size, watched)
    for number, answer in expected.items():
        record, asked = RECORDS[number], limits.asked[number]
        state = say(asked, State(), answer.text)
        assert state is not None or "\ufffd" in answer.text  # a character that was cut off
        heads, tails = BOUND[bound]
        for head, relation, tail in parse(answer.text, asked.relations, record["input"]):
            assert relation in asked.relations
            assert not heads or head in record["input"]
            assert not tails or tail in record["input"]


@pytest.mark.parametrize("drafts", [0, 2])
def test_tokens_of_a_card_are_looked_at_while_it_makes_those_behind_them(tiny, drafts, request):
    model, codec, prompts = tiny
    limits, waiting = limit(codec, "text"), dict(enumerate(prompts[:4]))
    expected = {n: one_by_one(model, codec, ids, limits, n) for n, ids in waiting.items()}
    alone = {}  # with confidences, as on a CPU
    for group in fast_engine.answers(model, codec, waiting, Rules(NEW, batch_size=2, confidence=True), limits=limits):
        alone |= group
    found = request.getfixturevalue("as_on_a_card")
    for size, steps, block in ((1, 1, 64), (3, 2, 4), (2, 3, 64), (4, 5, 64)):
        rules, made = Rules(NEW, batch_size=size, drafts=drafts, max_repeats=9, confidence=True), {}
        for group in fast_engine.answers(model, codec, waiting, rules, Tuning(steps=steps, block=block), limits):
            made |= group
        assert {n: answer._replace(sure=None) for n, answer in made.items()} == expected, (size, steps)
        for number, answer in made.items():
            ends, chances = zip(*answer.sure, strict=True)
            assert (ends, pytest.approx(chances, abs=2e-4)) == tuple(zip(*alone[number].sure, strict=True))
    assert {1, 2, 3} <= set(found)


def test_what_breaks_behind_a_token_that_is_refused_does_not_count(tiny, monkeypatch, request):
    model, codec, prompts = tiny
    limits, waiting, chosen, broken = limit(codec, "text"), dict(enumerate(prompts[:4])), set(), set()

    def are_broken(logits, tokens):
        chosen.update(tokens.tolist())
        return torch.isin(tokens, torch.tensor(sorted(broken)))

    def answers(tuning):
        chosen.clear()
        made = {}
        for group in fast_engine.answers(model, codec, waiting, Rules(NEW, batch_size=1), tuning, limits):
            made |= group
        return made, set(chosen)

    monkeypatch.setattr(passes, "_are_broken", are_broken)
    expected, known = answers(Tuning(watched=1))
    request.getfixturevalue("as_on_a_card")
    made, more = answers(Tuning(steps=5))
    assert made == expected
    broken |= more - known  # stood behind what was refused, and nowhere else
    assert broken
    made, _ = answers(Tuning(steps=5))
    assert made == expected


def test_of_answers_that_were_handed_over_nothing_is_kept_while_more_come(tiny, monkeypatch):
    model, codec, prompts = tiny
    coming, made, kept = list(enumerate(prompts[:4])), {}, []
    monkeypatch.setattr(fast_engine, "Walks", lambda limits: kept.append(Walks(limits)) or kept[-1])

    def more(free, idle):
        if idle:
            assert not any((kept[-1].states, kept[-1].ended, kept[-1].refused))
        return dict([coming.pop(0)]) if coming and free else None if idle else {}

    live = Live(1000, 500, more, lambda number, ids: number != 1 or len(ids) < 3)  # 1 is stopped
    for group in fast_engine.answers(
        model, codec, {}, Rules(NEW, batch_size=2), Tuning(steps=1), limit(codec, "text"), live
    ):
        made |= group
    assert made.keys() == set(range(4))
    assert {answer.finish_reason for number, answer in made.items() if number != 1} >= {"eos"}


def test_where_memory_is_short_a_constrained_answer_goes_on_as_well(tiny, monkeypatch):
    model, codec, prompts = tiny
    prompts = prompts[:4]
    limits, waiting, ahead = limit(codec), dict(enumerate(prompts)), 5
    monkeypatch.setattr(fast_engine, "room", lambda *_: 2.6 * (sum(map(len, prompts)) / len(prompts) + ahead))
    made = {}
    for group in fast_engine.answers(model, codec, waiting, Rules(NEW, batch_size=3), Tuning(ahead=ahead), limits):
        made |= group
    assert made == {n: one_by_one(model, codec, ids, limits, n) for n, ids in waiting.items()}


def test_an_answer_that_may_be_said_is_the_unconstrained_one(tiny, monkeypatch):
    model, codec, prompts = tiny
    prompts = prompts[:4]
    free = batch_engine.generate(model, codec, prompts, Rules(NEW))
    monkeypatch.setattr(constrained, "advance", lambda asked, state, piece: state)
    limits, waiting = limit(codec), dict(enumerate(prompts))
    for answers, more in (
        (batch_engine.answers, {}),
        (fast_engine.answers, {"tuning": Tuning(watched=8)}),
    ):
        made = {}
        for group in answers(model, codec, waiting, Rules(NEW, batch_size=3), limits=limits, **more):
            made |= group
        assert [made[n] for n in waiting] == free


@pytest.fixture(params=["llama", "chatglm", "moss", "smollm2"])
def codec(request, tmp_path):
    """Of each kind of tokenizer: sentencepiece by two readers, and bytes in GPT-2's letters."""
    if request.param == "chatglm":
        return published("base", tmp_path / "chatglm")[1]
    if request.param == "moss":
        return load_codec(GOLDEN.parent / "moss", find_family(GOLDEN.parent / "moss")[0])
    base = GOLDEN / "checkpoint" if request.param == "llama" else request.getfixturevalue("embedded_base")
    return load_codec(base, find_family(base)[0])


def test_tokens_of_what_may_be_said_are_taken_as_they_are(codec):
    """Also by half characters, one by one or several at once; with eos behind them, they are the answer."""
    record = {"instruction": "关系列表：['位于', '人口']", "input": "甲位于乙。乙(丙)有2,424人"}
    ids = [*codec.text_ids(SAID), codec.eos_id]
    for bound, size in product(BOUND, (1, 3, 8, len(ids))):
        walks = Walks(limit(codec, bound, [record]))
        parts = [ids[start : start + size] for start in range(0, len(ids), size)]
        assert [token for part in parts for token in walks.take(0, part)] == ids
        assert walks.end(0, cut_answer(codec, ids)) == Answer(SAID, "eos", len(ids))


def test_a_triple_that_would_be_said_again_ends_the_answer_before_it(codec):
    limits = limit(codec, "relations", [{"instruction": "关系列表：['位于', '人口']", "input": ""}])
    ids = codec.text_ids(f"{SAID},(甲,位于,乙),(丁,位于,乙)")
    for size in (1, 8, len(ids)):
        walks = Walks(limits)
        taken = [token for start in range(0, len(ids), size) for token in walks.take(0, ids[start : start + size])]
        assert taken[:-1] == ids[: len(taken) - 1]
        assert taken[-1] == codec.eos_id
        assert walks.end(0, cut_answer(codec, taken)) == Answer(SAID, "loop", len(taken))
        assert not walks.refused


def test_what_may_not_be_said_is_refused_wherever_it_stands(codec):
    """Several tokens at once are taken as far as one by one."""
    limits = limit(codec, "text", [{"instruction": "关系列表：['位于', '人口']", "input": "甲位于乙"}])
    for answer in ("(甲,位于,丙)", "(甲,出生,乙)", "(甲,位于,乙)。", "好", "(甲,位于,乙)"):
        ids, lengths = [*codec.text_ids(answer), codec.eos_id], set()
        for size in (1, 2, 8):
            walks, taken = Walks(limits), []
            for start in range(0, len(ids), size):
                taken += [] if walks.refused else walks.take(0, ids[start : start + size])
            assert taken == ids[: len(taken)]
            lengths.add((len(taken), *walks.refused))
        assert len(lengths) == 1
        assert (lengths == {(len(ids),)}) == (answer == "(甲,位于,乙)")


def test_all_tokens_that_may_be_said_are_listed(codec):
    """The same that may when each is tried; where a relation or a name of the text has to go on, only a few."""
    record = {"instruction": "关系列表：['位于', '人口']", "input": "甲市位于乙。乙(丙)有2,424人"}
    limits = limit(codec, "text", [record])
    asked, pieces = limits.asked[0], limits.pieces
    for answer in ("", "(", "(甲", "(甲市", "(甲市,", "(甲市,位", "(甲市,位于,乙", "(甲市,位于,乙)"):
        state, expected = say(asked, State(), answer), set()
        for token in range(len(pieces)):
            following = advance(asked, state, pieces[token]) if pieces[token] else None
            if following is not None and following.phase != AGAIN:
                expected.add(token)
        found = list(list_permitted(limits, asked, state))
        assert len(found) == len(set(found))
        assert set(found) == expected
        assert 0 < len(expected) < 100


def test_where_nothing_may_be_said_the_answer_ends():
    """Where no token has the one byte that may follow, or the text has no name: eos, or that there is nothing."""
    asked = {0: ask(["位于"], "", "text"), 1: ask(["位于"], "")}
    limits = make_limits([b"(", b"\xe7\x94", b"NAN", None], 3, asked)
    walks, logits = Walks(limits), torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert walks.choose(0, [0, 1], logits) == 2
    assert walks.choose(1, [0, 1], logits) == 0
    assert walks.take(1, [0, 1]) == [0, 1]
    assert walks.choose(1, [0, 1], logits) == 3
    assert walks.end(1, Answer("(\ufffd", "eos", 3)) == Answer("", "loop", 3)


@pytest.mark.parametrize("place", [64, 511, 512, 690])
def test_the_likeliest_that_may_be_said_is_found_however_many_are_likelier(place):
    """Behind the tokens that are tried one after the other, all that may be said are listed."""
    pieces = [b"x"] * 700
    pieces[place] = pieces[695] = b"("  # the likelier of two
    walks = Walks(make_limits(pieces, 699, {0: ask(["位于"], "")}))
    logits = torch.arange(700.0, 0, -1)
    assert walks.choose(0, order(logits), logits) == place


def test_a_tokenizer_that_does_not_tell_its_bytes_is_refused():
    codec = SimpleNamespace(tokenizer=object(), text_ids=lambda text: [0], decode=lambda ids: "甲")
    with pytest.raises(UserError, match="--constrain: this base's tokenizer .object. does not tell"):
        token_bytes(codec)
