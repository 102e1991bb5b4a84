"""What an answer may say next: triples with the relations asked for, none of them twice, well-formed, as they are made.

Pure functions of the standard library. The form is that of `kg.triples.render`: `(head,relation,tail)`, and between two
triples a comma, a blank, a line break or nothing. A `State` is where an answer stands; `advance` takes it on by the
bytes of a token, which may hold half a character. Every triple that is closed is one that `kg.triples.parse` reads.

A name may hold brackets in pairs. A comma in a head has to stand in the text (else where would the head end?); a comma
in a tail may be any that is not followed by an asked relation and another comma.
"""

import re
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from kg.objects import NAN
from kg.triples import CLOSE, COMMAS, OPEN, Triple, parse

BOUND = {"relations": (False, False), "head": (True, False), "text": (True, True)}  # heads, tails: stand in the text?
PREFIX = "输入中包含的关系三元组是："  # what published models begin with
BLANKS = ("", " ", "\n")
_AFTER = ("", PREFIX, PREFIX + "\n")
OPENINGS = frozenset(blank + words for blank, words in product(BLANKS, _AFTER))  # what may stand before a triple
EMPTY = frozenset(blank + words + NAN for blank, words in product(BLANKS, _AFTER))  # answers without a triple
_BEGINNINGS = frozenset(words[:size] for words in OPENINGS | EMPTY for size in range(len(words) + 1))
_GAP = "\0"  # in `known`: no name reaches over it
_QUOTES = "\"'“”‘’ "  # that the parser may take off
_MARKS = rf"{re.escape(OPEN + CLOSE + COMMAS)}\x00-\x1f\x7f"
_MARKED, _RUNS = re.compile(rf"[{_MARKS}]"), re.compile(rf"[{_MARKS}]|[^{_MARKS}]+")  # a mark is looked at by itself
_NAMING = re.compile(rf"[^\s{_GAP}{re.escape(CLOSE + COMMAS)}]")  # what a name may begin with
_CONTROL = re.compile(rf"[{COMMAS}\x00-\x1f\x7f]")  # a head that holds one stands in the text
_ODD = re.compile(rf"[{re.escape(OPEN + CLOSE + COMMAS)}\"'“”‘’{{<]|^\s|\s$")  # names that the parser has rules for

# Phases of an answer.
START, BETWEEN, SPACED, LINE, JOINED, OPENING, HEAD, TAIL, EMPTIED, AGAIN = range(10)
_FOLLOWING = {
    BETWEEN: {",": JOINED, " ": SPACED, "\n": LINE},
    JOINED: {" ": OPENING, "\n": OPENING},
    SPACED: {},
    OPENING: {},
}


class Asked(NamedTuple):
    """What a question permits; made by `ask`."""

    relations: tuple[str, ...]  # (): any
    source: str  # the question's text
    heads: bool  # whether heads have to stand in the text
    tails: bool
    known: str  # the text, as one or two tellings of it, without brackets that have no partner
    beginnings: frozenset[str]  # of the relations
    growing: bool  # whether a relation with a comma behind it begins another


class State(NamedTuple):
    """Where an answer stands. `phase` AGAIN: what was said last closes a triple a second time, or one that the parser
    would read as another; the answer ends before that triple (`keep_whole`).
    """

    phase: int = START
    text: str = ""  # of the part that is being said: in HEAD all behind the bracket, perhaps with the relation
    depth: int = 0  # brackets of the name that are open
    head: str = ""
    relation: str = ""
    cuts: tuple[int, ...] = ()  # HEAD: the commas of `text` where the head may end
    whole: bool = True  # HEAD: all of `text` may be the head's beginning
    bound: bool = False  # HEAD: if it is, then one that stands in the text
    said: frozenset = frozenset()  # triples
    pending: bytes = b""  # of half a character


def ask(relations, source: str, bound: str = "relations", spelt: str | None = None, tail_first: bool = False) -> Asked:
    """What may be said about a text: `relations` as `kg.schema.read_schema` gives them (None or empty: any), `bound` a
    key of BOUND. `spelt`: the text as a tokenizer gives it back, where names may stand as well. `tail_first`: answers
    say `(tail,relation,head)`, so that what Asked says of heads holds for the tails, and the other way round.
    """
    heads, tails = reversed(BOUND[bound]) if tail_first else BOUND[bound]
    names = tuple(name for name in relations or () if name.strip())
    beginnings = _beginnings(names)
    known = _mask_unpaired(source)
    if spelt is not None and spelt not in source:
        known += _GAP + _mask_unpaired(spelt)
    return Asked(names, source, heads, tails, known, beginnings, any(f"{name}," in beginnings for name in names))


@lru_cache(maxsize=256)
def _beginnings(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name[:size] for name in names for size in range(len(name) + 1))


def _mask_unpaired(text: str) -> str:
    """The text with gaps for brackets that have no partner, of whatever kind: a name that has one could not end."""
    characters, opened = list(text), []
    for index, character in enumerate(text):
        if character in OPEN:
            opened.append(index)
        elif character in CLOSE:
            if opened:
                opened.pop()
            else:
                characters[index] = _GAP
    for index in opened:
        characters[index] = _GAP
    return "".join(characters)


def may_end(state: State) -> bool:
    """Whether the answer may end here: between triples, or without any."""
    if state.phase == START:
        return not state.pending and state.text in BLANKS
    if state.phase == LINE:
        return not state.text
    return state.phase in (BETWEEN, SPACED, EMPTIED, AGAIN)


def advance(asked: Asked, state: State, piece: bytes) -> State | None:
    """The state behind some more bytes; None: they may not be said here."""
    data, rest = state.pending + piece, b""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return None
        text, rest = data[: error.start].decode(), data[error.start :]
    state = say(asked, state._replace(pending=b"") if state.pending else state, text)
    if state is None or not rest or state.phase == AGAIN:
        return state
    return state._replace(pending=rest) if _may_begin(asked, state, rest) else None


def say(asked: Asked, state: State, text: str) -> State | None:
    """As `advance`, of whole characters; the state has none pending."""
    if state.phase in _NAMES and not _MARKED.search(text):  # the most frequent, and quick
        return _NAMES[state.phase][1](asked, state, text)
    for run in _RUNS.findall(text):
        if state.phase in _NAMES:
            marked = _MARKED.match(run)
            step, parts = _NAMES[state.phase][not marked], (run,)
            if run == _GAP:
                return None
        else:
            step, parts = _STEPS[state.phase], run
        for part in parts:
            state = step(asked, state, part)
            if state is None:
                return None
    return state


def keep_whole(asked: Asked, text: str) -> str:
    """An answer up to its last whole triple that was not said before."""
    state, end = State(), 0
    for index, character in enumerate(text):
        state = say(asked, state, character)
        if state is None or state.phase == AGAIN:
            break
        end = index + 1 if may_end(state) else end
    return text[:end].rstrip()


def _start(asked: Asked, state: State, character: str) -> State | None:
    if character == "(" and state.text in OPENINGS:
        return _open(asked, state)
    text = state.text + character
    if text in EMPTY:
        return State(EMPTIED)
    return State(START, text) if text in _BEGINNINGS else None


def _between(asked: Asked, state: State, character: str) -> State | None:
    if character == "(":
        return _open(asked, state)
    phase = _FOLLOWING[state.phase].get(character)
    return None if phase is None else State(phase, said=state.said)


def _nothing(asked: Asked, state: State, character: str) -> State | None:
    """A line that says that there is nothing, for one of the relations, perhaps."""
    text = state.text + character
    if state.phase == EMPTIED:
        return State(LINE, said=state.said) if character == "\n" else None
    if state.phase == LINE and not state.text and character == "(":
        return _open(asked, state)
    if text == NAN:
        return State(EMPTIED, said=state.said)
    return State(LINE, text, said=state.said) if NAN.startswith(text) else None


def _stay(asked: Asked, state: State, character: str) -> State:
    """The answer has ended, whatever else a token says."""
    return state


def _open(asked: Asked, state: State) -> State | None:
    """A triple's bracket opens, where the text has any name for it."""
    if (asked.heads or asked.tails) and not _NAMING.search(asked.known):
        return None
    return State(HEAD, bound=asked.heads, said=state.said)


def _head(asked: Asked, state: State, character: str) -> State | None:
    """A character of a head, or of the relation behind it."""
    _, text, depth, _, _, cuts, whole, _, said, _ = state
    if character == ",":
        found = _relation_of(asked, state)
        if found is not None:
            return State(TAIL, head=text[:found], relation=text[found + 1 :], said=said)
        if whole and text and not depth:
            cuts = (*cuts, len(text))
    elif character == ")" and not asked.relations and len(cuts) > 1 and not depth:
        return _close(asked, said, text)  # `张三,作家,北京人`, which stands in the text as it is
    if character in CLOSE:
        whole, depth = whole and depth > 0, max(0, depth - 1)
    depth += character in OPEN
    if character in COMMAS:
        whole = whole and bool(text)
    bound = state.bound or bool(_CONTROL.match(character))
    return _go_on(asked, State(HEAD, text + character, depth, "", "", cuts, whole, bound, said))


def _head_part(asked: Asked, state: State, text: str) -> State | None:
    """Some characters of a head, or of the relation behind it, none of which is looked at."""
    if not state.text and text[:1].isspace():
        return None
    _, before, depth, _, _, cuts, whole, bound, said, _ = state
    return _go_on(asked, State(HEAD, before + text, depth, "", "", cuts, whole, bound, said))


def _go_on(asked: Asked, state: State) -> State | None:
    """The state, unless its text can neither be a head's beginning nor a head and the beginning of a relation."""
    text, cuts = state.text, state.cuts
    if state.whole and state.bound and text not in asked.known:
        if not cuts:
            return None
        state = state._replace(whole=False)
    if state.whole:
        return state
    if asked.relations:
        return state if any(text[cut + 1 :] in asked.beginnings for cut in cuts) else None
    rest = text[cuts[-1] + 1 :] if cuts else ","
    return None if _MARKED.search(rest) or rest[:1].isspace() else state


def _relation_of(asked: Asked, state: State) -> int | None:
    """The comma before the relation that ends where `text` does; None: there is none."""
    text, cuts = state.text, state.cuts
    if asked.relations:
        return next((cut for cut in cuts if text[cut + 1 :] in asked.relations), None)
    if not cuts or state.whole:
        return None
    return cuts[-1] if text[cuts[-1] + 1 :].strip() else None


def _tail(asked: Asked, state: State, character: str) -> State | None:
    """A character of a tail, or the bracket behind it."""
    _, text, depth, head, relation, _, _, _, said, _ = state
    if character in CLOSE and not depth:
        if character != ")" or not text or not _may_be_tail(asked, text):
            return None
        return _close(asked, said, head, relation, text)
    if character in COMMAS:
        if not text:
            return None
        if asked.growing and character == "," and f"{relation},{text}" in asked.relations:
            return State(TAIL, head=head, relation=f"{relation},{text}", said=said)
        segment = re.split("[,，]", text)[1:]
        if segment and segment[-1].strip(_QUOTES) in asked.relations and text + character not in asked.known:
            return None
    elif _CONTROL.match(character) and text + character not in asked.known:
        return None
    depth += (character in OPEN) - (character in CLOSE)
    return _tail_part(asked, State(TAIL, text, depth, head, relation, said=said), character)


def _tail_part(asked: Asked, state: State, text: str) -> State | None:
    """Some characters of a tail, none of which is looked at."""
    _, before, depth, head, relation, _, _, _, said, _ = state
    whole = before + text
    if not before and text[:1].isspace():
        return None
    stands = not asked.tails or whole in asked.known or NAN.startswith(whole)
    if not stands and not (asked.growing and f"{relation},{whole}" in asked.beginnings):
        return None
    return State(TAIL, whole, depth, head, relation, said=said)


def _may_be_tail(asked: Asked, text: str) -> bool:
    return not asked.tails or text in asked.known or text == NAN


def _close(asked: Asked, said: frozenset, *parts: str) -> State | None:
    """A triple closes: the state between triples, or AGAIN.

    `parts`: head, relation and tail, or all that stands in the brackets.
    """
    if len(parts) == 3 and not any(map(_ODD.search, parts)):
        triple = Triple(*parts)
    elif parts[-1] == NAN:
        triple = parts
    else:
        found = parse(f"({','.join(parts)})", list(asked.relations), asked.source)
        if len(found) != 1:
            return State(AGAIN)
        triple = found[0]
        if asked.relations:
            pairs = zip(triple, parts, strict=True)
            read = all(name.strip(_QUOTES) == part.strip(_QUOTES) for name, part in pairs)
        else:  # where the parts begin and end, the parser says
            bound = (asked.heads and triple.head) or "", (asked.tails and triple.tail) or ""
            read = all(name in asked.known for name in bound)
        if not read:
            return State(AGAIN)
    return State(AGAIN) if triple in said else State(BETWEEN, said=said | {triple})


def _may_begin(asked: Asked, state: State, rest: bytes) -> bool:
    """Whether some character that begins with these bytes may be said."""
    _, text, _, _, relation, cuts, whole, bound, _, _ = state
    names = []
    if state.phase == START:
        names = [words[len(text) :] for words in OPENINGS if words.startswith(text)]
    elif state.phase == HEAD:
        if (whole and not bound) or (cuts and not asked.relations):
            return True
        names = _following(asked.known, text) if whole else []
        for cut in cuts:
            names += _following_relation(asked, text[cut + 1 :])
    elif state.phase == TAIL:
        if not asked.tails:
            return True
        names = _following(asked.known, text)
        if asked.growing:
            names += _following_relation(asked, f"{relation},{text}")
    characters = {name[0] for name in names if name}
    return any(one.encode().startswith(rest) and say(asked, state, one) is not None for one in characters)


def _following(known: str, text: str) -> list[str]:
    """The characters that follow `text` in `known`."""
    if not text:
        return list(known)
    return [known[found.end() : found.end() + 1] for found in re.finditer(re.escape(text), known)]


def _following_relation(asked: Asked, text: str) -> list[str]:
    return [name[len(text) :] for name in asked.relations if name.startswith(text)]


_STEPS = {
    **dict.fromkeys(_FOLLOWING, _between),
    **dict.fromkeys((EMPTIED, LINE), _nothing),
    START: _start,
    AGAIN: _stay,
}
_NAMES = {HEAD: (_head, _head_part), TAIL: (_tail, _tail_part)}  # a marked character, and a run of others
