"""Training rows whose relation lists are drawn anew each epoch (see data.asking); as many rows in each."""

from datasets import Dataset, concatenate_datasets

from common.errors import say
from data.asking import Asking, draw_all, draw_rows, survey
from tokens.dataset import Tokenising, encode_with, fit_rows

CHUNK = 1000  # rows that are held as Python's lists at a time


class DrawnRows:
    """A dataset of one epoch's rows; `draw_epoch` makes those of another, and the memory of the last one is free.

    Which records have rows, and how many, is settled by epoch 0. Where a later epoch's row would not fit into its
    limits, or a record's list could not be drawn in as many parts, epoch 0's rows stand there.
    """

    def __init__(self, how: Tokenising, records: list[dict], asking: Asking):
        self.how, self.records, self.asking, self.source = how, records, asking, survey(records)
        drawn = draw_all(records, asking, self.source, "training records")
        parts = [rows or [record] for rows, record in zip(drawn, records, strict=True)]
        self.counts = [len(rows) if rows else 0 for rows in drawn]  # of a record's rows; 0: it stays as it is
        self.first, self.kept = fit_rows(how, [row for rows in parts for row in rows], "training")
        self.epoch, self.rows = 0, self.first
        self.redrawn = asking.shuffle or asking.negatives > 0  # else every epoch is like the first
        say(describe(asking, len(records), len(self.first)))

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, key):
        return self.rows[key]

    def __getitems__(self, keys: list[int]) -> list[dict]:
        return self.rows.__getitems__(keys)

    def draw_epoch(self, epoch: int) -> None:
        """Hold the rows of this epoch, the first of which is 0."""
        if epoch == self.epoch or not self.redrawn:
            return
        self.epoch, self.rows = epoch, self.first  # the last epoch's are not needed beside the new ones
        if epoch:
            self.rows = self._draw(epoch)

    def _draw(self, epoch: int) -> Dataset:
        encode, place_of = encode_with(self.how), {number: place for place, number in enumerate(self.kept)}
        chunks, chunk, number = [], [], 0  # `number`: of a row among all those of epoch 0, kept or not
        for index, (record, count) in enumerate(zip(self.records, self.counts, strict=True)):
            drawn = draw_rows(record, index, self.asking, self.source, epoch) if count else None
            for part in range(count or 1):
                place = place_of.get(number)
                number += 1
                if place is None:
                    continue
                row = encode(drawn[part]) if drawn and len(drawn) == count else None
                chunk.append(row if row and row["length"] else self.first[place])
                if len(chunk) == CHUNK:
                    chunks.append(Dataset.from_list(chunk, features=self.first.features))
                    chunk = []
        if chunk:
            chunks.append(Dataset.from_list(chunk, features=self.first.features))
        return concatenate_datasets(chunks)


def describe(asking: Asking, records: int, rows: int) -> str:
    """One line: what is drawn."""
    what = ["shuffled anew each epoch"] if asking.shuffle else []
    what += [f"up to {asking.negatives} more of the topic, drawn anew each epoch"] if asking.negatives else []
    what += [f"at most {asking.batch} a question: {rows} rows of {records} records"] if asking.batch else []
    return f"relations: {'; '.join(what)}"
