"""Workers without a model, for tests of what Ray distributes; and a driver that can be killed.

python tests/helpers_ray.py OUTPUT ADDRESS DOCUMENTS
"""

import hashlib
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from data.documents import Document

SHARD = 3
LOOK = 0.3  # seconds between two looks at which machines there are
LONGEST = 300  # seconds that anything may take; a worker is a new process, and Ray's own many


@dataclass
class Flags:
    """Of utils.args_ray.RayFlags, what is looked at."""

    ray: str | None = None
    output_file: str | None = None
    workers: int | None = None
    cpus_per_worker: int | None = 1
    device: str | None = None


class Stub:
    """A worker that is ready at once and notes in a file what it was asked for."""

    def __init__(self, model_args, args):
        self.log = Path(args.output_file + ".log")

    def open(self, longest, precision):
        return SimpleNamespace(value=None, said=["opened"])

    def call(self, function, *arguments):
        return SimpleNamespace(value=function(self.log, *arguments), said=[], decided={})


def hold_from(output, document):
    """Have no shard end that begins with this document or a later one; None: all may end."""
    gate = Path(f"{output}.gate")
    gate.unlink() if document is None else gate.write_text(str(document))


def may_pass(log, document) -> bool:
    try:
        return int(document) < int(log.with_suffix(".gate").read_text() or 0)
    except FileNotFoundError:
        return True


def wait_for(holds):
    end = time.monotonic() + LONGEST
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"in vain, {LONGEST} s long")
        time.sleep(0.05)


def answer_stub(log, seconds, documents, most, again, may_end=lambda: True):
    """Of each document what follows from its text alone, so many seconds after it `may_end` and the gate is open."""
    name = f"{documents[0].id} {os.getpid()}\n"
    note(log, f"begun {name}")
    wait_for(lambda: may_end() and may_pass(Path(log), documents[0].id))
    time.sleep(seconds)
    note(log, f"done {name}")
    found = [hashlib.sha256(document.text.encode()).hexdigest() for document in documents]
    rows = [{"windows": [], "triples": [{"triple": [one, "is", str(most)]}]} for one in found]
    return rows, SimpleNamespace(count=len(rows), tokens=len(rows), seconds=0.0)


class Odd(Exception):
    """An error that cannot be made again of what it says."""

    def __init__(self, what, more):
        super().__init__(what)


def answer_or_fail(log, seconds, documents, most, again):
    """As answer_stub, but for the shard of document 6: it fails when three others have begun, and they end later."""
    if documents[0].id == "6":
        wait_for(lambda: log.read_text().count("begun ") >= 3)
        note(log, "failed\n")
        raise ValueError("no such\nlayer") if seconds < 0.2 else Odd("no such layer", "")
    return answer_stub(log, seconds, documents, most, again, lambda: "failed" in log.read_text())


def note(log, line):
    with open(log, "a") as file:
        file.write(line)


def noted(output, what):
    """(first document, process) of the shards that were begun, or done."""
    log = Path(f"{output}.log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [tuple(line.split()[1:3]) for line in lines if line.startswith(f"{what} ")]


def corpus_of(output, count, seconds):
    from prediction.corpus import Corpus

    def documents():
        return (Document(f"{n}", f"{n}", f"text {n if n % 7 else 0}") for n in range(count))

    return Corpus(documents, count, str(output), seconds, 5, SHARD)


def run_spread(output, address, count, seconds=0.2, answer=answer_stub):
    """Have so many documents answered by the workers at `address`; the rows."""
    from prediction.corpus import answer_corpus, gather
    from prediction.distributed import answer_spread, join_cluster

    args = Flags(str(address), str(output))
    corpus = corpus_of(output, count, seconds)
    with join_cluster(args, Flags(), Stub) as cluster:
        digests = answer_corpus(corpus, answer_spread(cluster, corpus, answer, LOOK), Counter())
    return list(gather(output, len(digests), Counter()))


def run_here(output, count):
    """The same in one process."""
    from prediction.corpus import answer_corpus, gather

    corpus = corpus_of(output, count, 0)

    def answer_all(shards):
        for shard in shards:
            rows, share = answer_stub(f"{output}.log", 0, shard.asked, corpus.most, shard.again)
            yield shard, rows, share

    digests = answer_corpus(corpus, answer_all, Counter())
    return list(gather(output, len(digests), Counter()))


if __name__ == "__main__":
    import helpers_ray  # by the name that workers know it by

    helpers_ray.run_spread(sys.argv[1], sys.argv[2], int(sys.argv[3]))
