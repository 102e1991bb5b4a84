"""Rows of tokens that were made before: kept in datasets' cache under a key of all that decides them.

The key is a hash of the records' texts, the settings (template, limits), the base's files but its large ones, the
code here that makes rows and the packages that encode: where any of them differs, another entry is made. Entries stay
until they are deleted.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import datasets
from datasets import Dataset, load_from_disk

from common import manifest
from common.errors import say
from common.files import fingerprint
from data.records import TEXT_FIELDS

SOURCE = Path(__file__).resolve().parents[1]
MAKES_ROWS = ("tokens/*.py", "data/prompts.py", "models/**/*.py")  # the code whose changes may change rows
PACKAGES = ("datasets", "sentencepiece", "tokenizers", "transformers")
LARGEST = 64 * 2**20  # bytes of a base's file that counts as the tokenizer's; larger ones are weights


def cached_rows(encode, records: list[dict], base: str | Path, settings: dict, workers: int, anew: bool, what: str):
    """A dataset of `encode(record)`, one row a record, read from the cache when it was made before.

    `settings`: whatever else decides the rows, as JSON can hold it. `workers`: processes that encode. `anew`: encode in
    any case, and replace what the cache holds.
    """
    entry = Path(datasets.config.HF_DATASETS_CACHE) / "rows" / cache_key(records, base, settings)
    rows = None if anew else _read(entry, len(records), what)
    if rows is not None:
        say(f"{what}: rows read from the cache ({entry})")
        return rows
    texts = [{name: record[name] for name in TEXT_FIELDS} for record in records]
    rows = Dataset.from_list(texts).map(
        encode,
        num_proc=min(workers, len(texts)) if workers > 1 else None,
        remove_columns=list(TEXT_FIELDS),
        new_fingerprint=entry.name[:32],  # else datasets pickles the tokenizer to find its own
        desc=f"tokenising {what}",
    )
    try:
        _write(rows, entry)
    except OSError as error:
        say(f"{what}: rows not kept for the next run ({error})")
    return rows


def cache_key(records: list[dict], base: str | Path, settings: dict) -> str:
    """64 hexadecimal digits: equal ones mean equal rows."""
    code = sorted(path for pattern in MAKES_ROWS for path in SOURCE.glob(pattern))
    files = sorted(path for path in Path(base).iterdir() if path.is_file() and path.stat().st_size <= LARGEST)
    digest = hashlib.sha256()
    parts = (
        [path.name for path in files],
        fingerprint(*files),
        fingerprint(*code),
        manifest.versions(PACKAGES),
        settings,
        *([record[name] for name in TEXT_FIELDS] for record in records),
    )
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _read(entry: Path, count: int, what: str) -> Dataset | None:
    """The dataset at `entry`; None when there is none, or none that can be read."""
    if not entry.exists():
        return None
    try:
        rows = load_from_disk(entry)
        rows.data.table.validate(full=True)
        if len(rows) != count:
            raise ValueError(f"{len(rows)} rows instead of {count}")
        return rows
    except Exception as error:  # noqa: BLE001 - whatever the reader raises, the entry is of no use
        say(f"{what}: the cache holds broken rows, which are made anew ({error}; {entry})")
        return None


def _write(rows: Dataset, entry: Path) -> None:
    """Save under a temporary name and rename, so that no entry is ever half there."""
    partial = entry.with_name(f"{entry.name}.{os.getpid()}.tmp")
    try:
        rows.save_to_disk(partial)
        if entry.exists():
            shutil.rmtree(entry)
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
