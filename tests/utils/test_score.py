"""score.py and breakdown.py: against counts written down otherwise, and against examples worked by hand."""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, python
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from data import answers, submission
from kg import breakdown, metrics
from utils import score

FIGURES = metrics.FIGURES
SCRIPT = Path(score.__file__)
ASKED = "已知候选的关系列表：['位于', '别名', '面积']，请你根据关系列表抽取。"
seeded = settings(derandomize=True, deadline=None, database=None, max_examples=300)

A, B, C, X = ("甲", "位于", "乙"), ("甲", "别名", "丙"), ("丁", "位于", "乙"), ("甲", "位于", "丁")


def record(number, *triples, **more):
    return {"id": number, "instruction": ASKED, "input": "甲乙丙丁", "kg": [list(triple) for triple in triples], **more}


def said(number, output, **more):
    return {"id": number, "instruction": ASKED, "input": "甲乙丙丁", "output": output, **more}


GOLD = [record(0, A, B), record(1, C), record(2)]


def save(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def run(folder, predicted, gold, *flags):
    """Call the command on these records."""
    files = save(folder / "pred.json", predicted), save(folder / "gold.json", gold)
    score.main(["--pred", str(files[0]), "--gold", str(files[1]), *flags])


def run_json(folder, predicted, gold, *flags):
    """What the command writes about these records."""
    run(folder, predicted, gold, "--json", str(folder / "made" / "figures.json"), *flags)
    return json.loads((folder / "made" / "figures.json").read_text(encoding="utf-8"))


def rows_of(corpus):
    """Compared rows of (predicted triples, gold triples)."""
    return metrics.compare([(record(n, *mine), record(n, *right)) for n, (mine, right) in enumerate(corpus)])


# F1

PARTS = st.sampled_from(["甲", "乙", "甲乙", "乙甲乙", ""])
TRIPLES = st.tuples(PARTS, st.sampled_from(["位于", "别名"]), PARTS)
CORPUS = st.lists(st.tuples(st.lists(TRIPLES, max_size=8), st.lists(TRIPLES, max_size=8)), min_size=1, max_size=5)


def counted_by_hand(rows):
    """Tick off each predicted triple against the distinct gold ones of its row."""
    right = mentioned = wanted = 0
    for predicted, gold in rows:
        open_triples = []
        for triple in gold:
            if triple not in open_triples:
                open_triples.append(triple)
        wanted += len(open_triples)
        for triple in predicted:
            mentioned += 1
            if triple in open_triples:
                open_triples.remove(triple)
                right += 1
    precision = right / mentioned if mentioned else 0
    recall = right / wanted if wanted else 0
    return precision, recall, 2 * precision * recall / (precision + recall) if right else 0


@seeded
@given(CORPUS)
def test_f1_equals_a_count_by_hand(corpus):
    found = metrics.f1([predicted for predicted, _ in corpus], [gold for _, gold in corpus])
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(counted_by_hand(corpus))


def test_f1_of_a_worked_example():
    # 2 of 3 predicted are right, 2 of 4 wanted are found: 2 · 2/3 · 1/2 / (2/3 + 1/2) = 4/7
    found = metrics.f1([[A, X], [C], []], [[A, B], [C], [A]])
    assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7})


def test_a_repeated_prediction_counts_against_precision_alone():
    assert metrics.f1([[A, A]], [[A]]) == pytest.approx({"precision": 1 / 2, "recall": 1, "f1": 2 / 3})


def test_a_triple_is_right_only_in_its_own_row_and_its_own_order():
    assert metrics.f1([[A], [B]], [[B], [A]])["f1"] == 0
    assert metrics.f1([[A[::-1]]], [[A]])["f1"] == 0


# ROUGE-2


@pytest.mark.parametrize(
    ("mine", "right", "value"),
    [
        ("", "", 1),
        (" ", "\n", 1),
        ("", "(甲,位于,乙)", 0),
        ("(甲,位于,乙)", "", 0),
        ("(甲,位于,乙)", "(甲,位于,乙)", 1),
        ("北京，上海？", "一二三四", 0),
        # 6 pairs of neighbours in the 7 words `( 甲 , 位于 , 乙 )`; the first 4 are shared with the other text
        ("(甲,位于,乙)", "(甲,位于,丙)", 4 / 6),
        # 10 distinct pairs: the 6 of (甲,位于,乙), and `) ,` `, (` `( 丙` `丙 ,`. So p 6/10, r 6/6, f = 1.2 / 1.6
        ("(甲,位于,乙),(丙,位于,乙)", "(甲,位于,乙)", 3 / 4),
        # what the package does with a decimal (one word), and with a single word (no pair, though they are equal)
        ("(甲,面积,3.5)", "(甲,面积,3.6)", 4 / 6),
        ("甲", "甲", 0),
        ("。", "。", 0),
    ],
)
def test_rouge2_of_one_row(mine, right, value):
    assert rouge2([mine], [right]) == pytest.approx(value, abs=1e-6)


def test_rouge2_is_the_mean_of_the_rows():
    assert rouge2(["", "", "(甲,位于,乙)"], ["", "(甲,位于,乙)", "(甲,位于,丙)"]) == pytest.approx((1 + 0 + 4 / 6) / 3)


def test_rouge2_depends_on_the_order_of_the_triples():
    swapped = rouge2(["(甲,位于,乙),(丙,别名,丁)"], ["(丙,别名,丁),(甲,位于,乙)"])
    assert 0 < swapped < 1


def rouge2(predicted, gold):
    """The mean over rows."""
    return sum(metrics.rouge2_rows(predicted, gold)) / len(gold)


def rouge2_by_hand(mine, right):
    import jieba

    pairs = []
    for text in (mine, right):
        words = " ".join(jieba.cut(text)).split()
        pairs.append({(words[i], words[i + 1]) for i in range(len(words) - 1)})
    if not mine.strip() or not right.strip():
        return float(mine.strip() == right.strip())
    if not pairs[0] & pairs[1]:
        return 0.0
    p, r = len(pairs[0] & pairs[1]) / len(pairs[0]), len(pairs[0] & pairs[1]) / len(pairs[1])
    return 2 * p * r / (p + r)


ANSWERS = st.text("甲乙北京位于,()，。？…“”.36a ", max_size=30)


@seeded
@given(ANSWERS, ANSWERS)
def test_rouge2_equals_a_count_by_hand(mine, right):
    assert rouge2([mine], [right]) == pytest.approx(rouge2_by_hand(mine, right), abs=1e-6)
    assert rouge2([mine], [mine + right]) == pytest.approx(rouge2_by_hand(mine, mine + right), abs=1e-6)


@seeded
@given(st.text(max_size=40), st.text("。？!.…\n\u3000\u200b\u2028\ud800 ", max_size=20))
def test_rouge2_of_any_texts_is_a_share(one, other):
    for mine, right in ((one, other), (other, one), (one, one)):
        assert 0 <= rouge2([mine], [right]) <= 1


def test_rouge2_of_a_long_answer_is_found():
    text = "(甲,位于,乙)" * 5000
    assert rouge2([text], [text]) == pytest.approx(1)


# whole records


def test_gold_scored_against_itself_is_perfect():
    assert metrics.score_records(GOLD, GOLD) == pytest.approx(dict.fromkeys(FIGURES, 1))


def test_nothing_scored_against_nothing_is_no_error():
    assert metrics.score_records([], []) == dict.fromkeys(FIGURES, 0)


def test_contest_of_a_worked_example():
    # F1: 1 of 2 predicted is right, 1 of 3 wanted is found: 2/5. ROUGE-2: (甲,位于,乙) has 6 distinct pairs of words,
    # (甲,位于,乙),(甲,别名,丙) has these and `) ,` `, (` `, 别名` `别名 ,` `, 丙` `丙 )`: p 6/6, r 6/12, f = 2/3.
    # The second row shares `, 位于` and `位于 ,` of 6 and 6 pairs: 1/3. The third is empty in both: 1. Mean 2/3.
    figures = metrics.score_records([record(0, A), record(1, X), record(2)], GOLD)
    assert figures == pytest.approx(
        {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 / 5, "rouge2": 2 / 3, "contest": (2 / 5 + 2 / 3) / 2}
    )


def test_a_prediction_without_kg_is_scored_by_its_output():
    raw = [
        said(0, "输入中包含的关系三元组是：\n（甲，位于，乙）（甲，别名，丙）", kg=None),
        said(1, "[丁,位于,乙]"),
        said(2, "NAN"),
    ]
    assert metrics.score_records(raw, GOLD)["contest"] == pytest.approx(1)


def test_a_submission_scores_what_its_predictions_score():
    raw = [said(0, "(甲,位于,乙)(甲,位于,丁)"), said(1, "没有"), said(2, "(甲,别名,丙)")]
    assert metrics.score_records([submission.convert_record(row)[0] for row in raw], GOLD) == pytest.approx(
        metrics.score_records(raw, GOLD)
    )


def test_predictions_are_paired_by_id_whatever_their_order():
    pairs, notes = answers.pair_answers(GOLD[::-1], GOLD)
    assert pairs == list(zip(GOLD, GOLD, strict=True))
    assert notes == []


def test_an_output_is_parsed_with_golds_instruction_and_input_if_it_comes_alone():
    gold = [record(0, ("甲,乙", "位于", "丙"))]
    pairs, _ = answers.pair_answers([{"id": 0, "instruction": None, "output": "(甲,乙,位于,丙)"}], gold)
    assert metrics.compare(pairs)[0].predicted == [("甲,乙", "位于", "丙")]


def test_a_gold_triple_that_stands_twice_is_wanted_once(tmp_path):
    figures = run_json(tmp_path, [record(0, A)], [record(0, A, A, B, B)])
    assert (figures["counts"]["gold"], figures["errors"]["missed"], figures["recall"]) == (2, 1, 1 / 2)
    assert figures["interval"]["f1"] == pytest.approx([figures["f1"]] * 2)


# missing and extra predictions


def test_a_missing_prediction_has_missed_everything_and_earns_no_rouge(tmp_path, capsys):
    # ids 0 and 2 are missing; that gold's row 2 is empty too earns nothing, unlike an empty answer
    figures = run_json(tmp_path, [record(1, C)], GOLD)
    assert [figures[name] for name in FIGURES] == pytest.approx([1, 1 / 3, 1 / 2, 1 / 3, (1 / 2 + 1 / 3) / 2])
    assert (figures["counts"]["missing"], figures["errors"]["missed"]) == (2, 2)
    assert "warning: 2 of 3 gold records have no prediction, e.g. id 0" in capsys.readouterr().err
    empty = run_json(tmp_path, [record(1, C), record(0), record(2)], GOLD)
    assert (empty["rouge2"], empty["f1"]) == pytest.approx((2 / 3, 1 / 2))


def test_an_extra_predictions_triples_are_spurious_and_leave_rouge_alone(tmp_path, capsys):
    figures = run_json(tmp_path, [*GOLD, record(77, A, cate="医学"), record(78)], GOLD)
    assert [figures[name] for name in FIGURES] == pytest.approx([3 / 4, 1, 6 / 7, 1, (6 / 7 + 1) / 2])
    assert figures["counts"] == {"records": 3, "missing": 0, "extra": 2, "gold": 3, "predicted": 4, "right": 3}
    assert figures["errors"]["spurious"] == 1
    assert figures["by_cate"][0]["name"] == "医学"
    assert "warning: 2 of 5 predictions have an id that gold lacks, e.g. id 77" in capsys.readouterr().err


@pytest.mark.parametrize(("mine", "right"), [("1", 1), (1, "1")])
def test_an_id_that_is_text_in_one_file_and_a_number_in_the_other_is_refused(tmp_path, mine, right):
    with pytest.raises(UserError) as caught:
        run(tmp_path, [record(0, A), record(mine, C)], [record(0, A), record(right, C)])
    assert f"--pred has the id {json.dumps(mine)}, --gold has {json.dumps(right)}" in str(caught.value)


def test_text_and_number_may_both_be_ids():
    rows = [record("1", A), record(1, B)]
    assert answers.pair_answers(rows, rows)[1] == []


# kinds of error

KINDS = {  # each with its own heads and tails
    "right": [(("a", "位于", "b"), ("a", "位于", "b"))],
    "direction": [(("c", "位于", "d"), ("d", "位于", "c"))],
    "relation": [(("e", "位于", "f"), ("e", "别名", "f"))],
    "boundary": [(("gh", "位于", "i"), ("g", "位于", "ij")), (("k", "位于", "lm"), ("k", "位于", "m"))],
    "tail": [(("n", "位于", "o"), ("n", "位于", "p"))],
    "head": [(("q", "位于", "r"), ("s", "位于", "r"))],
    "repeated": [(("a", "位于", "b"), None), (("y", "位于", "z"), None)],
    "spurious": [(("y", "位于", "z"), None), (("t", "位于", "u"), None)],
    "missed": [(None, ("v", "别名", "w"))],
}
MIXED = (
    [predicted for pairs in KINDS.values() for predicted, _ in pairs if predicted],
    [gold for pairs in KINDS.values() for _, gold in pairs if gold],
)


def test_every_kind_of_error_is_told_from_the_others():
    marks = breakdown.align(*MIXED)
    found = {kind: [(mark.predicted, mark.gold) for mark in marks if mark.kind == kind] for kind in KINDS}
    assert found == KINDS


def test_the_first_rule_that_fits_decides_over_the_whole_row():
    # (a,位于,b) could be the wrong tail of the second gold triple; the relation is the earlier rule, and the second
    # prediction is left for it
    marks = breakdown.align(
        [("a", "位于", "b"), ("a", "位于", "c")], [("a", "位于", "d"), ("a", "别名", "b"), ("x", "别名", "y")]
    )
    assert [(mark.kind, mark.predicted, mark.gold) for mark in marks] == [
        ("relation", ("a", "位于", "b"), ("a", "别名", "b")),
        ("tail", ("a", "位于", "c"), ("a", "位于", "d")),
        ("missed", None, ("x", "别名", "y")),
    ]


def test_an_empty_part_is_no_boundary():
    assert breakdown.align([("a", "位于", "")], [("a", "位于", "b")])[0].kind == "tail"


def kinds_that_fit(p, g):
    """Every kind two triples could be paired as, in the order that decides; written out once more."""
    head, tail = p[0] == g[0], p[2] == g[2]
    part = [one != "" and other != "" and (one in other or other in one) for one, other in zip(p, g, strict=True)]
    same = p[1] == g[1]
    fits = {
        "right": head and same and tail,
        "direction": same and p[0] == g[2] and p[2] == g[0],
        "relation": head and tail,
        "boundary": same and (head or part[0]) and (tail or part[2]),
        "tail": same and head,
        "head": same and tail,
    }
    return [kind for kind, holds in fits.items() if holds]


@seeded
@given(st.lists(TRIPLES, max_size=8), st.lists(TRIPLES, max_size=8))
@example(*MIXED)
def test_every_triple_is_in_exactly_one_mark_of_the_right_kind(predicted, gold):
    marks = breakdown.align(predicted, gold)
    assert sorted(mark.predicted for mark in marks if mark.predicted) == sorted(predicted)
    assert sorted(mark.gold for mark in marks if mark.gold) == sorted(set(gold))
    for kind, mine, right in marks:
        if mine and right:
            assert kinds_that_fit(mine, right)[0] == kind
        else:
            assert kind == "missed" if right else kind in ("spurious", "repeated")
    left = [[mark[side] for mark in marks if mark.kind == kind] for kind, side in (("spurious", 1), ("missed", 2))]
    assert not [(p, g) for p in left[0] for g in left[1] if kinds_that_fit(p, g)]  # nothing left could be paired


@seeded
@given(CORPUS)
def test_the_kinds_of_error_add_up(corpus):
    rows = rows_of(corpus)
    errors = breakdown.count_errors(rows)
    right = sum(mark.kind == "right" for row in rows for mark in row.marks)
    paired = right + sum(errors[kind] for kind in ("direction", "relation", "boundary", "tail", "head"))
    assert paired + errors["repeated"] + errors["spurious"] == sum(len(mine) for mine, _ in corpus)
    assert paired + errors["missed"] == sum(len(set(gold)) for _, gold in corpus)
    assert set(breakdown.examples(rows)) == {kind for kind, count in errors.items() if count}
    mentioned = sum(len(mine) for mine, _ in corpus)
    assert right / max(1, mentioned) == pytest.approx(counted_by_hand(corpus)[0])


# tables


@seeded
@given(CORPUS)
def test_the_table_by_relation_equals_a_count_of_that_relation_alone(corpus):
    table = breakdown.by_relation(rows_of(corpus))
    for line in table:
        alone = [[[t for t in triples if t[1] == line["name"]] for triples in row] for row in corpus]
        assert (line["precision"], line["recall"], line["f1"]) == pytest.approx(counted_by_hand(alone))
        assert line["predicted"] == sum(len(mine) for mine, _ in alone)
        assert line["gold"] == sum(len(set(gold)) for _, gold in alone)
    assert {line["name"] for line in table} == {t[1] for row in corpus for triples in row for t in triples}
    assert sum(line["right"] for line in table) == sum(m.kind == "right" for row in rows_of(corpus) for m in row.marks)
    worst_first = [(line["f1"], -line["gold"]) for line in table]
    assert worst_first == sorted(worst_first)


def test_the_table_by_cate_of_a_worked_example(tmp_path):
    gold = [record(0, A, B, cate="医学"), record(1, C, cate="生物"), record(2, A, cate="医学"), record(3, B)]
    mine = [record(0, A, X), record(1, C), record(2), record(3)]
    table = run_json(tmp_path, mine, gold)["by_cate"]
    assert [[line[name] for name in ("name", "gold", "predicted", "right")] for line in table] == [
        ["-", 1, 0, 0],  # no cate
        ["医学", 3, 2, 1],
        ["生物", 1, 1, 1],
    ]
    # 医学: precision 1/2, recall 1/3, F1 2/5
    assert [table[1][name] for name in ("precision", "recall", "f1")] == pytest.approx([1 / 2, 1 / 3, 2 / 5])


# completion


def test_completion_counts_gold_triples_that_are_not_in_the_text(tmp_path):
    gold = [
        record(0, A, B, input="甲乙"),  # 丙 is not in the text: B
        record(1, C, X, input="甲乙"),  # 丁 is not: both
        record(2, A, input=""),  # no text: not counted
    ]
    found = run_json(tmp_path, [record(0, A, B), record(1, C), record(2, A)], gold)["completion"]
    assert found == {"total": 3, "found": 2, "share": pytest.approx(2 / 3)}


def test_completion_takes_the_predictions_text_where_gold_has_none(tmp_path):
    gold = [{"id": 0, "kg": [list(A), list(B)]}]
    assert run_json(tmp_path, [record(0, A, input="甲乙")], gold)["completion"] == {"total": 1, "found": 0, "share": 0}


def test_without_completion_there_is_no_share(tmp_path, capsys):
    assert run_json(tmp_path, GOLD, GOLD)["completion"] == {"total": 0, "found": 0, "share": None}
    assert "completion  0 gold triples with a head or tail that is not in the text\n" in capsys.readouterr().out


# intervals


def percentile_by_hand(values, share):
    """With linear interpolation between the two nearest."""
    at = share / 100 * (len(values) - 1)
    low, high = sorted(values)[int(at)], sorted(values)[min(int(at) + 1, len(values) - 1)]
    return low + (high - low) * (at - int(at))


def test_the_interval_is_that_of_the_same_draws_scored_one_by_one():
    import numpy as np

    pairs, _ = answers.pair_answers(
        [record(0, A), record(1, X), record(3, A), record(4, B, C)], [*GOLD, record(3, A, B, C)]
    )
    rows = metrics.compare(pairs)  # the prediction of id 2 is missing, the last one is extra
    random = np.random.default_rng(7)
    draws = [metrics.summarise([rows[i] for i in random.integers(len(rows), size=len(rows))]) for _ in range(200)]
    found = breakdown.intervals(rows, 200, 7)
    assert set(found) == {"f1", "rouge2", "contest"}
    for name, ends in found.items():
        values = [draw[name] for draw in draws]
        assert ends == pytest.approx([percentile_by_hand(values, 2.5), percentile_by_hand(values, 97.5)])


def test_the_interval_of_many_equal_records_is_the_normal_one():
    # half the rows right, half wrong: F1 is the share of right rows; its standard deviation is sqrt(1/4 / 400) = 0.025
    rows = rows_of([([A], [A]), ([X], [C])] * 200)
    low, high = breakdown.intervals(rows, 2000, 42)["f1"]
    normal = statistics.NormalDist(0.5, 0.025)
    assert (low, high) == pytest.approx((normal.inv_cdf(0.025), normal.inv_cdf(0.975)), abs=0.006)


def test_the_interval_of_a_single_record_is_its_score():
    rows = rows_of([([A], [A, B])])
    assert breakdown.intervals(rows, 10, 42)["f1"] == pytest.approx([2 / 3, 2 / 3])


# the command


def test_the_command_prints_and_writes_the_same_figures(tmp_path, capsys):
    found = run_json(tmp_path, [record(1, C), record(0, A), record(9)], GOLD, "--show", "1")
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("records 3  precision 1.0000  recall 0.6667  f1 0.8000  rouge2 ")
    assert lines[0].split()[2:] == [word for name in FIGURES for word in (name, f"{found[name]:.4f}")]
    assert found["f1"] == pytest.approx(0.8)
    assert lines[1].startswith("95 % interval  f1 {:.4f} to {:.4f}  rouge2 ".format(*found["interval"]["f1"]))
    assert "missed           1  id 0  - -> (甲,别名,丙)" in lines
    assert lines[-2:] == ["id 0  predicted (甲,位于,乙)", "          gold (甲,位于,乙),(甲,别名,丙)"]
    assert printed.err.count("warning: ") == 2
    nested = {"counts", "interval", "completion", "errors", "examples", "by_relation", "by_cate"}
    assert set(found) == {*FIGURES, *nested}
    assert found["examples"]["missed"] == {"id": 0, "predicted": None, "gold": list(B)}


def test_without_a_breakdown_of_topics_there_is_no_table_of_them(tmp_path, capsys):
    run(tmp_path, GOLD, GOLD)
    assert "\ncate " not in capsys.readouterr().out
    run(tmp_path, GOLD, [record(0, A, B, cate="医学"), *GOLD[1:]])
    assert "\ncate " in capsys.readouterr().out


def test_the_interval_is_seeded_and_can_be_left_out(tmp_path, capsys):
    rows = [record(n, A if n % 3 else X, cate="医学") for n in range(30)]
    gold = [record(n, A, B) for n in range(30)]
    first, again, other = (
        run_json(tmp_path, rows, gold, *flags)["interval"] for flags in ([], ["--seed", "42"], ["--seed", "1"])
    )
    assert first == again != other
    assert (first["resamples"], first["seed"]) == (1000, 42)
    assert run_json(tmp_path, rows, gold, "--bootstrap", "20")["interval"]["resamples"] == 20
    capsys.readouterr()
    assert run_json(tmp_path, rows, gold, "--bootstrap", "0")["interval"] is None
    assert "95 %" not in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--bootstrap", "--seed", "--show"])
def test_a_negative_number_is_refused(tmp_path, flag):
    with pytest.raises(UserError, match=f"{flag} -1: expected 0 or more"):
        run(tmp_path, GOLD, GOLD, flag, "-1")


def test_a_folder_to_write_to_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        run(tmp_path, GOLD, GOLD, "--json", str(tmp_path))


def test_a_long_table_is_cut_as_text_and_whole_as_json(tmp_path, capsys):
    rows = [record(0, *[("甲", f"关系{n}", "乙") for n in range(23)])]
    assert len(run_json(tmp_path, rows, rows)["by_relation"]) == 23
    out = capsys.readouterr().out
    assert sum(line.startswith("关系") for line in out.splitlines()) == 20
    assert "… and 3 more (all in --json)" in out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("abc", "abc     "),
        ("发现者", "发现者  "),
        ("发现者或发明者", "发现者… "),  # a character of two columns cannot be halved
        ("abcdefghi", "abcdefg…"),
        ("e\u0301a", "e\u0301a      "),  # an accent takes no column of its own
        ("a\nb", "a\\nb    "),
        ("\ud83d", "\\ud83d  "),
        ("", "        "),
    ],
)
def test_text_is_fitted_to_the_columns_of_a_terminal(text, shown):
    assert breakdown.fit(text, 8) == shown


def test_a_long_text_is_fitted_in_no_time():
    start = time.perf_counter()
    assert breakdown.fit("发现者" * 10_000, 8) == "发现者… "
    assert time.perf_counter() - start < 5  # cut character by character it takes a minute


def test_what_no_terminal_can_show_is_printed_all_the_same(tmp_path, capsys):
    odd = said(0, "(甲\n,位\u2028于,\\ud83d)")
    file = save(tmp_path / "odd.json", [odd])
    file.write_text(file.read_text(encoding="utf-8").replace("\\\\ud83d", "\\ud83d"), encoding="utf-8")
    target = tmp_path / "figures.json"
    score.main(["--pred", str(file), "--gold", str(save(tmp_path / "gold.json", GOLD)), "--json", str(target)])
    score.main(["--pred", str(file), "--gold", str(file), "--show", "1"])
    assert "(甲,位\\u2028于,\\ud83d)" in capsys.readouterr().out
    assert "位\u2028于" in json.dumps(json.loads(target.read_text(encoding="utf-8")), ensure_ascii=False)


def test_a_json_list_is_read_too(tmp_path, capsys):
    (tmp_path / "gold.json").write_text(json.dumps(GOLD), encoding="utf-8")
    score.main(["--pred", str(tmp_path / "gold.json"), "--gold", str(tmp_path / "gold.json")])
    assert "contest 1.0000" in capsys.readouterr().out


BAD = {
    "kg is no list": (record(5, kg="甲"), "kg is not a list of"),
    "a triple of two": (record(5, ("甲", "位于")), "kg is not a list of"),
    "a number in a triple": (record(5, ("甲", "面积", 3)), "kg is not a list of"),
    "no kg and no output": ({"id": 5, "input": "甲"}, "neither kg nor output"),
    "both are null": (record(5, kg=None, output=None), "neither kg nor output"),
    "output is no text": (said(5, ["(甲,位于,乙)"]), "output is ['(甲,位于,乙)'], expected a string"),
    "instruction is no text": (said(5, "", instruction=7), "instruction is 7, expected a string"),
    "input is no text": (record(5, input=["甲"]), "input is ['甲'], expected a string"),
    "no id": ({"kg": []}, "no id"),
    "id is null": (record(None), "no id"),
    "id is empty": (record(""), "the id ''"),
    "id is a list": (record([5]), "the id [5]"),
    "id is a decimal": (record(5.0), "the id 5.0"),
    "id is true": (record(True), "the id True"),
    "an id twice": (record(0), "id 0 already stands on line 1"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("file", ["pred.json", "gold.json"])
def test_a_bad_record_is_an_error_with_file_and_line(tmp_path, bad, file):
    row, message = BAD[bad]
    rows = [*GOLD, row]
    with pytest.raises(UserError) as caught:
        run(tmp_path, *((rows, GOLD) if file == "pred.json" else (GOLD, rows)))
    assert str(caught.value).startswith(f"{tmp_path / file}:4: ")
    assert message in str(caught.value)


def test_a_gold_file_without_answers_is_taken_for_the_test_set(tmp_path):
    with pytest.raises(UserError, match="is this the test set"):
        run(tmp_path, GOLD, [{"id": 0, "instruction": ASKED, "input": "甲"}])


def test_the_script_runs_from_any_folder_and_ends_a_users_error_without_a_traceback(tmp_path):
    command = [sys.executable, SCRIPT, "--pred", "no.json", "--gold", "no.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no.json: no such file")
    assert "Traceback" not in done.stderr


def test_importing_it_and_counting_f1_loads_nothing_heavy():
    code = (
        "import sys; sys.path.insert(0, 'src'); from kg import metrics; metrics.f1([[('a', 'b', 'c')]], [[]]);"
        "print(*{'jieba', 'rouge_chinese', 'numpy', 'torch', 'tqdm'} & set(sys.modules))"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_five_thousand_records_take_less_than_thirty_seconds(tmp_path):
    lines = (ROOT / "data" / "sample" / "train.json").read_text(encoding="utf-8").splitlines()
    gold = [{**json.loads(lines[n % len(lines)]), "id": n} for n in range(5000)]
    spoilt = [{**row, "kg": None, "output": row["output"].replace("位于", "别名")} for row in gold]
    start = time.process_time()
    figures = run_json(tmp_path, spoilt, gold)
    assert time.process_time() - start < 30
    assert 0.5 < figures["interval"]["f1"][0] < figures["f1"] < figures["interval"]["f1"][1] < 1


@pytest.mark.parametrize("side", ["pred", "gold"])
def test_the_figures_never_overwrite_what_they_are_made_from(tmp_path, side):
    files = {name: save(tmp_path / f"{name}.json", GOLD) for name in ("pred", "gold")}
    before = files[side].read_bytes()
    with pytest.raises(UserError, match="--json .* is an input of this command"):
        score.main(["--pred", str(files["pred"]), "--gold", str(files["gold"]), "--json", str(files[side])])
    assert files[side].read_bytes() == before


@pytest.mark.parametrize("end", [".md", "_CN.md"])
def test_the_example_on_the_page_is_that_of_the_measured_run(end):
    page, measured = ((ROOT / "docs" / f"{name}{end}").read_text(encoding="utf-8") for name in ("score", "measured"))
    figures = re.search(r"precision (\S+)  recall (\S+)  f1 (\S+)  rouge2 (\S+)  contest (\S+)", page).groups()
    assert all(figure in measured for figure in figures)
    counts = dict(re.findall(r"^(\w+) +(\d+)(?:  id|$)", page, re.MULTILINE))
    both = sum(int(counts[kind]) for kind in ("direction", "relation", "boundary", "tail", "head"))
    precision, recall = float(figures[0]), float(figures[1])
    wrong, lacking = both + int(counts["repeated"]) + int(counts["spurious"]), both + int(counts["missed"])
    right = lacking / (1 - recall) * recall
    assert wrong / (1 - precision) * precision == pytest.approx(right, abs=0.1)
