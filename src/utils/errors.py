"""Errors that are the user's to mend: one sentence, no traceback."""

import os
import sys


class UserError(Exception):
    """Bad input. The message names the file and line, or the flag, what was found, what was expected and what to do."""


def run_script(main) -> None:
    """Call `main()`; a `UserError` becomes one message on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def say(message: str) -> None:
    """One line for the person at the terminal: to stderr, at once, and only from the first process of a run."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
