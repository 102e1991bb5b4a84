"""Prefixes of P-Tuning v2 as files: found and checked."""

import re
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoints.adapters import ADAPTER_FILES, check_weights, read_adapter_config
from checkpoints.stored import contents, model_files, read_json, read_tensor
from common.errors import UserError
from common.refusals import naming
from models.families import Family

OWN_FILE = "pytorch_model.bin"  # the published script's name


class Kind(NamedTuple):
    """Of what form a prefix is."""

    length: int
    projection: bool


def count_weights(shape, kind: Kind) -> int:
    """Number of the prefix's trained weights; `shape`: loading.shape.Shape, with the numbers kept of a token."""
    if not kind.projection:
        return kind.length * shape.cached
    width = shape.cached // (2 * shape.layers)
    return kind.length * width + width * (width + 1) + (width + 1) * shape.cached


def kind_settings(kind: Kind) -> dict:
    return {"pre_seq_len": kind.length, "prefix_projection": kind.projection}


def find_prefix(folder: str | Path, family: Family, shape, flag: str = "--model_dir") -> Kind:
    """The form of the prefix that a checkpoint's folder holds; UserError when it holds none, or one of another base.

    `shape`: the base's (loading.shape.Shape), or None when it is not known; `flag`: by which the folder is given.
    """
    folder = Path(folder)
    asked = f"{flag} {folder}"
    if not folder.is_dir() or not (has_own_files(folder) if family.own_prefix else has_peft_files(folder)):
        wanted = "config.json and its prefix" if family.own_prefix else "adapter_config.json and its prefix"
        what = f"holds no prefix of family {family.name} ({wanted})" if folder.is_dir() else "no such folder"
        raise UserError(f"{asked}: {what}; {nearby_steps(folder)}")
    if family.own_prefix:
        settings = read_json(folder / "config.json")
        kind = Kind(settings.get("pre_seq_len") or 0, bool(settings.get("prefix_projection")))
        found, names = read_own(folder, family.own_prefix), ", ".join(path.name for path in model_files(folder)[1])
        if not kind.length or not found:
            missing = "pre_seq_len in its config.json" if found else f"no tensor {family.own_prefix}.* in {names}"
            raise UserError(f"{asked}: no prefix there ({missing}); {nearby_steps(folder)}")
    else:
        settings = read_adapter_config(folder)
        if settings["peft_type"] != "PREFIX_TUNING":
            raise UserError(
                f"{asked}: an adapter of peft's type {settings['peft_type']}, expected PREFIX_TUNING; an adapter "
                "of LoRA is for --lora_weights (src/inference.py)"
            )
        length = settings.get("num_virtual_tokens")
        if not isinstance(length, int) or length < 1:
            raise UserError(f"{folder / 'adapter_config.json'}: num_virtual_tokens is {length}; expected 1 or more")
        kind, found = Kind(length, False), check_weights(folder)
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise UserError(f"{asked}: the prefix holds NaN or infinity; take an earlier checkpoint")
    count = sum(tensor.numel() for tensor in found.values())
    if shape and count != count_weights(shape, kind):
        raise UserError(
            f"{asked}: its prefix has {count:,} weights, for this base it would have {count_weights(shape, kind):,}; "
            "it was trained on another base"
        )
    return kind


def has_own_files(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(file.is_file() for file in model_files(folder)[1])


def has_peft_files(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and any((folder / name).is_file() for name in ADAPTER_FILES)


def read_own(folder: str | Path, own_name: str) -> dict[str, torch.Tensor]:
    """The tensors of a model's own encoder, out of files that may hold the whole model too."""
    stored = {name: at for file in model_files(Path(folder))[1] for name, at in contents(file).items()}
    return {name: read_tensor(name, at) for name, at in stored.items() if name.startswith(f"{own_name}.")}


def nearby_steps(folder: str | Path) -> str:
    """What to type instead: the checkpoints in the folder, or beside it."""
    folder = Path(folder)
    for place in (folder, folder.parent):
        if steps := steps_in(place):
            return f"{place} holds the steps {', '.join(path.name for _, path in steps)}"
    return f"no checkpoint global_step-N in {folder} or beside it"


def steps_in(out: str | Path) -> list[tuple[int, Path]]:
    """Number and folder of every checkpoint, oldest first."""
    found = ((re.fullmatch(r"global_step-(\d+)", path.name), path) for path in Path(out).glob("global_step-*"))
    return sorted((int(name[1]), path) for name, path in found if name)


def save_tensors(what: dict, file: Path) -> None:
    """torch.save, whose error names the file."""
    with naming(file):
        torch.save(what, file)
