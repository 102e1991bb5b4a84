"""Load a base model, give it a LoRA adapter, save and check one."""

import json
import os
import re
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging

from utils.errors import UserError, say
from utils.families import own_code, read_config
from utils.memory import check_targets, linear_size
from utils.precision import Precision
from utils.quantised import use_plain_product
from utils.sharding import empty_model, share_buffers

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def load_base(
    path: str | Path,
    precision: Precision,
    device: torch.device | str,
    codec,
    trust_remote_code: bool = False,
    changes: dict | None = None,
    fresh: str | None = None,
    split: bool = False,
):
    """The causal language model of a checkpoint folder, on `device`, in the numbers of `precision`.

    Its generation settings come from `codec`, never from the repository: old ones stop at the wrong token.
    `device` "auto" spreads it over all cards (accelerate's device_map).
    `changes` are made to its config; a module that they add is called `fresh`: the files may lack it, and it is not
    quantised. `split`: it will be split over the processes' devices; until then it stays on the CPU, and all processes
    but the first get it without its weights.
    """
    read_config(path)  # refuses what is no model by itself, such as a delta
    options = {"dtype": precision.dtype, "trust_remote_code": trust_remote_code, **(changes or {})}
    # On short rows plain products beat torch's fused attention on a CPU (docs/log.md).
    spread = str(device) == "auto"
    if not (torch.cuda.is_available() if spread else torch.device(device).type != "cpu"):
        options["attn_implementation"] = "eager"
    if fresh:  # of another size, perhaps, where the base holds one
        options["ignore_mismatched_sizes"] = True
    if precision.bits != 16:
        options["quantization_config"] = _quantization(precision, fresh)
    if precision.bits != 16 or spread:
        options["device_map"] = "auto" if spread else {"": device}
    if split and int(os.environ.get("RANK", "0")) > 0:
        return _finish(empty_model(path, **options), codec, device, split)
    try:
        with own_code(path, trust_remote_code), _without_report(bool(fresh)):
            model, found = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        inside = ", ".join(sorted(p.name for p in Path(path).iterdir()))
        raise UserError(
            f"--model_name_or_path {path}: the weights cannot be loaded ({error}); found {inside}"
        ) from error
    names = sorted(name for name in found["missing_keys"] if not (fresh and name.startswith(f"{fresh}.")))
    if names:  # transformers would fill them with random numbers
        raise UserError(
            f"--model_name_or_path {path}: its files lack {len(names)} tensors that config.json asks for, e.g. "
            f"{names[0]}; download the checkpoint again"
        )
    if found["unexpected_keys"]:
        names = sorted(found["unexpected_keys"])
        message = f"its files hold {len(names)} tensors that config.json does not ask for, e.g. {names[0]}"
        if type(model).__module__.startswith("models."):  # of this project: every tensor that may be there is known
            raise UserError(f"--model_name_or_path {path}: {message}; take config.json and weights of one release")
        say(f"warning: {message}; they are left out")
    if wrong := [name for name, *_ in found["mismatched_keys"] if not (fresh and name.startswith(f"{fresh}."))]:
        raise UserError(
            f"--model_name_or_path {path}: {len(wrong)} tensors have other sizes than config.json says, e.g. "
            f"{wrong[0]}; take both of one release"
        )
    if spread:
        say_places(model)
    elif precision.bits == 16 and not split:
        model.to(device)
    return _finish(model, codec, device, split)


def _finish(model, codec, device, split: bool):
    """What a base needs besides its weights."""
    if split:
        share_buffers(model, torch.device(device))
    for module in model.modules():
        # On CPUs with AVX-512 bf16, bitsandbytes would repack weights in evaluation: only sizes that are multiples of
        # 64 work, and training afterwards is not foreseen.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if getattr(model, "is_loaded_in_8bit", False):
        use_plain_product(model)
    model.config.bos_token_id = codec.bos_id
    model.config.eos_token_id, model.config.pad_token_id = codec.eos_id, codec.pad_id
    model.generation_config = GenerationConfig(eos_token_id=codec.eos_id, pad_token_id=codec.pad_id, do_sample=False)
    return model


def say_places(model) -> None:
    """Say on which cards the parts of a spread base lie."""
    places = Counter(str(place) for place in getattr(model, "hf_device_map", {"": model.device}).values())
    slow = (
        " (what is not on a card makes every token slow)" if {"cpu", "disk"} & set(places) and len(places) > 1 else ""
    )
    say("device_map: " + ", ".join(f"{count} parts on {place}" for place, count in sorted(places.items())) + slow)


@contextmanager
def _without_report(quiet: bool):
    """No table of missing tensors from transformers, where they are missing on purpose."""
    before = logging.get_verbosity()
    if quiet:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _quantization(precision: Precision, fresh: str | None) -> BitsAndBytesConfig:
    skipped = [fresh, "lm_head"] if fresh else None  # None: the head alone
    if precision.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision.dtype,
    )


def limit_memory(max_memory_mb: int | None, device: torch.device) -> None:
    """Hold this process to `max_memory_mb` MB of its card; torch raises out-of-memory beyond."""
    if max_memory_mb is None:
        return
    if device.type != "cuda":
        say("max_memory_MB: no effect without a GPU")
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max_memory_mb * 2**20 / total), device)
    say(f"memory: at most {max_memory_mb} MB of the card's {total // 2**20} MB (--max_memory_MB)")


def add_lora(model, targets: tuple[str, ...], rank: int, alpha: int, dropout: float, autocast: bool = False):
    """`model` with a fresh adapter on the layers called `targets`; the adapter's weights are float32.

    `autocast`: the model will run under torch's autocast, which picks the numbers of every product by itself.
    """
    check_targets({name: size for name, module in model.named_modules() if (size := linear_size(module))}, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        alpha_pattern=model.lora_alphas(alpha, targets) if hasattr(model, "lora_alphas") else {},
        task_type="CAUSAL_LM",
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model = get_peft_model(model, config)
    if autocast:
        # peft would copy every input to float32 and autocast at once back to 16 bits: the same numbers, for more work.
        for module in model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
    return model


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


def load_adapter(model, folder: Path, merge: bool = False):
    """`model` with the trained adapter of `folder` (checked by `find_adapter`); `merge` adds it into the weights."""
    settings = read_adapter_config(folder)
    unknown = sorted(set(settings) - {field.name for field in fields(LoraConfig)})
    if settings.get("peft_type") == "LORA" and unknown:
        say(f"adapter: settings of another version of peft, without effect: {', '.join(unknown)}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unexpected keyword arguments")  # said above
            config = PeftConfig.from_pretrained(folder)
            if hasattr(model, "lora_alphas") and not config.alpha_pattern:
                # Of 2023: its products were added to CPM-Bee's after those were divided, ours before (modeling.py).
                config.alpha_pattern = model.lora_alphas(config.lora_alpha, config.target_modules)
            model = PeftModel.from_pretrained(model, folder, config=config)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"--lora_weights {folder} does not fit this base model: {error}") from error
    given, taken = set(check_weights(folder)), set(get_peft_model_state_dict(model, save_embedding_layers=False))
    for names, what in ((taken - given, "lacks"), (given - taken, "has, unasked by adapter_config.json,")):
        if names:
            raise UserError(
                f"--lora_weights {folder}: the file {what} {len(names)} tensors, e.g. {min(names)}; it is incomplete "
                "or not of this configuration"
            )
    if merge:
        return model.merge_and_unload()
    # As the base's other numbers: products in 32 bits, which peft would cast to and fro, cost a tenth of the speed.
    if model.dtype.itemsize == 2:
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.to(model.dtype)
    return model


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
        raise UserError(f"{file}: not a readable adapter ({error}); copy or train it again") from None
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


def training_device(use_cpu: bool) -> torch.device:
    """This process's card under torchrun, the first one otherwise, or the CPU."""
    if torch.cuda.is_available() and not use_cpu:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
