"""P-Tuning v2's prefix: learnt keys and values in front of those of every layer of a frozen base.

A family whose model has a prefix encoder of its own names it (`own_prefix`); all others get peft's prefix tuning.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch.nn import functional
from transformers import DynamicCache

from checkpoints.adapters import check_weights
from checkpoints.config import read_config
from checkpoints.prefixes import OWN_FILE, Kind, kind_settings, read_own, save_tensors
from common.errors import UserError
from common.files import write_lines
from loading.adapted import make_config
from loading.base import load_base, refuse_broken
from models.families import FAMILIES, Family
from ops.answer_loss import by_pieces, head_is_apart

# Numbers: less than the reduce_bucket_size of training/deepspeed_engine.py, above which DeepSpeed copies a gradient.
MOST_OF_A_PART = 2**25


class ReadOnlyCache(DynamicCache):
    """A prefix that every layer sees and none adds to, so that a layer may run twice (gradient checkpointing)."""

    def __init__(self, prefix: DynamicCache):
        super().__init__()
        self.layers = prefix.layers

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        layer = self.layers[layer_idx]
        return torch.cat([layer.keys, key_states], dim=-2), torch.cat([layer.values, value_states], dim=-2)


class Wide(torch.nn.Module):
    """A linear layer whose weight is trained in parts of at most `most` numbers, and saved as one.

    DeepSpeed keeps up to two copies of the largest gradient beside it on the card: of the whole weight, which at
    4096 hidden units has 0.9 billion numbers, they would not fit where all else does.
    """

    def __init__(self, linear: torch.nn.Linear, most: int):
        super().__init__()
        rows = max(1, most // linear.in_features)
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


def split_wide(module: torch.nn.Module, most: int) -> None:
    """Put `Wide` in the place of every linear layer below `module` that has more numbers than a part may."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear) and child.weight.numel() > most:
            setattr(module, name, Wide(child, most))
        else:
            split_wide(child, most)


class Prefixed(torch.nn.Module):
    """A base with a prefix. The base is no submodule: whatever moves, casts or saves this module leaves it alone."""

    def __init__(self, base, encoder: torch.nn.Module, own_name: str | None = None, peft: PeftModel | None = None):
        super().__init__()
        self.encoder = encoder.float()
        self.length = 0 if peft is None else peft.active_peft_config.num_virtual_tokens  # columns of the mask to add
        self.__dict__.update(base=base, own_name=own_name, peft=peft)
        self.head_is_apart = head_is_apart(base)

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

    def forward(self, input_ids, attention_mask, logits_to_keep, shift_labels):
        """The sum, in 32 bits, of the cross entropy at the positions `logits_to_keep`, labelled by `shift_labels`."""
        learnt = {"labels": shift_labels, "shift_labels": shift_labels, "num_items_in_batch": 1}
        with by_pieces(self.base) if self.head_is_apart else nullcontext():
            return self.read(input_ids, attention_mask, logits_to_keep=logits_to_keep, **learnt).loss

    def read(self, input_ids, attention_mask, **more):
        """What the base makes of rows behind the prefix."""
        if self.peft is not None:
            more["past_key_values"] = ReadOnlyCache(self.peft.get_prompt(len(input_ids)))
            attention_mask = functional.pad(attention_mask, (self.length, 0), value=1)
        return self.base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more)

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
    if not family.own_prefix and kind not in family.prefix_types:
        known = dict.fromkeys(one for family in reversed(FAMILIES) for one in family.prefix_types)
        raise UserError(
            f"--model_name_or_path {model_path}: P-Tuning does not work with model_type {kind!r}, whose cache takes no "
            f"prefix of peft; it does with {', '.join(known)}. Use src/test_finetune.py (LoRA) for this base"
        )


def can_recompute(family: Family, model_path) -> bool:
    """Whether gradient checkpointing works with a prefix in front of this base."""
    return bool(family.own_prefix) or read_config(model_path).get("model_type") not in family.prefix_keeps


def load_with_prefix(
    path,
    family: Family,
    kind: Kind,
    precision,
    device,
    codec,
    trust_remote_code: bool = False,
    most_of_a_part: int = MOST_OF_A_PART,
) -> Prefixed:
    """The base, frozen, with a fresh prefix in 32 bits; of a larger weight `most_of_a_part` numbers are a part."""
    changes = kind_settings(kind) if family.own_prefix else None
    base = load_base(path, precision, device, codec, trust_remote_code, changes, family.own_prefix)
    refuse_broken(base, path, family.own_prefix)
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
    split_wide(model.encoder, most_of_a_part)
    return model.requires_grad_(True)


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


def load_trained(path, family: Family, kind: Kind, folder, precision, device, codec, trust_remote_code=False):
    """The base with the trained prefix of `folder` (checked by `find_prefix`)."""
    changes = kind_settings(kind) if family.own_prefix else None
    base = load_base(path, precision, device, codec, trust_remote_code, changes, family.own_prefix)
    if not family.own_prefix:
        config = make_config(Path(folder), base)
        try:
            peft = PeftModel.from_pretrained(base, folder, config=config)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder}: the prefix does not fit this base model: {error}") from error
        return Prefixed(base, peft.prompt_encoder["default"].to(device), peft=peft)
    model = Prefixed(base, base.get_submodule(family.own_prefix), family.own_prefix)
    found = {name[len(family.own_prefix) + 1 :]: tensor for name, tensor in read_own(folder, family.own_prefix).items()}
    try:
        model.encoder.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    except RuntimeError as error:
        raise UserError(f"{folder}: the prefix does not fit this base model: {error}") from error
    return model
