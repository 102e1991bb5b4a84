"""Adapters of peft as files: found, read, checked by themselves, read back."""

import json
import math
import pickle
import re
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file

from checkpoints.config import read_config
from checkpoints.stored import contents, why_unread
from common.errors import UserError

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
FRONT = ("prompt_embeddings", "prefix_task_")  # names of what stands in front of a prompt, in no layer


def weight_files(folder: str | Path) -> list[Path]:
    """The files of a base or an adapter that hold its weights."""
    return sorted(path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin", ".pt"))


def find_adapter(folder: str | Path, flag: str = "--lora_weights") -> Path:
    """The folder itself when it holds a sound adapter; else a UserError that lists it and the nearest one that is.

    `flag`: with which it was given.
    """
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
        raise UserError(f"{flag} {folder}: {error}; found {inside or 'an empty folder'}{hint}") from None


def has_adapter(folder: Path) -> bool:
    """Whether the files of an adapter are there, sound or not."""
    return (folder / "adapter_config.json").is_file() and any((folder / name).is_file() for name in ADAPTER_FILES)


def _nearest_adapter(folder: Path) -> Path | None:
    """The newest sound adapter of the same run: in the folder, or beside and above a `checkpoint-N`; of a folder that
    is not there, which may be misspelt, the newest beside it.
    """
    near = [folder, *folder.glob("*"), *folder.glob("snapshots/*")]  # the last: of a hub's cache
    if folder.name.startswith("checkpoint-"):
        near += [folder.parent, *folder.parent.glob("*")]
    elif not folder.exists():
        near += folder.parent.glob("*")
    there = [other for other in near if other != folder and has_adapter(other)]
    for other in sorted(there, key=lambda path: (path / "adapter_config.json").stat().st_mtime, reverse=True):
        with suppress(UserError):
            if check_weights(other):
                return other
    return None


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _is_list(value, is_kind) -> bool:
    return isinstance(value, list) and all(map(is_kind, value))


def _is_text(value) -> bool:
    return value is None or isinstance(value, str)


def _is_names(value) -> bool:
    return _is_text(value) or _is_list(value, lambda name: isinstance(name, str))


def _is_switch(value) -> bool:
    return value is None or isinstance(value, bool)


def _is_pattern(value, is_kind) -> bool:
    return value is None or (isinstance(value, dict) and all(map(is_kind, value.values())))


# Setting -> whether a value is one of it, and what one is. peft would take most others without a word.
SETTINGS = {
    "base_model_name_or_path": (_is_text, "a name"),
    "task_type": (_is_text, "a name"),
    "bias": (_is_text, "none, all or lora_only"),
    "target_modules": (_is_names, "a name, a list of names, or null"),
    "exclude_modules": (_is_names, "a name, a list of names, or null"),
    "layers_pattern": (_is_names, "a name, a list of names, or null"),
    "modules_to_save": (lambda value: not isinstance(value, str) and _is_names(value), "a list of names, or null"),
    "layers_to_transform": (
        lambda value: value is None or _is_whole(value) or _is_list(value, _is_whole),
        "a number, a list of numbers, or null",
    ),
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"), (_is_switch, "true or false")),
}
LORA_SETTINGS = {  # which other kinds have too, of another form
    "r": (lambda value: _is_whole(value) and value > 0, "a whole number above 0"),
    "lora_alpha": (lambda value: _is_number(value) and value != 0, "a number other than 0"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"),
    "rank_pattern": (
        lambda value: _is_pattern(value, lambda rank: _is_whole(rank) and rank > 0),
        "whole numbers above 0 by name",
    ),
    "alpha_pattern": (lambda value: _is_pattern(value, _is_number), "numbers by name"),
}
# Settings with which a LoRA adapter is a product beside each layer it is on, whatever their values.
PLAIN_SETTINGS = {
    *SETTINGS,
    *LORA_SETTINGS,
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "megatron_core",
    "merge_weights",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
PLAIN_STARTS = (None, True, False, "gaussian")  # of init_lora_weights; the others change the base before training


def read_adapter_config(folder: Path) -> dict:
    """What adapter_config.json says; UserError when it is no configuration of an adapter, or holds nonsense."""
    file = folder / "adapter_config.json"

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise UserError(f"{file}: holds {text}, which is no number; copy it again, or write the one it was")
        return value

    try:
        settings = json.loads(file.read_bytes().decode("utf-8-sig"), parse_float=finite, parse_constant=finite)
    except RecursionError:
        raise UserError(f"{file}: nested too deeply for a configuration; copy it again") from None
    except ValueError as error:
        raise UserError(f"{file}: not JSON in UTF-8 ({error}); copy it again") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("peft_type"), str):
        raise UserError(f"{file}: names no peft_type, so it is no configuration of an adapter; copy it again")
    known = SETTINGS | (LORA_SETTINGS if settings["peft_type"] == "LORA" else {})
    for name, (is_one, expected) in known.items():
        if name in settings and not is_one(settings[name]):
            found = json.dumps(settings[name], ensure_ascii=False)[:60]
            raise UserError(f"{file}: {name} is {found}; expected {expected}")
    return settings


def beyond_products(settings: dict) -> list[str]:
    """The settings of a LoRA adapter, by name, with which it may be more than a product beside each layer."""
    return sorted(name for name, value in settings.items() if value and name not in PLAIN_SETTINGS)


def as_peft_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter by the names that peft gives them today.

    A whole state dict that somebody saved holds the adapter's name, "default"; others leave out the beginning; and
    before peft 0.7 a bias or weight of an adapted layer itself had the layer's name, which is now its base_layer's.
    """
    if any(name.startswith(FRONT) for name in tensors):
        return tensors
    whole = {}
    for name, tensor in tensors.items():
        name = name if name.startswith("base_model.") else f"base_model.model.{name}"
        whole[re.sub(r"\.(modules_to_save\.)?default(?=\.|$)|\.modules_to_save(?=\.)", "", name)] = tensor
    adapted = {name.partition(".lora_")[0] for name in whole if ".lora_" in name}
    inside = {f"{layer}.{part}": f"{layer}.base_layer.{part}" for layer in adapted for part in ("weight", "bias")}
    return {inside.get(name, name): tensor for name, tensor in whole.items()}


def check_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter; UserError when the file is empty or every lora_B is zero (nothing was learnt)."""
    file = next(folder / name for name in ADAPTER_FILES if (folder / name).is_file())
    try:
        tensors = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError:  # whose text is advice to switch the protection off
        raise UserError(
            f"{file}: not a readable adapter (it is broken, or holds more than tensors, which is never run); copy or "
            "train it again"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever the reader raises, the file is broken
        raise UserError(f"{file}: not a readable adapter ({why_unread(error)}); copy or train it again") from None
    if isinstance(tensors, dict) and not tensors:
        raise UserError(f"{file}: holds no tensor ({file.stat().st_size} bytes): a broken save; train it again")
    if not isinstance(tensors, dict) or not all(map(_is_plain, tensors.values())):
        raise UserError(f"{file}: holds something else than tensors; copy or train it again")
    if empty := [name for name, tensor in tensors.items() if tensor.shape == (0,)]:
        raise UserError(
            f"{file}: {len(empty)} tensors hold no number, e.g. {empty[0]}: saved by one process of several, each with "
            "a part (DeepSpeed's ZeRO-3, FSDP); gather them when saving"
        )
    if not all(_is_finite(tensor) for tensor in tensors.values()):
        raise UserError(f"{file}: holds NaN or infinity; take an earlier checkpoint")
    trained = [tensor for name, tensor in tensors.items() if "lora_A" not in name]
    if trained and not any(tensor.any() for tensor in trained):
        raise UserError(f"{file}: every lora_B is zero, so the adapter changes nothing; it was saved untrained")
    return tensors


def count_whole(folder: Path) -> int:
    """Number of an adapter's weights that stand in place of the base's, beside which those stay in memory."""
    file = next(folder / name for name in ADAPTER_FILES if (folder / name).is_file())
    return sum(math.prod(at.shape) for name, at in contents(file).items() if ".lora_" not in name)


def _is_plain(tensor) -> bool:
    """Whether it is a tensor whose numbers can be read."""
    return isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta


def _is_finite(tensor: torch.Tensor) -> bool:
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch cannot ask all kinds of 8 bits
    return bool(wide.isfinite().all())


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
