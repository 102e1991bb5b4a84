"""A corpus -> a line of triples for each document, shard by shard, so that no interruption asks anything twice.

Documents are read one by one and gathered in shards of some hundred. While a corpus is worked on, there stand

    FILE.partial              the settings of the run, as of a prediction's partial file; it is locked
    FILE.parts/NUMBER.jsonl   a finished shard, whole or not there: a line of what it is about, then its rows
    FILE.parts/NUMBER.jsonl.partial   the answers of the shard that is being asked, in one process

The same command reads the documents again, and asks about those shards that have no file, and about those windows of
others that failed. At the end the rows go to FILE in the order of the documents.
"""

import hashlib
import json
import shutil
import sqlite3
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from common.errors import UserError, say
from common.files import to_line, write_lines
from data.documents import Document
from prediction import partial
from prediction.answered import add_text, count_failed, find_known, find_text, open_table, read_row
from prediction.feeding import TOGETHER, side_by_side
from prediction.predicting import NOTHING_DONE, Share
from prediction.texts import Opened, Wanted, answer_documents

MOST_CHARACTERS = 4_000_000  # of a shard, whatever number of documents they are; a longer document is one by itself


class Shard(NamedTuple):
    """Documents that are answered together."""

    number: int
    first: int  # number of its first document in the corpus
    documents: list[Document]
    same: list[int | None]  # of each the number of an earlier document with the same text, if there is one
    digest: str  # of all that
    known: dict[int, dict] = {}  # by the place of a document, what an earlier run has found in it  # noqa: RUF012

    @property
    def asked(self) -> list[Document]:
        """Those that a model is asked about."""
        return [self.documents[place] for place in self.places]

    @property
    def again(self) -> list[dict | None]:
        """Of each of them what was found in its other windows, when some failed."""
        return [self.known.get(place) for place in self.places]

    @property
    def places(self) -> list[int]:
        """Where they stand among the documents."""
        return [
            place
            for place, (document, same) in enumerate(zip(self.documents, self.same, strict=True))
            if same is None and not document.reason and (place not in self.known or count_failed(self.known[place]))
        ]

    @property
    def about(self) -> dict:
        """What the answers of its partial file belong to."""
        if not self.known:
            return {"shard": self.digest}
        left = to_line([[document.id for document in self.asked], self.again])
        return {"shard": self.digest, "left": hashlib.sha256(left.encode()).hexdigest()[:32]}


class Corpus(NamedTuple):
    """What is to be done."""

    documents: Callable[[], Iterable[Document]]
    size: int  # bytes of the input, for the progress
    output: str
    wanted: Wanted
    most: int  # tokens of a prompt
    shard_size: int  # most documents of a shard


def parts_folder(output: str | Path) -> Path:
    return Path(f"{output}.parts")


def part_path(output: str | Path, number: int) -> Path:
    return parts_folder(output) / f"{number:06}.jsonl"


def make_shards(documents: Iterable[Document], size: int, seen: sqlite3.Connection) -> Iterator[Shard]:
    """Shards of at most `size` documents and about MOST_CHARACTERS; the same for the same documents."""
    number = first = 0
    gathered: list[Document] = []
    same: list[int | None] = []
    length = 0
    for document in documents:
        if gathered and (len(gathered) == size or length + len(document.text) > MOST_CHARACTERS):
            yield Shard(number, first, gathered, same, _digest(gathered, same))
            number, first, gathered, same, length = number + 1, first + len(gathered), [], [], 0
        same.append(_seen_before(seen, document.text, first + len(gathered)))
        gathered.append(document)
        length += len(document.text)
    if gathered:
        yield Shard(number, first, gathered, same, _digest(gathered, same))


def _digest(documents: list[Document], same: list[int | None]) -> str:
    told = hashlib.sha256()
    for document, earlier in zip(documents, same, strict=True):
        told.update(json.dumps([*document[:-1], earlier], default=str).encode())
    return told.hexdigest()[:32]


def open_seen(folder: Path) -> sqlite3.Connection:
    """A table of the texts that were read."""
    return open_table(folder / "seen.db")


def _seen_before(seen: sqlite3.Connection, text: str, number: int) -> int | None:
    """The number of the first document with this text, if that is another; an empty one is like none."""
    if not text.strip() or add_text(seen, text, number):
        return None
    return find_text(seen, text)


def is_finished(output: str | Path, shard: Shard) -> bool:
    """Whether the part of a shard is there, about the same documents, and no window of them has failed."""
    about = read_about(part_path(output, shard.number))
    return about.get("shard") == shard.digest and not about.get("failed")


def read_about(path: Path) -> dict:
    """The first line of a part; {} without one, or where it is damaged."""
    try:
        with open(path, "rb") as file:
            return read_row(file.readline())
    except FileNotFoundError:
        return {}


def write_part(output: str | Path, shard: Shard, answered: list[dict], share: Share) -> None:
    """A shard's rows, whole or not at all; `answered`: of its documents that were asked about, in their order."""
    found = shard.known | dict(zip(shard.places, answered, strict=True))
    rows = []
    for place, (document, same) in enumerate(zip(shard.documents, shard.same, strict=True)):
        row = {name: value for name, value in row_of(document).items() if value not in (None, "")}
        if same is not None:
            row["same_as"] = same  # by its number; `gather` knows its name and its triples
        elif not document.reason:
            row |= found[place]
        rows.append(row)
    path = part_path(output, shard.number)
    before = read_about(path)
    before = before if before.get("shard") == shard.digest else {}
    counts = {"answers": share.count, "new_tokens": share.tokens, "seconds": round(share.seconds, 3)}
    about = {"shard": shard.digest, "documents": len(rows), "first": shard.first}
    about |= {name: value + before.get(name, 0) for name, value in counts.items()}
    about["failed"] = sum(count_failed(row) for row in rows if "windows" in row)
    write_lines(path, map(to_line, [about, *rows]))
    for left in partial.partial_paths(path):
        left.unlink()


def row_of(document: Document) -> dict:
    """What the output says of a document, before what was found in it."""
    return {
        "id": document.id,
        "path": document.path,
        "line": document.line,
        "own_id": document.own,
        "encoding": document.encoding,
        "reason": document.reason,
        "text": document.text,
    }


def answer_here(open_here: Callable[[], Opened], corpus: Corpus) -> Callable:
    """Shards -> (shard, rows, Share) of each, in this process. `open_here()` is called for the first of them."""

    def answer_all(shards: Iterator[Shard]) -> Iterator[tuple[Shard, list[dict], Share]]:
        if (first := next(shards, None)) is None:
            return
        opened = open_here()
        most = TOGETHER if opened.feed else 1
        try:
            yield from side_by_side(lambda shard: answer_shard(opened, corpus, shard), chain([first], shards), most)
        finally:
            if opened.feed:
                opened.feed.close()

    return answer_all


def answer_shard(opened: Opened, corpus: Corpus, shard: Shard) -> tuple[Shard, list[dict], Share]:
    """A shard, the rows of its documents that were asked about, and what that took; its answers are on disk as they
    come.
    """
    part, about = part_path(corpus.output, shard.number), shard.about
    if partial.recorded_settings(part) not in (None, about):  # the documents are others by now
        partial.partial_path(part).unlink()
    done = partial.resume_partial(part, about)

    def keep(rows: dict[int, dict]) -> None:
        partial.append_answers(part, rows)

    return shard, *answer_documents(opened, corpus.wanted, shard.asked, corpus.most, shard.again, done, keep)


def answer_corpus(
    corpus: Corpus, answer_all: Callable, skipped: Counter, recalled: Callable[[str], dict | None] = lambda text: None
) -> list[str]:
    """Answer every shard that has no part yet; the digests of all shards, in their order.

    `answer_all(shards)` yields (shard, rows, Share) in any order; each is on disk before the next is asked for.
    `recalled`: see prediction.answered.recall.
    """
    folder, digests, counts = parts_folder(corpus.output), [], Counter()
    skipped.clear()
    with tqdm(total=corpus.size, unit="B", unit_scale=True, desc="documents", mininterval=1) as bar:

        def todo() -> Iterator[Shard]:
            before = 0
            for shard in make_shards(corpus.documents(), corpus.shard_size, seen):
                digests.append(shard.digest)
                ends[shard.number] = shard.documents[-1].end - before
                before = shard.documents[-1].end
                counts["documents"] += len(shard.documents)
                if is_finished(corpus.output, shard):
                    counts["kept"] += len(shard.documents)
                else:
                    part = part_path(corpus.output, shard.number)
                    shard = shard._replace(known=find_known(shard.documents, part, recalled))
                    again = sum(one is not None for one in shard.again)
                    counts["again"] += again
                    counts["kept"] += sum(bool(found["windows"]) for found in shard.known.values()) - again
                    if shard.asked:
                        yield shard
                        continue
                    write_part(corpus.output, shard, [], NOTHING_DONE)
                bar.initial += ends[shard.number]  # no work: it says nothing about the time that is left
                bar.update(ends[shard.number])

        seen, ends = open_seen(folder), {}
        try:
            for shard, rows, share in answer_all(todo()):
                write_part(corpus.output, shard, rows, share)
                bar.update(ends[shard.number])
                bar.set_postfix(documents=shard.first + len(shard.documents), refresh=False)
            bar.update(corpus.size - bar.n)  # rows are about as large as counted
        finally:
            seen.close()
            (folder / "seen.db").unlink(missing_ok=True)
    if counts["kept"]:
        say(f"resume: {counts['kept']} of {counts['documents']} documents were answered before")
    if counts["again"]:
        say(f"asked again: {counts['again']} documents, about the windows that had failed")
    return digests


def is_whole(corpus: Corpus, settings: dict, made: dict | None) -> bool:
    """Whether the output is there already, made of the same documents with the same settings, and no window failed.
    `made`: of prediction.answered.read_made.
    """
    if made is None or partial.recorded_settings(corpus.output) is not None:
        return False
    results = made.get("results")
    if made["settings"] != json.loads(to_line(settings)) or not isinstance(results, dict) or results.get("error"):
        return False
    with open(corpus.output, "rb") as file:  # something may have cut it since
        if sum(line.endswith(b"\n") for line in file) != results.get("documents"):
            return False
    seen = open_seen(parts_folder(corpus.output))
    try:
        shards = make_shards(corpus.documents(), corpus.shard_size, seen)
        return [shard.digest for shard in shards] == made.get("shards")
    finally:
        seen.close()
        drop_parts(corpus.output)


def gather(output: str | Path, shards: int, counts: Counter) -> Iterator[dict]:
    """The rows of all parts in order, and `counts` of what they hold.

    A document that says the same as an earlier one gets its windows and triples. Kept is where each line begins: 8
    bytes a document. UserError for a part that something has damaged.
    """
    begins, firsts = array("Q"), []  # of each document in its part; of each part its first document
    for number in range(shards):
        path = part_path(output, number)
        damaged = f"{path}: damaged; delete it, and the same command asks about its documents again"
        with open(path, "rb") as file:
            about = json.loads(file.readline())
            firsts.append(about["first"])
            counts.update({name: about[name] for name in ("answers", "new_tokens", "seconds")})
            at = file.tell()
            for line in file:
                begins.append(at)
                at += len(line)
                if not (row := read_row(line)):
                    raise UserError(damaged)
                if (same := row.get("same_as")) is not None:
                    with open(part_path(output, bisect(firsts, same) - 1), "rb") as other:
                        other.seek(begins[same])
                        first = json.loads(other.readline())
                    row |= {"same_as": first["id"]}
                    row |= {name: first[name] for name in ("windows", "triples")}
                _count_row(row, counts)
                yield row
        if len(begins) != about["first"] + about["documents"]:
            raise UserError(damaged)


def _count_row(row: dict, counts: Counter) -> None:
    counts["documents"] += 1
    counts["unread"] += "reason" in row
    counts["repeated"] += "same_as" in row
    if "encoding" in row:
        counts[f"encoding {row['encoding']}"] += 1
    counts["triples"] += len(row.get("triples", ()))
    for window in row.get("windows", ()) if "same_as" not in row else ():
        counts["windows"] += 1
        counts[window["finish_reason"]] += 1


def drop_parts(output: str | Path) -> None:
    """Take away what finished shards have left."""
    shutil.rmtree(parts_folder(output), ignore_errors=True)
