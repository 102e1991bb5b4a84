"""What tests/campaign.py tries: commands that work, and the table of all that can be wrong about one of them.

A damage is a function of a case's folder and its command's flags; both are copies that it may change.
"""

import json
import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """A run that succeeds, in a folder of its own that holds `files`."""

    script: str
    flags: dict  # without "--"; True: a flag without a value, None: left out, a list: the flag several times
    files: dict  # name in the folder -> where it comes from, in tests/golden, or "@COMMAND/name" that one leaves
    result: str  # the file it makes that must not change
    words: tuple = ()  # behind the script, in front of the flags
    parts: dict = {}  # files it reads -> what they are, a word of READ
    reads: str = ""  # of records: how it reads them, a word of READERS


class Around(NamedTuple):
    """What is about a process besides its files and flags."""

    env: dict = {}
    stop: int = 0  # a signal that comes after the share `at` of an undamaged run
    at: float = 0.0
    limit: Callable | None = None  # called in the process before the command
    stdout: str = ""  # closed, full (a disk), gone (a pipe nobody reads), lost (a deleted working folder)
    stranger: bool = False  # not root, whom no permission stops
    real: bool = False  # only a process of its own shows it


class Case(NamedTuple):
    kind: str
    command: str
    target: str  # what is damaged
    how: str
    expected: str  # error, right, either, stopped
    damage: Callable
    compare: str = "equal"  # what a right result is: equal to the undamaged run's; "others": but for one record; "whole"
    around: Around = Around()

    @property
    def name(self) -> str:
        return f"{self.command} {self.target}: {self.how}"


# ---- commands

LLAMA = {
    "base": "llama/checkpoint",
    "train.json": "llama/train.json",
    "valid.json": "llama/valid.json",
    "adapter": "llama/adapter",
}
LLAMA_PARTS = {
    "base/config.json": "json",
    "base/tokenizer.model": "binary",
    "base/tokenizer_config.json": "tokenizer",
    "base/special_tokens_map.json": "tokenizer",
    "base/generation_config.json": "unused",
    "base/pytorch_model.bin.index.json": "index",
    "base/pytorch_model-00002-of-00004.bin": "binary",
}
TRAIN = {
    **dict(model_name_or_path="base", train_file="train.json", output_dir="lora", do_train=True, cutoff_len=512),
    **dict(per_device_train_batch_size=2, gradient_accumulation_steps=1, learning_rate="3e-3", max_steps=2, lora_r=2),
    **dict(save_strategy="steps", save_steps=1, logging_steps=1, warmup_steps=3),
    "lr_scheduler_type": "constant_with_warmup",  # the rate of a step is the same however far the run goes
}
PREDICT = dict(model_name_or_path="base", input_file="valid.json", output_file="out.json", max_new_tokens=8)
PTUNE = {
    **dict(model_dir="base", train_path="train.json", output_dir="pt", prompt_template_name="plain", max_len=400),
    **dict(max_src_len=300, pre_seq_len=4, prefix_projection="false", train_batch_size=2, max_steps=2, log_steps=1),
    **dict(save_steps=1, warmup_steps=3, lr_scheduler_type="constant_with_warmup"),
}
SCRIPT = {"predict": "src/inference.py", "diff": "src/utils/weight_diff.py", "convert": "src/utils/convert.py"}
CHECKPOINT = "lora/checkpoint-2"
COMMANDS = {
    "finetune": Command(
        "src/test_finetune.py",
        TRAIN,
        LLAMA,
        "lora/adapter_model.safetensors",
        parts={**LLAMA_PARTS, "train.json": "records"},
        reads="train",
    ),
    "evaluate": Command(
        "src/test_finetune.py",
        {**TRAIN, "do_eval": True, "valid_file": "valid.json", "max_steps": 1, "predict_with_generate": True}
        | {"max_target_length": 8, "eval_generate_samples": 2, "per_device_eval_batch_size": 2},
        {**LLAMA, "valid.json": "llama/train.json", "own.json": "/templates/plain.json"},
        "lora/adapter_model.safetensors",
        parts={"valid.json": "records"},
        reads="train",
    ),
    "resume": Command(
        "src/test_finetune.py",
        {**TRAIN, "max_steps": 3, "resume_from_checkpoint": "auto"},
        {**LLAMA, "lora": "@finetune/lora"},
        "lora/adapter_model.safetensors",
        parts={
            f"{CHECKPOINT}/optimizer.pt": "state",
            f"{CHECKPOINT}/scheduler.pt": "state",
            f"{CHECKPOINT}/rng_state.pth": "state",
            f"{CHECKPOINT}/trainer_state.json": "state json",
            f"{CHECKPOINT}/adapter_model.safetensors": "state",
            f"{CHECKPOINT}/adapter_config.json": "state json",
            f"{CHECKPOINT}/training_args.bin": "unused binary",
            "lora/run.json": "state json",
            "lora/log.jsonl": "state json",
        },
    ),
    "ptuning": Command(
        "src/finetuning_pt.py",
        PTUNE,
        LLAMA,
        "pt/global_step-2/adapter_model.safetensors",
        parts={"base/config.json": "json", "base/tokenizer.model": "binary", "train.json": "records"},
        reads="train",
    ),
    "resume_pt": Command(
        "src/finetuning_pt.py",
        {**PTUNE, "max_steps": 3, "resume": True},
        {**LLAMA, "pt": "@ptuning/pt"},
        "pt/global_step-3/adapter_model.safetensors",
        parts={"pt/global_step-2/state/rank-0.pt": "state", "pt/run.json": "state json", "pt/log.jsonl": "state json"},
    ),
    "predict": Command(
        SCRIPT["predict"],
        {**PREDICT, "lora_weights": "adapter"},
        LLAMA,
        "out.json",
        parts={
            **LLAMA_PARTS,
            "adapter/adapter_config.json": "json",
            "adapter/adapter_model.bin": "binary",
            "valid.json": "records",
        },
        reads="predict",
    ),
    "predict_own": Command(  # with the run.json and the template of one's own training
        SCRIPT["predict"],
        {**PREDICT, "model_name_or_path": None, "lora_weights": "lora"},
        {**LLAMA, "lora": "@finetune/lora"},
        "out.json",
        parts={"lora/run.json": "run", "lora/adapter_config.json": "json", "lora/adapter_model.safetensors": "binary"},
    ),
    "predict_template": Command(
        SCRIPT["predict"],
        {**PREDICT, "prompt_template_name": "own.json", "engine": "batch"},
        {**LLAMA, "own.json": "/templates/plain.json"},
        "out.json",
        parts={"own.json": "json"},
    ),
    "predict_chatglm": Command(
        SCRIPT["predict"],
        PREDICT,
        {**LLAMA, "base": "chatglm/base", "base/ice_text.model": "chatglm/ice_text.model"},
        "out.json",
        parts={
            "base/config.json": "json",
            "base/ice_text.model": "binary",
            "base/tokenizer_config.json": "tokenizer",
            "base/model.safetensors": "binary",
            "valid.json": "records",
        },
        reads="predict",
    ),
    "predict_moss": Command(
        SCRIPT["predict"],
        PREDICT,
        {**LLAMA, "base": "moss"},
        "out.json",
        parts={
            "base/config.json": "json",
            "base/vocab.json": "json",
            "base/merges.txt": "text",
            "base/added_tokens.json": "tokenizer",
            "base/tokenizer_config.json": "tokenizer",
            "base/model.safetensors": "binary",
        },
    ),
    "predict_cpmbee": Command(
        SCRIPT["predict"],
        PREDICT,
        {**LLAMA, "base": "cpmbee"},
        "out.json",
        parts={"base/config.json": "json", "base/vocab.txt": "text", "base/model.safetensors": "binary"},
    ),
    "predict_pt": Command(
        "src/inference_pt.py",
        dict(test_path="valid.json", model_dir="pt/global_step-2", output_file="out.json", max_new_tokens=8, device=0),
        {**LLAMA, "pt": "@ptuning/pt"},
        "out.json",
        parts={
            "valid.json": "records",
            "pt/global_step-2/run.json": "run",
            "pt/global_step-2/adapter_config.json": "json",
            "pt/global_step-2/adapter_model.safetensors": "binary",
        },
        reads="predict",
    ),
    "convert": Command(
        SCRIPT["convert"],
        dict(pred_path="pred.json", tgt_path="submission.json"),
        {"pred.json": "llama/train.json"},
        "submission.json",
        parts={"pred.json": "records"},
        reads="convert",
    ),
    "check": Command(
        SCRIPT["convert"],
        dict(check="test.json", tgt_path="submission.json"),
        {"test.json": "llama/train.json", "submission.json": "@convert/submission.json"},
        "submission.json",
        parts={"test.json": "records", "submission.json": "records"},
    ),
    "score": Command(
        "src/utils/score.py",
        dict(pred="pred.json", gold="gold.json", json="score.json", show=1, bootstrap=50),
        {"pred.json": "llama/train.json", "gold.json": "llama/train.json"},
        "score.json",
        parts={"pred.json": "records", "gold.json": "records"},
        reads="score",
    ),
    "merge": Command(
        SCRIPT["diff"],
        dict(path_base="base", path_adapter="adapter", path_merged="merged"),
        LLAMA,
        "merged/model-00001-of-00001.safetensors",
        ("merge",),
        {
            "base/config.json": "json",
            "base/tokenizer.model": "unused binary",
            "base/pytorch_model.bin.index.json": "index",
            "base/pytorch_model-00002-of-00004.bin": "binary",
            "adapter/adapter_config.json": "json",
            "adapter/adapter_model.bin": "binary",
        },
    ),
    "make_diff": Command(
        SCRIPT["diff"],
        dict(path_raw="raw", path_tuned="tuned", path_diff="diff"),
        {"raw": "llama/checkpoint", "tuned": "@merge/merged"},
        "diff/model-00001-of-00001.safetensors",
        ("make_diff",),
        {"raw/config.json": "unused", "tuned/config.json": "json", "tuned/model-00001-of-00001.safetensors": "binary"},
    ),
    "recover": Command(
        SCRIPT["diff"],
        dict(path_raw="raw", path_diff="diff", path_tuned="tuned"),
        {"raw": "llama/checkpoint", "diff": "@make_diff/diff"},
        "tuned/model-00001-of-00001.safetensors",
        ("recover",),
        {
            "raw/config.json": "unused",
            "diff/config.json": "json",
            "diff/weight_diff.json": "json",
            "raw/pytorch_model.bin.index.json": "index",
            "raw/pytorch_model-00002-of-00004.bin": "binary",
            "diff/model-00001-of-00001.safetensors": "binary",
        },
    ),
    "tencent": Command(
        SCRIPT["diff"],
        dict(path_in="in", path_out="hf", heads=4),
        {"in": "llama/tencentpretrain", "in/tokenizer.model": "llama/checkpoint/tokenizer.model"},
        "hf/model-00001-of-00001.safetensors",
        ("from_tencentpretrain",),
        {"in/chatflow_7b.bin": "binary", "in/tokenizer.model": "binary"},
    ),
}

# ---- files

NESTED = 100_000  # brackets


def half_of(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


def with_chinese(file: Path) -> str:
    """The text, with a Chinese key in front of the first object's, so that its encoding shows."""
    return file.read_text(encoding="utf-8").replace("{", '{"说明": "基座",', 1).replace(",}", "}", 1)


def linked(file: Path, target: str) -> None:
    file.unlink()
    file.symlink_to(target)


def into_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def into_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def into_link_to_itself(file: Path) -> None:
    moved = file.with_name("moved-" + file.name)
    file.rename(moved)
    file.symlink_to(moved.name)


FILES = {  # of any file
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "random bytes": lambda file: file.write_bytes(random.Random(0).randbytes(3000)),
    "cut off": half_of,
    "a web page": lambda file: file.write_text("<!DOCTYPE html>\n<html><body>404</body></html>\n"),
    "a pointer of Git LFS": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "a folder": into_folder,
    "a link to itself": lambda file: linked(file, file.name),
    "a link to nowhere": lambda file: linked(file, "nowhere"),
    "a pipe nobody writes to": into_pipe,
    "/dev/null": lambda file: linked(file, "/dev/null"),
    "/dev/zero": lambda file: linked(file, "/dev/zero"),
    "unreadable": lambda file: file.chmod(0),
    "a link to the file": into_link_to_itself,
}
TEXTS = {  # of a text as well
    "GBK": lambda file: file.write_bytes(with_chinese(file).encode("gbk")),
    "UTF-16": lambda file: file.write_text(file.read_text(encoding="utf-8"), encoding="utf-16"),
    "a BOM": lambda file: file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig"),
    "Windows' line ends": lambda file: file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n")),
    "a NUL": lambda file: file.write_bytes(file.read_bytes().replace(b":", b":\0", 1)),
}
JSONS = {
    "a list nested too deep": lambda file: file.write_text("[" * NESTED),
    "an object nested too deep": lambda file: file.write_text('{"a":' * NESTED + "1" + "}" * NESTED),
    "a number of 5,000 digits": lambda file: file.write_text('{"id": ' + "9" * 5000 + "}"),
    "a text": lambda file: file.write_text('"no object"'),
    "a list of numbers": lambda file: file.write_text("[1, 2]"),
    "null": lambda file: file.write_text("null"),
    "an object without keys": lambda file: file.write_text("{}"),
    "twice": lambda file: file.write_bytes(file.read_bytes() * 2),
}
LINES = {
    "blank lines": lambda file: file.write_text("\n\n" + file.read_text(encoding="utf-8") + "\n \n", encoding="utf-8"),
    "one list": lambda file: file.write_text(json.dumps(lines_of(file))),
    "a list without its end": lambda file: file.write_text(json.dumps(lines_of(file))[:-1]),
    "a comma behind each line": lambda file: file.write_bytes(file.read_bytes().replace(b"}\n", b"},\n")),
    "the last line without its end": lambda file: file.write_bytes(file.read_bytes().rstrip()),
    "a megabyte in one field": lambda file: write_lines(file, [{**row, "more": "a" * 10**6} for row in lines_of(file)]),
}


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_lines(file: Path, rows: list) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


SAME = {"a link to the file", "Windows' line ends", "the last line without its end"}
READ = {  # kind of file -> (damages that it can have, those that change nothing, those that may be an error or nothing)
    "records": ((FILES, TEXTS, JSONS, LINES), {*SAME, "a BOM", "blank lines", "one list", "a megabyte in one field"}, ()),
    "json": ((FILES, TEXTS, JSONS), SAME, {"a BOM", "missing"}),
    "run": ((FILES, TEXTS, JSONS), SAME, {"a BOM", "missing", "an object without keys"}),
    "index": ((FILES, TEXTS, JSONS), SAME, {"a BOM", "missing"}),
    "text": ((FILES, TEXTS), {"a link to the file"}, {*TEXTS, "cut off"}),
    "tokenizer": ((FILES, TEXTS, JSONS), SAME, {*FILES, *TEXTS, *JSONS}),
    "binary": ((FILES,), {"a link to the file"}, ()),
    "unused": ((FILES, TEXTS, JSONS), SAME, {*FILES, *TEXTS, *JSONS}),
    "unused binary": ((FILES,), {"a link to the file"}, set(FILES)),
    "state": ((FILES,), {"a link to the file"}, set(FILES)),
    "state json": ((FILES, TEXTS, JSONS), SAME, {*FILES, *TEXTS, *JSONS}),
}
ANY_ANSWER = ("text", "tokenizer")  # what is read from these may change the answers, and nobody can know


def of_files():
    for name, command in COMMANDS.items():
        for part, kind in command.parts.items():
            groups, right, either = READ[kind]
            for how, damage in (pair for group in groups for pair in group.items()):
                expected = "right" if how in right else "either" if how in either else "error"
                compare = "whole" if kind in ANY_ANSWER and expected != "right" else "equal"
                if how in ("a megabyte in one field",) or (how == "one list" and name == "check"):
                    compare = "whole"
                around = Around(stranger=how == "unreadable")

                def change(place, flags, part=part, damage=damage):
                    damage(place / part)

                yield Case("files", name, part, how, expected, change, compare, around)


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
# Keys whose other values may well mean another model, template or run, and so another right answer.
MEANT = {
    *("rms_norm_eps", "layernorm_epsilon", "layer_norm_epsilon", "eps", "hidden_act", "activation_function", "rotary_dim"),
    *("rope_theta", "max_position_embeddings", "max_sequence_length", "n_positions", "n_ctx", "position_bias_max_distance"),
    *("position_bias_num_buckets", "num_attention_heads", "n_head", "dim_head", "num_heads", "position_encoding_2d"),
    *("lora_alpha", "r", "use_rslora", "use_dora", "fan_in_fan_out", "bias", "target_modules", "layers_to_transform"),
    *("prompt_input", "prompt_no_input", "template", "template_name", "precision", "training", "mask_modules", "half"),
    *("tie_word_embeddings", "architectures", "torch_dtype", "dtype", "prefix", "model_name", "sum", "dtypes", "use_cache"),
    *("num_virtual_tokens", "encoder_hidden_size", "pre_seq_len", "alpha_pattern", "rank_pattern", "scale_attn_weights"),
    *("model_type", "add_bos_token", "added_tokens_decoder", "status", "planned", "data", "seed", "base", "weight_map"),
}


def keys_of(source: Path) -> list[str]:
    """The keys of a JSON file, and of the objects in it: "lora.lora_r"."""
    found = json.loads(source.read_text(encoding="utf-8"))
    inner = [f"{key}.{name}" for key, value in found.items() if isinstance(value, dict) for name in list(value)[:12]]
    return [*found, *inner]


def set_key(file: Path, key: str, how: str) -> None:
    whole = json.loads(file.read_text(encoding="utf-8"))
    *above, last = key.split(".", 1) if "." in key else (key,)
    place = whole[above[0]] if above else whole
    if how == "missing":
        del place[last]
    else:
        place[last] = VALUES[how]
    file.write_text(json.dumps(whole), encoding="utf-8")


def of_keys(source_of: Callable):
    """`source_of(command, part)`: the undamaged file."""
    for name, command in COMMANDS.items():
        for part, kind in command.parts.items():
            if kind not in ("json", "run", "state json", "index", "tokenizer") or not part.endswith(".json"):
                continue
            if not (source := source_of(name, part)):
                continue
            for key in keys_of(source):
                for how in VALUES:
                    meant = not {key, key.split(".")[0]}.isdisjoint(MEANT) and how in PLAUSIBLE

                    def change(place, flags, part=part, key=key, how=how):
                        set_key(place / part, key, how)

                    compare = "whole" if meant or kind == "tokenizer" else "equal"
                    yield Case("keys", name, f"{part} {key}", how, "either", change, compare)

# ---- flags

LONGEST = 2**31
HUGE = "99999999999999"
NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e400", HUGE, "9" * 5000, "x", "1.5", "0x10", "", " ", "1_000", "十", "None")
# What a number must be: whole or real, the least, the most; "huge": a run that would be right and never end is left out.
WHOLE_1, WHOLE_0, REAL_0, SHARE = ("whole", 1), ("whole", 0), ("real", 0), ("real", 0, 1)
ANSWERS = {
    **dict(batch_size=WHOLE_1, max_repeats=("whole", 0), window=WHOLE_0, repetition_penalty=("real", 1e-30)),
    **dict(max_new_tokens=WHOLE_1, max_memory_MB=WHOLE_1, bits=("whole", 4, 16)),
}
PREDICTING = {**ANSWERS, "num_beams": WHOLE_1, "tensor_parallel_size": WHOLE_1, "data_parallel_size": WHOLE_1}
FLAGS = {
    "finetune": {
        **dict(per_device_train_batch_size=WHOLE_1, gradient_accumulation_steps=WHOLE_1, cutoff_len=WHOLE_1),
        **dict(learning_rate=REAL_0, weight_decay=REAL_0, adam_beta1=SHARE, adam_beta2=SHARE, adam_epsilon=REAL_0),
        **dict(max_grad_norm=REAL_0, warmup_steps=REAL_0, num_train_epochs=("real", 1e-9), lora_r=WHOLE_1),
        **dict(lora_alpha=WHOLE_1, lora_dropout=SHARE, save_steps=("real", 1e-9), save_total_limit=WHOLE_1),
        **dict(logging_steps=("real", 1e-9), seed=WHOLE_0, preprocessing_num_workers=WHOLE_1, max_source_length=WHOLE_1),
        **dict(dataloader_num_workers=WHOLE_0, max_memory_MB=WHOLE_1, bits=("whole", 4, 16), eval_steps=("real", 1e-9)),
    },
    "evaluate": dict(
        val_set_size=WHOLE_0, per_device_eval_batch_size=WHOLE_1, eval_generate_samples=WHOLE_0, max_target_length=WHOLE_1
    ),
    "ptuning": {
        **dict(train_batch_size=WHOLE_1, gradient_accumulation_steps=WHOLE_1, max_len=WHOLE_1, max_src_len=WHOLE_1),
        **dict(pre_seq_len=WHOLE_1, learning_rate=REAL_0, weight_decay=REAL_0, max_grad_norm=REAL_0, warmup_steps=REAL_0),
        **dict(log_steps=WHOLE_1, save_steps=WHOLE_1, save_total_limit=WHOLE_1, seed=WHOLE_0, max_memory_MB=WHOLE_1),
    },
    "predict": PREDICTING,
    "predict_template": {"temperature": ("real", 1e-30), "top_k": WHOLE_0, "top_p": ("real", 1e-30, 1), "seed": WHOLE_0},
    "predict_pt": {**ANSWERS, "max_len": WHOLE_1, "max_src_len": WHOLE_1},
    "score": dict(show=WHOLE_0, bootstrap=WHOLE_0, seed=WHOLE_0),
    "tencent": dict(heads=WHOLE_1),
    "recover": dict(expected_sum=("real", None)),
}
WORDS = {  # of a choice or a switch: nothing but what --help lists is right
    "finetune": ("optim", "lr_scheduler_type", "save_strategy", "eval_strategy", "report_to", "train_sampling_strategy")
    + ("lora_target_modules", "model_name", "prompt_template_name", "fp16", "packing", "do_eval", "use_liger_kernel"),
    "ptuning": ("lr_scheduler_type", "model_name", "prompt_template_name", "prefix_projection", "deepspeed", "resume"),
    "predict": ("engine", "device", "model_name", "prompt_template_name", "merge_lora", "device_map", "fp16"),
    "predict_pt": ("engine", "device", "model_name", "prompt_template_name", "retry_length"),
    "convert": ("schema", "sort", "dedupe", "skip_bad"),
    "recover": ("dtype", "check", "is_fp16"),
    "merge": ("dtype", "is_fp16"),
    "make_diff": ("dtype",),
}
WRONG_WORDS = ("", " ", "x", "nan", "../x", "a b", "日本", "x\0", "\udcff", "-")
INPUTS = dict(finetune="train_file model_name_or_path", evaluate="valid_file", ptuning="train_path model_dir")
INPUTS |= dict(predict="input_file model_name_or_path lora_weights", predict_pt="test_path model_dir ori_model_dir")
INPUTS |= dict(convert="pred_path", check="check tgt_path", score="pred gold", merge="path_base path_adapter")
INPUTS |= dict(make_diff="path_raw path_tuned", recover="path_raw path_diff", tencent="path_in", resume="", resume_pt="")
INPUTS |= dict(predict_template="prompt_template_name")
OUTPUTS = dict(finetune="output_dir", ptuning="output_dir", predict="output_file", predict_pt="output_file")
OUTPUTS |= dict(convert="tgt_path", score="json", merge="path_merged", make_diff="path_diff", recover="path_tuned")
OUTPUTS |= dict(tencent="path_out")
NO_INPUT = {
    **{"empty": "", "a space": " ", "a name of 300": "x" * 300 + ".json", "a path of 5,000": "x/" * 2500 + "x.json"},
    **{"not there": "no/such/thing.json", "a number": "7", "a line break": "a\nb.json", "no UTF-8": "\udcff.json"},
    **{"/dev/null": "/dev/null", "/dev/stdin": "/dev/stdin", "an address": "https://example.org/valid.json"},
    **{"a tilde": "~/valid.json", "a hyphen": "-", "below a file": "here.txt/valid.json", "a text": "here.txt"},
    **{"an empty folder": "empty", "a missing user's home": "~nobody-here/x", "a pattern": "*.json"},
}
NO_OUTPUT = {
    **{"empty": "", "a space that is a folder": " ", "a name of 300": "x" * 300, "a name of 247": "x" * 247},
    **{"a path of 5,000": "x/" * 2500 + "x", "below a file": "here.txt/out", "/dev/null": "/dev/null"},
    **{"/dev/stdout": "/dev/stdout", "/dev/full": "/dev/full", "a pipe": "pipe", "a link to itself": "circle"},
    **{"a closed folder": "closed/out", "the kernel's folder": "/proc/out", "no UTF-8": "\udcff/out"},
    **{"the root": "/", "the folder itself": "."},
}
MAY_BE = {"a name of 247", "no UTF-8", "/dev/stdout"}  # a good output, if it is served whole


def allowed(text: str, rule: tuple) -> bool:
    """Whether a number obeys its rule: (whole or real, the least, the most)."""
    kind, least, *most = rule
    try:
        number = (int if kind == "whole" else float)(text)
    except ValueError:
        return False
    return abs(number) < LONGEST * 2**20 and (least is None or number >= least) and (not most or number <= most[0])


def give(flag: str, value):
    def change(place, flags):
        flags[flag] = value

    return change


def furnish(place: Path) -> None:
    """What the names in NO_INPUT and NO_OUTPUT mean."""
    (place / "here.txt").write_text("a text\n")
    (place / "empty").mkdir()
    (place / " ").mkdir()
    (place / "closed").mkdir(mode=0o555)
    os.mkfifo(place / "pipe")
    (place / "circle").symlink_to("circle")


def give_path(flag: str, value: str):
    def change(place, flags):
        furnish(place)
        flags[flag] = value

    return change


def of_numbers():
    for name, flags in FLAGS.items():
        for flag, rule in flags.items():
            more = {"do_sample": True} if name == "predict_template" else {}
            for text in dict.fromkeys((*NUMBERS, str(rule[-1] + 1) if len(rule) > 2 else "1")):
                right = allowed(text, rule)

                def change(place, flags, flag=flag, text=text, more=more):
                    flags |= {**more, flag: text}

                yield Case("flags", name, f"--{flag}", text[:20], "either" if right else "error", change, "whole")


def of_words():
    for name, flags in WORDS.items():
        for flag in flags:
            for word in WRONG_WORDS:
                if "\0" not in word:  # no process can be started with one
                    yield Case("flags", name, f"--{flag}", ascii(word), "error", give(flag, word))


def of_paths():
    for table, texts in ((INPUTS, NO_INPUT), (OUTPUTS, NO_OUTPUT)):
        for name, flags in table.items():
            for flag in flags.split():
                for how, text in texts.items():
                    expected = "either" if table is OUTPUTS and how in MAY_BE else "error"
                    around = Around(stranger=how in ("a closed folder", "the kernel's folder"))
                    yield Case("paths", name, f"--{flag}", how, expected, give_path(flag, text), "equal", around)


def mix(**values):
    def change(place, flags):
        flags |= values

    return change


def stray(place, flags):
    flags["seed"] = ["1", "2"]


def of_combinations():
    every = [name for name in COMMANDS if name not in ("check",)]
    for name in every:
        flags = COMMANDS[name].flags
        first, last = next(iter(flags)), list(flags)[-1]
        yield Case("combinations", name, "--no_such_flag", "unknown", "error", mix(no_such_flag="1"))
        yield Case("combinations", name, f"--{first[:-1]}", "misspelt", "error", mix(**{first[:-1]: flags[first]}))
        yield Case("combinations", name, f"--{first}", "twice", "right", mix(**{first: [flags[first]] * 2}))
        for other in ("per_gpu_train_batch_size", "batch-size", "lora_target", "dataset", "base", "model", "temperatur"):
            yield Case("combinations", name, f"--{other}", "another tool's", "error", mix(**{other: "x"}))
        yield Case("combinations", name, f"--{first}", "without a value", "error", mix(**{first: None, last: flags[last], "": f"--{first}"}))
    for name, values in CONTRADICTIONS:
        yield Case("combinations", name, " ".join(f"--{flag}" for flag in values), "contradict", "error", mix(**values))
    for name, flag, output in OWN_INPUTS:
        yield Case("combinations", name, f"--{flag}", f"is the input {output}", "error", mix(**{flag: output}))


CONTRADICTIONS = [
    ("finetune", dict(overwrite_output_dir=True, resume_from_checkpoint="auto")),
    ("finetune", dict(full_finetune=True, bits=8)),
    ("finetune", dict(full_finetune=True, lora_alpha=3)),
    ("finetune", dict(fp16=True, bf16=True)),
    ("finetune", dict(fsdp=True)),
    ("finetune", dict(predict_with_generate=True)),
    ("finetune", dict(do_eval=True, val_set_size=0)),
    ("finetune", dict(do_eval=True, val_set_size=12)),
    ("finetune", dict(deepspeed="ds.json")),
    ("finetune", dict(load_best_model_at_end=True)),
    ("finetune", dict(model_name="chatglm")),
    ("finetune", dict(lora_target_modules="query_key_value")),
    ("finetune", dict(max_steps=0, num_train_epochs=0)),
    ("finetune", dict(max_steps=-1, num_train_epochs="-1")),
    ("finetune", dict(do_train=None)),
    ("finetune", dict(output_dir=None)),
    ("finetune", dict(resume_from_checkpoint="adapter")),
    ("finetune", dict(adam_beta2=2)),
    ("finetune", dict(cutoff_len=5)),
    ("ptuning", dict(overwrite_output_dir=True, resume=True)),
    ("ptuning", dict(max_len=100, max_src_len=200)),
    ("ptuning", dict(max_steps=0, num_train_epochs=0)),
    ("ptuning", dict(fp16=True, fp32=True)),
    ("ptuning", dict(prefix_projection="true", pre_seq_len=99999999)),
    ("ptuning", dict(model_name="moss")),
    ("predict", dict(temperature=1)),
    ("predict", dict(do_sample=True, num_beams=2)),
    ("predict", dict(fp16=True, bf16=True)),
    ("predict", dict(lora_weights=None, merge_lora=True)),
    ("predict", dict(engine="vllm", device_map="auto")),
    ("predict", dict(engine="fast", num_beams=2)),
    ("predict", dict(engine="fast", do_sample=True)),
    ("predict", dict(max_repeats=1)),
    ("predict", dict(device="cuda:99")),
    ("predict", dict(window=3)),
    ("predict", dict(model_name="vicuna-7b")),
    ("predict", dict(tensor_parallel_size=2)),
    ("predict", dict(lora_weights="base")),
    ("predict", dict(model_name_or_path="adapter")),
    ("predict_pt", dict(max_len=100, max_src_len=200)),
    ("predict_pt", dict(model_dir="base")),
    ("predict_pt", dict(model_dir="adapter")),
    ("predict_pt", dict(num_beams=2)),
    ("check", dict(pred_path="pred.json")),
    ("recover", dict(is_fp16=True, dtype="float16")),
    ("merge", dict(path_base="adapter", path_adapter="base")),
    ("recover", dict(path_raw="diff", path_diff="raw")),
    ("make_diff", dict(path_raw="diff")),
    ("tencent", dict(heads=None)),
    ("tencent", dict(heads=5)),
]
OWN_INPUTS = [  # an output that would replace what is read
    ("finetune", "output_dir", "base"),
    ("finetune", "output_dir", "./base/"),
    ("finetune", "output_dir", "train.json"),
    ("ptuning", "output_dir", "base"),
    ("ptuning", "output_dir", "base/."),
    ("predict", "output_file", "valid.json"),
    ("predict", "output_file", "base/config.json"),
    ("predict", "output_file", "adapter/out.json"),
    ("predict", "output_file", "base/new/out.json"),
    ("predict_pt", "output_file", "pt/global_step-2/run.json"),
    ("predict_pt", "output_file", "valid.json"),
    ("convert", "tgt_path", "./pred.json"),
    ("score", "json", "gold.json"),
    ("score", "json", "pred.json"),
    ("merge", "path_merged", "base"),
    ("merge", "path_merged", "adapter"),
    ("merge", "path_merged", "base/in"),
    ("make_diff", "path_diff", "raw"),
    ("recover", "path_tuned", "diff"),
    ("recover", "path_tuned", "raw/x"),
    ("tencent", "path_out", "in"),
]


# ---- records

DEEP = json.loads("[" * 500 + "]" * 500)
LONE = "\ud800"
MANY = "刘德华1961年9月27日出生于香港。" * 10_000
READERS = ("train", "predict", "convert", "score")


def field(name: str, value):
    def change(rows):
        rows[1][name] = value

    return change


def drop(*names: str):
    def change(rows):
        for name in names:
            rows[1].pop(name, None)

    return change


def instead(*rows_of_another):
    def change(rows):
        rows[:] = [dict(row) for row in rows_of_another]

    return change


# What a reader makes of it: e: an error, r: a right result (but for this record), o: either; -: does not concern it.
RECORDS = [
    ("no instruction", drop("instruction"), "eerr"),
    ("no input", drop("input"), "eerr"),
    ("no output", drop("output"), "e-ee"),
    ("no id", drop("id"), "rrre"),
    ("no field at all", drop("id", "cate", "instruction", "input", "output"), "eeee"),
    ("input null", field("input", None), "eerr"),
    ("input a number", field("input", 7), "eeee"),
    ("input a list", field("input", ["a"]), "eeee"),
    ("input an object", field("input", {"text": "a"}), "eeee"),
    ("input empty", field("input", ""), "rrrr"),
    ("input spaces", field("input", " \n\t"), "rrrr"),
    ("instruction null", field("instruction", None), "eerr"),
    ("instruction a number", field("instruction", 1.5), "eeee"),
    ("instruction empty", field("instruction", ""), "orrr"),
    ("output null", field("output", None), "e-eo"),
    ("output a list", field("output", [["a", "b", "c"]]), "e-oo"),
    ("output a number", field("output", 3), "e-ee"),
    ("output empty", field("output", ""), "o-rr"),
    ("output half a surrogate pair", field("output", f"(a,b,{LONE})"), "e-rr"),
    ("input half a surrogate pair", field("input", f"a{LONE}b"), "eerr"),
    ("instruction half a surrogate pair", field("instruction", f"a{LONE}b"), "eerr"),
    ("id half a surrogate pair", field("id", LONE), "rrrr"),
    ("cate half a surrogate pair", field("cate", LONE), "rrrr"),
    ("input control characters", field("input", "a\0b\x07c\x1b[31m\x7f"), "rrrr"),
    ("input special tokens", field("input", "a</s><s>[PAD]<eom><|im_end|>{instruction}{input}"), "rrrr"),
    ("input line separators", field("input", "a\u2028b\u2029c\x85d"), "rrrr"),
    ("input rare characters", field("input", "𠮷👨‍👩‍👧\ufeff\u202e"), "rrrr"),
    ("input too long", field("input", MANY), "oorr"),
    ("instruction too long", field("instruction", MANY), "oorr"),
    ("output too long", field("output", f"(a,b,{MANY})"), "o-rr"),
    ("output brackets", field("output", "((((" * 5000), "o-rr"),
    ("output 20,000 triples", field("output", "(a,b,c)" * 20_000), "o-rr"),
    ("id null", field("id", None), "rrre"),
    ("id a float", field("id", 1.5), "rrre"),
    ("id 1.0", field("id", 904.0), "oooo"),
    ("id true", field("id", True), "rroe"),
    ("id a list", field("id", [1]), "rroe"),
    ("id an object", field("id", {"a": 1}), "rroe"),
    ("id empty", field("id", ""), "rroe"),
    ("id NaN", field("id", float("nan")), "oooe"),
    ("id infinite", field("id", float("inf")), "oooe"),
    ("id of 4,000 digits", field("id", "9" * 4000), "rrrr"),
    ("id of 5,000 digits", field("id", "9" * 5000), "rrrr"),
    ("id a number of 4,000 digits", field("id", 10**4000), "rrrr"),
    ("id that an earlier record has", lambda rows: rows[1].update(id=rows[0]["id"]), "eere"),
    ("id as text that an earlier one has", lambda rows: rows[1].update(id=str(rows[0]["id"])), "rrro"),
    ("id of Arabic digits", field("id", "٣"), "rrrr"),
    ("id a superscript", field("id", "²"), "rrrr"),
    ("id negative", field("id", -5), "rrrr"),
    ("kg a text", field("kg", "x"), "eere"),
    ("kg pairs", field("kg", [["a", "b"]]), "eere"),
    ("kg with numbers", field("kg", [["a", "b", 3]]), "eere"),
    ("kg null", field("kg", None), "rrrr"),
    ("kg empty", field("kg", []), "rrrr"),
    ("another field NaN", field("more", float("nan")), "oooo"),
    ("another field deep", field("more", DEEP), "rrrr"),
    ("another field infinite", field("more", float("-inf")), "oooo"),
    ("finish_reason of its own", field("finish_reason", 7), "rrrr"),
    ("only one record", lambda rows: rows.__delitem__(slice(1, None)), "oooo"),
    ("a list among the records", lambda rows: rows.insert(1, ["a"]), "eeee"),
    ("a text among the records", lambda rows: rows.insert(1, "a"), "eeee"),
    ("null among the records", lambda rows: rows.insert(1, None), "eeee"),
    ("all outputs empty", lambda rows: [row.update(output="") for row in rows], "e-rr"),
    ("Alpaca's pairs", instead({"prompt": "抽取", "response": "(a,b,c)"}), "eeee"),
    ("ShareGPT", instead({"conversations": [{"from": "human", "value": "抽取"}, {"from": "gpt", "value": "a"}]}), "eeee"),
    ("OpenAI's messages", instead({"messages": [{"role": "user", "content": "抽取"}]}), "eeee"),
    ("InstructIE", instead({"id": 1, "cate": "人物", "text": "刘德华", "relation": [{"head": "a", "tail": "b"}]}), "eeee"),
    ("IEPile", instead({"task": "RE", "instruction": '{"schema": ["出生地"]}', "output": "{}"}), "eeoo"),
    ("DuIE", instead({"text": "刘德华", "spo_list": [{"predicate": "a", "subject": "b", "object": {"@value": "c"}}]}), "eeee"),
    ("a dictionary by id", instead({"904": {"instruction": "a", "input": "b", "output": "c"}}), "eeee"),
]


def of_records():
    for name, command in COMMANDS.items():
        if not command.reads:
            continue
        part = [part for part, kind in command.parts.items() if kind == "records"][0]
        for how, change_rows, said in RECORDS:
            letter = said[READERS.index(command.reads)]
            if letter == "-":
                continue

            def change(place, flags, part=part, change_rows=change_rows):
                rows = lines_of(place / part)
                change_rows(rows)
                write_lines(place / part, rows)

            expected = {"e": "error", "r": "right", "o": "either"}[letter]
            compare = "whole" if "only one" in how or "all outputs" in how or command.reads in ("train", "score") else "others"
            yield Case("records", name, part, how, expected, change, compare)


# ---- weights

def set_tensors(how: str):
    """A change of the tensors of one file, by torch, which is imported only where it is used."""

    def change(file: Path) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        named = file.suffix == ".safetensors"
        tensors = load_file(file) if named else torch.load(file, weights_only=True)
        name = next(name for name in tensors if tensors[name].dim() > 1 and tensors[name].is_floating_point())
        one = tensors[name]
        if how in ("NaN", "infinity"):
            one.view(-1)[3] = float("nan" if how == "NaN" else "inf")
        elif how == "all zero":
            tensors = {key: torch.zeros_like(value) for key, value in tensors.items()}
        elif how == "one tensor less":
            del tensors[name]
        elif how == "one tensor more":
            tensors["stranger.weight"] = torch.ones(2, 2)
        elif how == "a row less":
            tensors[name] = one[:-1].clone()
        elif how == "turned":
            tensors[name] = one.T.contiguous()
        elif how == "whole numbers":
            tensors[name] = one.to(torch.int8)
        elif how == "another name":
            tensors[name + "x"] = tensors.pop(name)
        elif how == "no tensor":
            tensors = {}
        elif how == "another's code":
            torch.save({name: one, "run": Runs()}, file)
            return
        save_file(tensors, file, {"format": "pt"}) if named else torch.save(tensors, file)

    return change


class Runs:
    """What a pickle can do to whoever loads it: here, leave a file."""

    def __reduce__(self):
        return os.mkdir, ("code-ran",)


WEIGHTS = ("NaN", "infinity", "all zero", "one tensor less", "one tensor more", "a row less", "turned")
WEIGHTS += ("whole numbers", "another name", "no tensor", "another's code")
SURE = {"NaN", "infinity", "one tensor less", "a row less", "another name", "no tensor", "another's code"}


def of_weights():
    for name, command in COMMANDS.items():
        for part, kind in command.parts.items():
            if kind != "binary" or not part.endswith((".bin", ".safetensors")):
                continue
            for how in WEIGHTS:
                if how == "another's code" and part.endswith(".safetensors"):
                    continue

                def change(place, flags, part=part, how=how):
                    set_tensors(how)(place / part)

                yield Case("weights", name, part, how, "error" if how in SURE else "either", change, "whole")


# ---- what is around a process

def most_bytes(count: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))


def more_memory(megabytes: int):
    """The address space may grow by so much."""

    def limit():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return limit


def most_open(count: int):
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


AROUND = [  # name, expected, what
    *[(f"a terminal of {code}", "right", Around({"PYTHONIOENCODING": code}, real=True)) for code in ("gbk", "ascii", "cp1252")],
    ("the locale C without UTF-8", "right", Around({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, real=True)),
    ("stdout closed", "either", Around(stdout="closed", real=True)),
    ("stdout on a full disk", "either", Around(stdout="full")),
    ("stdout a pipe nobody reads", "either", Around(stdout="gone")),
    ("a deleted working folder", "either", Around(stdout="lost")),
    ("a folder one may not write", "error", Around(stdout="closed folder", stranger=True)),
    *[(f"files of at most {count} bytes", "either", Around(limit=most_bytes(count))) for count in (0, 100, 5000, 100_000)],
    *[(f"{size} MB more memory", "either", Around(limit=more_memory(size))) for size in (1, 20, 100, 400)],
    ("at most 12 open files", "either", Around(limit=most_open(12))),
    *[
        (f"{name}={value}", expected, Around({name: value}, real=name[:3] in ("OMP", "PYT")))
        for name, value, expected in (
            ("RANK", "x", "error"),
            ("WORLD_SIZE", "0", "error"),
            ("RANK", "-1", "error"),
            ("LOCAL_RANK", "x", "error"),
            ("CUDA_VISIBLE_DEVICES", "x", "right"),
            ("OMP_NUM_THREADS", "x", "right"),
            ("OMP_NUM_THREADS", "-3", "right"),
            ("HF_DATASETS_CACHE", "/dev/null/x", "right"),
            ("TMPDIR", "/no/such", "right"),
            ("HOME", "/no/such", "right"),
            ("PYTHONOPTIMIZE", "2", "right"),
            ("COLUMNS", "0", "right"),
            ("TERM", "dumb", "right"),
        )
    ],
]


def of_surroundings():
    for name in COMMANDS:
        for how, expected, around in AROUND:
            yield Case("surroundings", name, "process", how, expected, lambda place, flags: None, "equal", around)


SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}


def go_on(place, flags):
    """The flag with which the same command goes on."""
    if flags.get("do_train"):
        flags["resume_from_checkpoint"] = "auto"
    elif "train_path" in flags:
        flags["resume"] = True


def of_interruptions():
    for name in COMMANDS:
        if name == "check":
            continue
        for said, number in SIGNALS.items():
            for percent in range(4, 104, 4):
                around = Around(stop=number, at=percent / 100)
                how = f"at {percent} %, then again"
                yield Case("interruptions", name, said, how, "stopped", go_on, "equal", around)


def all_cases(source_of: Callable) -> list[Case]:
    """The whole table; `source_of(command, part)`: an undamaged file of that command, None when there is none yet."""
    tables = (of_files(), of_keys(source_of), of_numbers(), of_words(), of_paths(), of_combinations())
    tables += (of_records(), of_weights(), of_surroundings(), of_interruptions())
    return [case for table in tables for case in table]
