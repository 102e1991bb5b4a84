"""Fine-tune a base model with LoRA, QLoRA or in full on records of instruction, input and output.

python src/test_finetune.py --do_train --model_name_or_path models/smollm2-135m-instruct \
    --train_file data/sample/train.json --output_dir lora/sample
"""

import os
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # --preprocessing_num_workers forks
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # batches of all sizes, no memory in pieces

import torch
from transformers import AutoConfig

from utils import fused, manifest, memory, packing, speed
from utils.args import parse_finetune, set_checkpointing
from utils.errors import UserError, run_script, say
from utils.families import choose_family
from utils.loading import add_lora, check_saved, limit_memory, load_base, training_device
from utils.prompter import load_template
from utils.records import load, split
from utils.shards import whole_files
from utils.tokens import Limits, load_codec, save_tokenizer
from utils.training import (
    LogFile,
    SaveTokenizer,
    TripleTrainer,
    alone,
    checkpoint_step,
    choose_resume,
    clear,
    draw_curve,
    is_done,
    make_score_answers,
    tokenise,
)


def main(argv=None) -> None:
    started = time.time()
    *others, args = parse_finetune(argv)
    with alone(args.output_dir, args.process_index):
        finetune(*others, args, started)


def finetune(model_args, data_args, lora_args, args, started: float) -> None:
    out = Path(args.output_dir)

    # Everything that can be wrong is found before the base is loaded.
    family, name = choose_family(model_args.model_name_or_path, model_args)
    template_name = data_args.prompt_template_name or family.templates[name]
    template = load_template(template_name)
    train_records, valid_records = read_records(data_args, args)
    resume = choose_resume(args)
    whole_files(model_args.model_name_or_path, "model_name_or_path")
    codec = load_codec(model_args.model_name_or_path, family, model_args.trust_remote_code)

    how = (codec, template, model_args.model_name_or_path, choose_limits(data_args, family, codec), data_args)
    with args.main_process_first(desc="tokenising"):  # of a machine; its others read what it made
        data_args.overwrite_cache &= args.local_process_index == 0
        train_rows = tokenise(*how, train_records, "training")
        valid_rows = tokenise(*how, valid_records, "validation") if valid_records else None
    score_answers = None
    if args.predict_with_generate:
        samples = valid_records[: args.eval_generate_samples or None]
        score_answers = make_score_answers(
            codec, template, samples, args.per_device_eval_batch_size, data_args.max_target_length, args
        )
    targets = family.lora_targets
    if lora_args.lora_target_modules:
        targets = tuple(target.strip() for target in lora_args.lora_target_modules.split(","))

    run = {
        "status": "training",
        "family": family.name,
        "model_name": name,
        "base": str(Path(model_args.model_name_or_path).resolve()),
        "template_name": template_name,
        "template": template,
        "precision": args.precision._asdict(),
        "lora": None if lora_args.full_finetune else {**vars(lora_args), "lora_target_modules": list(targets)},
        "seed": args.seed,
        "data": {
            "train": len(train_rows),
            "valid": len(valid_rows or ()),
            "sha256": manifest.fingerprint(
                *filter(None, (data_args.train_file, args.do_eval and data_args.valid_file))
            ),
        },
        "training": {
            "cutoff_len": data_args.cutoff_len,
            "max_source_length": data_args.max_source_length,
            "max_target_length": data_args.max_target_length,
            "train_on_inputs": data_args.train_on_inputs,
            "records_a_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "learning_rate": args.learning_rate,
            "lr_scheduler_type": str(args.lr_scheduler_type.value),
        },
        "planned": {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs},
        "versions": manifest.versions(),
    }
    if is_done(args, run, resume):
        return

    device = training_device(args.use_cpu)
    limit_memory(model_args.max_memory_MB, device)
    rate = speed.product_rate(device, args.precision.dtype)
    code, dtype = model_args.trust_remote_code, args.precision.dtype
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, trust_remote_code=code)
    packed = choose_packing(args.packing, config, device, dtype)
    args.use_liger_kernel = fused.choose_liger(args.use_liger_kernel, device, dtype, config.model_type)
    fit_memory(model_args, lora_args, args, train_rows, targets, device, data_args.max_target_length, packed)
    torch.manual_seed(args.seed)  # the first values of the adapter; the Trainer seeds all the rest
    base_precision = args.precision
    if lora_args.full_finetune:  # trained weights are float32; autocast multiplies in 16 bits
        base_precision = base_precision._replace(name="float32")
    model = load_base(model_args.model_name_or_path, base_precision, device, codec, code, split=args.fsdp)
    sizes = {"weights": model.num_parameters()}  # as many as before they were quantised
    if not lora_args.full_finetune:
        shape = (lora_args.lora_r, lora_args.lora_alpha, lora_args.lora_dropout)
        model = add_lora(model, targets, *shape, autocast=args.fp16 or args.bf16)
    model.config.use_cache = False
    if packed and device.type == "cuda":
        packing.use_packed_attention(model)
    sizes["trained_weights"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    what = "all of them" if lora_args.full_finetune else f"LoRA r {lora_args.lora_r} on {', '.join(targets)}"
    say(f"trained: {sizes['trained_weights']:,} weights ({what})")

    padded = codec.collator(8 if device.type == "cuda" else 1)
    trainer = TripleTrainer(
        model=model,
        args=args,
        data_collator=packing.pack if packed else padded,
        train_dataset=train_rows,
        eval_dataset=valid_rows,
        callbacks=[LogFile()],
    )
    if lora_args.full_finetune:
        base = model_args.model_name_or_path
        trainer.add_callback(SaveTokenizer(lambda folder: save_tokenizer(codec, family, base, folder)))
    trainer.score_answers = score_answers
    trainer.eval_collator = padded
    watch = speed.Stopwatch(trainer.count_tokens, device)
    trainer.add_callback(watch)
    if args.process_index == 0:
        if args.overwrite_output_dir:
            clear(out)
        manifest.write(out, run)
    resumed_at = checkpoint_step(resume) if resume else 0
    result = trainer.train(resume_from_checkpoint=resume)

    trainer.save_model(str(out))
    weights = check_result(trainer, lora_args.full_finetune)
    pace = measure(trainer, run, watch, rate, sizes)
    if args.process_index == 0:
        save_tokenizer(codec, family, model_args.model_name_or_path, out)
        finish(trainer, run, result, time.time() - started, resumed_at, weights, pace, rate)
    # A process that ends while another still works can abort, and torchrun would then stop that one.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def choose_limits(data_args, family, codec) -> Limits:
    """The most tokens of a row: --cutoff_len, or a prompt's and an answer's own limits; says which flags do nothing."""
    if family.answer_only and data_args.train_on_inputs:
        raise UserError(
            f"--train_on_inputs: a prompt of family {family.name} sees itself whole, so its tokens cannot be learnt by "
            "predicting the next one; drop it"
        )
    if not family.prompt_apart:
        if data_args.max_source_length:
            say(f"max_source_length: not used by family {family.name}, whose rows are cut by --cutoff_len")
        if codec.context and data_args.cutoff_len > codec.context:
            say(f"cutoff_len: {codec.context} instead of {data_args.cutoff_len} (the base has no more positions)")
            data_args.cutoff_len = codec.context
        return Limits(data_args.cutoff_len)
    data_args.max_source_length = data_args.max_source_length or 512
    say(
        f"limits: prompts of {data_args.max_source_length} tokens, answers of {data_args.max_target_length} "
        f"(--max_source_length, --max_target_length; family {family.name} does not use --cutoff_len)"
    )
    return Limits(None, data_args.max_source_length, data_args.max_target_length)


def fit_memory(model_args, lora_args, args, rows, targets, device, max_target_length, packed) -> None:
    """Decide what the memory decides: records of a pass, gradient checkpointing.

    UserError when the rows, or the adapter, do not suit the base, or the run would not fit into the card.
    """
    if args.fsdp:
        say("memory: not estimated (the model is split over cards)")
        if args.may_skip_checkpointing:
            say("gradient checkpointing: on (what a split model needs is not known)")
        return
    full = lora_args.full_finetune
    shape = memory.read_shape(model_args.model_name_or_path, model_args.trust_remote_code)
    memory.check_vocabulary(shape, rows["input_ids"])
    if shape and not full:
        memory.check_targets(shape.sizes, targets)
    trained = shape and (
        shape.linear + shape.other if full else memory.adapter_weights(shape, targets, lora_args.lora_r)
    )
    asked = memory.Plan(
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        args.precision,
        args.gradient_checkpointing,
        args.per_device_eval_batch_size if args.predict_with_generate else 0,
        max_target_length,
        packed,
        args.use_liger_kernel,
    )
    choices = {"may_skip": args.may_skip_checkpointing, "may_regroup": args.may_regroup}
    cap = model_args.max_memory_MB
    plan = memory.fit_training(shape, rows, asked, trained, full, args.optim, device, cap, **choices)
    if shape and args.may_skip_checkpointing:
        how = "on (to fit the memory)" if plan.recompute else "off (the memory holds all activations)"
        say(f"gradient checkpointing: {how}")
    if plan.batch != asked.batch:
        say(f"batch: {plan.batch} records a pass, {plan.accumulation} passes a step (what the memory holds)")
    set_checkpointing(args, plan.recompute)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = plan.batch, plan.accumulation


def choose_packing(asked: bool | None, config, device, dtype) -> bool:
    """Whether batches are packed, said with its reason; `asked`: --packing, None: left out."""
    wanted = device.type == "cuda" if asked is None else asked
    if not wanted:
        say(f"packing: off ({'no GPU' if asked is None else 'as asked'})")
        return False
    reason = packing.why_not(config, device, dtype)
    if reason and asked:
        raise UserError(f"--packing: {reason}; drop it")
    if reason:
        say(f"packing: off ({reason})")
        return False
    say("packing: on (a batch is one row of its records, without padding)")
    return True


def read_records(data_args, args):
    """Training and validation records, checked; the second is empty when nothing is evaluated."""
    records = load(data_args.train_file)
    if not args.do_eval and (data_args.valid_file or data_args.val_set_size):
        say("validation: none (add --do_eval, or --eval_strategy, to evaluate)")
    if not args.do_eval:
        return records, []
    if data_args.valid_file:
        return records, load(data_args.valid_file)
    if not data_args.val_set_size:
        raise UserError(
            "--do_eval and --val_set_size 0: nothing to evaluate; give --valid_file or a size, or drop --do_eval"
        )
    return split(records, data_args.val_set_size, args.seed)


def check_result(trainer, full: bool) -> int:
    """Number of the weights that were saved; an adapter is read back. Every process must call it."""
    if full:
        return sum(p.numel() for p in trainer.model.parameters())
    adapter = trainer.gather_adapter()
    return check_saved(adapter, Path(trainer.args.output_dir)) if trainer.args.process_index == 0 else 0


def finish(trainer, run, result, seconds, resumed_at, weights, pace, rate) -> None:
    """Write what the run was and what it reached, and say it."""
    out, full, state = Path(trainer.args.output_dir), run["lora"] is None, trainer.state
    trainer.save_state()
    draw_curve(state.log_history, out / "curve.png")
    losses = [row["loss"] for row in state.log_history if "loss" in row] or [result.training_loss]
    run["status"] = "finished"
    run["results"] = {
        "steps": state.global_step,
        "epochs": round(state.epoch or 0, 3),
        "train_loss": round(sum(losses) / len(losses), 4),
        "last_loss": round(losses[-1], 4),
        "best_step": state.best_global_step,
        "best_metric": state.best_metric,
        "resumed_at_step": resumed_at,
        "seconds": round(seconds, 1),  # of this process: since step `resumed_at_step`
        **pace,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None,
    }
    manifest.write(out, run)
    best = ""
    if state.best_metric is not None:
        why = "kept" if trainer.args.load_best_model_at_end else "not kept: --save_strategy and --eval_strategy differ"
        metric = trainer.args.metric_for_best_model
        best = f"; best {metric} {state.best_metric:.4f} at step {state.best_global_step} ({why})"
    results = run["results"]
    say(
        f"\ntrained {state.global_step} steps ({state.epoch:.2f} epochs), from step {resumed_at} "
        f"in {seconds:.0f} s"
        + (f", peak {results['peak_gib']} GiB of the card" if results["peak_gib"] else "")
        + f"\n{pace['samples_per_second']} samples/s, {pace['tokens_per_second']:,.0f} real tokens/s, "
        + f"MFU {pace['mfu']:.3f} = {6 if full else 4} x {pace['weights']:,} weights x tokens/s of a process "
        + f"/ {rate / 1e12:.3g} TFLOP/s (a large matrix product here)"
        + f"\nloss {results['train_loss']} on average, {results['last_loss']} at the end{best}"
        + f"\n{'model' if full else 'adapter'}: {out} ({weights:,} weights{'' if full else ', read back'}); "
        "beside it run.json, curve.png, log.jsonl"
    )


def measure(trainer, run, watch, rate, sizes) -> dict:
    """Samples/s and real tokens/s of all processes, and the MFU of one, over the steps that were timed by the first.

    Every process must call it.
    """
    processes = trainer.args.world_size
    seconds = watch.seconds or float("inf")
    tokens = trainer.accelerator.reduce(torch.tensor(watch.tokens, device=trainer.args.device)).item() / seconds
    return {
        "samples_per_second": round(watch.steps * run["training"]["records_a_step"] / seconds, 2),
        "tokens_per_second": round(tokens, 1),
        "mfu": round(speed.mfu(sizes["weights"], tokens / processes, rate, run["lora"] is None), 4),
        **sizes,
        "timed_steps": watch.steps,
    }


if __name__ == "__main__":
    run_script(main)
