"""Questions to a graph: SPARQL, what is around an entity, how two are connected, where a triple comes from.

All take an open store (kg.store.open_graph) and answer with names, lists and dicts, about the merged triples.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from kg.entities import FORM, IS, SAME, entity, find, mentions_of, plain
from kg.merging import normal_form
from kg.store import oxigraph
from kg.terms import MERGES, PREFIXES, SOURCES, TERM, encode, literal, name_of

Triple = tuple[str, str, str]  # IRIs
MOST_HOPS = 12  # of a path that is looked for


class Answer(NamedTuple):
    """columns and rows of a SELECT; of CONSTRUCT and DESCRIBE head, relation, tail; of ASK one cell, true or false."""

    columns: list[str]
    rows: Iterator[list]


def query(store, sparql: str, as_iris: bool = False) -> Answer:
    """Ask in SPARQL; UserError for what is none, or, perhaps while rows are read, for what cannot be answered. The
    prefixes e: r: s: run: kg: rdfs: xsd: are known.

    IRIs become the names they stand for, unless `as_iris`; cells without a value are None. Rows are made as they are
    read. Nothing can be changed by a query.
    """
    ox = oxigraph()
    common = {"rdfs": "http://www.w3.org/2000/01/rdf-schema#", "xsd": "http://www.w3.org/2001/XMLSchema#"}
    with _answering(sparql):
        found = store.query(sparql, prefixes=PREFIXES | common)
    if isinstance(found, ox.QueryBoolean):
        return Answer(["answer"], iter([[bool(found)]]))
    if isinstance(found, ox.QueryTriples):
        columns, rows = ["head", "relation", "tail"], ((t.subject, t.predicate, t.object) for t in found)
    else:
        columns, rows = [variable.value for variable in found.variables], found

    def named() -> Iterator[list]:
        with _answering(sparql):
            for row in rows:
                yield [_said(value, as_iris) for value in row]

    return Answer(columns, named())


@contextmanager
def _answering(sparql: str):
    try:
        yield
    except SyntaxError as error:
        why = str(error.msg or error).split(": expected one of")[0]  # the rest is a screen of grammar
        raise UserError(f"--sparql: not a SPARQL query ({why}): {sparql.strip()[:60]!r}") from None
    except (RuntimeError, OSError) as error:  # of a function that is not SPARQL's own; of a SERVICE elsewhere
        raise UserError(f"--sparql: the query cannot be answered ({error}): {sparql.strip()[:60]!r}") from None


def read_sparql(text: str) -> str:
    """The text of a query, or what is in the file that the text names."""
    is_name = len(text) < 4000 and "\n" not in text and "{" not in text
    if not is_name:
        return text
    try:
        return Path(text).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "is a folder" if isinstance(error, IsADirectoryError) else "no such file"
        raise UserError(f"--sparql {text}: {what}, and no query, which would have {{ }}") from None
    except UnicodeDecodeError:
        raise UserError(f"--sparql {text}: not UTF-8; save it as UTF-8") from None


def _said(term, as_iris: bool) -> str | None:
    if term is None:
        return None
    if hasattr(term, "value"):
        is_name = not as_iris and isinstance(term, oxigraph().NamedNode)
        return name_of(term.value) if is_name else term.value
    return str(term)


def find_entities(store, name: str) -> list[str]:
    """The IRIs of the entities of a name: one, or those that are kept apart. UserError that shows names like it."""
    form = entity(normal_form(name))
    names = [entity(name), form, *(quad.subject.value for quad in find(store, None, FORM, form, MERGES))]
    found = {}
    for one in names:
        merged = [quad.object.value for quad in find(store, one, SAME, None, MERGES)]
        parts = sorted({quad.object.value for quad in find(store, one, IS)})
        found.update(dict.fromkeys(one for one in (*(merged or [one]), *parts) if _stands(store, one)))
        if found:
            return list(found)
    near = similar_names(store, name)
    raise UserError(f"no entity is called {name!r}" + (f"; there is {', '.join(near)}" if near else ""))


def similar_names(store, part: str, most: int = 5) -> list[str]:
    """Some entities whose names hold a text, the shortest first."""
    holds = f"FILTER(CONTAINS(STR(?s), {literal(encode(part))}))"
    rows = store.query(f"SELECT DISTINCT ?s {{ {{ ?s ?p ?o }} UNION {{ ?o ?p ?s }} {holds} }} LIMIT {most * 10}")
    return sorted((name_of(row[0].value) for row in rows), key=lambda name: (len(name), name))[:most]


def _stands(store, iri: str) -> bool:
    return any(True for _ in find(store, iri, None, None, "")) or any(True for _ in find(store, None, None, iri, ""))


def around(store, iri: str, most: int | None = None) -> list[Triple]:
    """The triples that an entity stands in, sorted; at `most` about so many, whichever come first."""
    found = set()
    for quads in (find(store, iri, None, None, ""), find(store, None, None, iri, "")):
        for quad in quads:
            found.add((quad.subject.value, quad.predicate.value, quad.object.value))
            if most is not None and len(found) >= most:
                break
    return sorted(found)


def neighbours(store, starts: list[str], hops: int, most: int) -> tuple[list[tuple[int, Triple]], bool]:
    """(hop, triple) of all that is at most so many hops away, either way; and whether there are more than `most`."""
    seen, found, edge = set(starts), {}, list(starts)
    for hop in range(1, hops + 1):
        following = []
        for iri in edge:
            for triple in around(store, iri, most + 1):
                if triple in found:
                    continue
                if len(found) == most:
                    return [(at, one) for one, at in found.items()], True
                found[triple] = hop
                for end in (triple[0], triple[2]):
                    if end not in seen:
                        seen.add(end)
                        following.append(end)
        edge = following
    return [(hop, triple) for triple, hop in found.items()], False


def path(store, starts: list[str], goals: list[str], most_hops: int = MOST_HOPS) -> list[Triple] | None:
    """The triples of a shortest way from one of the entities to one of the others, in either direction; None: no way.

    From both ends, the smaller side first; of ways of one length always the same one.
    """
    sides = [dict.fromkeys(starts), dict.fromkeys(goals)]  # entity -> (triple, the entity it was reached from)
    edges = [list(starts), list(goals)]
    for left in range(most_hops, -1, -1):
        if meeting := next((iri for iri in edges[0] + edges[1] if iri in sides[0] and iri in sides[1]), None):
            return _walk(sides[0], meeting)[::-1] + _walk(sides[1], meeting)
        if not left or not all(edges):
            break
        side = 0 if len(edges[0]) <= len(edges[1]) else 1
        following = []
        for iri in edges[side]:
            for triple in around(store, iri):
                end = triple[2] if triple[0] == iri else triple[0]
                if end not in sides[side]:
                    sides[side][end] = (triple, iri)
                    following.append(end)
        edges[side] = following
    return None


def _walk(side: dict, iri: str) -> list[Triple]:
    steps = []
    while side[iri]:
        triple, iri = side[iri]
        steps.append(triple)
    return steps


def sources_of(store, triple: Triple) -> list[dict]:
    """Where a triple comes from: of each source id, run, topic, …, and head and tail as they were said, with place."""
    found = []
    for head, _, tail, graph in mentions_of(store, *triple):
        known = source(store, graph)
        places = known.pop("detail", {}).get("places", {})
        ends = {
            end: {"said": plain(iri), "place": places.get(plain(iri))} for end, iri in (("head", head), ("tail", tail))
        }
        found.append(known | ends)
    return sorted(found, key=lambda one: (one.get("collection", ""), one["run"], str(one["id"]), one["head"]["said"]))


def source(store, graph: str) -> dict:
    """What is known of a source: id, run (its name), topic, confidence, finish_reason, text, detail."""
    known = {}
    for quad in find(store, graph, None, None, SOURCES):
        key, value = quad.predicate.value.removeprefix(TERM), quad.object.value
        if key in ("id", "detail"):
            value = json.loads(value)
        known[key] = float(value) if key == "confidence" else name_of(value) if key == "run" else value
    return known


def as_names(triple: Iterable[str]) -> list[str]:
    return [name_of(iri) for iri in triple]
