"""templates/*.json -> the prompt of a record, as pieces that remember whether template or record wrote them."""

import re
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError, say
from common.files import read_json

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
PROMPTS = ("prompt_input", "prompt_no_input")  # what a template must hold; for records with a text, and without one
CHAT = "chat"  # the name of the tokenizer's own template, which tokens.chat makes
EXPECTED = f"expected an object with {' and '.join(PROMPTS)}, both strings"


class Piece(NamedTuple):
    """A stretch of a prompt."""

    text: str
    from_template: bool  # only here may `</s>` and the like be special tokens; in a record they are text


def load_template(name: str) -> dict:
    """The template called `name` in templates/, or the JSON file at that path; of `CHAT` only that it is to be read."""
    if name == CHAT:
        return {"chat": True}
    path = Path(name) if name.endswith(".json") else TEMPLATES / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.json")))
        raise UserError(
            f"--prompt_template_name {name}: no such template; known: {known}, {CHAT} (the "
            "tokenizer's own), or a path ending in .json"
        )
    return check_template(read_json(path, EXPECTED), str(path))


def check_template(template, where: str) -> dict:
    """The template; UserError, which begins with `where`, for one that would not show a model the record."""
    missing = [key for key in PROMPTS if not isinstance(template, dict) or not isinstance(template.get(key), str)]
    if missing:
        raise UserError(f"{where}: the template lacks {', '.join(missing)}; {EXPECTED}")
    for key in PROMPTS:
        if "{instruction}" not in template[key] and "{input}" not in template[key]:
            others = ", ".join(dict.fromkeys(re.findall(r"\{+\w*\}+", template[key])))
            found = f"only {others}" if others else "neither" if template[key].strip() else "nothing"
            raise UserError(
                f"{where}: {key} holds {found}; expected {{instruction}} or {{input}}, where the record's instruction "
                "and text go"
            )
        if re.search("[\ud800-\udfff]", template[key]):
            raise UserError(f"{where}: {key} holds half a surrogate pair, which is no character; remove it")
    if "{input}" not in template["prompt_input"]:
        say(f"warning: {where}: prompt_input has no {{input}}, so no model sees the records' texts")
    return template


def make_prompt(template: dict, instruction: str, text: str) -> list[Piece]:
    """The prompt in pieces; `prompt_no_input` is used for an empty text. Nothing in the record is interpreted.

    A chat template that `trims` shows it without the blanks at its beginning and end.
    """
    if template.get("trims"):
        instruction, text = (instruction.lstrip(), text.rstrip()) if instruction.strip() else (text.strip(), "")
        instruction = instruction if text else instruction.rstrip()
    pattern = template["prompt_input" if text else "prompt_no_input"]
    values = {"{instruction}": instruction, "{input}": text}
    pieces = re.split(r"(\{instruction\}|\{input\})", pattern)
    return [Piece(values.get(piece, piece), piece not in values) for piece in pieces if values.get(piece, piece)]


def make_answer(template: dict, output: str) -> str:
    """The answer as it stands behind the prompt, without its end: a chat template may put something around it."""
    output = output.strip() if template.get("trims_answer") else output
    return f"{template.get('answer_lead', '')}{output}{template.get('answer_tail', '')}"
