"""Where a training goes on: the checkpoints that are whole, the run they belong to, and who else writes there."""

import json
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from accelerate.utils.constants import FSDP_MODEL_NAME

from common import locks, manifest
from common.errors import UserError, say


def find_checkpoint(output_dir: str | Path, processes: int = 1) -> str | None:
    """The newest checkpoint-N that is whole: its trainer_state.json, written last, can be read, and in a run of
    several processes each has left its random numbers.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        try:
            step = checkpoint_step(folder)
            if processes > 1 and not all((folder / f"rng_state_{i}.pth").is_file() for i in range(processes)):
                raise OSError
            found.append((step, str(folder)))
        except (OSError, ValueError, KeyError):
            say(f"resume: {folder} is not whole (the run was killed while it was written); passed over")
    return max(found)[1] if found else None


def checkpoint_step(folder: str | Path) -> int:
    """The optimizer step a checkpoint was saved at; OSError, ValueError or KeyError when it is not whole."""
    return json.loads((Path(folder) / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]


@contextmanager
def alone(output_dir: str | Path, rank: int):
    """Keep other trainings out of --output_dir until the block ends: they would mix, or delete, each other's files.

    UserError when one is at work there, or the folder cannot be made.
    """
    if rank:  # the first process holds it for all
        yield
        return
    folder = Path(output_dir)
    was_there, what = folder.exists(), f"--output_dir {folder}:"
    refusal = f"{what} another training is writing it (ps and nvidia-smi show it); give another folder, or wait for it"
    try:
        with locks.hold_file(folder / "training.lock", what, refusal):
            yield
    finally:
        if not was_there:
            with suppress(OSError):  # what holds something, or was not made
                folder.rmdir()


class Start(NamedTuple):
    """Where a training begins."""

    step: int = 0  # optimizer steps that are done
    checkpoint: str | None = None  # folder to go on from; None: a run that begins


def choose_start(args, newest: str | None, find, how: str) -> Start:
    """Where to begin, said; UserError rather than overwrite what another run left in --output_dir.

    `newest`: the checkpoint there to name, if any; `find()`: where a resumed run goes on; `how`: the flag for it.
    """
    if args.resume_from_checkpoint:
        return find()
    finished = manifest.read_run(args.output_dir).get("status") == "finished"
    if (newest or finished) and not args.overwrite_output_dir:
        what = Path(newest).name if newest else "finished"
        raise UserError(
            f"--output_dir {args.output_dir} holds a run already ({what}); give another folder, "
            f"{how} to go on with it, or --overwrite_output_dir to start anew"
        )
    return Start()


def start_finetuning(args) -> Start:
    """Where a training by test_finetune.py begins: see `choose_start`."""
    asked, out = args.resume_from_checkpoint, Path(args.output_dir)
    there = find_checkpoint(out, args.world_size)
    finished = manifest.read_run(out).get("status") == "finished"

    def find() -> Start:
        checkpoint = there if asked == "auto" else asked
        if asked == "auto" and not finished:
            say(f"resume: {there}" if there else "resume: no whole checkpoint yet, starting at step 0")
        if asked != "auto" and not (Path(asked) / "trainer_state.json").is_file():
            raise UserError(
                f"--resume_from_checkpoint {asked}: no whole checkpoint; --output_dir's newest is {there or 'none'}"
            )
        if checkpoint is None:
            return Start()
        check_split_alike(checkpoint, args.fsdp)
        return Start(checkpoint_step(checkpoint), checkpoint)

    return choose_start(args, None if finished else there, find, "--resume_from_checkpoint auto")


def check_split_alike(checkpoint: str, split: bool) -> None:
    """UserError when the checkpoint is of a split model and this run's is whole, or the other way round."""
    if (Path(checkpoint) / f"{FSDP_MODEL_NAME}.bin").is_file() != bool(split):
        how, do = ("without", "drop it") if split else ("with", "add it")
        raise UserError(f"--resume_from_checkpoint {checkpoint}: written {how} --fsdp; {do}")


def is_done(args, run: dict, resume: str | None) -> bool:
    """Whether --output_dir holds this very run, finished; UserError when it holds another one to be resumed."""
    before = manifest.read_run(args.output_dir)
    if not args.resume_from_checkpoint or not before:
        return False
    names = ("base", "template", "precision", "lora", "prefix", "seed", "data", "training")
    other = [f"{n}: {before[n]} then, {run[n]} now" for n in names if n in before and before[n] != run[n]]
    if other:
        raise UserError(
            f"the run to resume was started otherwise ({'; '.join(other)}); repeat its command, or give another "
            "--output_dir"
        )
    if before["status"] == "finished" and before["planned"] == run["planned"]:
        say(f"{args.output_dir}: finished already, nothing to train")
        return True
    if before["status"] == "finished" and not resume:
        raise UserError(
            f"--output_dir {args.output_dir} holds a finished run without checkpoints, which cannot be prolonged; give "
            "another folder, or --overwrite_output_dir instead of resuming"
        )
    return False


def clear_checkpoints(output_dir: str | Path) -> None:
    """Remove what a later resume would take for this run's: the old run's checkpoints and log."""
    for folder in Path(output_dir).glob("checkpoint-*"):
        shutil.rmtree(folder)
    (Path(output_dir) / "log.jsonl").unlink(missing_ok=True)
