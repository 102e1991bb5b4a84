"""An adapter put on a base: a fresh one of LoRA to train, or a trained one of any kind."""

import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from checkpoints.adapters import ADAPTER_FILES, as_peft_names, check_weights
from common.errors import UserError, say
from loading.adapted import check_tensors, line_of, make_config, merge_adapter, quiet, unfit
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
    """`model` with the trained adapter of `folder`, as peft loads it; `merge` adds it into the weights.

    UserError for an adapter that is not of this base (see `loading.adapted.check_adapter`).
    """
    config, saved = make_config(folder, model), check_weights(folder)
    tensors = as_peft_names(saved)
    try:
        with _named(tensors, folder if tensors.keys() == saved.keys() else None) as place, quiet():
            model = PeftModel.from_pretrained(model, place, config=config)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever type peft raises for its many kinds
        raise UserError(f"{unfit(folder)}: {line_of(error)}") from error
    if own := check_tensors(folder, model, tensors):
        name = own[0].removeprefix("base_model.model.")
        say(f"adapter: it brings {len(own)} weights of the base along, e.g. {name}, which take the place of these")
    if config.is_prompt_learning:  # said at every prompt: they follow from what is in front
        warnings.filterwarnings("ignore", message="Position ids are not supported")
    if merge:
        return merge_adapter(folder, model)
    # As the base's other numbers: products in 32 bits, which peft would cast to and fro, cost a tenth of the speed.
    # What DoRA divides by stays exact.
    if model.dtype.itemsize == 2 and config.peft_type == "LORA" and not config.use_dora:
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.to(model.dtype)
    return model


@contextmanager
def _named(tensors: dict[str, torch.Tensor], folder: Path | None):
    """A folder from which peft reads `tensors` by these names: theirs, or for a while one of their own."""
    if folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, Path(place) / ADAPTER_FILES[0])
        yield place
