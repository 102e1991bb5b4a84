"""How fast graphs are: built with sources and merging, loaded, asked, exported, changed; beside MERGE row by row.

bash scripts/bench_graph.bash            # 1,000,000 triples; TRIPLES=100000 for a try
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import pyoxigraph

from kg import export, graph, queries
from kg.evidence import Run, Source
from kg.store import open_graph, read_current, size_on_disk

ROOT = Path(__file__).resolve().parents[1]

SYLLABLES = "安北成大德东方福高光广国海河和华江金京乐林龙明南宁平青荣山尚胜石泰天文武西新兴阳永远云泽长中州"
TOPICS = {  # topic -> how its heads end, and its relations: how often, how their tails end ("date": a date)
    "人物": (
        "",
        {"出生日期": (6, "date"), "出生地点": (8, "市"), "职业": (8, "家"), "作品": (8, "记"), "别名": (3, "号")},
    ),
    "建筑": (
        "塔",
        {"位于": (12, "市"), "创建时间": (6, "date"), "类型": (8, "式"), "高度": (4, "米"), "别名": (3, "楼")},
    ),
    "作品": ("记", {"作者": (10, ""), "导演": (6, ""), "类型": (8, "体"), "出版时间": (6, "date"), "别名": (3, "传")}),
    "组织": (
        "会",
        {"成立时间": (6, "date"), "所在行政领土": (8, "市"), "成员": (8, ""), "类型": (6, "业"), "属于": (6, "院")},
    ),
}
LISTS = 200  # different lists of relations that are asked for


def name(number: int, length: int) -> str:
    """A Chinese name of its own for each number."""
    text = ""
    for _ in range(length):
        number, rest = divmod(number, len(SYLLABLES))
        text += SYLLABLES[rest]
    return text


def records(triples: int, with_kg: bool):
    """Predictions with about four triples each, heads and tails in their text: ids, topics, outputs, finish_reason."""
    draw, made, number = random.Random(1), 0, 0
    asked = {topic: [draw.sample(list(of), len(of)) for _ in range(LISTS // 4)] for topic, (_, of) in TOPICS.items()}
    while made < triples:
        topic = draw.choice(list(TOPICS))
        end, relations = TOPICS[topic]
        head = name(draw.randrange(triples // 12), 4 if end else 3) + end
        kg, weights = {}, [weight for weight, _ in relations.values()]
        for relation in draw.choices(list(relations), weights, k=draw.randint(2, 6)):
            end = relations[relation][1]
            if end == "date":
                tail = f"{draw.randint(1000, 2020)}年{draw.randint(1, 12)}月"
            elif relation == "别名":
                tail = head[:2] + end
            else:
                few = 500 if end in ("家", "式", "体", "业", "市") else triples // 10
                tail = name(int(few * draw.random() ** 2), 3 if few == 500 or not end else 4) + end
            kg[head if draw.random() < 0.98 else f"《{head}》", relation, tail] = None
        kg = list(kg)[: triples - made]
        made += len(kg)
        row = {
            "id": number,
            "cate": topic,
            "instruction": f"已知候选的关系列表：{draw.choice(asked[topic])}，请你根据关系列表，从以下输入中抽取出"
            "可能存在的头实体(Subject)与尾实体(Object)，并给出对应的关系三元组。"
            "请按照 (Subject,Relation,Object) 的格式回答。",
            "input": "，".join(f"{h}的{r}是{t}" for h, r, t in kg) + "。",
            "output": ",".join(f"({h},{r},{t})" for h, r, t in kg),
            "finish_reason": "eos",
        }
        yield row | ({"kg": kg} if with_kg else {})
        number += 1


def say(what: str, value: str) -> None:
    print(f"{what:44}{value}", flush=True)


def build(file: Path, store: Path) -> tuple[float, float, float]:
    """Seconds, seconds of all cores and peak memory (GiB) of the command, a process of its own."""
    shutil.rmtree(store, ignore_errors=True)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, ROOT / "src" / "utils" / "graph.py", "build", "--pred_path", file, "--store", store]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, busy, after.ru_maxrss / 2**20


def measure_building(folder: Path, triples: int) -> None:
    for with_kg, what in ((False, "predictions, parsed"), (True, "a submission, with kg")):
        file = folder / f"{triples}-{with_kg}.json"
        with open(file, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in records(triples, with_kg))
        seconds, busy, memory = build(file, folder / "graph")
        say(
            f"build of {what}",
            f"{triples / seconds:,.0f} triples/s, {seconds:.1f} s ({busy:.1f} s of cores), {memory:.2f} GiB",
        )
    say("on disk", f"{size_on_disk(folder / 'graph') / 2**20:,.0f} MiB")


def measure_loading(folder: Path, triples: int) -> None:
    store, _ = open_graph(folder / "graph")
    started = time.perf_counter()
    export.write_nquads(store, folder / "all.nq")
    say("export nquads", f"{len(store) / (time.perf_counter() - started):,.0f} quads/s ({len(store):,} quads)")
    for name in ("whole", "pieces"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    started = time.perf_counter()
    graph.bulk_load(pyoxigraph.Store(str(folder / "whole")), folder / "all.nq")
    seconds = time.perf_counter() - started
    say("pyoxigraph's own loader on the same quads", f"{seconds:.1f} s, {triples / seconds:,.0f} triples/s")
    started = time.perf_counter()
    load = partial(graph.bulk_load, pyoxigraph.Store(str(folder / "pieces" / "store")))
    with open(folder / "all.nq", encoding="utf-8") as quads:
        graph.spool(quads, folder / "pieces", "piece", load)
    again = time.perf_counter() - started
    say("the same in the pieces that build loads", f"{again:.1f} s, {again / seconds:.2f} times as long")


def measure_exports(folder: Path, _) -> None:
    store, _ = open_graph(folder / "graph")
    count = sum(1 for _ in store.quads_for_pattern(None, None, None, pyoxigraph.DefaultGraph()))
    for form in export.TEXTS:
        started = time.perf_counter()
        with open(folder / f"graph.{form}", "w", encoding="utf-8") as out:
            out.writelines(line + "\n" for line in export.TEXTS[form](store))
        say(f"export {form}", f"{count / (time.perf_counter() - started):,.0f} triples/s")


def measure_questions(folder: Path, _) -> None:
    store, _ = open_graph(folder / "graph")
    most = "SELECT ?e { ?h ?r ?e } GROUP BY ?e ORDER BY DESC(COUNT(*)) LIMIT 1"
    hub = next(queries.query(store, most, as_iris=True).rows)[0]
    head = next(store.quads_for_pattern(None, None, pyoxigraph.NamedNode(hub), pyoxigraph.DefaultGraph())).subject.value
    for what, iri in (("some entity", head), ("that in most triples", hub)):
        started = time.perf_counter()
        found, _ = queries.neighbours(store, [iri], 2, 1000)
        say(
            f"neighbours, 2 hops, {what}", f"{time.perf_counter() - started:.3f} s ({len(found)} triples, 1000 at most)"
        )
        started = time.perf_counter()
        text = f"SELECT (COUNT(*) AS ?n) {{ {{ <{iri}> ?r ?b }} UNION {{ ?b ?r <{iri}> }} ?b ?s ?c }}"
        rows = list(queries.query(store, text).rows)
        say(f"SPARQL, 2 hops, {what}", f"{time.perf_counter() - started:.3f} s ({int(rows[0][0]):,} counted)")


def measure_changes(folder: Path, _) -> None:
    for at in range(3):
        started = time.perf_counter()
        source = Source(f"new {time.time()}", [(f"新{at}塔", "位于", "北安市"), ("成大塔", "类型", "德东式")], "新")
        graph.build(folder / "graph", [source], Run("new"), read_current(folder / "graph")[1])
        say("one record added", f"{time.perf_counter() - started:.3f} s")


def measure_merge(folder: Path, _, most: int = 1000) -> None:
    """The same triples by MERGE one by one into an embedded property graph, if ladybug is installed."""
    try:
        import ladybug
    except ImportError:
        say("MERGE row by row", "not measured: pip install ladybug")
        return
    shutil.rmtree(folder / "ladybug", ignore_errors=True)
    (folder / "ladybug").unlink(missing_ok=True)
    connection = ladybug.Connection(ladybug.Database(str(folder / "ladybug")))
    connection.execute("CREATE NODE TABLE Entity(name STRING, PRIMARY KEY(name))")
    connection.execute("CREATE REL TABLE Said(FROM Entity TO Entity, relation STRING)")
    kg = [triple for row in records(most, True) for triple in row["kg"]]
    started = time.perf_counter()
    for head, relation, tail in kg:
        values = {"h": head, "r": relation, "t": tail}
        text = "MERGE (a:Entity {name: $h}) MERGE (b:Entity {name: $t}) MERGE (a)-[:Said {relation: $r}]->(b)"
        connection.execute(text, values)
    say("MERGE row by row (ladybug, no sources)", f"{len(kg) / (time.perf_counter() - started):,.0f} triples/s")


PARTS = {
    "building": measure_building,
    "loading": measure_loading,
    "exports": measure_exports,
    "questions": measure_questions,
    "changes": measure_changes,
    "merge": measure_merge,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triples", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, default=Path("results/bench_graph"), help="what is made stays there")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="building comes first, once")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        PARTS[part](arguments.folder, arguments.triples)
