"""An adapter of any kind that peft knows, put on a base by peft itself: on its empty shape first, to see that it fits.

The empty shape has no weights, so that whatever is wrong is said before the base is loaded, and in words of its own.
"""

import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import peft
import torch
from peft import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    PEFT_TYPE_TO_CONFIG_MAPPING,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.quantizers import AutoHfQuantizer

from checkpoints.adapters import as_peft_names, beyond_products, check_weights, read_adapter_config
from common.errors import UserError, say
from loading.precision import Precision
from loading.quantised import QUANTISATIONS
from loading.vocabulary import resize
from models.families import Family

FLAG = "--lora_weights"
CACHED = ("PREFIX_TUNING", "CARTRIDGE")  # kinds of learnt keys and values in front of a prompt's
UNSERVED = {  # kinds of adapters, and what they would need
    "LILY": "with it an answer depends on the records that are answered beside it",
    "MULTITASK_PROMPT_TUNING": "it answers by the number of a task, and records have none",
    "POLY": "it answers by the number of a task, and records have none",
    "SHADOW": "it runs a second model beside the base, and peft's generation with it does not work here",
    "XLORA": "it mixes several other adapters, which do not lie in its folder; give one of them",
}
# Kinds that peft multiplies with a base's quantised weights as if they were plain ones, and --bits.
NOT_OVER = {
    "DEFT": (4,),
    "DELORA": (8, 4),
    "HRA": (4,),
    "LOHA": (4,),
    "LOKR": (4,),
    "PEANUT": (4,),
    "SUPERTUNING": (8, 4),
}
TASKS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")  # whose adapters change the layers of the base alone


def empty_base(path: str | Path, precision: Precision | None = None, trust_remote_code: bool = False, rows: int = 0):
    """The model of a checkpoint folder without any weights (torch's device meta); None when config.json does not do.

    `precision`: with its bits, layers are those that it will be quantised to. `rows`: that its embedding has at least.
    """
    quantised = QUANTISATIONS[precision.bits] if precision else None
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            if quantised and quantised.config:
                options = quantised.config(precision.dtype, None)
                AutoHfQuantizer.from_config(options).preprocess_model(model, device_map=None)
            resize(model, rows)
        return model
    except Exception:  # noqa: BLE001 - somebody's own model code may fail in any way; loading itself will say why
        return None


def make_config(folder: Path, model) -> PeftConfig:
    """The configuration of an adapter for `model`, which may be empty; UserError for one that peft does not know."""
    settings = read_adapter_config(folder)
    file, kind = folder / "adapter_config.json", settings["peft_type"]
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(f"{file}: peft_type {kind} is no kind of adapter that peft {peft.__version__} knows")
    for name in ("enable_lora", "megatron_config"):  # of layers that no base here has
        if settings.get(name):
            raise UserError(f"{file}: {name} is not supported: it is for layers of another library than transformers")
    own = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    unknown = sorted(set(settings) - {field.name for field in fields(own) if field.init})
    if unknown and not next(model.parameters()).is_meta:
        say(f"adapter: settings of another version of peft, without effect: {', '.join(unknown)}")
    settings = {name: value for name, value in settings.items() if name not in (*unknown, "runtime_config")}
    if kind == "ADALORA" and not settings.get("total_step"):  # of training alone; peft before 0.14 did not ask for it
        settings["total_step"] = 1 + sum(settings.get(name) or 0 for name in ("tinit", "tfinal"))
    try:
        with quiet():
            config = own.from_peft_type(**own.check_kwargs(**settings))
    except Exception as error:
        raise UserError(f"{file}: peft {peft.__version__} does not take these settings: {line_of(error)}") from error
    if kind == "LORA" and hasattr(model, "lora_alphas") and not config.alpha_pattern:
        # Of 2023: its products were added to CPM-Bee's after those were divided, ours before (modeling.py).
        config.alpha_pattern = model.lora_alphas(config.lora_alpha, config.target_modules or ())
    config.inference_mode = True
    return config


def check_adapter(
    folder: Path,
    base,
    family: Family,
    precision: Precision,
    merge: bool = False,
    trust_remote_code: bool = False,
    rows: int = 0,
    flag: str = FLAG,
) -> None:
    """UserError, by its reason, for an adapter that is not of this base, or that cannot be served or merged here.

    `rows`: that the base's embedding will have at least; `flag`: with which the adapter was given. A base whose shape
    cannot be had from config.json, and the few kinds of adapters that are made of the base's weights, are looked at
    when they are loaded.
    """
    model = empty_base(base, precision, trust_remote_code, rows)
    if model is None:
        return
    config = make_config(folder, model)
    refuse_unserved(folder, config, family, model.config, precision.bits, flag)
    try:
        model = fit(folder, model, flag)
    except UserError as error:
        if precision.bits == 16 or config.peft_type != "LORA" or isinstance(error.__cause__, TypeError):
            raise
        model = fit(
            folder, empty_base(base, None, trust_remote_code, rows), flag
        )  # DoRA wants to see quantised numbers
    if merge and model and (config.is_prompt_learning or precision.bits == 16):
        merge_adapter(folder, model)


def fit(folder: Path, empty, flag: str = FLAG) -> PeftModel | None:
    """An empty model with an adapter that was found to fit it; None where that cannot be told without weights."""
    config = make_config(folder, empty)
    try:
        with quiet(), torch.device("meta"):
            model = wrap(empty, config)
    except Exception as error:  # whatever peft raises of a base and an adapter that do not go together
        if _lacks_weights(error):
            return None
        raise UserError(f"{unfit(folder, flag)}: {line_of(error)}") from error
    check_tensors(folder, model, as_peft_names(check_weights(folder)), flag)
    return model


def refuse_unserved(folder: Path, config: PeftConfig, family: Family, base, bits: int, flag: str = FLAG) -> None:
    """UserError for kinds of adapters that answers cannot be had with, here or from this family.

    `base`: the configuration of the base; `bits`: of its weights.
    """
    kind, why = str(config.peft_type.value), None
    if kind in UNSERVED:
        why = UNSERVED[kind]
    elif bits in NOT_OVER.get(kind, ()) or (bits == 8 and getattr(config, "layer_replication", None)):
        why = f"peft has no such layers over weights of {bits} bits; drop --bits {bits}"
    elif config.task_type not in TASKS:
        why = f"it was trained for the task {config.task_type}, not to write answers"
    elif config.is_prompt_learning and config.task_type != "CAUSAL_LM":
        why = f"its task_type is {config.task_type}, with which peft leaves a learnt prompt out; expected CAUSAL_LM"
    elif kind in CACHED and base.model_type not in family.prefix_types:
        why = f"the cache of model_type {base.model_type} takes no prefix of peft"
    elif config.is_prompt_learning and kind not in CACHED and not family.embeds:
        why = f"family {family.name} takes tokens only, and nothing learnt in their place"
    elif getattr(config, "layer_replication", None) and getattr(base, "layer_types", None):
        why = f"it repeats layers, and model_type {base.model_type} has layers of several kinds"
    elif getattr(config, "alora_invocation_tokens", None) and not family.draws:
        why = f"family {family.name} generates by itself, and does not look for alora_invocation_tokens"
    if why:
        raise UserError(f"{flag} {folder}: an adapter of kind {kind} cannot be served: {why}")


def wrap(model, config: PeftConfig) -> PeftModel:
    """`model` with a fresh adapter, of the class that peft loads a trained one into."""
    kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    if not hasattr(model, "prepare_inputs_for_generation"):  # layers alone (merging.shape_of)
        kind = PeftModel
    return kind(model, config)


def check_tensors(folder: Path, model: PeftModel, tensors: dict[str, torch.Tensor], flag: str = FLAG) -> list[str]:
    """UserError unless `tensors` are those that peft asks for on `model`, which may be empty, and of their sizes.

    Returns the names of those that would take the place of the base's own weights.
    """
    config, places = model.peft_config["default"], model.state_dict()
    pruned = config.rank_pattern if config.peft_type == "ADALORA" else None  # ranks: which ones were left, by layer
    with quiet():
        tensors = convert_peft_adapter_state_dict_for_transformers(model, config, tensors)
        if pruned:
            config.rank_pattern = None
        asked = get_peft_model_state_dict(model, save_embedding_layers=False)
        if pruned:
            config.rank_pattern = pruned
    for name, tensor in tensors.items():
        place = asked[name] if name in asked else places.get(name)
        sizes = [_without_rank(name, one.shape) if pruned else one.shape for one in (tensor, place) if one is not None]
        if len(set(sizes)) > 1:
            raise UserError(_other_size(folder, model, name, *sizes, flag))
    strange = [name for name in tensors if name not in asked and name not in places]
    missing = [name for name in asked if name not in tensors]
    if strange:
        layer, is_lora, _ = strange[0].removeprefix("base_model.model.").partition(".lora_")
        what = f"its file holds {len(strange)} tensors that its adapter_config.json does not ask for, e.g. {strange[0]}"
        if is_lora and layer not in dict(model.get_base_model().named_modules()):
            what = f"the base has no layer {layer}"
        raise UserError(f"{unfit(folder, flag)}: {what}")
    biases = [name for name in asked if name.endswith(".base_layer.bias")]
    if missing and missing == biases and getattr(config, "bias", "none") not in ("none", "all"):
        if next(model.parameters()).is_meta:  # said once
            say(
                f"warning: {folder}: its file lacks the biases that bias = {config.bias} means (peft 0.7 to 0.20 did "
                "not save them); the base's own are used, as by peft"
            )
    elif missing:
        raise UserError(
            f"{unfit(folder, flag)}: its file lacks {len(missing)} of the {len(asked)} tensors that its "
            f"adapter_config.json asks for on this base, e.g. {missing[0]}; it is incomplete, or of a smaller base"
        )
    return [name for name in tensors if name not in asked]


def _without_rank(name: str, size: torch.Size) -> torch.Size:
    """The size of a tensor of LoRA on one side of it, that of the layer."""
    return size[1:] if ".lora_A" in name else size[:1] if ".lora_B" in name else size[:0]


def _other_size(folder: Path, model: PeftModel, name: str, found: torch.Size, wanted: torch.Size, flag: str) -> str:
    """What to say of a tensor of another size than asked for."""
    base = model.get_base_model()
    ends = [getattr(base, f"get_{end}put_embeddings", lambda: None)() for end in ("in", "out")]
    ends = [end for end in ends if end is not None]
    layers = [layer for layer, module in base.named_modules() if any(module is end for end in ends)]
    vocabulary = ends[0].weight.shape[0] if ends else None
    other = [at for at in range(len(wanted)) if len(found) == len(wanted) and found[at] != wanted[at]]
    if len(other) == 1 and wanted[other[0]] == vocabulary and any(f".{layer}." in name for layer in layers):
        tokens = found[other[0]]
        return (
            f"{flag} {folder}: it was trained with a vocabulary of {tokens} tokens, and this base has "
            f"{vocabulary} ({name}). Give the base that it was trained on: where its script added tokens, the one with "
            f"these in it (transformers' resize_token_embeddings({tokens}), saved with the adapter's tokenizer)"
        )
    sizes = [" x ".join(map(str, size)) for size in (found, wanted)]
    return f"{unfit(folder, flag)}: {name} is {sizes[0]}, with this base and adapter_config.json it would be {sizes[1]}"


def unfit(folder: Path, flag: str = FLAG) -> str:
    """The beginning of what is said of an adapter and a base that do not go together."""
    trained_on = read_adapter_config(folder).get("base_model_name_or_path")
    return f"{flag} {folder} (trained on {trained_on or 'an unknown base'}) does not fit this base model"


def unusual_settings(settings: dict) -> list[str]:
    """The settings that peft knows and that make a LoRA adapter more than a product beside each layer, by name."""
    known = {field.name for field in fields(LoraConfig)}
    return [name for name in beyond_products(settings) if name in known]


def has_learnt_prompt(model) -> bool:
    """Whether an adapter of `model` puts something learnt in front of every prompt."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


def merge_adapter(folder: Path, model: PeftModel, flag: str = "--merge_lora"):
    """The base with the adapter added into its weights; UserError where peft cannot do that.

    Layers that share their weights, such as a head and an embedding, have their own afterwards where they are adapted:
    peft would add what is for one to all.
    """
    kind = model.active_peft_config.peft_type.value
    try:
        with quiet():
            _unshare(model)
            return model.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever type peft raises for its many kinds
        if _lacks_weights(error) and all(weight.is_meta for weight in model.parameters()):
            return None
        why = "it is no change of the base's weights" if isinstance(error, AttributeError) else line_of(error)
        instead = "; drop --merge_lora" if flag == "--merge_lora" else ""
        raise UserError(f"{flag}: the adapter {folder} ({kind}) cannot be merged: {why}{instead}") from error


def _unshare(model: PeftModel) -> None:
    """Give every adapted layer weights of its own, where another layer of the base has the same."""
    owners = Counter(id(one) for module in model.modules() for one in module._parameters.values())
    for layer in model.modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else torch.nn.Identity()
        for name, weight in base._parameters.items():
            if weight is not None and owners[id(weight)] > 1:
                if not weight.is_floating_point():
                    raise ValueError("several layers share its quantised weights")
                owners[id(weight)] -= 1
                base._parameters[name] = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)


def _lacks_weights(error: Exception) -> bool:
    """Whether an error of an empty model is about its emptiness."""
    return any(words in str(error).lower() for words in ("meta tensor", "register_meta"))


def line_of(error: Exception) -> str:
    """What peft says of it, in one line."""
    return " ".join((str(error) or type(error).__name__).split())[:300]


@contextmanager
def quiet():
    """Without peft's warnings: what matters of them is checked and said here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
