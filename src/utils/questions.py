"""What a model is asked about the records, and the rows that its answers make of them."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from utils import triples
from utils.errors import UserError, say
from utils.families import read_config
from utils.generating import reason_of
from utils.windows import windows

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length")  # of config.json
WORST = ("error", "length", "loop", "eos")  # finish reasons: of several windows, the first that one of them has


class Question(NamedTuple):
    record: int  # index of the record it is about
    text: str  # of the record's input, as much as is asked about
    ids: list[int]  # the prompt, as codec.encode gives it; empty: it could not be made
    reason: str = ""  # why not


def make_questions(
    records: list[dict], encode: Callable, fits: Callable | None = None, limit: str = "--window"
) -> list[Question]:
    """One question a record, or, with `fits`, one for each window that its text is split into.

    `encode(record)` is the prompt's ids, `fits(record)` whether it is short enough. A record that the tokenizer
    cannot take has a question without ids; a UserError of either function is raised with the record's name. `limit`:
    the flag that says how long a prompt may be.
    """
    questions = []
    for index, record in enumerate(records):
        try:
            texts = split(record, fits)
            if texts is None:
                most = max(len(encode({**one, "input": ""})) for one in records)
                raise UserError(
                    f"its instruction leaves no room for any text in a window; the longest prompt without its text has "
                    f"{most} tokens: give {limit} clearly more"
                )
            questions += [Question(index, text, encode({**record, "input": text})) for text in texts]
        except UserError as error:
            raise UserError(f"record {name_of(record, index)}: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever a text makes a tokenizer raise, the others can be answered
            questions.append(Question(index, record["input"], [], reason_of(error)))
    if len(questions) > len(records):
        several = sum(count > 1 for count in Counter(question.record for question in questions).values())
        parts = len(questions) - len(records) + several
        say(f"windows: {several} of {len(records)} texts are asked about in {parts} parts")
    return questions


def split(record: dict, fits: Callable | None) -> list[str] | None:
    """The parts of its text to ask about; None when there is no room for any."""
    text = record["input"]
    return windows(text, lambda part: fits({**record, "input": part})) if fits else [text]


def choose_window(args, base: str, codec) -> int | None:
    """Most tokens of a prompt before its text is split; None: texts are never split."""
    if args.window != 0:
        return args.window
    context = context_of(base, codec)
    if context is None:
        raise UserError("--window: this base has no limit in its config.json; give one, e.g. --window 1024")
    if context <= args.max_new_tokens:
        raise UserError(
            f"--window: --max_new_tokens {args.max_new_tokens} leaves nothing of the base's context of {context} "
            "tokens; lower it, or give --window N"
        )
    say(f"window: {context - args.max_new_tokens} tokens of prompt (context {context} less --max_new_tokens)")
    return context - args.max_new_tokens


def context_of(base: str, codec) -> int | None:
    """The positions that a base has or was trained on; None: its config.json names none."""
    config = read_config(base)
    config = {**config, **(config.get("text_config") or {})}
    return codec.context or next((config[key] for key in CONTEXT_KEYS if config.get(key)), None)


def make_rows(records: list[dict], questions: list[Question], answers: dict[int, dict]) -> list[dict]:
    """Every record with its `output` and its `finish_reason`: what became of its questions, by their numbers.

    A question without an answer counts as an empty one that ended with `error`. The triples of several windows are
    merged in order, each once; such a record also says how many `windows` it had.
    """
    of_record = [[] for _ in records]
    for number, question in enumerate(questions):
        of_record[question.record].append((question, answers.get(number, {"output": "", "finish_reason": "error"})))
    rows = []
    for record, asked in zip(records, of_record, strict=True):
        output, reason = asked[0][1]["output"], asked[0][1]["finish_reason"]
        if len(asked) > 1:
            schema = triples.schema(record["instruction"])
            found = [
                one for question, answer in asked for one in triples.parse(answer["output"], schema, question.text)
            ]
            output = triples.render(dict.fromkeys(found))
            reason = min((answer["finish_reason"] for _, answer in asked), key=WORST.index)
        row = {**record, "output": output, "finish_reason": reason}
        if len(asked) > 1:
            row["windows"] = len(asked)
        row.pop("kg", None)  # the right triples of a labelled record: scored, they would pass as predicted
        rows.append(row)
    return rows


def name_of(record: dict, index: int) -> str:
    return f"id {record['id']}" if "id" in record else f"number {index + 1}"
