"""LoRA adapters as files: found, read, checked against a base, read back."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from checkpoints.config import read_config
from checkpoints.stored import why_unread
from common.errors import UserError

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def weight_files(folder: str | Path) -> list[Path]:
    """The files of a base or an adapter that hold its weights."""
    return sorted(path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin", ".pt"))


def find_adapter(folder: str | Path) -> Path:
    """The folder itself when it holds a sound adapter; else a UserError that lists it and the nearest one that is."""
    folder = Path(folder)
    inside = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
    try:
        if folder.is_file():
            raise UserError(f"is a file; give its folder, {folder.parent}")
        if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            read_config(folder)  # says what else it may be
            raise UserError("is a whole model, no adapter; give it as --model_name_or_path")
        if not has_adapter(folder):
            raise UserError(f"no adapter there (expected adapter_config.json and {' or '.join(ADAPTER_FILES)})")
        read_adapter_config(folder)
        check_weights(folder)
        return folder
    except UserError as error:
        near = _nearest_adapter(folder)
        hint = f"; the newest adapter near it is {near}" if near else ""
        raise UserError(f"--lora_weights {folder}: {error}; found {inside or 'an empty folder'}{hint}") from None


def has_adapter(folder: Path) -> bool:
    """Whether the files of an adapter are there, sound or not."""
    return (folder / "adapter_config.json").is_file() and any((folder / name).is_file() for name in ADAPTER_FILES)


def _nearest_adapter(folder: Path) -> Path | None:
    """The newest sound adapter of the same run: in the folder, or beside and above a `checkpoint-N`."""
    near = [folder, *folder.glob("*")]
    if folder.name.startswith("checkpoint-"):
        near += [folder.parent, *folder.parent.glob("*")]
    sound = []
    for other in near:
        try:
            if other != folder and has_adapter(other) and check_weights(other):
                sound.append(other)
        except UserError:
            continue
    return max(sound, key=lambda path: (path / "adapter_config.json").stat().st_mtime, default=None)


def read_adapter_config(folder: Path) -> dict:
    """What adapter_config.json says; UserError when it is no configuration of an adapter."""
    file = folder / "adapter_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); copy it again") from None
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise UserError(f"{file}: names no peft_type, so it is no configuration of an adapter; copy it again")
    return settings


def check_fits(folder: Path, layers: dict[str, tuple[int, int]]) -> None:
    """UserError when a LoRA adapter was trained on another base.

    `layers`: name of every linear layer of this base, but the head, -> its (inputs, outputs).
    """
    settings = read_adapter_config(folder)
    trained_on = settings.get("base_model_name_or_path")
    wanted = f"--lora_weights {folder} (trained on {trained_on or 'an unknown base'}) does not fit this base model"
    targets = settings.get("target_modules")
    everywhere = isinstance(targets, list) and not settings.get("layers_to_transform")  # else it may be on some layers
    adapted = {}
    for key, tensor in check_weights(folder).items():
        found = re.match(r"(?:base_model\.model\.)?(.*)\.lora_([AB])\.", key)
        if not found or found[1] == "lm_head":
            continue
        name, side = found[1], "AB".index(found[2])
        if name not in layers:
            raise UserError(f"{wanted}: the base has no layer {name}")
        units = tensor.shape[1 - side]  # lora_A: rank x inputs, lora_B: outputs x rank
        if units != layers[name][side]:
            raise UserError(f"{wanted}: {key} is made for {units} units, the base has {layers[name][side]}")
        adapted.setdefault(name.split(".")[-1], set()).add(name)
    for target, names in adapted.items():
        there = sum(name.split(".")[-1] == target for name in layers)
        if len(names) < there and everywhere:
            raise UserError(f"{wanted}: it is on {len(names)} layers {target}, the base has {there}")


def check_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter; UserError when the file is empty or every lora_B is zero (nothing was learnt)."""
    file = next(folder / name for name in ADAPTER_FILES if (folder / name).is_file())
    try:
        tensors = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # noqa: BLE001 - whatever the reader raises, the file is broken
        raise UserError(f"{file}: not a readable adapter ({why_unread(error)}); copy or train it again") from None
    if isinstance(tensors, dict) and not tensors:
        raise UserError(f"{file}: holds no tensor ({file.stat().st_size} bytes): a broken save; train it again")
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{file}: holds something else than tensors; copy or train it again")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UserError(f"{file}: holds NaN or infinity; take an earlier checkpoint")
    trained = [tensor for name, tensor in tensors.items() if "lora_A" not in name]
    if trained and not any(tensor.any() for tensor in trained):
        raise UserError(f"{file}: every lora_B is zero, so the adapter changes nothing; it was saved untrained")
    return tensors


def check_saved(live: dict[str, torch.Tensor], folder: Path) -> int:
    """Read a just saved adapter back and compare it with the trained one's tensors; its number of weights."""
    saved = check_weights(folder)
    wrong = [
        name for name, tensor in live.items() if name not in saved or not torch.equal(saved[name].cpu(), tensor.cpu())
    ]
    if wrong or len(saved) != len(live):
        raise UserError(
            f"{folder}: the saved adapter differs from the trained one in {len(wrong)} tensors, e.g. {wrong[:3]}"
        )
    return sum(tensor.numel() for tensor in saved.values())
