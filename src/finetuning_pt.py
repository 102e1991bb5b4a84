"""Train a base model by P-Tuning v2 under DeepSpeed: a prefix in front of every layer, the base itself untouched.

deepspeed --include localhost:0 src/finetuning_pt.py --train_path data/sample/train.json \
    --model_dir models/smollm2-135m-instruct --output_dir output_dir_pt --max_len 640 --max_src_len 450
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError, begin_script, keeping, run_script, say

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The projection's one large weight is laid anew by DeepSpeed; the place it leaves must be of use to its gradient.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
if __name__ == "__main__":
    begin_script()

import torch

from checkpoints.family import Chosen, choose_family
from checkpoints.prefixes import Kind
from checkpoints.stored import whole_files
from common import manifest
from common.files import fingerprint
from common.machine import has_cuda, training_device
from common.processes import this_process
from data.answer_form import answer_in_json
from data.asking import ask_apart
from data.prompts import load_template
from data.records import load_training
from loading.memory import limit_memory
from loading.prefix import check_saved_prefix, check_supported, load_with_prefix, save_prefix
from tokens.codec import Codec
from tokens.dataset import make_rows
from tokens.readers import load_prompting, save_tokenizer
from training import deepspeed_engine, ptuning_checkpoints
from training.planning import Decided, check_ptuning_memory, decide_ptuning
from training.ptuning import Schedule, make_schedule, train_prefix
from training.reporting import Log, finish_run, make_run, mean_and_last
from training.resuming import NOTHING_TRAINED, Start, alone, is_done
from training.whole import taking_up
from utils.args_pt import parse_ptuning


def main(argv=None) -> None:
    started = time.time()
    model_args, args = parse_ptuning(argv)
    with alone(args.output_dir, this_process().rank), keeping(lambda: NOTHING_TRAINED):
        finetune(model_args, args, started)


def finetune(model_args, args, started: float) -> None:
    # Everything that can be wrong is found before the base is loaded.
    checked = check(model_args, args)
    rows = make_rows(checked.codec, checked.template, checked.records, args.max_len, args.max_src_len)
    schedule = make_schedule(len(rows), args, this_process().count)
    run = describe(model_args, args, checked, rows)
    if is_done(args, run, checked.start.checkpoint):
        return
    if checked.start.step > schedule.steps:
        raise UserError(
            f"--resume: {checked.start.checkpoint} has done more than the {schedule.steps} steps that are asked for; "
            "give more"
        )
    device = plan_memory(model_args, args, checked, rows)
    model, weights = load(args, checked, schedule, device)
    with deepspeed_engine.processes() as deepspeed:
        engine = deepspeed_engine.make_engine(deepspeed, model, args)
        keeper = begin(args, checked, run, model, engine)
        clock = time.time()
        collate = checked.codec.collator(8 if device.type == "cuda" else 1)
        with keeping(lambda: ptuning_checkpoints.kept_by_ptuning(args, this_process().count)):
            train_prefix(engine, rows.to_list(), collate, args, schedule, checked.start.step, keeper.log, keeper.save)
            if this_process().rank == 0:
                check_saved_prefix(model, Path(args.output_dir) / f"global_step-{schedule.steps}")
                report(args, run, keeper, checked.start.step, weights, time.time() - clock, time.time() - started)


@dataclass(frozen=True)
class Checked:
    """What flags and files say, once they are known to be right."""

    base: str  # folder
    chosen: Chosen  # its family
    template_name: str
    template: dict
    records: list[dict]
    start: Start
    codec: Codec
    kind: Kind
    decided: Decided


def check(model_args, args) -> Checked:
    """UserError for a base, a template, records or a folder that cannot be used."""
    base = model_args.model_name_or_path
    deepspeed_engine.make_config(args)
    chosen = choose_family(base, model_args.model_name, model_args.trust_remote_code)
    check_supported(chosen.family, base)
    decided = decide_ptuning(args, chosen.family, base)
    template_name = args.prompt_template_name or chosen.template_name
    template = load_template(template_name)
    records = ask_apart(load_training(args.train_path))
    if args.answer_format == "json":
        records = answer_in_json(records, "training")
    start = ptuning_checkpoints.start_ptuning(args, this_process().count)
    whole_files(base, "model_dir")
    template, codec = load_prompting(template, args.chat_system, base, chosen.family, chosen.trust)
    if codec.suffix_ids and args.prompt_template_name:
        family = chosen.family.name
        say(f"prompt_template_name: not used by family {family}, whose rows are instruction, text and answer")
    kind = Kind(args.pre_seq_len, args.prefix_projection)
    return Checked(base, chosen, template_name, template, records, start, codec, kind, decided)


def describe(model_args, args, checked: Checked, rows) -> dict:
    """The run record: what it is made of, by which a resumed run is known to be the same."""
    names = ("max_len", "max_src_len", "train_batch_size", "gradient_accumulation_steps", "learning_rate")
    names += ("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm")
    records = args.train_batch_size * args.gradient_accumulation_steps * this_process().count
    return make_run(
        checked.base,
        checked.chosen,
        checked.template_name,
        checked.template,
        args,
        data={"train": len(rows), "sha256": fingerprint(args.train_path)},
        training={
            **{name: getattr(args, name) for name in names},
            "records_a_step": records,
            **({"answer_format": "json"} if args.answer_format == "json" else {}),
        },
        method="P-Tuning v2",
        prefix={"pre_seq_len": checked.kind.length, "prefix_projection": checked.kind.projection},
        decided=checked.decided.as_json(),
    )


def plan_memory(model_args, args, checked: Checked, rows) -> torch.device:
    """The device, once the run is known to fit into it."""
    device, recompute = training_device(not has_cuda()), checked.decided.checkpointing.value
    check_ptuning_memory(model_args, args, checked.chosen.trust, rows, checked.kind, recompute, device)
    limit_memory(model_args.max_memory_MB, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def load(args, checked: Checked, schedule: Schedule, device):
    """The base with a fresh prefix, and how many weights that has."""
    torch.manual_seed(args.seed)  # the first values of the prefix
    how = (checked.kind, args.precision, device, checked.codec, checked.chosen.trust)
    model = load_with_prefix(checked.base, checked.chosen.family, *how)
    if checked.decided.checkpointing.value:
        model.recompute()
    weights = sum(parameter.numel() for parameter in model.parameters())
    made = "through a network" if checked.kind.projection else "directly"
    say(f"trained: {weights:,} weights (prefix of {checked.kind.length} tokens, {made}), {schedule.steps} steps")
    return model, weights


class Keeper:
    """What a run leaves on the way: its log, and its checkpoints with the seconds that writing them took."""

    def __init__(self, args, checked: Checked, run: dict, model, engine):
        self.args, self.checked, self.run, self.model, self.engine = args, checked, run, model, engine
        self.log = Log(Path(args.output_dir), checked.start.step)
        self.seconds = 0.0

    def save(self, step: int) -> None:
        since, rank = time.time(), this_process().rank
        state = deepspeed_engine.state_of(self.engine)

        def write(folder: Path) -> None:
            save_prefix(self.model, self.checked.base, self.checked.kind, folder)
            save_tokenizer(self.checked.codec, self.checked.chosen.family, self.checked.base, folder)
            manifest.write_run(folder, {**self.run, "step": step})

        out, limit = Path(self.args.output_dir), self.args.save_total_limit
        ptuning_checkpoints.save_checkpoint(out, step, state, rank, write, limit)
        self.seconds += time.time() - since


def begin(args, checked: Checked, run: dict, model, engine) -> Keeper:
    """Clear the folder of what does not belong to this run, and put the state of a resumed one back."""
    out, rank = Path(args.output_dir), this_process().rank
    torch.manual_seed(args.seed + rank)  # dropout; the prefix itself is alike on all
    if rank == 0:
        if args.overwrite_output_dir:
            ptuning_checkpoints.clear_ptuning(out)
        ptuning_checkpoints.sweep(out)
        manifest.write_run(out, run)
    if checked.start.checkpoint:
        with taking_up(checked.start.checkpoint):
            deepspeed_engine.restore(engine, ptuning_checkpoints.load_state(checked.start.checkpoint, rank))
    return Keeper(args, checked, run, model, engine)


def report(args, run: dict, keeper: Keeper, resumed_at: int, weights: int, training: float, seconds: float) -> None:
    """Write run.json and the curve, and say all. `training`: seconds from the first step on, `seconds`: in all."""
    rows, out = keeper.log.rows(), Path(args.output_dir)
    steps, saving = rows[-1]["step"], keeper.seconds
    pace = round((steps - resumed_at) * run["training"]["records_a_step"] / (training - saving), 2)
    results = {
        "steps": steps,
        "epochs": rows[-1]["epoch"],
        **mean_and_last([row["loss"] for row in rows]),
        "resumed_at_step": resumed_at,
        "seconds": round(seconds, 1),  # of this process: since step `resumed_at_step`
        "seconds_saving": round(saving, 1),
        "samples_per_second": pace,
    }
    said = f"{pace} samples/s (checkpoints were written for {saving:.0f} s besides)"
    made = f"prefix: {out / f'global_step-{steps}'} ({weights:,} weights were trained, read back); in {out} run.json, "
    finish_run(out, run, rows, results, said, "", made + "curve.png, log.jsonl")


if __name__ == "__main__":
    run_script(main)
