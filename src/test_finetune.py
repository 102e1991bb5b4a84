"""Fine-tune a base model with LoRA, QLoRA or in full on records of instruction, input and output.

python src/test_finetune.py --do_train --model_name_or_path models/smollm2-135m-instruct \
    --train_file data/sample/train.json --output_dir lora/sample
"""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from common.errors import begin_script, keeping, run_script, say
from common.refusals import naming

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # --preprocessing_num_workers forks
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # batches of all sizes, no memory in pieces
if __name__ == "__main__":
    begin_script()

import torch

from checkpoints.adapters import check_saved
from checkpoints.config import read_context
from checkpoints.family import Chosen, choose_family
from checkpoints.hub_cache import find_snapshot
from checkpoints.stored import whole_files
from checkpoints.vocabulary import read_tokens, write_tokens
from common import manifest
from common.decisions import Decision, as_json
from common.files import fingerprint
from common.machine import training_device
from data.answer_form import answer_in_json
from data.asking import Asking, draw_all, survey, turn_records
from data.records import choose_records
from loading.base import load_base, refuse_broken
from loading.fp8 import use_fp8
from loading.memory import limit_memory
from loading.shape import Shape, read_shape
from loading.starting import Lora, choose_lora
from loading.vocabulary import extend_shape
from ops.packed_attention import use_packed_attention
from prediction.settings import choose_learning, choose_template
from tokens.batches import pack, pack_in_sizes
from tokens.codec import Codec
from tokens.dataset import Tokenising, choose_limits, tokenise
from tokens.drawn import DrawnRows
from tokens.extending import extend_codec
from tokens.readers import load_prompting, save_tokenizer
from tokens.rows import Limits
from training import speed
from training.checking import check_optimizer
from training.evaluation import make_score_answers
from training.graphed import Graphs
from training.planning import Decided, decide_training, settle
from training.reporting import finish_run, make_run, mean_and_last
from training.resuming import (
    NOTHING_TRAINED,
    Start,
    alone,
    clear_checkpoints,
    is_done,
    kept_by_finetuning,
    start_finetuning,
)
from training.trainer import LogFile, OnSave, TripleTrainer
from utils.args import Arguments, parse_finetune


def main(argv=None) -> None:
    started = time.time()
    arguments = parse_finetune(argv)
    with alone(arguments.train.output_dir, arguments.train.process_index), keeping(lambda: NOTHING_TRAINED):
        finetune(arguments, started)


def finetune(arguments: Arguments, started: float) -> None:
    # Everything that can be wrong is found before the base is loaded.
    checked = check(arguments)
    rows = make_rows(arguments, checked)
    run = describe(arguments, checked, rows)
    if is_done(arguments.train, run, checked.start.checkpoint):
        return
    plan = make_plan(arguments, checked, rows)
    model, sizes = load(arguments, checked, plan)
    trainer = make_trainer(arguments, checked, rows, plan, model)
    watch = speed.Stopwatch(trainer.count_tokens, plan.device)
    trainer.add_callback(watch)
    run["decided"] = plan.decided.as_json() | as_json(checked.taken)

    def complete(folder):
        write_tokens(folder, checked.codec.added)
        manifest.write_run(folder, run)

    trainer.add_callback(OnSave(complete))
    if trainer.args.process_index == 0:
        if trainer.args.overwrite_output_dir:
            clear_checkpoints(trainer.args.output_dir)
        manifest.write_run(trainer.args.output_dir, run)
    with keeping(lambda: kept_by_finetuning(trainer.args)):
        result = trainer.train(resume_from_checkpoint=checked.start.checkpoint)
        with naming(trainer.args.output_dir):
            trainer.save_model(trainer.args.output_dir)
        report(checked, plan, trainer, run, result, watch, sizes, started)
        # A process that ends while another still works can abort, and torchrun would then stop that one.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()


@dataclass(frozen=True)
class Checked:
    """What flags and files say, once they are known to be right."""

    chosen: Chosen  # the base's family
    template_name: str
    template: dict
    asking: Asking  # of the training records
    taken: dict[str, Decision]  # from the run.json of --init_lora
    lora: Lora | None  # None: every weight is trained
    shape: Shape | None  # of the base
    train: list[dict]  # records
    valid: list[dict]  # none where nothing is evaluated
    start: Start
    codec: Codec
    limits: Limits


def check(arguments: Arguments) -> Checked:
    """UserError for a base, a template, records or a folder that cannot be used."""
    model_args, data_args, lora_args, args = arguments
    base, init = model_args.model_name_or_path, lora_args.init_lora and find_snapshot(lora_args.init_lora, "init_lora")
    before = manifest.read_run(init) if init else {}
    manifest.prefer("model_name_or_path", str(Path(base).resolve()), before.get("base"))  # which may warn
    chosen = choose_family(base, model_args.model_name, model_args.trust_remote_code, before)
    typed = data_args.prompt_template_name
    template_name = manifest.prefer("prompt_template_name", typed, before.get("template_name"), chosen.template_name)
    template = choose_template(typed, before, chosen.template_name, str(manifest.find_run(init)) if init else "")
    asking, taken = choose_learning(data_args, before, args.seed)
    train, valid = choose_records(data_args, args.do_eval, args.seed)
    check_optimizer(args)
    start = start_finetuning(args)
    whole_files(base, "model_name_or_path")
    template, codec = load_prompting(template, data_args.chat_system, base, chosen.family, chosen.trust, init)
    if lora_args.extend_vocab:
        codec = extend_codec(codec, read_tokens(lora_args.extend_vocab), f"--extend_vocab {lora_args.extend_vocab}")
    limits = choose_limits(data_args, chosen.family, codec)
    lora, shape = None, extend_shape(read_shape(base, chosen.trust), codec.pieces_before)
    if not lora_args.full_finetune:
        lora = choose_lora(lora_args, chosen, base, args.precision, shape, codec)
    prompts = template_name, template, asking, taken
    return Checked(chosen, *prompts, lora, shape, train, valid, start, codec, limits)


class Rows(NamedTuple):
    train: object  # datasets of rows of tokens
    valid: object | None
    score_answers: object | None  # a function from the model to its figures (f1, contest, …)


def make_rows(arguments: Arguments, checked: Checked) -> Rows:
    model_args, data_args, _, args = arguments
    how = Tokenising(
        checked.codec,
        checked.template,
        model_args.model_name_or_path,
        checked.limits,
        data_args.train_on_inputs,
        data_args.preprocessing_num_workers,
        data_args.overwrite_cache and args.local_process_index == 0,
    )
    with args.main_process_first(desc="tokenising"):  # of a machine; its others read what it made
        asking, train, valid = checked.asking, checked.train, checked.valid
        if asking.as_json:
            train, valid = answer_in_json(train, "training"), answer_in_json(valid, "validation")
        if asking.tail_first:
            train, valid = turn_records(train, "training"), valid and turn_records(valid, "validation")
        # Of validation records nothing is drawn.
        plainly = Asking(batch=asking.batch, tail_first=asking.tail_first, as_json=asking.as_json)
        valid = tokenise(how, divide_valid(valid, train, plainly), "validation") if valid else None
        train = DrawnRows(how, train, asking) if asking.changes else tokenise(how, train, "training")
    score_answers = None
    if args.predict_with_generate:
        samples = checked.valid[: args.eval_generate_samples or None]
        sizes = args.per_device_eval_batch_size, data_args.max_target_length
        context = checked.codec.context or read_context(model_args.model_name_or_path, checked.chosen.family)
        score_answers = make_score_answers(checked.codec, checked.template, samples, *sizes, args, context, plainly)
    return Rows(train, valid, score_answers)


def divide_valid(valid: list[dict], train: list[dict], asking: Asking) -> list[dict]:
    """The validation records, each in as many parts as it is asked in."""
    if not asking.changes:
        return valid
    divided = draw_all(valid, asking, survey(train), "validation records")
    return [row for rows, record in zip(divided, valid, strict=True) for row in rows or [record]]


def describe(arguments: Arguments, checked: Checked, rows: Rows) -> dict:
    """The run record: what it is made of, by which a resumed run is known to be the same."""
    model_args, data_args, lora_args, args = arguments
    files = filter(None, (data_args.train_file, args.do_eval and data_args.valid_file))
    return make_run(
        model_args.model_name_or_path,
        checked.chosen,
        checked.template_name,
        checked.template,
        args,
        data={"train": len(rows.train), "valid": len(rows.valid or ()), "sha256": fingerprint(*files)},
        training={
            "cutoff_len": checked.limits.row or data_args.cutoff_len,
            "max_source_length": checked.limits.prompt or data_args.max_source_length,
            "max_target_length": data_args.max_target_length,
            "train_on_inputs": data_args.train_on_inputs,
            "records_a_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "learning_rate": args.learning_rate,
            "lr_scheduler_type": str(args.lr_scheduler_type.value),
            **({"fp8": True} if args.fp8 else {}),
            **checked.asking.settings,
            **({"extend_vocab": list(checked.codec.added)} if lora_args.extend_vocab else {}),
        },
        lora=checked.lora and checked.lora.as_json(),
    )


class Plan(NamedTuple):
    device: torch.device
    rate: float  # floating-point operations a second of a large product here
    decided: Decided


def make_plan(arguments: Arguments, checked: Checked, rows: Rows) -> Plan:
    """Measure the machine, and decide what flags leave open."""
    model_args, data_args, _, args = arguments
    device = training_device(args.use_cpu)
    limit_memory(model_args.max_memory_MB, device)
    rate = speed.product_rate(device, args.precision.dtype)
    base = (model_args, args, checked.chosen, checked.lora, checked.shape)
    return Plan(device, rate, decide_training(*base, data_args.max_target_length, rows.train, device))


def load(arguments: Arguments, checked: Checked, plan: Plan):
    """The model with what is trained of it, and how many weights it has and trains."""
    model_args, _, _, args = arguments
    torch.manual_seed(args.seed)  # the first values of the adapter; the Trainer seeds all the rest
    lora, precision, trust = checked.lora, args.precision, checked.chosen.trust
    if not lora:  # trained weights are float32; autocast multiplies in 16 bits
        precision = precision._replace(name="float32")
    base = model_args.model_name_or_path
    model = load_base(base, precision, plan.device, checked.codec, trust, split=args.fsdp)
    if not args.fsdp:
        refuse_broken(model, base)
    sizes = {"weights": model.num_parameters()}  # as many as before they were quantised
    if lora:
        model = lora.put_on(model, autocast=args.fp16 or args.bf16)
    model.config.use_cache = False
    if plan.decided.packing.value and plan.device.type == "cuda":
        use_packed_attention(model)
    if plan.decided.fp8.value:
        use_fp8(model, trained_through=True)
    sizes["trained_weights"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"trained: {sizes['trained_weights']:,} weights ({lora or 'all of them'})")
    return model, sizes


def make_trainer(arguments: Arguments, checked: Checked, rows: Rows, plan: Plan, model) -> TripleTrainer:
    padded = checked.codec.collator(8 if plan.device.type == "cuda" else 1)
    collator, graphs = pack if plan.decided.packing.value else padded, None
    if plan.decided.cuda_graphs.value:
        collator = partial(pack_in_sizes, records=plan.decided.batch.value)
        graphs = Graphs(weight for weight in model.parameters() if weight.requires_grad)
    callbacks = [LogFile()]
    if checked.lora is None:
        where = (checked.codec, checked.chosen.family, arguments.model.model_name_or_path)
        # A checkpoint of a whole model is a base that can be used by itself.
        callbacks.append(OnSave(lambda folder: save_tokenizer(*where, folder)))
    trainer = TripleTrainer(
        model=model,
        args=settle(arguments.train, plan.decided),
        data_collator=collator,
        train_dataset=rows.train,
        eval_dataset=rows.valid,
        callbacks=callbacks,
    )
    trainer.score_answers, trainer.eval_collator, trainer.graphs = rows.score_answers, padded, graphs
    trainer.head_is_apart = not arguments.train.fsdp and checked.shape is not None and checked.shape.head_is_apart
    return trainer


def report(checked: Checked, plan: Plan, trainer, run: dict, result, watch, sizes: dict, started: float) -> None:
    """Read what was saved back, measure, write run.json and the curve, and say all. Every process must call it."""
    args, state, full = trainer.args, trainer.state, run["lora"] is None
    weights = sizes["weights"] if full else None
    if not full:
        adapter = trainer.gather_adapter()
        weights = check_saved(adapter, Path(args.output_dir)) if args.process_index == 0 else 0
    pace = speed.measure(trainer, watch, plan.rate, sizes, full, run["training"]["records_a_step"])
    if args.process_index > 0:
        return
    save_tokenizer(checked.codec, checked.chosen.family, run["base"], Path(args.output_dir))
    trainer.save_state()
    results = {
        "steps": state.global_step,
        "epochs": round(state.epoch or 0, 3),
        **mean_and_last([row["loss"] for row in state.log_history if "loss" in row] or [result.training_loss]),
        "best_step": state.best_global_step,
        "best_metric": state.best_metric,
        "resumed_at_step": checked.start.step,
        "seconds": round(time.time() - started, 1),  # of this process: since step `resumed_at_step`
        **pace,
    }
    best = ""
    if state.best_metric is not None:
        why = "kept" if args.load_best_model_at_end else "not kept: --save_strategy and --eval_strategy differ"
        best = f"; best {args.metric_for_best_model} {state.best_metric:.4f} at step {state.best_global_step} ({why})"
    made = f"{'model' if full else 'adapter'}: {args.output_dir} ({weights:,} weights{'' if full else ', read back'})"
    made += "; beside it run.json, curve.png, log.jsonl"
    said = speed.say_pace(pace, plan.rate, full)
    finish_run(Path(args.output_dir), run, state.log_history, results, said, best, made)


if __name__ == "__main__":
    run_script(main)
