"""What this machine has: cards, their free memory, and the processes that share them."""

import atexit
from datetime import timedelta
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist

from common.errors import UserError, say
from common.processes import this_process

MEMORY = psutil.virtual_memory().total + psutil.swap_memory().total  # of this machine, in bytes
LONGEST = timedelta(days=30)  # that a process which is done waits for the slowest


def has_cuda(use_cpu: bool = False) -> bool:
    return torch.cuda.is_available() and not use_cpu


def check_processes(use_cpu: bool = False) -> None:
    """UserError when torchrun started more processes on this machine than it has cards."""
    local = this_process().local_count
    if has_cuda(use_cpu) and local > torch.cuda.device_count():
        raise UserError(
            f"--nproc_per_node {local}: this machine shows {torch.cuda.device_count()} GPUs; start as many "
            "processes as GPUs (CUDA_VISIBLE_DEVICES limits what is shown)"
        )


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
    process = this_process()
    count = process.count
    if count > 1 and not dist.is_initialized():
        check_processes()
        dist.init_process_group("gloo", timeout=LONGEST)
        atexit.register(dist.destroy_process_group)
    return Ranks(process.rank if count > 1 else 0, count)


def training_device(use_cpu: bool) -> torch.device:
    """This process's card under torchrun, the first one otherwise, or the CPU."""
    if torch.cuda.is_available() and not use_cpu:
        return torch.device("cuda", this_process().local_rank)
    return torch.device("cpu")


def choose_device(asked: str | None, fall_back: bool = False) -> torch.device:
    """`cpu`, `cuda`, `cuda:1` or `1`; by default the first card (under torchrun this process's one), else the CPU.

    A card on a machine without any is an error or, with `fall_back`, the CPU, which is said.
    """
    process = this_process()
    if asked is None:
        return torch.device(f"cuda:{process.local_rank if process.count > 1 else 0}" if has_cuda() else "cpu")
    if process.count > 1 and asked != "cpu" and has_cuda():
        raise UserError(f"--device {asked} and torchrun: each process takes the GPU of its number; drop --device")
    try:
        device = torch.device({"cuda": "cuda:0"}.get(asked, f"cuda:{asked}" if asked.isdigit() else asked))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {asked}: expected cpu, cuda, cuda:N or N")
    if fall_back and device.type == "cuda" and not has_cuda():
        say(f"device: cpu (--device {asked}: no GPU)")
        return torch.device("cpu")
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise UserError(
            f"--device {asked}: this machine shows {torch.cuda.device_count()} GPUs; drop it, or use --device cpu"
        )
    return device


def all_bytes(device: torch.device) -> int:
    """What a card has, or the machine: its memory and its swap."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return MEMORY


def free_bytes(device: torch.device) -> int:
    """What this process may still take: of a card what is free, and at most what loading.memory.limit_memory left."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    mine = torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.get_device_properties(device).total_memory
    return min(torch.cuda.mem_get_info(device)[0], int(mine) - torch.cuda.memory_allocated(device))
