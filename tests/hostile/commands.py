"""The commands of tests/campaign.py as they work, and what a case is."""

import json
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple


class Command(NamedTuple):
    """A run that succeeds, in a folder of its own that holds `files`."""

    script: str
    flags: dict  # without "--"; True: a flag without a value, None: left out, a list: the flag several times
    # Name in the folder -> where it comes from: in tests/golden, with "/" below the root, "@COMMAND/name" that another
    # command leaves; or a list of records.
    files: dict
    result: str | None  # the file it makes that must not change; "": it prints a command, None: it says something
    parts: dict  # files it reads -> what they are, a word of hostile.files.READ
    reads: str = ""  # its first file of records: how, a word of hostile.records.READERS
    words: tuple = ()  # between the script and the flags
    env: dict = MappingProxyType({})  # variables; "{here}" is the folder


class Around(NamedTuple):
    """What is about a process besides its files and flags."""

    env: dict = MappingProxyType({})
    stop: int = 0  # a signal that comes after the share `at` of an undamaged run
    at: float = 0.0
    limit: Callable | None = None  # called in the process before the command
    stdout: str = ""  # closed, full (a disk) or gone (a pipe nobody reads)
    folder: str = ""  # the working folder: lost (deleted) or closed (not to be written)
    obeys: bool = False  # root, too, is stopped by permissions
    real: bool = False  # only a process of its own shows it


class Case(NamedTuple):
    kind: str
    command: str
    target: str  # what is damaged
    how: str
    expected: str  # error, right, either, stopped
    damage: Callable  # a function of the case's folder and the command's flags, which it changes
    compare: str = "equal"  # what a right result is: see hostile.judge.why_not_right
    around: Around = Around()

    @property
    def name(self) -> str:
        return f"{self.command} {self.target}: {self.how}"


BASE = {"base": "llama/checkpoint"}
LLAMA = {**BASE, "train.json": "llama/train.json", "valid.json": "llama/valid.json", "adapter": "llama/adapter"}
SHORT = [{"id": number, "instruction": "list", "input": f"{name} is here"} for number, name in enumerate("abc")]
BASE_PARTS = {
    "base/config.json": "json",
    "base/tokenizer.model": "binary",
    "base/tokenizer_config.json": "tokenizer",
    "base/special_tokens_map.json": "tokenizer",
    "base/generation_config.json": "unused",
    "base/pytorch_model.bin.index.json": "index",
    "base/pytorch_model-00002-of-00004.bin": "binary",
}
TRAIN = {
    "do_train": True,
    "model_name_or_path": "base",
    "train_file": "train.json",
    "output_dir": "lora",
    "cutoff_len": 512,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
    "learning_rate": "3e-3",
    "lr_scheduler_type": "constant_with_warmup",  # the rate of a step is the same however far the run goes
    "warmup_steps": 3,
    "lora_r": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
}
EVALUATE = {"do_eval": True, "valid_file": "valid.json", "per_device_eval_batch_size": 2, "eval_generate_samples": 2}
EVALUATE |= {"predict_with_generate": True, "max_target_length": 8}
PTUNE = {
    "model_dir": "base",
    "train_path": "train.json",
    "output_dir": "pt",
    "prompt_template_name": "plain",
    "max_len": 400,
    "max_src_len": 300,
    "pre_seq_len": 4,
    "prefix_projection": "false",
    "train_batch_size": 2,
    "max_steps": 2,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 3,
    "log_steps": 1,
    "save_steps": 1,
}
PREDICT = {"model_name_or_path": "base", "input_file": "valid.json", "output_file": "out.json", "max_new_tokens": 8}
PREDICT_PT = {"test_path": "valid.json", "model_dir": "pt/global_step-2", "output_file": "out.json", "device": 0}
RECORDS = {"valid.json": "records"}
CHECKPOINT, STEP, SHARD = "lora/checkpoint-2", "pt/global_step-2", "model-00001-of-00001.safetensors"
FINETUNE, PTUNING = "src/test_finetune.py", "src/finetuning_pt.py"
INFERENCE, INFERENCE_PT = "src/inference.py", "src/inference_pt.py"
CONVERT, SCORE, WEIGHTS = "src/utils/convert.py", "src/utils/score.py", "src/utils/weight_diff.py"
ADAPTER = "lora/adapter_model.safetensors"
COMMANDS = {
    "finetune": Command(FINETUNE, TRAIN, LLAMA, ADAPTER, {"train.json": "records", **BASE_PARTS}, "train"),
    "evaluate": Command(
        FINETUNE, TRAIN | EVALUATE, {**LLAMA, "valid.json": "llama/train.json"}, ADAPTER, RECORDS, "train"
    ),
    "resume": Command(
        FINETUNE,
        {**TRAIN, "max_steps": 3, "resume_from_checkpoint": "auto"},
        {**LLAMA, "lora": "@finetune/lora"},
        ADAPTER,
        {
            f"{CHECKPOINT}/optimizer.pt": "state",
            f"{CHECKPOINT}/scheduler.pt": "state",
            f"{CHECKPOINT}/rng_state.pth": "state",
            f"{CHECKPOINT}/trainer_state.json": "state json",
            f"{CHECKPOINT}/adapter_model.safetensors": "state",
            f"{CHECKPOINT}/adapter_config.json": "state json",
            f"{CHECKPOINT}/training_args.bin": "state",
            "lora/run.json": "state json",
            "lora/log.jsonl": "state json",
        },
    ),
    "ptuning": Command(
        PTUNING,
        PTUNE,
        LLAMA,
        f"{STEP}/adapter_model.safetensors",
        {"train.json": "records", "base/config.json": "json", "base/tokenizer.model": "binary"},
        "train",
    ),
    "ptuning_chatglm": Command(
        PTUNING,
        {**PTUNE, "prompt_template_name": None, "deepspeed": "ds.json"},
        {"base": "chatglm/base", "base/ice_text.model": "chatglm/ice_text.model", "train.json": "llama/train.json"}
        | {"ds.json": [{"zero_optimization": {"stage": 1}}]},
        f"{STEP}/pytorch_model.bin",
        {"ds.json": "json", "base/config.json": "json", "base/model.safetensors": "binary"},
    ),
    "resume_pt": Command(
        PTUNING,
        {**PTUNE, "max_steps": 3, "resume": True},
        {**LLAMA, "pt": "@ptuning/pt"},
        "pt/global_step-3/adapter_model.safetensors",
        {f"{STEP}/state/rank-0.pt": "state", "pt/run.json": "state json", "pt/log.jsonl": "state json"},
    ),
    "predict": Command(
        INFERENCE,
        {**PREDICT, "lora_weights": "adapter"},
        LLAMA,
        "out.json",
        RECORDS | BASE_PARTS | {"adapter/adapter_config.json": "json", "adapter/adapter_model.bin": "binary"},
        "predict",
    ),
    "predict_own": Command(  # with the run.json of one's own training
        INFERENCE,
        {**PREDICT, "model_name_or_path": None, "lora_weights": "lora"},
        {**LLAMA, "lora": "@finetune/lora"},
        "out.json",
        {"lora/run.json": "run", "lora/adapter_config.json": "json", ADAPTER: "binary"},
    ),
    "predict_template": Command(
        INFERENCE,
        {**PREDICT, "prompt_template_name": "own.json", "engine": "batch"},
        {**LLAMA, "own.json": "/templates/plain.json"},
        "out.json",
        {"own.json": "json"},
    ),
    "predict_chatglm": Command(
        INFERENCE,
        PREDICT,
        {"base": "chatglm/base", "base/ice_text.model": "chatglm/ice_text.model", "valid.json": "llama/valid.json"},
        "out.json",
        RECORDS
        | {"base/config.json": "json", "base/tokenizer_config.json": "tokenizer"}
        | {"base/ice_text.model": "binary", "base/model.safetensors": "binary"},
        "predict",
    ),
    "predict_moss": Command(
        INFERENCE,
        {**PREDICT, "prompt_template_name": "plain"},
        {"base": "moss", "valid.json": SHORT},
        "out.json",
        {
            "base/config.json": "json",
            "base/vocab.json": "vocabulary",
            "base/merges.txt": "text",
            "base/added_tokens.json": "tokenizer",
            "base/tokenizer_config.json": "tokenizer",
            "base/model.safetensors": "binary",
        },
    ),
    "predict_cpmbee": Command(
        INFERENCE,
        PREDICT,
        {"base": "cpmbee", "valid.json": "llama/valid.json"},
        "out.json",
        RECORDS | {"base/config.json": "json", "base/vocab.txt": "text", "base/model.safetensors": "binary"},
        "predict",
    ),
    "predict_pt": Command(
        INFERENCE_PT,
        {**PREDICT_PT, "max_new_tokens": 8},
        {**LLAMA, "pt": "@ptuning/pt"},
        "out.json",
        RECORDS
        | {f"{STEP}/run.json": "run", f"{STEP}/adapter_config.json": "json"}
        | {f"{STEP}/adapter_model.safetensors": "binary"},
        "predict",
    ),
    "predict_pt_chatglm": Command(
        INFERENCE_PT,
        {**PREDICT_PT, "max_new_tokens": 8},
        {"base": "chatglm/base", "base/ice_text.model": "chatglm/ice_text.model", "valid.json": "llama/valid.json"}
        | {"pt": "@ptuning_chatglm/pt"},
        "out.json",
        {f"{STEP}/run.json": "run", f"{STEP}/config.json": "json", f"{STEP}/pytorch_model.bin": "binary"},
    ),
    "convert": Command(
        CONVERT,
        {"pred_path": "pred.json", "tgt_path": "submission.json"},
        {"pred.json": "llama/train.json"},
        "submission.json",
        {"pred.json": "records"},
        "convert",
    ),
    "check": Command(
        CONVERT,
        {"check": "test.json", "tgt_path": "submission.json"},
        {"test.json": "llama/train.json", "submission.json": "@convert/submission.json"},
        None,
        {"test.json": "records", "submission.json": "records"},
    ),
    "score": Command(
        SCORE,
        {"pred": "pred.json", "gold": "gold.json", "json": "score.json", "show": 1, "bootstrap": 50},
        {"pred.json": "llama/train.json", "gold.json": "llama/train.json"},
        "score.json",
        {"pred.json": "records", "gold.json": "records"},
        "score",
    ),
    "merge": Command(
        WEIGHTS,
        {"path_base": "base", "path_adapter": "adapter", "path_merged": "merged"},
        {**BASE, "adapter": "llama/adapter"},
        f"merged/{SHARD}",
        {
            "base/config.json": "json",
            "base/tokenizer.model": "unused binary",
            "base/pytorch_model.bin.index.json": "index",
            "base/pytorch_model-00002-of-00004.bin": "binary",
            "adapter/adapter_config.json": "json",
            "adapter/adapter_model.bin": "binary",
        },
        words=("merge",),
    ),
    "make_diff": Command(
        WEIGHTS,
        {"path_raw": "raw", "path_tuned": "tuned", "path_diff": "diff"},
        {"raw": "llama/checkpoint", "tuned": "@merge/merged"},
        f"diff/{SHARD}",
        {"raw/config.json": "unused", "tuned/config.json": "json", f"tuned/{SHARD}": "binary"},
        words=("make_diff",),
    ),
    "recover": Command(
        WEIGHTS,
        {"path_raw": "raw", "path_diff": "diff", "path_tuned": "tuned"},
        {"raw": "llama/checkpoint", "diff": "@make_diff/diff"},
        f"tuned/{SHARD}",
        {
            "raw/config.json": "unused",
            "diff/config.json": "json",
            "diff/weight_diff.json": "json",
            "raw/pytorch_model.bin.index.json": "index",
            "raw/pytorch_model-00002-of-00004.bin": "binary",
            f"diff/{SHARD}": "binary",
        },
        words=("recover",),
    ),
    "tencent": Command(
        WEIGHTS,
        {"path_in": "in", "path_out": "hf", "heads": 4},
        {"in": "llama/tencentpretrain", "in/tokenizer.model": "llama/checkpoint/tokenizer.model"},
        f"hf/{SHARD}",
        {"in/chatflow_7b.bin": "binary", "in/tokenizer.model": "binary"},
        words=("from_tencentpretrain",),
    ),
    "gguf": Command(
        "src/utils/gguf_to_hf.py",
        {"package": "campaign_gguf", "out": "hf"},
        {"campaign_gguf/tiny.gguf": "@gguf.gguf"},
        "hf/model.safetensors",
        {"campaign_gguf/tiny.gguf": "package"},
    ),
}
INFER = {"MODEL": "{here}/base", "LORA": "{here}/adapter", "INPUT": "{here}/valid.json", "OUTPUT": "{here}/out.json"}
FINE = {"MODEL": "{here}/base", "TRAIN": "{here}/train.json", "OUTPUT": "{here}/lora", "DRY_RUN": "1"}
COMMANDS |= {
    "infer_llama.bash": Command("scripts/infer_llama.bash", {"max_new_tokens": 8}, LLAMA, "out.json", {}, env=INFER),
    "run_inference.bash": Command(
        "scripts/run_inference.bash",
        {"max_new_tokens": 8},
        LLAMA,
        "submission.json",
        {},
        env={**INFER, "SUBMISSION": "{here}/submission.json"},
    ),
    **{
        f"{name}.bash": Command(f"scripts/{name}.bash", {}, LLAMA, "", {}, env=FINE)
        for name in ("fine_llama", "fine_chatglm", "fine_moss", "fine_ptuning")
    },
    "infer_ptuning.bash": Command(
        "scripts/infer_ptuning.bash",
        {},
        {**LLAMA, "pt": "@ptuning/pt"},
        "",
        {},
        env={"MODEL": "{here}/base", "TEST": "{here}/valid.json", "OUTPUT": "{here}/pt", "DRY_RUN": "1"},
    ),
}


def lines_of(file: Path) -> list[dict]:
    """The records of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_lines(file: Path, rows: list) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_gguf(file: Path) -> None:
    """A LLaMA of one layer as a GGUF file."""
    import gguf
    import numpy

    width, tokens = 16, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghij", "ab"]
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (32, width), "blk.0.ffn_up": (32, width), "blk.0.ffn_down": (width, 32)}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    writer, random = gguf.GGUFWriter(file, "llama"), numpy.random.default_rng(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
