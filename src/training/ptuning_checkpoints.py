"""P-Tuning's checkpoints: OUTPUT_DIR/global_step-N, each whole or not there.

A checkpoint is written under another name, by all processes, and renamed. It holds the prefix, the tokenizer's files
and run.json; the newest one also what going on needs (folder state/, a file of each process).
"""

import os
import shutil
from pathlib import Path

import torch

from checkpoints.prefixes import save_tensors, steps_in
from common import manifest
from common.errors import UserError, say
from training.resuming import Start, choose_start, kept_of
from training.whole import read_state

STATE = "state"
NO_STATE = f"it holds no {STATE}/, which going on needs: only the newest checkpoint has it"


def start_ptuning(args, processes: int) -> Start:
    """Where a training by finetuning_pt.py begins: see `resuming.choose_start`."""
    out, steps = Path(args.output_dir), steps_in(args.output_dir)

    def find() -> Start:
        finished = manifest.read_run(out).get("status") == "finished"
        faults = {}
        for step, folder in reversed(steps):
            if not (fault := fault_of(folder, processes)):
                for other, why in faults.items():
                    say(f"resume: {other} is passed over ({why})")
                say(f"resume: {folder}")
                return Start(step, str(folder))
            faults[folder] = fault
        newest, fault = next(iter(faults.items()), (None, NO_STATE))
        if steps and not (finished and fault == NO_STATE):
            raise UserError(
                f"--resume: no checkpoint in {out} can be gone on from ({newest.name}: {fault}); give another folder, "
                "or --overwrite_output_dir instead to start anew"
            )
        if not finished:
            say("resume: no checkpoint yet, starting at step 0")
        return Start()

    return choose_start(args, str(steps[-1][1]) if steps else None, find, "--resume")


def kept_by_ptuning(args, processes: int) -> str:
    """What is left of a training that was broken off, and how to go on: see common.errors.keeping."""
    steps = steps_in(args.output_dir)
    fit = next((str(folder) for _, folder in reversed(steps) if not fault_of(folder, processes)), None)
    return kept_of(args, fit, bool(steps), "--resume")


def fault_of(folder: Path, processes: int) -> str | None:
    """Why a run cannot go on from a checkpoint as it was; None when it can."""
    files = len(list((folder / STATE).glob("rank-*.pt")))
    if not files:
        return NO_STATE
    if files != processes:
        return f"written by {files} processes; go on with as many, not {processes}"
    try:
        for rank in range(processes):
            read_state(state_file(folder, rank))
    except UserError as error:
        return str(error)
    return None


def save_checkpoint(out: Path, step: int, state: dict, rank: int, write, limit: int) -> None:
    """One checkpoint; `write(folder)`, called by the first process, puts in all but the state."""
    folder, partial = out / f"global_step-{step}", out / f"tmp-global_step-{step}"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / STATE).mkdir(parents=True)
    torch.distributed.barrier()
    save_tensors(state, state_file(partial, rank))
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
    """What a process needs to go on; UserError when its file is damaged."""
    return read_state(state_file(folder, rank), mapped=False)


def state_file(folder: str | Path, rank: int) -> Path:
    return Path(folder) / STATE / f"rank-{rank}.pt"


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
