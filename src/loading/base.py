"""A base model from its checkpoint folder, on its device, in the chosen numbers."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from checkpoints.config import pad_beyond
from checkpoints.family import own_code
from checkpoints.stored import why_unread
from common.errors import UserError, say
from common.processes import this_process
from loading.fsdp import empty_model, share_buffers
from loading.precision import Precision
from loading.quantised import QUANTISATIONS, Quantisation
from loading.vocabulary import grow


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
    changes = {**pad_beyond(path), **(changes or {})}  # which reads the config: what is no model by itself is refused
    options = {"dtype": precision.dtype, "trust_remote_code": trust_remote_code}
    # On short rows plain products beat torch's fused attention on a CPU (docs/log.md).
    spread = str(device) == "auto"
    if not (torch.cuda.is_available() if spread else torch.device(device).type != "cpu"):
        options["attn_implementation"] = "eager"
    if fresh:  # of another size, perhaps, where the base holds one
        options["ignore_mismatched_sizes"] = True
    quantised = QUANTISATIONS[precision.bits]
    if quantised.config:  # skipped None: the head alone
        options["quantization_config"] = quantised.config(precision.dtype, [fresh, "lm_head"] if fresh else None)
    if quantised.config or spread:
        options["device_map"] = "auto" if spread else {"": device}
    if split and this_process().rank > 0:
        return _finish(empty_model(path, **options), codec, device, split, quantised)
    try:
        options |= {"output_loading_info": True, "generation_config": GenerationConfig()}  # the folder's is not read
        with own_code(path, trust_remote_code), _without_report(bool(fresh)):
            model, found = AutoModelForCausalLM.from_pretrained(path, **options, **changes)
    except UserError:
        raise
    except Exception as error:  # what lies in the folder reaches code that raises anything
        inside = ", ".join(sorted(p.name for p in Path(path).iterdir()))
        reason = why_unread(error)
        if "ignore_mismatched_sizes" in reason:
            reason = "tensors have other sizes than config.json says, see the table above; take both of one release"
        raise UserError(
            f"--model_name_or_path {path}: the weights cannot be loaded ({reason}); found {inside}"
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
    elif not quantised.config and not split:
        model.to(device)
    return _finish(model, codec, device, split, quantised)


def refuse_broken(model, path: str | Path, fresh: str | None = None) -> None:
    """UserError for a weight of a base with NaN or infinity in it, with which no loss would be a number.

    An embedding's rows may hold such numbers: those of tokens that no text has. `fresh`: as in `load_base`.
    """
    rows, head = model.get_input_embeddings(), model.get_output_embeddings()
    spared = None if head is None or rows.weight is head.weight else rows.weight
    for name, weight in model.named_parameters():
        if fresh and name.startswith(f"{fresh}."):
            continue
        if weight is not spared and weight.is_floating_point() and not weight.isfinite().all():
            raise UserError(f"--model_name_or_path {path}: {name} holds NaN or infinity; download it again")


def _finish(model, codec, device, split: bool, quantised: Quantisation):
    """What a base needs besides its weights."""
    grow(model, codec.pieces_before)
    if split:
        share_buffers(model, torch.device(device))
    for module in model.modules():
        # On CPUs with AVX-512 bf16, bitsandbytes would repack weights in evaluation: only sizes that are multiples of
        # 64 work, and training afterwards is not foreseen.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if quantised.use_product:
        quantised.use_product(model)
    model.config.bos_token_id = codec.bos_id
    model.config.eos_token_id, model.config.pad_token_id = codec.eos_id, codec.pad_id
    model.generation_config = GenerationConfig(eos_token_id=codec.eos_id, pad_token_id=codec.pad_id, do_sample=False)
    return model


def say_places(model) -> None:
    """Say on which cards the parts of a spread base lie."""
    places = Counter(str(place) for place in getattr(model, "hf_device_map", {"": model.device}).values())
    slow = " (what is not on a GPU makes every token slow)" if {"cpu", "disk"} & set(places) and len(places) > 1 else ""
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
