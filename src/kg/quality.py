"""How good a graph is: counts, and what in it is doubtful."""

import json
from collections import Counter, defaultdict

from kg.entities import APART, SAME, WHY, components, find
from kg.merging import contradict
from kg.queries import source
from kg.relations import Relations
from kg.terms import MERGES, SOURCES, TERM, name_of, relation_iri

MOST_NAMED = 10


def stats(store) -> dict:
    """Counts of a graph: entities, triples, relations, records, runs, merged names, orphans; its parts that nothing
    connects (`components`); the entities that stand in most triples.
    """
    degrees, relations = Counter(), Counter()

    def count_triples():
        for quad in find(store, None, None, None, ""):
            head, tail = quad.subject.value, quad.object.value
            degrees[head] += 1
            degrees[tail] += head != tail
            relations[quad.predicate.value] += 1
            yield head, tail

    sizes = [len(names) for names in components(count_triples())]
    runs, records, empty, completed, reasons = Counter(), 0, 0, 0, Counter()
    for quad in find(store, None, None, None, SOURCES):
        key = quad.predicate.value.removeprefix(TERM)
        if key == "run":
            runs[name_of(quad.object.value)] += 1
            records += 1
        elif key == "detail":
            places = json.loads(quad.object.value)["places"]
            empty += not places
            completed += sum(place is None for place in places.values())
        elif key == "finish_reason":
            reasons[quad.object.value] += 1
    return {
        "triples": relations.total(),
        "entities": len(degrees),
        "relations": len(relations),
        "records": records,
        "records_without_a_triple": empty,
        "names_merged": sum(1 for _ in find(store, None, SAME, None, MERGES)),
        "names_kept_apart": len({quad.subject.value for quad in find(store, None, APART, None, MERGES)}),
        "mentions_not_in_their_text": completed,
        "entities_in_one_triple": sum(count == 1 for count in degrees.values()),
        "components": len(sizes),
        "largest_component": max(sizes, default=0),
        "by_run": _counted(runs),
        "by_finish_reason": _counted(reasons),
        "by_relation": [{"name": name_of(iri), "count": count} for iri, count in _ordered(relations)],
        "most_named": [{"name": name_of(iri), "count": count} for iri, count in _ordered(degrees)[:MOST_NAMED]],
    }


def check(store, relations: Relations) -> dict[str, list[dict]]:
    """What is doubtful, by kind: contradictions, direction, unasked, not_in_text, kept_apart."""
    unasked, lost = _by_source(store)
    return {
        "contradictions": _contradictions(store, relations),
        "direction": _both_directions(store, relations) + _wrong_way_round(store, relations),
        "unasked": unasked,
        "not_in_text": lost,
        "kept_apart": sorted(
            (
                {"name": name_of(quad.subject.value), "why": quad.object.value}
                for quad in find(store, None, APART, None, MERGES)
            ),
            key=lambda one: (one["name"], one["why"]),
        ),
    }


def merges(store) -> list[dict]:
    """Every name that is merged into another one, and why."""
    found = []
    for quad in find(store, None, SAME, None, MERGES):
        why = next((one.object.value for one in find(store, quad.subject.value, WHY, None, MERGES)), "")
        found.append({"name": name_of(quad.subject.value), "merged_into": name_of(quad.object.value), "why": why})
    return sorted(found, key=lambda one: (one["merged_into"], one["name"]))


def _contradictions(store, relations: Relations) -> list[dict]:
    found = []
    for name in sorted(relations.single):
        values = defaultdict(list)
        for quad in find(store, None, relation_iri(name), None, ""):
            values[quad.subject.value].append(name_of(quad.object.value))
        found += [
            {"head": name_of(head), "relation": name, "tails": sorted(tails)}
            for head, tails in values.items()
            if len(tails) > 1 and contradict(tails)
        ]
    return sorted(found, key=lambda one: (one["relation"], one["head"]))


def _both_directions(store, relations: Relations) -> list[dict]:
    text = "SELECT ?a ?r ?b { ?a ?r ?b . ?b ?r ?a FILTER(STR(?a) < STR(?b)) }"
    both = {relation_iri(name) for name in relations.symmetric | relations.alias}
    found = [[part.value for part in row] for row in store.query(text) if row[1].value not in both]
    return [
        {"head": name_of(a), "relation": name_of(r), "tail": name_of(b), "why": "said in both directions"}
        for a, r, b in sorted(found)
    ]


def _wrong_way_round(store, relations: Relations) -> list[dict]:
    """Triples whose head other relations call what the tail should be, and whose tail what the head should be."""
    kinds = defaultdict(Counter)
    for name in relations.head_kind.keys() | relations.tail_kind.keys():
        for quad in find(store, None, relation_iri(name), None, ""):
            for end, table in ((quad.subject, relations.head_kind), (quad.object, relations.tail_kind)):
                if name in table:
                    kinds[end.value][table[name]] += 1
    found = []
    for name in sorted(relations.head_kind.keys() & relations.tail_kind.keys()):
        first, second = relations.head_kind[name], relations.tail_kind[name]
        for quad in find(store, None, relation_iri(name), None, "") if first != second else ():
            head, tail = kinds[quad.subject.value], kinds[quad.object.value]
            if head[second] and head[first] == 1 and tail[first] and tail[second] == 1:
                why = f"{name} leads from {first} to {second}; other triples say the opposite of both"
                ends = {"head": name_of(quad.subject.value), "relation": name, "tail": name_of(quad.object.value)}
                found.append(ends | {"why": why})
    return sorted(found, key=lambda one: (one["relation"], one["head"], one["tail"]))


def _by_source(store) -> tuple[list[dict], list[dict]]:
    """Relations that were not asked for, and entities that are not in their text; of each how often, and a record."""
    unasked, lost, example = Counter(), Counter(), {}
    for quad in find(store, None, f"{TERM}detail", None, SOURCES):
        detail = json.loads(quad.object.value)
        for name in detail.get("unasked", ()):
            unasked[name] += 1
            example["unasked", name] = min(example.get(("unasked", name), quad.subject.value), quad.subject.value)
        for name, place in detail["places"].items() if detail["text"] else ():
            if place is None:
                lost[name] += 1
                example["lost", name] = min(example.get(("lost", name), quad.subject.value), quad.subject.value)
    return tuple(
        [
            {"name": name, "records": count, "example": source(store, example[what, name])["id"]}
            for name, count in _ordered(counts)
        ]
        for what, counts in (("unasked", unasked), ("lost", lost))
    )


def _ordered(counts: Counter) -> list[tuple]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _counted(counts: Counter) -> list[dict]:
    return [{"name": name, "count": count} for name, count in _ordered(counts)]
