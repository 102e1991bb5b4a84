"""What a model is asked about the records, and the rows that its answers make of them."""

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from common.errors import UserError, reason_of, say
from data.asking import PLAINLY, Asking, ask_all_votes, merge_answers, turn
from data.prompts import make_prompt
from data.records import name_of
from data.sources import WORST
from data.windows import windows
from kg.permitted import BOUND, Asked, ask
from kg.schema import read_schema
from kg.triples import parse, render
from kg.votes import count_votes, write_scored
from prediction.opening import Opening
from tokens.codec import why_too_long
from tokens.ptuning_rows import encode_question

# Fields of a record that its row has anew, or not at all: the right triples of a labelled one, which would pass as
# predicted, and what an earlier prediction said of its own answers.
NOT_KEPT = ("kg", "confidence", "windows", "schema_parts")


class Question(NamedTuple):
    """What a model is asked: a record, or a window of its text, or some of its relations, or both."""

    record: int  # index of the record it is about
    text: str  # of the record's input, as much as is asked about
    ids: list[int]  # the prompt, as codec.encode gives it; empty: it could not be made
    reason: str = ""  # why not
    instruction: str = ""  # which relations are asked for
    part: int = 0  # of the record's relations
    vote: int = 0  # which time it is that the record is asked


def make_questions(
    records: list[dict],
    encode: Callable,
    fits: Callable | None = None,
    limit: str = "--window",
    context: int | None = None,
    asking: Asking = PLAINLY,
) -> list[Question]:
    """One question a record, or, with `fits`, one for each window that its text is split into; as many again for each
    part of its relations and each vote that `asking` makes.

    `encode(record)` is the prompt's ids, `fits(record)` whether it is short enough. A record whose prompt cannot be
    made, or fills the base's `context` (tokens; None: no limit), has a question without ids. `limit`: the flag that
    says how long a prompt may be.
    """
    questions, advice = [], "--window splits its text"
    if fits or limit != "--window":
        advice = f"give a smaller {limit}"
    votes = ask_all_votes(records, asking)
    for index, vote, number, record in [
        (index, vote, number, part)
        for index, mine in enumerate(votes)
        for vote, parts in enumerate(mine)
        for number, part in enumerate(parts)
    ]:
        of = {"instruction": record["instruction"], "part": number, "vote": vote}
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
                questions.append(Question(index, text, [] if reason else ids, reason, **of))
        except Exception as error:  # noqa: BLE001 - whatever a text makes a tokenizer raise, the others can be answered
            questions.append(Question(index, record["input"], [], reason_of(error), **of))
    say_unasked(records, questions)
    say_several(len(records), questions)
    return questions


def say_several(records: int, questions: list[Question]) -> None:
    """How many texts are asked about in windows, and how many lists of relations in parts."""
    texts, lists = count_windows(questions), Counter({one.record: one.part + 1 for one in questions})
    for what, name, counts in (("windows", "texts", texts), ("schema_batch", "lists of relations", lists)):
        several = [count for count in counts.values() if count > 1]
        if several:
            say(f"{what}: {len(several)} of {records} {name} are asked about in {sum(several)} parts")


def count_windows(questions: list[Question]) -> Counter:
    """Number of a record -> windows of its text; of several parts of its relations, those of the one with most."""
    counts: Counter = Counter()
    of_part = Counter((question.record, question.part, question.vote) for question in questions)
    for (record, _, _), count in of_part.items():
        counts[record] = max(counts[record], count)
    return counts


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


def permit(plan: Opening, questions: dict[int, Question], silent: bool = False) -> dict[int, Asked]:
    """What the answers to questions may hold, by the questions' numbers (--constrain).

    A text stands as it is, and as the tokenizer gives it back, which is what a model sees and copies. How many records
    --constrain_exempt frees is said, unless `silent`.
    """
    rules, codec, found = plan.serving.rules, plan.codec, {}
    exempt, free = rules.constrain_exempt and re.compile(rules.constrain_exempt), set()
    for number, question in questions.items():
        if not question.ids:
            continue
        exempted = exempt and exempt.search(question.instruction)
        free |= {question.record} if exempted else set()
        bound, text = "relations" if exempted else rules.constrain, question.text
        spelt = codec.decode(codec.text_ids(text)).strip() if any(BOUND[bound]) else None
        found[number] = ask(read_schema(question.instruction), text, bound, spelt, plan.asking.tail_first)
    if exempt and not silent:
        count = len({question.record for question in questions.values()})
        say(f"constrain_exempt: {len(free)} of {count} records may name what is not in their text")
    return found


def make_rows(
    records: list[dict], questions: list[Question], answers: dict[int, dict], asking: Asking = PLAINLY
) -> list[dict]:
    """Every record with its `output` and its `finish_reason`: what became of its questions, by their numbers.

    A question without an answer counts as an empty one that ended with `error`. The triples of several windows are
    merged in order, each once; such a record also says how many `windows` it had. Those of several parts of the
    record's relations are merged in the order of its own list; it says how many `schema_parts` it had. Of several
    votes the triples are kept that enough of them have, with the share of the votes as their `confidence`; that of one
    vote is what `answers` say of it, if anything. Triples that were answered tail first stand head first.
    """
    windows = count_windows(questions)
    of_record = [[] for _ in records]
    for number, question in enumerate(questions):
        of_record[question.record].append((question, answers.get(number, {"output": "", "finish_reason": "error"})))
    rows = []
    for index, (record, asked) in enumerate(zip(records, of_record, strict=True)):
        parts, reason = 1 + asked[-1][0].part, min((answer["finish_reason"] for _, answer in asked), key=WORST.index)
        kept = {name: value for name, value in record.items() if name not in NOT_KEPT}
        row = {**kept, "output": asked[0][1]["output"], "finish_reason": reason}
        if len(asked) > 1 or asking.votes > 1 or asking.tail_first:
            row |= merge(record, asked, asking)
        elif "confidence" in asked[0][1]:
            row["confidence"] = asked[0][1]["confidence"]
        row |= {"windows": windows[index]} if windows[index] > 1 else {}
        row |= {"schema_parts": parts} if parts > 1 else {}
        rows.append(row)
    return rows


def merge(record: dict, asked: list[tuple[Question, dict]], asking: Asking) -> dict:
    """The output, and the confidence where there is one, that several questions about a record give together."""
    votes: list[list[tuple[Question, dict]]] = [[] for _ in range(1 + asked[-1][0].vote)]
    for question, answer in asked:
        votes[question.vote].append((question, answer))
    in_list_order = asked[-1][0].part > 0
    found = [
        merge_answers(record, [(one.text, made["output"]) for one, made in vote], in_list_order, asking.tail_first)
        for vote in votes
    ]
    names = read_schema(record["instruction"])
    if asking.votes > 1:
        output, _, confidence = write_scored(count_votes(found, asking.share), names, record["input"])
        return {"output": output, "confidence": confidence}
    if not any("confidence" in answer for _, answer in asked):
        return {"output": render(found[0])}
    known = {}
    for question, answer in asked:
        triples = parse(answer["output"], names, question.text)
        for triple, chance in zip(triples, answer.get("confidence", ()), strict=False):
            triple = turn(triple) if asking.tail_first else triple
            known[triple] = max(chance, known.get(triple, 0))
    output, _, confidence = write_scored(
        [(triple, known.get(triple, 0)) for triple in found[0]], names, record["input"]
    )
    return {"output": output, "confidence": confidence}


def ask_all(plan: Opening, records: list[dict], window: int | None) -> list[Question]:
    """The questions about all records; texts too long for `window` (--window) are split into several."""
    codec, template, serving = plan.codec, plan.template, plan.serving
    if plan.max_src_len is not None:
        split = window is not None
        return ask_cut(codec, template, records, plan.max_src_len, split, plan.context, plan.asking)
    most = choose_window(window, plan.context, serving.rules.max_new_tokens)

    def encode(record: dict) -> list[int]:
        return codec.encode(make_prompt(template, record["instruction"], record["input"]))

    fits = most and (lambda record: len(encode(record)) <= most)
    return make_questions(records, encode, fits, context=plan.context, asking=plan.asking)


def ask_cut(
    codec,
    template: dict,
    records: list[dict],
    max_src_len: int,
    split: bool = False,
    context: int | None = None,
    asking: Asking = PLAINLY,
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

    questions = make_questions(records, encode, fits if split else None, "--max_src_len", context, asking)
    if shortened:
        say(
            f"warning: {shortened} of {len(questions)} texts lost their end to fit --max_src_len {max_src_len}; "
            "--window splits them instead"
        )
    return questions
