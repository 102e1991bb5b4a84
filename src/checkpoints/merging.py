"""What a LoRA adapter of peft adds to the weights of its base, read from its files."""

import math
import re
from pathlib import Path
from typing import NamedTuple

import torch

from checkpoints.adapters import ADAPTER_FILES, check_weights, has_adapter
from checkpoints.stored import BLOCK, Stored, read_json
from common.errors import UserError
from models.families import FAMILIES

# Settings with which an adapter adds B @ A * scale; any other that is set changes what is added.
KNOWN_SETTINGS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "merge_weights",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
PLAIN_STARTS = (None, True, False, "gaussian")  # of init_lora_weights; the others change the base before training


class Update(NamedTuple):
    """`left @ right * scale`, (rows, r) @ (r, columns), is added to a weight."""

    left: torch.Tensor
    right: torch.Tensor
    scale: float


def read_adapter(folder: Path, base: dict[str, Stored], config: dict) -> tuple[dict, dict]:
    """Updates and whole new weights (modules_to_save) by the name of the base's tensor. `config`: the base's.

    UserError for settings that are not supported, by name, and for tensors that the base has not, or in another shape.
    """
    if not has_adapter(folder):
        raise UserError(
            f"--path_adapter {folder}: no adapter there (expected adapter_config.json and {' or '.join(ADAPTER_FILES)})"
        )
    settings = read_json(folder / "adapter_config.json")
    _refuse_unknown(folder, settings)
    rank = settings["r"]
    share = math.sqrt(rank) if settings.get("use_rslora") else rank
    # As in peft, the layer decides and not fan_in_fan_out, which only says which of the two a layer was taken for.
    turned = any(config.get("model_type") in family.turned_types for family in FAMILIES)
    halves, whole = {}, {}
    for key, tensor in check_weights(folder).items():
        name = key.removeprefix("base_model.model.")
        if found := re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name):
            halves.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor.float()
        elif settings.get("modules_to_save") and "lora_" not in name:
            whole[re.sub(r"\.modules_to_save(\.default)?(?=\.)", "", name)] = tensor
        else:
            raise UserError(f"--path_adapter {folder}: {key} is no plain LoRA; merge this adapter with peft")
    if whole and config.get("tie_word_embeddings"):
        raise UserError(
            f"--path_adapter {folder}: modules_to_save on a base whose embedding and lm_head are one tensor "
            "(tie_word_embeddings) is not supported; merge this adapter with peft"
        )
    updates = {}
    for name, half in halves.items():
        if set(half) != {"A", "B"} or half["A"].shape[0] != rank or half["B"].shape[1] != rank:
            raise UserError(f"--path_adapter {folder}: {name} has not one lora_A and one lora_B of rank {rank}")
        left, right = (half["A"].T, half["B"].T) if turned else (half["B"], half["A"])
        alpha = _alpha(settings, name.removesuffix(".weight"), config, right.shape[1])
        updates[name] = Update(left, right, alpha / share)
    targets = settings.get("target_modules")
    for target in targets if isinstance(targets, list) and not settings.get("layers_to_transform") else ():
        there, here = (sum(name.endswith(f".{target}.weight") for name in names) for names in (base, updates))
        if here != there:
            raise UserError(
                f"--path_adapter {folder}: it is on {here} layers {target}, the base has {there}; it is incomplete, or "
                f"was trained on another base (its config names {settings.get('base_model_name_or_path')})"
            )
    shapes = {n: (len(u.left), u.right.shape[1]) for n, u in updates.items()} | {n: t.shape for n, t in whole.items()}
    for name, shape in shapes.items():
        there = base[name].shape if name in base else None
        if there != tuple(shape):
            raise UserError(
                f"--path_adapter {folder}: {name} is {tuple(shape)}, in the base {there or 'missing'}; this adapter "
                f"was trained on another base (its config names {settings.get('base_model_name_or_path')})"
            )
    return updates, whole


def _alpha(settings: dict, layer: str, config: dict, inputs: int) -> float:
    """lora_alpha of one layer: its own in alpha_pattern, as peft finds it, else the adapter's."""
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return alpha
    if any(family.scales_products and config.get("model_type") in family.model_types for family in FAMILIES):
        # An adapter of 2023, added to products already divided by √inputs.
        return settings["lora_alpha"] * math.sqrt(inputs)
    return settings["lora_alpha"]


def updated(weight: torch.Tensor, update: Update, dtype: torch.dtype):
    """`weight` with its update as flat blocks of `dtype`; added in float32 or wider and rounded once."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    step = max(1, BLOCK // weight.shape[1])
    for start in range(0, len(weight), step):
        more = update.left[start : start + step] @ update.right * update.scale
        yield (weight[start : start + step].to(wide) + more).to(dtype).reshape(-1)


def _refuse_unknown(folder: Path, settings: dict) -> None:
    if settings.get("peft_type", "LORA") != "LORA":
        raise UserError(f"--path_adapter {folder}: a {settings['peft_type']} adapter; only LORA can be merged")
    found = [name for name, value in settings.items() if value and name not in KNOWN_SETTINGS]
    if settings.get("bias", "none") != "none":
        found.append("bias")
    if settings.get("init_lora_weights") not in PLAIN_STARTS:
        found.append("init_lora_weights")
    if found:
        values = ", ".join(f"{name} = {settings[name]}" for name in found)
        raise UserError(f"--path_adapter {folder}: {values} is not supported here; merge this adapter with peft")
