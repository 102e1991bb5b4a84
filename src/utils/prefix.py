"""P-Tuning v2's prefix: learnt keys and values in front of those of every layer of a frozen base.

A family whose model has a prefix encoder of its own names it (`own_prefix`); all others get peft's prefix tuning.
"""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch.nn import functional
from transformers import DynamicCache

from utils.errors import UserError
from utils.families import Family, read_config
from utils.loading import ADAPTER_FILES, check_weights, load_base
from utils.memory import Shape
from utils.pt_checkpoints import save_tensors, steps_in
from utils.records import write_lines
from utils.shards import contents, model_files, read, read_json

# The architectures of transformers that keep a prefix in their cache as peft makes it; each is tested.
SUPPORTED = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"),
    *("phi", "phi3", "stablelm", "olmo2", "granite", "glm", "glm4", "cohere", "smollm3", "starcoder2", "exaone4"),
    *("ernie4_5", "hunyuan_v1_dense", "gpt2", "gptj", "gpt_neo", "gpt_neox", "gpt_bigcode", "codegen", "bloom", "opt"),
    *("falcon", "moss"),
)
NO_RECOMPUTING = ("gpt2",)  # of them: gradient checkpointing loses the prefix
MOST_OF_A_PART = 2**25  # numbers: less than engine.py's reduce_bucket_size, above which DeepSpeed copies a gradient
OWN_FILE = "pytorch_model.bin"  # the published script's name


class Kind(NamedTuple):
    """Of what form a prefix is."""

    length: int
    projection: bool


class ReadOnlyCache(DynamicCache):
    """A prefix that every layer sees and none adds to, so that a layer may run twice (gradient checkpointing)."""

    def __init__(self, prefix: DynamicCache):
        super().__init__()
        self.layers = prefix.layers

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], dim=-2), torch.cat([layer.values, value_states], dim=-2)


class Wide(torch.nn.Module):
    """A linear layer whose weight is trained in parts of at most MOST_OF_A_PART numbers, and saved as one.

    DeepSpeed keeps up to two copies of the largest gradient beside it on the card: of the whole weight, which at
    4096 hidden units has 0.9 billion numbers, they would not fit where all else does.
    """

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        rows = max(1, MOST_OF_A_PART // linear.in_features)
        for number, part in enumerate(linear.weight.detach().split(rows)):
            self.register_parameter(f"part{number}", torch.nn.Parameter(part))
        self.bias = linear.bias

    def parts(self) -> list[torch.nn.Parameter]:
        return [parameter for name, parameter in self.named_parameters() if name != "bias"]

    def forward(self, x):
        return torch.cat([functional.linear(x, part) for part in self.parts()], dim=-1) + self.bias

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}weight"] = torch.cat([part.detach().cpu() for part in self.parts()])
        destination[f"{prefix}bias"] = self.bias.detach()


def split_wide(module: torch.nn.Module) -> None:
    """Put `Wide` in the place of every linear layer below `module` that has more numbers than a part may."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear) and child.weight.numel() > MOST_OF_A_PART:
            setattr(module, name, Wide(child))
        else:
            split_wide(child)


class Prefixed(torch.nn.Module):
    """A base with a prefix. The base is no submodule: whatever moves, casts or saves this module leaves it alone."""

    def __init__(self, base, encoder: torch.nn.Module, own_name: str | None = None, peft: PeftModel | None = None):
        super().__init__()
        self.encoder = encoder.float()
        self.length = 0 if peft is None else peft.active_peft_config.num_virtual_tokens  # columns of the mask to add
        self.__dict__.update(base=base, own_name=own_name, peft=peft)

    @property
    def config(self):
        return self.base.config

    @property
    def device(self):
        return self.base.device

    def train(self, mode: bool = True):
        super().train(mode)
        self.base.train(mode)
        return self

    def forward(self, input_ids, attention_mask, logits_to_keep):
        """Logits at the positions `logits_to_keep`."""
        more = {}
        if self.peft is not None:
            more["past_key_values"] = ReadOnlyCache(self.peft.get_prompt(len(input_ids)))
            attention_mask = functional.pad(attention_mask, (self.length, 0), value=1)
        out = self.base(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=logits_to_keep, **more
        )
        return out.logits

    def generate(self, input_ids, attention_mask, **more):
        """As of a model of transformers. To it, the prefix is a beginning that has been read already."""
        if self.peft is not None:
            input_ids = functional.pad(input_ids, (self.length, 0), value=more["pad_token_id"])
            attention_mask = functional.pad(attention_mask, (self.length, 0), value=1)
            more["past_key_values"] = self.peft.get_prompt(len(input_ids))
        return self.base.generate(input_ids=input_ids, attention_mask=attention_mask, **more)[:, self.length :]

    def recompute(self) -> None:
        """Gradient checkpointing: a layer's numbers are computed again instead of kept."""
        self.base.gradient_checkpointing_enable({"use_reentrant": False})
        for module in self.base.modules() if self.peft is not None else ():
            if hasattr(module, "_can_checkpoint_with_cache"):
                module._can_checkpoint_with_cache = True  # ReadOnlyCache can be read twice


def check_supported(family: Family, model_path) -> None:
    """UserError for an architecture that P-Tuning cannot be used with here."""
    kind = read_config(model_path).get("model_type")
    if not family.own_prefix and kind not in SUPPORTED:
        raise UserError(
            f"--model_dir {model_path}: P-Tuning does not work with model_type {kind!r}, whose cache takes no prefix "
            f"of peft; it does with {', '.join(SUPPORTED)}. Use src/test_finetune.py (LoRA) for this base"
        )


def can_recompute(family: Family, model_path) -> bool:
    return bool(family.own_prefix) or read_config(model_path).get("model_type") not in NO_RECOMPUTING


def count_weights(shape: Shape, kind: Kind) -> int:
    """Number of the prefix's trained weights; `shape.cached` numbers are kept of a token in all layers."""
    if not kind.projection:
        return kind.length * shape.cached
    width = shape.cached // (2 * shape.layers)
    return kind.length * width + width * (width + 1) + (width + 1) * shape.cached


def load_with_prefix(path, family: Family, kind: Kind, precision, device, codec, trust_remote_code=False) -> Prefixed:
    """The base, frozen, with a fresh prefix in 32 bits."""
    changes = kind_settings(kind) if family.own_prefix else None
    base = load_base(path, precision, device, codec, trust_remote_code, changes, family.own_prefix)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    if family.own_prefix:
        encoder = base.get_submodule(family.own_prefix)
        model = Prefixed(base, encoder, family.own_prefix)
    else:
        settings = PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=kind.length, prefix_projection=kind.projection
        )
        peft = get_peft_model(base, settings)
        model = Prefixed(base, peft.prompt_encoder["default"].to(device), peft=peft)
    for module in model.encoder.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    split_wide(model.encoder)
    return model.requires_grad_(True)


def kind_settings(kind: Kind) -> dict:
    return {"pre_seq_len": kind.length, "prefix_projection": kind.projection}


def save_prefix(model: Prefixed, base_path, kind: Kind, folder: Path) -> None:
    """The prefix alone. Of a model's own encoder: its tensors by their full names, and the base's config with it."""
    if not all(parameter.isfinite().all() for parameter in model.encoder.parameters()):
        raise UserError("the prefix holds NaN or infinity, and is not saved; lower --learning_rate, or use --bf16")
    if model.peft is not None:
        model.peft.save_pretrained(folder)
        return
    save_tensors(named(model), folder / OWN_FILE)
    config = read_config(base_path) | kind_settings(kind)
    write_lines(folder / "config.json", [json.dumps(config, ensure_ascii=False, indent=2)])


def named(model: Prefixed) -> dict[str, torch.Tensor]:
    """The tensors of a model's own encoder by their names in the whole model."""
    return {f"{model.own_name}.{name}": tensor.detach().cpu() for name, tensor in model.encoder.state_dict().items()}


def check_saved_prefix(model: Prefixed, folder: Path) -> None:
    """UserError unless the folder holds what the model holds."""
    if model.peft is not None:
        live = {"prompt_embeddings": model.peft.get_prompt_embedding_to_save("default")}
        saved = check_weights(folder)
    else:
        live, saved = named(model), read_own(folder, model.own_name)
    if live.keys() != saved.keys() or not all(torch.equal(live[name], saved[name]) for name in live):
        raise UserError(f"{folder}: the saved prefix differs from the trained one; is the disk sound?")


def find_prefix(folder: str | Path, family: Family, shape: Shape | None) -> Kind:
    """The form of the prefix that a checkpoint's folder holds; UserError when it holds none, or one of another base."""
    folder = Path(folder)
    asked = f"--model_dir {folder}"
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
        settings = read_json(folder / "adapter_config.json")
        if settings.get("peft_type") != "PREFIX_TUNING":
            raise UserError(
                f"{asked}: an adapter of peft's type {settings.get('peft_type')}, expected PREFIX_TUNING; an adapter "
                "of LoRA is for src/inference.py --lora_weights"
            )
        kind, found = Kind(settings["num_virtual_tokens"], False), check_weights(folder)
    if not all(tensor.isfinite().all() for tensor in found.values()):
        raise UserError(f"{asked}: the prefix holds NaN or infinity; take an earlier checkpoint")
    count = sum(tensor.numel() for tensor in found.values())
    if shape and count != count_weights(shape, kind):
        raise UserError(
            f"{asked}: its prefix has {count:,} weights, for this base it would have {count_weights(shape, kind):,}; "
            "it was trained on another base"
        )
    return kind


def load_trained(path, family: Family, kind: Kind, folder, precision, device, codec, trust_remote_code=False):
    """The base with the trained prefix of `folder` (checked by `find_prefix`)."""
    changes = kind_settings(kind) if family.own_prefix else None
    base = load_base(path, precision, device, codec, trust_remote_code, changes, family.own_prefix)
    if not family.own_prefix:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unexpected keyword arguments")  # of another version of peft
            try:
                peft = PeftModel.from_pretrained(base, folder)
            except (RuntimeError, ValueError, TypeError, KeyError) as error:
                raise UserError(f"--model_dir {folder} does not fit this base model: {error}") from error
        return Prefixed(base, peft.prompt_encoder["default"].to(device), peft=peft)
    model = Prefixed(base, base.get_submodule(family.own_prefix), family.own_prefix)
    found = {name[len(family.own_prefix) + 1 :]: tensor for name, tensor in read_own(folder, family.own_prefix).items()}
    try:
        model.encoder.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    except RuntimeError as error:
        raise UserError(f"--model_dir {folder} does not fit this base model: {error}") from error
    return model


def has_own_files(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(file.is_file() for file in model_files(folder)[1])


def has_peft_files(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and any((folder / name).is_file() for name in ADAPTER_FILES)


def read_own(folder: str | Path, own_name: str) -> dict[str, torch.Tensor]:
    """The tensors of a model's own encoder, out of files that may hold the whole model too."""
    stored = {name: at for file in model_files(Path(folder))[1] for name, at in contents(file).items()}
    return {name: read(name, at) for name, at in stored.items() if name.startswith(f"{own_name}.")}


def nearby_steps(folder: str | Path) -> str:
    """What to type instead: the checkpoints in the folder, or beside it."""
    folder = Path(folder)
    for place in (folder, folder.parent):
        if steps := steps_in(place):
            return f"{place} holds the steps {', '.join(path.name for _, path in steps)}"
    return f"no checkpoint global_step-N in {folder} or beside it"
