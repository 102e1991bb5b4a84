"""What records say, as quads: the triples of each in a graph of its own, and what is known of it beside them.

A source is the answer of one run for one record. Its graph `s:RUN:COLLECTION:ID` holds its triples as they were said;
the graph `kg:sources` its id, topic, run, confidence, finish_reason, text and detail (JSON: a digest of the text, where
each entity stands in it, the relations not asked for). Graphs of sources are never changed by merging.
"""

import hashlib
import json
import math
from typing import NamedTuple

from kg.terms import ENTITY, RELATION, RUN, SOURCES, TERM, encode, identity_text, literal, source_iri

DOUBLE = "http://www.w3.org/2001/XMLSchema#double"


class Run(NamedTuple):
    """Who answered: `name` is what runs are told apart by; empty texts are unknown."""

    name: str
    base: str = ""
    adapter: str = ""
    date: str = ""


class Source(NamedTuple):
    """A record's answer. `triples`: (head, relation, tail), each once; `unasked`: relations that were not asked for;
    `where`: what errors call it, FILE:LINE.
    """

    identity: object
    triples: list[tuple]
    text: str = ""
    topic: str = ""
    confidence: float | None = None
    finish_reason: str = ""
    unasked: tuple[str, ...] = ()
    where: str = ""

    @property
    def name(self) -> str:
        identity = f"id {identity_text(self.identity)}"
        return f"{self.where}: {identity}" if self.where else identity


def places(source: Source) -> dict[str, list[int] | None]:
    """Where heads and tails first stand in the text: [first character, the one behind the last]; None: completed."""
    found = {}
    for head, _, tail in source.triples:
        for name in (head, tail):
            if name not in found:
                start = source.text.find(name) if source.text else -1
                found[name] = [start, start + len(name)] if start >= 0 else None
    return found


def text_digest(text: str) -> str:
    """16 hexadecimal digits that tell one text from another, also where the text itself is not kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def iri_of(source: Source, run: Run, collection: str) -> str:
    return source_iri(run.name, collection, source.identity)


def triple_lines(source: Source, graph: str) -> list[str]:
    """Its triples as lines of N-Quads."""
    end = f" <{graph}> .\n"
    return [
        f"<{ENTITY}{encode(head)}> <{RELATION}{encode(relation)}> <{ENTITY}{encode(tail)}>{end}"
        for head, relation, tail in source.triples
    ]


def detail_lines(source: Source, graph: str, run: Run, collection: str, with_text: bool) -> list[str]:
    """What is known of it, as lines of N-Quads."""
    detail = {"places": places(source), "text": text_digest(source.text) if source.text else ""}
    if source.unasked:
        detail["unasked"] = sorted(source.unasked)
    values = {
        "id": literal(identity_text(source.identity)),
        "run": f"<{RUN}{encode(run.name)}>",
        "detail": literal(json.dumps(detail, ensure_ascii=False, sort_keys=True, separators=(",", ":"))),
    }
    if collection:
        values["collection"] = literal(collection)
    if source.topic:
        values["topic"] = literal(source.topic)
    if source.confidence is not None and math.isfinite(source.confidence):
        values["confidence"] = f'"{source.confidence!r}"^^<{DOUBLE}>'
    if source.finish_reason:
        values["finish_reason"] = literal(source.finish_reason)
    if with_text and source.text:
        values["text"] = literal(source.text)
    return [f"<{graph}> <{TERM}{name}> {value} <{SOURCES}> .\n" for name, value in values.items()]


def run_lines(run: Run) -> list[str]:
    """What is known of a run, as lines of N-Quads."""
    known = {"name": run.name, "base": run.base, "adapter": run.adapter, "date": run.date}
    return [
        f"<{RUN}{encode(run.name)}> <{TERM}{key}> {literal(text)} <{SOURCES}> .\n"
        for key, text in known.items()
        if text
    ]


def detail_of(quads) -> dict:
    """The detail of a source, out of the quads that are known of it."""
    found = (json.loads(quad.object.value) for quad in quads if quad.predicate.value == f"{TERM}detail")
    return next(found, {})
