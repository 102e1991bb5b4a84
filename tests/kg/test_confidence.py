"""Votes of several answers, the probabilities of triples, and what a threshold of confidence keeps."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kg.breakdown import rates
from kg.triples import Triple, parse
from kg.votes import count_votes, mean_probabilities, threshold_curve, write_scored

A, B, C = (Triple("甲", "位于", tail) for tail in "乙丙丁")


def test_a_triple_has_one_vote_an_answer_and_stands_where_it_first_appeared():
    answers = [[A, A, B], [C, B], [B]]
    assert count_votes(answers, 0) == [(A, 1 / 3), (B, 1.0), (C, 1 / 3)]
    assert count_votes(answers, 2 / 3) == [(B, 1.0)]
    assert count_votes([[], []], 0.5) == []


def test_a_triple_has_the_mean_of_the_tokens_that_say_it():
    text = "(甲,位于,乙),(甲,位于,丙)"
    tokens = [(1, 0.1), (7, 0.5), (8, 0.9), (9, 1.0), (17, 0.2)]  # the second and last lie across what is asked for
    assert mean_probabilities([A, B], text, tokens) == pytest.approx([(0.5) / 1, (0.2) / 1])
    assert mean_probabilities([C], text, tokens) == pytest.approx([2.7 / 5])  # not in the text: of the whole answer
    assert mean_probabilities([A], text, []) == [0.0]
    said = "关系：(系,位于,乙)"  # what stands before the triple is not meant
    assert mean_probabilities([Triple("系", "位于", "乙")], said, [(3, 0.1), (4, 0.2), (11, 1.0)]) == [1.0]
    said = "(甲,乙地,乙)"  # the tail stands in the relation, too
    assert mean_probabilities([Triple("甲", "乙地", "乙")], said, [(4, 1.0), (6, 1.0), (7, 0.4)]) == pytest.approx(
        [0.8]
    )


def test_there_is_a_confidence_for_each_triple_that_the_written_text_is_read_as():
    text, triples, confidence = write_scored([(A, 0.75), (B, 0.5)], ["位于"], "甲")
    assert (text, triples, confidence) == ("(甲,位于,乙),(甲,位于,丙)", [A, B], [0.75, 0.5])
    odd = Triple("甲", "别名", "乙),(丙,位于,丁")
    text, triples, confidence = write_scored([(A, 0.75), (odd, 0.5)], ["位于"], None)
    assert triples == parse(text, ["位于"]) != [A, odd]
    assert confidence == [0.75, 0.5, 0.5]
    assert write_scored([], None, None) == ("", [], [])


def test_a_curve_by_hand():
    rows = [([(A, 0.9), (B, 0.5)], {A, C}), ([(C, 0.5)], {C})]
    low, high = threshold_curve(rows)
    assert low == {"threshold": 0.5, "predicted": 3, **rates(2, 3, 3)}
    assert high == {"threshold": 0.9, "predicted": 1, **rates(1, 1, 3)}
    assert threshold_curve([([], {A})]) == []


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.sampled_from([0.1, 0.5, 0.7])), max_size=9))
def test_every_line_of_a_curve_is_what_its_threshold_keeps(marks):
    for line in threshold_curve([(marks, {A})]):
        kept = [triple for triple, confidence in marks if confidence >= line["threshold"]]
        assert line == {
            "threshold": line["threshold"],
            "predicted": len(kept),
            **rates(kept.count(A), len(kept), 1),
        }
