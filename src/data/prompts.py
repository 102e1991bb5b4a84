"""templates/*.json -> the prompt of a record, as pieces that remember whether template or record wrote them."""

import json
import re
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
KEYS = ("description", "prompt_input", "prompt_no_input", "response_split")


class Piece(NamedTuple):
    text: str
    from_template: bool  # only here may `</s>` and the like be special tokens; in a record they are text


def load_template(name: str) -> dict:
    """The template called `name` in templates/, or the JSON file at that path."""
    path = Path(name) if name.endswith(".json") else TEMPLATES / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.json")))
        raise UserError(f"--prompt_template_name {name}: no such template; known: {known}, or a path ending in .json")
    try:
        template = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}); expected an object with {', '.join(KEYS)}"
        ) from None
    missing = [key for key in KEYS if not isinstance(template, dict) or not isinstance(template.get(key), str)]
    if missing:
        raise UserError(f"{path}: the template lacks {', '.join(missing)}; expected {', '.join(KEYS)}, all strings")
    return template


def make_prompt(template: dict, instruction: str, text: str) -> list[Piece]:
    """The prompt in pieces; `prompt_no_input` is used for an empty text. Nothing in the record is interpreted."""
    pattern = template["prompt_input" if text else "prompt_no_input"]
    values = {"{instruction}": instruction, "{input}": text}
    pieces = re.split(r"(\{instruction\}|\{input\})", pattern)
    return [Piece(values.get(piece, piece), piece not in values) for piece in pieces if values.get(piece, piece)]
