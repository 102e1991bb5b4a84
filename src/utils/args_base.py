"""The arguments that every script has, and the one function that parses dataclasses of flags.

Nothing here, nor in args_predict.py, imports torch or transformers: --help and a wrong flag are answered at once.
"""

import argparse
import importlib.util
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from common.errors import UserError
from common.flags import Range, check_flags, check_ranges, help_of, option
from models.families import NAMES

FEW = Range(1, 2**16)  # of what is laid out in memory, one by one


@dataclass
class ModelArguments:
    """Which base, and in which numbers."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(None, "folder of the base model (config.json, tokenizer, weights)")
    model_name: str | None = option(
        None, f"overrides the family read from config.json: {', '.join(NAMES)}", "--model_file"
    )
    bits: int | None = option(
        None,
        "16: weights as --fp16/--bf16 say; 8 or 4: quantised by bitsandbytes; default: 16, or what the "
        "adapter was trained with",
        choices=[4, 8, 16],
    )
    max_memory_MB: int | None = option(None, "most memory of the GPU that this process may take, in MB; default: all")
    trust_remote_code: bool = option(False, "run Python code that lies in the base model's folder")

    def __post_init__(self):
        check_ranges(self, {"max_memory_MB": Range(1)})


@dataclass
class PrecisionFlags:
    """In which numbers a model multiplies: the three flags of every script that runs one."""

    fp16: bool = option(False, "16-bit floats for GPUs before Ampere; 32-bit ones on a CPU")
    bf16: bool = option(
        False,
        "bfloat16; default: what run.json says was trained in, else bfloat16 where the GPU has it, else float16; "
        "float32 on a CPU",
    )
    fp32: bool = option(False, "32-bit floats on a GPU too")


@dataclass
class NarrowFlags(PrecisionFlags):
    """Those, and 8-bit floats for what is not trained: of the scripts for adapters."""

    fp8: bool = option(
        False, "frozen weights and what they are multiplied with in 8-bit floats: for Ada, Hopper and newer GPUs"
    )


def check_max_steps(steps: int) -> None:
    if steps != -1 and steps < 1:
        raise UserError(f"--max_steps {steps}: expected at least 1, or -1: --num_train_epochs decides")


def make_parser(types, hidden: type | None = None, lists_all: bool = False) -> argparse.ArgumentParser:
    """The parser of these dataclasses. `hidden`: one among their ancestors whose own flags work, but stand in the help
    only if it `lists_all`."""
    parser = _parser_kind()(types, allow_abbrev=False, formatter_class=_Formatter)
    parser.usage = "%(prog)s [flags]"
    _accept_bare(parser, types)
    if hidden:
        parser.add_argument("--help_all", action="store_true", help="list every other argument of the Trainer too")
        if not lists_all:
            _hide(parser, types, hidden)
    return parser


def parse(types, argv=None, hidden: type | None = None):
    """One object a dataclass, from the command line; an unknown flag is a UserError naming the nearest right one.

    `hidden`: a dataclass among the ancestors of `types` whose own flags work, but are listed by --help_all alone.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    lists_all = bool(hidden) and "--help_all" in argv
    parser = make_parser(types, hidden, lists_all)
    if lists_all:
        argv = ["--help"]
    check_flags(parser, argv)
    try:
        return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)[: len(types)]
    except ValueError as error:  # TrainingArguments' own cross-checks
        raise UserError(str(error)) from None


def _parser_kind() -> type[argparse.ArgumentParser]:
    """transformers' HfArgumentParser from its own file, which needs nothing of the package: that takes seconds."""
    if "transformers" not in sys.modules:
        (folder,) = importlib.util.find_spec("transformers").submodule_search_locations
        spec = importlib.util.spec_from_file_location("hf_argparser", Path(folder) / "hf_argparser.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.HfArgumentParser
    from transformers import HfArgumentParser

    return HfArgumentParser


class _Formatter(argparse.HelpFormatter):
    """Help with defaults, wide enough to read."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=34, width=120)

    def _get_help_string(self, action):
        return help_of(action)

    def _format_action_invocation(self, action):
        # One spelling a flag: transformers adds each one again with hyphens.
        return "  ".join(flag for flag in action.option_strings if "-" not in flag.lstrip("-"))


def _accept_bare(parser, types) -> None:
    """Let a flag that is True, False or left out (`bool | None`) be True without a value, as transformers lets `bool`
    alone. The flag --no_NAME, which transformers adds to what is True, gets words of its own.
    """
    names = {one.name for kind in types for one in fields(kind) if one.type == bool | None}
    for action in parser._actions:
        if action.dest in names and action.nargs is None:
            action.nargs, action.const = "?", True
        if action.nargs == 0 and action.const is False:
            action.help = f"as --{action.dest} False"


def _hide(parser, types, hidden: type) -> None:
    """Leave a dataclass's own flags, which may be a hundred, out of --help."""
    ours = {part for kind in types for part in kind.__mro__ if part not in hidden.__mro__}
    own = {name for part in ours for name in part.__annotations__}
    for action in parser._actions:
        if action.dest not in own | {"help", "help_all"}:
            action.help = argparse.SUPPRESS
