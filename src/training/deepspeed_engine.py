"""DeepSpeed: its configuration, its processes, and what of it a checkpoint must hold. Imported by P-Tuning only.

The engine is given the prefix alone, in 32 bits: it owns the gradients' accumulation, their average over processes,
their norm, the scale of the loss and the optimizer. The base, in whatever numbers, is out of its sight.
"""

import json
import logging
import os
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from common.errors import UserError
from common.machine import has_cuda
from common.processes import LAUNCH, this_process

# Sections and settings of DeepSpeed's configuration that flags decide.
FLAGS = {
    "train_batch_size": "--train_batch_size, --gradient_accumulation_steps and the number of processes",
    "train_micro_batch_size_per_gpu": "--train_batch_size",
    "gradient_accumulation_steps": "--gradient_accumulation_steps",
    "gradient_clipping": "--max_grad_norm",
    "optimizer": "--learning_rate and --weight_decay",
    "scheduler": "--lr_scheduler_type and --warmup_steps",
    "fp16": "--fp16",
    "bf16": "--bf16",
    "torch_autocast": "--fp16 and --bf16",
    "amp": "--fp16 and --bf16",
}
FIRST_SCALE, RAISE_AFTER = 2.0**16, 1000  # of the loss, in float16; steps without overflow until it doubles


def make_config(args) -> dict:
    """DeepSpeed's configuration: this project's, with the settings of --deepspeed CONFIG.json over it."""
    config = {
        "train_micro_batch_size_per_gpu": args.train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "gradient_clipping": args.max_grad_norm,
        "zero_optimization": {
            "stage": 1,
            "offload_optimizer": {"device": "cpu", "pin_memory": False},
            "reduce_bucket_size": 50_000_000,  # numbers; the default's buffer alone would take 2 GB of the card
        },
        # torch's AdamW, which works on a CPU too, needs no compiler as DeepSpeed's own does.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": sys.maxsize,
    }
    if not args.deepspeed:
        return config
    asked = read_config_file(args.deepspeed)
    if decided := [name for name in FLAGS if name in asked and asked[name] not in ("auto", config.get(name))]:
        raise UserError(
            f"--deepspeed {args.deepspeed}: {decided[0]} cannot be set there: {FLAGS[decided[0]]} decide it; remove it"
        )
    asked = {name: value for name, value in asked.items() if name not in FLAGS}
    zero = config["zero_optimization"] | asked.get("zero_optimization", {})
    if zero["stage"] not in (1, 2):
        raise UserError(
            f"--deepspeed {args.deepspeed}: zero_optimization.stage {zero['stage']}: expected 1 or 2 (the base is not "
            "split, only the optimizer's state)"
        )
    return {**config, **asked, "zero_optimization": zero}


def read_config_file(path: str) -> dict:
    if not Path(path).is_file():
        raise UserError(f"--deepspeed {path}: no such file; give DeepSpeed's configuration in JSON, or drop it")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--deepspeed {path}: not JSON ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("zero_optimization", {}), dict):
        raise UserError(f"--deepspeed {path}: expected a JSON object, and in it zero_optimization another one")
    return found


@contextmanager
def processes():
    """The processes of a run, joined; a script started by python alone is one. Yields the module deepspeed."""
    before = {name: os.environ.get(name) for name in LAUNCH}
    if not has_cuda():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not this_process().launched:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(zip(LAUNCH, ("0", "0", "1", "127.0.0.1", str(port)), strict=True))
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__ = {}  # else it looks for a compiler, and on a CPU compiles what gloo does as well
    try:
        deepspeed.init_distributed(dist_backend="nccl" if has_cuda() else "gloo", verbose=False)
        yield deepspeed
    finally:
        if torch.distributed.is_initialized():
            deepspeed.comm.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def make_engine(deepspeed, model, args):
    """DeepSpeed's engine around what is trained of `model`."""
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=args.learning_rate,
        weight_decay=args.weight_decay,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=make_config(args))
    if args.precision.name == "float16":
        scale_loss(engine)
    return engine


def scale_loss(engine) -> None:
    """Let the engine scale the loss: in float16 small gradients of the base's numbers would become 0.

    DeepSpeed does so by itself only when the trained weights are float16 too. These are float32; the scale is applied,
    lowered after an overflow (whose step is left out) and raised again by the engine's optimizer all the same.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    engine.optimizer.loss_scaler = DynamicLossScaler(
        init_scale=FIRST_SCALE,
        scale_window=RAISE_AFTER,
        min_scale=1,
        delayed_shift=1,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )
    engine.optimizer.dynamic_loss_scale = True


SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what changes in a DynamicLossScaler


def state_of(engine) -> dict:
    """What this process needs to go on: its part of the weights and of AdamW's state, the scale, random numbers.

    DeepSpeed's own checkpoints are not used: reading one would run whatever code a file holds (pickle).
    """
    zero = engine.optimizer
    return {
        "weights": [part.detach().clone() for part in zero.single_partition_of_fp32_groups],
        "optimizer": zero.optimizer.state_dict(),
        "scaler": {name: getattr(zero.loss_scaler, name) for name in SCALER if hasattr(zero.loss_scaler, name)},
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state() if has_cuda() else None,
    }


def restore(engine, state: dict) -> None:
    """Put back what `state_of` took; the parts of all processes together become the model's weights."""
    zero = engine.optimizer
    for part, saved in zip(zero.single_partition_of_fp32_groups, state["weights"], strict=True):
        part.data.copy_(saved)
    zero.optimizer.load_state_dict(state["optimizer"])
    zero.update_lp_params()
    for name, value in state["scaler"].items():
        setattr(zero.loss_scaler, name, value)
    torch.set_rng_state(state["random"])
    if state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"])


def total(number: torch.Tensor) -> float:
    """The sum of a number over all processes."""
    torch.distributed.all_reduce(number)
    return number.item()
