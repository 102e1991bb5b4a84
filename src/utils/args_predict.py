"""The arguments of prediction: those that both its scripts have, and those of src/inference.py."""

import math
from dataclasses import dataclass

from common.errors import UserError
from common.files import check_output
from common.processes import this_process
from utils.args import ModelArguments, PrecisionFlags, check_least, option, parse

DRAWING = ("temperature", "top_k", "top_p", "seed")  # flags that mean something only with --do_sample


@dataclass
class AnswerArguments(PrecisionFlags):
    """How answers are made."""

    _argument_group_name = "prediction"

    engine: str = option(
        "auto",
        "what makes the answers: batch (transformers' generate, in batches), fast (greedy; a finished record's place "
        "is given to a waiting one at once) or vllm (requirements-vllm.txt); auto: fast where it can serve, else batch",
        choices=["auto", "batch", "fast", "vllm"],
    )
    batch_size: int | None = option(None, "records at a time; default: what the memory holds")

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
    repetition_penalty: float = option(1.0, "divides the logits of tokens that are there already; 1: none")
    do_sample: bool = option(False, "draw each token instead of taking the likeliest")
    temperature: float | None = option(None, "with --do_sample: divides the logits; default: 1")
    top_k: int | None = option(None, "with --do_sample: only among so many tokens, 0: all; default: 50")
    top_p: float | None = option(None, "with --do_sample: only among the tokens that make up this share; default: 1")
    seed: int | None = option(None, "with --do_sample: of what is drawn for each record; default: 42")
    skip_failed: bool = option(
        False, "write the file although some records failed: their output is empty, their finish_reason error"
    )

    def __post_init__(self):
        check_least(self, 1, "batch_size", "max_new_tokens", "num_beams")
        check_least(self, 0, "max_repeats", "window", "top_k", "seed")
        if self.max_repeats == 1:
            raise UserError("--max_repeats 1: every answer would end at its first triple; give 2 or more, or 0")
        for name in ("repetition_penalty", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} {value:g}: expected a number above 0")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top_p {self.top_p:g}: expected more than 0, and 1 at most")
        for name in DRAWING:
            if getattr(self, name) is not None and not self.do_sample:
                raise UserError(f"--{name} without --do_sample: nothing is drawn; drop --{name}, or add --do_sample")
        if self.do_sample and self.num_beams > 1:
            raise UserError(
                f"--do_sample and --num_beams {self.num_beams} contradict each other: beams are not drawn; drop one"
            )


@dataclass
class InferenceArguments(AnswerArguments):
    """Prediction."""

    input_file: str = option("data/valid.json", "records to predict: JSON lines or a JSON list")
    output_file: str = option("results/results_valid.json", "where the records go, each with its output")
    lora_weights: str | None = option(None, "folder of a LoRA adapter; left out: the base alone")
    prompt_template_name: str | None = option(
        None, "default: what the adapter was trained with (run.json), else the family's", "--prompt_template"
    )
    max_new_tokens: int = option(512, "most tokens of an answer")
    num_beams: int = option(1, "beams of beam search; 1: greedy")
    device: str | None = option(None, "cpu, cuda, cuda:1, or a card's number; default: the first card, else the CPU")
    merge_lora: bool = option(False, "add the adapter into the base's weights first: faster, rounded to their numbers")
    device_map: str | None = option(
        None, "auto: spread a base that is larger than one card over all of them", choices=["auto"]
    )
    tensor_parallel_size: int = option(1, "with --engine vllm: cards that share one model")
    data_parallel_size: int | None = option(
        None, "with --engine vllm: models at a time, as many as torchrun starts processes"
    )

    def __post_init__(self):
        super().__post_init__()
        check_least(self, 1, "tensor_parallel_size", "data_parallel_size")
        for name, default in (("tensor_parallel_size", 1), ("data_parallel_size", None)):
            if getattr(self, name) != default and self.engine != "vllm":
                raise UserError(f"--{name} without --engine vllm: it is vLLM's; drop it, or add --engine vllm")
        processes = this_process().count
        for flag, given in (
            ("--engine vllm", self.engine == "vllm"),
            (f"--device {self.device}", self.device is not None),
            (f"torchrun with {processes} processes", processes > 1),
        ):
            if self.device_map and given:
                raise UserError(f"--device_map {self.device_map} and {flag} contradict each other; drop one of them")
        if self.merge_lora and not self.lora_weights:
            raise UserError("--merge_lora without --lora_weights: there is no adapter to merge; drop it")
        check_output(self.output_file, "--output_file", self.input_file)


def parse_inference(argv=None):
    """(model, prediction) arguments of src/inference.py."""
    model, args = parse((ModelArguments, InferenceArguments), argv)
    if args.device_map and model.max_memory_MB:
        raise UserError(
            f"--device_map {args.device_map} and --max_memory_MB {model.max_memory_MB} contradict each other: the "
            "cards are filled as far as the base needs; drop one of them"
        )
    return model, args
