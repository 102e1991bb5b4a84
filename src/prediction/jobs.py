"""A file of records answered by a model that others ask too, through the partial files of prediction.

A job is a folder: records.jsonl, then predictions.json (while it is made, predictions.json.partial), submission.json,
graph/, graph.html, score.json. What ends the process loses nothing: the same job goes on.
"""

import queue
import time
from collections.abc import Callable
from pathlib import Path

from common.errors import UserError
from common.files import to_line, write_lines, write_rows
from data.records import load_records, read_records
from data.sources import find_run, name_run, source_of
from data.submission import convert_record
from data.uploads import labels_of, write_upload
from decoding.answers import Failure
from kg import graph
from kg.breakdown import by_relation
from kg.drawing import as_data, choose_triples, page
from kg.metrics import compare, summarise
from kg.store import let_go, open_graph
from prediction import partial
from prediction.live import Server
from prediction.opening import Opening
from prediction.predicting import Share, Task, finish_file, hold_partial, row_of
from prediction.questions import ask_all

RECORDS, PREDICTIONS, SUBMISSION = "records.jsonl", "predictions.json", "submission.json"
GRAPH, SCORE = "graph.html", "score.json"
MOST_DRAWN = 2000  # triples of the page


class Stopped(Exception):
    """Somebody has stopped the job, or the server is stopping."""


def take_upload(upload: Path, name: str, instruction: str | None, folder: Path) -> int:
    """Make the records of a job out of an upload; how many there are. UserError for what cannot be read."""
    return write_upload(upload, name, instruction, folder / RECORDS)


def run_job(
    plan: Opening, server: Server, window: int, folder: Path, told: Callable[[int, int], None], stop: Callable
) -> dict:
    """Answer the records of a job's folder, or what is left of them, and write what can be had; its score, if any.

    `told(done, questions)` is called as answers come; Stopped is raised once `stop()` says so.
    """
    started, output = time.time(), folder / PREDICTIONS
    if not output.is_file():
        records = load_records(folder / RECORDS, needs=("instruction", "input"))
        questions = ask_all(plan, records, window)
        task = Task(plan, records, questions, str(folder / RECORDS), str(output), window, skip_failed=True)
        with hold_partial(task, 0) as settings:
            share = _answer(server, task, settings | {"batch_size": 1}, told, stop)
            finish_file(task, settings, [share], plan.decided, started)
    return _write_others(folder)


def _answer(server: Server, task: Task, settings: dict, told: Callable, stop: Callable) -> Share:
    """As predicting.answer_share, by asking a server."""
    done = partial.resume_partial(task.output_file, settings)
    numbers = [number for number, one in enumerate(task.questions) if one.ids and number not in done]
    failed, tokens, start, total = {}, 0, time.monotonic(), len(task.questions)
    told(len(done), total)
    came: queue.SimpleQueue = queue.SimpleQueue()
    asked = server.ask(
        [task.questions[number] for number in numbers], lambda index, value: came.put((numbers[index], value)), True
    )
    left = set(numbers)
    try:
        while left:
            if stop():
                raise Stopped
            made = _drain(came)
            stopped = server.ending and any(isinstance(answer, Failure) for _, answer in made)
            for number, answer in made:
                left.discard(number)
                failed |= {number: answer.reason} if isinstance(answer, Failure) else {}
            answers = {number: answer for number, answer in made if not isinstance(answer, Failure)}
            if answers:
                rows = {
                    number: row_of(task.records, task.questions[number], answer, server.rules)
                    for number, answer in answers.items()
                }
                partial.append_answers(task.output_file, rows)
                tokens += sum(answer.tokens for answer in answers.values())
            if stopped:  # behind what came whole beside it
                raise Stopped
            told(total - len(left), total)
    finally:
        server.stop(asked)
    return Share(failed, len(numbers) - len(failed), tokens, time.monotonic() - start, 0.0)


def _drain(came: queue.SimpleQueue) -> list:
    """All that has come, waiting a moment for the first."""
    try:
        made = [came.get(timeout=0.5)]
    except queue.Empty:
        return []
    while not came.empty():
        made.append(came.get())
    return made


def rows_of(folder: Path) -> list[dict]:
    """The predictions of a job that has finished."""
    return read_records(folder / PREDICTIONS)


def _write_others(folder: Path) -> dict:
    """Submission, graph and, where the records have labels, the score of a job's predictions."""
    rows = rows_of(folder)
    made = [convert_record(row)[0] for row in rows]
    write_rows(folder / SUBMISSION, made)
    bring_into(folder, folder / "graph")
    store, _ = open_graph(folder / "graph")
    try:
        triples, more = choose_triples(store, MOST_DRAWN)
        note = f"the {MOST_DRAWN} triples of the entities that stand in most" if more else ""
        write_lines(folder / GRAPH, [page(as_data(store, triples, note))])
    finally:
        del store
        let_go(folder / "graph")
    triples = sum(len(row["kg"]) for row in made)
    gold = labels_of(read_records(folder / RECORDS))
    if gold is None:
        return {"triples": triples}
    compared = compare(list(zip(made, gold, strict=True)))
    score = {**summarise(compared), "by_relation": by_relation(compared)}
    write_lines(folder / SCORE, [to_line(score, indent=2)])
    return {"triples": triples, "score": score}


def bring_into(folder: Path, store: Path, collection: str = "") -> dict:
    """Bring the predictions of a job into a graph; what was counted. `collection` keeps equal ids of files apart."""
    run = find_run(folder / PREDICTIONS)
    sources = [source_of(row) for row in rows_of(folder)]
    if not sources:
        raise UserError("the job has no records")
    return dict(graph.build(store, sources, run, graph.usual_settings(), collection))


def run_name(plan: Opening) -> str:
    """What answers of this model are called in a graph, as prediction's run.json names them."""
    serving = plan.serving
    trained = serving.prefix.folder if serving.prefix else serving.adapter
    return name_run(serving.base, str(trained.resolve()) if trained else "")
