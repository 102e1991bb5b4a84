"""What tests/campaign.py does to flags, and to what is around a process: its terminal, limits, variables, signals."""

import os
import resource
import signal
from pathlib import Path

from hostile.commands import COMMANDS, Around, Case

PYTHON = {name: command for name, command in COMMANDS.items() if command.script.endswith(".py")}
SCRIPTS = [name for name in COMMANDS if name not in PYTHON]

# ---- numbers

LARGEST = 2**51  # a number above it is none that anybody means
NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e400", "9" * 14, "9" * 5000, "x", "1.5", "0x10", "", " ", "十", "None")
COUNT, NUMBER, REAL, ABOVE, SHARE = ("whole", 1), ("whole", 0), ("real", 0), ("real", 1e-30), ("real", 0, 1)
RULES = {  # command -> flag -> whole or real, the least, the most
    "finetune": {
        **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "cutoff_len", "lora_r"), COUNT),
        **dict.fromkeys(("save_total_limit", "preprocessing_num_workers", "max_source_length", "max_memory_MB"), COUNT),
        **dict.fromkeys(("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"), REAL),
        **dict.fromkeys(("adam_beta1", "adam_beta2", "lora_dropout"), SHARE),
        **dict.fromkeys(("save_steps", "logging_steps", "eval_steps"), ABOVE),
        **dict.fromkeys(("seed", "dataloader_num_workers"), NUMBER),
        "lora_alpha": COUNT,
        "bits": ("whole", 4, 16),
    },
    "evaluate": {
        **dict.fromkeys(("val_set_size", "eval_generate_samples"), NUMBER),
        **dict.fromkeys(("per_device_eval_batch_size", "max_target_length"), COUNT),
    },
    "ptuning": {
        **dict.fromkeys(("train_batch_size", "gradient_accumulation_steps", "max_len", "max_src_len"), COUNT),
        **dict.fromkeys(("pre_seq_len", "log_steps", "save_steps", "save_total_limit", "max_memory_MB"), COUNT),
        **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), REAL),
        "seed": NUMBER,
    },
    "predict": {
        **dict.fromkeys(("batch_size", "max_new_tokens", "max_memory_MB", "num_beams"), COUNT),
        **dict.fromkeys(("tensor_parallel_size", "data_parallel_size"), COUNT),
        **dict.fromkeys(("max_repeats", "window"), NUMBER),
        "repetition_penalty": ABOVE,
        "bits": ("whole", 4, 16),
    },
    "predict_template": {"temperature": ABOVE, "top_k": NUMBER, "top_p": ("real", 1e-30, 1), "seed": NUMBER},
    "predict_pt": {
        **dict.fromkeys(("batch_size", "max_new_tokens", "max_len", "max_src_len"), COUNT),
        **dict.fromkeys(("max_repeats", "window"), NUMBER),
        "repetition_penalty": ABOVE,
    },
    "score": dict.fromkeys(("show", "bootstrap", "seed"), NUMBER),
    "tencent": {"heads": COUNT},
    "recover": {"expected_sum": ("real", float("-inf"))},
}


def allowed(text: str, rule: tuple) -> bool:
    """Whether a number obeys its rule."""
    kind, least, *most = rule
    try:
        number = (int if kind == "whole" else float)(text)
    except ValueError:
        return False
    return least <= number < LARGEST and (not most or number <= most[0])


def sets(**values):
    return lambda place, flags: flags.update(values)


def of_numbers():
    for name, rules in RULES.items():
        more = {"do_sample": True} if name == "predict_template" else {}
        for flag, rule in rules.items():
            for text in (*NUMBERS, str(rule[-1] + 1)):
                expected = "either" if allowed(text, rule) else "error"
                yield Case("flags", name, f"--{flag}", text[:20], expected, sets(**more, **{flag: text}), "whole")


# ---- words

WORDS = {  # of a choice or a switch: nothing but what --help lists is right
    "finetune": (
        *("optim", "lr_scheduler_type", "save_strategy", "eval_strategy", "report_to", "lora_target_modules", "fp16"),
        *("train_sampling_strategy", "model_name", "prompt_template_name", "packing", "do_eval", "full_finetune"),
    ),
    "ptuning": ("lr_scheduler_type", "model_name", "prompt_template_name", "prefix_projection", "deepspeed", "resume"),
    "predict": ("engine", "device", "model_name", "prompt_template_name", "merge_lora", "device_map", "fp16"),
    "predict_pt": ("engine", "device", "model_name", "prompt_template_name", "retry_length"),
    "convert": ("schema", "sort", "dedupe", "skip_bad"),
    "recover": ("dtype", "check", "is_fp16"),
    "merge": ("dtype", "is_fp16"),
    "make_diff": ("dtype",),
    "gguf": ("package",),
}
WRONG_WORDS = ("", " ", "x", "nan", "../x", "a b", "日本", "\udcff", "-", "x" * 5000)


def of_words():
    for name, flags in WORDS.items():
        for flag in flags:
            for word in WRONG_WORDS:
                yield Case("flags", name, f"--{flag}", ascii(word)[:20], "error", sets(**{flag: word}))


# ---- paths

INPUTS = {
    **{"finetune": "train_file model_name_or_path", "evaluate": "valid_file", "resume": "resume_from_checkpoint"},
    **{"ptuning": "train_path model_dir", "ptuning_chatglm": "deepspeed", "predict_template": "prompt_template_name"},
    **{"predict": "input_file model_name_or_path lora_weights", "predict_pt": "test_path model_dir ori_model_dir"},
    **{"convert": "pred_path", "check": "check tgt_path", "score": "pred gold", "merge": "path_base path_adapter"},
    **{"make_diff": "path_raw path_tuned", "recover": "path_raw path_diff", "tencent": "path_in"},
}
OUTPUTS = {
    **{"finetune": "output_dir", "ptuning": "output_dir", "predict": "output_file", "predict_pt": "output_file"},
    **{"convert": "tgt_path", "score": "json", "merge": "path_merged", "make_diff": "path_diff", "gguf": "out"},
    **{"recover": "path_tuned", "tencent": "path_out"},
}
NO_INPUT = {
    **{"empty": "", "a space": " ", "a name of 300": "x" * 300 + ".json", "a path of 5,000": "x/" * 2500 + "x.json"},
    **{"not there": "no/such/thing.json", "a number": "7", "a line break": "a\nb.json", "no UTF-8": "\udcff.json"},
    **{"/dev/null": "/dev/null", "/dev/stdin": "/dev/stdin", "an address": "https://example.org/valid.json"},
    **{"a tilde": "~/valid.json", "a hyphen": "-", "below a file": "here.txt/valid.json", "a text": "here.txt"},
    **{"an empty folder": "empty", "nobody's home": "~nobody-here/x", "a pattern": "*.json", "a circle": "circle"},
}
NO_OUTPUT = {
    **{"empty": "", "a name of 300": "x" * 300, "a name of 247": "x" * 247, "a path of 5,000": "x/" * 2500 + "x"},
    **{"below a file": "here.txt/out", "/dev/null": "/dev/null", "/dev/stdout": "/dev/stdout", "a circle": "circle"},
    **{"/dev/full": "/dev/full", "a pipe": "pipe", "a closed folder": "closed/out", "the kernel's": "/proc/out"},
    **{"no UTF-8": "\udcff/out", "the root": "/", "the working folder": "."},
}
MAY_BE = {"a name of 247", "no UTF-8", "/dev/stdout"}  # good ones, if they are served whole
OWN_INPUTS = [  # an output that would replace, or spoil, what is read
    *[("finetune", "output_dir", path) for path in ("base", "./base/", "train.json", "base/../base")],
    *[("ptuning", "output_dir", path) for path in ("base", "base/.", "train.json")],
    *[
        ("predict", "output_file", path)
        for path in ("valid.json", "base/config.json", "adapter/x.json", "./valid.json")
    ],
    *[("predict_pt", "output_file", path) for path in ("valid.json", "pt/global_step-2/run.json")],
    *[("score", "json", path) for path in ("gold.json", "pred.json")],
    *[("merge", "path_merged", path) for path in ("base", "adapter", "base/config.json")],
    *[("recover", "path_tuned", path) for path in ("diff", "raw", "./raw/")],
    ("convert", "tgt_path", "./pred.json"),
    ("make_diff", "path_diff", "raw"),
    ("tencent", "path_out", "in"),
]


def sets_path(flag: str, path: str):
    """A flag's path, and what the names in NO_INPUT and NO_OUTPUT mean."""

    def change(place, flags):
        flags[flag] = path
        if not (place / "here.txt").exists():
            (place / "here.txt").write_text("a text\n")
            (place / "empty").mkdir()
            (place / "closed").mkdir(mode=0o555)
            os.mkfifo(place / "pipe")
            (place / "circle").symlink_to("circle")

    return change


def of_paths():
    for table, paths in ((INPUTS, NO_INPUT), (OUTPUTS, NO_OUTPUT)):
        for name, flags in table.items():
            for flag in flags.split():
                for how, path in paths.items():
                    expected = "either" if table is OUTPUTS and how in MAY_BE else "error"
                    around = Around(obeys=how == "a closed folder")
                    compare = "elsewhere" if expected == "either" else "equal"
                    yield Case("paths", name, f"--{flag}", how, expected, sets_path(flag, path), compare, around)
    for name, flag, path in OWN_INPUTS:
        yield Case("paths", name, f"--{flag}", f"its own input {path}", "error", sets(**{flag: path}))


# ---- flags together

CONTRADICTIONS = {
    "finetune": (
        {"overwrite_output_dir": True, "resume_from_checkpoint": "auto"},
        {"full_finetune": True, "lora_r": None, "bits": 8},
        {"full_finetune": True, "lora_r": None, "lora_alpha": 3},
        {"fp16": True, "bf16": True},
        {"fsdp": True},
        {"predict_with_generate": True},
        {"do_eval": True, "val_set_size": 0},
        {"do_eval": True, "val_set_size": 12},
        {"deepspeed": "ds.json"},
        {"load_best_model_at_end": True},
        {"model_name": "chatglm"},
        {"lora_target_modules": "query_key_value"},
        {"max_steps": 0, "num_train_epochs": 0},
        {"max_steps": -1, "num_train_epochs": -1},
        {"max_steps": -1, "num_train_epochs": "nan"},
        {"max_steps": "-5"},
        {"do_train": None},
        {"output_dir": None},
        {"train_file": None},
        {"resume_from_checkpoint": "adapter"},
        {"cutoff_len": 5},
    ),
    "ptuning": (
        {"overwrite_output_dir": True, "resume": True},
        {"max_len": 100, "max_src_len": 200},
        {"max_steps": 0, "num_train_epochs": 0},
        {"max_steps": -1, "num_train_epochs": "nan"},
        {"fp16": True, "fp32": True},
        {"prefix_projection": "true", "pre_seq_len": 99999999},
        {"model_name": "moss"},
        {"model_dir": None},
    ),
    "predict": (
        {"temperature": 1},
        {"do_sample": True, "num_beams": 2},
        {"fp16": True, "bf16": True},
        {"lora_weights": None, "merge_lora": True},
        {"engine": "vllm", "device_map": "auto"},
        {"engine": "fast", "num_beams": 2},
        {"engine": "fast", "do_sample": True},
        {"max_repeats": 1},
        {"device": "cuda:99"},
        {"device": "-1"},
        {"window": 3},
        {"model_name": "vicuna-7b"},
        {"tensor_parallel_size": 2},
        {"lora_weights": "base"},
        {"lora_weights": None, "model_name_or_path": "adapter"},
        {"num_beams": 100000},
    ),
    "predict_pt": (
        {"max_len": 100, "max_src_len": 200},
        {"model_dir": "base"},
        {"model_dir": "adapter"},
        {"model_dir": "pt"},
        {"num_beams": 2},
        {"window": 100},
    ),
    "check": ({"pred_path": "pred.json"}, {"dedupe": True}),
    "recover": ({"is_fp16": "True", "dtype": "float16"}, {"path_raw": "diff", "path_diff": "raw"}, {"path_raw": None}),
    "merge": ({"path_base": "adapter", "path_adapter": "base"}, {"path_adapter": "base"}),
    "make_diff": ({"path_raw": "raw", "path_tuned": "raw/config.json"},),
    "tencent": ({"heads": None}, {"heads": 5}, {"heads": 64}),
    "gguf": ({"package": "json"}, {"package": "no_such_package"}, {"package": "../x"}, {"package": "os.path"}),
}
ANOTHER_TOOLS = ("per_gpu_train_batch_size", "batch-size", "lora_target", "dataset", "base", "model", "temperatur")


def of_combinations():
    for name, command in PYTHON.items():
        first = next(flag for flag, value in command.flags.items() if value is not True)
        value = command.flags[first]
        yield Case("combinations", name, "--no_such_flag", "unknown", "error", sets(no_such_flag="1"))
        yield Case("combinations", name, f"--{first[:-1]}", "misspelt", "error", sets(**{first[:-1]: value}))
        yield Case("combinations", name, f"--{first}", "twice", "right", sets(**{first: [value] * 2}))
        yield Case("combinations", name, f"--{first}", "without a value", "error", sets(**{first: True}))
        yield Case("combinations", name, "stray", "a word without a flag", "error", sets(**{"": "stray"}))
        for other in ANOTHER_TOOLS:
            yield Case("combinations", name, f"--{other}", "another tool's", "error", sets(**{other: "x"}))
    for name, several in CONTRADICTIONS.items():
        for values in several:
            said = " ".join(f"--{flag} {value}" for flag, value in values.items())
            yield Case("combinations", name, said, "cannot be", "error", sets(**values))


# ---- around a process


def limits(what: int, count: int):
    return lambda: resource.setrlimit(what, (count, count))


def more_memory(megabytes: int):
    """The address space may grow by so much."""

    def limit():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    return limit


NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
AROUND = [  # what, expected, how
    *[(f"a terminal of {code}", "right", Around({"PYTHONIOENCODING": code}, real=True)) for code in ("gbk", "ascii")],
    ("the locale C without UTF-8", "right", Around(NO_UTF8, real=True)),
    ("stdout closed", "either", Around(stdout="closed", real=True)),
    ("stdout on a full disk", "either", Around(stdout="full")),
    ("stdout a pipe nobody reads", "either", Around(stdout="gone")),
    ("a deleted working folder", "error", Around(folder="lost")),
    ("a folder one may not write", "either", Around(folder="closed", obeys=True)),
    ("at most 12 open files", "either", Around(limit=limits(resource.RLIMIT_NOFILE, 12))),
    *[
        (f"files of at most {count} bytes", "either", Around(limit=limits(resource.RLIMIT_FSIZE, count)))
        for count in (0, 100, 5000, 100_000)
    ],
    *[(f"{size} MB more memory", "either", Around(limit=more_memory(size))) for size in (1, 20, 100, 400)],
    *[
        (f"{name}={value}", expected, Around({name: value}, real=name.startswith("OMP")))
        for name, value, expected in (
            ("RANK", "x", "either"),
            ("RANK", "-1", "either"),
            ("WORLD_SIZE", "0", "either"),
            ("LOCAL_RANK", "x", "either"),
            ("CUDA_VISIBLE_DEVICES", "x", "right"),
            ("OMP_NUM_THREADS", "x", "right"),
            ("OMP_NUM_THREADS", "-3", "right"),
            ("HF_DATASETS_CACHE", "/dev/null/x", "right"),
            ("TMPDIR", "/no/such", "right"),
            ("HOME", "/no/such", "right"),
            ("COLUMNS", "0", "right"),
        )
    ],
]
SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}


def of_surroundings():
    for name in PYTHON:
        for how, expected, around in AROUND:
            yield Case("surroundings", name, "process", how, expected, lambda place, flags: None, "equal", around)


def go_on(place, flags):
    """The flag with which the same command goes on."""
    if flags.get("do_train"):
        flags["resume_from_checkpoint"] = "auto"
    elif "train_path" in flags:
        flags["resume"] = True


def of_interruptions():
    for name in PYTHON:
        for said, number in SIGNALS.items():
            for percent in range(5, 105, 5):
                around = Around(stop=number, at=percent / 100)
                yield Case("interruptions", name, said, f"at {percent} %", "stopped", go_on, "equal", around)


# ---- bash scripts

ODD_NAMES = (
    "a b",
    "日本",
    "it's",
    'say "x"',
    "$(mkdir code-ran)",
    "`mkdir code-ran`",
    "a;mkdir code-ran",
    "*",
    "a\nb",
    "-x",
)
MISSING = "{here}/not-there"


def of_scripts():
    def case(name, target, how, expected, **env):
        return Case("scripts", name, target, how, expected, lambda place, flags: None, "equal", Around(env, real=True))

    for name in SCRIPTS:
        for odd in ODD_NAMES:
            yield case(name, "MODEL", f"{odd!a} printed", "right", MODEL="{here}/" + odd, DRY_RUN="1")
        yield case(name, "MODEL", "not there", "error", MODEL=MISSING, DRY_RUN="")
        yield case(name, "OUTPUT", "empty, printed", "right", OUTPUT="", DRY_RUN="1")
        yield case(name, "NPROC", "0, printed", "either", NPROC="0", DRY_RUN="1")
        yield case(name, "NPROC", "x, printed", "either", NPROC="x", DRY_RUN="1")
        yield case(name, "NPROC", "x", "error", NPROC="x", MODEL=MISSING, DRY_RUN="")
        yield case(name, "NPROC", "2 without a model", "error", NPROC="2", MODEL=MISSING, DRY_RUN="")
    for name, variable in (
        ("infer_llama.bash", "LORA"),
        ("infer_llama.bash", "INPUT"),
        ("run_inference.bash", "INPUT"),
    ):
        yield case(name, variable, "not there", "error", **{variable: MISSING})
    yield case("fine_llama.bash", "TRAIN", "not there", "error", TRAIN=MISSING, DRY_RUN="")
    yield case("infer_ptuning.bash", "OUTPUT", "nothing trained", "error", OUTPUT=MISSING, DRY_RUN="")
    yield case("infer_ptuning.bash", "STEP", "not there", "error", STEP="77", DRY_RUN="")
    yield case("infer_ptuning.bash", "CARD", "x", "error", CARD="x", DRY_RUN="")
    yield case("fine_ptuning.bash", "CARDS", "x", "error", CARDS="x", DRY_RUN="")
