"""What a model is asked about documents, and what its answers say of each: triples, and where they stand in it."""

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from common.decisions import Decision
from common.errors import UserError, hearing, reason_of, say
from data.answer_form import ask_json
from data.documents import Document
from data.prompts import make_prompt
from data.topics import Topics, pick_topic
from data.windows import window_places
from decoding.answers import Rules
from decoding.engines import ENGINES
from decoding.fast_sizes import MEASURED
from kg.schema import read_schema
from kg.triples import parse
from loading.shape import check_vocabulary
from prediction.feeding import Feed, feeds
from prediction.opening import Opening, open_model
from prediction.predicting import (
    NOTHING_DONE,
    Share,
    answer_questions,
    choose_drafts,
    limit,
    say_drafts,
    size_for_engine,
)
from prediction.questions import Question, ask_all, make_rows

SHARED = "what the memory holds of prompts like those of the first shard; a worker's shards share one run"
ABOUT_A_RUN = ("\nprompts: ", "\ndrafts: ")  # lines of an engine, which nobody would read for each of many shards


class Wanted(NamedTuple):
    """What texts are asked for."""

    instructions: dict[str, str]  # by topic; of one alone, every text gets it
    topics: Topics | None = None  # to choose among several


class Opened(NamedTuple):
    """A model that is ready."""

    plan: Opening
    model: object
    feed: Feed | None  # None: each shard has a run of the engine to itself
    decided: dict[str, Decision]  # with the first questions, for run.json
    deciding: Lock  # held by the shard that chooses rules


class Window(NamedTuple):
    """A stretch of a document that is asked about."""

    place: tuple[int, int]  # its first character, and the one behind its last
    topic: str
    record: int | None  # which of the records asks about it; None: it cannot be asked
    reason: str = ""  # why not


def open_planned(plan: Opening, longest: int) -> Opened:
    """The model of a plan; `longest`: tokens of the longest prompt that it will be asked."""
    model = open_model(plan, [[0] * longest])
    return Opened(plan, model, Feed(plan, model, longest) if feeds(plan, model) else None, {}, Lock())


def answer_documents(
    opened: Opened,
    wanted: Wanted,
    documents: list[Document],
    most: int,
    again: list[dict | None],
    done: dict[int, dict] | None = None,
    keep: Callable = lambda rows: None,
) -> tuple[list[dict], Share]:
    """Of each document its `windows` and `triples`, and what that took. `most`: tokens of a prompt.

    `again`: what an earlier run has found in it, or None; only those windows are asked about that failed then.
    `done`: answers by the number of their question, of an earlier run with the same documents; `keep(rows)` is called
    with each group of new ones.
    """
    plan, done = opened.plan, {} if done is None else done
    records, cut = cut_documents(plan, documents, wanted, most)
    with hearing(printed=False):  # what it says of a file of records, of hundreds of shards nobody would read; what
        questions = ask_all(plan, records, None)  # could not be asked stands in the rows
    kept = keep_answers(records, documents, cut, again)
    left = {number: question for number, question in enumerate(questions) if question.record not in kept}
    asked = {number: question for number, question in left.items() if question.ids}
    check_vocabulary(plan.serving.shape, [question.ids for question in asked.values()])
    share = answer_silently(opened, records, asked, done, keep) if asked else NOTHING_DONE
    reasons = {question.record: question.reason for question in left.values() if not question.ids}
    reasons |= {questions[number].record: reason for number, reason in share.failed.items()}
    rows = [kept.get(number, row) for number, row in enumerate(make_rows(records, questions, done, plan.asking))]
    return [make_row(document, mine, rows, reasons) for document, mine in zip(documents, cut, strict=True)], share


def answer_silently(
    opened: Opened,
    records,
    asked: dict[int, Question],
    done: dict[int, dict],
    keep: Callable = lambda rows: None,
    batch_size: int | None = None,
) -> Share:
    """`predicting.answer_questions` by the plan, but only what is wrong is said; `batch_size`: None: as it pays."""
    model, plan = opened.model, opened.plan
    rules = choose_rules(opened, [question.ids for question in asked.values()], batch_size)
    limits = limit(plan, asked, silent=True) if rules.constrain else None
    answers = opened.feed and opened.feed.answers
    told = []
    try:
        with hearing(printed=False) as told:
            return answer_questions(
                model, plan, records, asked, done, rules, keep, limits, hidden=True, answers=answers
            )
    finally:
        for line in told:
            if not line.startswith(ABOUT_A_RUN):
                say(line)


def choose_rules(opened: Opened, prompts: list, batch_size: int | None) -> Rules:
    """How a shard with these prompts is answered; `batch_size`: as of answer_silently.

    Shards that share a run go by what the first of them chose, for the run has the memory by then. Drafts are those of
    the first in any case.
    """
    model, plan, feed = opened.model, opened.plan, opened.feed
    lengths = [len(ids) for ids in prompts]
    if feed:  # more will come
        lengths, prompts = [feed.guess_length(lengths)] * MEASURED.most, ()
    with opened.deciding:
        if feed and feed.rules:
            return feed.rules
        size, said = choose_size(opened, lengths, prompts, batch_size)
        if "drafts" not in opened.decided:
            drafts = say_drafts(choose_drafts(model, plan, min(size, len(lengths))), plan)
            opened.decided.update(batch_size=said, drafts=drafts)
        rules = plan.serving.rules._replace(batch_size=size, drafts=opened.decided["drafts"].value)
        if feed:
            feed.rules = rules
        return rules


def choose_size(opened: Opened, lengths: list[int], prompts, begun: int | None) -> tuple[int, Decision]:
    """Prompts at a time, and what run.json says of that, which is about all shards; `prompts`: as of size_for_engine;
    `begun`: of the unfinished run that this one goes on with.
    """
    plan, asked = opened.plan, opened.plan.serving.batch_size
    given = begun or asked
    if ENGINES[plan.engine].batch_size is None:
        return given or 1, Decision(given, f"{plan.engine} decides it")
    if given:
        return given, Decision(given, "as asked" if asked else "as the run began")
    size = size_for_engine(opened.model, plan, lengths, prompts)
    if opened.feed:
        return size, Decision(size, SHARED)
    return size, Decision(None, "for each shard what its worker's memory holds")


def cut_documents(
    plan: Opening, documents: list[Document], wanted: Wanted, most: int
) -> tuple[list[dict], list[list[Window]]]:
    """The records to ask, each once, and of each document its windows, which say where their record is.

    Every window leaves room for the longest instruction, for its topic is chosen when its text is known.
    """

    def size(instruction: str, text: str) -> int:
        return len(plan.codec.encode(make_prompt(plan.template, instruction, text)))

    asked = list(wanted.instructions.values())
    if plan.asking.as_json:
        asked = [ask_json({"instruction": instruction})["instruction"] for instruction in asked]
    longest = max(asked, key=lambda instruction: size(instruction, ""))
    known: dict[tuple[str, str], int] = {}
    cut = []
    for document in documents:
        text = document.text.strip()
        begin = document.text.find(text)
        try:
            places = window_places(text, lambda part: size(longest, part) <= most) if text else []
            if places is None:
                raise UserError(f"the instruction leaves no room for any text; give --window clearly more than {most}")
        except Exception as error:  # noqa: BLE001 - whatever a text makes a tokenizer raise, the others can be asked
            cut.append([Window((0, len(document.text)), "", None, reason_of(error))])
            continue
        windows = []
        for start, end in places:
            part = text[start:end]
            topic = choose_topic(wanted, part)
            number = known.setdefault((topic, part), len(known))
            windows.append(Window((begin + start, begin + end), topic, number))
        cut.append(windows)
    records = [
        {"instruction": wanted.instructions[topic], "input": part, **({"cate": topic} if topic else {})}
        for topic, part in known
    ]
    return records, cut


def keep_answers(
    records: list[dict], documents: list[Document], cut: list[list[Window]], again: list[dict | None]
) -> dict[int, dict]:
    """The rows of those records that an earlier run has answered, by their numbers; `again`: as of answer_documents."""
    kept = {}
    for document, windows, found in zip(documents, cut, again, strict=True):
        if found is None:
            continue
        chances = {tuple(one["triple"]): one["confidence"] for one in found["triples"] if "confidence" in one}
        answered = {(*one["place"], one.get("cate", "")): one for one in found["windows"] if "reason" not in one}
        for window in windows:
            made = answered.get((*window.place, window.topic))
            if made is None or window.record is None:
                continue
            record = records[window.record]
            row = {**record, "output": made["output"], "finish_reason": made["finish_reason"]}
            if chances:
                part = document.text[slice(*window.place)]
                row["confidence"] = [
                    chances.get(triple) for triple in parse(row["output"], read_schema(record["instruction"]), part)
                ]
            kept[window.record] = row
    return kept


def choose_topic(wanted: Wanted, text: str) -> str:
    return pick_topic(wanted.topics, text) if wanted.topics else next(iter(wanted.instructions))


def make_row(document: Document, cut: list[Window], rows: list[dict], reasons: dict[int, str]) -> dict:
    """A document's `windows`, and the `triples` that their answers hold, each once, where they stand in its text.

    `rows`: of the records; `reasons`: why some of them failed. A part of a triple that its window's text does not hold
    has no place.
    """
    windows, found = [], {}
    for number, window in enumerate(cut):
        row = {"place": list(window.place), **({"cate": window.topic} if window.topic else {})}
        if window.record is None:
            windows.append({**row, "output": "", "finish_reason": "error", "reason": window.reason})
            continue
        made = rows[window.record]
        row |= {"output": made["output"], "finish_reason": made["finish_reason"]}
        windows.append(row | ({"reason": reasons[window.record]} if window.record in reasons else {}))
        start, end = window.place
        part = document.text[start:end]
        triples = parse(made["output"], read_schema(made["instruction"]), part)
        chances = made.get("confidence") or [None] * len(triples)
        for triple, chance in zip(triples, chances, strict=False):
            if triple not in found:
                found[triple] = {
                    "triple": list(triple),
                    "window": number,
                    "head_place": find_place(triple[0], part, start),
                    "tail_place": find_place(triple[2], part, start),
                }
            if chance is not None:
                found[triple]["confidence"] = max(chance, found[triple].get("confidence", 0))
    return {"windows": windows, "triples": list(found.values())}


def find_place(name: str, part: str, start: int = 0) -> list[int] | None:
    """Where a name first stands in a window that begins at `start`, counted in the document."""
    at = part.find(name) if name else -1
    return None if at < 0 else [start + at, start + at + len(name)]
