"""Memory and speed of a corpus of many short documents, with a stand-in for the model that answers at once.

    python scripts/bench_documents.py --documents 1000000

Stopped by Ctrl-C, by --seconds, or killed, the same command goes on where it was, as that of src/extract.py does. Once
the output is whole, the same command reads it and writes it anew: as of a corpus of which something was changed.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import run_script, say
from common.files import write_lines, write_rows
from common.manifest import write_run_of
from data.documents import read_documents, size_of
from prediction.answered import recall
from prediction.corpus import Corpus, answer_corpus, drop_parts, gather, parts_folder
from prediction.predicting import Share

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "bench-documents"
REPORTED = (10_000, 100_000, 300_000, 600_000, 1_000_000)
SETTINGS = {"answers": "of a stand-in"}
TWICE = 50  # one of so many documents has a text that others have as well


def write_documents(path: Path, count: int) -> None:
    """A file of `count` rows, each a text of the sample with its number."""
    lines = (ROOT / "data" / "sample" / "train.json").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["input"][:120] for line in lines]

    def make(number: int) -> str:
        return json.dumps(
            {"text": f"{number if number % TWICE else 0}：{texts[number % len(texts)]}"}, ensure_ascii=False
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, map(make, range(count)))


def memory() -> float:
    """MB of this process that lie in memory now, without pages of files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1000


def stand_in(started: float, seconds: float | None):
    """Shards -> a window and a triple for each document; says at some of REPORTED how much memory there is."""

    def answer_all(shards):
        begun, first = None, 0
        for shard in shards:
            if begun is None:
                begun, first = time.time(), shard.first
                say(
                    f"\nbefore document {first:,}: {memory():.0f} MB, {begun - started:.0f} s for those answered before"
                )
            rows = [answer(document.text) for document in shard.asked]
            yield shard, rows, Share({}, len(rows), 9 * len(rows), 0.0, 0.0)
            behind, now = shard.first + len(shard.documents), time.time()
            if any(shard.first < number <= behind for number in REPORTED):
                say(
                    f"\nat {behind:,} documents: {memory():.0f} MB, {(behind - first) / (now - begun):,.0f} documents/s"
                )
            if seconds and now - started > seconds:
                say(f"\nstopped at {behind:,} documents; the same command goes on")
                os._exit(0)  # as if it were killed: nothing is tidied up

    return answer_all


def answer(text: str) -> dict:
    """One window, with one triple."""
    window = {"place": [0, len(text)], "output": f"({text[:8]},类型,文本)", "finish_reason": "eos"}
    triple = {"triple": [text[:8], "类型", "文本"], "window": 0, "head_place": [0, 8], "tail_place": None}
    return {"windows": [window], "triples": [triple]}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--shard_size", type=int, default=1000)
    parser.add_argument("--seconds", type=float, help="stop, as if killed, when so many have passed")
    args = parser.parse_args(argv)
    started = time.time()
    source, output = OUT / f"{args.documents}.jsonl", OUT / f"{args.documents}.out.jsonl"
    if not source.exists():
        write_documents(source, args.documents)
        say(f"{source}: written in {time.time() - started:.0f} s")
    begun = time.time()
    say(f"at the start: {memory():.0f} MB")
    corpus = Corpus(lambda: read_documents(source), size_of(source), str(output), None, 1, args.shard_size)
    with recall(output, SETTINGS, parts_folder(output)) as recalled:
        digests = answer_corpus(corpus, stand_in(begun, args.seconds), Counter(), recalled)
    answered = time.time()
    parts = sum(file.stat().st_size for file in parts_folder(output).iterdir())
    counts: Counter = Counter()
    write_rows(output, gather(output, len(digests), counts))
    write_run_of(output, {"settings": SETTINGS})
    written = time.time()
    drop_parts(output)
    say(f"{counts['documents']:,} documents, {counts['repeated']:,} with the text of another; {memory():.0f} MB")
    say(f"{answered - begun:.0f} s to read and answer, {written - answered:.0f} s to write the output")
    sizes = source.stat().st_size, parts, output.stat().st_size
    say("MB of documents, shards, output: " + ", ".join(f"{size / 1e6:,.0f}" for size in sizes))


if __name__ == "__main__":
    run_script(main)
