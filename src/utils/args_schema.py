"""The flags about the list of relations that a question asks for, of training and of prediction."""

import sys
from dataclasses import dataclass

from common.errors import UserError
from common.flags import Range, option

ORDERS, FORMS = ("head", "tail"), ("text", "json")
SCHEMA_RANGES = {
    "schema_batch": Range(0),
    "negative_relations": Range(0),
    "votes": Range(1, 1000),
    "min_votes": Range(1, 1000),
}


@dataclass
class PromptFlags:
    """Of training, beside --prompt_template_name."""

    answer_format: str = option(
        "text", 'json: ask for, and learn, answers as [{"head": …, "relation": …, "tail": …}]', choices=FORMS
    )
    chat_system: str | None = option(
        None, "with --prompt_template_name chat: the system's line; default: what the template itself puts there"
    )


@dataclass
class AskedPromptFlags:
    """The same of prediction, where run.json fills them in."""

    answer_format: str | None = option(
        None, "json: ask for answers in JSON; text: in the instruction's own form; default: as trained", choices=FORMS
    )
    chat_system: str | None = option(None, "with --prompt_template_name chat: the system's line; default: as trained")


@dataclass
class AskedFlags(AskedPromptFlags):
    """Of prediction."""

    shuffle_schema: bool = option(
        False, "ask for each record's relations in an order drawn once, by --seed, instead of the list's own"
    )
    schema_batch: int | None = option(
        None,
        "most relations of a question: longer lists are asked in parts, and the answers merged; 0: any number; "
        "default: what the adapter was trained with (run.json), else any number",
    )
    answer_order: str | None = option(
        None, "tail: the model answers (tail,relation,head); default: as it was trained (run.json)", choices=ORDERS
    )
    votes: int = option(
        1,
        "answers for each record: with its relations in other orders, or with --do_sample drawn anew; a triple is kept "
        "that enough of them have, and has their share as its confidence",
    )
    min_votes: int | None = option(None, "with --votes: answers that must have a triple; default: more than half")
    confidence: bool = option(
        False,
        "write for each triple how likely its words were: the mean probability of their tokens; with --votes the share "
        "of the answers stands there instead",
    )

    def check_votes(self) -> None:
        """UserError for flags about votes that do not go together."""
        if self.min_votes is not None and self.votes == 1:
            raise UserError("--min_votes without --votes: each record has one answer; drop it, or add --votes N")
        if self.min_votes is not None and self.min_votes > self.votes:
            raise UserError(
                f"--min_votes {self.min_votes} with --votes {self.votes}: no triple can have so many; lower --min_votes"
            )


@dataclass
class DrawnFlags(PromptFlags):
    """Of training with LoRA or in full."""

    answer_format: str | None = option(
        None,
        'json: ask for, and learn, answers as [{"head": …, "relation": …, "tail": …}]; default: text, or as '
        "--init_lora was trained",
        choices=FORMS,
    )
    shuffle_schema: bool = option(False, "draw the order of each record's relations anew in each epoch")
    negative_relations: int = option(
        0, "add so many relations of the record's topic (cate) that its list lacks, drawn anew in each epoch"
    )
    schema_batch: int | None = option(
        None,
        "most relations of a question: a record with more becomes several rows; 0: any number, the default without "
        "--init_lora",
    )
    answer_order: str | None = option(
        None,
        "tail: learn to answer (tail,relation,head); default: head, or as --init_lora was trained",
        choices=ORDERS,
    )


def check_form(answer_format: str | None, answer_order: str | None, constrain: str | None = None) -> None:
    """UserError for flags that do not go with answers in JSON."""
    for flag, given in (("--answer_order tail", answer_order == "tail"), ("--constrain", constrain is not None)):
        if answer_format == "json" and given:
            raise UserError(f"--answer_format json and {flag} do not go together; drop one of them")


FLAGS = {f"--{name}" for name in DrawnFlags.__annotations__ if name not in PromptFlags.__annotations__}


def refuse_drawn_flags(argv=None) -> None:
    """UserError where the flags of training cannot be used."""
    for flag in (word.split("=")[0] for word in (sys.argv[1:] if argv is None else argv)):
        if flag in FLAGS:
            raise UserError(
                f"{flag}: P-Tuning makes its rows once, not for each epoch; drop it, or train with src/test_finetune.py"
            )
