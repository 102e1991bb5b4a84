"""Make train.json, valid.json and valid_gold.json from source/*.jsonl and relations.json: `python data/sample/make.py`.

A source line is a short text, its triples, and for a completion record the stretch that is taken out of the text.
This script adds what the contest adds: an instruction in one of two wordings, with a list of relations some of which
the text does not hold. The same seed gives the same files; `--check` says whether the files here are those.
"""

import json
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HELD_OUT = 9  # records a topic
OLDER_WORDING = 6  # one record in so many
CONTEST = (
    "已知候选的关系列表：[{relations}]，请你根据关系列表，从以下输入中抽取出可能存在的头实体(Subject)与尾实体(Object)，"
    "并给出对应的关系三元组。请按照 (Subject,Relation,Object) 的格式回答。"
)
OLDER = (
    "使用自然语言抽取三元组,已知下列句子,请从句子中抽取出可能的实体、关系,抽取实体类型为{{{entities}}},"
    "关系类型为{{{relations}}},你可以先识别出实体再判断实体之间的关系,以(头实体,关系,尾实体)的形式回答"
)


def make() -> tuple[list[dict], list[dict]]:
    """Training and held-out records, whole."""
    topics = json.loads((HERE / "relations.json").read_text(encoding="utf-8"))
    train, held_out = [], []
    for number, (topic, names) in enumerate(topics.items()):
        draw = random.Random(topic)
        lines = (HERE / "source" / f"{topic}.jsonl").read_text(encoding="utf-8").splitlines()
        sources = [check(json.loads(line), topic, index) for index, line in enumerate(lines, 1)]
        draw.shuffle(sources)
        # Each part gets its share of completion records, and every third topic holds out a record without triples.
        kinds = sorted(sources, key=lambda source: ("removed" in source, not source["kg"]), reverse=True)
        completion = [source for source in kinds if "removed" in source][:1]
        empty = [source for source in kinds if not source["kg"]][: number % 3 == 0]
        plain = [source for source in sources if source["kg"] and "removed" not in source]
        chosen = completion + empty + plain[: HELD_OUT - len(completion) - len(empty)]
        held_out += [record(source, topic, names, draw) for source in chosen]
        train += [record(source, topic, names, draw) for source in sources if source not in chosen]
    random.Random(0).shuffle(train)
    random.Random(1).shuffle(held_out)
    facts = {tuple(triple) for row in train for triple in row["kg"]}
    both = [triple for row in held_out for triple in row["kg"] if tuple(triple) in facts]
    if both:
        sys.exit(f"a fact stands in both parts: {both}")
    return [{"id": i, **row} for i, row in enumerate(train)], [
        {"id": 10000 + i, **row} for i, row in enumerate(held_out)
    ]


def check(source: dict, topic: str, line: int) -> dict:
    for head, _, tail in source["kg"]:
        if head not in source["text"] or tail not in source["text"]:
            sys.exit(f"source/{topic}.jsonl:{line}: {head} or {tail} is not in the text")
    if "removed" in source and source["text"].count(source["removed"]) != 1:
        sys.exit(f"source/{topic}.jsonl:{line}: what is removed must stand in the text once")
    return source


def record(source: dict, topic: str, names: dict, draw: random.Random) -> dict:
    """One contest record: the relations of its triples, and one or two (three, if it has none) that it lacks."""
    held = {relation for _, relation, _ in source["kg"]}
    absent = draw.sample([name for name in names["relations"] if name not in held], draw.choice((1, 2)) if held else 3)
    relations = ",".join(f"'{name}'" for name in sorted(held | set(absent)))
    if draw.randrange(OLDER_WORDING) == 0:
        entities = ",".join(f"'{name}'" for name in names["entities"])
        instruction = OLDER.format(entities=entities, relations=relations)
    else:
        instruction = CONTEST.format(relations=relations.replace(",", ", "))
    return {
        "cate": topic,
        "instruction": instruction,
        "input": source["text"].replace(source.get("removed", "\0"), ""),
        "output": ",".join(f"({','.join(triple)})" for triple in source["kg"]) or "NAN",
        "kg": source["kg"],
    }


def files() -> dict[str, str]:
    """File name -> content. The gold file is what a perfect submission would be: no triples is an empty output."""
    train, held_out = make()
    questions = [{k: v for k, v in row.items() if k not in ("output", "kg")} for row in held_out]
    gold = [{**row, "output": row["output"] if row["kg"] else ""} for row in held_out]
    parts = {"train.json": train, "valid.json": questions, "valid_gold.json": gold}
    return {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for name, rows in parts.items()}


if __name__ == "__main__":
    made = files()
    if "--check" in sys.argv:
        stale = [name for name, text in made.items() if (HERE / name).read_text(encoding="utf-8") != text]
        sys.exit(f"out of date: {', '.join(stale)}; run python data/sample/make.py" if stale else 0)
    for name, text in made.items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(f"{name}: {text.count(chr(10))} records", file=sys.stderr)
