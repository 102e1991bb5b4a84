"""One text asked for triples, and what came of it; for the page, its API and the command line."""

from typing import NamedTuple

from common.errors import UserError
from data.asking import turn
from decoding.answers import Answer, Failure
from decoding.engines import ENGINES
from kg.schema import read_schema
from kg.triples import Triple, parse
from prediction.opening import Opening, open_model, plan_adapter, plan_prefix
from prediction.predicting import choose_drafts, confidence_of, in_order, limit
from prediction.questions import Question, ask_all, choose_window, make_rows
from prediction.texts import find_place
from tokens.lengths import TEXT_WINDOW


class Found(NamedTuple):
    """What a model said about a text."""

    triples: list[Triple]
    confidence: list[float] | None  # of each triple, where it was asked for
    output: str
    finish_reason: str
    failed: list[str]  # why parts of the text have no answer


def plan_texts(model_args, args) -> tuple[Opening, int]:
    """What single texts are answered with, and the tokens of the longest prompt.

    `args`: utils.args_serve.TextArguments.
    """
    if args.ptuning_dir:
        plan = plan_prefix(model_args, args, flags=("ptuning_dir", "model_name_or_path"))
        return plan, plan.max_src_len + len(plan.codec.suffix_ids)
    plan = plan_adapter(model_args, args)
    return plan, choose_short_window(args.window, plan.context, args.max_new_tokens)


def choose_short_window(asked: int | None, context: int | None, max_new_tokens: int) -> int:
    """Tokens of the longest prompt: as asked by --window (`prediction.questions.choose_window`), else TEXT_WINDOW, or
    less where the base's context leaves less.

    UserError where it leaves nothing.
    """
    most = None if context is None else context - max_new_tokens
    if most is not None and most < 1:
        raise UserError(
            f"--max_new_tokens {max_new_tokens} leaves nothing of the base's context of {context} tokens; lower it"
        )
    if asked is not None:
        return choose_window(asked, context, max_new_tokens)
    return min(TEXT_WINDOW, most or TEXT_WINDOW)


def ask_record(plan: Opening, record: dict, window: int) -> list[Question]:
    """The questions about a record; UserError where none can be asked."""
    questions = ask_all(plan, [record], window)
    if not any(question.ids for question in questions):
        raise UserError(questions[0].reason)
    return questions


def read_part(plan: Opening, question: Question, text: str) -> list[Triple]:
    """The triples that an answer, or its beginning, says, head first."""
    found = parse(text, read_schema(question.instruction), question.text)
    return [turn(triple) for triple in found] if plan.asking.tail_first else found


def put_together(plan: Opening, record: dict, questions: list[Question], answers: dict[int, Answer | Failure]) -> Found:
    """What the answers to a record's questions, by their numbers, say together."""
    rows, failed = {}, []
    for number, answer in answers.items():
        if isinstance(answer, Failure):
            failed.append(answer.reason)
            continue
        rows[number] = {"output": answer.text, "finish_reason": answer.finish_reason}
        rows[number] |= confidence_of(answer, record["instruction"], questions[number].text)
    (row,) = make_rows([record], questions, rows, plan.asking)
    triples = parse(row["output"], read_schema(record["instruction"]), record["input"])
    return Found(triples, row.get("confidence"), row["output"], row["finish_reason"], list(dict.fromkeys(failed)))


def extract(plan: Opening, record: dict, window: int) -> Found:
    """Open the model and ask it for one record. UserError when nothing was answered."""
    questions = ask_record(plan, record, window)
    asked = {number: question for number, question in enumerate(questions) if question.ids}
    model = open_model(plan, [question.ids for question in asked.values()])
    order = in_order(asked)
    size = plan.serving.batch_size or min(8, len(order))
    rules = plan.serving.rules._replace(batch_size=size, drafts=choose_drafts(model, plan, size).value)
    limited = limit(plan, dict(enumerate(questions))) if rules.constrain else None
    more, answers = {"limits": limited} if limited else {}, {}
    for made in ENGINES[plan.engine].answers(model, plan.codec, {n: asked[n].ids for n in order}, rules, **more):
        answers |= made
    found = put_together(plan, record, questions, answers)
    if found.failed and not found.output:
        raise UserError(found.failed[0])
    return found


def as_dicts(found: Found, text: str) -> list[dict]:
    """The triples as objects: head, relation, tail, where head and tail first stand in the text ([first character, the
    one behind the last], None: nowhere), whether one was completed, and the confidence where there is one.
    """
    rows = []
    for number, triple in enumerate(found.triples):
        at = {f"{end}_at": find_place(name, text) for end, name in (("head", triple.head), ("tail", triple.tail))}
        row = {**triple._asdict(), **at, "completed": None in at.values()}
        rows.append(row | ({"confidence": found.confidence[number]} if found.confidence else {}))
    return rows
