"""Records as other projects publish them -> this project's, and back: the one table of their formats.

A record of this project has id, cate (if known), instruction, input, output (if known), kg and whatever else it had.
What a form has no place for is lost; every loss is counted and named.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from common.errors import UserError, say
from data.asking import GROUPS, groups_of
from data.formats_chat import (
    read_chat,
    read_predictions,
    tell_messages,
    tell_predictions,
    tell_sharegpt,
    write_messages,
)
from data.formats_ie import (
    read_duie,
    read_iepile,
    read_instructie,
    tell_cmeie,
    tell_duie,
    tell_iepile,
    tell_instructie,
    write_duie,
    write_iepile,
)
from data.wording import Found, word_instruction
from kg.metrics import triples_of
from kg.objects import NAN
from kg.schema import read_schema
from kg.triples import render

COMMAND = "python src/utils/convert.py"


class Format(NamedTuple):
    """One published form of records."""

    title: str
    fields: str  # how a record is recognised, in words
    tell: Callable[[dict], bool]  # the same, as a function
    read: Callable[[dict], list[Found]]  # ValueError for a record that is none
    write: Callable[[dict, list, list], tuple[list[dict], list[str]]] | None = None
    # (record, its triples, its relations in the parts they are asked in) -> records of the form, and what is lost


FORMATS = {
    "iepile": Format(
        "IEPile's and OneKE's form",
        "an instruction that is JSON, with instruction, schema and input",
        tell_iepile,
        read_iepile,
        write_iepile,
    ),
    "instructie": Format(
        "InstructIE's form", "text, and a list relation of objects with head, relation, tail", tell_instructie,
        read_instructie,
    ),
    "duie": Format(
        "DuIE's form", "text, and a list spo_list of objects with subject, predicate, object", tell_duie, read_duie,
        write_duie,
    ),
    "cmeie": Format("CMeIE's form", "that of DuIE, with Combined in its objects", tell_cmeie, read_duie),
    "sharegpt": Format(
        "ShareGPT's form", "a list conversations of objects with from and value", tell_sharegpt, read_chat
    ),
    "messages": Format(
        "chat messages", "a list messages of objects with role and content", tell_messages, read_chat, write_messages
    ),
    "llamafactory": Format(
        "LLaMA-Factory's predictions", "prompt, predict and label: predict becomes the output", tell_predictions,
        lambda record: read_predictions(record, "predict"),
    ),
    "llamafactory-gold": Format(
        "the right answers of LLaMA-Factory's predictions", "the same: label becomes the output", tell_predictions,
        lambda record: read_predictions(record, "label"),
    ),
}  # fmt: skip
TABLES = ("csv", "parquet")  # files whose rows are records, of this project or of one of these forms
READ = (*FORMATS, *TABLES)
WRITTEN = tuple(name for name, form in FORMATS.items() if form.write)


class Turned(NamedTuple):
    """What became of records of another form, or of this project's records in another form."""

    records: list[tuple[int, dict]]  # with the line each one starts on
    lost: dict[str, list]  # what is lost -> the ids, or lines, of the records that lose it


def recognise(record: dict) -> list[str]:
    """The forms that a record may be of."""
    return [name for name, form in FORMATS.items() if form.tell(record)]


def as_ours(path, pairs: list[tuple[int, dict]], needs: tuple[str, ...]) -> list[tuple[int, dict]]:
    """The records of a file in this project's form, whichever of the forms they have; says which it was.

    A file whose first record has the fields `needs` is this project's own, and one of no known form is left as it is.
    UserError where two forms may be meant.
    """
    name = choose_form(path, pairs[0][1], needs)
    if name is None:
        return pairs
    turned = read_as(name, path, pairs)
    say_turned(f"{path}: read as {FORMATS[name].title} (as by convert.py --from {name})", turned)
    return turned.records


def choose_form(path, first: dict, needs: tuple[str, ...] = ("instruction", "input")) -> str | None:
    """The form of a file by its first record; None for this project's own, or an unknown one.

    UserError where two may be meant.
    """
    if all(field in first for field in needs) or not (names := recognise(first)):
        return None
    if len(names) > 1:
        which = " or ".join(f"--from {name} ({FORMATS[name].title})" for name in names)
        raise UserError(
            f"{path}: may be read in two ways; say which by {COMMAND} {which} --pred_path {path} --tgt_path NEW, and "
            "give the new file"
        )
    return names[0]


def read_as(name: str, path, pairs: list[tuple[int, dict]], relations: dict | None = None) -> Turned:
    """The records of one form as this project's; UserError with file and line for one that is of another form.

    `relations`: topic (`cate`; "" for all others) -> those to ask for, where the form does not say it; left out: those
    that the file's records of the topic have.
    """
    form, found, lost = FORMATS[name], [], {}
    for line, record in pairs:
        try:
            several = form.read(record)
        except ValueError as error:
            raise UserError(f"{path}:{line}: {error}; expected {form.title}: {form.fields}") from None
        for one in several:
            found += [(line, one)] if one.record else []
            _add(lost, one.lost, record.get("id", f"line {line}"))
    numbered = not any("id" in one.record for _, one in found)
    known = relations if relations is not None else _survey(one for _, one in found)
    records = []
    for number, (line, one) in enumerate(found, 1):
        identity = {"id": number} if numbered else {}
        records.append((line, {**identity, **_make_record(path, line, one, known)}))
    if not records:
        raise UserError(f"{path}: none of its {len(pairs)} records asks for relations; {_named(lost)}")
    asked = any(one.relations is not None for _, one in found)  # by records that say for themselves what they ask for
    return Turned(_merge_parts(records) if asked else records, lost)


def write_as(name: str, pairs: list[tuple[int, dict]]) -> Turned:
    """This project's records in another form, one of `WRITTEN`."""
    made, lost = [], {}
    for line, record in pairs:
        triples = triples_of(record) if "output" in record or record.get("kg") is not None else None
        names = read_schema(record.get("instruction"))
        if names is None:
            names = list(dict.fromkeys(triple[1] for triple in triples or []))
        rows, words = FORMATS[name].write(record, triples, groups_of(record, names))
        made += [(line, row) for row in rows]
        _add(lost, words, record.get("id", f"line {line}"))
    return Turned(made, lost)


def say_turned(what: str, turned: Turned) -> None:
    """One line: how many records were made, and what some of them lost."""
    words = f"; lost: {_named(turned.lost)}" if turned.lost else ""
    say(f"{what}: {len(turned.records)} records{words}")


def _named(lost: dict[str, list]) -> str:
    return ", ".join(f"{what} of {len(ids)} records (the first: {ids[0]})" for what, ids in lost.items())


def _add(lost: dict[str, list], words: Iterable[str], identity) -> None:
    for what in dict.fromkeys(words):
        lost.setdefault(what, []).append(identity)


def _survey(found: Iterable[Found]) -> dict[str, list[str]]:
    """Topic -> the relations that the records of it have, in their order."""
    topics: dict[str, Counter] = {}
    for one in found:
        names = topics.setdefault(str(one.record.get("cate") or ""), Counter())
        names.update(triple[1] for triple in one.triples or ())
    return {topic: list(names) for topic, names in topics.items()}


def _make_record(path, line: int, one: Found, known: dict[str, list[str]]) -> dict:
    """id, cate, instruction, input, output, kg, and the rest."""
    given, made = one.record, {}
    if "instruction" not in given:
        topic = str(given.get("cate") or "")
        names = one.relations if one.relations is not None else known.get(topic) or known.get("")
        if not names:
            raise UserError(
                f"{path}:{line}: no record says which relations are asked for; give them by {COMMAND} --from FORMAT "
                "--relations FILE (a JSON list of names)"
            )
        made["instruction"] = word_instruction(names, given["input"])
    if one.triples is not None:
        triples = list(dict.fromkeys(one.triples))
        made |= {"output": render(triples) or NAN, "kg": [list(triple) for triple in triples]}
    whole = {**given, **made}
    first = [name for name in ("id", "cate", "instruction", "input", "output", "kg") if name in whole]
    return {name: whole[name] for name in dict.fromkeys([*first, *whole])}


def _merge_parts(records: list[tuple[int, dict]]) -> list[tuple[int, dict]]:
    """The records, those of one id and text put together: asked apart (`GROUPS`), and answered as one."""
    merged: dict[object, tuple[int, dict]] = {}
    for number, (line, record) in enumerate(records):
        identity = record.get("id")
        key = (identity, record["input"]) if isinstance(identity, (int, str)) and identity != "" else number
        names = read_schema(record["instruction"])
        if key not in merged or names is None:
            merged[key if key not in merged else number] = (line, record)
            continue
        first, whole = merged[key]
        groups = whole.get(GROUPS) or [read_schema(whole["instruction"]) or []]
        groups = groups if names in groups else [*groups, names]
        union = list(dict.fromkeys(name for group in groups for name in group))
        more = {"instruction": word_instruction(union, record["input"]), GROUPS: groups} if len(groups) > 1 else {}
        if "kg" in whole and "kg" in record:
            kg = [list(triple) for triple in dict.fromkeys(map(tuple, [*whole["kg"], *record["kg"]]))]
            more |= {"output": render(kg) or NAN, "kg": kg}
        merged[key] = (first, {**whole, **more})
    return list(merged.values())
