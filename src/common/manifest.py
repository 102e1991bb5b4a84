"""run.json: what a run was made of, written beside its adapter, read by prediction."""

import importlib.metadata
from pathlib import Path

from common.errors import UserError, say
from common.files import peek_json, read_json, to_line, write_lines

NAME = "run.json"
ADVICE = "mend it, or delete the file and give its flags by hand"
WORDS = {str: "a text", dict: "an object", int: "a whole number above 0"}
KEYS = {  # that are read -> the type, or the values, that they may have; an object stands before what is in it
    "status": str,
    "base": str,
    "model_name": str,
    "template_name": str,
    "template": dict,
    "precision": dict,
    "precision.name": ("float32", "bfloat16", "float16"),
    "precision.bits": (4, 8, 16),
    "training": dict,
    "training.max_len": int,
    "training.max_src_len": int,
    "training.schema_batch": int,
    "training.answer_order": ("head", "tail"),
    "training.answer_format": ("text", "json"),
}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed")


def write_run(folder: str | Path, settings: dict) -> None:
    """Write run.json whole or not at all."""
    write_lines(Path(folder) / NAME, [to_line(settings, indent=2)])


def write_run_of(file: str | Path, settings: dict) -> None:
    """How a results file was made, beside it: results/valid.json -> results/valid.run.json."""
    write_lines(run_file_of(file), [to_line(settings, indent=2)])


def run_file_of(file: str | Path) -> Path:
    """Where it stands, or will: out.run.json for out.json; out.json.run.json where out.run.json is of out.jsonl, which
    is there, too. Once made, that is read first.
    """
    file = Path(file)
    own, shared = file.with_name(f"{file.name}.{NAME}"), file.with_name(f"{file.stem}.{NAME}")
    found = peek_json(shared)
    other = Path(str(found.get("output"))) if isinstance(found, dict) else file
    taken = other.name != file.name and other.stem == file.stem and (file.parent / other.name).is_file()
    return own if taken or own.is_file() else shared


def made_of(found, output: str | Path) -> dict | None:
    """`found`, which stands in `run_file_of(output)`, where it has the `settings` that this output was made with; None
    where it has none, or is about another file, as a copy is.
    """
    known = isinstance(found, dict) and isinstance(found.get("settings"), dict)
    return found if known and found.get("output", Path(output).name) == Path(output).name else None


def find_run(folder: str | Path) -> Path | None:
    """The run.json of an adapter's folder or, for a checkpoint-N, of the run it belongs to."""
    folder = Path(folder).resolve()
    places = (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,)
    return next((place / NAME for place in places if (place / NAME).is_file()), None)


def read_run(folder: str | Path) -> dict:
    """What `find_run` finds, {} without one; UserError with file and key for what no run says of itself."""
    file = find_run(folder)
    if file is None:
        return {}
    found = read_json(file, ADVICE)
    if not isinstance(found, dict):
        raise UserError(f"{file}: no JSON object; {ADVICE}")
    for name, allowed in KEYS.items():
        above, _, key = name.rpartition(".")
        value = ((found.get(above) or {}) if above else found).get(key)
        if value is None:
            continue
        is_one = value in allowed if isinstance(allowed, tuple) else type(value) is allowed
        if not is_one or (allowed is int and value < 1):
            expected = WORDS.get(allowed) or f"one of {', '.join(map(str, allowed))}"
            raise UserError(f"{file}: {name} is {value!r:.60}, expected {expected}; {ADVICE}")
    return found


def prefer(flag: str, typed, recorded, default=None):
    """A flag's value: what was typed, else what the run recorded, else `default`. A contradiction is said."""
    if typed is None:
        return default if recorded is None else recorded
    if recorded is not None and typed != recorded:
        say(f"warning: --{flag} {typed} contradicts run.json, which says {recorded}; using {typed}")
    return typed


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Those of `packages` that are installed; left out: what decides what a run computes."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
