"""An adapter put on a base: a fresh one of LoRA, one to train on, or a trained one of any kind."""

import functools
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


def add_lora(
    model,
    targets: tuple[str, ...],
    rank: int,
    alpha: int,
    dropout: float,
    autocast: bool = False,
    saved: tuple[str, ...] = (),
):
    """`model` with a fresh adapter on the layers called `targets`; the adapter's weights are float32.

    `autocast`: the model will run under torch's autocast, which picks the numbers of every product by itself.
    `saved`: modules that are trained whole, as copies beside the base's own.
    """
    check_targets({name: size for name, module in model.named_modules() if (size := linear_size(module))}, targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        alpha_pattern=model.lora_alphas(alpha, targets) if hasattr(model, "lora_alphas") else {},
        modules_to_save=list(saved) or None,
        task_type="CAUSAL_LM",
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with quiet():  # a head that is the embedding, too, will be no longer
        model = get_peft_model(model, config)
    return _trainable(model, autocast)


def go_on_lora(model, folder: Path, dropout: float, autocast: bool = False):
    """`model` with the trained adapter of `folder`, to be trained on with `dropout`; see `add_lora`.

    UserError for an adapter that is not of this base.
    """
    config = make_config(folder, model)
    config.lora_dropout = dropout
    config.base_model_name_or_path, config.revision = model.name_or_path, None
    return _trainable(_put_on(model, folder, config, is_trainable=True)[0], autocast)


def _trainable(model, autocast: bool):
    """An adapter about to be trained: its weights in 32 bits; saved without weights of the base."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    # peft would save whole embeddings as well where they were made longer: those are among the trained modules.
    model.save_pretrained = functools.partial(model.save_pretrained, save_embedding_layers=False)
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
    config = make_config(folder, model)
    model, tensors = _put_on(model, folder, config)
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


def _put_on(model, folder: Path, config, **more):
    """`model` with an adapter as peft loads it, and the adapter's tensors by peft's names."""
    saved = check_weights(folder)
    tensors = as_peft_names(saved)
    try:
        with _named(tensors, folder if tensors.keys() == saved.keys() else None) as place, quiet():
            return PeftModel.from_pretrained(model, place, config=config, **more), tensors
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of whatever type peft raises for its many kinds
        raise UserError(f"{unfit(folder)}: {line_of(error)}") from error


@contextmanager
def _named(tensors: dict[str, torch.Tensor], folder: Path | None):
    """A folder from which peft reads `tensors` by these names: theirs, or for a while one of their own."""
    if folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, Path(place) / ADAPTER_FILES[0])
        yield place
