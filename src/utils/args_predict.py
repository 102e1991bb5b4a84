"""The arguments of prediction: those that both its scripts have, and those of src/inference.py."""

from dataclasses import dataclass

from utils.args import ModelArguments, check_least, option, parse
from utils.errors import UserError
from utils.records import check_output


@dataclass
class AnswerArguments:
    """How answers are made."""

    _argument_group_name = "prediction"

    engine: str = option(
        "auto",
        "what makes the answers: batch (transformers' generate, in batches); auto: the fastest that family and device "
        "allow",
        choices=["auto", "batch"],
    )
    batch_size: int | None = option(None, "records at a time; default: what the memory holds")

    skip_failed: bool = option(
        False, "write the file although some records failed: their output is empty, their finish_reason error"
    )

    def __post_init__(self):
        check_least(self, 1, "batch_size", "max_new_tokens", "num_beams")


@dataclass
class InferenceArguments(AnswerArguments):
    """Prediction."""

    input_file: str = option("data/valid.json", "records to predict: JSON lines or a JSON list")
    output_file: str = option("results/results_valid.json", "where the records go, each with its output")
    lora_weights: str | None = option(None, "folder of a LoRA adapter; left out: the base alone")
    prompt_template_name: str | None = option(
        None, "default: what the adapter was trained with (run.json), else the family's", "--prompt_template"
    )
    fp16: bool = option(False, "16-bit floats; 32-bit ones on a CPU")
    bf16: bool = option(False, "bfloat16")
    fp32: bool = option(
        False, "32-bit floats; default: what the adapter was trained in, else what the machine does best"
    )
    max_new_tokens: int = option(512, "most tokens of an answer")
    num_beams: int = option(1, "beams of beam search; 1: greedy")
    device: str | None = option(None, "cpu, cuda, cuda:1, or a card's number; default: the first card, else the CPU")
    merge_lora: bool = option(False, "add the adapter into the base's weights first: faster, rounded to their numbers")

    def __post_init__(self):
        super().__post_init__()
        if self.merge_lora and not self.lora_weights:
            raise UserError("--merge_lora without --lora_weights: there is no adapter to merge; drop it")
        check_output(self.output_file, "--output_file", self.input_file)


def parse_inference(argv=None):
    """(model, prediction) arguments of src/inference.py."""
    return parse((ModelArguments, InferenceArguments), argv)
