"""The one table of model families: names, templates, LoRA targets, tokens. A new family is one new row.

Nothing else in the project asks which family a model is of.
"""

import importlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import transformers

from utils import tencentpretrain
from utils.errors import UserError, say
from utils.manifest import prefer
from utils.shards import contents, is_delta, model_files

CONVERTER = "python src/utils/weight_diff.py"


@dataclass(frozen=True)
class Family:
    name: str  # what run.json says, and one of the values of --model_name
    templates: dict[str, str]  # every value of --model_name that means this family -> its prompt template
    model_types: tuple[str, ...]  # `model_type` of config.json; () = any causal model of transformers
    lora_targets: tuple[str, ...]  # module names; ("all-linear",) = every linear layer but the head
    tokenizer: str = "auto"  # how its text becomes ids: a reader of tokens.READERS
    told_by: str | None = None  # a file that a checkpoint of these model_types must hold, else it is another family's
    package: str | None = None  # of src/models, imported to teach transformers the classes it lacks
    prompt_apart: bool = False  # prompt and answer are limited each by itself
    answer_only: bool = False  # a prompt sees itself whole, so that only the answer can be learnt
    refused: tuple[tuple[str, tuple, str], ...] = ()  # key of config.json, its values (() = any), what to say of them
    engines: tuple[str, ...] = ("batch",)  # that answer for it (answering.ENGINES)
    draws: bool = True  # whether --do_sample works; False: the family generates by itself
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
        tokenizer="llama",
        told_by="tokenizer.model",
        engines=("batch", "fast", "vllm"),
    ),
    Family(
        name="chatglm",
        templates={"chatglm": "alpaca"},
        model_types=("chatglm",),
        lora_targets=("query_key_value",),
        tokenizer="chatglm",
        package="models.chatglm",
        prompt_apart=True,
        answer_only=True,
        own_prefix="transformer.prefix_encoder",
        refused=(
            ("padded_vocab_size", (), "is ChatGLM2 or ChatGLM3, another model under the same name; give chatglm-6b"),
            ("quantization_bit", (4, 8), "holds int4 or int8 weights; give chatglm-6b itself, and --bits 4 or 8"),
        ),
    ),
    Family(
        name="moss",
        templates={"moss": "moss"},
        model_types=("moss",),
        lora_targets=("qkv_proj",),
        tokenizer="moss",
        package="models.moss",
        refused=(
            ("wbits", (4, 8), "holds GPTQ's 4-bit or 8-bit weights; give moss-moon-003-sft itself, and --bits 4 or 8"),
        ),
    ),
    Family(
        name="cpm-bee",
        templates={"cpm-bee": "cpm-bee"},
        model_types=("cpmbee",),
        lora_targets=("project_q", "project_v"),
        tokenizer="cpm-bee",
        package="models.cpmbee",
        answer_only=True,
        draws=False,
    ),
    Family(
        name="auto",
        templates={"auto": "alpaca"},
        model_types=(),
        lora_targets=("all-linear",),
        engines=("batch", "fast", "vllm"),
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


def _has_layers(folder: Path) -> bool:
    """Whether the folder's weights are more than the tensors of a prefix encoder."""
    return any("prefix_encoder" not in name for file in model_files(folder)[1] for name in contents(file))


def find_family(model_path: str | Path, model_name: str | None = None) -> tuple[Family, str, str]:
    """The family of a checkpoint, the name it goes by, and why.

    `config.json` decides; `model_name` (one of NAMES, or None) chooses among the names of that family. A name of
    another family is a UserError, and so is a checkpoint that the family cannot read.
    """
    config = read_config(model_path)
    model_type = str(config.get("model_type", "")).lower()
    own = next((family for family in FAMILIES if _is_of(family, model_type, Path(model_path))), FAMILIES[-1])
    if model_name is not None and model_name not in NAMES:
        raise UserError(f"--model_name {model_name}: not a family; known: {', '.join(NAMES)} (or leave it out)")
    named = own if model_name is None else next(family for family in FAMILIES if model_name in family.templates)
    if own.model_types and not named.model_types:
        raise UserError(
            f"--model_name {model_name} contradicts {model_path}, a {own.name} checkpoint"
            + (f" with {own.told_by}" if own.told_by else "")
            + f"; drop --model_name, or give one of {', '.join(own.templates)}"
        )
    if named.model_types and model_type not in named.model_types:
        raise UserError(
            f"--model_name {model_name} contradicts {model_path}/config.json, whose model_type is {model_type!r}; "
            "drop --model_name to use what the checkpoint says, or give the checkpoint you meant"
        )
    for key, values, words in named.refused:
        if key in config and (not values or config[key] in values):
            raise UserError(f"--model_name_or_path {model_path} {words} ({key} {config[key]} in config.json)")
    if named.package:
        importlib.import_module(named.package)
    if model_name is None:
        return own, own.name, f"model_type {model_type} in config.json"
    return named, model_name, "--model_name"


def _is_of(family: Family, model_type: str, folder: Path) -> bool:
    return model_type in family.model_types and (family.told_by is None or (folder / family.told_by).is_file())


def may_run_code(family: Family, trusted: bool) -> bool:
    """Whether a checkpoint's own Python code may run: as --trust_remote_code says, unless nothing would need it."""
    if trusted and family.package:
        say(f"trust_remote_code: not needed, the code of family {family.name} is here ({family.package})")
    return trusted and not family.package


def choose_family(model_path: str | Path, model_args, run: dict | None = None) -> tuple[Family, str]:
    """Family and name of a base, said with their reason: a flag's, else that of `run` (run.json), else config.json's.

    --trust_remote_code in `model_args` is switched off where nothing would need it.
    """
    recorded = (run or {}).get("model_name")
    family, name, why = find_family(model_path, prefer("model_name", model_args.model_name, recorded))
    say(f"family: {family.name}, as {name} ({'run.json' if recorded == name else why})")
    model_args.trust_remote_code = may_run_code(family, model_args.trust_remote_code)
    return family, name


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
