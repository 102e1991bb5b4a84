"""The forms of conversations: ShareGPT's, chat messages, and what LLaMA-Factory writes of its predictions."""

from data.wording import Found
from kg.schema import read_schema

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
EARLIER, SYSTEM = "earlier turns, which a later question does not show", "the system's line, which is not asked"


def tell_sharegpt(record: dict) -> bool:
    return _turns(record.get("conversations"), "from", "value") is not None


def tell_messages(record: dict) -> bool:
    return _turns(_messages(record), "role", "content") is not None


def read_chat(record: dict) -> list[Found]:
    """A record of each question of a conversation and its reply; of a last question without one, without an output.

    What a user says is the instruction; where its first line names the relations, and others follow, these are the
    text. The system's line is kept in the field system.
    """
    turns = _turns(record.get("conversations"), "from", "value") or _turns(_messages(record), "role", "content")
    if turns is None:
        raise ValueError("it holds no conversation of known roles (human, gpt, system; user, assistant, system)")
    kept = {name: value for name, value in record.items() if name not in ("conversations", "messages")}
    system = [text for role, text in turns if role == "system"] or [
        text for text in [record.get("system")] if isinstance(text, str) and text
    ]
    spoken, found = [turn for turn in turns if turn[0] != "system"], []
    for at, (role, text) in enumerate(spoken):
        if role != "user":
            continue
        instruction, line, rest = text.partition("\n")
        split = bool(line and rest.strip() and read_schema(instruction))
        made = {**kept, "instruction": instruction if split else text, "input": rest if split else ""}
        if found and "id" in kept:
            made["id"] = f"{kept['id']}-{len(found) + 1}"
        if system:
            made["system"] = "\n".join(system)
        if at + 1 < len(spoken) and spoken[at + 1][0] == "assistant":
            made["output"] = spoken[at + 1][1]
        lost = [word for word, there in ((EARLIER, found), (SYSTEM, system)) if there]
        found.append(Found(made, lost=tuple(lost)))
    if not found:
        raise ValueError("nobody asks anything in its conversation")
    return found


def write_messages(record: dict, triples, groups) -> tuple[list[dict], list[str]]:
    """What is asked in one message, the text behind the instruction, and the output."""
    texts = [record.get(name) or "" for name in ("instruction", "input")]
    asked = "\n".join(filter(None, texts))
    said = [("system", record.get("system")), ("user", asked), ("assistant", record.get("output"))]
    kept = {name: value for name, value in record.items() if name not in ("instruction", "input", "output", "system")}
    messages = [{"role": role, "content": text} for role, text in said if isinstance(text, str)]
    return [{**kept, "messages": messages}], []


def tell_predictions(record: dict) -> bool:
    return all(isinstance(record.get(name), str) for name in ("prompt", "predict", "label"))


def read_predictions(record: dict, answer: str) -> list[Found]:
    """The prompt, whole, as instruction; `answer` (predict or label) as output."""
    if not tell_predictions(record):
        raise ValueError("prompt, predict or label is missing, or no string")
    kept = {name: value for name, value in record.items() if name not in ("prompt", "predict", "label")}
    return [Found({**kept, "instruction": record["prompt"], "input": "", "output": record[answer]})]


def _messages(record: dict):
    return record.get("messages", record.get("conversations"))


def _turns(value, who: str, what: str) -> list[tuple[str, str]] | None:
    """(role, text) of each turn; None for what is no conversation with these keys."""
    if not isinstance(value, list) or not value:
        return None
    turns = [(ROLES.get(one.get(who)), one.get(what)) if isinstance(one, dict) else (None, None) for one in value]
    return turns if all(role and isinstance(text, str) for role, text in turns) else None
