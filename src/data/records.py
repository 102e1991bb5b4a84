"""Read, check, split and write records: JSON lines, or one JSON list, in UTF-8; or a table (data.tables)."""

import io
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError, say
from common.files import what_is_wrong
from data.asking import ask_apart
from data.formats import as_ours
from data.forms import how_to_turn
from data.tables import is_table, read_table

TEXT_FIELDS = ("instruction", "input", "output")
# What people call the texts of their rows, where these are no records: the first that a row has is it.
TEXT_NAMES = ("input", "text", "sentence", "content", "body", "正文", "文本")
PIECE = 2**20  # characters of a JSON list that are read at a time
MOST_DIGITS = 4000  # of a whole number; Python itself refuses more than 4,300


class NoNumber(ValueError):
    """What stands where JSON has a number, and is none."""


def _refuse(word: str):
    raise NoNumber(f"{word} is no number in JSON; write null, or leave the field out")


def _whole(digits: str) -> int:
    return int(digits) if len(digits) <= MOST_DIGITS else _refuse(f"{digits[:20]}…, a number of {len(digits)} digits,")


def _decimal(digits: str) -> float:
    return value if math.isfinite(value := float(digits)) else _refuse(f"{digits[:20]}, which is infinite,")


DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=_whole, parse_float=_decimal)


def read_records(path: str | Path) -> list[dict]:
    """All records of a file. UserError (file, line, found, expected) for anything that is not a list of objects."""
    return [record for _, record in read_with_lines(path)]


def read_with_lines(path: str | Path, piece: int = PIECE) -> list[tuple[int, dict]]:
    """The records with the line each one starts on."""
    return list(stream_records(path, piece=piece))


def stream_records(path: str | Path, bad: list[str] | None = None, piece: int = PIECE) -> Iterator[tuple[int, dict]]:
    """Yield (line it starts on, record), holding one line, or of a JSON list one `piece` (characters), in memory. Of a
    table the line is the number of the row.

    What is no record raises UserError. With a list `bad`, the error's text is appended there and reading goes on at
    the next line or item; only a list whose JSON is broken still raises.
    """
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        near = sorted(p.name for p in folder.glob("*.json*")) if folder.is_dir() else []
        names = ", ".join(near[:12]) + (", …" if len(near) > 12 else "")
        what = (
            "is a folder, expected a file"
            if path.is_dir()
            else "is no ordinary file"
            if path.exists()
            else "no such file"
        )
        raise UserError(f"{path}: {what} ({folder} holds {names or 'no .json file'})")
    if is_table(path):
        yield from read_table(path)
        return
    nothing = True
    with open(path, "rb") as file:
        first = file.read(PIECE).decode("utf-8-sig", "replace").lstrip()[:1]
        file.seek(0)
        items = _list_items(path, io.TextIOWrapper(file, "utf-8-sig"), piece) if first == "[" else _lines(path, file)
        for line, item in items:
            nothing = False
            if isinstance(item, dict):
                yield line, item
                continue
            found = item if isinstance(item, UserError) else None
            expected = f"expected an object with {', '.join(TEXT_FIELDS)}"
            error = found or UserError(f"{path}:{line}: found {_kind(item)}, {expected}")
            if bad is None:
                raise error
            bad.append(str(error))
    if nothing:
        what = "list" if first == "[" else "file"
        raise UserError(f"{path}: the {what} is empty; expected JSON lines or a JSON list of records")


def _lines(path, file):
    """Yield (line, value or the UserError that says why there is none) of JSON lines."""
    # Only "\n" ends a record: str.splitlines would also cut at U+2028, which JSON strings may hold as it is.
    for number, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if line.strip():
                yield number, DECODER.decode(line)
        except UnicodeDecodeError as error:
            advice = "save it as UTF-8"
            if error.reason == "unexpected end of data":
                advice = "the file ends within a character: copy it again, or remove the line"
            yield number, UserError(f"{path}:{number}: not UTF-8 (byte {error.start} of the line); {advice}")
        except (ValueError, RecursionError) as error:
            where = error
            if isinstance(error, json.JSONDecodeError):  # some of json's messages end in "at"
                where = f"{error.msg.removesuffix(' at')} at column {error.colno}"
            message = f"{path}:{number}: not JSON ({where}): {line[:60]!r}"
            if not isinstance(error, NoNumber):
                message += (
                    "; expected one whole object a line, or one list of objects in [ ] (a line cut in the middle? "
                )
                message += "then remove it)"
            yield number, UserError(message)


def _list_items(path, file, piece: int):
    """Yield (line, value) of one JSON list, read piece by piece."""
    line = 1  # that of text[counted]
    text, counted = _piece(path, file, piece), 0
    position, comma = text.index("[") + 1, True  # whether an item may follow
    while True:
        while position < len(text) and text[position] in " \t\r\n" + ("" if comma else ","):
            comma = comma or text[position] == ","
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            if (text[position + 1 :] + _piece(path, file, -1)).strip():
                raise UserError(f"{path}:{line}: something stands behind the ] that closes the list; remove it")
            return
        try:
            if not comma and position < len(text):
                raise json.JSONDecodeError("Expecting ',' between two objects", text, position)
            record, position = DECODER.raw_decode(text, position)
            comma = False
        except NoNumber as error:
            raise UserError(f"{path}:{line}: not JSON ({error}), in the object that begins there") from None
        except (json.JSONDecodeError, RecursionError) as error:
            more = _piece(path, file, max(piece, len(text)))  # doubled: the time stays linear in what is read
            if not more:
                at, why = line, error
                if isinstance(error, json.JSONDecodeError):
                    at, why = line + text.count("\n", counted, error.pos), what_is_wrong(error)
                raise UserError(
                    f"{path}:{at}: not JSON ({why}); expected one JSON list of objects, closed by ]"
                ) from None
            text, position, counted = text[position:] + more, 0, 0
            continue
        yield line, record


def _piece(path, file, size: int) -> str:
    try:
        return file.read(size)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save the file as UTF-8") from None


def check_records(path: str | Path, pairs: list[tuple[int, dict]], needs: tuple[str, ...]) -> list[dict]:
    """The records of `read_with_lines`, once every one has the text fields `needs` and no id stands twice."""
    for line, record in pairs[:1]:
        if any(field not in record for field in needs) and (turn := how_to_turn(record, needs)):
            fields = f"expected records with {', '.join(needs)}, found {', '.join(record)}"
            raise UserError(f"{path}:{line}: {fields}; {turn}")
    with_kg = all(record.get("kg") for _, record in pairs)
    lacking = {field for field in needs for _, record in pairs if field not in record}
    if lacking == {"output"} and all("output" not in record for _, record in pairs):
        raise UserError(
            f"{path}: none of its {len(pairs)} records has the field output: this looks like the test set "
            "(the contest calls it valid.json); train on the file whose records hold instruction, input and output"
            + (f"; python src/utils/convert.py --pred_path {path} --tgt_path NEW makes them of kg" if with_kg else "")
        )
    seen = {}
    for line, record in pairs:
        for field in needs:
            if field not in record:
                raise UserError(f"{path}:{line}: the field {field} is missing; found {', '.join(record) or 'none'}")
            if not isinstance(record[field], str):
                raise UserError(f"{path}:{line}: {field} is {_kind(record[field])}, expected a string")
        if record.get("kg") is not None and not is_kg(record["kg"]):
            raise UserError(f"{path}:{line}: kg is not a list of [head, relation, tail], all strings")
        identity = record.get("id", "")
        if isinstance(identity, (int, str)) and identity != "":
            if identity in seen:
                raise UserError(
                    f"{path}:{line}: id {identity!r} already stands on line {seen[identity]}; ids must be unique"
                )
            seen[identity] = line
    return [record for _, record in pairs]


def load_records(path: str | Path, needs: tuple[str, ...] = TEXT_FIELDS) -> list[dict]:
    """Read and check, for a model: its tokenizer takes no text with half a surrogate pair."""
    pairs = as_ours(path, read_with_lines(path), needs)
    records = check_records(path, pairs, needs)
    for line, record in pairs:
        for field in needs:
            if re.search("[\ud800-\udfff]", record[field]):
                raise UserError(
                    f"{path}:{line}: {field} holds half a surrogate pair (an escape \\ud8xx without its second half), "
                    "which is no character; remove it"
                )
    return records


def load_training(path: str | Path) -> list[dict]:
    """Read and check what is to be learnt; UserError where no record has an answer."""
    records = load_records(path)
    if not any(record["output"].strip() for record in records):
        raise UserError(
            f"{path}: the output of all its {len(records)} records is empty: nothing but silence would be learnt; give "
            "the records with their answers"
        )
    return records


def split_records(records: list[dict], held_out: int, seed: int) -> tuple[list[dict], list[dict]]:
    """`held_out` records drawn with `seed`, and the others; both in file order."""
    if held_out < 0:
        raise UserError(f"--val_set_size {held_out}: expected 0 (no split) or more")
    if held_out >= len(records):
        raise UserError(
            f"--val_set_size {held_out}: there are only {len(records)} records, and some must remain for training; "
            "give a smaller number (left out, it is 1000 with --do_eval), 0 for no split, or --valid_file"
        )
    chosen = set(random.Random(seed).sample(range(len(records)), held_out))
    train = [record for index, record in enumerate(records) if index not in chosen]
    return train, [records[index] for index in sorted(chosen)]


def choose_records(data_args, do_eval: bool, seed: int) -> tuple[list[dict], list[dict]]:
    """Training and validation records, checked; the second is empty when nothing is evaluated.

    A record whose relations are asked in parts (schema_groups) is one for each of them.
    `data_args`: utils.args.DataArguments; `seed`: of the split.
    """
    records, valid = load_training(data_args.train_file), []
    if not do_eval and (data_args.valid_file or data_args.val_set_size):
        say("validation: none (add --do_eval, or --eval_strategy, to evaluate)")
    elif do_eval and data_args.valid_file:
        valid = load_records(data_args.valid_file)
    elif do_eval and not data_args.val_set_size:
        raise UserError(
            "--do_eval and --val_set_size 0: nothing to evaluate; give --valid_file or a size, or drop --do_eval"
        )
    elif do_eval:
        records, valid = split_records(records, data_args.val_set_size, seed)
    return ask_apart(records), ask_apart(valid)


def is_kg(kg) -> bool:
    """Whether it is a list of `[head, relation, tail]`, all strings."""
    triples = kg if isinstance(kg, list) else [None]
    return all(isinstance(t, list) and len(t) == 3 and all(isinstance(part, str) for part in t) for t in triples)


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def name_of(record: dict, index: int) -> str:
    """What messages call a record: its id, else its number in the file (the first is 1)."""
    return f"id {record['id']}" if "id" in record else f"number {index + 1}"
