"""Records of other projects are told how to become this project's, and never taken for the test set."""

import json

import pytest

from common.errors import UserError
from data.answers import load_answers
from data.records import load_records, load_training
from data.submission import convert_record

OTHERS = {
    "prompt and completion": (
        {"prompt": "a", "completion": "b"},
        ["rename prompt to instruction", "completion to output"],
    ),
    "text and label": ({"text": "a", "label": "b"}, ["rename text to input", "label to output", "add the field instr"]),
    "Dolly": ({"instruction": "a", "context": "b", "response": "c"}, ["rename context to input", "response to output"]),
    "without input": ({"instruction": "a", "output": "b"}, ["add the field input"]),
    "question and answer": ({"question": "a", "answer": "b"}, ["question to instruction", "answer to output"]),
    "another conversation": ({"dialogue": [{"speaker": "a", "text": "b"}]}, ["dialogue hold a conversation"]),
    "triples": ({"text": "a", "triples": [["b"]]}, ["triples holds the triples", "text to input"]),
    "a corpus": ({"text": "a", "windows": [], "triples": []}, ["as src/extract.py writes it", "--store"]),
    "half of DuIE": ({"text": "a", "spo_list": [{"subject": "b"}]}, ["spo_list holds the triples", "--from: iepile"]),
}
NAMED = {  # that score.py does not turn by itself
    "InstructIE": ({"id": 1, "text": "a", "relation": [{"head": "b", "tail": "c"}]}, "--from instructie"),
    "DuIE": ({"id": 1, "text": "a", "spo_list": [{"subject": "b", "object": "c"}]}, "--from duie (DuIE's form)"),
    "messages": ({"id": 1, "messages": [{"role": "user", "content": "a"}]}, "--from messages (chat messages)"),
}


@pytest.mark.parametrize("form", NAMED)
def test_a_known_form_is_named_where_it_is_not_read_directly(tmp_path, form):
    record, words = NAMED[form]
    (tmp_path / "x.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_answers(tmp_path / "x.json", "hint")
    assert f"neither kg nor output; python src/utils/convert.py {words}" in str(caught.value)
    with pytest.raises(UserError) as caught:
        convert_record(record)
    assert words in str(caught.value)


@pytest.mark.parametrize("form", OTHERS)
def test_another_projects_record_is_told_what_was_found_and_how_to_rename(tmp_path, form):
    record, words = OTHERS[form]
    file = tmp_path / "train.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_records(file)
    message = str(caught.value)
    start = f"{file}:1: expected records with instruction, input, output, found {', '.join(record)}; "
    assert message.startswith(start)
    assert [part for part in words if part in message] == words
    assert "test set" not in message


@pytest.mark.parametrize("record", [{"a": 1}, {"id": 3, "kg": []}])
def test_a_record_of_no_known_form_is_said_to_lack_its_first_field(tmp_path, record):
    (tmp_path / "x.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"x.json:1: the field instruction is missing; found"):
        load_records(tmp_path / "x.json")


def test_labelled_records_without_output_are_told_how_to_get_it(tmp_path):
    record = {"instruction": "a", "input": "b", "kg": [["a", "b", "c"]]}
    (tmp_path / "x.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"test set .*; python src/utils/convert.py --pred_path .*x.json --tgt_path NEW"
    ):
        load_records(tmp_path / "x.json")


def test_predictions_in_other_fields_are_told_too(tmp_path):
    with pytest.raises(UserError, match="output is missing, expected a string; rename response to output"):
        convert_record({"id": 1, "response": "(a,b,c)"})
    (tmp_path / "x.json").write_text('{"id": 1, "completion": "(a,b,c)"}')
    with pytest.raises(UserError, match="x.json:1: neither kg nor output; rename completion to output"):
        load_answers(tmp_path / "x.json", "hint")


@pytest.mark.parametrize("outputs", [("", ""), (" \n", "")])
def test_records_with_nothing_but_empty_answers_teach_nothing(tmp_path, outputs):
    file = tmp_path / "x.json"
    rows = [{"instruction": "a", "input": "b", "output": output} for output in outputs]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="x.json: the output of all its 2 records is empty"):
        load_training(file)
    file.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "output": "(a,b,c)"}])))
    assert len(load_training(file)) == 3
