"""The relations an instruction asks for."""

import re

_IS = r"(?:\s*(?:为|是|is|[:：=]))?\s*(?=[\[{【（(])"
_RELATIONS = re.compile(r"(?:关系(?:列表|类型)|relation list)" + _IS, re.IGNORECASE)
_NAME = r"""\s*(?:'[^']*'|"[^"]*"|‘[^’]*’|“[^”]*”)\s*"""
_QUOTED_NAMES = re.compile(rf"[\[{{【（(]({_NAME}(?:[,，、]{_NAME})*)[\]}}】）)]")  # a quoted name may hold brackets
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"|‘([^’]*)’|“([^”]*)”")
_CLOSES_LIST = re.compile(r"[\]}】）)]")


def read_schema(instruction: str | None) -> list[str] | None:
    """The relations an instruction asks for, in its order; `[]` for an empty list, None when it names no list."""
    return _listed(_RELATIONS, instruction)


def _listed(introduction: re.Pattern, instruction: str | None) -> list[str] | None:
    found = introduction.search(instruction) if isinstance(instruction, str) else None
    if not found:
        return None
    names = _QUOTED_NAMES.match(instruction, found.end())
    if names:
        parts = [next((part for part in match if part), "") for match in _QUOTED.findall(names[1])]
    else:
        end = _CLOSES_LIST.search(instruction, found.end() + 1)
        if not end:
            return None
        parts = re.split(r"[,，、]", instruction[found.end() + 1 : end.start()])
        parts = [part.strip().strip("'\"‘’“”") for part in parts]
    return [part.strip() for part in parts if part.strip()]
