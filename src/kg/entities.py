"""Mentions and entities in a store: what the graph of merged triples is made of, and why.

The default graph holds the merged triples, and nothing else. The graph `kg:merges` says of names: `kg:form`, their
normal form where it is another; `kg:same`, the name they are merged into, and `kg:why`; `kg:apart`, why not. Of a name
that is several entities, the graph of each source says which one it means (`kg:is`); such an entity is NAME#WHAT.
All of it follows from the graphs of sources, and is made anew from them at any time.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from kg.merging import KIND, Fact, Resolution, normal_form, resolve
from kg.relations import Relations
from kg.store import Settings, oxigraph
from kg.terms import ENTITY, MERGES, RELATION, SOURCE, TERM, decode, encode, literal, relation_iri

Mention = tuple[str, str, str, str]  # IRIs: head, relation, tail as they were said, graph of the source
FORM, SAME, WHY, APART, IS = (f"{TERM}{name}" for name in ("form", "same", "why", "apart", "is"))


class Entities(NamedTuple):
    """What names stand for: same, IRI -> (IRI, why); parts, IRI -> {source: IRI}; apart, (IRI, why)."""

    same: dict[str, tuple[str, str]]
    parts: dict[str, dict[str, str]]
    apart: list[tuple[str, str]]

    def of(self, name: str, source: str) -> str:
        """The entity that a name means in a source."""
        if name in self.parts:
            return self.parts[name].get(source, name)
        return self.same[name][0] if name in self.same else name

    def merged(self, mention: Mention) -> tuple[str, str, str]:
        """The merged triple of a mention. One that says of two names that they are one entity stays as it was said."""
        head, relation, tail, source = mention
        ends = self.of(head, source), self.of(tail, source)
        return (head, relation, tail) if ends[0] == ends[1] and head != tail else (ends[0], relation, ends[1])


def entity(name: str) -> str:
    return f"{ENTITY}{encode(name)}"


def plain(iri: str) -> str:
    """The name of an entity's IRI."""
    return decode(iri.removeprefix(ENTITY))


def find(store, subject=None, predicate=None, value=None, graph=None):
    """The quads of a pattern of IRIs; None: any. `graph` "": the default graph."""
    ox = oxigraph()
    terms = [None if iri is None else ox.NamedNode(iri) for iri in (subject, predicate, value)]
    return store.quads_for_pattern(*terms, ox.DefaultGraph() if graph == "" else graph and ox.NamedNode(graph))


def mentions(store, head=None, relation=None, tail=None, source=None) -> Iterable[Mention]:
    """The triples that sources say, of a pattern of IRIs."""
    for quad in find(store, head, relation, tail, source):
        graph = getattr(quad.graph_name, "value", "")
        if graph.startswith(SOURCE) and quad.predicate.value.startswith(RELATION):
            yield quad.subject.value, quad.predicate.value, quad.object.value, graph


def resolve_all(triples: Callable[[], Iterable[Mention]], settings: Settings, relations: Relations):
    """(Entities, the normal forms of names that are not their own) of all the mentions, which `triples()` gives."""
    aspects = {relation_iri(relation): relation for relation in relations.apart}
    alias = {relation_iri(relation): relation for relation in relations.alias}
    kinds = sorted({*relations.head_kind.values(), *relations.tail_kind.values()})
    head_bit, tail_bit = (
        {relation_iri(relation): 1 << kinds.index(kind) for relation, kind in ends.items()}
        for ends in (relations.head_kind, relations.tail_kind)
    )
    bits, said, aliases = {}, defaultdict(list), set()
    for head, relation, tail, source in triples():
        bits[head] = bits.get(head, 0) | head_bit.get(relation, 0)
        bits[tail] = bits.get(tail, 0) | tail_bit.get(relation, 0)
        if relation in alias:
            aliases.add((head, relation, tail))
        if relation in aspects:
            said[head].append((aspects[relation], tail, source))
    forms, members = {}, defaultdict(list)
    for name in bits:
        text = plain(name)
        if (form := normal_form(text)) != text:
            forms[name] = entity(form)
            members[forms[name]].append(name)
    if settings.merge == "none":
        return Entities({}, {}, []), forms

    doubtful = {name for name, found in bits.items() if found & (found - 1)}
    by_source = defaultdict(list)
    for head, relation, tail, source in triples() if doubtful else ():
        for name, bit in ((head, head_bit.get(relation)), (tail, tail_bit.get(relation))):
            if bit and name in doubtful:
                by_source[name].append(Fact(KIND, kinds[bit.bit_length() - 1], source))

    def facts_of(text: str) -> list[Fact]:
        name = entity(text)
        facts = [Fact(aspect, plain(value), source) for aspect, value, source in said.get(name, ())]
        if name in doubtful:
            return facts + by_source[name]
        return facts + [Fact(KIND, kinds[bit.bit_length() - 1], f"any of {name}") for bit in [bits[name]] if bit]

    links = [(form, name) for form, several in members.items() for name in several]
    if settings.merge == "alias":
        links += [(head, tail) for head, _, tail in aliases]
    single = [*doubtful, *(name for name, facts in said.items() if len(facts) > 1)]
    entities = Entities({}, {}, [])
    by_name = defaultdict(list)
    for head, relation, tail in aliases:
        by_name[head].append((plain(head), alias[relation], plain(tail)))
    for names in components(links, single):
        there = [name for name in names if name in bits]
        found = [one for name in there for one in by_name.get(name, ())]
        _add(entities, resolve([plain(name) for name in there], found, facts_of, settings.merge, relations.apart))
    return entities, forms


def resolve_near(store, names: set[str], settings: Settings, relations: Relations):
    """As `resolve_all`, of the names and all that may be merged with them: (Entities, forms, these names)."""
    alias = {relation_iri(relation): relation for relation in relations.alias}
    entities, forms, seen = Entities({}, {}, []), {}, set()
    for first in sorted(names):
        if first in seen:
            continue
        here, found, todo = set(), set(), [first]
        while todo:
            name = todo.pop()
            if name in here:
                continue
            here.add(name)
            form = entity(normal_form(plain(name)))
            if form != name and _is_said(store, name):
                forms[name] = form
            todo += [form, *(quad.subject.value for quad in find(store, None, FORM, form, MERGES))]
            for relation in alias if settings.merge == "alias" else ():
                pairs = [*mentions(store, name, relation), *mentions(store, None, relation, name)]
                found |= {(plain(head), alias[relation], plain(tail)) for head, _, tail, _ in pairs}
                todo += [one for head, _, tail, _ in pairs for one in (head, tail)]
        seen |= here
        there = [plain(name) for name in here if _is_said(store, name)]
        facts_of = lambda text: _facts_in(store, entity(text), relations)  # noqa: E731
        _add(entities, resolve(there, found, facts_of, settings.merge, relations.apart))
    return entities, forms, seen


def note_forms(store, names: Iterable[str]) -> None:
    """Write down the normal forms of names that are not their own, by which they are found."""
    forms = {name: entity(normal_form(plain(name))) for name in names}
    lines = entity_lines(Entities({}, {}, []), {name: form for name, form in forms.items() if name != form})
    store.load("".join(lines).encode(), oxigraph().RdfFormat.N_QUADS, lenient=True)


def read_entities(store, names: Iterable[str]) -> Entities:
    """What the store says that the names stand for."""
    entities = Entities({}, {}, [])
    for name in names:
        for quad in find(store, name, SAME, None, MERGES):
            why = next((one.object.value for one in find(store, name, WHY, None, MERGES)), "")
            entities.same[name] = (quad.object.value, why)
        parts = {quad.graph_name.value: quad.object.value for quad in find(store, name, IS)}
        if parts:
            entities.parts[name] = parts
        entities.apart.extend((name, quad.object.value) for quad in find(store, name, APART, None, MERGES))
    return entities


def all_entities(store) -> Entities:
    """What all names stand for, without the reasons."""
    same = {quad.subject.value: (quad.object.value, "") for quad in find(store, None, SAME, None, MERGES)}
    parts = defaultdict(dict)
    for quad in find(store, None, IS):
        parts[quad.subject.value][quad.graph_name.value] = quad.object.value
    return Entities(same, dict(parts), [])


def entity_lines(entities: Entities, forms: dict[str, str]) -> Iterable[str]:
    """All of it as lines of N-Quads."""
    for name, form in forms.items():
        yield f"<{name}> <{FORM}> <{form}> <{MERGES}> .\n"
    for name, (main, why) in entities.same.items():
        yield f"<{name}> <{SAME}> <{main}> <{MERGES}> .\n<{name}> <{WHY}> {literal(why)} <{MERGES}> .\n"
    for name, parts in entities.parts.items():
        for source, part in parts.items():
            yield f"<{name}> <{IS}> <{part}> <{source}> .\n"
    for name, why in entities.apart:
        yield f"<{name}> <{APART}> {literal(why)} <{MERGES}> .\n"


def names_of(store, iri: str) -> list[tuple[str, str | None]]:
    """The names that an entity's mentions have, each with the source it is restricted to (None: any)."""
    if "#" in iri:
        return [(quad.subject.value, quad.graph_name.value) for quad in find(store, None, IS, iri)]
    return [(iri, None), *((quad.subject.value, None) for quad in find(store, None, SAME, iri, MERGES))]


def mentions_of(store, head: str, relation: str | None, tail: str) -> list[Mention]:
    """The mentions that a merged triple comes from; of any relation for None."""
    found = []
    for name, source in names_of(store, head):
        for other, where in names_of(store, tail):
            if source and where and source != where:
                continue
            for mention in mentions(store, name, relation, other, source or where):
                if read_entities(store, (name, other)).merged(mention) == (head, mention[1], tail):
                    found.append(mention)
    return found


def _is_said(store, name: str) -> bool:
    return _asked(store, name, None, None) or _asked(store, None, None, name)


def _asked(store, head: str | None, relation: str | None, tail: str | None) -> bool:
    """Whether a source says a triple of the pattern. As SPARQL: other ways read the merged triples first."""
    terms = [f"<{iri}>" if iri else f"?{name}" for name, iri in (("h", head), ("r", relation), ("t", tail))]
    only = "" if relation else f'FILTER(STRSTARTS(STR(?r), "{RELATION}"))'
    return bool(store.query(f"ASK {{ GRAPH ?g {{ {' '.join(terms)} }} {only} }}"))


def _facts_in(store, name: str, relations: Relations) -> list[Fact]:
    facts = [
        Fact(aspect, plain(tail), source)
        for aspect in relations.apart
        for _, _, tail, source in mentions(store, name, relation_iri(aspect))
    ]
    pairs = list(_kind_pairs(name, relations))
    kinds = sorted({kind for head, relation, tail, kind in pairs if _asked(store, head, relation, tail)})
    if len(kinds) > 1:
        return facts + _kinds_by_source(store, name, relations)
    return facts + [Fact(KIND, kind, f"any of {name}") for kind in kinds]


def _kinds_by_source(store, name: str, relations: Relations) -> list[Fact]:
    return [
        Fact(KIND, kind, source)
        for head, relation, tail, kind in _kind_pairs(name, relations)
        for _, _, _, source in mentions(store, head, relation, tail)
    ]


def _kind_pairs(name: str, relations: Relations):
    """(head, relation, tail, kind) of patterns, IRIs and None, that say the kind of a name."""
    for relation, kind in relations.head_kind.items():
        yield name, relation_iri(relation), None, kind
    for relation, kind in relations.tail_kind.items():
        yield None, relation_iri(relation), name, kind


def components(links: Iterable[tuple[str, str]], single: Iterable[str] = ()) -> list[list[str]]:
    """The sets of names that links connect, and each other single name alone; in no special order."""
    above = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for one, other in links:
        above[top(one)] = top(other)
    for name in single:
        top(name)
    found = defaultdict(list)
    for name in list(above):
        found[top(name)].append(name)
    return list(found.values())


def _add(entities: Entities, found: Resolution) -> None:
    entities.same.update({entity(name): (entity(main), why) for name, (main, why) in found.same.items()})
    for name, parts in found.parts.items():
        iri = entity(name)
        entities.parts[iri] = {source: f"{iri}#{encode(part)}" for source, part in parts.items()}
    entities.apart.extend((entity(name), why) for name, why in found.apart)
