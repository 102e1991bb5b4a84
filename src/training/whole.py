"""Whether a training can go on from a checkpoint as if it had never stopped: what it must hold, and can be read.

Nothing is guessed: without AdamW's averages, the place in the learning rate's course or the random numbers the Trainer
would go on all the same, and learn something else.
"""

import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from checkpoints.adapters import ADAPTER_FILES
from checkpoints.stored import contents, load_bin, whole_files
from common.errors import UserError, reason_of
from common.refusals import why_refused

READ_THROUGH = 2**28  # bytes of a file up to which all of it is compared with its checksums
# The beginning of a file's name -> what it holds at least.
HOLDS = {
    "optimizer": {"state", "param_groups"},
    "scheduler": {"last_epoch"},
    "scaler": {"scale"},
    "rng_state": {"python", "numpy", "cpu"},
    "rank-": {"weights", "optimizer", "scaler", "random", "random_cuda"},  # of P-Tuning
}


class Wanted(NamedTuple):
    """What decides which files a checkpoint has."""

    processes: int = 1
    split: bool = False  # --fsdp
    scaled: bool = False  # the loss, in float16


def fault_of(folder: str | Path, wanted: Wanted) -> str | None:
    """Why the run cannot go on from a checkpoint's folder as it was; None when it can. No base is needed for it."""
    folder = Path(folder)
    if not folder.is_dir():
        return "no such folder"
    if (step := step_of(folder)) is None:
        return "its trainer_state.json, which is written last, is missing or cut off"
    if (folder / f"{FSDP_MODEL_NAME}.bin").is_file() != wanted.split:
        return "written without --fsdp; drop it" if wanted.split else "written with --fsdp; add it"
    there = len(list(folder.glob("rng_state_*.pth"))) or int((folder / "rng_state.pth").is_file())
    if there and there != wanted.processes:
        return f"written by {there} processes; go on with as many, not {wanted.processes}"
    names = state_files(wanted)
    if missing := [name for name in names if not (folder / name).is_file()]:
        return f"{', '.join(missing)} missing: --save_only_model leaves that out, or it was deleted"
    try:
        weights = read_weights(folder, wanted.split)
        states = [read_state(folder / name) for name in names]
    except UserError as error:
        return str(error)
    if (made := steps_made(states[0])) > step:
        return f"its trainer_state.json says step {step}, and its optimizer has made {made}"
    return None if wanted.split or weights is None else mismatch(states[0], weights)


def step_of(folder: str | Path) -> int | None:
    """The optimizer step a checkpoint was saved at; None when it was not written to its end."""
    try:
        step = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json")).global_step
    except (OSError, ValueError, TypeError):
        return None
    return step if type(step) is int and step > 0 else None


def state_files(wanted: Wanted) -> list[str]:
    """The files of a checkpoint, but its weights: the optimizer's first."""
    several = wanted.processes > 1
    names = ["optimizer.bin" if wanted.split else "optimizer.pt", "scheduler.pt"]
    names += [f"rng_state_{rank}.pth" for rank in range(wanted.processes)] if several else ["rng_state.pth"]
    return names + (["scaler.pt"] if wanted.scaled else [])


def read_weights(folder: Path, split: bool) -> dict | None:
    """Names and shapes of an adapter's tensors, None for a whole model; UserError when its files are not whole."""
    if split:
        load_bin(folder / f"{FSDP_MODEL_NAME}.bin")
        return None
    if not (folder / "adapter_config.json").is_file():
        whole_files(folder, "resume_from_checkpoint")
        return None
    file = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{ADAPTER_FILES[0]} missing")
    return contents(file)


def read_state(file: Path, mapped: bool = True) -> dict:
    """What torch.save wrote, only `mapped` where it is just looked at; UserError when it is damaged, or another's."""
    try:
        if file.stat().st_size <= READ_THROUGH and (part := zipfile.ZipFile(file).testzip()):
            raise ValueError(f"{part} differs from its checksum")
        with safe_globals():
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # noqa: BLE001 - whatever the reader raises, the file is broken
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file.name} cannot be read: {reason[:100]}") from None
    name = next(name for name in HOLDS if file.name.startswith(name))
    if not isinstance(state, dict) or not HOLDS[name] <= state.keys():
        raise UserError(f"{file.name} holds something else")
    return state


@contextmanager
def taking_up(checkpoint: str):
    """UserError for whatever is raised while the state of a checkpoint is put into the model and the optimizer."""
    try:
        yield
    except Exception as error:
        if why_refused(error):
            raise
        raise UserError(f"{checkpoint}: cannot be gone on from ({reason_of(error)}); take an older one") from error


def steps_made(optimizer: dict) -> int:
    """Steps that an optimizer's state has seen, fewer where a loss in float16 overflowed; 0 where it does not count."""
    return max((int(one["step"]) for one in optimizer["state"].values() if "step" in one), default=0)


def mismatch(optimizer: dict, weights: dict) -> str | None:
    """Why an optimizer's state is not that of an adapter's tensors, or None."""
    adapted = sorted(list(at.shape) for at in weights.values())
    count = sum(len(group["params"]) for group in optimizer["param_groups"])
    moments = [state.get("exp_avg") for state in optimizer["state"].values()]
    if count == len(adapted) and not all(isinstance(one, torch.Tensor) for one in moments):
        return None  # an optimizer with a state of another form
    if count == len(adapted) and sorted(list(one.shape) for one in moments) == adapted:
        return None
    return "optimizer.pt is of another adapter"
