"""Deltas: how one is added to its base, and what is checked before and after."""

import functools
import math
from pathlib import Path

import torch

from checkpoints.stored import Stored, blocks, dtype_name, is_delta, is_there, read_json
from common.errors import UserError

# The sum of all entries that a publisher states: (in the folder's path, number of weights) -> dtype -> sum.
PUBLISHED_SUMS = {("zhixi", 13_015_864_320): {"float32": 94052.2891, "float16": 94046.1875}}


def added(base: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype):
    """base + delta as flat blocks of `dtype`: made in the wider dtype of the two, at least float32, rounded once."""
    wide = wide_enough(base.dtype, delta.dtype)
    for a, b in zip(blocks(base), blocks(delta), strict=True):
        yield (a.to(wide) + b.to(wide)).to(dtype)


def wide_enough(*dtypes: torch.dtype) -> torch.dtype:
    """The narrowest dtype that holds all of them and float32."""
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def read_first_config(flag: str, *folders) -> dict:
    """The config.json of the first folder that has one."""
    file = next((file for folder in folders if is_there(file := Path(folder) / "config.json")), None)
    if file is None:
        raise UserError(f"--{flag} {folders[0]}: no config.json there; download it again")
    return read_json(file)


def check_kind(flag: str, folder, config: dict, delta: bool) -> None:
    """UserError when the folder holds a delta where a model is wanted, or the reverse."""
    found = is_delta(folder, config)
    if found is None or found == delta:
        return
    is_what = "a delta (its norm weights are near 0)" if found else "a whole model (its norm weights are near 1)"
    wanted = "a delta" if delta else "a whole model"
    raise UserError(f"--{flag} {folder} is {is_what}; expected {wanted}. Are two of the paths swapped?")


def check_alike(*pair: tuple[str, dict[str, Stored]]) -> None:
    """UserError, with tensor and shapes, unless both (each with its flag) hold the same tensors."""
    for (flag, ours), (other, theirs) in (pair, pair[::-1]):
        if lacking := [name for name in ours if name not in theirs]:
            raise UserError(
                f"--{flag} holds {lacking[0]}, --{other} does not ({len(lacking)} such tensors); they belong to "
                "different models, or a download is not complete"
            )
    (flag, ours), (other, theirs) = pair
    for name, at in ours.items():
        shape = theirs[name].shape
        if at.shape != shape:
            why = "they belong to models of different sizes"
            if at.shape[1:] == shape[1:]:
                rows = abs(at.shape[0] - shape[0])
                why = f"{rows} more rows in one: its vocabulary was extended, the other's was not"
            raise UserError(
                f"{name} is {at.shape} in --{flag} and {shape} in --{other}; {why}. Give the base that the publisher "
                "of the delta names"
            )


def known_sum(folder, record: dict, plan: dict, expected: float | None) -> tuple[float, str] | None:
    """The sum that the recovered weights should have, and who says so; None when nobody does for these dtypes."""
    if expected is not None:
        return expected, "--expected_sum"
    dtypes = {name: dtype_name(dtype) for name, (_, dtype) in plan.items()}
    if record:
        return (record["sum"], "make_diff") if record.get("dtypes") == dtypes else None
    weights = sum(torch.Size(shape).numel() for shape, _ in plan.values())
    for (word, size), sums in PUBLISHED_SUMS.items():
        if size == weights and word in str(Path(folder).resolve()).lower() and len(set(dtypes.values())) == 1:
            dtype = next(iter(dtypes.values()))
            return (sums[dtype], f"the publisher of {word}") if dtype in sums else None
    return None


def check_sum(sums: dict[str, float], known: tuple[float, str], plan: dict, config: dict) -> str:
    """Compare the sum of all weights with the known one; UserError when they differ.

    A sum of make_diff is compared as it is. Others were added up in float32, tensor after tensor, so they were rounded
    after each one, and in 16 bits the sum of each tensor was rounded too; and the models of 2023 counted their rotary
    buffers among the entries, once or, where base and delta both brought them, twice.
    """
    total, (expected, who) = math.fsum(sums.values()), known
    tolerance, counted = 1e-5, [total]
    if who != "make_diff":
        halves = config.get("hidden_size", 0) // config.get("num_attention_heads", 1) // 2
        rotary = config.get("num_hidden_layers", 0) * sum(10000 ** (-i / halves) for i in range(halves))
        counted = [total, total + rotary, total + 2 * rotary]
        tolerance = 0.01 + math.sqrt(len(sums)) * 2**-24 * abs(total)
        for name, value in sums.items():
            dtype = plan[name][1]
            tolerance += abs(value) * torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
    off = min(abs(value - expected) for value in counted)
    if off <= tolerance:
        return f"as {who} says (off by {off:.2g}, allowed {tolerance:.2g})"
    raise UserError(
        f"the recovered weights add up to {total:.4f}, but {who} says {expected:.4f} (allowed difference "
        f"{tolerance:.2g}): base or delta is damaged, or this base is not the one the delta was made of. Compare "
        "their checksums with the publisher's; --check False recovers all the same"
    )
