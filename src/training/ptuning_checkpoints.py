"""P-Tuning's checkpoints: OUTPUT_DIR/global_step-N, each whole or not there.

A checkpoint is written under another name, by all processes, and renamed. It holds the prefix, the tokenizer's files
and run.json; the newest one also what going on needs (folder state/, a file of each process).
"""

import os
import shutil
from pathlib import Path

import torch

from checkpoints.prefixes import save_tensors, steps_in
from checkpoints.stored import why_unread
from common.errors import UserError, say
from training.resuming import Start, choose_start

STATE = "state"


def start_ptuning(args, processes: int) -> Start:
    """Where a training by finetuning_pt.py begins: see `resuming.choose_start`."""
    out, steps = Path(args.output_dir), steps_in(args.output_dir)

    def find() -> Start:
        there = [(step, folder) for step, folder in steps if (folder / STATE).is_dir()]
        if not there and steps:
            raise UserError(
                f"--resume: no checkpoint in {out} holds {STATE}/, which going on needs; start anew with "
                "--overwrite_output_dir, or give another folder"
            )
        if not there:
            say("resume: no checkpoint yet, starting at step 0")
            return Start()
        step, folder = there[-1]
        files = len(list((folder / STATE).glob("rank-*.pt")))
        if files != processes:
            raise UserError(f"--resume: {folder} was written by {files} processes; go on with as many, not {processes}")
        say(f"resume: {folder}")
        return Start(step, str(folder))

    return choose_start(args, str(steps[-1][1]) if steps else None, find, "--resume")


def save_checkpoint(out: Path, step: int, state: dict, rank: int, write, limit: int) -> None:
    """One checkpoint; `write(folder)`, called by the first process, puts in all but the state."""
    folder, partial = out / f"global_step-{step}", out / f"tmp-global_step-{step}"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / STATE).mkdir(parents=True)
    torch.distributed.barrier()
    save_tensors(state, partial / STATE / f"rank-{rank}.pt")
    if rank == 0:
        write(partial)
    torch.distributed.barrier()
    if rank == 0:
        for path in partial.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        remove_folder(folder)
        partial.rename(folder)
        prune_checkpoints(out, limit)


def load_state(folder: str | Path, rank: int) -> dict:
    file = Path(folder) / STATE / f"rank-{rank}.pt"
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever the reader raises, the file is broken
        raise UserError(
            f"--resume: {file} cannot be read ({why_unread(error)}); start anew with --overwrite_output_dir"
        ) from None


def prune_checkpoints(out: Path, limit: int) -> None:
    """Drop all but the newest `limit` checkpoints, and of all but the newest the state, its largest part."""
    there = steps_in(out)
    for _, folder in there[:-limit]:
        remove_folder(folder)
    for _, folder in there[-limit:-1]:
        remove_folder(folder / STATE)


def clear_ptuning(out: Path) -> None:
    """Remove what an old run, or a killed one, left: with it a later resume would go on from the wrong one."""
    for _, folder in steps_in(out):
        remove_folder(folder)
    (out / "log.jsonl").unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder: gone under its name at once, so that a kill leaves none half-deleted."""
    if folder.is_dir():
        gone = folder.with_name(f"tmp-{folder.name}-gone")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)


def sweep(out: Path) -> None:
    """Remove what a killed run left half-written or half-deleted."""
    for path in [*out.glob("tmp-global_step-*"), *out.glob(f"global_step-*/tmp-{STATE}-gone")]:
        shutil.rmtree(path, ignore_errors=True)
