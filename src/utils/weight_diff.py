"""Published weights -> a folder that every script here loads: add a delta to its base, merge an adapter, turn a format.

python src/utils/weight_diff.py recover --path_raw models/llama-13b-hf --path_diff models/zhixi-13b-diff \
    --path_tuned models/zhixi-13b

Commands: recover, make_diff, merge, from_tencentpretrain. None of them ever holds a model, or a shard of one.
"""

import functools
import inspect
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, keeping, run_script, say

if __name__ == "__main__":
    begin_script()

import fire
import torch
from fire.decorators import SetParseFn, SetParseFns

from checkpoints import tencentpretrain, writing
from checkpoints.deltas import added, check_alike, check_kind, check_sum, known_sum, read_first_config, wide_enough
from checkpoints.stored import blocks, contents, dtype_name, read_record, read_tensor, refuse_quantised, tensors_of
from checkpoints.writing import copy_tokenizer, write_config
from loading.precision import FLAGS

DTYPES = {**FLAGS, **{name: name for name in FLAGS.values()}, "float64": "float64"}
OLD_FLAGS = {  # of the publishers' scripts
    "--path_zhixi": "--path_base",
    "--path_lora": "--path_adapter",
    "--path_sfted": "--path_merged",
    "--check_integrity_naively": "--check",
    "--nocheck_integrity_naively": "--nocheck",
}


def recover(
    path_raw, path_diff, path_tuned, *, dtype=None, check=True, expected_sum=None, is_fp16=None, device=None
) -> None:
    """Add a delta to its base: TUNED = RAW + DIFF, tensor by tensor; tokenizer and config come from the delta.

    Every sum is made in the wider of the two dtypes, at least float32, and rounded once to DTYPE.

    Args:
        path_raw: folder of the base
        path_diff: folder of the delta (or diff)
        path_tuned: folder to write
        dtype: float16, bfloat16, float32 or float64; left out: the delta's, and for a diff of make_diff its model's
        check: compare the sum of all weights with the known one
        expected_sum: the known sum, for a delta that does not bring it along
        is_fp16: True is --dtype float16, False is --dtype float32
        device: accepted without effect
    """
    started, out = time.time(), Path(path_tuned)
    raw, diff = tensors_of(path_raw, "path_raw"), tensors_of(path_diff, "path_diff")
    config = read_first_config("path_diff", path_diff, path_raw)
    check_kind("path_raw", path_raw, config, delta=False)
    check_kind("path_diff", path_diff, config, delta=True)
    check_alike(("path_raw", raw), ("path_diff", diff))
    record, chosen = read_record(path_diff), choose_dtype(dtype, is_fp16)
    own = {name: getattr(torch, value) for name, value in record.get("dtypes", {}).items()}
    plan = {name: (at.shape, chosen or own.get(name, at.dtype)) for name, at in diff.items()}
    known = known_sum(path_diff, record, plan, expected_sum) if check else None
    with writing.new_folder(out, "path_tuned", plan, raw, diff) as partial:
        raw_at, diff_at = writing.copy_old(raw, partial / "raw"), writing.copy_old(diff, partial / "diff")

        def pieces(name):
            return added(read_tensor(name, raw_at[name]), read_tensor(name, diff_at[name]), plan[name][1])

        sums = writing.write_model(partial, plan, pieces)
        verdict = "not checked, for none is known for this delta and dtype" if check else "not checked (--check False)"
        if known:
            verdict = check_sum(sums, known, plan, config)
        write_config(partial, plan, config)
        copy_tokenizer(partial, path_diff, path_raw)
        total = math.fsum(sums.values())
        writing.finish_folder(
            partial, out, {"command": "recover", "raw": str(path_raw), "diff": str(path_diff), "sum": total}
        )
    verdict = f"sum of all weights {total:.4f}, {verdict}"
    report(f"{out} = {path_raw} + {path_diff}", plan, (raw, diff), started, verdict)


def make_diff(path_raw, path_tuned, path_diff, *, dtype="float32", device=None) -> None:
    """Subtract a base from a model: DIFF = TUNED - RAW. The sum that recover compares is written beside it.

    Each difference is at once added to the base again; the report says how many weights do not come back equal.

    Args:
        path_raw: folder of the base
        path_tuned: folder of the model
        path_diff: folder to write
        dtype: of the differences: float32; float16, small and inexact; float64, for the last weight of a float32 model
        device: accepted without effect
    """
    started, out = time.time(), Path(path_diff)
    raw, tuned = tensors_of(path_raw, "path_raw"), tensors_of(path_tuned, "path_tuned")
    config = read_first_config("path_tuned", path_tuned, path_raw)
    check_kind("path_raw", path_raw, config, delta=False)
    check_kind("path_tuned", path_tuned, config, delta=False)
    check_alike(("path_raw", raw), ("path_tuned", tuned))
    chosen = choose_dtype(dtype)
    plan = {name: (at.shape, chosen) for name, at in tuned.items()}
    with writing.new_folder(out, "path_diff", plan, raw, tuned) as partial:
        raw_at, tuned_at = writing.copy_old(raw, partial / "raw"), writing.copy_old(tuned, partial / "tuned")
        sums, unequal, furthest = [], 0, 0.0

        def pieces(name):
            nonlocal unequal, furthest
            base, model = read_tensor(name, raw_at[name]), read_tensor(name, tuned_at[name])
            for a, b in zip(blocks(base), blocks(model), strict=True):
                wide = wide_enough(a.dtype, b.dtype, chosen)
                difference = (b.to(wide) - a.to(wide)).to(chosen)
                (back,) = added(a, difference, b.dtype)
                off = (back.double() - b.double()).abs()
                unequal += torch.count_nonzero(off).item()
                furthest = max(furthest, off.max().item())
                sums.append(back.sum(dtype=torch.float64).item())
                yield difference

        writing.write_model(partial, plan, pieces)
        write_config(partial, plan, config)
        copy_tokenizer(partial, path_tuned, path_raw)
        record = {"command": "make_diff", "raw": str(path_raw), "tuned": str(path_tuned)}
        record |= {"sum": math.fsum(sums), "unequal": unequal}
        record["dtypes"] = {name: dtype_name(at.dtype) for name, at in tuned.items()}
        writing.finish_folder(partial, out, record)
    verdict = "recover gives every weight back equal"
    if unequal:
        verdict = f"recover gives {unequal} weights back unequal, the furthest off by {furthest:.2g}"
    report(f"{out} = {path_tuned} - {path_raw}", plan, (raw, tuned), started, verdict)


def merge(path_base, path_adapter, path_merged, *, dtype=None, is_fp16=None, device=None) -> None:
    """Add a LoRA adapter into its base: W + B @ A * alpha / r; the result loads without peft.

    Args:
        path_base: folder of the base
        path_adapter: folder of the adapter (adapter_config.json, adapter_model.safetensors or .bin)
        path_merged: folder to write
        dtype: float16, bfloat16, float32 or float64; left out: the base's
        is_fp16: True is --dtype float16, False is --dtype float32
        device: accepted without effect
    """
    from checkpoints.merging import (  # with transformers and peft, which the other commands do without
        read_adapter,
        updated,
    )

    started, out = time.time(), Path(path_merged)
    base, config = tensors_of(path_base, "path_base"), read_first_config("path_base", path_base)
    check_kind("path_base", path_base, config, delta=False)
    updates, whole = read_adapter(Path(path_adapter), base, config)
    chosen = choose_dtype(dtype, is_fp16)
    plan = {name: (at.shape, chosen or at.dtype) for name, at in base.items()}
    with writing.new_folder(out, "path_merged", plan, base) as partial:
        base_at = writing.copy_old(base, partial / "base")

        def pieces(name):
            dtype = plan[name][1]
            if name in updates:
                return updated(read_tensor(name, base_at[name]), updates[name], dtype)
            tensor = whole[name] if name in whole else read_tensor(name, base_at[name])
            return (block.to(dtype) for block in blocks(tensor))

        writing.write_model(partial, plan, pieces)
        write_config(partial, plan, config)
        copy_tokenizer(partial, path_base)
        writing.finish_folder(partial, out, {"command": "merge", "base": str(path_base), "adapter": str(path_adapter)})
    what = f"LoRA added to {len(updates)} tensors" + (f", {len(whole)} replaced (modules_to_save)" if whole else "")
    report(f"{out} = {path_base} + {path_adapter}", plan, (base,), started, what)


def from_tencentpretrain(path_in, path_out, *, heads=None) -> None:
    """Turn ChatFlow-7B or Chinese-LLaMA-7B, as published in TencentPretrain's format, into a Hugging Face folder.

    Args:
        path_in: the .bin file, or the folder that holds it; tokenizer.model lies beside it
        path_out: folder to write
        heads: number of attention heads; left out: one for every 128 rows, as in the releases
    """
    started, out, file = time.time(), Path(path_out), Path(path_in)
    if not file.exists():
        raise UserError(f"--path_in {path_in}: no such file or folder; give the .bin file or the folder that holds it")
    if file.is_dir() and (file := tencentpretrain.find_file(path_in)) is None:
        inside = ", ".join(sorted(path.name for path in Path(path_in).iterdir())[:12]) or "nothing"
        raise UserError(
            f"--path_in {path_in}: no .bin file in TencentPretrain's format there; found {inside}. A folder with "
            "config.json and pytorch_model*.bin needs no conversion"
        )
    stored = contents(file)
    refuse_quantised(stored, "path_in")
    names = tencentpretrain.rename(stored, file)
    config = tencentpretrain.make_config(stored, names, heads)
    tokenizer = file.with_name("tokenizer.model")
    tencentpretrain.check_tokenizer(tokenizer, config["vocab_size"])
    rotary = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    plan = {new: (stored[old].shape, stored[old].dtype) for new, old in names.items()}
    with writing.new_folder(out, "path_out", plan, stored) as partial:
        stored_at = writing.copy_old(stored, partial / "in")

        def pieces(name):
            tensor, layer = read_tensor(names[name], stored_at[names[name]]), name.split(".")[-2]
            return blocks(tencentpretrain.to_rotary_halves(tensor, rotary[layer]) if layer in rotary else tensor)

        writing.write_model(partial, plan, pieces)
        write_config(partial, plan, config)
        tencentpretrain.write_tokenizer(partial, tokenizer)
        writing.finish_folder(partial, out, {"command": "from_tencentpretrain", "in": str(file)})
    what = f"{config['num_hidden_layers']} layers, {rotary['q_proj']} heads, vocabulary of {config['vocab_size']}"
    report(f"{out} = {file}", plan, (stored,), started, what)


def choose_dtype(text: str | None, is_fp16: bool | None = None) -> torch.dtype | None:
    """The dtype of --dtype or --is_fp16; None when neither is given."""
    if text is not None and text not in DTYPES:
        raise UserError(f"--dtype {text}: expected one of {', '.join(sorted(DTYPES))}")
    if is_fp16 is not None and text is not None:
        raise UserError("--dtype and --is_fp16 say the same; drop --is_fp16")
    if is_fp16 is not None:
        text = "float16" if is_fp16 else "float32"
    return None if text is None else getattr(torch, DTYPES[text])


def report(what: str, plan: dict, inputs, started: float, verdict: str) -> None:
    """The block at the end: what was made, in what, and what it took."""
    weights = sum(torch.Size(shape).numel() for shape, _ in plan.values())
    files = {at.file for stored in inputs for at in stored.values()}
    largest, peak = max(file.stat().st_size for file in files), peak_memory()
    dtypes = "/".join(sorted({dtype_name(dtype) for _, dtype in plan.values()}))
    say(
        f"\n{what}\n{len(plan)} tensors, {weights:,} weights in {dtypes}, {len(files)} shards read, "
        f"{len(writing.split_shards(plan))} written\n{verdict}\n{time.time() - started:.0f} s"
        + (f", peak memory {peak / 1e9:.2f} GB" if peak else "")
        + f" (largest shard read: {largest / 1e9:.2f} GB)"
    )


def peak_memory() -> int | None:
    """Most bytes this process had in memory at any time; None where Linux's /proc is missing."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


COMMANDS = (recover, make_diff, merge, from_tencentpretrain)


def converter(flag: str, kind, expected: str):
    """What turns the text behind a flag into its value."""

    def convert(text):
        try:
            return kind(text)
        except (ValueError, KeyError):
            raise UserError(f"--{flag} {text}: expected {expected}") from None

    return convert


TRUTH = {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}
CONVERTERS = {
    "check": converter("check", TRUTH.__getitem__, "True or False"),
    "is_fp16": converter("is_fp16", TRUTH.__getitem__, "True or False"),
    "heads": converter("heads", int, "a whole number"),
    "expected_sum": converter("expected_sum", float, "a number"),
}


def main(argv=None) -> None:
    """Let fire parse everything first: by itself it would run a command before it complains about a misspelt flag."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for at, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        argv[at] = OLD_FLAGS.get(flag, flag) + equals + value
    parsed = []

    def later(command):
        @functools.wraps(command)
        def remember(*args, **kwargs):
            parsed.append((command, args, kwargs))

        return SetParseFns(**CONVERTERS)(SetParseFn(str)(remember))

    fire.Fire({command.__name__: later(command) for command in COMMANDS}, command=argv, name="weight_diff.py")
    for command, args, kwargs in parsed:
        for flag, value in inspect.signature(command).bind(*args, **kwargs).arguments.items():
            if value in ("True", "False"):  # what fire makes of a flag without a value
                raise UserError(f"--{flag}: its value is missing")
        with keeping(lambda: "nothing is left of it, and the same command begins anew"):
            command(*args, **kwargs)


if __name__ == "__main__":
    run_script(main)
