"""P-Tuning's training loop: which records each step takes, and what is done with them; DeepSpeed does the rest."""

import math
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import get_scheduler

from common.errors import UserError
from common.labels import IGNORED
from common.processes import this_process
from training.deepspeed_engine import total
from training.order import plan_epoch


class Schedule(NamedTuple):
    """How long a run is."""

    an_epoch: int  # optimizer steps of one pass over the records
    steps: int  # optimizer steps in all


def make_schedule(records: int, args, processes: int) -> Schedule:
    an_epoch = math.ceil(records / (args.train_batch_size * args.gradient_accumulation_steps * processes))
    return Schedule(an_epoch, args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch))


def learning_rates(args, steps: int):
    """A function from the number of a step (the first is 0) to its learning rate."""
    warmup = math.ceil(args.warmup_steps * steps) if args.warmup_steps < 1 else int(args.warmup_steps)
    shape = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    curve = get_scheduler(args.lr_scheduler_type, shape, warmup, steps).lr_lambdas[0]
    return lambda step: args.learning_rate * curve(step)


def answer_tokens(row: dict) -> int:
    """How many tokens of a row are learnt; nothing predicts the first of a row."""
    return sum(label != IGNORED for label in row["labels"][1:])


def train_prefix(engine, rows: list[dict], collate, args, plan: Schedule, start: int, log, save) -> None:
    """From step `start` to the end. `log(row)` is called with every line of the log, `save(step)` at checkpoints.

    The loss of a step is the mean over all its learnt tokens, however they fall on passes and processes.
    """
    rank, processes = this_process()[:2]
    rate, lengths = learning_rates(args, plan.steps), [row["length"] for row in rows]
    share = args.gradient_accumulation_steps * processes  # the engine takes the mean over passes and processes
    engine.module.train()
    loss_sum, since, epoch = torch.zeros(1, dtype=torch.float64, device=engine.module.device), 0, None
    with tqdm(total=plan.steps, initial=start, unit="step", desc="training", disable=rank > 0) as bar:
        for step in range(start, plan.steps):
            if step // plan.an_epoch != epoch:
                epoch = step // plan.an_epoch
                shape = (args.train_batch_size, args.gradient_accumulation_steps, processes)
                batches = plan_epoch(lengths, *shape, args.seed, epoch)
            batch = batches[step % plan.an_epoch]
            tokens = sum(answer_tokens(rows[index]) for turn in batch for part in turn for index in part)
            for group in engine.optimizer.param_groups:
                group["lr"] = rate(step)
            for turn in batch:
                mine = turn[rank]
                loss = engine_loss(engine, collate([rows[index] for index in mine or [0]])) / tokens
                loss = loss if mine else loss * 0  # every process takes part in every pass
                engine.backward(loss * share)
                engine.step()
                loss_sum += loss.detach()
            since, done = since + 1, step + 1
            bar.update()
            if done % args.log_steps == 0 or done == plan.steps:
                mean = total(loss_sum) / since
                if not math.isfinite(mean):
                    raise UserError(f"step {done}: the loss is {mean}; lower --learning_rate, or use --bf16 or --fp32")
                loss_sum, since = torch.zeros_like(loss_sum), 0
                bar.set_postfix(loss=f"{mean:.4f}")
                norm = engine.get_global_grad_norm()
                row = {"step": done, "epoch": round(done / plan.an_epoch, 3), "loss": round(mean, 6)}
                log(row | {"learning_rate": rate(step), "grad_norm": None if norm is None else round(float(norm), 4)})
            if done == plan.steps or done % (args.save_steps or plan.an_epoch) == 0:
                save(done)


def engine_loss(engine, batch: dict) -> torch.Tensor:
    """The sum, in 32 bits, of the cross entropy of a batch's learnt tokens."""
    device = engine.module.device
    names = ("input_ids", "attention_mask", "logits_to_keep", "shift_labels")
    return engine(**{name: batch[name].to(device) for name in names})
