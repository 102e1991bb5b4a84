"""Triples pushed to a real RDF server on this machine, and by Neo4j's statements into an embedded openCypher store."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import ladybug
import pyoxigraph
import pytest

from common.errors import UserError
from kg import export, graph, push
from kg.evidence import Run, Source
from kg.relations import read_relations
from kg.store import Settings, open_graph
from kg.terms import name_of

ALIAS = Settings("alias", read_relations(None))
TRIPLES = [("甲", "位于", "乙"), ("a\"`'\\\n", "=1}", "</x>"), ("甲", "别名", "\ud800")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of an Oxigraph server."""
    program = shutil.which("oxigraph", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    for _ in range(3):  # a port that is free now may be another's when the server takes it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        start = [program, "serve", "--location", tmp_path_factory.mktemp("server"), "--bind", address]
        process = subprocess.Popen(start, stderr=subprocess.DEVNULL)
        if answers(address, process):
            break
    yield f"http://{address}"
    process.kill()
    process.wait()


def answers(address, process, seconds=120):
    """Whether a server does, before it ends or so many seconds have passed."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError):
            urllib.request.urlopen(f"http://{address}/", timeout=seconds)
            return True
        time.sleep(0.05)
    return False


def there(server, iri=push.GRAPH):
    """The lines of a graph of the server."""
    request = urllib.request.Request(
        f"{server}/store?graph={quote(iri, safe='')}", headers={"Accept": "application/n-triples"}
    )
    with urllib.request.urlopen(request) as answer:
        return set(pyoxigraph.parse(answer.read(), pyoxigraph.RdfFormat.N_TRIPLES))


def built(folder, *answers):
    graph.build(folder, [Source(number, answer) for number, answer in enumerate(answers)], Run("a run"), ALIAS)
    return open_graph(folder)[0]


def expected(store):
    return set(pyoxigraph.parse("\n".join(push.triple_lines(store)).encode(), pyoxigraph.RdfFormat.N_TRIPLES))


@pytest.mark.parametrize("protocol", push.PROTOCOLS)
def test_a_push_replaces_the_graph_and_nothing_else(server, tmp_path, protocol):
    endpoint = f"{server}/{protocol}"
    other = ["<urn:x> <urn:y> <urn:z> ."]
    push.push_sparql(other, endpoint, protocol, "urn:other")
    first, second = built(tmp_path / "a", TRIPLES), built(tmp_path / "b", TRIPLES[:1])
    assert push.push_sparql(push.triple_lines(first), endpoint, protocol, batch=3) == len(expected(first))
    assert there(server) == expected(first)
    assert {name_of(triple.subject.value) for triple in there(server)} >= {head for head, _, _ in TRIPLES}
    push.push_sparql(push.triple_lines(first), endpoint, protocol)
    assert there(server) == expected(first)
    push.push_sparql(push.triple_lines(second), endpoint, protocol)
    assert there(server) == expected(second)
    push.push_sparql([], endpoint, protocol)
    assert there(server) == set()
    assert len(there(server, "urn:other")) == 1


SLOWLY = """
import sys, time
from kg import push
def lines():
    for number in range(1000):
        if number == 50:
            print("here", flush=True)
            time.sleep(60)
        yield f"<urn:x:{number}> <urn:y> <urn:z> ."
push.push_sparql(lines(), sys.argv[1], "store", batch=10)
"""


def test_a_push_that_was_killed_is_pushed_again(server, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SLOWLY, f"{server}/store"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(there(server)) == 50
    store = built(tmp_path, TRIPLES)
    push.push_sparql(push.triple_lines(store), f"{server}/store", "store")
    assert there(server) == expected(store)


def test_what_a_server_refuses_is_said(server):
    with pytest.raises(UserError, match=r"--endpoint .*the server refused it, 4\d\d"):
        push.push_sparql(["<urn:x> no triple"], f"{server}/store", "store")
    with pytest.raises(UserError, match="is the server running"):
        push.push_sparql(["<urn:x> <urn:y> <urn:z> ."], "http://127.0.0.1:9/store", "store")
    with pytest.raises(UserError, match="--graph 'x> .*no IRI"):
        push.push_sparql([], f"{server}/update", "update", "x> { } } ; DROP ALL #")


def test_what_answers_and_is_no_web_server_is_said():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def greet():
            client, _ = other.accept()
            with client:
                client.recv(65536)
                client.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(UserError, match="--endpoint .*SSH-2.0.*is this its address"):
            push.push_sparql(["<urn:x> <urn:y> <urn:z> ."], f"http://127.0.0.1:{other.getsockname()[1]}/", "store")


def test_neo4js_statements_make_the_graph_and_take_away_what_is_gone(tmp_path):
    connection = ladybug.Connection(ladybug.Database(str(tmp_path / "property_graph")))
    connection.execute("CREATE NODE TABLE Entity(id STRING, name STRING, pushed STRING, PRIMARY KEY(id))")
    for _, relation, _ in TRIPLES:
        table = f"CREATE REL TABLE {export.backticked(relation)}(FROM Entity TO Entity, relation STRING, "
        connection.execute(table + "count INT64, records STRING[], pushed STRING)")

    def run(statement, **values):
        if statement != export.CONSTRAINT:  # that of the table's key
            connection.execute(statement, values)

    def said():
        return {
            tuple(row) for row in connection.execute("MATCH (a)-[r]->(b) RETURN a.name, r.relation, b.name").get_all()
        }

    first, second = built(tmp_path / "a", TRIPLES), built(tmp_path / "b", TRIPLES[:1])
    for _ in range(2):
        assert push.push_neo4j(first, run, batch=2) == 3
        assert said() == {tuple(part.encode("utf-8", "backslashreplace").decode() for part in t) for t in TRIPLES}
    push.push_neo4j(second, run)
    assert said() == {TRIPLES[0]}
    assert connection.execute("MATCH (e:Entity) RETURN count(*)").get_all() == [[2]]
