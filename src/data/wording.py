"""The question that is asked for a list of relations, where another form of records has none or words it otherwise."""

import json
import re
from collections.abc import Iterable
from typing import NamedTuple

from kg.schema import read_schema

CHINESE = (
    "已知候选的关系列表：{}，请你根据关系列表，从以下输入中抽取出可能存在的头实体(Subject)与尾实体(Object)，并给出对应的"
    "关系三元组。请按照 (Subject,Relation,Object) 的格式回答。"
)
ENGLISH = (
    "Given the list of candidate relations {}, extract the possible head entities (Subject) and tail entities (Object) "
    "from the following input, and give the relation triples. Please answer in the format (Subject,Relation,Object)."
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


def ask_for(relations: list[str], text: str) -> str:
    """The instruction that asks for relations in a text: the contest's words, or English where nothing is Chinese.

    The names stand as `read_schema` reads them, if it can: quoted as Python does it, else as JSON does.
    """
    words = CHINESE if is_chinese([text, *relations]) else ENGLISH
    forms = [words.format(f"{relations}"), words.format(json.dumps(relations, ensure_ascii=False))]
    return next((form for form in forms if read_schema(form) == relations), forms[0])
