"""The flags about the list of relations that a question asks for, of training and of prediction."""

import sys
from dataclasses import dataclass

from common.errors import UserError
from common.flags import Range, option
from data.asking import Asking

SCHEMA_RANGES = {"schema_batch": Range(0), "negative_relations": Range(0)}


@dataclass
class AskedFlags:
    """Of prediction."""

    shuffle_schema: bool = option(
        False, "ask for each record's relations in an order drawn once, by --seed, instead of the list's own"
    )
    schema_batch: int | None = option(
        None,
        "most relations of a question: longer lists are asked in parts, and the answers merged; 0: any number; "
        "default: what the adapter was trained with (run.json), else any number",
    )


@dataclass
class DrawnFlags:
    """Of training."""

    shuffle_schema: bool = option(False, "draw the order of each record's relations anew in each epoch")
    negative_relations: int = option(
        0, "add so many relations of the record's topic (cate) that its list lacks, drawn anew in each epoch"
    )
    schema_batch: int = option(
        0, "most relations of a question: a record with more becomes several rows; 0: any number"
    )

    def asking(self, seed: int) -> Asking:
        """How training records are asked."""
        return Asking(self.shuffle_schema, self.negative_relations, self.schema_batch, seed)


FLAGS = {f"--{name}" for name in DrawnFlags.__dataclass_fields__}


def refuse_drawn_flags(argv=None) -> None:
    """UserError where the flags of training cannot be used."""
    for flag in (word.split("=")[0] for word in (sys.argv[1:] if argv is None else argv)):
        if flag in FLAGS:
            raise UserError(
                f"{flag}: P-Tuning makes its rows once, not for each epoch; drop it, or train with src/test_finetune.py"
            )
