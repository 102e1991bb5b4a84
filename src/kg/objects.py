"""Triples out of answers that are JSON or Python objects, in the forms that models and data sets use.

Lists of three, objects with the parts by name, DuIE's `spo_list`, UIE's entities with relations, DeepKE's, IEPile's and
OneKE's: relation -> pairs, type -> entity -> relation -> tails, all with or without keys around them. Pure functions of
the standard library; nothing raises, and the time is linear in the text.
"""

import re
from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

from kg.literals import Node, read_values, unescape


def _table(names: str) -> dict[str, int]:
    return {name: rank for rank, name in enumerate(names.split())}


# What answers call the parts, as `_fold` writes it; where an object has several of them, the first here is meant.
HEADS = _table(
    "head headentity headname h 头实体 頭實體 头 頭 subject subjectentity subjectname subj s 主体 主體 主语 主語 "
    "source sourceentity sourcenode from startnode node1 entity1 e1 em1text 实体1 源实体 起点 entity 实体 實體"
)
RELATIONS = _table(
    "relation r rel relationtype relationname 关系 關係 关系类型 關係類型 关系名称 predicate predicatename pred p "
    "谓词 謂詞 谓语 謂語 relationship relationshiptype edge edgetype edgelabel label property attribute 属性 屬性 type"
)
TAILS = _table(
    "tail tails tailentity tailname t 尾实体 尾實體 尾 object objects objectentity objectname obj o 客体 客體 宾语 "
    "賓語 target targets targetentity targetnode to endnode node2 entity2 e2 em2text 实体2 终点 value 值 属性值"
)
NAMES = _table("@value text name entity entityname 实体 實體 实体名称 名称 名稱 value mention word id")
AROUND = _table(  # keys around triples, which say nothing about them
    "triples triplets triple triplet triplelist kg output outputs answer answers result results response data ans "
    "spolist spos spo relationlist relationmentions edges links facts extractions items list graph knowledgegraph json "
    "<ans> entities nodes pairs 三元组 三元組 三元组列表 关系三元组 關係三元組 抽取结果 结果 結果 输出 輸出 "
    "答案 关系列表 關係列表 实体列表 知识图谱 知識圖譜"
)
RELATED = _table("relations relation relationships relationship attributes attribute properties 关系 關係 属性 屬性")
ASIDE = _table(  # keys beside the parts; they are relations only where they were asked for
    "type subjecttype objecttype headtype tailtype entitytype sourcetype targettype start end offset position span "
    "probability score confidence id index cate category instruction schema input text sentence senttext language "
    "evidence explanation reason reasoning thought note notes description comment message code error status count "
    "头实体类型 尾实体类型 主体类型 客体类型 实体类型 说明 說明 解释 备注 置信度 依据 理由 原文 代码"
)
OPEN, CLOSE = "(（[【", ")）]】"
NAN = "NAN"  # what says that there is nothing: an answer, or a part of an entry

_KEY_NAMES = "head|subject|relation|triples|h|头实体|主体"
_OBJECT = re.compile(rf"\{{\s*(?:[\"'“‘][^\"'“”‘’\n]{{0,200}}(?:[\"'”’]\s*[:：]|\Z)|(?:{_KEY_NAMES})\s*[:：])")
_LIST = re.compile(r"[\[({]\s*[\"']")
_ENCODED = re.compile(r"\s*\"\s*[\[{]\s*[\[{]?\s*\\\"")  # the whole answer is one string of JSON
_REASONING = re.compile(
    r"<(?P<shut>/?)(?:seed:)?(?:think|thinking|thought|reasoning)>|◁(?P<shut2>/?)think▷|\[(?P<shut3>/?)(?-i:THINK)\]"
    r"|<\|(?:begin|(?P<shut4>end))_of_thought\|>",
    re.IGNORECASE,
)


class _Answer(NamedTuple):
    text: str
    asked: frozenset[str]
    read_string: Callable[[str], list]


class _Place(NamedTuple):
    """What the keys around a value say of it."""

    head: str | None = None
    relation: str | None = None
    is_asked: bool = False  # the relation was asked for, or named as one
    is_item: bool = False  # it stands in a list


def cut_reasoning(text: str) -> str:
    """An answer without what stands between `<think>` and `</think>`, or other tags of reasoning.

    Reasoning that does not end is all that follows; where it only ends, as it does when the prompt has begun it, it is
    all that stood before.
    """
    kept, at, inside = [], 0, False
    for tag in _REASONING.finditer(text):
        if any(tag.groups()):
            kept, at, inside = kept if inside else [], tag.end(), False
        elif not inside:
            kept.append(text[at : tag.start()])
            inside = True
    return "".join(kept) if inside else "".join(kept) + text[at:]


def read_objects(
    text: str, relations: Iterable[str], read_text: Callable[[str], Iterable[tuple | str]]
) -> list[tuple | str] | None:
    """The triples of an answer that is objects or lists, and as plain strings its pieces that could not be read.

    `relations` are those asked for; they tell a relation from a type or an entity where these are nested. Strings that
    hold triples as text, and the prose around objects without a triple, are read with `read_text`. An entry that says
    that there is nothing (null) has the part `NAN`; parts may be empty. None: the answer is in the text form.
    """
    return _read_objects(text, frozenset(name.strip() for name in relations), read_text, depth=0)


def _read_objects(text: str, asked: frozenset[str], read_text: Callable, depth: int) -> list[tuple | str] | None:
    if _ENCODED.match(text):
        text = unescape(text.strip().strip('"'))
    first = _OBJECT.search(text)
    if not first and not _LIST.search(text):
        return None

    def read_string(part: str) -> list:
        found = _read_objects(part, asked, read_text, depth + 1) if depth < 2 else None
        return found or (list(read_text(part)) if _holds_text(part) else [])

    values, answer = read_values(text), _Answer(text, asked, read_string)
    found = []
    for node in values.nodes:
        read = _of_node(node, _Place(), answer)
        is_piece = _has_objects(node) or (not first and len(node.items) > 1)
        found += read or ([text[node.start : node.end]] if is_piece and not (values.halves or _is_hollow(node)) else [])
    around = _text_around(text, values.nodes)
    if not first:  # lists and tuples alone: the text form has such brackets and quotes as well
        return [*found, *values.halves] if values.clean and not any(char in around for char in OPEN) else None
    if not any(map(_is_real, found)):
        if _is_in_bracket(text, first.start()):
            return None
        found += read_text(around)
    return [*found, *values.halves]


def _of_node(node: Node, place: _Place, answer: _Answer) -> list[tuple | str]:
    return (_of_object if node.is_object else _of_list)(node, place, answer)


def _of_list(node: Node, place: _Place, answer: _Answer) -> list[tuple | str]:
    """What a list holds: a triple, a pair of head and tail, or of relation and tail, text, or objects and lists."""
    values, asked = node.values, answer.asked
    scalars = [value for value in values if not isinstance(value, Node)]
    if scalars and all(value and _holds_text(value, alone=True) for value in scalars):
        return [found for value in scalars for found in answer.read_string(value)]
    texts = [_texts(value, asked) for value in values] if node.whole and len(values) in (2, 3) else []
    if texts and all(texts) and not any(isinstance(value, Node) for value in values[:-1]):
        first, second, last = texts[0][0], texts[1][0], texts[-1]
        is_named = place.is_item and (not asked or second in asked or second == place.relation)
        if len(values) == 3 and (is_named or (place.relation is None and (place.is_item or place.head is None))):
            is_schema = len({first, second, *last}) > 2 and asked.issuperset([first, second, *last])  # said again
            return [] if is_schema else [(first, second, tail) for tail in last]
        if len(values) == 2 and place.head and first in asked:
            return [(place.head, first, tail) for tail in last]
        if len(values) == 2 and place.relation:
            return [(first, place.relation, tail) for tail in last]
    if node.whole and place.is_item and len(scalars) == len(values) > 1:
        return [answer.text[node.start : node.end]]
    place = place._replace(is_item=True)
    return [found for value in values if isinstance(value, Node) for found in _of_node(value, place, answer)]


def _of_object(node: Node, place: _Place, answer: _Answer) -> list[tuple | str]:
    """What an object holds: a triple by the names of its parts, an entity and its relations, or what lies deeper."""
    items = [(key.strip(), value) for key, value in node.items if key is not None]
    parts = {}
    for key, value in items:
        if not (place.head and key in answer.asked):  # a relation that is called `type` or `value`
            parts.setdefault(_fold(key), (key, _texts(value, answer.asked)))
    head, relation, tail = (_part(parts, table) for table in (HEADS, RELATIONS, TAILS))
    if relation and _fold(relation[0]) in ("type", "label") and (place.is_asked or not (head and tail)):
        relation = None  # of the entity
    if tail and (head or place.head) and (relation or (head and place.relation)):
        heads = head[1] if head else [place.head]
        relations = relation[1] if relation else [place.relation]
        if not node.whole:
            return []
        if sum(len(part) > 1 for part in (heads, relations, tail[1])) > 1:
            return [answer.text[node.start : node.end]]
        return list(product(heads, relations, tail[1]))

    name = None if tail else head or _part(parts, NAMES)
    below = place if name is None else place._replace(head=name[1][0])
    if relation:
        below = below._replace(relation=relation[1][0], is_asked=True)
        place = below  # pairs of this relation, whatever the key around them
    used = {part[0] for part in (name, relation) if part}
    has_asked = any(key in answer.asked for key, _ in items)
    found = []
    for key, value in items:
        if key not in used:
            found += _of_item(key, value, place, below, has_asked, answer)
    if not found and node.whole and (head, relation, tail).count(None) < 2 and not any(_has_nodes(v) for _, v in items):
        return [answer.text[node.start : node.end]]
    return found


def _of_item(key: str, value, around: _Place, place: _Place, has_asked: bool, answer: _Answer) -> list[tuple | str]:
    """What one key of an object holds; `around` is the object's place, `place` the same with the object's own name."""
    is_asked, folded = key in answer.asked, _fold(key)
    bare = folded.rstrip("0123456789")  # `triple1`, or numbers as keys
    is_around = bare in AROUND or not (bare or place.is_asked or _has_objects(value) or not isinstance(value, Node))
    if not is_asked and (is_around or folded in RELATED):
        if isinstance(value, Node):
            return _of_node(value, (place if folded in RELATED else around)._replace(is_item=False), answer)
        return answer.read_string(value) if value else []
    if not is_asked and folded in ASIDE:
        return []
    tails = _texts(value, answer.asked)
    if tails is None:
        head, relation = (place.head, key) if is_asked else (key, place.relation if place.is_asked else key)
        return _of_node(value, _Place(head, relation, place.is_asked or (is_asked and not place.head)), answer)
    found = []
    if place.is_asked:
        found = [(key, place.relation, tail or NAN) for tail in tails]
    elif place.head and (is_asked or has_asked or not answer.asked):
        found = [(place.head, key, tail or NAN) for tail in tails]
    if isinstance(value, Node):  # entities that have relations of their own
        nodes = [value] if value.is_object else [entity for entity in value.values if isinstance(entity, Node)]
        found += [triple for entity in nodes for triple in _of_node(entity, _Place(), answer)]
    return found


def _fold(key: str) -> str:
    return re.sub(r"[\s_-]", "", key).lower()


def _part(parts: dict[str, tuple[str, list[str] | None]], table: dict[str, int]) -> tuple[str, list[str]] | None:
    """The key and the texts of the part that one of the names of a table has; None if no name has texts."""
    named = [name for name in parts if name in table and parts[name][1]]
    return parts[min(named, key=table.get)] if named else None


def _texts(value, asked: frozenset[str]) -> list[str] | None:
    """The text of a scalar or of an object with a name, or those of a list of such; None where there is another."""
    if not isinstance(value, Node):
        return [NAN if value is None else value.strip()]
    if not value.items:
        return [NAN]
    if not value.is_object:
        texts = [None if isinstance(v, Node) and not v.is_object else _texts(v, asked) for v in value.values]
        return None if None in texts else [text for several in texts for text in several]
    if any(key in asked for key, _ in value.items):
        return None
    parts = {
        _fold(key): (key, _texts(v, asked)) for key, v in value.items if key is not None and not isinstance(v, Node)
    }
    has_parts = _part(parts, HEADS) and _part(parts, TAILS)
    name = None if has_parts else _part(parts, NAMES)
    return name[1] if name else None


def _holds_text(string: str, alone: bool = False) -> bool:
    """Whether a string has the brackets and commas of a triple in text form; `alone`: and nothing around them."""
    bare = string.strip()
    is_alone = bare[:1] in tuple(OPEN) and bare[-1:] in tuple(CLOSE)
    return (is_alone or not alone) and sum(map(bare.count, ",，")) > 1 and any(char in bare for char in OPEN)


def _has_nodes(value) -> bool:
    return isinstance(value, Node) and any(isinstance(inner, Node) for inner in value.values)


def _has_objects(value) -> bool:
    return isinstance(value, Node) and (value.is_object or any(map(_has_objects, value.values)))


def _is_hollow(value) -> bool:
    if isinstance(value, Node):
        return all(map(_is_hollow, value.values))
    return value is None or value.strip() in ("", NAN)


def _is_real(found: tuple | str) -> bool:
    """Whether it is a triple, and neither an entry for nothing nor the form that the instruction gave."""
    if isinstance(found, str) or not all(found) or NAN in found:
        return False
    return not (_fold(found[0]) in HEADS and _fold(found[2]) in TAILS)


def _text_around(text: str, nodes: list[Node]) -> str:
    starts, ends = [0, *(node.end for node in nodes)], [*(node.start for node in nodes), len(text)]
    return "\n".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _is_in_bracket(text: str, at: int) -> bool:
    """Whether a bracket that opens before `at` on its line, but not the list's own, is open there."""
    before = text[text.rfind("\n", 0, at) + 1 : at].rstrip("[{ \t")
    return sum(map(before.count, OPEN)) > sum(map(before.count, CLOSE))
