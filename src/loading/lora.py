"""A LoRA adapter put on a base: a fresh one to train, or a trained one."""

import warnings
from dataclasses import fields
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from checkpoints.adapters import check_weights, read_adapter_config
from common.errors import UserError, say
from loading.shape import check_targets, linear_size


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
