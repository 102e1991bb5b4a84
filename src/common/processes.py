"""The processes of a run, as torchrun and DeepSpeed number them: the one place that reads their variables."""

import os
from typing import NamedTuple

# What a launcher sets, and what a process that starts others of its own must take away.
LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # in the order of Process -> if unset


class Process(NamedTuple):
    rank: int  # 0 to count - 1
    count: int  # processes of the run
    local_rank: int  # the same on this machine
    local_count: int
    launched: bool  # by torchrun or deepspeed; False: by python alone, the only one


def this_process() -> Process:
    """Which process of its run this is; of a variable that is no number (`why_odd`), as if it were not there."""
    found = {name: os.environ.get(name, "") for name in NUMBERS}
    numbers = (int(found[name]) if _is_number(found[name]) else default for name, default in NUMBERS.items())
    return Process(*numbers, bool(found["RANK"]))


def why_odd() -> str | None:
    """Why a launcher's variables cannot be believed, and what to do; None: they can."""
    for name in NUMBERS:
        value = os.environ.get(name, "")
        if value and not _is_number(value):
            return f"the environment has {name}={value:.40}; expected a whole number, as torchrun sets it: unset {name}"
    process = this_process()
    for rank, count, of_rank, of_count in (
        (process.rank, process.count, "RANK", "WORLD_SIZE"),
        (process.local_rank, process.local_count, "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ):
        if count < 1 or (rank >= count and process.launched and os.environ.get(of_count)):
            names = f"{of_rank} and {of_count}"
            return (
                f"the environment has {rank} and {count} for {names}; expected a number below that of the processes, "
                f"as torchrun sets them: unset {names}"
            )
    return None


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10
