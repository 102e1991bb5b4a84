"""config.json of a checkpoint folder, and what is no model by itself."""

import json
from pathlib import Path

from checkpoints import tencentpretrain
from checkpoints.stored import contents, is_delta, model_files
from common.errors import UserError
from models.families import Family

STRETCHING = ("linear", "dynamic", "yarn")  # rope types beside which config.json may count the positions before them
CONVERTER = "python src/utils/weight_diff.py"


def read_config(model_path: str | Path) -> dict:
    """The config.json of a checkpoint folder; UserError when the folder holds none, or what is no model by itself."""
    folder = Path(model_path)
    if not folder.is_dir():
        raise UserError(
            f"--model_name_or_path {model_path}: no such folder. Give the folder of a downloaded checkpoint "
            "(config.json, tokenizer files, weights)"
        )
    config = folder / "config.json"
    if not model_files(folder)[1] and (file := tencentpretrain.find_file(folder)):
        raise UserError(
            f"--model_name_or_path {model_path}: {file.name} is in TencentPretrain's format; convert it first: "
            f"{CONVERTER} from_tencentpretrain --path_in {model_path} --path_out NEW_FOLDER"
        )
    if (folder / "adapter_config.json").is_file():
        refuse_adapter(folder, config.is_file() and bool(model_files(folder)[1]))
    if not config.is_file():
        there = sorted(path.name for path in folder.iterdir())
        inside = ", ".join(there[:12]) or "nothing"
        raise UserError(f"--model_name_or_path {model_path}: no config.json there; found {inside}")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{config}:{error.lineno}: not JSON ({error.msg}); download the file again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{config}: no JSON object; download the file again")
    if settings.get("pre_seq_len") and (folder / "pytorch_model.bin").is_file() and not _has_layers(folder):
        raise UserError(
            f"--model_name_or_path {model_path} holds a prefix of P-Tuning v2 and no model; predict with python "
            f"src/inference_pt.py --model_dir {model_path} --ori_model_dir BASE"
        )
    if is_delta(folder, settings):
        raise UserError(
            f"--model_name_or_path {model_path} is a delta, not a model (its norm weights are near 0, a model's near "
            f"1); add it to its base first: {CONVERTER} recover --path_raw BASE --path_diff {model_path} --path_tuned "
            "NEW_FOLDER, and give NEW_FOLDER here"
        )
    return settings


def refuse_adapter(folder: Path, has_model: bool) -> None:
    """UserError for a folder with an adapter where a base is expected; `has_model`: it holds a whole model as well."""
    asked = f"--model_name_or_path {folder}"
    if has_model:
        raise UserError(
            f"{asked} holds an adapter (adapter_config.json) beside the model, and transformers would apply it without "
            "a word. Move adapter_config.json and adapter_model.* to a folder of their own, and give that as "
            "--lora_weights where the adapter is wanted"
        )
    raise UserError(
        f"{asked} is a LoRA adapter, not a base model; give the base here and this folder as --lora_weights"
    )


def _has_layers(folder: Path) -> bool:
    """Whether the folder's weights are more than the tensors of a prefix encoder."""
    return any("prefix_encoder" not in name for file in model_files(folder)[1] for name in contents(file))


def read_context(model_path: str | Path, family: Family) -> int | None:
    """The positions that a base has or was trained on; None: its config.json names none."""
    config = read_config(model_path)
    config = {**config, **(config.get("text_config") or {})}
    positions = next((config[key] for key in family.context_keys if config.get(key)), None)
    scaling = config.get("rope_parameters") or config.get("rope_scaling")
    if not positions or not isinstance(scaling, dict):
        return positions
    kinds = [scaling, *(one for one in scaling.values() if isinstance(one, dict))]  # one, or one for each kind of layer
    stretched = [
        int(one["factor"] * (one.get("original_max_position_embeddings") or positions))
        for one in kinds
        if one.get("rope_type", one.get("type")) in STRETCHING and one.get("factor")
    ]
    return max([positions, *stretched])
