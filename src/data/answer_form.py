"""Answers as JSON (--answer_format json): how they are asked for, and how records that have them as text learn them."""

import re

from common.errors import say
from data.wording import is_chinese
from kg.metrics import triples_of
from kg.objects import NAN
from kg.schema import read_schema
from kg.triples import render

SHAPE = '[{"head": "%s", "relation": "%s", "tail": "%s"}]'
CHINESE = "请按照 " + SHAPE % ("头实体", "关系", "尾实体") + " 的 JSON 格式回答，没有时回答 []。"
ENGLISH = (
    "Please answer in JSON, in the form " + SHAPE % ("head", "relation", "tail") + ", with [] where there is nothing."
)
# A sentence that asks for the text form, (Subject,Relation,Object) and the like, as the contest's instructions end.
_TEXT_FORM = re.compile(
    r"(?:请|請)?(?:你)?(?:按照|按|以)\s*[(（][^()（）\n]{1,40}[,，][^()（）\n]{1,40}[,，][^()（）\n]{1,40}[)）]\s*的?(?:格式|形式)"
    r"(?:回答|输出|輸出|返回|给出)?[。.]?"
    r"|(?:please )?answer in the (?:format|form)(?: of)? \([^()\n]{1,40},[^()\n]{1,40},[^()\n]{1,40}\)\.?",
    re.IGNORECASE,
)


def ask_json(record: dict) -> dict:
    """The record with an instruction that asks for JSON: in place of a sentence that asks for another form, or behind
    the last. One that asks for it already is left as it is.
    """
    text = record["instruction"]
    if CHINESE in text or ENGLISH in text:
        return record
    sentence = CHINESE if is_chinese([text]) else ENGLISH
    found = list(_TEXT_FORM.finditer(text))
    joined = f"{text.rstrip()}{'' if sentence is CHINESE else ' '}{sentence}"
    forms = [text[: found[-1].start()] + sentence + text[found[-1].end() :]] if found else []
    forms += [joined, f"{text.rstrip()}\n{sentence}", f"{sentence}\n{text}"]
    names = read_schema(text)
    return {**record, "instruction": next((form for form in forms if read_schema(form) == names), joined)}


def answer_in_json(records: list[dict], what: str) -> list[dict]:
    """The records with JSON asked for, and as their output; says how many outputs hold words but no triple: they become
    [], as those do that say that there is nothing.
    """
    made, silent = [], 0
    for record in records:
        triples = triples_of(record)
        silent += not triples and record["output"].strip() not in ("", NAN, "[]")
        kg = [list(triple) for triple in triples]
        made.append({**ask_json(record), "output": render(triples, "json"), "kg": kg})
    if silent:
        say(f"answer_format: {silent} of {len(records)} {what} outputs hold words but no triple; [] is learnt for them")
    return made
