"""What a model is asked about the records, and the rows that its answers make of them."""

from typing import NamedTuple

from utils.answering import reason_of
from utils.prompter import prompt


class Question(NamedTuple):
    record: int  # index of the record it is about
    text: str  # of the record's input, as much as is asked about
    ids: list[int]  # the prompt, as codec.encode gives it; empty: it could not be made
    reason: str = ""  # why not


def make_questions(codec, template: dict, records: list[dict]) -> list[Question]:
    """One question a record; a record that the tokenizer cannot take has one without ids."""
    return [_question(codec, template, record, index, record["input"]) for index, record in enumerate(records)]


def _question(codec, template: dict, record: dict, index: int, text: str) -> Question:
    try:
        return Question(index, text, codec.encode(prompt(template, record["instruction"], text)))
    except Exception as error:  # noqa: BLE001 - whatever one text makes a tokenizer raise, the others shall be answered
        return Question(index, text, [], reason_of(error))


def make_rows(records: list[dict], questions: list[Question], answers: dict[int, dict]) -> list[dict]:
    """Every record with its `output` and its `finish_reason`: what became of its questions, by their numbers.

    A record whose question has no answer gets an empty output and the reason `error`.
    """
    rows = []
    for number, question in enumerate(questions):
        answer = answers.get(number, {"output": "", "finish_reason": "error"})
        row = {**records[question.record], **{name: answer[name] for name in ("output", "finish_reason")}}
        row.pop("kg", None)  # the right triples of a labelled record: scored, they would pass as predicted
        rows.append(row)
    return rows
