"""What tests/campaign.py does to files: whole ones, keys of JSON, and weights."""

import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

from hostile.commands import COMMANDS, Around, Case, lines_of, write_lines

# ---- whole files

NESTED = 100_000  # brackets


def with_chinese(file: Path) -> str:
    """The text, with a Chinese key in the first object, so that its encoding shows."""
    return file.read_text(encoding="utf-8").replace("{", '{"说明": "基座",', 1).replace(",}", "}", 1)


def linked(target: str) -> Callable:
    def change(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return change


def instead_of_it(make: Callable) -> Callable:
    """`make(path)` where the file was."""

    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


def holding(content: bytes | str) -> Callable:
    return lambda file: file.write_bytes(content if isinstance(content, bytes) else content.encode())


def turned(change: Callable) -> Callable:
    """Its bytes changed by `change`."""
    return lambda file: file.write_bytes(change(file.read_bytes()))


def recoded(encoding: str) -> Callable:
    return lambda file: file.write_bytes(with_chinese(file).encode(encoding))


FILES = {  # of any file
    "missing": Path.unlink,
    "empty": holding(b""),
    "random bytes": holding(random.Random(0).randbytes(3000)),
    "cut off": turned(lambda data: data[: len(data) * 2 // 3]),
    "a web page": holding("<!DOCTYPE html>\n<html><body>404</body></html>\n"),
    "a pointer of Git LFS": holding("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "a folder": instead_of_it(Path.mkdir),
    "a link to itself": lambda file: linked(file.name)(file),
    "a link to nowhere": linked("nowhere"),
    "a pipe nobody writes to": instead_of_it(os.mkfifo),
    "/dev/null": linked("/dev/null"),
    "/dev/zero": linked("/dev/zero"),
    "unreadable": lambda file: file.chmod(0),
    "a link to the file": lambda file: file.symlink_to(file.rename(file.with_name("moved-" + file.name)).name),
}
TEXTS = {  # of a text as well
    "GBK": recoded("gbk"),
    "UTF-16": recoded("utf-16"),
    "a BOM": recoded("utf-8-sig"),
    "Windows' line ends": turned(lambda data: data.replace(b"\n", b"\r\n")),
    "a NUL": turned(lambda data: data.replace(b":", b":\0", 1)),
}
JSONS = {
    "a list nested too deep": holding("[" * NESTED),
    "an object nested too deep": holding('{"a":' * NESTED + "1" + "}" * NESTED),
    "a number of 5,000 digits": holding('{"id": ' + "9" * 5000 + "}"),
    "a text": holding('"no object"'),
    "a list of numbers": holding("[1, 2]"),
    "null": holding("null"),
    "an object without keys": holding("{}"),
    "twice": turned(lambda data: data * 2),
}
LINES = {
    "blank lines": turned(lambda data: b"\n\n" + data + b"\n \n"),
    "one list": lambda file: file.write_text(json.dumps(lines_of(file))),
    "a list without its end": lambda file: file.write_text(json.dumps(lines_of(file))[:-1]),
    "a comma behind each line": turned(lambda data: data.replace(b"}\n", b"},\n")),
    "the last line without its end": turned(bytes.rstrip),
    "a megabyte in a field": lambda file: write_lines(file, [{**row, "more": "a" * 10**6} for row in lines_of(file)]),
}
SAME = {"a link to the file", "Windows' line ends", "the last line without its end"}
MAYBE = {*FILES, *TEXTS, *JSONS}
RECORDS_RIGHT = {*SAME, "blank lines", "one list", "a megabyte in a field"}
GONE = {"missing", "a folder", "a link to itself", "a link to nowhere", "/dev/null", "/dev/zero"}
GONE |= {"a pipe nobody writes to"}
READ = {  # kind of file -> (damages that it can have, those that change nothing, those that may be errors or nothing)
    "records": ((FILES, TEXTS, JSONS, LINES), RECORDS_RIGHT, {"a BOM"}),
    "json": ((FILES, TEXTS, JSONS), SAME, {"a BOM"}),
    "run": ((FILES, TEXTS, JSONS), SAME, {"a BOM", *GONE, "an object without keys"}),
    "index": ((FILES, TEXTS, JSONS), SAME, {"a BOM", *GONE}),
    "text": ((FILES, TEXTS), {"a link to the file"}, {*TEXTS, "cut off"}),
    "vocabulary": ((FILES, TEXTS, JSONS), SAME, {"a BOM"}),
    "tokenizer": ((FILES, TEXTS, JSONS), SAME, MAYBE),
    "binary": ((FILES,), {"a link to the file"}, ()),
    "package": ((FILES,), (), {"a link to the file"}),
    "unused": ((FILES, TEXTS, JSONS), SAME, MAYBE),
    "unused binary": ((FILES,), {"a link to the file"}, MAYBE),
    "state": ((FILES,), {"a link to the file"}, MAYBE),
    "state json": ((FILES, TEXTS, JSONS), SAME, MAYBE),
}


def of_files():
    for name, command in COMMANDS.items():
        for part, kind in command.parts.items():
            groups, right, either = READ[kind]
            for how, damage in (pair for group in groups for pair in group.items()):
                expected = "right" if how in right else "either" if how in either else "error"
                # What a tokenizer or a text says may be meant; and what a field holds is written again.
                loose = kind in ("text", "tokenizer") or how in ("a megabyte in a field", "a BOM")

                def change(place, flags, part=part, damage=damage):
                    damage(place / part)

                around = Around(obeys=how == "unreadable")
                yield Case("files", name, part, how, expected, change, "whole" if loose else "equal", around)


# ---- keys of JSON files

VALUES = {
    "missing": None,
    "null": None,
    "a text": "x",
    "an empty text": "",
    "-1": -1,
    "0": 0,
    "3": 3,
    "1.5": 1.5,
    "10**30": 10**30,
    "NaN": float("nan"),
    "a list": [],
    "an object": {},
    "true": True,
}
PLAUSIBLE = {"missing", "null", "-1", "0", "3", "1.5", "true", "an empty text"}
# Keys whose other values may well mean another model, template or run, and so another right result.
MEANT = {
    *("rms_norm_eps", "layernorm_epsilon", "layer_norm_epsilon", "eps", "hidden_act", "activation_function", "n_head"),
    *("rope_theta", "max_position_embeddings", "max_sequence_length", "n_positions", "n_ctx", "num_attention_heads"),
    *("position_bias_max_distance", "position_bias_num_buckets", "position_bias_num_segment_buckets", "dim_head"),
    *("rotary_dim", "num_heads", "position_encoding_2d", "lora_alpha", "r", "use_rslora", "use_dora", "fan_in_fan_out"),
    *("bias", "target_modules", "layers_to_transform", "prompt_input", "prompt_no_input", "template", "template_name"),
    *("precision", "training", "mask_modules", "half", "tie_word_embeddings", "architectures", "torch_dtype", "dtype"),
    *("prefix", "model_name", "model_type", "sum", "dtypes", "use_cache", "num_virtual_tokens", "encoder_hidden_size"),
    *("pre_seq_len", "alpha_pattern", "rank_pattern", "scale_attn_weights", "add_bos_token", "added_tokens_decoder"),
    *("status", "planned", "data", "seed", "base", "weight_map", "prefix_projection", "zero_optimization"),
}


def keys_of(source: Path) -> list[str]:
    """The keys of a JSON file, and some of the objects in it: "lora.lora_r"."""
    found = json.loads(source.read_text(encoding="utf-8"))
    inner = [f"{key}.{name}" for key, value in found.items() if isinstance(value, dict) for name in list(value)[:12]]
    return [*found, *inner]


def set_key(file: Path, key: str, how: str) -> None:
    whole = json.loads(file.read_text(encoding="utf-8"))
    above, _, last = key.partition(".") if "." in key else ("", "", key)
    place = whole[above] if above else whole
    if how == "missing":
        del place[last]
    else:
        place[last] = VALUES[how]
    file.write_text(json.dumps(whole), encoding="utf-8")


def of_keys(source_of: Callable):
    """`source_of(command, part)`: the undamaged file, None when there is none."""
    for name, command in COMMANDS.items():
        for part, kind in command.parts.items():
            source = kind in ("json", "run", "state json", "index", "tokenizer") and source_of(name, part)
            for key in keys_of(source) if source and part.endswith(".json") else ():
                for how in VALUES:
                    meant = not {key, key.split(".")[0]}.isdisjoint(MEANT) and how in PLAUSIBLE

                    def change(place, flags, part=part, key=key, how=how):
                        set_key(place / part, key, how)

                    compare = "whole" if meant or kind == "tokenizer" else "equal"
                    yield Case("keys", name, f"{part} {key}", how, "either", change, compare)


# ---- weights


class Runs:
    """What a pickle can do to whoever loads it: here, leave a folder."""

    def __reduce__(self):
        return os.mkdir, ("code-ran",)


def lose_tensor(tensors, name):
    del tensors[name]


def fill_column(number: float):
    def change(tensors, name):
        tensors[name][:, 3] = number

    return change


TENSORS = {  # a function of the tensors by name and of one matrix's name, and whether it must be an error
    "NaN": (fill_column(float("nan")), True),
    "infinity": (fill_column(float("inf")), True),
    "all zero": (lambda tensors, name: [tensor.zero_() for tensor in tensors.values()], False),
    "one tensor less": (lose_tensor, True),
    "one tensor more": (lambda tensors, name: tensors.update(stranger=tensors[name].clone()), False),
    "a row less": (lambda tensors, name: tensors.update({name: tensors[name][:-1].clone()}), True),
    "turned": (lambda tensors, name: tensors.update({name: tensors[name].T.contiguous()}), False),
    "whole numbers": (lambda tensors, name: tensors.update({name: tensors[name].char()}), False),
    "another name": (lambda tensors, name: tensors.update({name + "x": tensors.pop(name)}), True),
    "no tensor": (lambda tensors, name: tensors.clear(), True),
    "another's code": (lambda tensors, name: tensors.update(run=Runs()), True),
}


def read_tensors(file: Path) -> dict:
    import torch  # only where it is used
    from safetensors.torch import load_file

    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def change_tensors(file: Path, change: Callable) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = read_tensors(file)
    matrices = [name for name, one in tensors.items() if one.dim() > 1 and one.is_floating_point()]
    change(
        tensors, next((name for name in matrices if re.search(r"\d", name)), matrices[0])
    )  # of a layer, if it can be
    save_file(tensors, file, {"format": "pt"}) if file.suffix == ".safetensors" else torch.save(tensors, file)


def of_weights():
    for name, command in COMMANDS.items():
        for part, kind in command.parts.items():
            for how, (change_them, sure) in TENSORS.items() if kind == "binary" else ():
                if part.endswith(".safetensors" if how != "another's code" else "never") or part.endswith(".bin"):

                    def change(place, flags, part=part, change_them=change_them):
                        change_tensors(place / part, change_them)

                    yield Case("weights", name, part, how, "error" if sure else "either", change, "whole")
