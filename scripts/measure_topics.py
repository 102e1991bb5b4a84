"""How much of a document has the right topic by --cate auto: one topic for the document, or one for each window.

    python scripts/measure_topics.py

Documents are made of the held-out texts of the sample: sections of a few texts of one topic, each section of another
topic. Counted are characters.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from data.topics import RECORDS, RELATIONS, SAMPLE, Topics, learn_topics, pick_topic, read_topics
from data.windows import window_places

DOCUMENTS = 200
WINDOWS = (100, 200, 350)  # characters


def make_document(texts: dict[str, list[str]], sections: int, each: int, draw: random.Random) -> tuple[str, list[str]]:
    """(a text, the topic of each character); `each`: texts of a section."""
    text, labels = "", []
    for topic in draw.sample(sorted(texts), sections):
        section = "".join(draw.sample(texts[topic], each)) + "\n"
        text, labels = text + section, labels + [topic] * len(section)
    return text, labels


def count_right(topics: Topics, text: str, labels: list[str], size: int | None) -> int:
    """Characters whose topic is right, with windows of `size` characters, or None: one topic for the text."""
    right, seen = 0, 0
    for start, end in window_places(text, lambda part: size is None or len(part) <= size):
        topic = pick_topic(topics, text[start:end])
        right += labels[max(start, seen) : end].count(topic)
        seen = end
    return right


def main() -> None:
    topics = learn_topics(RECORDS, set(read_topics(RELATIONS)))
    lines = (SAMPLE / "valid.json").read_text(encoding="utf-8").splitlines()
    texts: dict[str, list[str]] = {}
    for record in map(json.loads, lines):
        texts.setdefault(record["cate"], []).append(record["input"])
    print("sections  texts each  characters  document  " + "  ".join(f"window {size}" for size in WINDOWS))
    for each in (3, 9):
        for sections in (1, 2, 4):
            draw, right, length = random.Random(0), Counter(), 0
            for _ in range(DOCUMENTS):
                text, labels = make_document(texts, sections, each, draw)
                length += len(text)
                for size in (None, *WINDOWS):
                    right[size] += count_right(topics, text, labels, size)
            shares = "  ".join(f"{right[size] / length:10.3f}" for size in WINDOWS)
            print(f"{sections:8}  {each:10}  {length // DOCUMENTS:10}  {right[None] / length:8.3f}  {shares}")


if __name__ == "__main__":
    main()
