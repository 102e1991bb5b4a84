"""A corpus -> a line of triples for each document, shard by shard, so that no interruption asks anything twice.

Documents are read one by one and gathered in shards of some hundred. While a corpus is worked on, there stand

    FILE.partial              the settings of the run, as of a prediction's partial file; it is locked
    FILE.parts/NUMBER.jsonl   a finished shard, whole or not there: a line of what it is about, then its rows
    FILE.parts/NUMBER.jsonl.partial   the answers of the shard that is being asked, in one process

The same command reads the documents again, and asks about those shards that have no file. At the end the rows go to
FILE in the order of the documents.
"""

import hashlib
import json
import shutil
import sqlite3
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from common import manifest
from common.errors import say
from common.files import to_line, write_lines
from data.documents import Document
from prediction import partial
from prediction.predicting import Share
from prediction.texts import Opened, Wanted, answer_documents

MOST_CHARACTERS = 4_000_000  # of a shard, whatever number of documents they are; a longer document is one by itself


class Shard(NamedTuple):
    """Documents that are answered together."""

    number: int
    first: int  # number of its first document in the corpus
    documents: list[Document]
    same: list[int | None]  # of each the number of an earlier document with the same text, if there is one
    digest: str  # of all that

    @property
    def asked(self) -> list[Document]:
        """Those that a model is asked about."""
        pairs = zip(self.documents, self.same, strict=True)
        return [one for one, same in pairs if same is None and not one.reason]


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
    """A table of texts that were read, on disk: it is made anew by every run, and need not outlive a crash."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "seen.db"
    file.unlink(missing_ok=True)
    seen = sqlite3.connect(file, isolation_level=None)
    for line in ("journal_mode = off", "synchronous = off", "cache_size = -65536"):
        seen.execute(f"pragma {line}")
    seen.execute("create table seen (digest blob primary key, number integer) without rowid")
    return seen


def _seen_before(seen: sqlite3.Connection, text: str, number: int) -> int | None:
    """The number of the first document with this text, if that is another; an empty one is like none."""
    if not text.strip():
        return None
    digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()[:16]
    if seen.execute("insert or ignore into seen values (?, ?)", (digest, number)).rowcount:
        return None
    return seen.execute("select number from seen where digest = ?", (digest,)).fetchone()[0]


def is_finished(output: str | Path, shard: Shard) -> bool:
    """Whether the part of a shard is there, and about the same documents."""
    about = read_about(part_path(output, shard.number))
    return about.get("shard") == shard.digest


def read_about(path: Path) -> dict:
    """The first line of a part; {} without one."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.loads(file.readline())
    except FileNotFoundError:
        return {}


def write_part(output: str | Path, shard: Shard, answered: list[dict], share: Share) -> None:
    """A shard's rows, whole or not at all; `answered`: of its documents that were asked about, in their order."""
    answered = iter(answered)
    rows = []
    for document, same in zip(shard.documents, shard.same, strict=True):
        row = {name: value for name, value in row_of(document).items() if value not in (None, "")}
        if same is not None:
            row["same_as"] = same  # by its number; `gather` knows its name and its triples
        elif not document.reason:
            row |= next(answered)
        rows.append(row)
    counts = {"answers": share.count, "new_tokens": share.tokens, "seconds": round(share.seconds, 3)}
    about = {"shard": shard.digest, "documents": len(rows), "first": shard.first, **counts}
    path = part_path(output, shard.number)
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
        opened = None
        for shard in shards:
            opened = opened or open_here()
            part, about = part_path(corpus.output, shard.number), {"shard": shard.digest}
            if partial.recorded_settings(part) not in (None, about):  # the documents are others by now
                partial.partial_path(part).unlink()
            done = partial.resume_partial(part, about)

            def keep(rows: dict[int, dict], part=part) -> None:
                partial.append_answers(part, rows)

            yield shard, *answer_documents(opened, corpus.wanted, shard.asked, corpus.most, done, keep)

    return answer_all


def answer_corpus(corpus: Corpus, answer_all: Callable, skipped: Counter) -> list[str]:
    """Answer every shard that has no part yet; the digests of all shards, in their order.

    `answer_all(shards)` yields (shard, rows, Share) in any order; each is on disk before the next is asked for.
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
                    bar.initial += ends[shard.number]  # no work: it says nothing about the time that is left
                    bar.update(ends[shard.number])
                    counts["kept"] += len(shard.documents)
                else:
                    yield shard

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
    return digests


def is_whole(corpus: Corpus, settings: dict) -> bool:
    """Whether the output is there already, made of the same documents with the same settings."""
    file = manifest.run_file_of(corpus.output)
    unfinished = partial.recorded_settings(corpus.output) is not None
    if unfinished or not Path(corpus.output).is_file() or not file.is_file():
        return False
    made = manifest.read_json(file, manifest.ADVICE)
    if not isinstance(made, dict) or made.get("settings") != json.loads(to_line(settings)):
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
    bytes a document.
    """
    begins, firsts = array("Q"), []  # of each document in its part; of each part its first document
    for number in range(shards):
        with open(part_path(output, number), "rb") as file:
            about = json.loads(file.readline())
            firsts.append(about["first"])
            counts.update({name: about[name] for name in ("answers", "new_tokens", "seconds")})
            at = file.tell()
            for line in file:
                begins.append(at)
                at += len(line)
                row = json.loads(line)
                if (same := row.get("same_as")) is not None:
                    with open(part_path(output, bisect(firsts, same) - 1), "rb") as other:
                        other.seek(begins[same])
                        first = json.loads(other.readline())
                    row |= {"same_as": first["id"]}
                    row |= {name: first[name] for name in ("windows", "triples")}
                _count_row(row, counts)
                yield row


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
