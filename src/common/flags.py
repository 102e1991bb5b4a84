"""What every command line here has in common: errors of flags are sentences, an unknown flag names the nearest, a
value is never empty, and a number lies in its range.
"""

import argparse
import difflib
import errno
import json
import math
import os
import re
import sys
from dataclasses import field
from typing import NamedTuple

from common.errors import UserError

MOST_SEED = 2**32 - 1  # that every generator takes
MOST_DRAFTS = 15  # tokens of --drafts: with the newest one as many as attention takes at once (decoding/kept.py)
DRAWING = ("temperature", "top_k", "top_p", "seed")  # of prediction: they mean something only with --do_sample
MOST_COUNT = 10**9  # of whatever a flag counts
NO_PATH = {errno.ENAMETOOLONG: "the name is too long", errno.ELOOP: "its links lead in a circle"}
PATHS = re.compile(
    "path|file|dir|weights|checkpoint|template|tokenizer|deepspeed|base|pred|gold|check|json|vocab|out$|init_lora$"
)
SHOWN = 60  # characters of a value that is said


class Range(NamedTuple):
    """The numbers that a flag takes. NaN and infinity are never among them."""

    least: float
    most: float = math.inf
    above: bool = False  # `least` itself is not taken
    below: bool = False  # `most` itself is not taken
    words: str = ""  # what is expected, where the numbers alone say it badly

    def holds(self, value: float) -> bool:
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below or self.most == math.inf else value <= self.most
        return low and high

    def __str__(self) -> str:
        if self.words:
            return self.words
        if self.most == math.inf:
            return f"a number above {self.least:g}" if self.above else f"at least {self.least:g}"
        low = f"more than {self.least:g}" if self.above else f"{self.least:g} or more"
        return f"{low}, and less than {self.most:g}" if self.below else f"{low}, and {self.most} at most"


def check_ranges(arguments, ranges: dict[str, Range]) -> None:
    """UserError for the first number of `arguments` that is not in its range; what is None was left out."""
    for name, allowed in ranges.items():
        value = getattr(arguments, name, None)
        if value is not None and not allowed.holds(value):
            found = f"{value:g}" if isinstance(value, float) else _short(str(value))
            finite = "a finite number, " if isinstance(value, float) and not math.isfinite(value) else ""
            raise UserError(f"--{name} {found}: expected {finite}{allowed}")
        if isinstance(value, int) and value > MOST_COUNT and allowed.most == math.inf:
            raise UserError(f"--{name} {_short(str(value))}: expected {MOST_COUNT} at most")


def option(default, text: str, *aliases: str, **more):
    """A documented field of a dataclass of flags; `aliases` are other spellings of its flag, those of the original
    documentation among them.
    """
    return field(default=default, metadata={"help": text, "aliases": list(aliases), **more})


def help_of(action: argparse.Action) -> str | None:
    """What --help says of a flag: its words, and its default where it has one that they do not name."""
    default = action.default
    has_none = action.nargs == 0 or default is None or default is False or default == argparse.SUPPRESS
    return action.help if has_none or "default" in (action.help or "") else f"{action.help} (default: %(default)s)"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return help_of(action)


def command(description: str) -> argparse.ArgumentParser:
    """A parser for a small command whose help is its module's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=_Formatter, allow_abbrev=False)


def split_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words of a command line before the first `--`, and those behind it, which are another command's."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def parse_flags(parser: argparse.ArgumentParser, argv=None, nearest=None) -> argparse.Namespace:
    """The arguments of a small command; UserError for a command line that is none."""
    return parser.parse_args(check_flags(parser, argv, nearest))


def check_flags(parser: argparse.ArgumentParser, argv=None, nearest=None) -> list[str]:
    """The command line, once all its words are known to the parser and no value is empty; UserError that names the
    nearest flag, or the flag of the value, if not.

    `nearest(flag)`: the flag that one of another tool means, or None.
    """
    parser.error = _raise
    argv = list(sys.argv[1:] if argv is None else argv)
    check_values(argv)
    flags = [option for action in parser._actions for option in action.option_strings]
    shown = [o for action in parser._actions if action.help != argparse.SUPPRESS for o in action.option_strings]
    for name in (word.split("=")[0] for word in argv if word.startswith("--")):
        if name not in flags:
            near = [nearest(name)] if nearest and nearest(name) else difflib.get_close_matches(name, shown, 1)
            near = near or difflib.get_close_matches(name, flags, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            raise UserError(f"{name}: unknown flag; {hint}")
    for word in parser.parse_known_args(argv)[1]:
        raise UserError(f"{word!r}: a value without a flag; see --help")
    return argv


def check_values(argv: list[str]) -> None:
    """UserError that names the flag of a value that is empty, or a path that no file can have."""
    flag = None
    for word in argv:
        value = word
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            if not equals:
                continue
        said = f"{flag} {_short(value)}" if flag else _short(value)
        if not value.strip():
            raise UserError(f"{flag or 'the command line'}: a value is empty; give one, or leave the flag out")
        if reason := _why_no_path(value) if flag is None or PATHS.search(flag) else None:
            raise UserError(f"{said}: {reason}; give another path")
        if str(flag).endswith(("_kwargs", "_config")) and value.startswith("{"):
            check_json(said, value)


def check_json(said: str, value: str) -> None:
    """UserError for a value, and its flag, that begins as JSON and is none."""
    try:
        json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{said}: not JSON ({error})") from None


def _why_no_path(value: str) -> str | None:
    """Why no file can be at a path."""
    try:
        os.stat(value)
    except OSError as error:
        return NO_PATH.get(error.errno)
    return None


def _short(value: str) -> str:
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}…"


def _raise(message: str):
    # argparse writes "argument --a/--b: …"; one spelling will do. A number may have any length.
    message = message.replace("expected one argument", "its value is missing")
    message = re.sub(r"\S{200,}", lambda word: _short(word[0]), message)
    raise UserError(re.sub(r"^argument (--\w+)(/[\w/-]+)?", r"\1", message))
