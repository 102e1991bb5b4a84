"""config.json of a checkpoint folder: read, its numbers checked; and what is no model by itself."""

import math
from pathlib import Path

import transformers

from checkpoints import tencentpretrain
from checkpoints.stored import contents, is_delta, is_there, model_files, read_json
from common.errors import UserError
from models.families import Family

STRETCHING = ("linear", "dynamic", "yarn")  # rope types beside which config.json may count the positions before them
CONVERTER = "python src/utils/weight_diff.py"
MOST_LAYERS, MOST = 1000, 2**31 - 1
COUNTS = {  # settings that are whole numbers from 1 on, under the names that architectures give them -> the largest
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), MOST_LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "dim_model", "head_dim"), MOST),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "n_head"), MOST),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "max_sequence_length"), MOST),
}


def read_config(model_path: str | Path) -> dict:
    """The config.json of a checkpoint folder; UserError when the folder holds none, or what is no model by itself."""
    folder = Path(model_path)
    if not folder.is_dir():
        raise UserError(
            f"--model_name_or_path {model_path}: no such folder. Give the folder of a downloaded checkpoint "
            "(config.json, tokenizer files, weights), such as hf download OWNER/NAME --local-dir FOLDER brings; "
            "docs/install.md says how the bases of the quickstart and the tests are made"
        )
    config = folder / "config.json"
    if not model_files(folder)[1] and (file := tencentpretrain.find_file(folder)):
        raise UserError(
            f"--model_name_or_path {model_path}: {file.name} is in TencentPretrain's format; convert it first: "
            f"{CONVERTER} from_tencentpretrain --path_in {model_path} --path_out NEW_FOLDER"
        )
    if (folder / "adapter_config.json").is_file():
        refuse_adapter(folder, config.is_file() and bool(model_files(folder)[1]))
    if not is_there(config):
        there = sorted(path.name for path in folder.iterdir())
        inside = ", ".join(there[:12]) or "nothing"
        raise UserError(f"--model_name_or_path {model_path}: no config.json there; found {inside}")
    settings = read_json(config)
    check_settings(settings, config)
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


def check_settings(settings: dict, file: Path) -> None:
    """UserError for the first setting of a config.json that no model can have."""
    kind = settings.get("model_type", "")
    if not isinstance(kind, str):
        raise UserError(f"{file}: model_type is {kind!r}, no name of an architecture; download the file again")
    for path, value in _each(settings):
        if wanted := _wanted_instead(path, value):
            raise UserError(f"{file}: {path} is {repr(value)[:80]}; expected {wanted}; download the file again")


def _wanted_instead(path: str, value) -> str | None:
    """What a setting ought to be; None: it may be what it is, or is none of those that are looked at."""
    if value is None or isinstance(value, list):  # of some architectures a list has one for each layer
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "a number"
    if f"_{path.rpartition('.')[2]}".endswith(("_eps", "_epsilon")):
        return None if isinstance(value, (int, float)) and 0 <= value < 1 else "0 or more and less than 1"
    if most := COUNTS.get(path.removeprefix("text_config.")):
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        return None if whole else f"a whole number from 1 to {most}"
    return None


def pad_beyond(model_path: str | Path) -> dict:
    """What to change in a base's config: its pad_token_id is none where it lies beyond the embedding's rows.

    transformers would make no embedding with it; batches are padded with `Codec.pad_id`.
    """
    settings = read_config(model_path)
    pad, rows = (settings.get(name) for name in ("pad_token_id", "vocab_size"))
    beyond = isinstance(pad, int) and isinstance(rows, int) and not -rows <= pad < rows
    return {"pad_token_id": None} if beyond else {}


def _each(settings: dict, before: str = ""):
    """The dotted name and the value of every setting, those of objects within it as well; lists are not entered."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _each(value, f"{before}{name}.")
        else:
            yield before + name, value


def unusable(model_path: str | Path, error: Exception) -> UserError:
    """The error for a config.json that transformers can make no model of, with the setting at fault if it is known."""
    cause = error.__cause__ if "dataclass" in type(error).__name__.lower() and error.__cause__ else error
    reason = str(cause).strip().split("\n")[0][:300]
    if isinstance(error, KeyError):
        reason = str(error.args[0])[:300]
        at = next((path for path, value in _each(read_json(Path(model_path) / "config.json")) if value == reason), None)
        reason = f"{at} {reason} is not known to it" if at else reason
    return UserError(
        f"{Path(model_path) / 'config.json'}: transformers {transformers.__version__} can make no model of it "
        f"({reason or type(error).__name__}); download the file again, or take another base"
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
