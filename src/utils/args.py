"""The arguments of src/test_finetune.py. Those that all scripts have, and the parser, stand in args_base.py."""

from dataclasses import dataclass, fields
from typing import NamedTuple

from transformers import TrainingArguments

from checkpoints.hub_cache import find_snapshot
from common.errors import UserError, say
from common.files import check_apart
from common.flags import MOST_COUNT, MOST_SEED, Range, check_ranges, option
from common.machine import check_processes, has_cuda
from common.processes import this_process
from kg.metrics import BEST
from loading.fsdp import CONFIG, choose_policy
from loading.precision import Precision, asked_dtype, choose_bits, choose_dtype
from ops import available
from training.checking import check_report_to
from training.order import ORDERS
from training.planning import set_checkpointing
from utils.args_base import FEW, ModelArguments, NarrowFlags, check_max_steps, parse
from utils.args_graphs import GraphFlags, check_graphs
from utils.args_schema import SCHEMA_RANGES, DrawnFlags, check_form
from utils.args_start import StartFlags, check_start

DATA_RANGES = {
    "cutoff_len": Range(1),
    "max_source_length": Range(1),
    "max_target_length": Range(1),
    "preprocessing_num_workers": Range(1, 512),
    "val_set_size": Range(0),
    **SCHEMA_RANGES,
}
LORA_RANGES = {
    "lora_r": FEW,
    "lora_alpha": Range(1),
    "lora_dropout": Range(0, 1, below=True),
}
TRAINING_RANGES = {  # of the Trainer's own flags those too that it reads late, or never checks
    "per_device_train_batch_size": FEW,
    "per_device_eval_batch_size": FEW,
    "gradient_accumulation_steps": FEW,
    "eval_generate_samples": Range(0),
    "num_train_epochs": Range(0, 10**6, above=True),
    "learning_rate": Range(0, above=True),
    "weight_decay": Range(0),
    "adam_beta1": Range(0, 1, below=True),
    "adam_beta2": Range(0, 1, below=True),
    "adam_epsilon": Range(0, above=True),
    "max_grad_norm": Range(0),
    "warmup_steps": Range(0, MOST_COUNT),
    "warmup_ratio": Range(0, 1),
    "save_steps": Range(0, above=True),
    "eval_steps": Range(0, above=True),
    "logging_steps": Range(0, above=True),
    "save_total_limit": Range(1),
    "eval_accumulation_steps": Range(1),
    "eval_delay": Range(0),
    "dataloader_num_workers": Range(0, 512),
    "neftune_noise_alpha": Range(0, above=True),
    "seed": Range(0, MOST_SEED),
}


@dataclass
class DataArguments(DrawnFlags):
    """Which records, and how they become rows of tokens."""

    _argument_group_name = "data"

    train_file: str | None = option(None, "training records: JSON lines or a JSON list", "--train_path")
    valid_file: str | None = option(None, "validation records, with output; beats --val_set_size", "--valid_path")
    val_set_size: int | None = option(
        None, "records split off for validation, drawn with --seed; default: 1000 with --do_eval, else 0"
    )
    prompt_template_name: str | None = option(
        None,
        "alpaca, vicuna, …, chat (the tokenizer's), or a template.json; default: the family's",
        "--prompt_template",
    )
    cutoff_len: int = option(512, "most tokens of a row; a longer record loses the end of its text, never its answer")
    max_source_length: int | None = option(
        None, "most tokens of a prompt, for families that cut prompt and answer apart (chatglm); default there: 512"
    )
    max_target_length: int | None = option(
        None,
        "most new tokens of an answer while evaluating with --predict_with_generate; for the families above also the "
        "most tokens of an answer to learn; default: 256",
    )
    train_on_inputs: bool = option(False, "learn the prompt's tokens too, not only the answer's")
    preprocessing_num_workers: int = option(1, "processes that tokenise")
    overwrite_cache: bool = option(False, "tokenise anew, even where the same rows are in the cache")

    def __post_init__(self):
        if not self.train_file:
            raise UserError("--train_file is missing; give the training records, e.g. data/sample/train.json")
        check_ranges(self, DATA_RANGES)
        check_form(self.answer_format, self.answer_order)
        if self.valid_file and self.val_set_size:
            say(f"validation: --valid_file {self.valid_file} (it beats --val_set_size {self.val_set_size})")
        self.max_target_length = self.max_target_length or 256


@dataclass
class LoraArguments(StartFlags):
    """What is trained."""

    _argument_group_name = "LoRA"

    lora_r: int | None = option(None, "rank of the adapter; default: 8, or that of --init_lora")
    lora_alpha: int | None = option(
        None, "scale of the adapter: alpha / r multiplies it; default: 16, or that of --init_lora"
    )
    lora_dropout: float | None = option(
        None, "share of the adapter's inputs zeroed while training; default: 0.05, or that of --init_lora"
    )
    lora_target_modules: str | None = option(
        None, "layers with an adapter, e.g. q_proj,v_proj, or all-linear; default: the family's, or --init_lora's"
    )
    full_finetune: bool = option(False, "train every weight instead of an adapter")

    def __post_init__(self):
        check_ranges(self, LORA_RANGES)
        if self.full_finetune:
            for one in fields(self):
                if one.name not in ("full_finetune", "extend_vocab") and getattr(self, one.name) != one.default:
                    raise UserError(f"--full_finetune and --{one.name} contradict each other; drop one of them")


# Arguments of transformers that this project decides itself: a value other than the default is an error, not ignored.
DECIDED = {
    "label_smoothing_factor": "the loss is that of the answers' tokens, unsmoothed",
    "data_seed": "--seed orders the records",
    "do_predict": "predict with src/inference.py",
    "metric_for_best_model": "--predict_with_generate chooses the contest's score, else it is eval_loss",
    "greater_is_better": "it follows from --predict_with_generate",
    "load_best_model_at_end": "it follows from --eval_strategy and --save_strategy",
    "remove_unused_columns": "the rows hold only what is used",
    "length_column_name": "the rows' lengths are known",
    "push_to_hub": "what was trained stays in --output_dir; upload the folder by hand",
    "deepspeed": "--fsdp splits a model over GPUs; DeepSpeed would read its checkpoints by plain pickle",
    "fsdp_config": "--fsdp alone splits all that can be",
    "accelerator_config": "batches and gradients are shared as --fsdp, or torchrun without it, needs it",
    "dataloader_drop_last": "every record of an epoch is learnt",
    "average_tokens_across_devices": "the loss of a step is the mean over the tokens of all processes",
}


@dataclass
class FinetuneArguments(NarrowFlags, GraphFlags, TrainingArguments):
    """How it is trained: transformers' TrainingArguments with this project's defaults (the others: --help_all)."""

    _argument_group_name = "training"

    output_dir: str | None = option(None, "folder for the adapter, its checkpoints, run.json, curve and log")
    do_train: bool = option(False, "train (needed)")
    do_eval: bool = option(False, "evaluate on the validation records, each epoch unless --eval_strategy says else")
    num_train_epochs: float = option(10, "passes over the training records")
    max_steps: int = option(-1, "stop after this many optimizer steps; -1: --num_train_epochs decides")
    per_device_train_batch_size: int | None = option(
        None, "records a forward pass, per process; default: 16, on a GPU regrouped to what the memory holds"
    )
    per_device_eval_batch_size: int = option(16, "the same while evaluating")
    gradient_accumulation_steps: int = option(8, "forward passes before one optimizer step")
    learning_rate: float = option(1e-4, "peak learning rate")
    weight_decay: float = option(5e-4, "weight decay of AdamW")
    adam_beta2: float = option(0.95, "second beta of AdamW")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm")
    optim: str = option("adamw_torch", "optimizer; the paged ones and those of 8 bits need a GPU")
    lr_scheduler_type: str = option("linear", "linear, cosine, constant, constant_with_warmup, …")
    warmup_steps: float = option(0, "steps, or (below 1) the share of all steps, in which the learning rate rises")
    gradient_checkpointing: bool | None = option(
        None, "save memory by computing twice; default: only where the GPU's memory needs it"
    )
    packing: bool | None = option(
        None,
        "the records of a batch in one row without padding, none seeing another; default: on a GPU, where the base can",
    )
    use_liger_kernel: bool | None = option(
        None, "fused kernels of the package liger-kernel; default: on a GPU, if it is installed and knows the base"
    )
    train_sampling_strategy: str = option(
        "group_by_length", "group_by_length (least padding), random or sequential", choices=list(ORDERS)
    )
    eval_strategy: str = option(
        "no",
        "no, steps or epoch; default: epoch with --do_eval",
        "--evaluation_strategy",
        choices=["no", "steps", "epoch"],
    )
    predict_with_generate: bool = option(False, "evaluation also predicts: triple F1 and the contest's score")
    eval_generate_samples: int = option(200, "validation records to predict at each evaluation; 0: all")
    save_strategy: str = option("epoch", "no, steps, epoch or best", choices=["no", "steps", "epoch", "best"])
    save_steps: float = option(500, "steps between two checkpoints with --save_strategy steps")
    save_total_limit: int | None = option(10, "checkpoints kept; the best one is never deleted")
    logging_steps: float = option(10, "steps between two lines of the log")
    resume_from_checkpoint: str | None = option(
        None, "auto: go on from the newest whole checkpoint, if there is one; or a checkpoint's folder"
    )
    overwrite_output_dir: bool = option(False, "start anew in a folder that holds a run: its checkpoints are deleted")
    seed: int = option(42, "seed of the split, the order of the records, the adapter and dropout")
    report_to: str = option("none", "none, tensorboard, wandb, …")
    fsdp: bool = option(False, "split the model over all GPUs, for what one cannot hold (PyTorch's FSDP2)")

    def __post_init__(self):
        if not self.do_train:
            raise UserError("--do_train is missing: nothing would be trained (to predict, use src/inference.py)")
        if not self.output_dir:
            raise UserError("--output_dir is missing; give a folder for the adapter, e.g. lora/llama-7b-r8")
        # Left out, the memory estimate decides about it, with as many records a step.
        self.may_regroup = self.per_device_train_batch_size is None and has_cuda(self.use_cpu)
        if self.per_device_train_batch_size is None:
            self.per_device_train_batch_size = 16
        check_ranges(self, TRAINING_RANGES)
        check_max_steps(self.max_steps)
        check_report_to(self.report_to)
        check_processes(self.use_cpu)
        for one in fields(TrainingArguments):
            if one.name in DECIDED and getattr(self, one.name) != one.default:
                raise UserError(f"--{one.name} cannot be set here: {DECIDED[one.name]}; drop it")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise UserError(
                "--overwrite_output_dir and --resume_from_checkpoint contradict each other; drop one of them"
            )
        check_graphs(self)
        # Autocast: products in 16 bits, the trained weights themselves in 32.
        dtype = choose_dtype(asked_dtype(self), self.use_cpu)
        self.fp16, self.bf16 = dtype.value == "float16", dtype.value == "bfloat16"
        self.precision, self.decided = Precision(dtype.value, 16), {"dtype": dtype}  # of --bits knows parse_finetune
        if self.do_eval and self.eval_strategy == "no":
            self.eval_strategy = "epoch"
        if self.predict_with_generate and self.eval_strategy == "no":
            raise UserError("--predict_with_generate: nothing is evaluated; add --do_eval, or drop it")
        check_split(self)
        if not has_cuda(self.use_cpu) and ("paged" in self.optim or "bit" in self.optim):
            say(f"optimizer: adamw_torch ({self.optim} needs a GPU)")
            self.optim = "adamw_torch"
        self.use_cpu = not has_cuda(self.use_cpu)
        # Left out, the memory estimate decides about it; until then, the side that needs less.
        self.may_skip_checkpointing = self.gradient_checkpointing is None and not self.use_cpu
        set_checkpointing(self, self.may_skip_checkpointing or bool(self.gradient_checkpointing))
        if self.use_liger_kernel and not available.has_liger():
            raise UserError("--use_liger_kernel: the package is not installed; pip install liger-kernel, or drop it")
        self.liger_kernel_config = available.LIGER
        self.metric_for_best_model = f"eval_{BEST}" if self.predict_with_generate else "eval_loss"
        self.greater_is_better = self.predict_with_generate
        # Only where every checkpoint has been evaluated; TrainingArguments evaluates each --logging_steps by default.
        evaluated = self.eval_strategy != "steps" or self.save_steps % (self.eval_steps or self.logging_steps) == 0
        self.load_best_model_at_end = self.eval_strategy != "no" and (
            self.save_strategy == "best" or (self.save_strategy == self.eval_strategy and evaluated)
        )
        self.remove_unused_columns = False
        self.ddp_find_unused_parameters = bool(self.ddp_find_unused_parameters)  # unset, it would search each step
        checkpointing = self.gradient_checkpointing
        if self.fsdp:
            self.ddp_backend = None if self.use_cpu else "cuda:nccl,cpu:gloo"  # what is gathered lies on the CPU
            self.fsdp_config = dict(CONFIG)
            # Each pass's gradients go to the cards that keep them; kept until a step ends they would be whole on each.
            self.accelerator_config = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
            set_checkpointing(self, False)  # else transformers recommends its other way, which forgets dropout's masks
        super().__post_init__()
        set_checkpointing(self, checkpointing)
        if self.fsdp and self.bf16:
            self.fsdp_plugin_args["mixed_precision_policy"] = choose_policy(self.precision.dtype)
        if self.n_gpu > 1:  # one process, several cards: the Trainer would split every batch over threads, slowly
            say(f"GPUs: 1 of {self.n_gpu} (torchrun --nproc_per_node={self.n_gpu} uses them all)")
            self._n_gpu = 1


def check_split(args) -> None:
    """UserError for what does not go with a model that is split over cards."""
    if not args.fsdp:
        return
    if not this_process().launched:
        raise UserError("--fsdp: one process has nobody to share with; start it with torchrun --nproc_per_node=2 …")
    if args.predict_with_generate:
        raise UserError("--predict_with_generate does not work on a model split by --fsdp; drop one of them")
    if "paged" in args.optim or "bit" in args.optim:
        raise UserError(f"--optim {args.optim} does not work on a model split by --fsdp; drop one of them")
    if args.fp16:
        raise UserError("--fp16 and --fsdp: a split model is trained in bf16 or fp32; give --bf16, or drop --fsdp")


def check_bits(bits: int | None, full: bool, args) -> None:
    """UserError for narrow weights where they would have to be trained or split."""
    for flag, given in (("--full_finetune", full), ("--fsdp", args.fsdp)):
        if args.fp8 and given:
            raise UserError(f"--fp8 and {flag} contradict each other: only frozen, whole weights are kept so; drop one")
    if bits not in (4, 8):
        return
    if args.cuda_graphs:
        raise UserError(f"--cuda_graphs and --bits {bits} contradict each other; drop one of them")
    if full:
        raise UserError(f"--full_finetune and --bits {bits} contradict each other: quantised weights cannot be trained")
    if args.fsdp:
        raise UserError(f"--bits {bits} and --fsdp contradict each other: quantised weights cannot be split; drop one")


class Arguments(NamedTuple):
    """Those of src/test_finetune.py."""

    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    train: FinetuneArguments


def parse_finetune(argv=None) -> Arguments:
    """The arguments of src/test_finetune.py."""
    model, data, lora, train = parse(
        (ModelArguments, DataArguments, LoraArguments, FinetuneArguments), argv, TrainingArguments
    )
    if not model.model_name_or_path:
        raise UserError("--model_name_or_path is missing; give the folder of the base model")
    model.model_name_or_path = find_snapshot(model.model_name_or_path, "model_name_or_path")
    check_apart(train.output_dir, "--model_name_or_path", model.model_name_or_path)
    check_bits(model.bits, lora.full_finetune, train)
    check_start(lora, train)
    if lora.init_lora:
        check_apart(train.output_dir, "--init_lora", lora.init_lora)
    if data.val_set_size is None:
        data.val_set_size = 1000 if train.do_eval and not data.valid_file else 0
    bits = choose_bits(model.bits or 16, train.use_cpu)
    train.precision, train.decided = train.precision._replace(bits=bits.value), {**train.decided, "bits": bits}
    return Arguments(model, data, lora, train)
