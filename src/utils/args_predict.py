"""The arguments of prediction: those that both its scripts have, and those of src/inference.py."""

import re
from dataclasses import dataclass

from common.errors import UserError
from common.files import check_output
from common.flags import DRAWING, MOST_DRAFTS, MOST_SEED, Range, check_ranges, option
from common.manifest import run_file_of
from common.processes import this_process
from kg.permitted import BOUND
from utils.args_base import ModelArguments, NarrowFlags, PrecisionFlags, parse
from utils.args_ray import RAY_RANGES, RayFlags
from utils.args_schema import SCHEMA_RANGES, AskedFlags, check_form

MOST_BEAMS = 1024
SCALE = Range(0.001, 1000, words="a number above 0, from 0.001 to 1000")  # beyond, the logits lose their order
RANGES = {
    "batch_size": Range(1),
    "max_new_tokens": Range(1),
    "num_beams": Range(1),
    "max_repeats": Range(0),
    "window": Range(0),
    "repetition_penalty": SCALE,
    "temperature": SCALE,
    "top_k": Range(0),
    "top_p": Range(0, 1, above=True),
    "seed": Range(0, MOST_SEED),
    "max_len": Range(1),
    "max_src_len": Range(1),
    "tensor_parallel_size": Range(1),
    "data_parallel_size": Range(1),
    **SCHEMA_RANGES,
    **RAY_RANGES,
}


@dataclass
class AnswerArguments(AskedFlags, PrecisionFlags):
    """How answers are made."""

    _argument_group_name = "prediction"

    engine: str = option(
        "auto",
        "what makes the answers: batch (transformers' generate, in batches), fast (greedy; a finished record's place "
        "is given to a waiting one at once) or vllm (requirements-vllm.txt); auto: fast where it can serve, else batch",
        choices=["auto", "batch", "fast", "vllm"],
    )
    batch_size: int | None = option(None, "records at a time; default: what the memory holds")

    drafts: str = option(
        "auto",
        "with the engine fast: most tokens that are looked up in prompt and answer and verified together, which "
        "changes no answer; 0: none; auto: what pays for the rows and the device",
    )

    retry_length: bool = option(
        False, "ask once more, with twice --max_new_tokens, where an answer was stopped at --max_new_tokens"
    )
    max_repeats: int = option(
        3, "an answer that says one triple this often is stopped there, finish_reason loop; 0: it may go on"
    )
    window: int | None = option(
        None,
        "texts whose prompt would have more tokens are split at sentence ends, and the triples merged; without a "
        "number, or with 0: what the base's context leaves beside --max_new_tokens; default: no text is split",
        nargs="?",
        const=0,
    )
    constrain: str | None = option(
        None,
        "answers hold only relations that were asked for, no triple twice, and are well-formed; text: heads and tails "
        "stand in the record's text too, head: heads alone (also with --answer_order tail); default: answers may hold "
        "anything",
        nargs="?",
        const="relations",
        choices=list(BOUND),
    )
    constrain_exempt: str | None = option(
        None,
        "with --constrain text or head: records whose instruction holds this regular expression, as those that ask "
        "for completion, may name what is not in the text; default: none may",
    )
    repetition_penalty: float = option(1.0, "divides the logits of tokens that are there already; 1: none")
    do_sample: bool = option(False, "draw each token instead of taking the likeliest")
    temperature: float | None = option(None, "with --do_sample: divides the logits; default: 1")
    top_k: int | None = option(None, "with --do_sample: only among so many tokens, 0: all; default: 50")
    top_p: float | None = option(None, "with --do_sample: only among the tokens that make up this share; default: 1")
    seed: int | None = option(
        None, "with --do_sample, --shuffle_schema or --votes: of what is drawn for each record; default: 42"
    )
    skip_failed: bool = option(
        False, "write the file although some records failed: their output is empty, their finish_reason error"
    )

    def __post_init__(self):
        check_ranges(self, RANGES)
        if self.num_beams > MOST_BEAMS:
            raise UserError(f"--num_beams {self.num_beams}: expected {MOST_BEAMS} at most")
        if self.max_repeats == 1:
            raise UserError("--max_repeats 1: every answer would end at its first triple; give 2 or more, or 0")
        self._check_drafts()
        self._check_constrain()
        check_form(self.answer_format, self.answer_order, self.constrain)
        self.check_votes()
        if self.confidence and self.num_beams > 1:
            raise UserError(f"--confidence and --num_beams {self.num_beams} do not go together; drop one")
        for name in DRAWING:
            used = self.do_sample or (name == "seed" and (self.shuffle_schema or self.votes > 1))
            if getattr(self, name) is not None and not used:
                raise UserError(f"--{name} without --do_sample: nothing is drawn; drop --{name}, or add --do_sample")
        if self.do_sample and self.num_beams > 1:
            raise UserError(
                f"--do_sample and --num_beams {self.num_beams} contradict each other: beams are not drawn; drop one"
            )

    def _check_drafts(self):
        if self.drafts == "auto":
            return
        if not (self.drafts.isascii() and self.drafts.isdigit() and int(self.drafts) <= MOST_DRAFTS):
            raise UserError(f"--drafts {self.drafts}: expected auto, or tokens from 0 to {MOST_DRAFTS}")
        if int(self.drafts) and self.engine in ("batch", "vllm"):
            raise UserError(f"--drafts {self.drafts} and --engine {self.engine}: only fast has drafts; drop one")

    def _check_constrain(self):
        for flag, given in (("--do_sample", self.do_sample), (f"--num_beams {self.num_beams}", self.num_beams > 1)):
            if self.constrain and given:
                raise UserError(f"--constrain and {flag} do not go together: constrained answers are greedy; drop one")
        if self.constrain_exempt is None:
            return
        if not any(BOUND.get(self.constrain, ())):
            raise UserError("--constrain_exempt without --constrain text or head: no record is bound to its text")
        try:
            re.compile(self.constrain_exempt)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"--constrain_exempt {self.constrain_exempt}: no regular expression ({error})") from None


@dataclass
class AdapterArguments(NarrowFlags, AnswerArguments):
    """What answers: a base alone or with an adapter."""

    lora_weights: str | None = option(None, "folder of a LoRA adapter; left out: the base alone")
    prompt_template_name: str | None = option(
        None, "default: what the adapter was trained with (run.json), else the family's", "--prompt_template"
    )
    max_new_tokens: int = option(512, "most tokens of an answer")
    num_beams: int = option(1, "beams of beam search; 1: greedy")
    device: str | None = option(None, "cpu, cuda, cuda:1, or a GPU's number; default: the first GPU, else the CPU")
    merge_lora: bool = option(False, "add the adapter into the base's weights first: faster, rounded to their numbers")
    device_map: str | None = option(
        None, "auto: spread a base that is larger than one GPU over all of them", choices=["auto"]
    )
    tensor_parallel_size: int = option(1, "with --engine vllm: GPUs that share one model")
    data_parallel_size: int | None = option(
        None, "with --engine vllm: models at a time, as many as torchrun starts processes"
    )

    def __post_init__(self):
        super().__post_init__()
        for name, default in (("tensor_parallel_size", 1), ("data_parallel_size", None)):
            if getattr(self, name) != default and self.engine != "vllm":
                raise UserError(f"--{name} without --engine vllm: it is vLLM's; drop it, or add --engine vllm")
        processes = this_process().count
        for flag, given in (
            ("--engine vllm", self.engine == "vllm"),
            ("--fp8", self.fp8),
            (f"--device {self.device}", self.device is not None),
            (f"torchrun with {processes} processes", processes > 1),
        ):
            if self.device_map and given:
                raise UserError(f"--device_map {self.device_map} and {flag} contradict each other; drop one of them")
        if self.fp8 and self.engine == "vllm":
            raise UserError("--fp8 and --engine vllm contradict each other; drop one of them")
        if self.merge_lora and not self.lora_weights:
            raise UserError("--merge_lora without --lora_weights: there is no adapter to merge; drop it")


@dataclass
class ReplaceFlags:
    """What becomes of a finished file that stands where the results go."""

    overwrite_output_file: bool = option(
        False,
        "replace a finished --output_file of another input, adapter or other settings; default: it is kept, "
        "results.json as results.before.json",
    )


@dataclass
class InferenceArguments(ReplaceFlags, RayFlags, AdapterArguments):
    """Prediction."""

    input_file: str = option("data/valid.json", "records to predict: JSON lines or a JSON list")
    output_file: str = option("results/results_valid.json", "where the records go, each with its output")

    def __post_init__(self):
        super().__post_init__()
        self.check_ray()
        check_outputs(self)


def check_outputs(args) -> None:
    """UserError when what is written, the results and how they were made, could not be, or would replace an input."""
    inputs = args.input_file, args.prompt_template_name
    check_output(args.output_file, "--output_file", *inputs)
    check_output(run_file_of(args.output_file), "--output_file", *inputs)


def parse_inference(argv=None):
    """(model, prediction) arguments of src/inference.py."""
    return parse_adapter(InferenceArguments, argv)


def parse_adapter(kind: type[AdapterArguments], argv=None):
    """(model, prediction) arguments of a script whose own flags are those of `kind`."""
    model, args = parse((ModelArguments, kind), argv)
    if args.device_map and model.max_memory_MB:
        raise UserError(
            f"--device_map {args.device_map} and --max_memory_MB {model.max_memory_MB} contradict each other: the "
            "GPUs are filled as far as the base needs; drop one of them"
        )
    return model, args
