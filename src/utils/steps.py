"""P-Tuning's training loop: which records each step takes, and what is done with them; DeepSpeed does the rest."""

import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import get_scheduler

from utils import manifest
from utils.batches import IGNORED
from utils.engine import process, total
from utils.errors import UserError, say
from utils.order import plan_epoch
from utils.records import to_line
from utils.training import draw_curve, keep_log


class Plan(NamedTuple):
    """How long a run is."""

    an_epoch: int  # optimizer steps of one pass over the records
    steps: int  # optimizer steps in all


def make_plan(records: int, args, processes: int) -> Plan:
    an_epoch = math.ceil(records / (args.train_batch_size * args.gradient_accumulation_steps * processes))
    return Plan(an_epoch, args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch))


def learning_rates(args, steps: int):
    """A function from the number of a step (the first is 0) to its learning rate."""
    warmup = math.ceil(args.warmup_steps * steps) if args.warmup_steps < 1 else int(args.warmup_steps)
    shape = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    curve = get_scheduler(args.lr_scheduler_type, shape, warmup, steps).lr_lambdas[0]
    return lambda step: args.learning_rate * curve(step)


def answer_tokens(row: dict) -> int:
    """How many tokens of a row are learnt; nothing predicts the first of a row."""
    return sum(label != IGNORED for label in row["labels"][1:])


def train(engine, rows: list[dict], collate, args, plan: Plan, start: int, log, save) -> None:
    """From step `start` to the end. `log(row)` is called with every line of the log, `save(step)` at checkpoints.

    The loss of a step is the mean over all its learnt tokens, however they fall on passes and processes.
    """
    rank, processes = process()
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
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "logits_to_keep")}
    logits = engine(**inputs)
    labels = batch["shift_labels"].to(device)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


class Log:
    """log.jsonl and the line of it at the terminal; of a resumed run, the lines up to `step` stay."""

    def __init__(self, out: Path, step: int):
        self.file = out / "log.jsonl"
        if process()[0] == 0:
            keep_log(self.file, step)

    def __call__(self, row: dict) -> None:
        if process()[0] == 0:
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(to_line(row) + "\n")
            line = f"step {row['step']}  loss {row['loss']:.4f}  learning rate {row['learning_rate']:.2e}"
            tqdm.write(line, file=sys.stderr)

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]


def finish(out: Path, run: dict, rows: list[dict], begun: dict, weights: int) -> None:
    """Write what the run was and what it reached, draw its curve, and say it.

    `begun`: when it and its training began, from which step on, and for how many seconds checkpoints were written.
    """
    draw_curve(rows, out / "curve.png")
    steps, seconds = rows[-1]["step"], time.time() - begun["time"]
    losses = [row["loss"] for row in rows]
    done = (steps - begun["step"]) * run["training"]["records_a_step"]
    run["status"] = "finished"
    run["results"] = results = {
        "steps": steps,
        "epochs": rows[-1]["epoch"],
        "train_loss": round(sum(losses) / len(losses), 4),
        "last_loss": round(losses[-1], 4),
        "resumed_at_step": begun["step"],
        "seconds": round(seconds, 1),  # of this process: since step `resumed_at_step`
        "seconds_saving": round(begun["saving"], 1),
        "samples_per_second": round(done / (time.time() - begun["training"] - begun["saving"]), 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
    }
    manifest.write(out, run)
    say(
        f"\ntrained {steps} steps ({results['epochs']:.2f} epochs), from step {begun['step']} in {seconds:.0f} s, "
        f"{results['samples_per_second']} samples/s (checkpoints were written for {begun['saving']:.0f} s besides)"
        + (f", peak {results['peak_gib']} GiB of the card" if results["peak_gib"] else "")
        + f"\nloss {results['train_loss']} on average, {results['last_loss']} at the end"
        + f"\nprefix: {out / f'global_step-{steps}'} ({weights:,} weights were trained, read back); in {out} run.json, "
        "curve.png, log.jsonl"
    )
