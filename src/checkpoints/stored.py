"""The tensors of a checkpoint folder, as files: what lies where, checked, read one at a time."""

import json
import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from common.errors import UserError
from common.files import what_is_wrong

BLOCK = 1 << 18  # weights that are worked on at once
RECORD = "weight_diff.json"  # how a folder was made; the first file of an unfinished one
BUFFERS = ("rotary_emb.inv_freq", "attn.causal_mask")  # of old checkpoints: they follow from the config, no weights
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = {code: dtype for dtype, code in CODES.items()}


class Layout(NamedTuple):
    """A way to name the files of a checkpoint."""

    pattern: str  # of all of them
    whole: str = ""  # the one that holds everything
    index: str = ""  # what says which file holds which tensor


LAYOUTS = (  # in the order in which transformers prefers them
    Layout("model*.safetensors", "model.safetensors", "model.safetensors.index.json"),
    Layout("pytorch_model*.bin", "pytorch_model.bin", "pytorch_model.bin.index.json"),
    Layout("*.pt"),  # CPM-Bee as OpenBMB gives it out
)


class Stored(NamedTuple):
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


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
    stored = {name: at for name, at in stored.items() if not name.endswith(BUFFERS)}
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
        wanted = " or ".join(layout.pattern for layout in LAYOUTS)
        raise UserError(f"--{flag} {folder}: no weights there (expected {wanted}); found {inside}")
    if files[0].suffix == ".pt" and len(files) > 1:
        raise UserError(
            f"--{flag} {folder}: {', '.join(file.name for file in files)}: expected one .pt file; move the others away"
        )
    missing = [file.name for file in files if not os.path.isfile(file)]  # False even for a name no system allows
    if missing and not index:
        raise UserError(f"--{flag} {folder}: {', '.join(missing)}: no file, or a link to nowhere; download it again")
    if missing:
        whole = next((one.whole for one in LAYOUTS if one.whole and (folder / one.whole).is_file()), None)
        other = f", or move the index away: {whole} is whole" if whole else ""
        raise UserError(
            f"--{flag} {folder}: the index names {shorten(missing)}, not there; download what is missing{other}"
        )
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
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        stored = {n: Stored(file, tuple(e["shape"]), DTYPES.get(e["dtype"], e["dtype"])) for n, e in header.items()}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise _broken(file, "no safetensors file") from None
    if file.stat().st_size < end:
        raise _broken(file, f"cut off after {file.stat().st_size} of {end} bytes")
    return stored


def load_bin(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .bin file: mapped, not read, unless the file is of torch before 1.6."""
    old = is_old(file)
    if not old and not zipfile.is_zipfile(file):
        with open(file, "rb") as stream:
            begin = stream.read(2)
        raise _broken(file, "cut off" if begin == b"PK" else "no file of torch.save" if begin else "an empty file")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=not old)
    except Exception as error:  # noqa: BLE001 - whatever the reader raises, these are no weights
        raise _broken(file, f"no state dict ({why_unread(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise _broken(file, "no state dict, for it holds more than tensors")
    return state


def why_unread(error: Exception) -> str:
    """Why torch did not read a file of weights, in one line, without its advice to read it unprotected."""
    text = str(error).strip()
    if asked := re.search(r"GLOBAL (\S+)", text):
        return f"it asks for {asked[1]}, which no weights need; nothing of it was run"
    if "weights_only" in text:
        return "no pickle of tensors"
    return text.splitlines()[0] if text else type(error).__name__


def is_old(file: Path) -> bool:
    """Whether a .bin file is of torch before 1.6, which can only be read whole."""
    if file.suffix == ".safetensors":
        return False
    with open(file, "rb") as stream:
        begin = stream.read(4)
    return begin[:1] == b"\x80" and begin[2:] == b"\x8a\n"  # a pickle of a whole number, which torch then wrote first


def read_tensor(name: str, at: Stored) -> torch.Tensor:
    """One tensor. The file is opened anew each time, so that what is mapped of it goes with the tensor."""
    if at.file.suffix == ".safetensors":
        with safe_open(at.file, "pt") as file:
            return file.get_tensor(name)
    return load_bin(at.file)[name]


def blocks(tensor: torch.Tensor, size: int = BLOCK):
    """A tensor's weights in order, in flat pieces of at most `size`."""
    yield from tensor.reshape(-1).split(size)


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
            return read_tensor(name, inside[name]).float().abs().mean().item() < 0.1
    return None


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def model_files(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """The index (tensor -> file name; {} without one) and the files with weights, as transformers would choose them.

    A whole file comes before an index, which may be left from an earlier download, and safetensors before .bin; shards
    without an index, which transformers does not read, come last.
    """
    for layout in LAYOUTS:
        if layout.whole and (folder / layout.whole).is_file():
            return {}, [folder / layout.whole]
        if layout.index and (folder / layout.index).is_file():
            names = read_index(folder / layout.index)
            return names, [folder / name for name in sorted(set(names.values()))]
    return {}, next((files for layout in LAYOUTS if (files := sorted(folder.glob(layout.pattern)))), [])


def read_index(file: Path) -> dict[str, str]:
    """The weight_map of an index: tensor -> name of a file in its folder; UserError when it is none."""
    names = read_json(file).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise _broken(file, "no weight_map from tensors to files")
    if outside := [name for name in names.values() if Path(name).is_absolute() or ".." in re.split(r"[/\\]", name)]:
        raise _broken(file, f"names {shorten(outside[:1])}, which is not in its folder")
    return names


def shorten(names: list[str]) -> str:
    """The first names of a list, each cut to what a line of an error can hold."""
    return ", ".join(name[:80] for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def read_json(file: Path) -> dict:
    """An object in a JSON file; UserError when it is none, with the line where that can be told."""
    try:
        found = json.loads(file.read_bytes().decode("utf-8"))
    except json.JSONDecodeError as error:
        if error.doc.startswith("\ufeff"):  # transformers reads these files too, and takes none
            raise UserError(f"{file}: begins with a byte order mark (BOM); save it as UTF-8 without one") from None
        raise _broken(file, f"not JSON ({what_is_wrong(error)})", error.lineno) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8, or download it again") from None
    except RecursionError:
        raise _broken(file, "not JSON (lists or objects are nested too deeply)") from None
    except ValueError as error:  # a number of more digits than Python reads
        raise _broken(file, f"not JSON ({str(error).split(';')[0]})") from None
    if not isinstance(found, dict):
        raise _broken(file, "no JSON object")
    return found


def _broken(file: Path, why: str, line: int | None = None) -> UserError:
    with open(file, "rb") as stream:
        if stream.read(23) == b"version https://git-lfs":
            why, line = "a pointer of Git LFS, not the file itself", None
    return UserError(f"{file}{f':{line}' if line else ''}: {why}; download it again")


def is_there(file: Path) -> bool:
    """Whether a file is there; UserError for anything else of its name, which would be passed over or never end."""
    if os.path.lexists(file) and not os.path.isfile(file):
        raise UserError(f"{file}: no file, but a folder, a pipe, a device or a link to nowhere; put the file there")
    return os.path.isfile(file)


def read_record(folder: str | Path) -> dict:
    """What weight_diff.json says; {} when there is none. UserError for numbers that are none of torch's."""
    file = Path(folder) / RECORD
    record = read_json(file) if is_there(file) else {}
    dtypes = record.get("dtypes", {}) if isinstance(record, dict) else None
    if not isinstance(dtypes, dict):
        raise UserError(f"{file}: expected an object with dtypes, tensor -> numbers; take the file that came with it")
    for name, dtype in dtypes.items():
        if not isinstance(dtype, str) or not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise UserError(
                f"{file}: dtypes: {name} is {dtype!r:.40}; expected float16, bfloat16 or float32: take the file that "
                "came with the delta"
            )
    return record
