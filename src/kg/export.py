"""A graph written for other programs: N-Quads, Turtle, JSON-LD, GraphML, GEXF, CSV, and what Neo4j loads.

N-Quads hold all of the store; every other form the merged triples, with the records they come from where it has a place
for them. Everything is streamed, and of one content always the same bytes. Names are data in every form: escaped by its
own rules, never pasted. What a form cannot hold at all (control characters in XML) is shown as an escape there; the id
beside it still has the whole name, percent-encoded.
"""

import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

from common.files import check_output, to_line, write_lines
from kg.breakdown import printable
from kg.entities import all_entities, find
from kg.store import oxigraph
from kg.tables import as_csv
from kg.terms import ENTITY, PREFIXES, RELATION, literal, name_of

LABEL = "http://www.w3.org/2000/01/rdf-schema#label"
GRAPHML_DATA = (
    *(("node", "label", "string"), ("edge", "relation", "string")),
    *(("edge", "weight", "int"), ("edge", "records", "string")),
)
CONSTRAINT = "CREATE CONSTRAINT entity_id IF NOT EXISTS FOR (e:Entity) REQUIRE e.id IS UNIQUE"
MERGE_NODES = "MERGE (e:Entity {id: row.id}) SET e.name = row.name"
MERGE_EDGES = (
    "MATCH (a:Entity {{id: row.head}}) MATCH (b:Entity {{id: row.tail}}) MERGE (a)-[r:{}]->(b) "
    "SET r.relation = row.relation, r.count = row.count, r.records = row.records"
)
BATCH = 1000  # rows of one Cypher statement
MARKUP = re.compile('[&<>"\\t\\n\\r]')
MOST_RECORDS = 100  # that are named for one triple; the count is of all


class Line(NamedTuple):
    """A merged triple (IRIs) and the graphs of the sources it comes from."""

    head: str
    relation: str
    tail: str
    sources: list[str]

    @property
    def records(self) -> list[str]:
        """What the first of its records are called: ID (RUN)."""
        return [name_of(source) for source in self.sources[:MOST_RECORDS]]


def lines(store) -> Iterator[Line]:
    """The merged triples with their sources, relation by relation.

    Mentions are read in the store's order, in which those of one triple come together; only those of names that others
    are merged into, or that are several entities, are held in memory, of one relation at a time.
    """
    known = all_entities(store)
    special = {*known.same, *known.parts, *(main for main, _ in known.same.values())}
    for relation, mentions in groupby(_mentions(store), key=itemgetter(0)):
        held = defaultdict(list)
        for (head, tail), group in groupby(mentions, key=itemgetter(1, 2)):
            sources = [mention[3] for mention in group]
            if head not in special and tail not in special:
                yield Line(head, relation, tail, sorted(sources))
                continue
            for source in sources:
                merged = known.merged((head, relation, tail, source))
                held[merged[0], merged[2]].append(source)
        for (head, tail), sources in sorted(held.items()):
            yield Line(head, relation, tail, sorted(sources))


def _mentions(store) -> Iterator[tuple[str, str, str, str]]:
    """(relation, head, tail, source) of all that sources say, relation by relation.

    The store writes those of the next relation to a file, which needs no Python, while these are worked on.
    """
    relations = sorted(row[0].value for row in store.query("SELECT DISTINCT ?r { ?h ?r ?t }"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as reading:

        def read(number: int) -> Path:
            file = Path(folder) / str(number)
            text = f"SELECT ?h ?t ?g {{ GRAPH ?g {{ ?h <{relations[number]}> ?t }} }}"
            store.query(text).serialize(str(file), oxigraph().QueryResultsFormat.TSV)  # no name: freed in this thread
            return file

        coming = [reading.submit(read, 0)] if relations else []
        for number, relation in enumerate(relations):
            file = coming.pop().result()
            if number + 1 < len(relations):
                coming.append(reading.submit(read, number + 1))
            with open(file, encoding="utf-8", newline="\n") as rows:
                next(rows)  # the names of the columns
                for row in rows:
                    head, tail, source = row.rstrip("\n").split("\t")
                    yield relation, head[1:-1], tail[1:-1], source[1:-1]
            file.unlink()


def entities(store) -> Iterator[str]:
    """The entities of the merged triples, each once."""
    for row in store.query("SELECT DISTINCT ?e { { ?e ?r ?t } UNION { ?h ?r ?e } }"):
        yield row[0].value


def local(iri: str) -> str:
    """The id of an entity: its name, percent-encoded where it holds what could end an id anywhere."""
    return iri.removeprefix(ENTITY)


def write_nquads(store, file: Path) -> None:
    """All of it: merged triples, mentions, sources, merges. It can be loaded into a store again."""
    with open(file, "wb") as stream:
        store.dump(stream, oxigraph().RdfFormat.N_QUADS)


def turtle(store) -> Iterator[str]:
    """The lines of Turtle: the merged triples, and rdfs:label for all that they name."""
    yield from (f"@prefix {prefix}: <{PREFIXES[prefix]}> ." for prefix in ("e", "r"))
    yield f"@prefix rdfs: <{LABEL.removesuffix('label')}> .\n"
    named = set()
    for head, group in groupby(find(store, None, None, None, ""), key=lambda quad: quad.subject.value):
        pairs = [(quad.predicate.value, quad.object.value) for quad in group]
        yield f"<{head}>\n" + "".join(f"    <{relation}> <{tail}> ;\n" for relation, tail in pairs) + _label(head)
        named.add(head)
        for iri in dict.fromkeys(part for pair in pairs for part in pair):
            if iri not in named and not _is_head(store, iri):
                yield f"<{iri}>{_label(iri)}"
                named.add(iri)


def _label(iri: str) -> str:
    return f"    rdfs:label {literal(name_of(iri))} ."


def _is_head(store, iri: str) -> bool:
    return any(True for _ in find(store, iri, None, None, ""))


def jsonld(store) -> Iterator[str]:
    """The merged triples as JSON-LD 1.1: an object a line for each head."""
    context = {"e": ENTITY, "r": RELATION, "label": LABEL}
    yield '{"@context": ' + json.dumps(context) + ","
    yield '"@graph": ['
    comma = ""
    for head, group in groupby(find(store, None, None, None, ""), key=lambda quad: quad.subject.value):
        node = {"@id": head, "label": _well_formed(name_of(head))}
        for quad in group:
            node.setdefault(quad.predicate.value, []).append({"@id": quad.object.value})
        yield comma + to_line(node)
        comma = ","
    yield "]}"


def _well_formed(text: str) -> str:
    """The text with escapes for halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()


def csv(store) -> Iterator[str]:
    """head, relation, tail, how many records say so, and which; a cell that looks like a formula has a ' before it."""
    rows = ([*map(name_of, one[:3]), len(one.sources), "; ".join(one.records)] for one in lines(store))
    yield from (_well_formed(line) for line in as_csv(["head", "relation", "tail", "count", "records"], rows))


def graphml(store) -> Iterator[str]:
    """GraphML 1.0: nodes with their name, edges with relation, number of records and records."""
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
    for end, name, kind in GRAPHML_DATA:
        yield f'<key id="{name}" for="{end}" attr.name="{name}" attr.type="{kind}"/>'
    yield '<graph edgedefault="directed">'
    for iri in entities(store):
        yield f'<node id="{local(iri)}"><data key="label">{_xml(name_of(iri))}</data></node>'
    label = cache(lambda iri: _xml(name_of(iri)))  # there are few relations
    for number, one in enumerate(lines(store)):
        ends = f'source="{local(one.head)}" target="{local(one.tail)}"'
        data = f'<data key="relation">{label(one.relation)}</data><data key="weight">{len(one.sources)}</data>'
        yield f'<edge id="e{number}" {ends}>{data}<data key="records">{_xml("; ".join(one.records))}</data></edge>'
    yield "</graph>\n</graphml>"


def gexf(store) -> Iterator[str]:
    """GEXF 1.3, of Gephi: the relation is an edge's label and its kind, so that parallel edges stay."""
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<gexf xmlns="http://gexf.net/1.3" version="1.3">'
    yield '<graph defaultedgetype="directed" mode="static">\n<attributes class="edge">'
    yield '<attribute id="records" title="records" type="string"/>\n</attributes>\n<nodes>'
    for iri in entities(store):
        yield f'<node id="{local(iri)}" label={_attribute(name_of(iri))}/>'
    yield "</nodes>\n<edges>"
    label = cache(lambda iri: _attribute(name_of(iri)))  # there are few relations
    for number, one in enumerate(lines(store)):
        ends = f'source="{local(one.head)}" target="{local(one.tail)}"'
        said = label(one.relation)
        yield (
            f'<edge id="{number}" {ends} label={said} kind={said} weight="{len(one.sources)}"><attvalues>'
            f'<attvalue for="records" value={_attribute("; ".join(one.records))}/></attvalues></edge>'
        )
    yield "</edges>\n</graph>\n</gexf>"


def _attribute(text: str) -> str:
    text = _xml_text(text)
    return quoteattr(text) if MARKUP.search(text) else f'"{text}"'


def _xml(text: str) -> str:
    if text.isalnum():
        return text
    return _xml_text(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#13;")


def _xml_text(text: str) -> str:
    """The text without what XML 1.0 (section 2.2) forbids: shown as escapes."""
    if text.isprintable():
        return text
    kept = (c in "\t\n\r" or c.isprintable() or (c.isspace() and c > "\x9f") for c in text)
    return "".join(c if keep else printable(c) for c, keep in zip(text, kept, strict=True))


def neo4j_nodes(store) -> Iterator[str]:
    """The nodes for `neo4j-admin database import`."""
    yield "id:ID,name,:LABEL"
    for iri in entities(store):
        yield f"{_quoted(local(iri))},{_quoted(name_of(iri))},Entity"


def neo4j_edges(store) -> Iterator[str]:
    """The relationships for `neo4j-admin database import`."""
    yield ":START_ID,:END_ID,:TYPE,relation,count:int,records:string[]"
    for one in lines(store):
        relation = _quoted(name_of(one.relation))
        records = _quoted(";".join(record.replace(";", ",") for record in one.records))
        ends = f"{_quoted(local(one.head))},{_quoted(local(one.tail))}"
        yield f"{ends},{relation},{relation},{len(one.sources)},{records}"


def _quoted(text: str) -> str:
    return '"' + _well_formed(text).replace('"', '""') + '"'


def cypher(store) -> Iterator[str]:
    """The same as Cypher statements, one a line: MERGE, so that they may be run again."""
    yield f"{CONSTRAINT};"
    names = node_rows(store)
    while rows := list(islice(names, BATCH)):
        yield f"UNWIND {_cypher(rows)} AS row {MERGE_NODES};"
    waiting = defaultdict(list)
    for one in lines(store):
        waiting[one.relation].append(row(one))
        if len(waiting[one.relation]) == BATCH:
            yield _merge(one.relation, waiting.pop(one.relation))
    for relation in sorted(waiting):
        yield _merge(relation, waiting[relation])


def node_rows(store) -> Iterator[dict]:
    """The entities as rows of MERGE_NODES."""
    return ({"id": local(iri), "name": _well_formed(name_of(iri))} for iri in entities(store))


def row(one: Line) -> dict:
    """A triple as a row of MERGE_EDGES."""
    ends = {"head": local(one.head), "tail": local(one.tail), "relation": _well_formed(name_of(one.relation))}
    return ends | {"count": len(one.sources), "records": [_well_formed(record) for record in one.records]}


def _merge(relation: str, rows: list[dict]) -> str:
    return f"UNWIND {_cypher(rows)} AS row {MERGE_EDGES.format(backticked(name_of(relation)))};"


def backticked(name: str) -> str:
    """A name as a relationship type. Neo4j may read \\u0060 as a backtick there: a backslash becomes its own escape."""
    text = _well_formed(name)
    shown = (c if c.isprintable() and c != "\\" else _escape(c) for c in text)
    return "`" + "".join(shown).replace("`", "``") + "`"


def _escape(char: str) -> str:
    """A character as \\uXXXX, or as two of them (UTF-16)."""
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _cypher(value) -> str:
    """A value as a literal of Cypher."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_cypher, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_cypher(one)}" for key, one in value.items()) + "}"
    if isinstance(value, int):
        return str(value)
    text = _well_formed(value).replace("\\", "\\\\").replace("'", "\\'")
    return "'" + "".join(c if c.isprintable() else _escape(c) for c in text) + "'"


TEXTS = {"turtle": turtle, "jsonld": jsonld, "graphml": graphml, "gexf": gexf, "csv": csv}
NEO4J = {"nodes.csv": neo4j_nodes, "relationships.csv": neo4j_edges, "load.cypher": cypher}
FORMATS = ("nquads", *TEXTS, "neo4j")


def write(store, form: str, out: str | Path) -> list[Path]:
    """Write a graph in a form, each file whole or not at all; the files. `out` is a folder for neo4j."""
    if form == "nquads":
        check_output(out, "--out", beside=(".tmp",))
        partial = Path(out).with_name(f"{Path(out).name}.tmp")
        try:
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            write_nquads(store, partial)
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
        return [Path(out)]
    files = {Path(out) / name: make for name, make in NEO4J.items()} if form == "neo4j" else {Path(out): TEXTS[form]}
    for path, make in files.items():
        write_lines(path, make(store))
    return list(files)
