"""The relations an instruction asks for. Pure functions of the standard library; the time is linear in the text."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from kg.literals import Node, read_value, unescape

_KIND = r"(?:类型|類型|类别|類別|种类|種類|名称|名稱|标签|標籤)"
_SET = r"(?:列表|清单|清單|集合|范围|範圍|候选|候選)"
_RELATION, _WORD = r"[关關][系係]", r"(?<![a-z])(?:relation(?:ship)?|predicate)s?"
_WORD_KIND, _WORD_SET = r"(?:type|label|name|categor(?:y|ie))s?", r"(?:list|set|schema|vocabulary|candidate)s?"
_INTRODUCTION = re.compile(
    # what a list of relations is called, the sure names and those that need quotes around the relations
    rf"(?=[关關候谓謂rpcgsa])(?:(?P<sure>{_RELATION}{_KIND}?{_SET}|{_RELATION}{_KIND}|候[选選]的?{_RELATION}{_KIND}?{_SET}?|谓词列表|謂詞列表"
    rf"|{_WORD}[ _-]?(?:{_WORD_KIND}[ _-]?)?{_WORD_SET}|{_WORD}[ _-]?{_WORD_KIND}"
    rf"|(?:candidate|possible|allowed)[ _]relation(?:ship)?s(?![a-z]))"
    rf"|(?P<schema>(?<![a-z])schema)|{_RELATION}|谓词|謂詞|{_WORD}(?![a-z])|(?<![a-z])given the(?=\s?\[))"
    # a remark in brackets, marks that close, and the words between the name and the list
    r"(?:\s?[（(][^（）()\n]{0,40}[)）](?=\s?(?:[:：=]|是|为|為|如下|包括|包含|are|is)))?[*_`'\"”』」】\]》]{0,3}"
    r"(?P<is>(?:\s{0,9}(?:[:：=]|如下|以下|所示|包括|包含|可以|可能|必须|必須|限于|限於|限定|仅|僅|只|分别|分別|之一|共|应|應|是|为|為|"
    r"即|有|(?:\d{1,4}|[一二三四五六七八九十几幾两兩]{1,3})\s?[种種个個类類项項]|(?:is|are|include[sd]?|including|as|follows?|"
    r"following|below|must|may|can|be|one of|only|limited to|from|the|any of)(?![a-z]))){0,9})(?P<gap>\s{0,50})",
    re.IGNORECASE,
)
_QUOTED = "(?:" + "|".join(rf"{q[0]}[^{q[1]}\n]{{0,200}}{q[1]}" for q in ("''", '""', "‘’", "“”", "``", "「」")) + ")"
_ONE_QUOTED, _QUOTES, _COMMA = re.compile(_QUOTED), "'\"‘’“”`「」*", r"[,，、;；/|]"
_IN_BRACKETS = re.compile(rf"[\[{{【（(]\s*(?:{_QUOTED}(?:\s*{_COMMA}\s*{_QUOTED})*\s*{_COMMA}?\s*)[\]}}】）)]")
_IN_QUOTES = re.compile(rf"{_QUOTED}(?:\s?(?:{_COMMA}\s?(?:and|or)?|和|与|及|以及|and|or)\s?{_QUOTED})*")
_HAS_QUOTES = re.compile(rf"[\[{{【（(]\s{{0,50}}[{_QUOTES}]")
_OPENS_OBJECT = re.compile(rf"(?:\[\s{{0,50}})?\{{\s{{0,50}}{_QUOTED}\s?[:：]")
_CLOSES = re.compile(r"[\]}】）)]")
_MARKED_LINE = re.compile(r"[^\S\n]*(?:[-*+•·●○]|[（(]?\d{1,3}[.、)）]|[①-⑳])[^\S\n]*([^\n]{1,200})(?:\n|$)")
_NUMBERED = re.compile(
    r"\s?(?:[（(]?\d{1,3}[.、)）]|[①-⑳])\s?([^\s,，、。；;:：?？\d][^\s,，、。；;:：?？①-⑳]{0,39})[,，、;；]?"
)
_PLAIN_LINE = re.compile(r"[^\S\n]*([^\n,，、。；;:：?？!！()（）\[\]【】]{1,40})(?:\n|$)")
_IN_A_ROW = re.compile(r"(?:[^。；;:：\n?？!！.\"“”'‘’()（）\[\]【】{}]|\.(?=\S)){1,600}(?=[。；;\n.]|$)")
_DESCRIBED = re.compile(r"\s*(?:[:：]|——| - | – | — ).*")
_NO_NAME = re.compile(  # how sentences go on behind a list
    r"请|請|你|从|從|根据|根據|抽取|提取|输入|輸入|输出|輸出|文本|句子|并|並|以|按|哪|什么|如何|返回|给出|不|由|\d|"
    r"(?:please|extract|from|text|input|sentence|output|answer|return|you|if|do|for|given|which)(?![a-z])",
    re.IGNORECASE,
)
_EXAMPLE = re.compile(r"例如|比如|例子|示例|样例|範例|范例|example|e\.g\.", re.IGNORECASE)
_FORM = re.compile(r"格式|形式|输出|輸出|返回|format|form of|output", re.IGNORECASE)
_PARTS = {"头实体", "头", "关系", "尾实体", "尾", "主体", "客体"} | {
    *("subject", "relation", "predicate", "object", "head", "tail")
}
_OTHER_TASK = re.compile(r"实体|實體|事件|entit|event", re.IGNORECASE)
_THIS_TASK = re.compile(
    r"关系|關係|三元组|三元組|图谱|圖譜|属性|屬性|relation|triple|spo|attribute|graph", re.IGNORECASE
)
_OF_TYPES = re.compile(r"实体类型|實體類型|图谱|圖譜|entity.?type|attribute", re.IGNORECASE)
_NAMED_BY = ("predicate", "relation", "relation_type", "关系", "关系类型", "谓词", "name", "label")
_HOLDING = ("relations", "relation_types", "关系列表", "attributes", "attribute", "属性", "predicates", "schema")


class Schema(NamedTuple):
    """A list of relations in a text."""

    rank: tuple  # the lower, the surer
    names: list[str]
    start: int  # where it stands in the text
    end: int  # behind it, and behind what was read with it


def read_schema(instruction: str | None) -> list[str] | None:
    """The relations an instruction asks for, in its order; `[]` for an empty list, None when it names no list."""
    found = find_schema(instruction)
    return found.names if found else None


def find_schema(instruction: str | None) -> Schema | None:
    """The list of relations of an instruction; None when it names no list.

    Of several lists the surest kind counts, and of these the last: an example stands before the task.
    """
    lists = list(_read_lists(instruction)) if isinstance(instruction, str) else []
    surest = min((found.rank for found in lists), default=None)
    return next((found for found in reversed(lists) if found.rank == surest), None)


def _read_lists(text: str) -> Iterator[Schema]:
    words = unescape(text) if "\\u" in text else text  # those of JSON in ASCII
    other_task, of_types = bool(_OTHER_TASK.search(words)) and not _THIS_TASK.search(words), _OF_TYPES.search(words)
    last_close = max(map(text.rfind, "]}】）)"))
    at = 0
    while found := _INTRODUCTION.search(text, at):
        start = at = found.end()
        kind = 0 if found["sure"] else 1 if found["schema"] else 2
        is_bracket = text[at : at + 1] in tuple("[{【（(")
        is_remark = text[at : at + 1] in tuple("（(") and not found["is"] and not _HAS_QUOTES.match(text, at)
        if is_remark and not (found["sure"] or "").lower().endswith(("关系列表", "关系类型", "relation list")):
            names = None
        elif is_bracket and at < last_close and not (kind == 1 and other_task):
            names, at = _read_bracket(text, at, kind, bool(of_types))
        elif kind == 0 and found["is"] and not is_bracket:
            names, at = _read_lines(text, at, "\n" in found["gap"]) or _read_row(text, at, found["is"])
        else:
            names = None
        if names is None or (len(names) > 1 and _PARTS.issuperset(name.lower() for name in names)):
            continue
        before = text[max(0, found.start() - 300) : found.start()].rpartition("\n")[2]
        if kind < 2 or not _FORM.search(before):
            yield Schema((bool(_EXAMPLE.search(before)), not is_bracket, kind), names, start, at)


def _read_bracket(text: str, at: int, kind: int, of_types: bool) -> tuple[list[str] | None, int]:
    """The names in the bracket that opens at `at`, None if they are none, and where to read on."""
    quoted = _IN_BRACKETS.match(text, at)
    if quoted and "\\" not in quoted[0]:
        return _clean(name[1:-1] for name in _ONE_QUOTED.findall(quoted[0])), quoted.end()
    if text[at] in "[{(" and (quoted or (kind < 2 and _OPENS_OBJECT.match(text, at))):
        node = read_value(text, at)
        return (_clean(_names_of(node, of_types)) if node.whole else None) or None, node.end
    close = _CLOSES.search(text, at + 1) if kind < 2 else None
    return (_clean(re.split(r"[,，、;；|]", text[at + 1 : close.start()])), close.end()) if close else (None, at)


def _names_of(node: Node, of_types: bool) -> list[str]:
    """Names that a list holds, or objects of it by a key; else the keys of an object, or what they hold if types."""
    fields = {key.strip().lower(): value for key, value in node.items if key is not None}
    for key in (key for key in _NAMED_BY if isinstance(fields.get(key), str)):
        return [fields[key]]
    for key in (key for key in _HOLDING if isinstance(fields.get(key), Node)):
        return _names_of(fields[key], of_types=False)
    if node.is_object and not (of_types and all(isinstance(value, Node) for value in node.values)):
        return [key for key, _ in node.items if key is not None]
    several = [_names_of(v, of_types=False) if isinstance(v, Node) else [v or ""] for v in node.values]
    return [name for names in several for name in names]


def _read_lines(text: str, at: int, on_new_line: bool) -> tuple[list[str], int] | None:
    """The names of a list with a mark or number before each, or each on a line of its own; None if it is none."""
    kinds = [(_MARKED_LINE, 2 - on_new_line), (_NUMBERED, 2), *([(_PLAIN_LINE, 2)] if on_new_line else [])]
    for pattern, least in kinds:
        names, end = [], at
        while line := pattern.match(text, end):
            name = _clean([_DESCRIBED.sub("", line[1])])
            if not name or _NO_NAME.match(name[0]) or len(name[0]) > 40 or _NUMBERED.search(line[1], 1):
                break
            names, end = names + name, line.end()
        if len(names) >= least:
            return names, end
    return None


def _read_row(text: str, at: int, words: str) -> tuple[list[str] | None, int]:
    """The names of a list without brackets, None if they are none, and where to read on."""
    quoted = _IN_QUOTES.match(text, at)
    if quoted:
        names = [name[1:-1] for name in _ONE_QUOTED.findall(quoted[0])]
        names = _clean(names if len(names) > 1 else re.split(r"[,，、;；]", names[0]))
        return (names if len(names) > 1 else None), quoted.end()
    row = _IN_A_ROW.match(text, at) if re.search(r"[:：=]\s*$|包括$|包含$|include[sd]?$|including$", words) else None
    if not row:
        return None, at
    marked = "、" in row[0]
    parts = re.split(r"[,，]", row[0])
    if marked:
        *parts, last = parts[0].split("、")
        parts += re.split("和|以及|及", last) if "等" not in last[-3:] else [""]
    else:
        parts = parts[: next((n for n, part in enumerate(parts) if _NO_NAME.match(part.strip())), len(parts))]
        parts = [re.sub(r"^\s*(?:and|or)\s", "", part) for part in parts]
        parts += re.split(r"\s(?:and|or)\s", parts.pop()) if parts else []
    names = _clean(parts)
    short = all(len(name) <= (40 if name.isascii() else 15) and not _NO_NAME.match(name) for name in names)
    return (names if len(names) > 1 and len(names) == len(parts) and short else None), row.end()


def _clean(names) -> list[str]:
    names = (name.strip().strip(_QUOTES).strip() for name in names)
    return [name for name in names if name]
