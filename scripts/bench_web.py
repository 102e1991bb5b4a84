"""Ask a running src/serve.py many questions at a time: how long people wait, and whether any answer is lost.

python scripts/bench_web.py --url http://127.0.0.1:7860 --people 50
"""

import json
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script
from common.flags import Range, check_ranges, command, parse_flags

RANGES = {"people": Range(1, 1000), "rounds": Range(1, 1000), "length": Range(12, 10_000)}
TEXT = "{}号楼是一座位于上海市浦东新区的著名旅游建筑，高{}米，1991年动工，1994年建成，"
TEXT += "由江欢成设计，每年接待大量来自各地的游客。"
RELATIONS = ["位于", "高度", "创建时间", "类型"]


def read_flags(argv=None):
    parser = command(__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="the server's address")
    parser.add_argument("--people", type=int, default=1, help="who ask at the same time, each a text of its own")
    parser.add_argument("--rounds", type=int, default=5, help="questions of each, one after the other")
    parser.add_argument("--length", type=int, default=60, help="characters of a text")
    flags = parse_flags(parser, argv)
    check_ranges(flags, RANGES)
    return flags


def ask(url: str, text: str) -> tuple[float, float | None, float, bool]:
    """Seconds until the first token, the first triple, and the end; and whether the end came."""
    body = json.dumps({"text": text, "relations": RELATIONS}).encode()
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    start, first, triple, done = time.time(), None, None, False
    with urllib.request.urlopen(urllib.request.Request(f"{url}/api/extract", body, headers), timeout=600) as answer:
        for line in answer:
            now = time.time() - start
            first = now if first is None and line == b"event: text\n" else first
            triple = now if triple is None and line == b"event: triples\n" else triple
            done = done or line == b"event: done\n"
    return first, triple, time.time() - start, done


def main(argv=None) -> None:
    flags = read_flags(argv)
    url = flags.url.rstrip("/")
    try:
        ask(url, TEXT.format(0, 0)[: flags.length])  # warm
    except OSError as error:
        raise UserError(f"--url {flags.url}: {error}; start src/serve.py, and give its address") from None

    def one(person: int) -> list:
        made = []
        for turn in range(flags.rounds):
            made.append(ask(url, TEXT.format(person, turn)[: flags.length]))
        return made

    start = time.time()
    with ThreadPoolExecutor(flags.people) as people:
        made = [answer for mine in people.map(one, range(flags.people)) for answer in mine]
    seconds = time.time() - start
    lost = sum(not done for *_, done in made)
    print(f"{len(made)} questions of {flags.people} people in {seconds:.1f} s, {lost} lost")
    for name, at in (("first token", 0), ("first triple", 1), ("whole answer", 2)):
        values = sorted(answer[at] for answer in made if answer[at] is not None)
        if values:
            print(f"{name:12} median {statistics.median(values):.2f} s, longest {values[-1]:.2f} s ({len(values)})")


if __name__ == "__main__":
    run_script(main)
