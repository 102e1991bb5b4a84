"""Records as a dataset of rows, for either way of training; says how long they are and what was cut."""

from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from common.errors import UserError, say
from data.records import name_of
from tokens.cache import cached_rows
from tokens.codec import Codec
from tokens.ptuning_rows import encode_record
from tokens.rows import Limits


class Tokenising(NamedTuple):
    """How records become rows."""

    codec: Codec
    template: dict
    base: str | Path  # the folder of the tokenizer
    limits: Limits
    train_on_inputs: bool = False  # learn the prompt's tokens too
    workers: int = 1  # processes that encode
    anew: bool = False  # even where the cache holds these rows


def tokenise(how: Tokenising, records: list[dict], what: str) -> Dataset:
    """A dataset of rows (input_ids, labels, length); says how long they are and which had to be cut or dropped.

    `what`: the records' name in messages. UserError when no record fits.
    """
    return fit_rows(how, records, what)[0]


def fit_rows(how: Tokenising, records: list[dict], what: str) -> tuple[Dataset, list[int]]:
    """`tokenise`, and the numbers of the records that have a row."""
    limits = how.limits
    settings = {"template": how.template, "limits": limits, "train_on_inputs": how.train_on_inputs}
    if how.codec.added:  # perhaps of another file than the base's
        settings["added"] = how.codec.added
    rows = cached_rows(encode_with(how), records, how.base, settings, how.workers, how.anew, what)
    say(_lengths(rows, limits, what, how.codec.context))
    # No row without a label may reach the model: its loss would be 0/0.
    kept = [number for number, length in enumerate(rows["length"]) if length]
    if not kept:
        flag = _flags(limits.row, limits.prompt, None)
        raise UserError(f"{flag}: no {what} record fits, with its instruction and answer whole; raise it")
    return rows.select(kept), kept


def encode_with(how: Tokenising):
    """A function from a record to its row."""

    def encode(record):
        row = how.codec.row(how.template, record, how.limits, how.train_on_inputs)
        return {**row, "length": len(row["input_ids"])}

    return encode


def _lengths(rows, limits: Limits, what: str, context: int | None) -> str:
    """One line: percentiles of the rows' lengths, the cut and the dropped, the flags that would spare them."""
    prompts, answers = rows["prompt_tokens"], rows["answer_tokens"]
    whole = sorted(map(sum, zip(prompts, answers, strict=True)))
    at = {share: whole[min(len(whole) - 1, int(share / 100 * len(whole)))] for share in (50, 90, 99)}
    line = f"{what}: {len(whole)} records, tokens 50 % {at[50]}, 90 % {at[90]}, 99 % {at[99]}, longest {whole[-1]}"
    counts = (
        (sum(rows["cut"]), "texts shortened"),
        (sum(rows["answer_cut"]), "answers shortened"),
        (sum(length == 0 for length in rows["length"]), "records dropped"),
    )
    lost = [f"{count} {words}" for count, words in counts if count]
    if lost:
        longest = [limit and size for limit, size in zip(limits, (whole[-1], max(prompts), max(answers)), strict=True)]
        line += f"; {', '.join(lost)} to fit {_flags(*limits)}"
        if context is None or whole[-1] <= context:
            line += f"; {_flags(*longest)} would cut none"
    return line


def _flags(row: int | None, prompt: int | None, answer: int | None) -> str:
    """Limits as the flags that set them."""
    flags = (("cutoff_len", row), ("max_source_length", prompt), ("max_target_length", answer))
    return " ".join(f"--{name} {size}" for name, size in flags if size)


def make_rows(codec, template: dict, records: list[dict], max_len: int, max_src_len: int) -> Dataset:
    """The training rows; says how long they are, and which were cut or left out. UserError when none is left."""
    rows = [encode_record(codec, template, record, max_len, max_src_len) for record in records]
    kept = [row for row in rows if row.input_ids]
    lengths = sorted(len(row.input_ids) for row in kept)
    if not kept:
        raise UserError(
            f"--max_len {max_len} --max_src_len {max_src_len}: no record of --train_path fits; raise them "
            f"(--max_src_len {max(row.needs_source for row in rows)} holds every question)"
        )
    say(f"rows: {len(kept)}, tokens 50 % {lengths[len(lengths) // 2]}, longest {lengths[-1]}")
    if cut := sum(row.cut for row in kept):
        most = max(row.needs_source for row in rows)
        say(f"rows: {cut} texts lost their end; --max_src_len {most} would cut none, with a --max_len as much larger")
    if cut := sum(row.answer_cut for row in kept):
        most = max(row.needs for row in kept)
        say(
            f"warning: {cut} answers lost their end (no end-of-answer token is learnt from them); --max_len {most} "
            "would cut none"
        )
    if lost := [name_of(record, i) for i, (record, row) in enumerate(zip(records, rows, strict=True)) if not row[0]]:
        say(
            f"warning: {len(lost)} records left out ({', '.join(lost[:5])}): the instruction, or with its answer the "
            f"prompt, does not fit --max_src_len {max_src_len} and --max_len {max_len}"
        )
    return Dataset.from_list(
        [{"input_ids": row.input_ids, "labels": row.labels, "length": len(row.input_ids)} for row in kept]
    )


def choose_limits(data_args, family, codec: Codec) -> Limits:
    """The most tokens of a row: --cutoff_len, or a prompt's and an answer's own limits; says which flags do nothing."""
    if family.answer_only and data_args.train_on_inputs:
        raise UserError(
            f"--train_on_inputs: a prompt of family {family.name} sees itself whole, so its tokens cannot be learnt by "
            "predicting the next one; drop it"
        )
    if family.prompt_apart:
        limits = Limits(None, data_args.max_source_length or 512, data_args.max_target_length)
        say(
            f"limits: prompts of {limits.prompt} tokens, answers of {limits.answer} "
            f"(--max_source_length, --max_target_length; family {family.name} does not use --cutoff_len)"
        )
        return limits
    if data_args.max_source_length:
        say(f"max_source_length: not used by family {family.name}, whose rows are cut by --cutoff_len")
    if codec.context and data_args.cutoff_len > codec.context:
        say(f"cutoff_len: {codec.context} instead of {data_args.cutoff_len} (the base has no more positions)")
        return Limits(codec.context)
    return Limits(data_args.cutoff_len)
