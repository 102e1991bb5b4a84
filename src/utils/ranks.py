"""Prediction in several processes of one torchrun: each answers its share, the first one writes the file."""

import atexit
import os
from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist

from utils.args import check_processes

LONGEST = timedelta(days=30)  # that a process which is done waits for the slowest


class Ranks(NamedTuple):
    rank: int  # of this process, 0 to count - 1
    count: int

    def gather(self, thing) -> list:
        """What every process gives, in the order of their ranks, to all of them; waits for the last."""
        if self.count == 1:
            return [thing]
        things = [None] * self.count
        dist.all_gather_object(things, thing)
        return things


def join() -> Ranks:
    """This process among those that torchrun started; alone without torchrun."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and not dist.is_initialized():
        check_processes()
        dist.init_process_group("gloo", timeout=LONGEST)
        atexit.register(dist.destroy_process_group)
    return Ranks(int(os.environ.get("RANK", "0")) if count > 1 else 0, count)
