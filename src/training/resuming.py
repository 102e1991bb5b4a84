"""Where a training goes on: the checkpoints that are whole, the run they belong to, and who else writes there."""

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from common import locks, manifest
from common.errors import UserError, say
from common.refusals import shorten
from training.whole import Wanted, fault_of, step_of


class Found(NamedTuple):
    """The checkpoints of an --output_dir."""

    checkpoint: str | None  # the newest that the run can go on from
    passed: dict[str, str]  # those that are newer -> why not, the newest first


def find_checkpoint(output_dir: str | Path, wanted: Wanted) -> Found:
    """Where a run of this form can go on."""
    passed, run = {}, manifest.read_run(output_dir)
    for folder in map(str, list_checkpoints(output_dir)):
        if not (fault := fault_of(folder, wanted) or foreign(folder, run)):
            return Found(folder, passed)
        passed[folder] = fault
    return Found(None, passed)


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders checkpoint-N of the Trainer, whole or not, the newest first; not those that somebody named."""
    numbered = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        if (number := folder.name.removeprefix("checkpoint-")).isdecimal() and folder.is_dir():
            numbered[int(number)] = folder
    return [folder for _, folder in sorted(numbered.items(), reverse=True)]


def foreign(folder: str, run: dict) -> str | None:
    """Whose a checkpoint is that was put into the folder of another run; None for one of `run`."""
    other = differences(manifest.read_run(folder), run) if run else []
    return f"of another run: {other[0]}" if other else None


@contextmanager
def alone(output_dir: str | Path, rank: int):
    """Keep other trainings out of --output_dir until the block ends: they would mix, or delete, each other's files.

    UserError when one is at work there, or the folder cannot be made.
    """
    if rank:  # the first process holds it for all
        yield
        return
    folder = Path(output_dir)
    was_there, what = os.path.exists(folder), f"--output_dir {shorten(folder)}:"
    refusal = f"{what} another training is writing it (ps and nvidia-smi show it); give another folder, or wait for it"
    try:
        with locks.hold_file(folder / "training.lock", what, refusal):
            yield
    finally:
        if not was_there:
            with suppress(OSError):  # what holds something, or was not made
                folder.rmdir()


NOTHING_TRAINED = "nothing was trained yet, and the same command begins anew"


class Start(NamedTuple):
    """Where a training begins."""

    step: int = 0  # optimizer steps that are done
    checkpoint: str | None = None  # folder to go on from; None: a run that begins


def choose_start(args, newest: str | None, find, how: str) -> Start:
    """Where to begin, said; UserError rather than overwrite what another run left in --output_dir.

    `newest`: the newest checkpoint there, whole or not, if it is to be named; `find()`: where a resumed run goes on;
    `how`: the flag for it.
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
    wanted = wanted_by(args)
    found = find_checkpoint(out, wanted)
    written = [folder for folder in found.passed if step_of(folder) is not None]
    finished = manifest.read_run(out).get("status") == "finished"

    def find() -> Start:
        if asked != "auto":
            if fault := fault_of(asked, wanted):
                raise UserError(
                    f"--resume_from_checkpoint {asked}: no whole checkpoint of this run ({fault}); --output_dir's "
                    f"newest is {found.checkpoint or 'none'}"
                )
            return Start(step_of(asked), asked)
        for folder, fault in found.passed.items():
            say(f"resume: {folder} is passed over, no whole checkpoint of this run ({fault})")
        if found.checkpoint is None and written and not finished:
            raise UserError(
                f"--resume_from_checkpoint auto: no checkpoint in {out} can be gone on from; give another folder, or "
                "--overwrite_output_dir instead to start anew"
            )
        if not finished:
            say(f"resume: {found.checkpoint or 'no whole checkpoint yet, starting at step 0'}")
        return Start(step_of(found.checkpoint), found.checkpoint) if found.checkpoint else Start()

    newest = found.checkpoint or next(iter(written), None)
    return choose_start(args, None if finished else newest, find, "--resume_from_checkpoint auto")


def kept_by_finetuning(args) -> str:
    """What is left of a training that was broken off, and how to go on: see common.errors.keeping."""
    found = find_checkpoint(args.output_dir, wanted_by(args))
    unfit = any(step_of(folder) is not None for folder in found.passed)
    return kept_of(args, found.checkpoint, unfit, "--resume_from_checkpoint auto")


def kept_of(args, checkpoint: str | None, unfit: bool, how: str) -> str:
    """`checkpoint`: where the run can go on; `unfit`: there are others, where it cannot; `how`: the flag for it."""
    if checkpoint is None and unfit:
        return "there is no checkpoint that can be gone on from; --overwrite_output_dir starts anew"
    if checkpoint is None:
        return "no checkpoint was written yet, and the same command begins anew"
    if args.overwrite_output_dir:
        how += " instead of --overwrite_output_dir"
    again = "" if args.resume_from_checkpoint == "auto" else f" with {how}"
    return f"{checkpoint} is kept, and the same command{again} goes on from it"


def wanted_by(args) -> Wanted:
    return Wanted(args.world_size, bool(args.fsdp), bool(args.fp16))


def is_done(args, run: dict, resume: str | None) -> bool:
    """Whether --output_dir holds this very run, finished.

    UserError when it holds another one, or when `resume`, the checkpoint to go on from, is of another or unknown one.
    """
    if not args.resume_from_checkpoint:
        return False
    before = manifest.read_run(args.output_dir)
    of_checkpoint = manifest.read_run(resume) if resume else {}
    if resume and not of_checkpoint:
        raise UserError(
            f"{resume}: no {manifest.NAME} there or beside it says of which run it is; give a checkpoint in its run's "
            "folder, or start anew"
        )
    if other := differences(before, run) or differences(of_checkpoint, run):
        raise UserError(
            f"the run to resume was started otherwise ({'; '.join(other)}); repeat its command, or give another "
            "--output_dir"
        )
    if not before:
        return False
    finished = before.get("status") == "finished"
    if finished and before.get("planned") == run["planned"]:
        say(f"{args.output_dir}: finished already, nothing to train")
        return True
    if finished and not resume:
        raise UserError(
            f"--output_dir {args.output_dir} holds a finished run without checkpoints, which cannot be prolonged; give "
            "another folder, or --overwrite_output_dir instead of resuming"
        )
    return False


def differences(then: dict, now: dict) -> list[str]:
    """In what two run.json tell of different runs; none where one of them is empty."""
    names = ("base", "template", "precision", "lora", "prefix", "seed", "data", "training")
    return [f"{n}: {then[n]} then, {now[n]} now" for n in names if n in then and n in now and then[n] != now[n]]


def clear_checkpoints(output_dir: str | Path) -> None:
    """Remove what a later resume would take for this run's: the old run's checkpoints and log."""
    for folder in list_checkpoints(output_dir):
        shutil.rmtree(folder)
    (Path(output_dir) / "log.jsonl").unlink(missing_ok=True)
