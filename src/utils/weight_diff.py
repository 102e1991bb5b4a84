"""Published weights -> a folder that every script here loads: add a delta to its base, merge an adapter, turn a format.

python src/utils/weight_diff.py recover --path_raw models/llama-13b-hf --path_diff models/zhixi-13b-diff \
    --path_tuned models/zhixi-13b

Commands: recover, make_diff, merge, from_tencentpretrain. None of them ever holds a model, or a shard of one.
"""

import difflib
import functools
import inspect
import itertools
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError, begin_script, keeping, run_script, say

if __name__ == "__main__":
    begin_script()

import torch

from checkpoints import tencentpretrain, writing
from checkpoints.deltas import added, check_alike, check_kind, check_sum, known_sum, read_first_config, wide_enough
from checkpoints.hub_cache import find_snapshot
from checkpoints.stored import blocks, contents, dtype_name, read_record, read_tensor, refuse_quantised, tensors_of
from checkpoints.vocabulary import tokens_beside
from checkpoints.writing import copy_tokenizer, write_config
from common import flags
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
    """Add an adapter into its base, as peft merges it (LoRA: W + B @ A * alpha / r); the result loads without peft.

    Args:
        path_base: folder of the base
        path_adapter: folder of the adapter (adapter_config.json, adapter_model.safetensors or .bin)
        path_merged: folder to write
        dtype: float16, bfloat16, float32 or float64; left out: the base's
        is_fp16: True is --dtype float16, False is --dtype float32
        device: accepted without effect
    """
    from loading.merging import plan_merge  # with transformers and peft, which the other commands do without

    started, out = time.time(), Path(path_merged)
    base, config = tensors_of(path_base, "path_base"), read_first_config("path_base", path_base)
    check_kind("path_base", path_base, config, delta=False)
    extended = read_extended(path_base, path_adapter)
    makers, untied, layers, longer = plan_merge(Path(path_adapter), path_base, base, extended.rows if extended else 0)
    chosen = choose_dtype(dtype, is_fp16)
    plan = {name: (at.shape, chosen or at.dtype) for name, at in base.items()}
    plan |= {name: plan[other] for name, other in untied.items()}
    plan |= {name: (size, plan[name][1]) for name, size in longer.items()}
    with writing.new_folder(out, "path_merged", plan, base) as partial:
        base_at = writing.copy_old(base, partial / "base")

        def read(name):
            return read_tensor(name, base_at[name])

        def pieces(name):
            tensor = makers[name](read) if name in makers else read(untied.get(name, name))
            return (block.to(plan[name][1]) for block in blocks(tensor))

        writing.write_model(partial, plan, pieces)
        changes = {"tie_word_embeddings": False} if untied else {}
        changes |= {"vocab_size": extended.rows} if longer else {}
        write_config(partial, plan, {**config, **changes})
        copy_tokenizer(partial, path_base)
        if extended:
            extended.save(partial)
        writing.finish_folder(partial, out, {"command": "merge", "base": str(path_base), "adapter": str(path_adapter)})
    what = f"the adapter added to {layers} layers, {len(makers)} tensors changed"
    if untied:
        what += f"; {', '.join(untied)} and {', '.join(untied.values())} are no longer one"
    report(f"{out} = {path_base} + {path_adapter}", plan, (base,), started, what)


class Extended(NamedTuple):
    """A base's tokenizer with the tokens that an adapter brings along."""

    rows: int  # that the embedding has at least
    save: Callable  # (folder): writes the tokenizer there


def read_extended(path_base, path_adapter) -> Extended | None:
    """None for an adapter without tokens of its own."""
    if not tokens_beside(path_adapter):
        return None
    from checkpoints.family import find_family
    from loading.vocabulary import rows_for
    from tokens.readers import load_codec, save_tokenizer

    family, _, _ = find_family(path_base)
    codec = load_codec(path_base, family, adapter=path_adapter)
    rows = rows_for(codec.pieces_before)
    return Extended(rows, lambda folder: save_tokenizer(codec, family, path_base, folder))


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
    **{
        f"path_{name}": functools.partial(find_snapshot, flag=f"path_{name}")
        for name in ("raw", "diff", "tuned", "base", "adapter", "in")
    },
}
MEANT = {  # a word in a flag of other tools -> the folder that it means here, by name, or the command's first or last
    **dict.fromkeys(("adapter", "lora", "peft"), "path_adapter"),
    **dict.fromkeys(("delta", "diff"), "path_diff"),
    **dict.fromkeys(("target", "output", "out", "save", "result"), -1),
    **dict.fromkeys(("base", "raw", "original", "input", "model"), 0),
}


def parser_of(command):
    """The parser of a command: a flag for each of its arguments."""
    about, _, rest = inspect.getdoc(command).partition("Args:\n")
    texts = dict(re.findall(r"^ +(\w+): (.*)$", rest, re.MULTILINE))
    parser = flags.command(about.strip())
    parser.prog = f"weight_diff.py {command.__name__}"
    for name, one in inspect.signature(command).parameters.items():
        more = {"required": True} if one.default is inspect.Parameter.empty else {"default": one.default}
        if one.default is True:
            more |= {"nargs": "?", "const": True}
            parser.add_argument(f"--no{name}", dest=name, action="store_false", help=f"as --{name} False")
        parser.add_argument(f"--{name}", type=CONVERTERS.get(name, str), help=texts.get(name), **more)
    return parser


def nearest(flag: str, folders: list[str]) -> str | None:
    """Which flag of a command another tool's one means; `folders`: those that the command must be given."""
    name = flag.lstrip("-")
    for word in (name, *name.split("_")):
        if f"path_{word}" in folders:
            return f"--path_{word}"
    for word, meant in MEANT.items():
        if word in name.split("_") and (meant in folders or isinstance(meant, int)):
            return f"--{folders[meant] if isinstance(meant, int) else meant}"
    return None


def as_flags(words: list[str], folders: list[str]) -> list[str]:
    """A command's words with today's flags: old names, hyphens, and folders that stand without a flag in front."""
    loose = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    named = [part for name, word in zip(folders, loose, strict=False) for part in (f"--{name}", word)]
    found = [*named, *loose[len(folders) :]]
    for word in words[len(loose) :]:
        flag, equals, value = word.partition("=")
        flag = OLD_FLAGS.get(flag, flag)
        found.append(f"--{flag[2:].replace('-', '_')}{equals}{value}" if flag.startswith("--") else word)
    return found


def main(argv=None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {command.__name__: command for command in COMMANDS}
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name}: {inspect.getdoc(command).splitlines()[0]}" for name, command in commands.items()]
        print("\n".join([__doc__, *lines, "\nweight_diff.py COMMAND --help lists the flags of a command."]))
        return
    if argv[0] not in commands:
        near = difflib.get_close_matches(argv[0], commands, 1)
        hint = f"did you mean {near[0]}?" if near else f"begin with one of {', '.join(commands)}"
        raise UserError(f"{argv[0] or 'an empty word'}: no command; {hint}")
    command = commands[argv[0]]
    folders = [
        one.name for one in inspect.signature(command).parameters.values() if one.default is inspect.Parameter.empty
    ]
    words = as_flags(argv[1:], folders)
    given = flags.parse_flags(parser_of(command), words, lambda flag: nearest(flag, folders))
    with keeping(lambda: "nothing is left of it, and the same command begins anew"):
        command(**vars(given))


if __name__ == "__main__":
    run_script(main)
