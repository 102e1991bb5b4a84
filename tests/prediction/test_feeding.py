"""Several shards in one run of the engine: the answers are those of a run each."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Thread

import pytest
from helpers_prediction import RECORDS, corpus_flags, flags

import extract
from decoding import fast_engine
from decoding.constrained import make_limits
from prediction import feeding, texts
from prediction.feeding import Feed, feeds, side_by_side
from prediction.opening import open_model, plan_adapter
from prediction.predicting import limit
from prediction.questions import ask_all
from tokens.pieces import token_bytes
from utils.args_predict import parse_inference


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A plan, its model, and 24 prompts."""
    folder = tmp_path_factory.mktemp("feed")
    plan = plan_adapter(*parse_inference(flags(folder / "x.json", engine="fast")))
    prompts = [question.ids for question in ask_all(plan, RECORDS[:24], None)]
    return plan, open_model(plan, prompts), prompts


@pytest.mark.parametrize("drafts", [0, 3])
def test_calls_of_several_threads_get_the_answers_of_runs_of_their_own(opened, drafts):
    plan, model, prompts = opened
    rules = plan.serving.rules._replace(batch_size=4, drafts=drafts)

    def ask(answers, first):
        found = {}
        for made in answers(model, plan.codec, dict(enumerate(prompts[first : first + 8])), rules):
            found |= made
        return found

    alone = [ask(fast_engine.answers, first) for first in (0, 8, 16)]
    feed = Feed(plan, model, max(map(len, prompts)))
    with ThreadPoolExecutor(2) as pool:
        together = [pool.submit(ask, feed.answers, first) for first in (0, 8)]
        assert [one.result() for one in together] == alone[:2]
    assert ask(feed.answers, 16) == alone[2]  # whoever comes when nothing was at work
    feed.close()
    with pytest.raises(RuntimeError, match="the model has ended"):
        ask(feed.answers, 0)


def test_who_asks_learns_what_the_run_raises_and_that_it_is_closed(opened, monkeypatch):
    plan, model, prompts = opened
    rules, waits = plan.serving.rules._replace(batch_size=2), Event()

    def run(*_, live, **__):
        while not waits.is_set() and live.more(8, False) is not None:
            time.sleep(0.01)
        if waits.is_set():
            raise OSError("broken")
        yield {}

    monkeypatch.setattr(feeding, "answer_live", run)
    for end, expected in ((waits.set, OSError), (None, RuntimeError)):
        waits.clear()
        feed, found = Feed(plan, model, 400), []

        def ask(feed=feed, found=found):
            try:
                list(feed.answers(model, plan.codec, {0: prompts[0]}, rules))
            except (OSError, RuntimeError) as error:
                found.append(type(error))

        threads = [Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        while len(feed.askers) < 2:
            time.sleep(0.01)
        (end or feed.close)()
        for thread in threads:
            thread.join(60)
        assert found == [expected] * 2


def test_closed_between_two_steps_it_hands_over_no_answer_that_is_not_whole(opened):
    plan, model, prompts = opened
    rules, calls = plan.serving.rules._replace(batch_size=3), []
    feed = Feed(plan, model, max(map(len, prompts)))
    take = feed._take

    def take_and_close(free, idle):
        taken = take(free, idle)
        calls.append(taken)
        feed.ending |= len(calls) == 2
        return taken

    feed._take = take_and_close
    with pytest.raises(RuntimeError, match="the model has ended"):
        next(feed.answers(model, plan.codec, dict(enumerate(prompts[:8])), rules))
    feed.thread.join(60)
    assert [len(taken) for taken in calls] == [3, 0]


@pytest.mark.parametrize("fits", [10_000, 1_000])
def test_long_prompts_behind_short_ones_have_the_room_that_the_memory_has(opened, monkeypatch, fits):
    plan, model, prompts = opened
    rules, longest, most = plan.serving.rules._replace(batch_size=4), max(map(len, prompts)), []
    admit = fast_engine.Places.admit

    def count(places, new):
        made = admit(places, new)
        most.append(len(places.taken))
        return made

    monkeypatch.setattr(fast_engine.Places, "admit", count)
    monkeypatch.setattr(fast_engine, "room", lambda *_: fits)
    feed = Feed(plan, model, longest)
    list(feed.answers(model, plan.codec, {0: prompts[0][:5]}, rules))
    long = dict(enumerate([max(prompts, key=len)] * 8))
    list(feed.answers(model, plan.codec, long, rules))
    feed.close()
    assert max(most) == min(4, fits // (longest + rules.max_new_tokens))


def test_rows_are_counted_by_the_prompts_that_are_there_but_by_none_longer_than_half_of_the_longest(opened):
    feed = Feed(*opened[:2], 100)
    assert feed.guess_length([10, 30]) == 20
    assert feed.guess_length([90]) == 50


def test_who_goes_takes_no_place_and_disturbs_no_other(opened):
    plan, model, prompts = opened
    rules = plan.serving.rules._replace(batch_size=2, constrain="text")
    limits = make_limits(token_bytes(plan.codec), plan.codec.eos_id, {})
    plan = replace(plan, serving=replace(plan.serving, rules=rules), limits=limits)
    limits = limit(plan, dict(enumerate(ask_all(plan, RECORDS[:8], None))))
    feed, asked = Feed(plan, model, max(map(len, prompts))), dict(enumerate(prompts[:8]))
    first = feed.answers(model, plan.codec, asked, rules, limits)
    next(first)
    first.close()
    made = [feed.answers(model, plan.codec, {number: asked[number]}, rules, limits) for number in asked]
    made = [next(iter(next(one).values())) for one in made]
    assert made == [
        next(fast_engine.answers(model, plan.codec, {number: asked[number]}, rules, limits=limits))[number]
        for number in asked
    ]
    feed.close()
    assert not feed.limits.asked


def test_a_corpus_whose_shards_share_a_run_has_the_same_rows(opened, tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for number, record in enumerate(RECORDS[:12]):
        (tmp_path / "docs" / f"{number}.txt").write_text(record["input"], encoding="utf-8")
    assert not feeds(*opened[:2])  # on a CPU
    chosen = []
    monkeypatch.setattr(texts, "size_for_engine", lambda *_: chosen.append(3) or 3)
    for name, shared, count, size in (("alone", False, 6, None), ("shared", True, 1, 3)):
        monkeypatch.setattr(texts, "feeds", lambda *_, shared=shared: shared)
        chosen.clear()
        extract.main(corpus_flags(tmp_path / "docs", tmp_path / name, max_new_tokens=8, engine="fast", shard_size=2))
        assert len(chosen) == count  # a run that is shared has the card's memory, of which nothing can be told then
        decided = json.loads((tmp_path / f"{name}.run.json").read_text())["decided"]["batch_size"]
        assert decided["value"] == size
        assert ("share one run" if shared else "for each shard") in decided["why"]
    assert (tmp_path / "shared").read_bytes() == (tmp_path / "alone").read_bytes()


def test_items_are_done_side_by_side_and_an_error_ends_it():
    begun, second = [], Event()

    def work(item):
        begun.append(item)
        if item == 0:
            assert second.wait(60)
        second.set()
        if item == 3:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError):
        list(side_by_side(work, iter(range(100)), 2))
    assert {0, 1, 2, 3} <= set(begun)
    assert len(begun) < 10
