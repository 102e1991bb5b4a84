"""P-Tuning's rows of tokens, and which of them every step takes."""

from itertools import chain

import pytest

from checkpoints.family import find_family
from common.errors import UserError
from data.prompts import load_template
from prediction.questions import ask_cut
from tokens.batches import IGNORED
from tokens.dataset import make_rows
from tokens.ptuning_rows import encode_question, encode_record, layout_a
from tokens.readers import load_codec
from training.order import plan_epoch
from training.ptuning import answer_tokens, learning_rates
from utils.args_pt import parse_ptuning

PLAIN = load_template("plain")
RECORDS = [
    {"id": 0, "instruction": "relations: ['in']", "input": "A B", "output": "(A,in,B)"},
    {"id": 1, "instruction": "relations: ['in']", "input": "C D", "output": "(C,in,D)"},
]


def test_layout_a_joins_by_token_count_and_learns_sop():
    row = layout_a([1, 2], [3, 4, 5], [6, 7], (91, 92, 99), max_len=12, max_src_len=6)
    assert row.input_ids == [1, 2, 3, 4, 5, 91, 92, 6, 7, 99]
    assert row.labels == [*[IGNORED] * 6, 92, 6, 7, 99]
    assert (row.cut, row.answer_cut) == (False, False)


def test_layout_a_cuts_the_text_to_what_the_instruction_leaves():
    row = layout_a([1, 2], [3, 4, 5, 6, 7], [8], (91, 92, 99), max_len=12, max_src_len=4)
    assert row.input_ids == [1, 2, 3, 4, 91, 92, 8, 99]
    assert (row.cut, row.needs_source) == (True, 7)


def test_layout_a_says_which_max_len_would_keep_an_answer_and_gives_a_cut_one_no_end():
    long = [8, 9, 10, 11, 12]
    row = layout_a([1, 2], [3], long, (91, 92, 99), max_len=11, max_src_len=4)
    assert row.input_ids == [1, 2, 3, 91, 92, 8, 9, 10, 11]
    assert row.answer_cut
    whole = layout_a([1, 2], [3], long, (91, 92, 99), max_len=row.needs, max_src_len=4)
    assert whole.input_ids == [1, 2, 3, 91, 92, *long, 99]
    assert not whole.answer_cut
    assert layout_a([1, 2], [3], long, (91, 92, 99), max_len=row.needs - 1, max_src_len=4).answer_cut


def test_layout_a_drops_what_loses_its_instruction_and_keeps_one_that_just_fits():
    assert layout_a([1, 2, 3, 4, 5], [6], [7], (91, 92, 99), max_len=12, max_src_len=4).input_ids == []
    row = layout_a([1, 2, 3, 4], [6], [7], (91, 92, 99), max_len=12, max_src_len=4)
    assert row.input_ids == [1, 2, 3, 4, 91, 92, 7, 99]


def test_a_codec_with_tokens_between_has_rows_of_layout_a_and_asks_with_their_beginning(chatglm):
    codec = chatglm[1]
    record = {"instruction": "抽取[gMASK]三元组", "input": "北京是中国的首都。", "output": "(北京,首都,中国)"}
    row = encode_record(codec, {}, record, 768, 450)
    parts = [codec.text_ids(record[name]) for name in ("instruction", "input", "output")]
    assert row.input_ids == [*parts[0], *parts[1], *codec.suffix_ids, *parts[2], codec.eos_id]
    assert row.input_ids.count(codec.suffix_ids[0]) == 1
    asked, cut = encode_question(codec, {}, record, 450)
    assert asked == row.input_ids[: len(asked)]
    assert row.labels[len(asked) - 1 : len(asked)] == [codec.suffix_ids[1]]
    assert not cut


def test_rows_with_a_template_keep_the_prompt_within_max_src_len_and_the_answer_whole(random_base):
    codec = load_codec(random_base, find_family(random_base)[0])
    record = {**RECORDS[0], "input": "A B " * 50}
    row = encode_record(codec, PLAIN, record, 120, 60)
    asked, cut = encode_question(codec, PLAIN, record, 60)
    assert cut
    assert row.cut
    assert 57 < len(asked) <= 60
    assert row.input_ids[: len(asked)] == asked
    assert row.labels[: len(asked)] == [IGNORED] * len(asked)
    assert codec.decode(row.labels[len(asked) :]) == record["output"]
    assert row.labels[-1] == codec.eos_id
    assert encode_record(codec, PLAIN, record, 1000, row.needs_source).cut is False
    assert encode_record(codec, PLAIN, record, 1000, row.needs_source - 1).cut is True


def test_what_is_cut_or_left_out_is_said_and_a_question_too_long_fails_by_itself(random_base, chatglm, capsys):
    codec = load_codec(random_base, find_family(random_base)[0])
    long = {**RECORDS[1], "id": 77, "instruction": "x " * 200}
    rows = make_rows(codec, PLAIN, [RECORDS[0], long], 120, 80)
    assert len(rows) == 1
    assert "1 records left out (id 77)" in capsys.readouterr().err
    with pytest.raises(UserError, match="no record of --train_path fits"):
        make_rows(codec, PLAIN, [long], 120, 80)
    asked, failed = ask_cut(codec, PLAIN, [RECORDS[0], long], 80)
    assert (bool(asked.ids), failed.ids) == (True, [])
    assert failed.reason == "its instruction is longer than --max_src_len 80; raise it"
    answers = [{**RECORDS[0], "output": "北京" * size} for size in (8, 9)]
    make_rows(chatglm[1], {}, answers, 30, 20)
    said = capsys.readouterr().err
    most = 20 + 3 + len(chatglm[1].text_ids("北京" * 9))
    assert f"2 answers lost their end (no end-of-answer token is learnt from them); --max_len {most} would" in said


# Steps


@pytest.mark.parametrize("passes", [1, 3])
def test_an_epoch_takes_every_record_once_however_many_processes_share_it(passes):
    lengths = [5, 9, 3, 7, 7, 2, 8, 4, 6, 1, 3, 11, 5]
    alone = plan_epoch(lengths, 4, passes, 1, 0, 0)
    both = plan_epoch(lengths, 2, passes, 2, 0, 0)
    for steps in (alone, both):
        assert sorted(i for step in steps for turn in step for part in turn for i in part) == list(range(13))
        assert all(len(step) == passes for step in steps)
    one, two = ([[sorted(chain(*turn)) for turn in step] for step in steps] for steps in (alone, both))
    assert one == two
    assert plan_epoch(lengths, 4, passes, 1, 0, 1) != alone


def test_the_learning_rate_rises_and_falls():
    needed = ["--train_path", "t.json", "--model_dir", "m", "--output_dir", "o"]
    args = parse_ptuning([*needed, "--learning_rate", "0.1", "--warmup_steps", "0.2"])[1]
    rate = learning_rates(args, 10)
    assert [round(rate(step), 4) for step in (0, 1, 2, 9)] == [0, 0.05, 0.1, 0.0125]


def test_tokens_are_counted_as_the_loss_sees_them():
    assert answer_tokens({"labels": [5, IGNORED, 6, 7]}) == 2


@pytest.mark.parametrize("family", ["llama", "chatglm"])
def test_a_question_too_long_is_cut_which_is_said_or_split(random_base, chatglm, capsys, family):
    codec = chatglm[1] if family == "chatglm" else load_codec(random_base, find_family(random_base)[0])
    record = {"id": 1, "instruction": "抽取", "input": "甲在乙。丙在丁。" * 8, "output": ""}
    [cut] = ask_cut(codec, PLAIN, [record], 40)
    assert len(cut.ids) <= 40 + len(codec.suffix_ids)
    assert (
        "1 of 1 texts lost their end to fit --max_src_len 40; --window splits them instead" in capsys.readouterr().err
    )
    parts = ask_cut(codec, PLAIN, [record], 40, split=True)
    assert len(parts) > 1
    assert max(len(part.ids) for part in parts) <= 40 + len(codec.suffix_ids)
    assert all(part.text.endswith("。") for part in parts)
    assert "lost their end" not in capsys.readouterr().err
