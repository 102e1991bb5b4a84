"""What a run decides by itself: a value and its reason, said once and kept in run.json under `decided`."""

from typing import NamedTuple

from common.errors import say


class Decision(NamedTuple):
    value: object  # as JSON keeps it
    why: str


def decide(name: str, value, why: str, words: str | None = None) -> Decision:
    """Say `NAME: WORDS (WHY)`, and give the decision back. `words`: how the value is said; default: on, off, itself."""
    if words is None:
        words = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
    say(f"{name}: {words} ({why})")
    return Decision(value, why)


def as_json(decided: dict[str, Decision]) -> dict[str, dict]:
    """Decisions by their names, as run.json keeps them: name -> {value, why}."""
    return {name: decision._asdict() for name, decision in decided.items()}
