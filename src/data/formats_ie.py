"""The forms of data sets of information extraction: IEPile and OneKE, InstructIE, DuIE and CMeIE."""

import json

from data.wording import Found, is_chinese, word_instruction
from kg.triples import parse

EXPERT = {  # IEPile's words for relation extraction, by whether the text is Chinese
    True: "你是专门进行关系抽取的专家。请从input中抽取出符合schema定义的关系三元组，不存在的关系返回空列表。请按照"
    "JSON字符串的格式回答。",
    False: "You are an expert in relationship extraction. Please extract relationship triples that match the schema "
    "definition from the input. Return an empty list for relationships that do not exist. Please respond in the format "
    "of a JSON string.",
}
OTHER_TASKS = ("NER", "EE", "EET", "EEA")  # of IEPile: what they ask for are no triples
TYPES, PARTS, EMPTY = "types of heads and tails", "other parts of complex objects", "triples with an empty part"
WORDS = "words of the instruction"


def tell_iepile(record: dict) -> bool:
    return _question(record) is not None and not isinstance(record.get("input"), str)


def read_iepile(record: dict) -> list[Found]:
    """A part of IEPile's or OneKE's records: tasks RE, SPO and KG; one of another task is left out, and counted."""
    question = _question(record)
    if question is None:
        raise ValueError("its instruction is no JSON object with schema and input")
    task = record.get("task")
    if task in OTHER_TASKS or _asks_events(question["schema"]):
        return [Found({}, lost=(f"all (task {task or 'of events'}, which asks for no relations)",))]
    names, described = _names(question["schema"])
    if not names:
        raise ValueError("its schema names no relation")
    kept = _rest(record, "instruction", "task", "output", "label")
    found = {"descriptions of relations": described, "examples": "example" in question}
    answer = next((record[name] for name in ("output", "label") if record.get(name) is not None), None)
    triples = None if answer is None else _read_answer(answer, names, question["input"])
    if record.get("label") is not None and record.get("output") is not None:
        kept["label"] = record["label"]
    return [Found({**kept, "input": question["input"]}, triples, names, _true(found))]


def _question(record: dict) -> dict | None:
    """What IEPile's instruction holds as JSON; None for any other."""
    text = record.get("instruction")
    try:
        found = json.loads(text) if isinstance(text, str) and text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    right = isinstance(found, dict) and isinstance(found.get("input"), str)
    return found if right and isinstance(found.get("schema"), (list, dict)) else None


def _asks_events(schema) -> bool:
    return any(isinstance(one, dict) and "event_type" in one for one in schema)


def _names(schema) -> tuple[list[str], bool]:
    """The relations of a schema: names; {name: description}; OneKE's entity types with attributes; SPO's predicates.

    And whether something of it is no name.
    """
    names, described = [], isinstance(schema, dict)
    for one in schema:
        if isinstance(one, str):
            names.append(one)
        elif isinstance(one, dict) and isinstance(one.get("predicate"), str):
            names.append(one["predicate"])
            described = True
        elif isinstance(one, dict) and isinstance(one.get("attributes"), (list, dict)):
            names += [name for name in one["attributes"] if isinstance(name, str)]
            described = True
    return list(dict.fromkeys(names)), described


def _read_answer(answer, names: list[str], text: str) -> list[tuple[str, str, str]]:
    """{"relation": [{"subject", "object"}]} exactly; whatever else stands there as answers are read."""
    try:
        found = json.loads(answer) if isinstance(answer, str) else answer
    except (ValueError, RecursionError):
        found = None
    pairs = [
        (name, pair)
        for name, several in (found.items() if isinstance(found, dict) else ())
        for pair in (several if isinstance(several, list) else [several])
    ]
    if isinstance(found, dict) and all(isinstance(p, dict) and set(p) == {"subject", "object"} for _, p in pairs):
        triples = [(str(pair["subject"]), name, str(pair["object"])) for name, pair in pairs]
        return [triple for triple in triples if all(triple)]
    written = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return [tuple(triple) for triple in parse(written, names, text)]


def write_iepile(record: dict, triples, groups: list[list[str]]) -> tuple[list[dict], list[str]]:
    """A record for each part that the relations are asked in, all of one id."""
    names, text = [name for group in groups for name in group], record.get("input") or ""
    if not names:
        return [], ["all (it names no relation)"]
    lost = [WORDS] if record.get("instruction") != word_instruction(list(dict.fromkeys(names)), text) else []
    if any(triple[1] not in names for triple in triples or ()):
        lost.append("triples of relations that are not asked for")
    kept, rows = _rest(record, "instruction", "input", "output", "kg", "schema_groups"), []
    words = EXPERT[is_chinese([text, *names])]
    for group in groups:
        question = {"instruction": words, "schema": group, "input": text}
        row = {**kept, "task": "RE", "source": kept.get("source") or "", "instruction": _json(question)}
        if triples is not None:
            pairs = {name: [{"subject": h, "object": t} for h, r, t in triples if r == name] for name in group}
            row["output"] = _json(pairs)
        rows.append(row)
    return rows, lost


def tell_instructie(record: dict) -> bool:
    text = record.get("text", record.get("input"))
    return isinstance(text, str) and _objects(record.get("relation"), "head", "tail")


def read_instructie(record: dict) -> list[Found]:
    """text (or input), cate, and relation: objects with head, relation, tail and the types of head and tail."""
    relations = record.get("relation")
    if relations is not None and not _objects(relations, "head", "tail"):
        raise ValueError("relation is no list of objects with head, relation and tail")
    triples = None if relations is None else [_triple(one, "head", "relation", "tail") for one in relations]
    found = {
        TYPES: any(one.get(name) for one in relations or () for name in ("head_type", "tail_type")),
        EMPTY: not all(map(all, triples or ())),
    }
    kept = _rest(record, "text", "relation")
    return [Found({**kept, "input": _text(record)}, _whole(triples), lost=_true(found))]


def tell_duie(record: dict) -> bool:
    return _has_spo(record) and not tell_cmeie(record)


def tell_cmeie(record: dict) -> bool:
    return _has_spo(record) and any("Combined" in one for one in record["spo_list"])


def read_duie(record: dict) -> list[Found]:
    """text and spo_list, of DuIE 1.0 (object is a text) and 2.0 (object is {"@value": text, …}), and CMeIE."""
    spos = record.get("spo_list")
    if spos is not None and not _objects(spos, "subject", "object"):
        raise ValueError("spo_list is no list of objects with subject, predicate and object")
    triples = None if spos is None else [_triple(one, "subject", "predicate", "object") for one in spos]
    found = {
        TYPES: any(_filled(one.get(name)) for one in spos or () for name in ("subject_type", "object_type")),
        PARTS: any(isinstance(one["object"], dict) and set(one["object"]) > {"@value"} for one in spos or ()),
        "Combined": any(one.get("Combined") for one in spos or ()),
        EMPTY: not all(map(all, triples or ())),
    }
    kept = _rest(record, "text", "spo_list")
    return [Found({**kept, "input": _text(record)}, _whole(triples), lost=_true(found))]


def write_duie(record: dict, triples, groups: list[list[str]]) -> tuple[list[dict], list[str]]:
    """DuIE 2.0, without types, which are not known."""
    names, text = {name for group in groups for name in group}, record.get("input") or ""
    kept = _rest(record, "instruction", "input", "output", "kg", "schema_groups")
    row, lost = {**kept, "text": text}, []
    if triples is not None:
        row["spo_list"] = [
            {
                "predicate": relation,
                "object_type": {"@value": ""},
                "subject_type": "",
                "object": {"@value": tail},
                "subject": head,
            }
            for head, relation, tail in triples
        ]
    if names - {triple[1] for triple in triples or ()}:
        lost.append("relations that are asked for without an answer")
    return [row], lost


def _objects(value, *keys: str) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and set(keys) <= set(one) for one in value)


def _has_spo(record: dict) -> bool:
    return isinstance(record.get("text", record.get("input")), str) and _objects(
        record.get("spo_list"), "subject", "object"
    )


def _filled(value) -> bool:
    return any(map(_filled, value.values())) if isinstance(value, dict) else bool(value)


def _triple(one: dict, head: str, relation: str, tail: str) -> tuple[str, str, str]:
    parts = [one.get(name) for name in (head, relation, tail)]
    parts = [part.get("@value") if isinstance(part, dict) else part for part in parts]
    if None in parts or any(isinstance(part, (dict, list)) for part in parts):
        raise ValueError(f"{json.dumps(one, ensure_ascii=False):.80} lacks {head}, {relation} or {tail}, as a text")
    return tuple(map(str, parts))


def _whole(triples: list | None) -> list | None:
    """The triples without those that have an empty part."""
    return triples if triples is None else [triple for triple in triples if all(triple)]


def _true(found: dict[str, bool]) -> tuple[str, ...]:
    return tuple(word for word, there in found.items() if there)


def _text(record: dict) -> str:
    text = record.get("text", record.get("input"))
    if not isinstance(text, str):
        raise ValueError("text is missing, or no string")
    return text


def _rest(record: dict, *names: str) -> dict:
    return {name: value for name, value in record.items() if name not in names}


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False)
