"""Where tokenised rows are kept between runs: under a name made of everything they depend on."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import datasets

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")  # suffixes of files that decide nothing about tokens
CODE = Path(__file__).resolve().parents[1]


def rows_file(base: str | Path, *made_of) -> Path:
    """The file, in datasets' own cache folder (HF_DATASETS_CACHE), of rows made with the tokenizer in folder `base`.

    Its name is the SHA-256 of that folder's files but the weights, of `made_of` (records, template, limits: whatever
    JSON can hold), of this project's code and of the tokenizer packages' versions.
    """
    digest = hashlib.sha256(json.dumps(made_of, ensure_ascii=False).encode())
    for package in ("transformers", "tokenizers", "datasets"):
        digest.update(version(package).encode())
    own = sorted(CODE.rglob("*.py"))
    for file in own + sorted(path for path in Path(base).iterdir() if path.is_file() and path.suffix not in WEIGHTS):
        digest.update(file.name.encode() + file.read_bytes())
    return Path(datasets.config.HF_DATASETS_CACHE) / "triples" / f"{digest.hexdigest()[:32]}.arrow"


def parts(file: Path) -> list[Path]:
    """The files that are there: one, or one of each process that tokenised."""
    return sorted(file.parent.glob(f"{file.stem}*.arrow"))
