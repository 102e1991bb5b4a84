"""Train a base model by P-Tuning v2 under DeepSpeed: a prefix in front of every layer, the base itself untouched.

deepspeed --include localhost:0 src/finetuning_pt.py --train_path data/sample/train.json \
    --model_dir models/smollm2-135m-instruct --output_dir output_dir_pt --max_len 640 --max_src_len 450
"""

import os
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The projection's one large weight is laid anew by DeepSpeed; the place it leaves must be of use to its gradient.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch

from utils import engine as engines
from utils import manifest, memory, pt_checkpoints
from utils.args_pt import parse_ptuning
from utils.errors import UserError, run_script, say
from utils.families import choose_family
from utils.loading import limit_memory, training_device
from utils.precision import has_cuda
from utils.prefix import (
    Kind,
    can_recompute,
    check_saved_prefix,
    check_supported,
    count_weights,
    load_with_prefix,
    save_prefix,
)
from utils.prompter import load_template
from utils.ptuning_rows import make_rows
from utils.records import load
from utils.shards import whole_files
from utils.steps import Log, finish, make_plan, train
from utils.tokens import load_codec, save_tokenizer
from utils.training import alone, is_done


def main(argv=None) -> None:
    begun = {"time": time.time()}
    model_args, args = parse_ptuning(argv)
    with alone(args.output_dir, engines.process()[0]):
        finetune(model_args, args, begun)


def finetune(model_args, args, begun: dict) -> None:
    rank, processes = engines.process()
    base, out = model_args.model_name_or_path, Path(args.output_dir)

    # Everything that can be wrong is found before the base is loaded.
    engines.make_config(args)
    family, name = choose_family(base, model_args)
    check_supported(family, base)
    choose_recompute(args, family, base)
    template_name = args.prompt_template_name or family.templates[name]
    template = load_template(template_name)
    records = load(args.train_path)
    begun["step"], resumed = pt_checkpoints.choose_start(args, processes)
    whole_files(base, "model_dir")
    codec = load_codec(base, family, model_args.trust_remote_code)
    if codec.suffix_ids and args.prompt_template_name:
        say(f"prompt_template_name: not used by family {family.name}, whose rows are instruction, text and answer")
    rows = make_rows(codec, template, records, args.max_len, args.max_src_len)
    kind = Kind(args.pre_seq_len, args.prefix_projection)
    plan = make_plan(len(rows), args, processes)

    run = {
        "status": "training",
        "method": "P-Tuning v2",
        "family": family.name,
        "model_name": name,
        "base": str(Path(base).resolve()),
        "template_name": template_name,
        "template": template,
        "precision": args.precision._asdict(),
        "prefix": {"pre_seq_len": kind.length, "prefix_projection": kind.projection},
        "seed": args.seed,
        "data": {"train": len(rows), "sha256": manifest.fingerprint(args.train_path)},
        "training": {
            "max_len": args.max_len,
            "max_src_len": args.max_src_len,
            "train_batch_size": args.train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "records_a_step": args.train_batch_size * args.gradient_accumulation_steps * processes,
            "learning_rate": args.learning_rate,
            "lr_scheduler_type": args.lr_scheduler_type,
            "warmup_steps": args.warmup_steps,
            "weight_decay": args.weight_decay,
            "max_grad_norm": args.max_grad_norm,
        },
        "planned": {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs},
        "versions": manifest.versions(),
    }
    if is_done(args, run, resumed):
        return
    if begun["step"] > plan.steps:
        raise UserError(f"--resume: {resumed} has done more than the {plan.steps} steps that are asked for; give more")

    device = training_device(not has_cuda())
    check_memory(model_args, args, rows, kind, device)
    limit_memory(model_args.max_memory_MB, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(args.seed)  # the first values of the prefix
    model = load_with_prefix(base, family, kind, args.precision, device, codec, model_args.trust_remote_code)
    if args.gradient_checkpointing:
        model.recompute()
    weights = sum(parameter.numel() for parameter in model.parameters())
    how = "through a network" if kind.projection else "directly"
    say(f"trained: {weights:,} weights (prefix of {kind.length} tokens, {how}), {plan.steps} steps")

    with engines.processes() as deepspeed:
        engine = engines.make_engine(deepspeed, model, args)
        torch.manual_seed(args.seed + rank)  # dropout; the prefix itself is alike on all
        if rank == 0:
            if args.overwrite_output_dir:
                pt_checkpoints.clear(out)
            pt_checkpoints.sweep(out)
            manifest.write(out, run)
        if resumed:
            engines.restore(engine, pt_checkpoints.load_state(resumed, rank))

        def save(step: int) -> None:
            since = time.time()

            def write(folder: Path) -> None:
                save_prefix(model, base, kind, folder)
                save_tokenizer(codec, family, base, folder)
                manifest.write(folder, {**run, "step": step})

            pt_checkpoints.save(out, step, engines.state_of(engine), rank, write, args.save_total_limit)
            begun["saving"] += time.time() - since

        log = Log(out, begun["step"])
        begun |= {"training": time.time(), "saving": 0.0}
        collate = codec.collator(8 if device.type == "cuda" else 1)
        train(engine, rows.to_list(), collate, args, plan, begun["step"], log, save)
        if rank == 0:
            check_saved_prefix(model, out / f"global_step-{plan.steps}")
            finish(out, run, log.rows(), begun, weights)


def choose_recompute(args, family, base) -> None:
    """--gradient_checkpointing, or what suits the machine and the architecture."""
    able = can_recompute(family, base)
    if args.gradient_checkpointing and not able:
        raise UserError("--gradient_checkpointing: this architecture cannot do so with a prefix; drop it")
    if args.gradient_checkpointing is None:
        args.gradient_checkpointing = able and has_cuda()


def check_memory(model_args, args, rows, kind, device) -> None:
    """UserError when the rows do not suit the base, or the run would not fit into the card."""
    shape = memory.read_shape(model_args.model_name_or_path, model_args.trust_remote_code)
    memory.check_vocabulary(shape, rows["input_ids"])
    plan = memory.Plan(
        args.train_batch_size, args.gradient_accumulation_steps, args.precision, args.gradient_checkpointing
    )
    # With AdamW's state in the machine's memory the prefix is counted twice: DeepSpeed lays it anew beside itself, and
    # its gradients, which leave the card as they come, find that place free.
    offload = engines.make_config(args)["zero_optimization"].get("offload_optimizer", {})
    optimizer = "paged_adamw" if offload.get("device") == "cpu" else "adamw"
    trained = shape and count_weights(shape, kind)
    memory.fit_training(shape, rows, plan, trained, False, optimizer, device, model_args.max_memory_MB)


if __name__ == "__main__":
    run_script(main)
