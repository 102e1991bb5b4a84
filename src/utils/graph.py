"""Predictions or labelled records -> a knowledge graph: build, query, check, export, draw.

python src/utils/graph.py build --pred_path results/quickstart-400/submission.json --store results/quickstart-400/graph
python src/utils/graph.py COMMAND --help
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, keeping, run_script, say

if __name__ == "__main__":
    begin_script()

from common.files import check_output, to_line, write_lines
from common.flags import Range, check_ranges, command, parse_flags
from data.sources import find_run, read_sources
from data.submission import listed
from kg import drawing, graph, quality, queries
from kg import export as exporting
from kg import push as pushing
from kg.merging import MODES
from kg.relations import read_relations, relations_of
from kg.store import Settings, open_graph, read_current
from kg.tables import FORMATS, as_table

RANGES = {"hops": Range(1, 50), "limit": Range(1)}
SHOWN = 20  # lines of a table of stats and check
RUNS = "; the command stats lists the names of its runs"


def build(argv: list[str]) -> None:
    """Add predictions or labelled records to a graph; the graph is created if it does not exist."""
    parser = _parser(build)
    parser.add_argument(
        "--pred_path", required=True, help="predictions or labelled records, in any format that convert.py reads"
    )
    parser.add_argument("--run", help="name of the run; default: from the base and the adapter in run.json")
    parser.add_argument("--run_file", help="the run.json of the predictions; default: NAME.run.json beside them")
    parser.add_argument("--collection", default="", help="a name for this file, if another has the same ids")
    parser.add_argument("--merge", choices=MODES, help="how names are merged; default: as in the graph, else alias")
    parser.add_argument("--relations", help="another file of the form of src/kg/relations.json")
    parser.add_argument("--no_text", action="store_true", help="do not store the texts of the records")
    parser.add_argument("--changed_texts", action="store_true", help="also replace records whose text has changed")
    parser.add_argument("--skip_bad", action="store_true", help="list bad lines and skip them, instead of stopping")
    flags = parse_flags(parser, argv)
    bad = [] if flags.skip_bad else None
    with keeping(lambda: f"{flags.store} is as it was"):
        counts = graph.build(
            flags.store,
            read_sources(flags.pred_path, bad),
            find_run(flags.pred_path, flags.run_file, flags.run),
            _settings(flags),
            flags.collection,
            not flags.no_text,
            flags.changed_texts,
            resettle=bool(flags.merge or flags.relations),
        )
    if bad:
        say(f"warning: bad lines were left out:\n{listed(bad)}")
    names = ("records", "triples", "added", "replaced", "unchanged")
    say(f"{flags.store}: " + ", ".join(f"{counts[name]} {name}" for name in names))


def remove(argv: list[str]) -> None:
    """Remove a record (from one collection or all), or all records of a run, from a graph."""
    parser = _parser(remove)
    parser.add_argument("--document", help='a record\'s id; 7 is also found as the text "7"')
    parser.add_argument("--collection", help="remove the record only from this collection")
    parser.add_argument("--run", help="remove all records of this run")
    flags = parse_flags(parser, argv)
    if (flags.document is None) == (flags.run is None):
        raise UserError("remove: give either --document ID or --run NAME")
    if flags.run is not None and flags.collection is not None:
        raise UserError("--collection has no effect beside --run; drop it")

    def chosen(store) -> list[str]:
        if flags.run is not None:
            return graph.sources_of_run(store, flags.run)
        found = [_number(flags.document), flags.document]
        return next(filter(None, (graph.sources_of_document(store, one, flags.collection) for one in found)), [])

    with keeping(lambda: f"{flags.store} is as it was"):
        counts = graph.remove(flags.store, chosen)
    if not counts["removed"]:
        what, hint = (f"--document {flags.document}", "") if flags.run is None else (f"--run {flags.run}", RUNS)
        raise UserError(f"{what}: nothing of it is in {flags.store}{hint}")
    say(f"{flags.store}: {counts['removed']} records with {counts['triples']} triples removed")


def merge(argv: list[str]) -> None:
    """Merge names again, with another --merge or --relations; the triples of the records do not change."""
    parser = _parser(merge)
    parser.add_argument("--merge", choices=MODES, default="alias", help="how names are merged")
    parser.add_argument("--relations", help="another file of the form of src/kg/relations.json")
    flags = parse_flags(parser, argv)
    with keeping(lambda: f"{flags.store} is as it was"):
        graph.remerge(flags.store, _settings(flags))
    say(f"{flags.store}: merged by {flags.merge}")


def _settings(flags) -> Settings:
    """Those of the flags; for a flag that is not given, the setting of the graph."""
    current = read_current(flags.store)
    there = current[1] if current else graph.usual_settings()
    relations = read_relations(flags.relations) if flags.relations else there.relations
    return Settings(flags.merge or there.merge, relations)


def _number(text: str):
    """The whole number that a text is, else the text."""
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 100 else text


def _parser(run):
    parser = command(run.__doc__)
    parser.prog = f"graph.py {run.__name__}"
    parser.add_argument("--store", required=True, help="folder of the graph")
    return parser


def merges(argv: list[str]) -> None:
    """List merged names with the reason; the command check lists names that are kept apart."""
    parser = _parser(merges)
    parser.add_argument("--json", action="store_true", help="all merges, as JSON")
    flags = parse_flags(parser, argv)
    found = quality.merges(open_graph(flags.store)[0])
    _print_rows(["name", "merged_into", "why"], map(list, map(dict.values, found)), "json" if flags.json else "table")


def stats(argv: list[str]) -> None:
    """Print counts: entities, triples, relations, records, runs, and more."""
    parser = _parser(stats)
    parser.add_argument("--json", action="store_true", help="as JSON, with every relation")
    flags = parse_flags(parser, argv)
    found = quality.stats(open_graph(flags.store)[0])
    if flags.json:
        print(to_line(found, indent=2))
        return
    for key, value in found.items():
        if not isinstance(value, list):
            print(f"{key.replace('_', ' '):28}{value:12,}")
    for key, value in found.items():
        if isinstance(value, list) and value:
            print()
            _print_rows(
                [key.replace("_", " "), "count"], ([one["name"], one["count"]] for one in value), "table", SHOWN
            )


def check(argv: list[str]) -> None:
    """List doubtful triples and names: contradictions, wrong directions, relations not asked for, and more."""
    parser = _parser(check)
    parser.add_argument("--json", action="store_true", help="the complete list, as JSON")
    flags = parse_flags(parser, argv)
    store, settings = open_graph(flags.store)
    found = quality.check(store, relations_of(settings.relations))
    if flags.json:
        print(to_line(found, indent=2))
        return
    for kind, faults in found.items():
        print(f"{kind.replace('_', ' ')}: {len(faults)}")
        if faults:
            _print_rows(list(faults[0]), ([_cell(cell) for cell in one.values()] for one in faults), "table", SHOWN)
            print()


def query(argv: list[str]) -> None:
    """Query a graph in SPARQL: --sparql 'SELECT * { e:勾股定理 ?relation ?tail }', or a file."""
    parser = _parser(query)
    parser.add_argument("--sparql", required=True, help="the query, or a file with the query")
    parser.add_argument("--format", choices=("table", *FORMATS), default="table", help="how rows are printed")
    parser.add_argument("--iri", action="store_true", help="print IRIs instead of names")
    parser.add_argument(
        "--limit", type=int, default=100, help="maximum number of rows of a table; not for csv and json"
    )
    flags = parse_flags(parser, argv)
    check_ranges(flags, RANGES)
    store, _ = open_graph(flags.store)
    answer = queries.query(store, queries.read_sparql(flags.sparql), flags.iri)
    _print_rows(answer.columns, answer.rows, flags.format, flags.limit)


def neighbours(argv: list[str]) -> None:
    """List the triples around an entity."""
    parser = _parser(neighbours)
    parser.add_argument("--entity", required=True, help="name of the entity")
    parser.add_argument("--hops", type=int, default=1, help="maximum distance from the entity")
    parser.add_argument("--limit", type=int, default=100, help="maximum number of triples")
    parser.add_argument("--json", action="store_true", help="as JSON, with all sources of each triple")
    flags = parse_flags(parser, argv)
    check_ranges(flags, RANGES)
    store, _ = open_graph(flags.store)
    starts = queries.find_entities(store, flags.entity)
    found, more = queries.neighbours(store, starts, flags.hops, flags.limit)
    _print_triples(store, [triple for _, triple in found], flags.json, [hop for hop, _ in found])
    if more:
        say(f"there are more than {flags.limit} triples; --limit shows more of them")


def path(argv: list[str]) -> None:
    """Find a shortest path between two entities; the direction of triples is ignored."""
    parser = _parser(path)
    parser.add_argument("--from", dest="start", required=True, help="name of an entity")
    parser.add_argument("--to", dest="goal", required=True, help="name of another entity")
    parser.add_argument("--hops", type=int, default=queries.MOST_HOPS, help="maximum length of the path")
    parser.add_argument("--json", action="store_true", help="as JSON, with all sources of each triple")
    flags = parse_flags(parser, argv)
    check_ranges(flags, RANGES)
    store, _ = open_graph(flags.store)
    ends = (queries.find_entities(store, name) for name in (flags.start, flags.goal))
    found = queries.path(store, *ends, flags.hops)
    if found is None:
        raise UserError(f"there is no way of at most {flags.hops} triples from {flags.start} to {flags.goal}")
    _print_triples(store, found, flags.json, range(1, len(found) + 1))


def export(argv: list[str]) -> None:
    """Export a graph for other programs: RDF stores, Gephi, networkx, Neo4j, spreadsheets."""
    parser = _parser(export)
    parser.add_argument("--format", required=True, choices=exporting.FORMATS, help="neo4j: a folder of three files")
    parser.add_argument("--out", required=True, help="the file to write; for neo4j the folder")
    flags = parse_flags(parser, argv)
    store, _ = open_graph(flags.store)
    with keeping(lambda: f"{flags.out} is as it was"):
        for file in exporting.write(store, flags.format, flags.out):
            say(f"{file}: {file.stat().st_size:,} bytes")


def push(argv: list[str]) -> None:
    """Send the merged triples to an RDF store (SPARQL 1.1) or to Neo4j; the password is read from GRAPH_PASSWORD."""
    parser = _parser(push)
    parser.add_argument("--endpoint", help="URL of the graph store; with --protocol update: of the update endpoint")
    parser.add_argument("--protocol", choices=pushing.PROTOCOLS, default="store", help="protocol of SPARQL 1.1")
    parser.add_argument("--graph", default=pushing.GRAPH, help="IRI of the graph on the server that is replaced")
    parser.add_argument("--neo4j", help="address of Neo4j, such as bolt://localhost:7687, instead of --endpoint")
    parser.add_argument("--user", default="", help="user name; default: no login")
    flags = parse_flags(parser, argv)
    if (flags.endpoint is None) == (flags.neo4j is None):
        raise UserError("push: give either --endpoint URL or --neo4j ADDRESS")
    store, _ = open_graph(flags.store)
    with keeping(lambda: "a part may be there already; the same command pushes it again, whole"):
        if flags.neo4j is None:
            lines = pushing.triple_lines(store)
            sent = pushing.push_sparql(lines, flags.endpoint, flags.protocol, flags.graph, flags.user)
            say(f"{flags.endpoint}: {sent} lines in the graph {flags.graph}")
            return
        with pushing.open_neo4j(flags.neo4j, flags.user) as run:
            sent = pushing.push_neo4j(store, run)
        say(f"{flags.neo4j}: {sent} triples")


def show(argv: list[str]) -> None:
    """Draw a graph, or the part around an entity, as one HTML file that works without a network."""
    parser = _parser(show)
    parser.add_argument("--out", help="the HTML file to write")
    parser.add_argument("--png", help="also draw a small graph as a picture")
    parser.add_argument("--entity", help="draw the part around this entity; default: the entities with most triples")
    parser.add_argument("--hops", type=int, default=2, help="maximum distance from --entity")
    parser.add_argument("--limit", type=int, default=500, help="maximum number of triples")
    flags = parse_flags(parser, argv)
    check_ranges(flags, RANGES | {"limit": Range(1, 20_000)})
    if flags.out is None and flags.png is None:
        raise UserError("show: give --out FILE.html, or --png FILE.png")
    for flag, path in (("--out", flags.out), ("--png", flags.png)):
        if path is not None:
            check_output(path, flag)
    store, _ = open_graph(flags.store)
    if flags.entity is None:
        triples, more = drawing.choose_triples(store, flags.limit)
    else:
        found, more = queries.neighbours(store, queries.find_entities(store, flags.entity), flags.hops, flags.limit)
        triples = [triple for _, triple in found]
    what = f"{len(triples)} triples" + (", a part of the graph (--limit)" if more else "")
    data = drawing.as_data(store, triples, f"{what} · {flags.store}")
    if flags.out is not None:
        write_lines(flags.out, [drawing.page(data)])
        say(f"{flags.out}: {what}; open it in a browser")
    if flags.png is not None:
        drawing.draw(data, Path(flags.png))
        say(f"{flags.png}: {what}")


def _print_triples(store, triples: list, is_json: bool, numbers) -> None:
    titles = ["hop", "head", "relation", "tail", "sources"]
    sources = (queries.sources_of(store, triple) for triple in triples)
    rows = ([hop, *queries.as_names(t), s] for hop, t, s in zip(numbers, triples, sources, strict=True))
    if not is_json:
        rows = ([*row[:-1], _cell(sorted({str(one["id"]) for one in row[-1]}))] for row in rows)
    _print_rows(titles, rows, "json" if is_json else "table", len(triples))


def _print_rows(titles: list[str], rows, form: str, most: int = 10**9) -> None:
    for line in as_table(titles, rows, most) if form == "table" else FORMATS[form](titles, rows):
        print(line)


def _cell(value) -> str:
    """A list as one cell of a table."""
    if not isinstance(value, list):
        return value
    return " / ".join(map(str, value[:5])) + (f" … {len(value) - 5} more" if len(value) > 5 else "")


RUN = (build, remove, merge, merges, stats, check, query, neighbours, path, export, push, show)
COMMANDS = {run.__name__: run for run in RUN}


def main(argv=None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:12}{run.__doc__.splitlines()[0]}" for name, run in COMMANDS.items()]
        print(f"{__doc__}\ncommands:\n" + "\n".join(lines))
        return
    if argv[0] not in COMMANDS:
        raise UserError(f"{argv[0]!r}: no command; expected one of {', '.join(COMMANDS)}")
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    run_script(main)
