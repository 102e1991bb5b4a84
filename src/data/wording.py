"""The question that is asked for a list of relations, where another form of records has none or words it otherwise."""

import json
import re
from collections.abc import Iterable
from typing import NamedTuple

from kg.schema import read_schema
from kg.wordings import CONTEST

ENGLISH = (
    "Given the list of candidate relations [{relations}], extract the possible head entities (Subject) and tail "
    "entities (Object) from the following input, and give the relation triples. Please answer in the format "
    "(Subject,Relation,Object)."
)
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")


class Found(NamedTuple):
    """What a record of another form says."""

    record: dict  # input, id and cate where there are any, and what is kept as it is; instruction and output, if words
    triples: list[tuple[str, str, str]] | None = None  # None: the form says nothing of them, or output has its words
    relations: list[str] | None = None  # that are asked for; None: it does not say
    lost: tuple[str, ...] = ()  # what has no place here


def is_chinese(texts: Iterable[str]) -> bool:
    return any(map(_HAN.search, texts))


def word_instruction(relations: list[str], text: str) -> str:
    """The instruction that asks for relations in a text: the contest's words, or English where nothing is Chinese.

    The names stand as `read_schema` reads them, if it can: quoted as Python does it, else as JSON does.
    """
    words = CONTEST if is_chinese([text, *relations]) else ENGLISH
    lists = f"{relations}", json.dumps(relations, ensure_ascii=False)
    forms = [words.format(relations=one[1:-1]) for one in lists]
    return next((form for form in forms if read_schema(form) == relations), forms[0])
