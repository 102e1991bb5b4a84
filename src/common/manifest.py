"""run.json: what a run was made of, written beside its adapter, read by prediction."""

import importlib.metadata
import json
from pathlib import Path

from common.errors import UserError, say
from common.files import write_lines

NAME = "run.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed")


def write_run(folder: str | Path, settings: dict) -> None:
    """Write run.json whole or not at all."""
    write_lines(Path(folder) / NAME, [json.dumps(settings, ensure_ascii=False, indent=2)])


def write_run_of(file: str | Path, settings: dict) -> None:
    """How a results file was made, beside it: results/valid.json -> results/valid.run.json."""
    path = Path(file)
    write_lines(path.with_name(f"{path.stem}.{NAME}"), [json.dumps(settings, ensure_ascii=False, indent=2)])


def read_run(folder: str | Path) -> dict:
    """The run.json of an adapter's folder or, for a checkpoint-N, of the run it belongs to; {} when there is none."""
    folder = Path(folder).resolve()
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        file = place / NAME
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                if not isinstance(found, dict):
                    raise UserError(f"{file}: no JSON object; delete it and give its flags by hand")
                return found
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{file}:{error.lineno}: not JSON ({error.msg}); delete it and give its flags by hand"
                ) from None
    return {}


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
