"""What an adapter makes of the weights of its base: peft's own merging of one layer at a time, never of a model.

The adapter lies on a base without weights. Those of a layer are read, merged and handed on, and are gone again.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import Parameter

from checkpoints.adapters import (
    ADAPTER_FILES,
    PLAIN_STARTS,
    as_peft_names,
    beyond_products,
    check_weights,
    has_adapter,
    read_adapter_config,
)
from checkpoints.stored import Stored
from common.errors import UserError
from loading.adapted import empty_base, fit, make_config, merge_adapter, quiet, unfit, wrap

FLAG = "--path_adapter"
KINDS = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "HRA", "MISS", "VERA", "TRAINABLE_TOKENS")
SERVED = ("trainable_token_indices",)  # of the settings that make LoRA more than a product beside a layer
NOTHING = torch.zeros(())  # the storage of every weight of a base without weights
SAVED = ".modules_to_save.default."


class Change(NamedTuple):
    """What a merge makes of a base."""

    makers: dict[str, Callable]  # tensor -> what makes it, of a function that reads one of the base's by name
    untied: dict[str, str]  # tensor that the base has not, for it has the weights of another -> the other
    layers: int  # adapted ones
    longer: dict[str, tuple[int, ...]]  # tensors that get rows for new tokens -> their sizes


def plan_merge(folder: Path, path_base: str, base: dict[str, Stored], rows: int = 0) -> Change:
    """What the adapter of `folder` makes of the tensors `base`, which lie at `path_base`.

    `rows`: that the embedding has at least, for tokens that the adapter brings along.

    UserError for an adapter that is not of this base, and by name for what cannot be merged exactly.
    """
    if not has_adapter(folder):
        raise UserError(
            f"{FLAG} {folder}: no adapter there (expected adapter_config.json and {' or '.join(ADAPTER_FILES)})"
        )
    _refuse_unknown(folder, read_adapter_config(folder))
    tensors = as_peft_names(check_weights(folder))

    def empty():
        return empty_base(path_base, rows=rows) or shape_of(base, tensors)

    fitted = fit(folder, empty(), FLAG)
    if fitted is None:
        raise UserError(f"{FLAG} {folder}: peft makes this adapter of the base's weights; merge it with peft")
    if getattr(fitted.active_peft_config, "target_parameters", None):  # as transformers keeps experts today
        raise UserError(f"{FLAG} {folder}: it is on experts, which lie together in one tensor; merge it with peft")
    merge_adapter(folder, fitted, FLAG)
    model = empty()
    weights = _hollow(model)
    short = f"{getattr(model, 'base_model_prefix', '')}."  # that the files of some old bases leave out
    own = {name: file for name in weights for file in (name, name.removeprefix(short)) if file in base}
    twins = {id(weight): own[name] for name, weight in reversed(weights.items()) if name in own}
    sources = {name: own.get(name) or twins.get(id(weight)) for name, weight in weights.items()}
    adapted = _load_onto(model, folder, tensors)
    makers, layers = _makers(adapted, weights, sources)
    longer = {}
    for name in makers:
        size = tuple(weights[name].shape)
        at = base.get(sources[name])
        if (
            at is not None
            and makers[name].func is _bring
            and at.shape[1:] == size[1:]
            and at.shape[0] < size[0] == rows
        ):
            longer[own.get(name, name)] = size
        elif at is None or at.shape != size:
            raise UserError(
                f"{unfit(folder, FLAG)}: {name} is {size}, in the base {at.shape if at else 'missing'}; give the base "
                "that it was trained on"
            )
    changed = {id(weights[name]) for name in makers}
    untied = {name: sources[name] for name in weights if name not in own and id(weights[name]) in changed}
    return Change({own.get(name, name): maker for name, maker in makers.items()}, untied, layers, longer)


def shape_of(base: dict[str, Stored], tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The layers that tensors of these names and shapes belong to, without weights: of a base with code of its own.

    Embeddings and heads are adapted by name alone, never as one of all linear layers.
    """
    adapted = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in tensors}
    root = torch.nn.Module()
    for name, at in base.items():
        path, _, part = name.rpartition(".")
        linear = part == "weight" and len(at.shape) == 2
        if linear and any(word in path for word in ("embed", "wte", "lm_head", "output_layer")):
            linear = path in adapted
        parent = root
        *parents, last = path.split(".")
        for step in parents:
            if not hasattr(parent, step):
                parent.add_module(step, torch.nn.Module())
            parent = getattr(parent, step)
        if linear and f"base_model.model.{path}.lora_embedding_A" in tensors:
            parent.add_module(last, torch.nn.Embedding(*at.shape, device="meta"))
        elif linear:
            outputs, inputs = at.shape
            parent.add_module(last, torch.nn.Linear(inputs, outputs, f"{path}.bias" in base, device="meta"))
        elif not hasattr(getattr(parent, last, None), part):
            if not hasattr(parent, last):
                parent.add_module(last, torch.nn.Module())
            getattr(parent, last).register_parameter(part, Parameter(torch.empty(at.shape, device="meta")))
    return root


def _hollow(model) -> dict[str, Parameter]:
    """Give an empty model weights that take no memory, on the CPU; they by name, shared ones by each of theirs."""
    made = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                wide = Parameter(NOTHING.expand(weight.shape), requires_grad=False)
                module._parameters[name] = made.setdefault(id(weight), wide)
    return dict(model.named_parameters(remove_duplicate=False))


def _is_hollow(weight: torch.Tensor) -> bool:
    return weight.data_ptr() == NOTHING.data_ptr()


def _load_onto(model, folder: Path, tensors: dict[str, torch.Tensor]) -> PeftModel:
    """The hollow `model` with the adapter; what of the base's own weights it brings along is hollow no more."""
    with quiet():
        adapted = wrap(model, make_config(folder, model))
        for name, weight in adapted.named_parameters(remove_duplicate=False):
            if _is_hollow(weight) and (name in tensors or SAVED in name):
                weight.data = torch.zeros(weight.shape)
        set_peft_model_state_dict(adapted, tensors)
    return adapted


def _makers(adapted: PeftModel, weights: dict[str, Parameter], sources: dict[str, str]) -> tuple[dict, int]:
    """What makes each tensor that the adapter changes, by its name in the model; the number of adapted layers."""
    makers, layers = {}, 0
    for path, module in adapted.get_base_model().named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layers += 1
        path = path.removesuffix(".token_adapter")
        for part, weight in module.get_base_layer()._parameters.items():
            if weight is not None:
                makers[f"{path}.{part}"] = partial(_merge, module, part, path, sources)
    for name, weight in adapted.get_base_model().named_parameters():
        if SAVED in name:
            makers[name.replace(SAVED, ".")] = partial(_bring, weight)
    for name, weight in weights.items():
        if name not in makers and not _is_hollow(weight):
            makers[name] = partial(_bring, weight)
    return makers, layers


def _bring(weight: Parameter, read: Callable) -> torch.Tensor:
    return weight.detach()


@torch.no_grad()
def _merge(layer: BaseTunerLayer, part: str, path: str, sources: dict[str, str], read: Callable) -> torch.Tensor:
    """`part` (weight or bias) of one layer with the adapter added, in 32 bits or wider."""
    base = layer.get_base_layer()
    kept = dict(base._parameters)
    try:
        for name, weight in kept.items():
            if weight is not None:
                whole = read(sources[f"{path}.{name}"]) if _is_hollow(weight) else weight.detach()
                wide = torch.promote_types(whole.dtype, torch.float32)
                base._parameters[name] = Parameter(whole.to(wide, copy=True), requires_grad=False)
        layer.merged_adapters.clear()
        layer.merge()
        return base._parameters[part].detach()
    finally:
        base._parameters.update(kept)


def _refuse_unknown(folder: Path, settings: dict) -> None:
    """UserError for kinds and settings with which a merge cannot be made, or not known to be exact."""
    kind = settings["peft_type"]
    if kind not in KINDS:
        raise UserError(f"{FLAG} {folder}: an adapter of kind {kind}; only {', '.join(KINDS)} can be merged")
    found = [name for name in beyond_products(settings) if name not in SERVED] if kind == "LORA" else []
    if settings.get("init_lora_weights") not in PLAIN_STARTS:
        found.append("init_lora_weights")
    if found:
        values = ", ".join(f"{name} = {settings[name]}" for name in found)
        raise UserError(f"{FLAG} {folder}: {values} is not supported here; merge this adapter with peft")
