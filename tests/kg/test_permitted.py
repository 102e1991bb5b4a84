"""What an answer may say next: whatever is said so far can end, and reads as what was said."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kg.permitted import AGAIN, BOUND, State, advance, ask, keep_whole, may_end, say
from kg.triples import Triple, parse, render

seeded = settings(derandomize=True, deadline=None, database=None, max_examples=150)

TEXT = "阿尔夫达尔有2,424人，位于中野站(东京都)旁，也叫“阿尔夫”。1)首都 Oslo City，1826年"
RELATIONS = ["位于", "人口", "面积(平方公里)", "别名", "别名,又称"]


def is_permitted(answer: str, relations=RELATIONS, text: str = TEXT, bound: str = "relations") -> bool:
    """Whether an answer may be said and end there; the same in pieces of any number of bytes, each as may come."""
    asked = ask(relations, text, bound)
    whole = say(asked, State(), answer)
    for size in (1, 2, 4, 5):
        state, data = State(), answer.encode()
        for start in range(0, len(data), size):
            state = state and advance(asked, state, data[start : start + size])
        assert state == whole, size
    return whole is not None and whole.phase != AGAIN and may_end(whole)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "NAN",
        " NAN",
        "输入中包含的关系三元组是：\nNAN",
        "(甲,位于,乙)",
        " (甲,位于,乙),(甲,人口,3)",
        "(甲,位于,乙)(丙,位于,乙)",
        "(甲,位于,乙)\n(丙,位于,乙)\nNAN\nNAN",
        "(甲,位于,乙), (丙,位于,乙)",
        "(甲,位于,NAN)",
        "(2,424人,人口,12,742千米)",
        "(阿尔夫达尔,位于,乙，丙)",
        "(中野站(东京都),位于,东京都[京])",
        "(甲,面积(平方公里),3)",
        "(甲,别名,乙),(甲,别名,又称,乙)",
        "(“阿尔夫”,别名,《阿》)",
    ],
)
def test_what_training_data_write_may_be_said(answer):
    assert is_permitted(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "NA",
        "好的",
        "甲,位于,乙)",
        "(甲,位于,乙",
        "(甲,位于,乙),",
        "(甲,位于,乙),NAN",
        "(甲,位于,乙)。",
        "(甲，位于，乙)",
        "（甲,位于,乙）",
        "(甲,出生地,乙)",
        "(甲,位,乙)",
        "(甲,位于)",
        "(,位于,乙)",
        "( 甲,位于,乙)",
        "(甲,位于,)",
        "(甲,位于, 乙)",
        "(甲),位于,乙)",
        "(甲(乙,位于,丙)",
        "(甲,位于,乙(丙)",
        "(甲,丙,位于,乙)",
        "(甲,位于,乙,人口,3)",
        "(甲\n,位于,乙)",
        "(甲,位于,乙\0)",
        "(甲,位于,乙),(甲,位于,乙)",
        '(甲,别名,"阿尔夫达尔"),(甲,别名,阿尔夫达尔)',
    ],
)
def test_what_is_not_well_formed_or_not_asked_for_or_said_twice_may_not(answer):
    assert not is_permitted(answer)


@pytest.mark.parametrize(
    ("answer", "head", "text"),
    [
        ("(阿尔夫达尔,人口,2,424人)", True, True),
        ("(中野站(东京都),别名,阿尔夫)", True, True),
        ("(中野站,位于,东京都)", True, True),
        ("(中野站,位于,NAN)", True, True),
        ("(阿尔夫达尔,位于,挪威)", True, False),
        ("(挪威,位于,阿尔夫达尔)", False, False),
        ("(阿尔夫 达尔,人口,2)", False, False),
        ("(阿尔夫达尔,人口,2，424人)", True, False),  # another comma than the text's
        ("(阿尔夫达尔,位于,1)首都)", False, False),  # a bracket without its partner
    ],
)
def test_names_may_have_to_stand_in_the_text(answer, head, text):
    assert (is_permitted(answer, bound="head"), is_permitted(answer, bound="text")) == (head, text)


def test_names_may_stand_in_the_text_as_the_tokenizer_gives_it_back():
    asked = ask(["位于"], "ＡＢ位于中国", "text", "AB位于中国")
    for head in ("ＡＢ", "AB"):
        assert say(asked, State(), f"({head},位于,中国)")
    assert say(asked, State(), "(国AB") is None  # no name reaches from one to the other


def test_without_a_text_or_relations():
    assert is_permitted("(甲,任意,乙)", None)
    assert is_permitted("(甲,任意,乙)", [])
    assert not is_permitted("(甲,任意)", [])
    assert not is_permitted("(甲,任意,乙),(甲,任意,乙)", [])
    assert is_permitted("(1,3-丁二烯,类型,烯)", [], "1,3-丁二烯", "head")
    assert is_permitted("(甲,位于,乙)", text="")
    assert is_permitted("", text="", bound="text")
    assert not is_permitted("(", text=" ，", bound="text")
    asked = ask(RELATIONS, " ，", "text")
    assert say(asked, State(), "(") is None


def test_an_answer_that_says_a_triple_again_keeps_what_stands_before():
    asked = ask(RELATIONS, TEXT)
    again = "(甲,位于,乙),(丙,位于,乙(丁)),(甲,位于,乙)"
    assert say(asked, State(), again).phase == AGAIN
    for cut in (again, again[:-1], again[:-9]):
        assert keep_whole(asked, cut) == "(甲,位于,乙),(丙,位于,乙(丁))"
    assert keep_whole(asked, "(甲,位于,乙") == ""


names = st.text("甲乙丙AB 12,，()（）[]“”\"'《》-", min_size=1, max_size=6)
texts = st.text("甲乙丙AB12,，()（）[]“《》- 。\n", max_size=30)  # a plain quote may make objects of an answer
LETTERS = "甲乙丙丁AB12,，()（）[]“”《》- 。\nNA位于别名又称人口"


@seeded
@given(
    st.lists(st.sampled_from(["甲", "甲,乙", "甲(乙)", "别名", "A B", "B"]), max_size=4, unique=True),
    texts,
    st.sampled_from(list(BOUND)),
    st.integers(0, 2**32),
)
def test_every_walk_can_end_and_reads_as_it_was_said(relations, text, bound, seed):
    """From every state some character may follow, or the answer may end; and the parser reads the triples said."""
    draw, asked = random.Random(seed), ask(relations, text, bound)
    letters, state, answer = sorted({*LETTERS, *text, *"".join(relations)}), State(), ""
    for _ in range(60):
        following = [(one, say(asked, state, one)) for one in letters]
        following = [(one, then) for one, then in following if then is not None]
        assert following or may_end(state), (answer, state)
        kept = [pair for pair in following if pair[1].phase != AGAIN]
        if not kept:
            break
        closing = [pair for pair in kept if pair[0] in "),"] if draw.random() < 0.5 else []
        character, state = draw.choice(closing or kept)
        answer += character
    answer = keep_whole(asked, answer)
    state = say(asked, State(), answer)
    assert state is not None
    assert may_end(state)
    if not relations:  # the parser may have to guess where a name ends
        return
    found = parse(answer, relations, text)
    assert {tuple(one) for one in state.said if "NAN" not in one} == set(found)
    assert len(found) == len(set(found))
    heads, tails = BOUND[bound]
    for head, relation, tail in found:
        assert relation in relations
        assert not heads or head in text
        assert not tails or tail in text


@seeded
@given(st.lists(st.tuples(names, st.sampled_from(["位于", "别名"]), names), max_size=3, unique=True), st.booleans())
def test_triples_that_the_parser_gives_back_may_be_said(triples, stands):
    text = "。".join(f"{head} {tail}" for head, _, tail in triples) if stands else ""
    answer = render(triples)
    triples = [Triple(*one) for one in triples]
    plain = all(part == part.strip() and not set(part) & set(",，()（）[]\"'“”") for one in triples for part in one)
    if plain and parse(answer, ["位于", "别名"], text) == triples:
        assert is_permitted(answer, ["位于", "别名"], text, "text" if stands else "relations")
