"""What a model is asked about the records, and the rows that its answers make of them."""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from common.errors import UserError, reason_of, say
from data.prompts import make_prompt
from data.records import name_of
from data.windows import windows
from kg import triples
from kg.permitted import BOUND, Asked, ask
from kg.schema import read_schema
from prediction.opening import Opening
from tokens.codec import why_too_long
from tokens.ptuning_rows import encode_question

WORST = ("error", "length", "loop", "eos")  # finish reasons: of several windows, the first that one of them has


class Question(NamedTuple):
    """What a model is asked: a record, or a window of its text."""

    record: int  # index of the record it is about
    text: str  # of the record's input, as much as is asked about
    ids: list[int]  # the prompt, as codec.encode gives it; empty: it could not be made
    reason: str = ""  # why not


def make_questions(
    records: list[dict],
    encode: Callable,
    fits: Callable | None = None,
    limit: str = "--window",
    context: int | None = None,
) -> list[Question]:
    """One question a record, or, with `fits`, one for each window that its text is split into.

    `encode(record)` is the prompt's ids, `fits(record)` whether it is short enough. A record whose prompt cannot be
    made, or fills the base's `context` (tokens; None: no limit), has a question without ids. `limit`: the flag that
    says how long a prompt may be.
    """
    questions, advice = [], "--window splits its text"
    if fits or limit != "--window":
        advice = f"give a smaller {limit}"
    for index, record in enumerate(records):
        try:
            texts = split_text(record, fits)
            if texts is None:
                size = len(encode({**record, "input": ""}))
                raise UserError(
                    f"its instruction leaves no room for any text in a window: without one the prompt has {size} "
                    f"tokens; give {limit} clearly more"
                )
            for text in texts:
                ids = encode({**record, "input": text})
                reason = "" if ids else "its prompt is empty"
                if too_long := why_too_long(ids, context):
                    alone = why_too_long(encode({**record, "input": ""}), context)
                    reason = f"{too_long}; {'its instruction alone is too long' if alone else advice}"
                questions.append(Question(index, text, [] if reason else ids, reason))
        except Exception as error:  # noqa: BLE001 - whatever a text makes a tokenizer raise, the others can be answered
            questions.append(Question(index, record["input"], [], reason_of(error)))
    say_unasked(records, questions)
    if len(questions) > len(records):
        several = sum(count > 1 for count in Counter(question.record for question in questions).values())
        parts = len(questions) - len(records) + several
        say(f"windows: {several} of {len(records)} texts are asked about in {parts} parts")
    return questions


def say_unasked(records: list[dict], questions: list[Question]) -> None:
    """One line, before anything is computed, about records that fail already."""
    unasked = [question for question in questions if not question.ids]
    if unasked:
        first, count = unasked[0], len({question.record for question in unasked})
        name = name_of(records[first.record], first.record)
        say(f"warning: {count} of {len(records)} records cannot be asked (the first: {name}: {first.reason})")


def split_text(record: dict, fits: Callable | None) -> list[str] | None:
    """The parts of its text to ask about; None when there is no room for any."""
    text = record["input"]
    return windows(text, lambda part: fits({**record, "input": part})) if fits else [text]


def choose_window(asked: int | None, context: int | None, max_new_tokens: int) -> int | None:
    """Most tokens of a prompt before its text is split; None: texts are never split.

    `asked`: --window, of which 0 means what the base's `context` (tokens; None: not known) leaves for a prompt.
    """
    if asked != 0:
        return asked
    if context is None:
        raise UserError("--window: this base has no limit in its config.json; give one, e.g. --window 1024")
    if context <= max_new_tokens:
        raise UserError(
            f"--window: --max_new_tokens {max_new_tokens} leaves nothing of the base's context of {context} "
            "tokens; lower it, or give --window N"
        )
    say(f"window: {context - max_new_tokens} tokens of prompt (context {context} less --max_new_tokens)")
    return context - max_new_tokens


def permit(plan: Opening, records: list[dict], questions: list[Question]) -> dict[int, Asked]:
    """What the answers to questions may hold, by the questions' numbers (--constrain).

    A text stands as it is, and as the tokenizer gives it back, which is what a model sees and copies.
    """
    rules, codec, found = plan.serving.rules, plan.codec, {}
    exempt = rules.constrain_exempt and re.compile(rules.constrain_exempt)
    for number, (index, text, ids, _) in enumerate(questions):
        if not ids:
            continue
        instruction, bound = records[index]["instruction"], rules.constrain
        if exempt and exempt.search(instruction):
            bound = "relations"
        spelt = codec.decode(codec.text_ids(text)).strip() if any(BOUND[bound]) else None
        found[number] = ask(read_schema(instruction), text, bound, spelt)
    return found


def make_rows(records: list[dict], questions: list[Question], answers: dict[int, dict]) -> list[dict]:
    """Every record with its `output` and its `finish_reason`: what became of its questions, by their numbers.

    A question without an answer counts as an empty one that ended with `error`. The triples of several windows are
    merged in order, each once; such a record also says how many `windows` it had.
    """
    of_record = [[] for _ in records]
    for number, question in enumerate(questions):
        of_record[question.record].append((question, answers.get(number, {"output": "", "finish_reason": "error"})))
    rows = []
    for record, asked in zip(records, of_record, strict=True):
        output, reason = asked[0][1]["output"], asked[0][1]["finish_reason"]
        if len(asked) > 1:
            schema = read_schema(record["instruction"])
            found = [
                one for question, answer in asked for one in triples.parse(answer["output"], schema, question.text)
            ]
            output = triples.render(dict.fromkeys(found))
            reason = min((answer["finish_reason"] for _, answer in asked), key=WORST.index)
        row = {**record, "output": output, "finish_reason": reason}
        if len(asked) > 1:
            row["windows"] = len(asked)
        row.pop("kg", None)  # the right triples of a labelled record: scored, they would pass as predicted
        rows.append(row)
    return rows


def ask_all(plan: Opening, records: list[dict], window: int | None) -> list[Question]:
    """The questions about all records; texts too long for `window` (--window) are split into several."""
    codec, template, serving = plan.codec, plan.template, plan.serving
    if plan.max_src_len is not None:
        return ask_cut(codec, template, records, plan.max_src_len, window is not None, plan.context)
    most = choose_window(window, plan.context, serving.rules.max_new_tokens)

    def encode(record: dict) -> list[int]:
        return codec.encode(make_prompt(template, record["instruction"], record["input"]))

    fits = most and (lambda record: len(encode(record)) <= most)
    return make_questions(records, encode, fits, context=plan.context)


def ask_cut(
    codec, template: dict, records: list[dict], max_src_len: int, split: bool = False, context: int | None = None
) -> list[Question]:
    """P-Tuning's questions; a text that is too long is `split` into several, or cut, which is said."""
    shortened = 0

    def encode(record: dict) -> list[int]:
        nonlocal shortened
        ids, cut = encode_question(codec, template, record, max_src_len)
        if ids is None:
            raise UserError(f"its instruction is longer than --max_src_len {max_src_len}; raise it")
        shortened += cut
        return ids

    def fits(record: dict) -> bool:
        ids, cut = encode_question(codec, template, record, max_src_len)
        return ids is not None and not cut

    questions = make_questions(records, encode, fits if split else None, "--max_src_len", context)
    if shortened:
        say(
            f"warning: {shortened} of {len(records)} texts lost their end to fit --max_src_len {max_src_len}; "
            "--window splits them instead"
        )
    return questions
