"""Records as P-Tuning's rows of tokens. The question (instruction and text) keeps to --max_src_len, the answer to the
rest of --max_len; a text that is too long loses its end, an instruction never does.

A family whose codec ends a prompt with tokens of its own (`suffix_ids`: ChatGLM's [gMASK] <sop>) has rows
of layout A, put together by token count; the rows of all others are their prompt, the answer and eos.
"""

from typing import NamedTuple

from common.labels import IGNORED
from tokens.rows import Limits, encode_row, fit_record


class Row(NamedTuple):
    """A training row; ids and labels are empty when the record does not fit."""

    input_ids: list[int]
    labels: list[int]
    cut: bool  # the text lost its end
    answer_cut: bool  # the answer lost its end, and so its end-of-answer token
    needs: int  # the --max_len with which the answer is whole
    needs_source: int  # the --max_src_len with which the question is whole


def layout_a(
    instruction_ids: list[int],
    input_ids: list[int],
    output_ids: list[int],
    specials: tuple[int, ...],
    max_len: int,
    max_src_len: int,
) -> Row:
    """instruction + text + [gMASK] <sop> + answer + <eop>; `specials` are these three.

    The labels begin with <sop>, which is predicted at [gMASK].
    """
    *between, end = specials
    needs, needs_source = max_src_len + 3 + len(output_ids), len(instruction_ids) + len(input_ids)
    question = source_a(instruction_ids, input_ids, max_src_len)
    if question is None:
        return Row([], [], False, False, needs, needs_source)
    most = max_len - max_src_len - 3
    answer = output_ids[:most] if len(output_ids) > most else [*output_ids, end]
    ids = [*question, *between, *answer]
    start = len(question) + len(between) - 1
    labels = [IGNORED] * start + ids[start:]
    return Row(ids, labels, len(question) < needs_source, len(output_ids) > most, needs, needs_source)


def source_a(instruction_ids: list[int], input_ids: list[int], max_src_len: int) -> list[int] | None:
    """The question of layout A within `max_src_len`; None when the instruction alone is longer."""
    room = max_src_len - len(instruction_ids)
    return None if room < 0 else [*instruction_ids, *input_ids[:room]]


def encode_record(codec, template: dict, record: dict, max_len: int, max_src_len: int) -> Row:
    """A record as a row, in the layout of its family."""
    if codec.suffix_ids:
        texts = (codec.text_ids(record[name]) for name in ("instruction", "input", "output"))
        return layout_a(*texts, (*codec.suffix_ids, codec.eos_id), max_len, max_src_len)
    row = encode_row(codec, template, record, Limits(max_len, max_src_len))
    return Row(row.input_ids, row.labels, row.cut, False, row.whole, row.prompt_tokens)


def encode_question(codec, template: dict, record: dict, max_src_len: int) -> tuple[list[int] | None, bool]:
    """The ids that an answer is predicted from, None if the instruction is too long; and whether the text was cut."""
    if codec.suffix_ids:
        parts = [codec.text_ids(record[name]) for name in ("instruction", "input")]
        ids = source_a(*parts, max_src_len)
        return (None, False) if ids is None else ([*ids, *codec.suffix_ids], len(ids) < sum(map(len, parts)))
    fitted = fit_record(codec, template, {**record, "output": ""}, Limits(None, max_src_len))
    return fitted.prompt or None, fitted.text is not None and fitted.text != record["input"]
