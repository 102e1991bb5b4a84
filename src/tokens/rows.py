"""A record as one row of tokens within its limits."""

from typing import NamedTuple

from common.labels import IGNORED
from data.prompts import make_answer, make_prompt


class Limits(NamedTuple):
    """Most tokens of a training row; None: any number."""

    row: int | None  # all of it
    prompt: int | None = None
    answer: int | None = None  # with its eos


class Row(NamedTuple):
    """A training row: ids and labels of equal length (both empty: the record does not fit)."""

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int  # of the whole record
    answer_tokens: int  # of the whole record, eos included
    cut: bool  # the text lost its end
    answer_cut: bool  # the answer lost its end, and eos is not learnt

    @property
    def whole(self) -> int:
        return self.prompt_tokens + self.answer_tokens


class Fitted(NamedTuple):
    """A record within its limits."""

    text: str | None  # as much of its text as fits; None: not even its first character does
    prompt: list[int]
    answer: list[int]  # whole, with eos
    prompt_tokens: int  # of the whole record
    answer_tokens: int


def fit_record(codec, template: dict, record: dict, limits: Limits) -> Fitted:
    """The longest beginning of a record's text with which prompt and answer keep to `limits`.

    The answer is only counted here: as far as its own limit, if it has one.
    """

    def encode(length: int) -> tuple[list[int], list[int]]:
        pieces = make_prompt(template, record["instruction"], record["input"][:length])
        start, answer = codec.encode_pair(pieces, make_answer(template, record["output"]))
        return start, [*answer, codec.eos_id]

    def fits(start: list[int], answer: list[int]) -> bool:
        size = len(start) + len(answer[: limits.answer])
        return len(start) <= (limits.prompt or size) and size <= (limits.row or size)

    text = record["input"]
    start, answer = encode(len(text))
    whole = len(start), len(answer)
    if fits(start, answer):
        return Fitted(text, start, answer, *whole)
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(*encode(middle)) else (low, middle - 1)
    return Fitted(text[:low], *encode(low), *whole) if low else Fitted(None, [], [], *whole)


def encode_row(codec, template: dict, record: dict, limits: Limits, train_on_inputs: bool = False) -> Row:
    """A record as prompt + answer + eos within `limits`; empty when there is no room for its text.

    A text that is too long loses its end. The answer is never cut for the prompt's or the row's limit, only for its
    own. Labels are IGNORED on the prompt unless `train_on_inputs`.
    """
    fitted = fit_record(codec, template, record, limits)
    start, answer = fitted.prompt, fitted.answer
    ids = start + answer[: limits.answer]
    return Row(
        ids,
        list(ids) if train_on_inputs else [IGNORED] * len(start) + ids[len(start) :],
        fitted.prompt_tokens,
        fitted.answer_tokens,
        cut=fitted.text is not None and len(fitted.text) < len(record["input"]),
        answer_cut=limits.answer is not None and len(answer) > limits.answer,
    )
