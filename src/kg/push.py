"""The merged triples sent to a server: an RDF store by SPARQL 1.1's protocols, or Neo4j by its driver.

What was broken off is pushed again from the start: the same triples twice are the same as once, and what an earlier
push left and the graph no longer holds is taken away.
"""

import os
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from itertools import groupby, islice
from urllib.parse import quote, urlsplit
from uuid import uuid4

from common.errors import UserError
from kg import export
from kg.terms import TERM, literal, name_of

BATCH = 5000  # triples, or rows, of one request
TIMEOUT = 300  # seconds that a server may take for one
GRAPH = f"{TERM}merged"  # where merged triples go if no other graph is named: never among those of others
PASSWORD = "GRAPH_PASSWORD"  # the environment variable it is read from
PROTOCOLS = ("store", "update")


def triple_lines(store) -> Iterator[str]:
    """The merged triples and rdfs:label of their names, as lines of N-Triples."""
    named = set()
    for line in export.lines(store):
        for iri in line[:3]:
            if iri not in named:
                named.add(iri)
                yield f"<{iri}> <{export.LABEL}> {literal(name_of(iri))} ."
        yield f"<{line.head}> <{line.relation}> <{line.tail}> ."


def push_sparql(lines, endpoint: str, protocol: str, graph: str = GRAPH, user: str = "", batch: int = BATCH) -> int:
    """Replace a graph of a server by lines of N-Triples; how many there were.

    `protocol` store: Graph Store HTTP Protocol, PUT and then POST to the URL; update: SPARQL 1.1 Update. UserError for
    whatever the server refuses.
    """
    lines, sent = iter(lines), 0
    if any(char in graph for char in '<>"{}|^`\\ \n') or ":" not in graph:
        raise UserError(f"--graph {graph!r:.60}: no IRI; expected one such as {GRAPH}")
    while (some := list(islice(lines, batch))) or not sent:
        body = "\n".join(some)
        if protocol == "store":
            url = f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}graph={quote(graph, safe='')}"
            _send(url, body, "application/n-triples", "POST" if sent else "PUT", user)
        else:
            clear = "" if sent else f"CLEAR SILENT GRAPH <{graph}> ;\n"
            text = f"{clear}INSERT DATA {{ GRAPH <{graph}> {{\n{body}\n}} }}"
            _send(endpoint, text, "application/sparql-update", "POST", user)
        sent += len(some)
        if not some:
            break
    return sent


def _send(url: str, body: str, kind: str, method: str, user: str) -> None:
    headers = {"Content-Type": f"{kind}; charset=utf-8"}
    if user:
        word = f"{user}:{os.environ.get(PASSWORD, '')}"
        headers["Authorization"] = f"Basic {b64encode(word.encode()).decode()}"
    try:
        request = urllib.request.Request(url, body.encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return
    except urllib.error.HTTPError as error:
        said = error.read(300).decode("utf-8", "replace").strip().split("\n")[0]
        raise UserError(f"--endpoint {url}: the server refused it, {error.code} {error.reason}: {said}") from None
    except (OSError, HTTPException, ValueError) as error:  # of the connection, of what answers there, of the URL
        reason = str(getattr(error, "reason", error)).strip()
        raise UserError(f"--endpoint {url}: {reason}; is the server running, and is this its address?") from None


@contextmanager
def open_neo4j(address: str, user: str):
    """A function that runs a statement, with values, in Neo4j; UserError without its package, its server or its yes."""
    try:
        import neo4j
    except ImportError:
        raise UserError("--neo4j needs the package neo4j; pip install neo4j") from None
    try:
        secret = (user, os.environ.get(PASSWORD, "")) if user else None
        with neo4j.GraphDatabase.driver(address, auth=secret) as driver:
            driver.verify_connectivity()
            yield lambda statement, **values: driver.execute_query(statement, values)
    except (neo4j.exceptions.DriverError, neo4j.exceptions.Neo4jError, neo4j.exceptions.ConfigurationError) as error:
        said = str(error).strip().split("\n")[0]
        advice = f"is the server running, and are --user and {PASSWORD} right?"
        raise UserError(f"--neo4j {address}: {said}; {advice}") from None


def push_neo4j(store, run, batch: int = BATCH) -> int:
    """Bring the merged triples into Neo4j; how many there were. `run(statement, **values)` runs one statement.

    Nodes are `:Entity` with id and name, relationships have the relation as type, its count and records. What a push
    brings is marked; at its end, what has another mark is taken away, and so only what earlier pushes brought.
    """
    mark, sent = uuid4().hex, 0
    run(export.CONSTRAINT)
    names = export.node_rows(store)
    while rows := list(islice(names, batch)):
        run(f"UNWIND $rows AS row {export.MERGE_NODES}, e.pushed = $mark", rows=rows, mark=mark)
    for relation, lines in groupby(export.lines(store), key=lambda line: line.relation):
        merge = export.MERGE_EDGES.format(export.backticked(name_of(relation)))
        while rows := [export.row(line) for line in islice(lines, batch)]:
            run(f"UNWIND $rows AS row {merge}, r.pushed = $mark", rows=rows, mark=mark)
            sent += len(rows)
    run("MATCH (:Entity)-[r]->(:Entity) WHERE r.pushed <> $mark DELETE r", mark=mark)
    run("MATCH (e:Entity) WHERE e.pushed <> $mark AND NOT (e)--() DELETE e", mark=mark)
    return sent
