"""A checkpoint folder written whole or not at all: safetensors shards, their index, config and tokenizer."""

import json
import math
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from checkpoints.stored import CODES, LAYOUTS, RECORD, Stored, blocks, contents, dtype_name, is_old, load_bin
from common import locks
from common.errors import UserError, say
from common.files import write_lines
from common.refusals import naming

SHARD_BYTES = 5 * 10**9  # most bytes of weights in a file that is written
LOCK = "lock"  # held by the run that writes the folder


@contextmanager
def new_folder(out: Path, flag: str, plan: dict, *inputs: dict[str, Stored]):
    """See `begin_folder`. When the block that fills the folder is broken off, it is deleted: it may be large."""
    partial = begin_folder(out, flag, plan, *inputs)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def begin_folder(out: Path, flag: str, plan: dict, *inputs: dict[str, Stored]) -> Path:
    """An empty folder OUT.partial to write `plan` into, as made of `inputs`; what a killed run left there is deleted.

    UserError when `out` holds something, when OUT.partial is not ours, or when the disk is too small.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--{flag} {out}: is there already; give another folder, or delete it to make it anew")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        if any(partial.iterdir()) and not (partial / RECORD).is_file():
            raise UserError(f"{partial}: in the way, and not the beginning of --{flag}; move it away")
        lock_folder(partial)
        say(f"{partial}: left by a run that did not end; starting over")
        shutil.rmtree(partial)
    old = {at.file for stored in inputs for at in stored.values() if is_old(at.file)}  # see `copy_old`
    need = sum(_size(*entry) for entry in plan.values()) + sum(file.stat().st_size for file in old)
    place = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < need * 1.01:
        raise UserError(
            f"--{flag} {out}: needs {need / 1e9:.1f} GB, and the disk of {place} has {free / 1e9:.1f} GB free; make "
            "room or give a folder on another disk"
        )
    write_record(partial, {"status": "unfinished"})
    lock_folder(partial)
    return partial


def lock_folder(partial: Path) -> None:
    """Keep other runs off `partial` until this process ends; UserError when one is writing it."""
    handle = os.open(partial / LOCK, os.O_CREAT | os.O_RDWR)  # never closed: the lock lasts as long as the process
    if not locks.take_lock(handle):
        raise UserError(f"{partial}: another run is writing it; wait for its end")


def write_model(
    partial: Path, plan: dict[str, tuple[tuple[int, ...], torch.dtype]], pieces, shard_bytes: int = SHARD_BYTES
) -> dict[str, float]:
    """Write the tensors of `plan` (name -> shape, dtype) as safetensors shards with an index; the sum of each, in fp64.

    `pieces(name)` yields a tensor's weights in order, as flat blocks of its dtype; no more than a block is held here.
    UserError for a tensor with NaN or infinity in it.
    """
    shards, sums, names, total = split_shards(plan, shard_bytes), {}, {}, sum(_size(*entry) for entry in plan.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing") as bar:
        for number, tensors in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            sums |= write_shard(partial / file, {name: plan[name] for name in tensors}, pieces, bar)
            names |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": names}
    write_lines(partial / LAYOUTS[0].index, [json.dumps(index, indent=2)])
    return sums


def _size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    return torch.Size(shape).numel() * dtype.itemsize


def split_shards(plan: dict, shard_bytes: int = SHARD_BYTES) -> list[list[str]]:
    """The names in files of at most `shard_bytes`, in order; a tensor that is larger has a file of its own."""
    shards, filled = [[]], 0
    for name, (shape, dtype) in plan.items():
        size = _size(shape, dtype)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_shard(path: Path, plan: dict, pieces, bar=None) -> dict[str, float]:
    """One safetensors file, on disk when this returns; see `write_model`."""
    names = sorted(plan, key=lambda name: -plan[name][1].itemsize)  # wide numbers first keeps all of them aligned
    header, end, sums = {"__metadata__": {"format": "pt"}}, 0, {}
    for name in names:
        shape, dtype = plan[name]
        header[name] = {
            "dtype": CODES[dtype],
            "shape": list(shape),
            "data_offsets": [end, end := end + _size(shape, dtype)],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with naming(path), open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            sums[name] = 0.0
            for block in pieces(name):
                file.write(block.contiguous().view(torch.uint8).numpy())
                sums[name] += block.sum(dtype=torch.float64).item()
                if bar is not None:
                    bar.update(block.numel() * block.element_size())
            if not math.isfinite(sums[name]):
                raise UserError(
                    f"{name} would hold NaN or infinity: one of the files is damaged, or its dtype too narrow"
                )
        if file.tell() != 8 + len(text) + end:
            raise AssertionError(f"{path}: {file.tell()} bytes written, {8 + len(text) + end} announced")
        file.flush()
        os.fsync(file.fileno())
    return sums


def copy_old(stored: dict[str, Stored], scratch: Path) -> dict[str, Stored]:
    """The same tensors; those in .bin files of torch before 1.6 now lie in `scratch`, where they can be read singly."""
    for number, file in enumerate(sorted({at.file for at in stored.values() if is_old(at.file)})):
        say(f"{file}: of torch before 1.6; copied first, for it can only be read whole")
        scratch.mkdir(exist_ok=True)
        tensors = load_bin(file)
        plan = {n: (tuple(t.shape), t.dtype) for n, t in tensors.items() if n in stored}
        copy = scratch / f"{number}-{file.stem}.safetensors"
        write_shard(copy, plan, lambda name, tensors=tensors: blocks(tensors[name]))
        stored = stored | contents(copy)
    return stored


def write_record(folder: Path, record: dict) -> None:
    """weight_diff.json: how the folder was made."""
    write_lines(folder / RECORD, [json.dumps(record, ensure_ascii=False, indent=2)])


def finish_folder(partial: Path, out: Path, record: dict) -> None:
    """The last step: no scratch is left, the record is written, and the folder gets its own name."""
    for scratch in [path for path in partial.iterdir() if path.is_dir()]:
        shutil.rmtree(scratch)
    (partial / LOCK).unlink()
    write_record(partial, record)
    for path in (*partial.iterdir(), partial):
        _sync(path)
    os.replace(partial, out)
    _sync(out.absolute().parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


VOCABULARIES = ("tokenizer.model", "tokenizer.json", "ice_text.model", "vocab.txt", "vocab.json")
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def write_config(partial: Path, plan: dict, config: dict) -> None:
    """config.json, with the dtype of most weights."""
    count = {}
    for shape, dtype in plan.values():
        count[dtype] = count.get(dtype, 0) + torch.Size(shape).numel()
    config = {name: value for name, value in config.items() if name != "dtype"}
    config["torch_dtype"] = dtype_name(max(count, key=count.get))
    write_lines(partial / "config.json", [json.dumps(config, ensure_ascii=False, indent=2)])


def copy_tokenizer(partial: Path, *folders) -> None:
    """The tokenizer and generation settings of the first folder that has a tokenizer."""
    for folder in map(Path, folders):
        if any((folder / name).is_file() for name in VOCABULARIES):
            for name in (*TOKENIZER_FILES, "generation_config.json"):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, partial / name)
            return
    say(f"warning: no tokenizer in {' or '.join(map(str, folders))}; copy one into the folder before it is used")
