"""What is exported is read by the programs it is for, and holds every name."""

import csv
import io
import json
import tempfile
import xml.etree.ElementTree as ElementTree

import ladybug
import networkx
import pyoxigraph
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kg import export, graph
from kg.evidence import Run, Source
from kg.relations import read_relations
from kg.store import Settings
from kg.terms import name_of

RUN, ALIAS = Run("a run"), Settings("alias", read_relations(None))
HOSTILE = [
    *("c d", 'O\'Neil "x"', "`a`}) DETACH DELETE n //", "\\u0060]-() DELETE n", "a`\\", "<b>&amp;</b>]]>", "a\nb\r\t"),
    *(
        "\x00\x07\x7f",
        "😀",
        "%41%",
        "\ud800",
        "=1+1",
        "'=1",
        "a;b,c",
        "#x",
        "{x: 1}",
        "$x",
        "长" * 10_000,
        "e\u0301",
        "\u2028",
    ),
]
HOSTILE_TRIPLES = [(name, name, "乙" + name) for name in HOSTILE]
PLAIN = [
    ("京沪高铁", "位于", "中国"),
    ("京沪高铁", "长度", "1,318千米"),
    ("中国", "首都", "北京"),
    ("京沪高铁", "起点", "北京"),
]


def built(folder, *answers):
    """A graph on disk, whose order is another one than in memory."""
    store = pyoxigraph.Store(tempfile.mkdtemp(dir=folder))
    graph.bring(store, [Source(number, answer, "text") for number, answer in enumerate(answers)], RUN, ALIAS, folder)
    return store


def text(store, form):
    return "\n".join(export.TEXTS[form](store)) + "\n"


def merged(store):
    quads = store.quads_for_pattern(None, None, None, pyoxigraph.DefaultGraph())
    found = {tuple(name_of(part.value) for part in (q.subject, q.predicate, q.object)) for q in quads}
    return {triple for triple in found if triple[1] != export.LABEL}


def shown(name):
    """A name where half a surrogate pair cannot stand."""
    return name.encode("utf-8", "backslashreplace").decode()


@pytest.fixture
def hostile(tmp_path):
    return built(tmp_path, HOSTILE_TRIPLES)


def test_triples_come_with_their_records_however_names_are_merged(tmp_path):
    answers = (
        [("《甲》", "位于", "乙"), ("甲", "别名", "丙")],
        [("甲", "位于", "乙")],
        [("丙", "位于", "乙"), ("丁", "位于", "乙")],
    )
    found = {tuple(map(name_of, line[:3])): line.records for line in export.lines(built(tmp_path, *answers))}
    assert found == {
        ("甲", "位于", "乙"): ["0 (a run)", "1 (a run)", "2 (a run)"],
        ("甲", "别名", "丙"): ["0 (a run)"],
        ("丁", "位于", "乙"): ["2 (a run)"],
    }


NAMES = st.sampled_from(["甲", "《甲》", "乙", "丙", "丁", "1980年", "1990年"])
ANSWER = st.lists(st.tuples(NAMES, st.sampled_from(["别名", "位于", "出生日期"]), NAMES), max_size=4, unique=True)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANSWER, max_size=4))
def test_the_lines_are_the_merged_triples_and_have_every_mention(tmp_path, answers):
    store = built(tmp_path, [], *answers)
    found = list(export.lines(store))
    assert len({line[:3] for line in found}) == len(found)
    assert {tuple(map(name_of, line[:3])) for line in found} == merged(store)
    assert sum(len(line.sources) for line in found) == sum(map(len, answers))


@pytest.mark.parametrize("form", [*export.TEXTS, *export.NEO4J])
def test_of_one_content_the_bytes_are_the_same(tmp_path, form):
    made = export.TEXTS.get(form) or export.NEO4J[form]
    one, other = built(tmp_path, PLAIN, HOSTILE_TRIPLES), built(tmp_path, [])
    for source in (Source(1, HOSTILE_TRIPLES, "text"), Source(0, PLAIN, "text")):
        graph.bring(other, [source], RUN, ALIAS, tmp_path)
    assert list(made(one)) == list(made(other))


def test_nquads_are_the_whole_store_again(hostile, tmp_path):
    export.write(hostile, "nquads", tmp_path / "a.nq")
    again = pyoxigraph.Store()
    again.load(path=str(tmp_path / "a.nq"), format=pyoxigraph.RdfFormat.N_QUADS)
    assert set(again) == set(hostile)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("a.nq")] == ["a.nq"]


@pytest.mark.parametrize(("form", "kind"), [("turtle", "TURTLE"), ("jsonld", "JSON_LD")])
def test_turtle_and_jsonld_hold_the_merged_triples_and_a_label_for_every_name(hostile, form, kind):
    again = pyoxigraph.Store()
    again.load(input=text(hostile, form).encode(), format=getattr(pyoxigraph.RdfFormat, kind))
    assert merged(again) == set(HOSTILE_TRIPLES)
    labels = again.quads_for_pattern(None, pyoxigraph.NamedNode(export.LABEL), None)
    labels = {name_of(quad.subject.value): quad.object.value for quad in labels}
    assert labels == {name: shown(name) for name in labels}
    assert set(labels) >= {head for head, _, _ in HOSTILE_TRIPLES}


def test_csv_holds_every_name_and_no_formula(hostile):
    rows = list(csv.DictReader(io.StringIO(text(hostile, "csv"), newline="")))
    assert all(None not in row.values() and None not in row for row in rows)
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    found = {tuple(row[part][row[part].startswith("'") :] for part in ("head", "relation", "tail")) for row in rows}
    assert found == {tuple(map(shown, triple)) for triple in HOSTILE_TRIPLES}
    assert {(row["count"], row["records"]) for row in rows} == {("1", "0 (a run)")}


def test_graphml_is_read_by_networkx(hostile, tmp_path):
    export.write(hostile, "graphml", tmp_path / "a.graphml")
    found = networkx.read_graphml(tmp_path / "a.graphml", force_multigraph=True)
    heads = {name_of(f"urn:kg:e:{head}") for head, _ in found.edges()}
    assert heads == set(HOSTILE)
    relations = {data["relation"] for _, _, data in found.edges(data=True)}
    assert {"`a`}) DETACH DELETE n //", "<b>&amp;</b>]]>", "a\nb\r\t", "\\x00\\x07\\x7f"} <= relations
    assert {data["weight"] for _, _, data in found.edges(data=True)} == {1}
    assert found.nodes["😀"]["label"] == "😀"


def test_gexf_is_read_by_networkx_and_keeps_parallel_edges(tmp_path):
    parallel = [("甲", "作者", "乙"), ("甲", "编剧", "乙"), ("a\"<&>'", "位于", "丙\n丁")]
    export.write(built(tmp_path, parallel), "gexf", tmp_path / "a.gexf")
    found = networkx.read_gexf(tmp_path / "a.gexf")
    labels = {(found.nodes[h]["label"], d["label"], found.nodes[t]["label"]) for h, t, d in found.edges(data=True)}
    assert labels == set(parallel)
    assert {data["records"] for _, _, data in found.edges(data=True)} == {"0 (a run)"}


def test_xml_is_whole_for_every_hostile_name(hostile):
    for form in ("graphml", "gexf"):
        ElementTree.fromstring(text(hostile, form).encode())


@pytest.fixture
def property_graph(tmp_path):
    """An embedded store that speaks openCypher, with the table of nodes that it wants."""
    connection = ladybug.Connection(ladybug.Database(str(tmp_path / "property_graph")))
    connection.execute("CREATE NODE TABLE Entity(id STRING, name STRING, PRIMARY KEY(id))")
    return connection


def test_the_cypher_runs_twice_and_makes_the_same_graph(hostile, property_graph):
    relations = {line.relation for line in export.lines(hostile)}
    for relation in relations:
        table = f"CREATE REL TABLE {export.backticked(name_of(relation))}(FROM Entity TO Entity, relation STRING, "
        property_graph.execute(table + "count INT64, records STRING[])")
    for _ in range(2):
        for statement in list(export.cypher(hostile))[1:]:
            property_graph.execute(statement)
    rows = property_graph.execute("MATCH (a)-[r]->(b) RETURN a.name, r.relation, b.name, r.count, r.records").get_all()
    assert sorted(map(tuple, (row[:3] for row in rows))) == sorted(tuple(map(shown, t)) for t in HOSTILE_TRIPLES)
    assert all(row[3:] == [1, ["0 (a run)"]] for row in rows)


def test_the_csv_for_neo4j_is_loaded(tmp_path, property_graph):
    answer = [*PLAIN, ('a "b", c\nd', "位于", "北京")]
    export.write(built(tmp_path, answer), "neo4j", tmp_path / "neo4j")
    assert sorted(file.name for file in (tmp_path / "neo4j").iterdir()) == sorted(export.NEO4J)
    with open(tmp_path / "neo4j" / "nodes.csv", encoding="utf-8", newline="") as file:
        nodes = list(csv.reader(file))
    assert nodes[0] == ["id:ID", "name", ":LABEL"]
    with open(tmp_path / "neo4j" / "relationships.csv", encoding="utf-8", newline="") as file:
        edges = list(csv.reader(file))
    names = {row[0]: row[1] for row in nodes[1:]}
    assert {(names[row[0]], row[2], names[row[1]]) for row in edges[1:]} == set(answer)
    assert {(row[4], row[5]) for row in edges[1:]} == {("1", "0 (a run)")}
    columns = "(header=true, parallel=false, escape='\"')"
    (tmp_path / "nodes.csv").write_text(
        "id,name\n" + "".join(f'"{a}","{b}"\n' for a, b in names.items() if '"' not in b)
    )
    property_graph.execute(f"COPY Entity FROM '{tmp_path / 'nodes.csv'}' {columns}")
    assert property_graph.execute("MATCH (e:Entity) RETURN count(*)").get_all()[0][0] == len(names) - 1


ANY = st.text(st.characters(), min_size=1, max_size=6).filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(ANY, ANY, ANY), min_size=1, max_size=3, unique=True))
def test_any_name_is_stored_and_exported_as_data(tmp_path, triples):
    store = pyoxigraph.Store()
    graph.bring(store, [Source(1, triples, "".join(triples[0]))], RUN, Settings("none", {}), tmp_path)
    assert merged(store) == set(triples)
    for form, kind in (("turtle", "TURTLE"), ("jsonld", "JSON_LD")):
        again = pyoxigraph.Store()
        again.load(input=text(store, form).encode(), format=getattr(pyoxigraph.RdfFormat, kind))
        assert merged(again) == set(triples)
    rows = csv.reader(io.StringIO(text(store, "csv"), newline=""))
    found = {tuple(cell[cell.startswith("'") :] for cell in row[:3]) for row in list(rows)[1:]}
    assert found == {tuple(map(shown, triple)) for triple in triples}
    for form in ("graphml", "gexf"):
        root = ElementTree.fromstring(text(store, form).encode())
        edges = [one for one in root.iter() if one.tag.endswith("}edge")]
        ends = {(name_of(f"urn:kg:e:{one.get('source')}"), name_of(f"urn:kg:e:{one.get('target')}")) for one in edges}
        assert ends == {(head, tail) for head, _, tail in triples}
    assert all(line.count("\n") == 0 for line in export.cypher(store))


def test_jsonld_is_json(hostile):
    assert len(json.loads(text(hostile, "jsonld"))["@graph"]) == len(HOSTILE)
