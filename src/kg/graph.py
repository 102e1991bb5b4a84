"""A graph built, changed and cut back: sources in, merged triples out. The stores of src/kg/store.py are behind it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from kg import entities as known
from kg.entities import Mention, find, mentions
from kg.evidence import Run, Source, detail_lines, detail_of, iri_of, run_lines, text_digest, triple_lines
from kg.relations import Relations, read_relations, relations_of
from kg.store import Settings, change_graph, oxigraph, scratch_in
from kg.terms import MERGES, RUN, SOURCE, SOURCES, TERM, encode, identity_text

AT_ONCE = 20_000  # changed triples; of more, the graph of merged triples is made anew, which is faster
CHUNK = 2**25  # characters of a file that is loaded at a time: what bounds memory
BATCH = 100_000  # quads that are taken out at a time


def usual_settings() -> Settings:
    """Of a new graph for which nobody asks for others."""
    return Settings("alias", read_relations(None))


class Change(NamedTuple):
    """Lines of N-Quads that a change brings and takes away, in files, and how many triples change (about)."""

    added: Path
    removed: Path
    triples: int


def build(
    directory: str | Path,
    sources: Iterable[Source],
    run: Run,
    settings: Settings,
    collection: str = "",
    with_text: bool = True,
    changed_texts: bool = False,
    resettle: bool = False,
) -> Counter:
    """Bring the sources of a run into the graph of a folder, which is made if it is not there; what was counted.

    A source that is there already is replaced where it differs. UserError for an id that comes twice, and, unless
    `changed_texts`, for one that is there with another text. `resettle`: the settings count for a graph that is there
    too; else it keeps its own.
    """

    def work(store, found: Settings):
        chosen = settings if resettle else found
        with scratch_in(directory) as folder:
            counts = bring(
                store,
                sources,
                run,
                chosen,
                Path(folder),
                collection,
                with_text=with_text,
                changed_texts=changed_texts,
                anew=chosen != found,
            )
        return counts, chosen if counts["added"] or counts["replaced"] or chosen != found else None

    return change_graph(directory, "--store", settings, work)


def bring(
    store,
    sources: Iterable[Source],
    run: Run,
    settings: Settings,
    scratch: Path,
    collection: str = "",
    with_text: bool = True,
    changed_texts: bool = False,
    anew: bool = False,
    at_once: int = AT_ONCE,
) -> Counter:
    """As `build`, into an open store. `scratch`: a folder for files; `anew`: merge all anew, by new settings."""
    counts = Counter()
    sources = _each_once(sources, counts)
    if not store:
        _fill(store, sources, run, settings, scratch, collection, with_text)
        counts["added"] = counts["records"]
    else:
        change = _compare(store, sources, run, scratch, collection, with_text, changed_texts, counts)
        _apply(store, change, settings, scratch, anew or change.triples > at_once)
    if not counts["records"]:
        raise UserError("there is no record to build a graph from")
    return counts


def _each_once(sources: Iterable[Source], counts: Counter) -> Iterator[Source]:
    """Count sources and triples. UserError for an id that comes twice."""
    seen = set()
    for source in sources:
        identity = identity_text(source.identity)
        if identity in seen:
            raise UserError(f"{source.name} comes twice; convert.py --dedupe keeps the last of each")
        seen.add(identity)
        counts["records"] += 1
        counts["triples"] += len(source.triples)
        yield source


def _fill(store, sources: Iterable[Source], run: Run, settings: Settings, scratch: Path, collection, with_text) -> None:
    """Bring sources into an empty store: read, loaded and merged at the same time, through files of limited size."""

    def pieces():
        for source in sources:
            graph = iri_of(source, run, collection)
            yield "".join(triple_lines(source, graph) + detail_lines(source, graph, run, collection, with_text))
        yield "".join(run_lines(run))

    with ThreadPoolExecutor(1) as loading:  # which needs no Python
        loads = []

        def load(file: Path) -> None:
            loads.append(loading.submit(bulk_load, store, file))

        said = spool(pieces(), scratch, "said", load)
        spool(_derived(settings, said), scratch, "derived", load)
        for one in loads:
            one.result()


def spool(pieces: Iterable[str], folder: Path, name: str, done=lambda file: None, chunk: int = CHUNK) -> list[Path]:
    """Write pieces of text to files of about `chunk` characters; `done` is called with each that is whole."""
    pieces, files = iter(pieces), []
    while (piece := next(pieces, None)) is not None:
        files.append(folder / f"{name}-{len(files)}.nq")
        with open(files[-1], "w", encoding="utf-8") as file:
            size = 0
            while piece is not None:
                size += file.write(piece)
                piece = next(pieces, None) if size < chunk else None
        done(files[-1])
    return files


def remove(directory: str | Path, chosen: Callable[[object], list[str]]) -> Counter:
    """Take the sources that `chosen(store)` names (IRIs) out of the graph, and all that nothing else supports."""

    def work(store, settings: Settings):
        with scratch_in(directory) as folder:
            counts = take(store, chosen(store), settings, Path(folder))
        return counts, settings if counts["removed"] else None

    return change_graph(directory, "--store", None, work)


def take(store, graphs: list[str], settings: Settings, scratch: Path) -> Counter:
    """As `remove`, out of an open store."""
    counts = Counter()
    added, removed = scratch / "added.nq", scratch / "removed.nq"
    added.write_text("")
    with open(removed, "w", encoding="utf-8") as file:
        for graph in graphs:
            lines = [_line(quad) for quad in (*_said_by(store, graph), *find(store, graph, None, None, SOURCES))]
            counts["removed"] += 1
            counts["triples"] += sum(line.endswith(f" <{graph}> .\n") for line in lines)
            file.writelines(lines)
    _apply(store, Change(added, removed, counts["triples"]), settings, scratch, counts["triples"] > AT_ONCE)
    _drop_runs(store)
    return counts


def sources_of_document(store, identity, collection: str | None = None) -> list[str]:
    """The graphs of all runs for a record's id."""
    ox = oxigraph()
    quads = store.quads_for_pattern(
        None, ox.NamedNode(f"{TERM}id"), ox.Literal(identity_text(identity)), ox.NamedNode(SOURCES)
    )
    found = [quad.subject.value for quad in quads]
    end = None if collection is None else f":{encode(collection)}:{encode(identity_text(identity))}"
    return sorted(graph for graph in found if end is None or graph.endswith(end))


def sources_of_run(store, name: str) -> list[str]:
    """The graphs of all records that a run answered."""
    return [quad.subject.value for quad in find(store, None, f"{TERM}run", f"{RUN}{encode(name)}", SOURCES)]


def remerge(directory: str | Path, settings: Settings) -> None:
    """Make the merged triples anew from what the sources say, by other settings."""

    def work(store, _):
        with scratch_in(directory) as folder:
            _merge_anew(store, settings, Path(folder))
        return None, settings

    change_graph(directory, "--store", None, work)


def _compare(store, sources, run: Run, folder: Path, collection, with_text, changed_texts, counts: Counter) -> Change:
    """Write what the sources bring and take away to files of `folder`; count what becomes of them."""
    ox = oxigraph()
    added, removed, changed = folder / "added.nq", folder / "removed.nq", 0
    with open(added, "w", encoding="utf-8") as new, open(removed, "w", encoding="utf-8") as old:
        for source in sources:
            graph = iri_of(source, run, collection)
            lines = triple_lines(source, graph) + detail_lines(source, graph, run, collection, with_text)
            before = list(find(store, graph, None, None, SOURCES))
            if not before:
                counts["added"] += 1
                changed += len(source.triples)
                new.writelines(lines)
                continue
            _check_text(source, before, changed_texts)
            there = {*before, *_said_by(store, graph)}
            now = set(ox.parse("".join(lines).encode(), ox.RdfFormat.N_QUADS, lenient=True))
            counts["unchanged" if there == now else "replaced"] += 1
            changed += len(there ^ now)
            new.writelines(sorted(map(_line, now - there)))
            old.writelines(sorted(map(_line, there - now)))
        _compare_run(store, run, new, old)
    return Change(added, removed, changed)


def _compare_run(store, run: Run, new, old) -> None:
    quads = list(find(store, f"{RUN}{encode(run.name)}", None, None, SOURCES))
    adapter = next((quad.object.value for quad in quads if quad.predicate.value == f"{TERM}adapter"), "")
    if adapter and run.adapter and adapter != run.adapter:
        raise UserError(
            f"the run {run.name} is in the graph with the adapter {adapter}, this one has {run.adapter}; give this one "
            "a name of its own by --run NAME, or take the old one away by remove --run"
        )
    there = {_line(quad) for quad in quads}
    now = set(run_lines(run))
    new.writelines(sorted(now - there))
    old.writelines(sorted(there - now))


def _check_text(source: Source, before, changed_texts: bool) -> None:
    old = detail_of(before).get("text")
    if not changed_texts and old and source.text and old != text_digest(source.text):
        raise UserError(
            f"{source.name} is in the graph with another text; --changed_texts replaces it, "
            "--collection NAME keeps records of another file with the same ids apart"
        )


def _said_by(store, graph: str) -> list:
    return [quad for quad in find(store, None, None, None, graph) if quad.predicate.value != known.IS]


def _line(quad) -> str:
    return f"{quad.subject} {quad.predicate} {quad.object} {quad.graph_name} .\n"


def _apply(store, change: Change, settings: Settings, scratch: Path, anew: bool) -> None:
    """Bring a change into the graphs of sources, and the merged triples up to date with it, or all of them `anew`."""
    if anew:
        _take_out(store, _parse(change.removed))
        bulk_load(store, change.added)
        _merge_anew(store, settings, scratch)
        return
    gone, come = list(_parse(change.removed)), list(_parse(change.added))
    _take_out(store, gone)
    store.extend(come)
    _update(store, [m for m in map(_mention, gone) if m], [m for m in map(_mention, come) if m], settings)


def _parse(file: Path) -> Iterator:
    ox = oxigraph()
    return (
        iter(ox.parse(path=str(file), format=ox.RdfFormat.N_QUADS, lenient=True)) if file.stat().st_size else iter(())
    )


def bulk_load(store, file: Path) -> None:
    """Load a file of N-Quads that were made here."""
    if file.stat().st_size:
        store.bulk_load(path=str(file), format=oxigraph().RdfFormat.N_QUADS, lenient=True)


def _take_out(store, quads: Iterable) -> None:
    for quad in quads:
        store.remove(quad)


def _mention(quad) -> Mention | None:
    graph = getattr(quad.graph_name, "value", "")
    is_one = graph.startswith(SOURCE)
    return (quad.subject.value, quad.predicate.value, quad.object.value, graph) if is_one else None


def _merge_anew(store, settings: Settings, scratch: Path) -> None:
    """Take out what follows from the graphs of sources, and make it again."""
    ox = oxigraph()
    store.clear_graph(ox.DefaultGraph())
    store.clear_graph(ox.NamedNode(MERGES))
    while parts := list(islice(find(store, None, known.IS), BATCH)):
        _take_out(store, parts)
    said = spool((f"<{h}> <{r}> <{t}> <{graph}> .\n" for h, r, t, graph in mentions(store)), scratch, "said")
    for file in spool(_derived(settings, said), scratch, "derived"):
        bulk_load(store, file)


def _derived(settings: Settings, said: list[Path]) -> Iterator[str]:
    """The lines of all that follows from the triples of sources, which are among the lines of the files `said`."""
    found, forms = known.resolve_all(lambda: _mentions_in(said), settings, relations_of(settings.relations))
    moved = found.same.keys() | found.parts.keys()
    yield from known.entity_lines(found, forms)
    for mention in _mentions_in(said):
        head, relation, tail = mention[:3]
        if head in moved or tail in moved:
            head, relation, tail = found.merged(mention)
        yield f"<{head}> <{relation}> <{tail}> .\n"


def _mentions_in(files: list[Path]) -> Iterator[Mention]:
    start = f"<{known.ENTITY}"
    for path in files:
        with open(path, encoding="utf-8", newline="\n") as file:
            for line in file:
                if line.startswith(start):
                    head, relation, tail, source, _ = line.split(" ")
                    yield head[1:-1], relation[1:-1], tail[1:-1], source[1:-1]


def _update(store, gone: list[Mention], come: list[Mention], settings: Settings) -> None:
    """Bring the merged triples up to date with mentions that have gone and come."""
    ox = oxigraph()
    relations: Relations = relations_of(settings.relations)
    touched = {name for head, _, tail, _ in gone + come for name in (head, tail)}
    known.note_forms(store, {name for head, _, tail, _ in come for name in (head, tail)})
    new, forms, near = known.resolve_near(store, touched, settings, relations)
    old = known.read_entities(store, near)
    changed = {n for n in near if (old.same.get(n), old.parts.get(n)) != (new.same.get(n), new.parts.get(n))}
    moved = {m for name in changed for m in (*mentions(store, name), *mentions(store, None, None, name))}
    moved -= set(come)
    others = {name for head, _, tail, _ in moved for name in (head, tail)} - near
    there = known.read_entities(store, others)
    for entities in (old, new):
        entities.same.update(there.same)
        entities.parts.update(there.parts)

    before = {old.merged(mention) for mention in (*gone, *moved)}
    after = {new.merged(mention) for mention in (*come, *moved)}
    stale = [quad for name in near for quad in (*find(store, name, None, None, MERGES), *find(store, name, known.IS))]
    own = known.Entities(
        {name: new.same[name] for name in near if name in new.same},
        {name: new.parts[name] for name in near if name in new.parts},
        new.apart,
    )
    _take_out(store, stale)
    store.load("".join(known.entity_lines(own, forms)).encode(), ox.RdfFormat.N_QUADS, lenient=True)
    for triple in sorted(before - after):
        if not known.mentions_of(store, *triple):
            store.remove(ox.Quad(*map(ox.NamedNode, triple)))
    store.extend([ox.Quad(*map(ox.NamedNode, triple)) for triple in after])


def _drop_runs(store) -> None:
    """What is known of runs of which no record is left."""
    for quad in list(find(store, None, f"{TERM}name", None, SOURCES)):
        run = quad.subject.value
        if not any(True for _ in find(store, None, f"{TERM}run", run, SOURCES)):
            _take_out(store, list(find(store, run, None, None, SOURCES)))
