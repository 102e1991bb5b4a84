"""The engine `fast` with a source of prompts that come while others are answered."""

from helpers_prediction import BASE, loaded

from decoding import fast_engine
from decoding.answers import Rules
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
        if number == stopped:
            assert made[number].tokens == 3
            assert alone[number].text.startswith(made[number].text.rstrip("�"))
        else:
            assert made[number] == answer, number
    assert offered[0] == (2, True)
    assert max(len(ids) for ids in seen.values()) > 5  # they come as they are made
