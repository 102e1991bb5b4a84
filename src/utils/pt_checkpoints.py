"""P-Tuning's checkpoints: OUTPUT_DIR/global_step-N, each whole or not there.

A checkpoint is written under another name, by all processes, and renamed. It holds the prefix, the tokenizer's files
and run.json; the newest one also what going on needs (folder state/, a file of each process).
"""

import errno
import os
import re
import shutil
from pathlib import Path

import torch

from utils import manifest
from utils.errors import UserError, say

STATE = "state"


def steps_in(out: str | Path) -> list[tuple[int, Path]]:
    """Number and folder of every checkpoint, oldest first."""
    found = ((re.fullmatch(r"global_step-(\d+)", path.name), path) for path in Path(out).glob("global_step-*"))
    return sorted((int(name[1]), path) for name, path in found if name)


def choose_start(args, processes: int) -> tuple[int, Path | None]:
    """The step and the checkpoint to go on from, (0, None) to start; UserError rather than overwrite another run."""
    out = Path(args.output_dir)
    there = [(step, folder) for step, folder in steps_in(out) if (folder / STATE).is_dir()]
    if args.resume:
        if not there:
            if steps_in(out):
                raise UserError(
                    f"--resume: no checkpoint in {out} holds {STATE}/, which going on needs; start anew with "
                    "--overwrite_output_dir, or give another folder"
                )
            say("resume: no checkpoint yet, starting at step 0")
            return 0, None
        step, folder = there[-1]
        files = len(list((folder / STATE).glob("rank-*.pt")))
        if files != processes:
            raise UserError(f"--resume: {folder} was written by {files} processes; go on with as many, not {processes}")
        say(f"resume: {folder}")
        return step, folder
    finished = manifest.read(out).get("status") == "finished"
    if (steps_in(out) or finished) and not args.overwrite_output_dir:
        newest = steps_in(out)[-1][1].name if steps_in(out) else "finished"
        raise UserError(
            f"--output_dir {out} holds a run already ({newest}); give another folder, --resume to go on with it, or "
            "--overwrite_output_dir to start anew"
        )
    return 0, None


def save_tensors(what: dict, file: Path) -> None:
    """torch.save, whose error says what it is when the disk is full."""
    try:
        torch.save(what, file)
    except RuntimeError:
        if shutil.disk_usage(file.parent).free > 2**20:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from None


def save(out: Path, step: int, state: dict, rank: int, write, limit: int) -> None:
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
        remove(folder)
        partial.rename(folder)
        prune(out, limit)


def load_state(folder: Path, rank: int) -> dict:
    file = folder / STATE / f"rank-{rank}.pt"
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever the reader raises, the file is broken
        raise UserError(f"--resume: {file} cannot be read ({error}); start anew with --overwrite_output_dir") from None


def prune(out: Path, limit: int) -> None:
    """Drop all but the newest `limit` checkpoints, and of all but the newest the state, its largest part."""
    there = steps_in(out)
    for _, folder in there[:-limit]:
        remove(folder)
    for _, folder in there[-limit:-1]:
        remove(folder / STATE)


def clear(out: Path) -> None:
    """Remove what an old run, or a killed one, left: with it a later resume would go on from the wrong one."""
    for _, folder in steps_in(out):
        remove(folder)
    (out / "log.jsonl").unlink(missing_ok=True)


def remove(folder: Path) -> None:
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
