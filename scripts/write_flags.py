"""Write the flags and defaults in docs/flags.md and docs/flags_CN.md from the parsers. What a flag means is written
by hand, in both languages: rows keep their meaning, and a flag without a row gets one with the words of --help.

    python scripts/write_flags.py           # mend both pages
    python scripts/write_flags.py --check   # say only what differs
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from transformers import TrainingArguments

from common.errors import UserError, run_script
from utils import args, args_base, args_extract, args_predict, args_serve

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/flags.md", "docs/flags_CN.md")
MODEL = args_base.ModelArguments
# A command, the dataclasses of its flags, and the command whose flags it shares: those are listed there alone.
COMMANDS = {
    "src/test_finetune.py": ((MODEL, args.DataArguments, args.LoraArguments, args.FinetuneArguments), None),
    "src/inference.py": ((MODEL, args_predict.InferenceArguments), None),
    "src/extract.py --text": ((MODEL, args_serve.ExtractArguments), "src/inference.py"),
    "src/extract.py --input": ((MODEL, args_extract.CorpusArguments), "src/inference.py"),
    "src/serve.py": ((MODEL, args_serve.ServeArguments), "src/inference.py"),
}


def make_parser(command: str) -> argparse.ArgumentParser:
    """The parser of a command, as the command itself makes it."""
    kinds = COMMANDS[command][0]
    return args_base.make_parser(kinds, TrainingArguments if args.FinetuneArguments in kinds else None)


def list_flags(command: str) -> dict[str, argparse.Action]:
    """What --help of a command lists: field -> its action, without those of the command whose flags it shares."""
    shared = COMMANDS[command][1]
    actions = make_parser(command)._actions
    found = {one.dest: one for one in actions if one.help != argparse.SUPPRESS and one.dest != "help"}
    known = list_flags(shared) if shared else {}

    def is_new(dest, one):
        return dest not in known or (one.default, one.help) != (known[dest].default, known[dest].help)

    return {dest: one for dest, one in found.items() if is_new(dest, one)}


def fill_page(text: str) -> str:
    """A page with the first two columns of its tables as the parsers have them, and a row for every flag."""
    first, *sections = re.split(r"(?m)^(?=## )", text)
    named = {
        command: section for section in sections for command in COMMANDS if f"`{command}`" in section.split("\n")[0]
    }
    if missing := set(COMMANDS) - set(named):
        raise UserError(f"no section for {', '.join(sorted(missing))}: expected a heading with its name in backticks")
    filled = {section: fill_section(section, list_flags(command)) for command, section in named.items()}
    return first + "".join(filled.get(section, section) for section in sections)


def fill_section(section: str, flags: dict[str, argparse.Action]) -> str:
    """One command's section; UserError for a row that names a flag which the command has not."""
    fields = {name: dest for dest, one in flags.items() for name in one.option_strings}
    lines, seen, last = section.split("\n"), set(), 0
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            continue
        last = number
        if line.startswith("| `--"):
            cells = re.split(r"(?<!\\)\|", line.strip("|"), maxsplit=2)
            names = re.findall(r"`(--\w+)`", cells[0])
            if unknown := [name for name in names if name not in fields]:
                raise UserError(f"{', '.join(unknown)}: no flag of {lines[0].strip('# ')}; drop the row, or mend it")
            row = [flags[dest] for dest in dict.fromkeys(fields[name] for name in names)]
            lines[number] = make_row(row, cells[2].strip())
            seen |= {one.dest for one in row}
    lines[last + 1 : last + 1] = [make_row([one], one.help) for dest, one in flags.items() if dest not in seen]
    return "\n".join(lines)


def make_row(row: list[argparse.Action], meaning: str) -> str:
    """A row of one or several flags: each with its old spelling, then their defaults, nothing where none has any."""
    names = " ".join(f"`{name}`" for one in row for name in one.option_strings if "-" not in name[2:])
    has_default = any(one.default is not None for one in row)
    defaults = " ".join(f"`{name_default(one)}`" for one in row) if has_default else ""
    return f"| {names} | {defaults + ' ' if defaults else ''}| {meaning} |"


def name_default(action: argparse.Action) -> str:
    """A default as the pages have it: a path in the project from there on."""
    return str(action.default).removeprefix(f"{ROOT}/")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page differs")
    check, differing = parser.parse_args(argv).check, []
    for name in PAGES:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = fill_page(old)
        differing += [name] if new != old else []
        if not check:
            (ROOT / name).write_text(new, encoding="utf-8")
    print(f"differed: {', '.join(differing) or 'nothing'}")
    raise SystemExit(bool(check and differing))


if __name__ == "__main__":
    run_script(main)
