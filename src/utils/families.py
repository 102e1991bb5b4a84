"""The one table of model families: names, templates, LoRA targets, tokens. A new family is one new row.

Nothing else in the project asks which family a model is of.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import transformers

from utils import tencentpretrain
from utils.errors import UserError
from utils.shards import is_delta, model_files

CONVERTER = "python src/utils/weight_diff.py"


@dataclass(frozen=True)
class Family:
    name: str  # what run.json says, and one of the values of --model_name
    templates: dict[str, str]  # every value of --model_name that means this family -> its prompt template
    model_types: tuple[str, ...]  # `model_type` of config.json; () = any causal model of transformers
    lora_targets: tuple[str, ...]  # module names; ("all-linear",) = every linear layer but the head
    sentencepiece: bool  # tokens come from a bare tokenizer.model, as old LLaMA checkpoints have it
    own_prefix: str | None = None  # name of the model's own P-Tuning encoder; None: peft's prefix tuning


FAMILIES = (
    Family(
        name="llama",
        templates={
            "llama": "alpaca",
            "alpaca": "alpaca",
            "vicuna": "vicuna",
            "zhixi": "alpaca",
            "chatflow": "alpaca",
            "chinese-llama": "alpaca",
        },
        model_types=("llama",),
        lora_targets=("q_proj", "v_proj"),
        sentencepiece=True,
    ),
    Family(
        name="auto",
        templates={"auto": "alpaca"},
        model_types=(),
        lora_targets=("all-linear",),
        sentencepiece=False,
    ),
)
NAMES = tuple(name for family in FAMILIES for name in family.templates)


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
    if not config.is_file():
        there = sorted(path.name for path in folder.iterdir())
        if "adapter_config.json" in there:
            raise UserError(
                f"--model_name_or_path {model_path} is a LoRA adapter, not a base model; give the base here and this "
                "folder as --lora_weights"
            )
        inside = ", ".join(there[:12]) or "nothing"
        raise UserError(f"--model_name_or_path {model_path}: no config.json there; found {inside}")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{config}:{error.lineno}: not JSON ({error.msg}); download the file again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{config}: no JSON object; download the file again")
    if is_delta(folder, settings):
        raise UserError(
            f"--model_name_or_path {model_path} is a delta, not a model (its norm weights are near 0, a model's near "
            f"1); add it to its base first: {CONVERTER} recover --path_raw BASE --path_diff {model_path} --path_tuned "
            "NEW_FOLDER, and give NEW_FOLDER here"
        )
    return settings


def find_family(model_path: str | Path, model_name: str | None = None) -> tuple[Family, str, str]:
    """The family of a checkpoint, the name it goes by, and why.

    `config.json` decides; `model_name` (one of NAMES, or None) chooses among the names of that family. A name of
    another family is a UserError.
    """
    config = read_config(model_path)
    model_type = str(config.get("model_type", "")).lower()
    old_llama = (Path(model_path) / "tokenizer.model").is_file()
    own = next((f for f in FAMILIES if model_type in f.model_types and old_llama == f.sentencepiece), FAMILIES[-1])
    if model_name is None:
        return own, own.name, f"model_type {model_type} in config.json"
    if model_name not in NAMES:
        raise UserError(f"--model_name {model_name}: not a family; known: {', '.join(NAMES)} (or leave it out)")
    named = next(family for family in FAMILIES if model_name in family.templates)
    if own.sentencepiece and not named.model_types:
        raise UserError(
            f"--model_name {model_name} contradicts {model_path}, a {own.name} checkpoint with tokenizer.model; drop "
            f"--model_name, or give one of {', '.join(own.templates)}"
        )
    if named.model_types and model_type not in named.model_types:
        raise UserError(
            f"--model_name {model_name} contradicts {model_path}/config.json, whose model_type is {model_type!r}; "
            "drop --model_name to use what the checkpoint says, or give the checkpoint you meant"
        )
    return named, model_name, "--model_name"


@contextmanager
def own_code(folder: str | Path, trusted: bool):
    """Errors around the Python code that a checkpoint brings along, not allowed or broken, become UserErrors."""
    try:
        yield
    except Exception as error:
        files = ", ".join(sorted(path.name for path in Path(folder).glob("*.py")))
        if not trusted and "trust_remote_code" in str(error):
            raise UserError(
                f"{folder} needs Python code of its own ({files or 'from another repository'}), which runs only with "
                "--trust_remote_code; read it, and add the flag if you trust it"
            ) from None
        if trusted and files and not isinstance(error, (OSError, ValueError, RuntimeError)):
            raise UserError(
                f"--trust_remote_code: the Python code of {folder} ({files}) fails with transformers "
                f"{transformers.__version__} ({type(error).__name__}: {error}). It may be written for another "
                "version, or need a package that is not installed"
            ) from error
        raise
