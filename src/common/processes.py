"""The processes of a run, as torchrun and DeepSpeed number them: the one place that reads their variables."""

import os
from typing import NamedTuple

# What a launcher sets, and what a process that starts others of its own must take away.
LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Process(NamedTuple):
    rank: int  # 0 to count - 1
    count: int  # processes of the run
    local_rank: int  # the same on this machine
    local_count: int
    launched: bool  # by torchrun or deepspeed; False: by python alone, the only one


def this_process() -> Process:
    """Which process of its run this is."""

    def number(name: str, default: str) -> int:
        return int(os.environ.get(name, default))

    return Process(
        number("RANK", "0"),
        number("WORLD_SIZE", "1"),
        number("LOCAL_RANK", "0"),
        number("LOCAL_WORLD_SIZE", "1"),
        "RANK" in os.environ,
    )
