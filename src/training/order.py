"""Which records each step of an epoch takes, and which of them each pass and each process."""

import math

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from common.labels import IGNORED

ORDERS = ("group_by_length", "random", "sequential")


def order_epoch(lengths: list[int], step: int, seed: int, epoch: int, how: str = ORDERS[0]) -> list[int]:
    """All records in an order that seed and epoch alone decide, so that a resumed run repeats it.

    `group_by_length` brings records of like length together, `step` of them or more, the longest first.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    if how == "group_by_length":
        return get_length_grouped_indices(lengths, step, generator=generator)
    return torch.randperm(len(lengths), generator=generator).tolist() if how == "random" else list(range(len(lengths)))


def deal(rows: list[int], lengths: list[int], processes: int) -> list[list[int]]:
    """The rows of one pass, shared among processes: nearly as many and nearly as many tokens to each.

    The rows are sorted by length and assigned in turn, the longest first: from the first process to the last, then
    back from the last to the first.
    """
    if processes == 1:
        return [rows]
    rows = sorted(rows, key=lambda row: -lengths[row])
    rounds = [rows[at : at + processes] for at in range(0, len(rows), processes)]
    shares = [[] for _ in range(processes)]
    for number, taken in enumerate(rounds):
        for share, row in zip(shares[:: -1 if number % 2 else 1], taken, strict=False):
            share.append(row)
    return shares


def plan_epoch(lengths: list[int], micro: int, passes: int, processes: int, seed: int, epoch: int, how=ORDERS[0]):
    """Of every step of an epoch, of each of its `passes`, of each process: the rows (at most `micro`) it works on.

    Only the last step may hold fewer rows, or for some process none. The rows of a step depend on their number,
    micro x passes x processes, not on how they are shared.
    """
    size = micro * processes
    step = size * passes
    order = order_epoch(lengths, step, seed, epoch, how)
    return [
        [deal(part[at : at + size], lengths, processes) for at in range(0, step, size)]
        for part in (order[start : start + step] for start in range(0, len(order), step))
    ]


class Share(Sampler):
    """The batches of one process, epoch by epoch, each a list of rows: empty where only others have rows left.

    `rows`: a dataset with `length`; one that has `draw_epoch` is told of each epoch before a row of it is taken, and
    before processes that load rows are started.
    """

    def __init__(self, rows, args):
        self.rows, self.args = rows, args
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.rows, "draw_epoch"):
            self.rows.draw_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / (self.args.train_batch_size * self.args.world_size))

    def __iter__(self):
        args = self.args
        shape = (args.train_batch_size, args.gradient_accumulation_steps, args.world_size)
        how = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
        for step in plan_epoch(list(self.rows["length"]), *shape, args.seed, self.epoch, how):
            yield from (shares[args.process_index] for shares in step if any(shares))


def with_empty(collate, row: dict):
    """`collate`, which makes of no rows at all a batch that teaches nothing: `row` without a label.

    A process whose share is empty takes part with it, for the others wait for its gradients.
    """

    def batch(rows: list[dict]) -> dict:
        if rows:
            return collate(rows)
        made = collate([row])
        return made | {
            name: torch.full_like(made[name], IGNORED) for name in ("labels", "shift_labels") if name in made
        }

    return batch
