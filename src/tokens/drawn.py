"""Training rows whose relation lists are drawn anew each epoch (see data.asking); as many rows in each."""

from common.errors import say
from data.asking import Asking, draw_all, draw_rows, survey
from tokens.dataset import Tokenising, encode_with, fit_rows


class DrawnRows:
    """A dataset of the rows of one epoch, which `draw_epoch` chooses; all but those of epoch 0 are made when asked for.

    Which records have rows, how many, and their `length`, by which batches are put together, is settled by epoch 0.
    Where a later epoch's row would not fit into its limits, or a record's list could not be divided as it was then,
    epoch 0's row stands there.
    """

    def __init__(self, how: Tokenising, records: list[dict], asking: Asking):
        self.records, self.asking, self.source = records, asking, survey(records)
        self.encode, self.epoch = encode_with(how), 0
        drawn = draw_all(records, asking, self.source, "training records")
        every = [rows or [record] for rows, record in zip(drawn, records, strict=True)]
        self.first, kept = fit_rows(how, [row for rows in every for row in rows], "training")
        # Of each row: number of its record, which of that one's rows it is, of how many; 0: the record stays as it is.
        counts = [len(rows) if rows else 0 for rows in drawn]
        places = [(number, part, counts[number]) for number, rows in enumerate(every) for part in range(len(rows))]
        self.places = [places[row] for row in kept]
        self.redrawn = asking.shuffle or asking.negatives > 0  # else every epoch is like the first
        say(describe(asking, len(records), len(self.first)))

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, key: int | str):
        """The epoch's row of a number; a column, of epoch 0."""
        return self.first[key] if isinstance(key, str) else self._draw(key)

    def draw_epoch(self, epoch: int) -> None:
        """Be the rows of this epoch; the first is 0. Processes that are started then have them, too."""
        self.epoch = epoch if self.redrawn else 0

    def _draw(self, key: int) -> dict:
        number, part, count = self.places[key]
        if self.epoch and count:
            drawn = draw_rows(self.records[number], number, self.asking, self.source, self.epoch)
            row = self.encode(drawn[part]) if drawn and len(drawn) == count else {"length": 0}
            if row["length"]:
                return row
        return self.first[key]


def describe(asking: Asking, records: int, rows: int) -> str:
    """One line: what is drawn."""
    what = ["shuffled anew each epoch"] if asking.shuffle else []
    what += [f"up to {asking.negatives} more of the topic, drawn anew each epoch"] if asking.negatives else []
    what += [f"at most {asking.batch} a question: {rows} rows of {records} records"] if asking.batch else []
    return f"relations: {'; '.join(what)}"
