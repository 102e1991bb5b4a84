"""What every command line here has in common: errors of flags are sentences, and an unknown flag names the nearest."""

import argparse
import difflib
import re
import sys

from common.errors import UserError


def command(description: str) -> argparse.ArgumentParser:
    """A parser for a small command whose help is its module's docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def check_flags(parser: argparse.ArgumentParser, argv=None) -> list[str]:
    """The command line, once all its words are known to the parser; UserError that names the nearest flag if not."""
    parser.error = _raise
    argv = list(sys.argv[1:] if argv is None else argv)
    flags = [option for action in parser._actions for option in action.option_strings]
    shown = [o for action in parser._actions if action.help != argparse.SUPPRESS for o in action.option_strings]
    for word in parser.parse_known_args(argv)[1]:
        if word.startswith("--"):
            name = word.split("=")[0]
            near = difflib.get_close_matches(name, shown, 1) or difflib.get_close_matches(name, flags, 1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            raise UserError(f"{name}: unknown flag; {hint}")
        raise UserError(f"{word!r}: a value without a flag; see --help")
    return argv


def _raise(message: str):
    # argparse writes "argument --a/--b: …"; one spelling will do.
    raise UserError(re.sub(r"^argument (--\w+)(/[\w/-]+)?", r"\1", message))
