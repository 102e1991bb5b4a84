"""What people say of triples: verdicts kept line by line, training records made of them, and the graph put right.

A verdict file holds, line by line and never changed, what was said about the triples of one text. Of one text and
triple the last verdict counts. A text of which every triple was judged becomes a training record.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from common.errors import UserError
from common.files import to_line, write_rows
from kg.entities import entity, find, plain
from kg.evidence import Run, Source, detail_of, text_digest
from kg.graph import bring, usual_settings
from kg.objects import NAN
from kg.queries import source
from kg.store import Settings, change_graph, scratch_in
from kg.terms import RELATION, RUN, SOURCE, SOURCES, TERM, decode, encode, relation_iri
from kg.triples import render
from kg.wordings import ask_for

VERDICTS = ("accept", "reject", "correct", "add")
NAME = "corrections"  # of the run that judged triples belong to


def append_verdicts(path: str | Path, said: dict) -> None:
    """Add a line: text, topic, relations, entities, wording, complete (whether every triple of it is judged) and
    triples, each [verdict, [head, relation, tail], [head, relation, tail] it shall be, or null].
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)  # half a line is left of a process that was killed
        file.write(to_line(said).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_verdicts(path: str | Path) -> dict[str, dict]:
    """Text -> what was said of it last, its `triples` as {triple: what it shall be, None: nothing}."""
    texts: dict[str, dict] = {}
    if not Path(path).is_file():
        return texts
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                continue  # half of one
            said = json.loads(line)
            before = texts.get(said["text"], {"triples": {}, "relations": []})
            judged = dict(before["triples"])
            for verdict, old, new in said["triples"]:
                judged[tuple(old)] = None if verdict == "reject" else tuple(new or old)
            names = list(dict.fromkeys([*before["relations"], *said["relations"]]))
            texts[said["text"]] = {**said, "triples": judged, "relations": names}
    return texts


def right_triples(said: dict) -> list[tuple]:
    """The triples of a text that are right, each once."""
    return list(dict.fromkeys(triple for triple in said["triples"].values() if triple))


def write_corrections(verdicts: str | Path, path: str | Path) -> int:
    """Write the training records that the verdicts make, as --train_file reads them; how many there are.

    A record asks for the relations that its text was asked for, however many they are by now, and for those that were
    added; where nobody said which, for those of the triples that were judged.
    """
    rows = []
    for text, said in read_verdicts(verdicts).items():
        if not said["complete"] or not text:
            continue
        kg = right_triples(said)
        named = [*said["relations"], *(triple[1] for triple in kg)] or [triple[1] for triple in said["triples"]]
        names = list(dict.fromkeys(named))
        rows.append(
            {
                "id": f"correction {text_digest(text)}",
                "cate": said["topic"],
                "instruction": ask_for(names, said["wording"], said["entities"], most=len(names)),
                "input": text,
                "output": render(kg) or NAN,
                "kg": [list(triple) for triple in kg],
            }
        )
    write_rows(path, rows)
    return len(rows)


def put_right(directory: str | Path, text: str, topic: str, right: list[tuple], wrong: Iterable[tuple]) -> None:
    """Bring the right triples of a text into a graph as a source of their own, and take the wrong ones out
    of all sources with that text.
    """
    wrong = set(wrong)

    def work(store, settings: Settings):
        own = Source(f"correction {text_digest(text)}", right, text, topic)
        with scratch_in(directory) as folder:
            bring(store, [own], Run(NAME), settings, Path(folder))
            for graph in _sources_with(store, text, wrong):
                if graph.startswith(f"{SOURCE}{encode(NAME)}:"):
                    continue
                run, collection, one = read_source(store, graph)
                left = [triple for triple in one.triples if triple not in wrong]
                kept = one._replace(triples=left, text=text)  # of which the graph may hold but a digest
                bring(store, [kept], run, settings, Path(folder), collection, with_text="text" in source(store, graph))
        return None, settings

    change_graph(directory, "--store", usual_settings(), work)


def _sources_with(store, text: str, triples: Iterable[tuple]) -> list[str]:
    """The graphs of sources about a text that say one of the triples."""
    found = set()
    for head, relation, tail in triples:
        for quad in find(store, entity(head), relation_iri(relation), entity(tail)):
            graph = getattr(quad.graph_name, "value", "")
            if graph.startswith(SOURCE):
                found.add(graph)
    digest = text_digest(text)
    return sorted(g for g in found if detail_of(find(store, g, None, None, SOURCES)).get("text") == digest)


def read_source(store, graph: str) -> tuple[Run, str, Source]:
    """A source as it was brought in: its run, its collection, itself. UserError where there is none."""
    known = source(store, graph)
    if not known:
        raise UserError("no such record is in the graph; it may have been replaced")
    triples = sorted(
        (plain(quad.subject.value), decode(quad.predicate.value.removeprefix(RELATION)), plain(quad.object.value))
        for quad in find(store, None, None, None, graph)
        if quad.predicate.value.startswith(RELATION)
    )
    about = find(store, f"{RUN}{encode(known['run'])}", None, None, SOURCES)
    run = {quad.predicate.value.removeprefix(TERM): quad.object.value for quad in about}
    detail = known.get("detail", {})
    one = Source(
        known["id"],
        triples,
        known.get("text", ""),
        known.get("topic", ""),
        known.get("confidence"),
        known.get("finish_reason", ""),
        tuple(detail.get("unasked", ())),
    )
    return Run(**{"name": known["run"]} | run), known.get("collection", ""), one
