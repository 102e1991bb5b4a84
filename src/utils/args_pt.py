"""The arguments of the two P-Tuning scripts."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from checkpoints.hub_cache import find_snapshot
from common.errors import UserError
from common.files import check_apart
from common.flags import MOST_COUNT, MOST_SEED, Range, check_ranges, option
from models.families import NAMES
from tokens.lengths import MAX_LEN, MAX_SRC_LEN, check_lengths
from utils.args_base import FEW, ModelArguments, PrecisionFlags, check_max_steps, parse
from utils.args_predict import AnswerArguments, ReplaceFlags, check_outputs
from utils.args_schema import PromptFlags, refuse_drawn_flags

RANGES = {
    "pre_seq_len": Range(1),
    "max_len": Range(1),
    "max_src_len": Range(1),
    "num_train_epochs": Range(0, 10**6, above=True),
    "train_batch_size": FEW,
    "gradient_accumulation_steps": FEW,
    "learning_rate": Range(0, above=True),
    "weight_decay": Range(0),
    "max_grad_norm": Range(0),
    "warmup_steps": Range(0, MOST_COUNT),
    "log_steps": Range(1),
    "save_steps": Range(1),
    "save_total_limit": Range(1),
    "seed": Range(0, MOST_SEED),
}


@dataclass
class TunedModelArguments(ModelArguments):
    """Which base, and in which numbers."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(
        None, "folder of the base model (config.json, tokenizer, weights)", "--model_dir"
    )


@dataclass
class OriginalModelArguments(ModelArguments):
    """Which base, and in which numbers."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(
        None, "folder of the base model; default: the one that run.json names", "--ori_model_dir"
    )


@dataclass
class PtuningArguments(PromptFlags, PrecisionFlags):
    """P-Tuning v2: what is trained, on what and how."""

    _argument_group_name = "P-Tuning v2"

    train_path: str | None = option(None, "training records: JSON lines or a JSON list", "--train_file")
    output_dir: str | None = option(None, "folder for the checkpoints global_step-N, run.json, curve and log")
    prompt_template_name: str | None = option(
        None, "the prompt of families that have one; default: the family's", "--prompt_template"
    )
    max_len: int = option(MAX_LEN, "most tokens of a row: question and answer")
    max_src_len: int = option(MAX_SRC_LEN, "most tokens of the question; a longer text loses its end")
    pre_seq_len: int = option(16, "virtual tokens in front of every layer's keys and values")
    prefix_projection: bool = option(True, "make the prefix with a small network; false: learn it directly")
    num_train_epochs: float = option(20, "passes over the training records")
    max_steps: int = option(-1, "stop after this many optimizer steps; -1: --num_train_epochs decides")
    train_batch_size: int = option(2, "records a forward pass, per process", "--per_device_train_batch_size")
    gradient_accumulation_steps: int = option(1, "forward passes before one optimizer step")
    learning_rate: float | None = option(
        None, "peak learning rate; default: 1e-4 with --prefix_projection true, 2e-2 without"
    )
    weight_decay: float = option(5e-4, "weight decay of AdamW")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm")
    lr_scheduler_type: str = option(
        "linear",
        "linear, cosine, constant, constant_with_warmup or polynomial",
        choices=["linear", "cosine", "constant", "constant_with_warmup", "polynomial"],
    )
    warmup_steps: float = option(0.1, "steps, or (below 1) the share of all steps, in which the learning rate rises")
    gradient_checkpointing: bool | None = option(
        None, "save memory by computing twice; default: on a GPU, where the architecture can"
    )
    log_steps: int = option(10, "steps between two lines of the log", "--logging_steps")
    save_steps: int | None = option(None, "steps between two checkpoints; default: one an epoch")
    save_total_limit: int = option(10, "checkpoints kept, the newest ones")
    resume: bool = option(False, "go on from the newest whole checkpoint, if there is one")
    overwrite_output_dir: bool = option(False, "start anew in a folder that holds a run: its checkpoints are deleted")
    seed: int = option(42, "seed of the prefix's first values, the order of the records and dropout")
    deepspeed: str | None = option(None, "JSON file whose settings go over this project's DeepSpeed configuration")
    local_rank: int = option(-1, "number of this process on its machine; the launcher gives it")

    def __post_init__(self):
        if not self.train_path:
            raise UserError("--train_path is missing; give the training records, e.g. data/sample/train.json")
        if not self.output_dir:
            raise UserError("--output_dir is missing; give a folder for the checkpoints, e.g. output_dir_pt")
        check_ranges(self, RANGES)
        check_max_steps(self.max_steps)
        check_lengths(self.max_len, self.max_src_len)
        if self.overwrite_output_dir and self.resume:
            raise UserError("--overwrite_output_dir and --resume contradict each other; drop one of them")
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError("P-Tuning needs the package deepspeed: pip install -r requirements.txt")
        if self.learning_rate is None:
            self.learning_rate = 1e-4 if self.prefix_projection else 2e-2

    @property
    def resume_from_checkpoint(self) -> str | None:  # what the two training scripts share asks for it by this name
        return "auto" if self.resume else None


@dataclass
class PtuningInferenceArguments(ReplaceFlags, AnswerArguments):
    """Prediction with what P-Tuning v2 trained."""

    test_path: str = option("data/valid.json", "records to predict: JSON lines or a JSON list", "--input_file")
    model_dir: str | None = option(None, "checkpoint of P-Tuning: output_dir_pt/global_step-N", "--ptuning_dir")
    output_file: str | None = option(
        None, "where the records go; default: beside the checkpoint, as NAME-OF-TEST_global_step-N.json"
    )
    prompt_template_name: str | None = option(
        None, "default: what the prefix was trained with (run.json), else the family's", "--prompt_template"
    )
    max_len: int | None = option(None, f"most tokens of question and answer; default: as trained, else {MAX_LEN}")
    max_src_len: int | None = option(None, f"most tokens of the question; default: as trained, else {MAX_SRC_LEN}")
    max_new_tokens: int | None = option(None, "most tokens of an answer; default: max_len - max_src_len")
    device: str | None = option(None, "a GPU's number, cpu, cuda or cuda:1; without a GPU: the CPU")

    window: int | None = option(
        None, "split texts that --max_src_len would cut at sentence ends, and merge the triples", nargs="?", const=0
    )
    engine: str = option(
        "auto",
        "what makes the answers: batch, or fast for ChatGLM's prefixes; auto: fast where it can serve",
        choices=["auto", "batch", "fast"],
    )
    num_beams = 1  # a class attribute, no flag: the prefix is made for one row an answer

    def __post_init__(self):
        if not self.model_dir:
            raise UserError("--model_dir is missing; give a checkpoint of P-Tuning, e.g. output_dir_pt/global_step-100")
        super().__post_init__()
        if self.drafts not in ("auto", "0"):
            raise UserError(f"--drafts {self.drafts}: a model with a prefix has none; drop it")
        check_lengths(self.max_len, self.max_src_len)
        if self.window:
            raise UserError(f"--window {self.window}: here --max_src_len says how long a window is; drop the number")
        if self.output_file is None:
            folder = Path(self.model_dir)
            self.output_file = str(folder.parent / f"{Path(self.test_path).stem}_{folder.name}.json")
        check_outputs(self)

    @property
    def input_file(self) -> str:
        return self.test_path


def parse_ptuning(argv=None):
    """(model, P-Tuning) arguments of src/finetuning_pt.py."""
    refuse_drawn_flags(argv)
    model, args = parse((TunedModelArguments, PtuningArguments), argv)
    if not model.model_name_or_path:
        raise UserError(f"--model_dir is missing; give the folder of the base model ({', '.join(NAMES)})")
    model.model_name_or_path = find_snapshot(model.model_name_or_path, "model_dir")
    check_apart(args.output_dir, "--model_dir", model.model_name_or_path)
    from common.machine import has_cuda  # torch, which --help and a wrong flag need not wait for
    from loading.precision import Precision, asked_dtype, choose_bits, choose_dtype

    on_cpu = not has_cuda()
    dtype = choose_dtype(asked_dtype(args), on_cpu)
    bits = choose_bits(model.bits or 16, on_cpu)
    args.precision, args.decided = Precision(dtype.value, bits.value), {"dtype": dtype, "bits": bits}
    return model, args


def parse_ptuning_inference(argv=None):
    """(model, prediction) arguments of src/inference_pt.py."""
    return parse((OriginalModelArguments, PtuningInferenceArguments), argv)
