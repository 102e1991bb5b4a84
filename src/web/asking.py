"""A text asked for triples: what the model says is passed on as it comes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from common.errors import UserError, reason_of
from kg.wordings import ask_for
from prediction.extracting import Found, as_dicts, ask_record, put_together, read_part
from prediction.live import Server
from prediction.opening import Opening

QUIET = 10.0  # seconds without a word, after which a line is sent that only keeps the connection


@dataclass(frozen=True)
class Model:
    """A model that is asked."""

    plan: Opening
    server: Server
    window: int  # tokens of a prompt
    max_text: int  # characters
    topics: dict  # topic -> {"relations": […], "entities": […]}


def make_record(model: Model, question) -> dict:
    """The record that a question (forms.Question) asks; UserError for one that cannot be asked."""
    if not question.text.strip():
        raise UserError("the text is empty")
    entities = (model.topics.get(question.topic) or {}).get("entities", [])
    instruction = ask_for(question.relations, question.wording, entities)
    return {"instruction": instruction, "input": question.text, "cate": question.topic}


async def answer(model: Model, record: dict) -> AsyncIterator[tuple[str, dict]]:
    """(event, data) of an answer: start, then text and triples as they come and part as each part ends, then done.

    Closed before its end, it stops the model. UserError when nothing could be answered, Busy when too many ask.
    """
    started, loop, wake = time.time(), asyncio.get_running_loop(), asyncio.Event()
    questions = await asyncio.to_thread(ask_record, model.plan, record, model.window)
    latest: dict[int, object] = {}  # of each question; so a reader who is slow holds little

    def told(index: int, value) -> None:
        latest[index] = value
        try:
            loop.call_soon_threadsafe(wake.set)
        except RuntimeError:  # the loop has ended
            return

    asked = model.server.ask(questions, told)
    said, answers, seen = {}, {}, {}
    try:
        yield "start", {"parts": len(questions)}
        while len(answers) < len(questions):
            try:
                await asyncio.wait_for(wake.wait(), QUIET)
            except asyncio.TimeoutError:
                yield "wait", {"waiting": model.server.count_waiting()}
                continue
            wake.clear()
            for index in list(latest):
                value = latest.pop(index)
                ended = not isinstance(value, str)
                if ended:
                    answers[index] = value
                text = value if not ended else getattr(value, "text", said.get(index, ""))
                for event in _changes(model, questions[index], index, text, said, seen):
                    yield event
                if ended:
                    yield "part", {"part": index, "done": len(answers), "parts": len(questions)}
        found = put_together(model.plan, record, questions, answers)
        if found.failed and not found.output:
            raise UserError(found.failed[0])
        yield "done", describe(found, record["input"], len(questions), time.time() - started)
    finally:
        model.server.stop(asked)


def _changes(model: Model, question, index: int, text: str, said: dict, seen: dict):
    """What a part of the answer says beyond what it `said`, and triples that were not `seen`."""
    before = said.get(index, "")
    if text == before:
        return
    said[index] = text
    grown = text.startswith(before)
    yield "text", {"part": index, "text": text[len(before) :] if grown else text, "whole": not grown}
    if any(close in text[len(before) if grown else 0 :] for close in ")）]】}"):
        new = [triple for triple in read_part(model.plan, question, text) if triple not in seen]
        seen.update(dict.fromkeys(new))
        if new:
            yield "triples", {"part": index, "triples": [list(triple) for triple in new]}


def describe(found: Found, text: str, parts: int, seconds: float) -> dict:
    """The answer as forms.Answer has it."""
    return {
        "triples": as_dicts(found, text),
        "output": found.output,
        "finish_reason": found.finish_reason,
        "parts": parts,
        "warnings": found.failed,
        "seconds": round(seconds, 2),
    }


async def as_events(events: AsyncIterator[tuple[str, dict]], first: tuple[str, dict]) -> AsyncIterator[str]:
    """Server-sent events; an error ends them as the event error."""
    try:
        yield _event(*first)
        async for name, data in events:
            yield _event(name, data)
    except UserError as error:
        yield _event("error", {"detail": str(error)})
    except Exception as error:  # noqa: BLE001 - the stream has begun: nobody else can say it
        yield _event("error", {"detail": reason_of(error)})
    finally:
        await events.aclose()


def _event(name: str, data: dict) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


async def last_of(events: AsyncIterator[tuple[str, dict]], gone) -> dict | None:
    """The data of the event done; None, the model stopped, once `gone()` says that nobody waits for it."""
    ended = asyncio.ensure_future(_last(events))
    try:
        while not ended.done():
            await asyncio.wait({ended}, timeout=1.0)
            if not ended.done() and await gone():
                return None
        return ended.result()
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        await events.aclose()


async def _last(events) -> dict:
    last: dict = {}
    async for event in events:
        last = event[1]
    return last
