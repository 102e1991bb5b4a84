"""Answers in JSON and records that are asked in parts of their own: questions, rows, and what run.json says of them."""

from types import SimpleNamespace

import pytest

from common.errors import UserError
from data.answer_form import CHINESE
from data.asking import Asking
from data.wording import word_instruction
from kg.schema import read_schema
from prediction.questions import make_questions, make_rows
from prediction.settings import choose_asking
from utils.args import DataArguments
from utils.args_predict import InferenceArguments

RECORD = {"id": 1, "instruction": word_instruction(["别名", "位于"], "甲"), "input": "甲在乙"}
JSON = '[{"head": "甲", "relation": "位于", "tail": "乙"}]'


def asked(records, asking=None):
    return make_questions(records, lambda one: [len(one["instruction"])], asking=asking or Asking())


def test_questions_ask_for_json_and_rows_keep_their_instruction():
    (question,) = asked([RECORD], Asking(as_json=True))
    assert CHINESE in question.instruction
    (row,) = make_rows([RECORD], [question], {0: {"output": JSON, "finish_reason": "eos"}}, Asking(as_json=True))
    assert row == {**RECORD, "output": JSON, "finish_reason": "eos"}


def test_a_record_with_schema_groups_is_asked_apart_and_answered_as_one():
    record = {**RECORD, "schema_groups": [["位于"], ["别名"]]}
    questions = asked([record, RECORD])
    assert [read_schema(one.instruction) for one in questions] == [["位于"], ["别名"], ["别名", "位于"]]
    answers = {0: {"output": JSON, "finish_reason": "eos"}, 1: {"output": "(甲,别名,丙)", "finish_reason": "length"}}
    both, other = make_rows([record, RECORD], questions, answers | {2: {"output": "NAN", "finish_reason": "eos"}})
    assert (both["output"], both["finish_reason"]) == ("(甲,别名,丙),(甲,位于,乙)", "length")
    assert (both["schema_parts"], other["output"]) == (2, "NAN")


GIVEN = {
    **{"schema_batch": None, "answer_order": None, "answer_format": None, "shuffle_schema": False, "seed": None},
    **{"votes": 1, "min_votes": None, "do_sample": False, "constrain": None},
}


@pytest.mark.parametrize(
    ("typed", "trained", "as_json", "said"),
    [
        (None, {"answer_format": "json"}, True, "answer_format: json (answers are lists"),
        (None, {}, False, ""),
        (None, None, False, ""),
        ("json", None, True, "answer_format: json"),
        ("text", {"answer_format": "json"}, False, "warning: --answer_format text contradicts run.json"),
        ("json", {}, True, "warning: --answer_format json contradicts run.json, which says text"),
    ],
)
def test_prediction_answers_as_it_was_trained_unless_told(capsys, typed, trained, as_json, said):
    run = {} if trained is None else {"training": trained}
    assert choose_asking(SimpleNamespace(**GIVEN | {"answer_format": typed}), run).as_json == as_json
    err = capsys.readouterr().err
    assert said in err
    assert bool(err) == bool(said)


@pytest.mark.parametrize("flag", [{"answer_order": "tail"}, {"constrain": "text"}])
def test_what_does_not_go_with_json_is_refused_whoever_asked_for_it(flag):
    name = next(iter(flag))
    with pytest.raises(UserError, match=f"as trained, by run.json. and --{name}"):
        choose_asking(SimpleNamespace(**GIVEN | flag), {"training": {"answer_format": "json"}})
    with pytest.raises(UserError, match=f"--answer_format json and --{name}"):
        InferenceArguments(answer_format="json", **flag)


def test_training_refuses_json_with_the_tail_first():
    with pytest.raises(UserError, match="--answer_format json and --answer_order tail do not go together"):
        DataArguments(train_file="x", answer_format="json", answer_order="tail")
