"""Which family a checkpoint is of, and whether its own code may run."""

import importlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import transformers
from transformers import AutoConfig

from checkpoints.config import read_config, unusable
from common.errors import UserError, say
from common.manifest import prefer
from models.families import FAMILIES, NAMES, Family


def find_family(model_path: str | Path, model_name: str | None = None) -> tuple[Family, str, str]:
    """The family of a checkpoint, the name it goes by, and why.

    `config.json` decides; `model_name` (one of NAMES, or None) chooses among the names of that family. A name of
    another family is a UserError, and so is a checkpoint that the family cannot read.
    """
    config = read_config(model_path)
    model_type = str(config.get("model_type", "")).lower()
    own = next((family for family in FAMILIES if _is_of(family, config, Path(model_path))), FAMILIES[-1])
    if model_name is not None and model_name not in NAMES:
        raise UserError(f"--model_name {model_name}: not a family; known: {', '.join(NAMES)} (or leave it out)")
    named = own if model_name is None else next(family for family in FAMILIES if model_name in family.templates)
    if own.tokenizer != named.tokenizer and not named.model_types:  # else "auto" serves it all the same
        raise UserError(
            f"--model_name {model_name} contradicts {model_path}, a {own.name} checkpoint"
            + (f" with {own.told_by}" if own.told_by else "")
            + f"; drop --model_name, or give one of {', '.join(own.templates)}"
        )
    if named.model_types and model_type not in named.model_types:
        raise UserError(
            f"--model_name {model_name} contradicts {model_path}/config.json, whose model_type is {model_type!r}; "
            "drop --model_name to use what the checkpoint says, or give the checkpoint you meant"
        )
    for key, values, words in named.refused:
        if key in config and (not values or config[key] in values):
            raise UserError(f"--model_name_or_path {model_path} {words} ({key} {config[key]} in config.json)")
    if named.package:
        importlib.import_module(named.package)
    if model_name is None:
        untold = next((one.told_by for one in FAMILIES if one is not own and model_type in one.model_types), None)
        return own, own.name, f"model_type {model_type} in config.json" + (f", no {untold}" if untold else "")
    return named, model_name, "--model_name"


def _is_of(family: Family, config: dict, folder: Path) -> bool:
    """Whether the checkpoint in `folder`, with this config.json, is of a family."""
    if str(config.get("model_type", "")).lower() not in family.model_types:
        return False
    key, values = family.told_by_config or (None, ())
    return (key is None or config.get(key) in values) and (
        family.told_by is None or (folder / family.told_by).is_file()
    )


def may_run_code(family: Family, trusted: bool) -> bool:
    """Whether a checkpoint's own Python code may run: as --trust_remote_code says, unless nothing would need it."""
    if trusted and family.package:
        say(f"trust_remote_code: not needed, the code of family {family.name} is here ({family.package})")
    return trusted and not family.package


class Chosen(NamedTuple):
    """What a base is taken for."""

    family: Family
    name: str  # that it goes by, of --model_name
    trust: bool  # whether its own Python code may run

    @property
    def template_name(self) -> str:
        return self.family.templates[self.name]


def choose_family(model_path: str | Path, model_name: str | None, trusted: bool, run: dict | None = None) -> Chosen:
    """Family and name of a base, said with their reason: a flag's, else that of `run` (run.json), else config.json's.

    `model_name`, `trusted`: --model_name and --trust_remote_code, which is without effect where nothing would need it.
    UserError, too, for a config.json that transformers cannot use.
    """
    recorded = (run or {}).get("model_name")
    family, name, why = find_family(model_path, prefer("model_name", model_name, recorded))
    alike = "" if name == family.name else f", as {name}"
    say(f"family: {family.name}{alike} ({'run.json' if recorded == name else why})")
    trust = may_run_code(family, trusted)
    with usable_config(model_path, trust):
        AutoConfig.from_pretrained(model_path, trust_remote_code=trust)
    return Chosen(family, name, trust)


@contextmanager
def usable_config(folder: str | Path, trusted: bool):
    """Errors around what transformers makes of a config.json become UserErrors, as in `own_code`."""
    try:
        with own_code(folder, trusted):
            yield
    except UserError:
        raise
    except Exception as error:  # its settings reach code that raises anything
        raise unusable(folder, error) from error


@contextmanager
def own_code(folder: str | Path, trusted: bool):
    """Errors around the Python code that a checkpoint brings along, not allowed or broken, become UserErrors."""
    try:
        yield
    except Exception as error:
        files = ", ".join(sorted(path.name for path in Path(folder).glob("*.py")))
        if not trusted and "trust_remote_code" in str(error):
            raise UserError(
                f"{folder} needs Python code of its own ({files or 'from another repository'}), which runs only with "
                "--trust_remote_code; read it, and add the flag if you trust it"
            ) from None
        if trusted and files and not isinstance(error, (OSError, ValueError, RuntimeError)):
            raise UserError(
                f"--trust_remote_code: the Python code of {folder} ({files}) fails with transformers "
                f"{transformers.__version__} ({type(error).__name__}: {error}). It may be written for another "
                "version, or need a package that is not installed"
            ) from error
        raise
