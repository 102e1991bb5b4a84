"""Checkpoint folders tensor by tensor: what they hold, one tensor at a time, and a writer that never holds a shard."""

import json
import math
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from tqdm import tqdm

from utils import locks
from utils.errors import UserError, say
from utils.records import write_lines

SHARD_BYTES = 5 * 10**9  # most bytes of weights in a file that is written
BLOCK = 1 << 18  # weights that are worked on at once
LOCK = "lock"  # held by the run that writes the folder
RECORD = "weight_diff.json"  # how a folder was made; the first file of an unfinished one
BUFFER = "rotary_emb.inv_freq"  # old checkpoints hold these; they follow from the config and are no weights
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = {code: dtype for dtype, code in CODES.items()}
LAYOUTS = (
    ("model.safetensors.index.json", "model*.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
    ("", "*.pt"),  # CPM-Bee as OpenBMB gives it out; it has no index
)


class Stored(NamedTuple):
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


# Reading


def tensors_of(folder: str | Path, flag: str) -> dict[str, Stored]:
    """The weights of a checkpoint folder by name, rotary buffers left out; nothing but names and shapes is read.

    UserError with `flag` for a folder without weights, files that are missing or cut off, and quantised weights.
    """
    index, files = whole_files(folder, flag)
    stored = {}
    for file in files:
        stored |= contents(file)
    if lost := sorted(set(index) - set(stored)):
        raise UserError(f"--{flag} {folder}: {index[lost[0]]} does not hold {lost[0]}, as the index says it does")
    stored = {name: at for name, at in stored.items() if not name.endswith(BUFFER)}
    refuse_quantised(stored, flag)
    return stored


def whole_files(folder: str | Path, flag: str) -> tuple[dict[str, str], list[Path]]:
    """The index and the weight files of a checkpoint folder; UserError with `flag` when one is missing or cut off."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--{flag} {folder}: no such folder; give the folder of a downloaded checkpoint")
    index, files = model_files(folder)
    if not files:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise UserError(
            f"--{flag} {folder}: no weights there (expected {' or '.join(f for _, f in LAYOUTS)}); found {inside}"
        )
    if files[0].suffix == ".pt" and len(files) > 1:
        raise UserError(
            f"--{flag} {folder}: {', '.join(file.name for file in files)}: expected one .pt file; move the others away"
        )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(f"--{flag} {folder}: the index names {', '.join(missing)}, not there; download what is missing")
    parts = re.fullmatch(r".*-of-(\d+)\.\w+", files[0].name)
    if not index and parts and len(files) != int(parts[1]):
        raise UserError(
            f"--{flag} {folder}: {len(files)} of {int(parts[1])} shards are there, and no index; download it again"
        )
    for file in files:
        if not is_old(file):  # one of torch before 1.6 could only be read whole
            contents(file)
    return index, files


def refuse_quantised(stored: dict[str, Stored], flag: str) -> None:
    """UserError for the first tensor that is not of a dtype in CODES."""
    for name, at in stored.items():
        if at.dtype not in CODES:
            raise UserError(f"--{flag} {at.file}: {name} is {at.dtype}; only unquantised weights can be worked on")


def contents(file: Path) -> dict[str, Stored]:
    """Every tensor of one file."""
    if file.suffix != ".safetensors":
        return {name: Stored(file, tuple(t.shape), t.dtype) for name, t in load_bin(file).items()}
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(min(length, file.stat().st_size))
    try:
        header = json.loads(text)
    except ValueError:
        raise _broken(file, "no safetensors file") from None
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if file.stat().st_size < end:
        raise _broken(file, f"cut off after {file.stat().st_size} of {end} bytes")
    return {n: Stored(file, tuple(e["shape"]), DTYPES.get(e["dtype"], e["dtype"])) for n, e in header.items()}


def load_bin(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .bin file: mapped, not read, unless the file is of torch before 1.6."""
    with open(file, "rb") as stream:
        if stream.read(2) == b"PK" and not zipfile.is_zipfile(file):
            raise _broken(file, "cut off")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=not is_old(file))
    except Exception as error:  # noqa: BLE001 - whatever the reader raises, these are no weights
        raise _broken(file, f"no state dict ({(str(error) or type(error).__name__).splitlines()[0]})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise _broken(file, "no state dict, for it holds more than tensors")
    return state


def is_old(file: Path) -> bool:
    """Whether a .bin file is of torch before 1.6, which can only be read whole."""
    if file.suffix == ".safetensors":
        return False
    with open(file, "rb") as stream:
        return stream.read(2) != b"PK"  # one that begins as a zip archive and is none is cut off


def read(name: str, at: Stored) -> torch.Tensor:
    """One tensor. The file is opened anew each time, so that what is mapped of it goes with the tensor."""
    if at.file.suffix == ".safetensors":
        with safe_open(at.file, "pt") as file:
            return file.get_tensor(name)
    return load_bin(at.file)[name]


def blocks(tensor: torch.Tensor):
    """A tensor's weights in order, in flat pieces of at most BLOCK."""
    yield from tensor.reshape(-1).split(BLOCK)


def is_delta(folder: str | Path, config: dict) -> bool | None:
    """Whether make_diff wrote the folder, or the last norm of its LLaMA is near 0 instead of 1; None: cannot be told.

    Other architectures may keep their norms around 0, and a .bin file of torch before 1.6 cannot be read in part.
    """
    if read_record(folder).get("command") == "make_diff":
        return True
    if config.get("model_type") != "llama":
        return None
    name = "model.norm.weight"
    index, files = model_files(Path(folder))
    files = [Path(folder) / index[name]] if name in index else files
    for file in files:
        if file.is_file() and file.stat().st_size and not is_old(file) and name in (inside := contents(file)):
            return read(name, inside[name]).float().abs().mean().item() < 0.1
    return None


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def model_files(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """The index (tensor -> file name; {} without one) and the files with weights, as transformers would choose them."""
    for index, pattern in LAYOUTS:
        if index and (folder / index).is_file():
            names = read_json(folder / index).get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise _broken(folder / index, "no weight_map from tensors to files")
            return names, [folder / name for name in sorted(set(names.values()))]
        if files := sorted(folder.glob(pattern)):
            return {}, files
    return {}, []


def read_json(file: Path) -> dict:
    """An object in a JSON file; UserError when it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _broken(file, f"not JSON ({error})") from None
    if not isinstance(found, dict):
        raise _broken(file, "no JSON object")
    return found


def _broken(file: Path, why: str) -> UserError:
    with open(file, "rb") as stream:
        if stream.read(23) == b"version https://git-lfs":
            why = "a pointer of Git LFS, not the file itself"
    return UserError(f"{file}: {why}; download it again")


# Writing


def begin(out: Path, flag: str, plan: dict, *inputs: dict[str, Stored]) -> Path:
    """An empty folder OUT.partial to write `plan` into, as made of `inputs`; what a killed run left there is deleted.

    UserError when `out` holds something, when OUT.partial is not ours, or when the disk is too small.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--{flag} {out}: is there already; give another folder, or delete it to make it anew")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        if any(partial.iterdir()) and not (partial / RECORD).is_file():
            raise UserError(f"{partial}: in the way, and not the beginning of --{flag}; move it away")
        lock(partial)
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
    lock(partial)
    return partial


def lock(partial: Path) -> None:
    """Keep other runs off `partial` until this process ends; UserError when one is writing it."""
    handle = os.open(partial / LOCK, os.O_CREAT | os.O_RDWR)  # never closed: the lock lasts as long as the process
    if not locks.take(handle):
        raise UserError(f"{partial}: another run is writing it; wait for its end")


def write_model(partial: Path, plan: dict[str, tuple[tuple[int, ...], torch.dtype]], pieces) -> dict[str, float]:
    """Write the tensors of `plan` (name -> shape, dtype) as safetensors shards with an index; the sum of each, in fp64.

    `pieces(name)` yields a tensor's weights in order, as flat blocks of its dtype; no more than a block is held here.
    UserError, and `partial` is gone, for a tensor with NaN or infinity in it.
    """
    shards, sums, names, total = split(plan), {}, {}, sum(_size(*entry) for entry in plan.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing") as bar:
        for number, tensors in enumerate(shards, 1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            try:
                sums |= write_shard(partial / file, {name: plan[name] for name in tensors}, pieces, bar)
            except UserError:
                shutil.rmtree(partial)
                raise
            names |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": names}
    write_lines(partial / LAYOUTS[0][0], [json.dumps(index, indent=2)])
    return sums


def split(plan: dict) -> list[list[str]]:
    """The names in files of at most SHARD_BYTES, in order; a tensor that is larger has a file of its own."""
    shards, filled = [[]], 0
    for name, (shape, dtype) in plan.items():
        size = _size(shape, dtype)
        if shards[-1] and filled + size > SHARD_BYTES:
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
    with open(path, "wb") as file:
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


def read_record(folder: str | Path) -> dict:
    """What weight_diff.json says; {} when there is none."""
    file = Path(folder) / RECORD
    return read_json(file) if file.is_file() else {}


def finish(partial: Path, out: Path, record: dict) -> None:
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


def _size(shape, dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
