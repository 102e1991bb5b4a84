"""The graph of the page: what is around a name, where a triple comes from, verdicts, files of it."""

import shutil
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from kg import drawing, graph, judging, quality, queries
from kg import export as exporting
from kg.evidence import Run, Source, text_digest
from kg.store import let_go, open_graph, read_current
from kg.terms import source_iri

LEDGER, CORRECTIONS = "verdicts.jsonl", "corrections.jsonl"
ENDINGS = {"nquads": "nq", "turtle": "ttl", "neo4j": "zip"}  # of files; else the form's own name
NOTHING = {"nodes": [], "edges": [], "relations": [], "note": "", "more": False, "generation": 0}
SHOWN = 300  # triples of a view


class Graphs:
    """The graph in a folder, and the verdicts beside it. One request at a time works at them."""

    def __init__(self, store: Path, folder: Path):
        self.folder, self.store = folder, store
        self.lock = threading.Lock()
        self.opened: tuple[int, object] | None = None  # generation and store

    @contextmanager
    def _reading(self):
        """The open store; None where there is no graph yet."""
        with self.lock:
            current = read_current(self.store)
            if current is None:
                yield None
                return
            if self.opened is None or self.opened[0] != current[0]:
                self.opened = None
                self.opened = (current[0], open_graph(self.store)[0])
            yield self.opened[1]

    @contextmanager
    def _changing(self):
        with self.lock:
            self.opened = None
            let_go(self.store)
            yield

    def close(self) -> None:
        with self._changing():
            pass

    def view(self, name: str | None, hops: int, limit: int) -> dict:
        """What is around a name, or the entities in most triples: nodes, edges with sources, relations; `more`: not
        all of it. UserError that shows names like it.
        """
        with self._reading() as store:
            if store is None:
                return NOTHING
            if name:
                found, more = queries.neighbours(store, queries.find_entities(store, name), hops, limit)
                triples = [triple for _, triple in found]
            else:
                triples, more = drawing.choose_triples(store, limit)
            return drawing.as_data(store, triples) | {"more": more, "generation": self.opened[0]}

    def names(self, part: str) -> list[str]:
        with self._reading() as store:
            return queries.similar_names(store, part, 8) if store is not None and part.strip() else []

    def stats(self) -> dict:
        with self._reading() as store:
            return quality.stats(store) if store is not None else {}

    def record(self, run: str, collection: str, identity) -> dict:
        """A source of the graph: its text, topic and triples. UserError where there is none."""
        with self._reading() as store:
            if store is None:
                raise UserError("there is no graph yet")
            _, _, one = judging.read_source(store, source_iri(run, collection, identity))
            triples = [list(triple) for triple in one.triples]
            return {"text": one.text, "topic": one.topic, "triples": triples}

    def keep(self, run: str, text: str, topic: str, triples: list[tuple]) -> dict:
        """Bring an answer into the graph; what was counted. The same text again replaces it."""
        one = Source(f"text {text_digest(text)}", list(dict.fromkeys(triples)), text, topic)
        with self._changing():
            return dict(graph.build(self.store, [one], Run(run), graph.usual_settings()))

    def bring_job(self, jobs, job: dict) -> dict:
        """Bring a finished job's triples into the graph; what was counted."""
        with self._changing():
            return jobs.bring_into(job, self.store)

    def judge(self, said: dict) -> dict:
        """Note verdicts (kg.judging.append_verdicts), put the graph right, and write the training records anew."""
        with self._changing():
            judging.append_verdicts(self.folder / LEDGER, said)
            mine = judging.read_verdicts(self.folder / LEDGER)[said["text"]]
            right = judging.right_triples(mine)
            wrong = [triple for triple in mine["triples"] if triple not in right]
            judging.put_right(self.store, said["text"], said["topic"], right, wrong)
            records = judging.write_corrections(self.folder / LEDGER, self.folder / CORRECTIONS)
            return {"records": records, "right": [list(triple) for triple in right]}

    def verdicts(self, text: str) -> dict:
        """What was said of a text: triples that are right and wrong, and whether that is all of them."""
        with self.lock:
            mine = judging.read_verdicts(self.folder / LEDGER).get(text)
            if mine is None:
                return {"right": [], "wrong": [], "complete": False}
            right = judging.right_triples(mine)
            wrong = [list(triple) for triple in mine["triples"] if triple not in right]
            return {"right": [list(triple) for triple in right], "wrong": wrong, "complete": mine["complete"]}

    def corrections(self) -> Path | None:
        file = self.folder / CORRECTIONS
        return file if file.is_file() else None

    def export(self, form: str) -> tuple[Path, str, Path]:
        """The graph as a file, what to call it, and the folder to remove once it is sent. UserError without a graph."""
        scratch = Path(tempfile.mkdtemp(prefix="kg-export-"))
        try:
            with self._reading() as store:
                if store is None:
                    raise UserError("there is no graph yet")
                name = f"graph.{ENDINGS.get(form, form)}"
                if form == "neo4j":
                    exporting.write(store, form, scratch / "neo4j")
                    file = Path(shutil.make_archive(str(scratch / "graph"), "zip", scratch / "neo4j"))
                else:
                    (file,) = exporting.write(store, form, scratch / name)
            return file, name, scratch
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
