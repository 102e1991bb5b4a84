"""What the memory decides about a training, said with its reasons."""

import copy
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from transformers import AutoConfig, TrainingArguments

from checkpoints.prefixes import Kind, count_weights
from common.decisions import Decision, as_json, decide
from common.errors import UserError, say
from common.machine import has_cuda
from loading.fp8 import PLAIN, choose_fp8
from loading.memory import (
    MB,
    SAFE,
    Load,
    activation_bytes,
    answer_bytes,
    available,
    refuse,
    trained_bytes,
    weight_bytes,
    workspace_bytes,
)
from loading.precision import Precision
from loading.prefix import can_recompute
from loading.shape import Shape, check_targets, check_vocabulary, read_shape
from loading.starting import Lora
from ops import packed_attention
from ops.answer_loss import piece_on
from ops.available import choose_liger
from training.deepspeed_engine import make_config
from training.graphed import choose_graphs, why_no_graphs

MOST_PASS = 64  # records of a pass: more gain nothing


def largest_load(rows, batch_size: int, packed: bool = False) -> Load:
    """The largest batch that rows (with `length` and `labels`) can make; `packed`: without padding."""
    lengths = rows["length"]
    longest = sorted(range(len(rows)), key=lambda index: -lengths[index])[:batch_size]
    answers = [
        len(labels) - next(i for i, label in enumerate(labels) if label >= 0) + 1
        for labels in (rows[index]["labels"] for index in longest)
    ]
    most = max(lengths)
    if packed:
        return Load(sum(lengths[index] for index in longest), most, sum(answers))
    return Load(batch_size * most, most, batch_size * max(answers))


class Plan(NamedTuple):
    """The settings of a training run that decide what it needs."""

    batch: int  # records of one forward pass
    accumulation: int
    precision: Precision
    recompute: bool  # gradient checkpointing
    answered: int = 0  # records that evaluation answers at a time; 0: none
    answer_tokens: int = 0  # most new tokens of an answer
    packed: bool = False  # the records of a pass in one row without padding
    fused: bool = False  # liger-kernel
    piece: int | None = None  # most logits that are made at a time; None: all

    def flags(self, other: "Plan") -> str:
        """The flags that turn `other` into this plan."""
        flags = []
        if self.recompute != other.recompute:
            flags.append("--gradient_checkpointing True")
        if self.batch != other.batch:
            flags.append(
                f"--per_device_train_batch_size {self.batch} --gradient_accumulation_steps {self.accumulation}"
            )
        if self.precision.bits != other.precision.bits:
            flags.append(f"--bits {self.precision.bits}")
        if self.answered != other.answered:
            flags.append(f"--per_device_eval_batch_size {self.answered}")
        return " ".join(flags)


def training_bytes(shape: Shape, rows, plan: Plan, trained: int, full: bool, optim: str) -> dict[str, int]:
    """What a plan needs, by purpose; `trained` weights are an adapter's, or with `full` the base's own."""
    load = largest_load(rows, min(plan.batch, len(rows)), plan.packed)
    answering = plan.answered * answer_bytes(shape, load.longest + plan.answer_tokens, plan.precision)
    activating = activation_bytes(shape, load, plan.precision, plan.recompute, plan.fused, plan.piece)
    return {
        "weights": 0 if full else weight_bytes(shape, plan.precision),
        "trained": trained_bytes(trained, optim),
        "activations": max(activating, answering),
        "workspace": workspace_bytes(shape),
    }


def plans_that_fit(plan: Plan, full: bool, fits) -> list[Plan]:
    """The plans that change the fewest settings and fit: for every such set of settings the one that changes least."""
    batches = [size for size in range(plan.batch, 0, -1) if plan.batch % size == 0]
    answered = [plan.answered >> shift for shift in range(plan.answered.bit_length())] or [0]
    bits = [plan.precision.bits, *(bits for bits in (8, 4) if bits < plan.precision.bits and not full)]
    found = {}
    for recompute, batch, bit, rows in product(sorted({plan.recompute, True}, reverse=True), batches, bits, answered):
        precision, accumulation = plan.precision._replace(bits=bit), plan.accumulation * plan.batch // batch
        other = plan._replace(
            batch=batch, accumulation=accumulation, precision=precision, recompute=recompute, answered=rows
        )
        changed = tuple(i for i, (old, new) in enumerate(zip(plan, other, strict=True)) if old != new and i != 1)
        if changed not in found and fits(other):
            found[changed] = other
    fewest = min(map(len, found), default=0)
    return [other for changed, other in found.items() if len(changed) == fewest]


def choose_plan(plan: Plan, may_skip: bool, may_regroup: bool, fits) -> Plan:
    """The fastest plan that `fits`, with as many records a step; `plan` itself, saving most, when none does.

    Computing no activation twice (if gradient checkpointing `may_skip` it) comes first; then as many records a pass as
    fit (if they `may_regroup` them): at least those of `plan`, with gradient checkpointing at most those.
    """
    records = plan.batch * plan.accumulation
    sizes = [size for size in range(min(records, MOST_PASS), 0, -1) if records % size == 0]
    for recompute in (False, True) if may_skip else (plan.recompute,):
        for size in sizes if may_regroup else [plan.batch]:
            other = plan._replace(batch=size, accumulation=records // size, recompute=recompute)
            if (size <= plan.batch if recompute else size >= plan.batch) and fits(other):
                return other
    return plan


def fit_training(
    shape: Shape | None,
    rows,
    plan: Plan,
    trained: int,
    full: bool,
    optim: str,
    device,
    cap,
    may_skip: bool = False,
    may_regroup: bool = False,
    shorter: str = "--lora_r or --cutoff_len",
) -> Plan:
    """The plan that is taken, and what it will need, said; UserError with the flags that would make it fit when a card
    has less.

    `cap`: --max_memory_MB, or None; `may_skip`, `may_regroup`: what `choose_plan` may decide; `shorter`: flags that
    need less when they are smaller. On a CPU, which can swap, too little is a warning, and far too little an error.
    """
    if shape is None:
        say("memory: not estimated (the sizes of this model cannot be told from its config.json)")
        return plan
    free = available(device, cap)

    def need(other: Plan) -> dict[str, int]:
        return training_bytes(shape, rows, other, trained, full, optim)

    def fits(other: Plan, share: float = 1.0) -> bool:
        return sum(need(other).values()) <= share * free

    if may_skip or may_regroup:
        plan = choose_plan(plan, may_skip, may_regroup, lambda other: fits(other, SAFE))
    needs = need(plan)
    parts = ", ".join(f"{name} {size // MB:,}" for name, size in needs.items() if size)
    say(f"memory: about {sum(needs.values()) // MB:,} MB needed ({parts}), {free // MB:,} MB free")
    if not fits(plan):
        others = [other.flags(plan) for other in plans_that_fit(plan, full, fits)]
        last = "LoRA instead of --full_finetune" if full else f"a smaller {shorter}, or a smaller base"
        refuse(device, cap, "the run", sum(needs.values()), free, others or [last])
    return plan


@dataclass(frozen=True)
class Decided:
    """What a training decides by itself, each with its reason."""

    dtype: Decision  # name of the numbers that are multiplied
    bits: Decision  # of a base weight
    packing: Decision  # the records of a pass in one row without padding
    liger_kernel: Decision
    checkpointing: Decision  # gradient checkpointing: activations are computed twice
    batch: Decision  # records of one forward pass of a process
    accumulation: Decision  # forward passes of a step
    fp8: Decision = PLAIN  # frozen products in 8-bit floats
    cuda_graphs: Decision = PLAIN  # passes are captured, and replayed

    def as_json(self) -> dict[str, dict]:
        return as_json(vars(self))


def decide_training(
    model_args, args, chosen, lora: Lora | None, shape: Shape | None, max_target_length: int, rows, device
) -> Decided:
    """All decisions of a training by test_finetune.py, said with their reasons.

    UserError when the rows, or the adapter, do not suit the base, or the run would not fit into the card.
    `args`: what was typed; `chosen`: checkpoints.family.Chosen; `lora`: None: every weight is trained; `shape`: of the
    base; `rows`: the training rows; `max_target_length`: most tokens of an answer while evaluating.
    """
    base, trust, dtype = model_args.model_name_or_path, chosen.trust, args.precision.dtype
    config = AutoConfig.from_pretrained(base, trust_remote_code=trust)
    packing = choose_packing(args.packing, config, chosen.family.packed_types, device, dtype)
    fp8 = choose_fp8(args.fp8, args.precision, device)
    liger = choose_liger(args.use_liger_kernel, device, dtype, config.model_type)
    asked = Plan(
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        args.precision,
        args.gradient_checkpointing,
        args.per_device_eval_batch_size if args.predict_with_generate else 0,
        max_target_length,
        packing.value,
        liger.value,
        piece_of(shape, device),
    )
    if args.fsdp:
        plan, checkpointing = asked, choose_split_checkpointing(args)
    else:
        check_vocabulary(shape, rows["input_ids"])
        if shape and lora and not lora.start:
            check_targets(shape.sizes, lora.targets)
        full, trained = lora is None, shape and count_trained(shape, lora)
        choices = {"may_skip": args.may_skip_checkpointing, "may_regroup": args.may_regroup}
        plan = fit_training(shape, rows, asked, trained, full, args.optim, device, model_args.max_memory_MB, **choices)
        checkpointing = say_checkpointing(args, plan, shape is not None)
    batch, passes = Decision(plan.batch, "as asked"), Decision(plan.accumulation, "as asked")
    if plan.batch != asked.batch:
        why = "what the memory holds"
        decide("batch", plan.batch, why, f"{plan.batch} records a pass, {plan.accumulation} passes a step")
        batch, passes = Decision(plan.batch, why), Decision(plan.accumulation, "as many records a step")
    reason, twice = why_no_graphs(args, plan.packed, plan.recompute, device), False
    if reason is None and shape:
        needs = training_bytes(shape, rows, plan, trained, full, args.optim)
        twice = sum(needs.values()) + needs["activations"] <= SAFE * available(device, model_args.max_memory_MB)
    graphs = choose_graphs(args.cuda_graphs, reason, shape and shape.linear + shape.other, twice)
    return Decided(
        **args.decided,
        packing=packing,
        liger_kernel=liger,
        checkpointing=checkpointing,
        batch=batch,
        accumulation=passes,
        fp8=fp8,
        cuda_graphs=graphs,
    )


def count_trained(shape: Shape, lora: Lora | None) -> int:
    """Number of trained weights: those of an adapter and what is trained beside it, or (None) all of the base's."""
    return lora.count(shape) if lora else shape.linear + shape.other


def piece_of(shape: Shape | None, device) -> int | None:
    """The most logits that training makes at a time on a device; None: all."""
    return piece_on(device) if shape and shape.head_is_apart else None


def choose_split_checkpointing(args) -> Decision:
    """Gradient checkpointing of a model that is split over cards, whose memory is not estimated."""
    say("memory: not estimated (the model is split over GPUs)")
    if args.may_skip_checkpointing:
        return decide("gradient checkpointing", True, "what a split model needs is not known")
    return Decision(args.gradient_checkpointing, "as asked")


def say_checkpointing(args, plan: Plan, known: bool) -> Decision:
    """Gradient checkpointing as the plan has it; `known`: whether the base's sizes are, by which it was chosen."""
    if not args.may_skip_checkpointing:
        return Decision(plan.recompute, "no GPU" if args.use_cpu else "as asked")
    if not known:
        return Decision(plan.recompute, "what the base needs is not known")
    why = "to fit the memory" if plan.recompute else "the memory holds all activations"
    return decide("gradient checkpointing", plan.recompute, why)


def settle(args: TrainingArguments, decided: Decided) -> TrainingArguments:
    """The Trainer's arguments: a copy of what was typed, with what was decided."""
    settled = copy.copy(args)
    set_checkpointing(settled, decided.checkpointing.value)
    settled.per_device_train_batch_size = decided.batch.value
    settled.gradient_accumulation_steps = decided.accumulation.value
    settled.use_liger_kernel = decided.liger_kernel.value
    settled.logging_nan_inf_filter = False  # it would wait for every loss; TripleTrainer.check_sound looks at all
    return settled


def set_checkpointing(args: TrainingArguments, on: bool) -> None:
    """Gradient checkpointing, under both names that releases of transformers give it."""
    args.gradient_checkpointing = on
    if hasattr(args, "activation_checkpointing"):
        args.activation_checkpointing = on


def choose_packing(asked: bool | None, config, known: tuple[str, ...], device, dtype) -> Decision:
    """Whether batches are packed, said with its reason; `asked`: --packing, None: left out.

    `known`: the model types that can be (Family.packed_types).
    """
    wanted = device.type == "cuda" if asked is None else asked
    if not wanted:
        return decide("packing", False, "no GPU" if asked is None else "as asked")
    reason = packed_attention.why_not(config, known, device, dtype)
    if reason and asked:
        raise UserError(f"--packing: {reason}; drop it")
    return decide("packing", not reason, reason or "a batch is one row of its records, without padding")


def decide_ptuning(args, family, base: str) -> Decided:
    """All decisions of a training by finetuning_pt.py. UserError for gradient checkpointing where it cannot be."""
    able = can_recompute(family, base)
    if args.gradient_checkpointing and not able:
        raise UserError("--gradient_checkpointing: this architecture cannot do so with a prefix; drop it")
    checkpointing = Decision(args.gradient_checkpointing, "as asked")
    if args.gradient_checkpointing is None:
        why = "no GPU" if able else "this architecture cannot do so with a prefix"
        checkpointing = Decision(able and has_cuda(), why if not (able and has_cuda()) else "on a GPU, where it can")
    return Decided(
        **args.decided,
        packing=Decision(False, "a prefix stands in front of padded rows"),
        liger_kernel=Decision(False, "not used by P-Tuning"),
        checkpointing=checkpointing,
        batch=Decision(args.train_batch_size, "as asked"),
        accumulation=Decision(args.gradient_accumulation_steps, "as asked"),
    )


def check_ptuning_memory(model_args, args, trust: bool, rows, kind: Kind, recompute: bool, device) -> None:
    """UserError when the rows do not suit the base, or the run would not fit into the card."""
    shape = read_shape(model_args.model_name_or_path, trust)
    check_vocabulary(shape, rows["input_ids"])
    batch = args.train_batch_size, args.gradient_accumulation_steps
    plan = Plan(*batch, args.precision, recompute, piece=piece_of(shape, device))
    # With AdamW's state in the machine's memory the prefix is counted twice: DeepSpeed lays it anew beside itself, and
    # its gradients, which leave the card as they come, find that place free.
    offload = make_config(args)["zero_optimization"].get("offload_optimizer", {})
    optimizer = "paged_adamw" if offload.get("device") == "cpu" else "adamw"
    trained = shape and count_weights(shape, kind)
    cap, shorter = model_args.max_memory_MB, "--pre_seq_len or --max_len"
    fit_training(shape, rows, plan, trained, False, optimizer, device, cap, shorter=shorter)
