"""Instructions made of a list of relations, in the two wordings of the contest."""

import re

from common.errors import UserError
from kg.schema import read_schema

LONGEST = 60  # characters of a relation's name
MOST = 100  # relations of one question
CONTEST = (
    "已知候选的关系列表：[{relations}]，请你根据关系列表，从以下输入中抽取出可能存在的头实体(Subject)与尾实体(Object)，"
    "并给出对应的关系三元组。请按照 (Subject,Relation,Object) 的格式回答。"
)
OLDER = "使用自然语言抽取三元组,已知下列句子,请从句子中抽取出可能的实体、关系,{entities}关系类型为{{{relations}}},"
OLDER += "你可以先识别出实体再判断实体之间的关系,以(头实体,关系,尾实体)的形式回答"
ENTITIES = "抽取实体类型为{{{entities}}},"
WORDINGS = ("contest", "older")
_LINE_END = re.compile(r"[\n\r]")


def ask_for(relations: list[str], wording: str = "contest", entities: list[str] = (), most: int = MOST) -> str:
    """The instruction that asks for triples of these relations, `most` of them at most. `entities`: kinds that the
    wording `older` names.

    UserError for a list that could not be read out of it again: names with quotes or brackets, empty or too long ones.
    """
    names = list(dict.fromkeys(name.strip() for name in relations))
    if not names:
        raise UserError("no relation is asked for; give one at least")
    if len(names) > most:
        raise UserError(f"{len(names)} relations; expected {most} at most")
    if long := next((name for name in names if len(name) > LONGEST), None):
        raise UserError(f"the relation {long[:20]}… has {len(long)} characters; expected {LONGEST} at most")
    if broken := next((name for name in names if name.encode(errors="ignore").decode() != name), None):
        raise UserError(f"the relation {broken!a} is no UTF-8 (a terminal of another encoding sends such); give it so")
    if wording == "older":
        kinds = ENTITIES.format(entities=_listed(entities, ",")) if entities else ""
        text = OLDER.format(entities=kinds, relations=_listed(names, ","))
    else:
        text = _contest(names)
    if read_schema(text) != names or any(map(_LINE_END.search, names)):
        odd = (name for name in names if read_schema(_contest([name])) != [name] or _LINE_END.search(name))
        if name := next(odd, None):
            raise UserError(f"the relation {name!r} cannot stand in a list; leave out quotes, brackets and line ends")
        shown = ", ".join(names)
        raise UserError(f"the relations {shown:.60} are not read as a list of relations together; rename one")
    return text


def split_names(text: str) -> list[str]:
    """The names in a text with Chinese or English commas between them."""
    return [name.strip() for name in text.replace("，", ",").replace("、", ",").split(",") if name.strip()]


def _contest(names: list[str]) -> str:
    return CONTEST.format(relations=_listed(names, ", "))


def _listed(names, comma: str) -> str:
    return comma.join(f"'{name}'" for name in names)
