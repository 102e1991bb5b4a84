"""Names as IRIs and texts as literals: how a graph is written in RDF, so that no name is lost and none is code.

An entity, a relation, a record or a run is `urn:kg:KIND:NAME`. What an IRI may not hold, or SPARQL and Turtle would
have to escape, is percent-encoded as UTF-8 (RFC 3987), half a surrogate pair too; Chinese stays as it is.
"""

import json
import re
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

ENTITY, RELATION, SOURCE, RUN, TERM = (f"urn:kg:{kind}:" for kind in ("e", "r", "s", "run", "v"))
PREFIXES = {"e": ENTITY, "r": RELATION, "s": SOURCE, "run": RUN, "kg": TERM}
SOURCES, MERGES = f"{TERM}sources", f"{TERM}merges"  # graphs: what is known of records; which names are one entity

# Letters, digits and marks of every script; not: spaces, what steers writing, private characters, halves of pairs.
_KEPT = (
    "A-Za-z0-9_\u00a1-\u00ac\u00ae-\u061b\u061d-\u167f\u1681-\u180d\u180f-\u1fff\u2010-\u2027\u2030-\u205e"
    "\u2070-\u2fff\u3001-\ud7ff\uf900-\ufdcf\ufdf0-\ufefe\uff00-\uffef"
    "\U00010000-\U0001fffd\U00020000-\U0002fffd\U00030000-\U0003fffd"
)
_UNSAFE = re.compile(f"[^{_KEPT}]+")
_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
_TO_ESCAPE = re.compile(r'[\\"\n\r]')


@lru_cache(maxsize=2**16)
def encode(name: str) -> str:
    """A name as the end of an IRI."""
    return _UNSAFE.sub(lambda found: quote_from_bytes(found[0].encode("utf-8", "surrogatepass"), safe=""), name)


def decode(text: str) -> str:
    """The name that `encode` was given."""
    return unquote_to_bytes(text).decode("utf-8", "surrogatepass") if "%" in text else text


def identity_text(identity) -> str:
    """A record's id as JSON: 7 and "7" are different."""
    return json.dumps(identity, ensure_ascii=False, sort_keys=True)


def relation_iri(name: str) -> str:
    return f"{RELATION}{encode(name)}"


def source_iri(run: str, collection: str, identity) -> str:
    """The record of a run; `collection` keeps equal ids of different files apart."""
    return f"{SOURCE}{encode(run)}:{encode(collection)}:{encode(identity_text(identity))}"


def literal(text: str) -> str:
    """A text as N-Quads and SPARQL write it; half a surrogate pair, which UTF-8 lacks, as its escape."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f'"{_TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], text)}"'


@lru_cache(maxsize=2**16)
def name_of(iri: str) -> str:
    """What people call an entity, relation, run or record; of an entity kept apart: `李娜 [出生日期 1982年]`."""
    kind, _, rest = iri.removeprefix("urn:kg:").partition(":")
    if not iri.startswith("urn:kg:"):
        return iri
    if kind == "s":
        run, _, rest = rest.partition(":")
        collection, _, identity = rest.partition(":")
        words = [decode(identity), decode(collection) and f"of {decode(collection)}", f"({decode(run)})"]
        return " ".join(filter(None, words))
    name, mark, apart = rest.partition("#")
    return f"{decode(name)} [{decode(apart)}]" if mark else decode(name)
