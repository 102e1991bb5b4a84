"""The command line of both scripts, on a machine without a GPU."""

import re

import pytest
import torch

from common.errors import UserError
from loading import starting
from training.checking import check_optimizer
from utils.args import parse_finetune
from utils.args_predict import parse_inference
from utils.args_pt import parse_ptuning, parse_ptuning_inference

NEEDED = {"--model_name_or_path": "models/base", "--train_file": "train.json", "--output_dir": "lora/out"}

# The fine-tuning flags of the original documentation: flag, value, the field it fills, the field's value
DOCUMENTED = [
    ("--do_train", None, "do_train", True),
    ("--do_eval", None, "do_eval", True),
    ("--model_name_or_path", "models/base", "model_name_or_path", "models/base"),
    ("--model_name", "llama", "model_name", "llama"),
    ("--prompt_template_name", "vicuna", "prompt_template_name", "vicuna"),
    ("--train_file", "data/train.json", "train_file", "data/train.json"),
    ("--valid_file", "data/valid.json", "valid_file", "data/valid.json"),
    ("--output_dir", "lora/llama", "output_dir", "lora/llama"),
    ("--per_device_train_batch_size", "17", "per_device_train_batch_size", 17),
    ("--per_device_eval_batch_size", "18", "per_device_eval_batch_size", 18),
    ("--gradient_accumulation_steps", "9", "gradient_accumulation_steps", 9),
    ("--preprocessing_num_workers", "7", "preprocessing_num_workers", 7),
    ("--num_train_epochs", "11", "num_train_epochs", 11),
    ("--learning_rate", "2e-4", "learning_rate", 2e-4),
    ("--weight_decay", "6e-4", "weight_decay", 6e-4),
    ("--adam_beta2", "0.94", "adam_beta2", 0.94),
    ("--optim", "adamw_torch", "optim", "adamw_torch"),
    ("--max_grad_norm", "0.3", "max_grad_norm", 0.3),
    ("--lr_scheduler_type", "constant", "lr_scheduler_type", "constant"),
    ("--cutoff_len", "513", "cutoff_len", 513),
    ("--max_source_length", "511", "max_source_length", 511),
    ("--max_target_length", "257", "max_target_length", 257),
    ("--val_set_size", "999", "val_set_size", 999),
    ("--eval_strategy", "epoch", "eval_strategy", "epoch"),
    ("--save_strategy", "epoch", "save_strategy", "epoch"),
    ("--save_total_limit", "12", "save_total_limit", 12),
    ("--lora_r", "4", "lora_r", 4),
    ("--lora_alpha", "32", "lora_alpha", 32),
    ("--lora_dropout", "0.1", "lora_dropout", 0.1),
    ("--max_memory_MB", "24000", "max_memory_MB", 24000),
    ("--bits", "8", "bits", 8),
]
ALIASES = {
    "--train_file": "--train_path",
    "--valid_file": "--valid_path",
    "--model_name": "--model_file",
    "--eval_strategy": "--evaluation_strategy",
    "--prompt_template_name": "--prompt_template",
}


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def finetune(*flags, without=()):
    """The four objects of a minimal command with these flags, as one dictionary of their fields."""
    needed = [word for flag, value in NEEDED.items() if flag not in without for word in (flag, value)]
    train = [] if "--do_train" in without else ["--do_train"]
    found = {}
    for part in parse_finetune([*train, *needed, *flags]):
        found |= vars(part)
    return found


def inference(*flags):
    model, args = parse_inference(["--model_name_or_path", "models/base", *flags])
    return vars(model) | vars(args)


def error_of(call, *flags, **more):
    with pytest.raises(UserError) as caught:
        call(*flags, **more)
    return str(caught.value)


def help_of(parse, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse([flag])
    assert caught.value.code == 0
    return capsys.readouterr().out


# The documented commands


@pytest.mark.parametrize("model", [["--model_name", name] for name in ("llama", "alpaca", "zhixi", "chatglm")])
def test_the_documented_command_parses_whole(model):
    words = [word for flag, value, *_ in DOCUMENTED for word in (flag, value) if word and flag != "--model_name"]
    found = {}
    for part in parse_finetune([*words, *model, "--fp16"]):
        found |= vars(part)
    right = {field: value for _, _, field, value in DOCUMENTED} | {"model_name": model[1]}
    assert {field: found[field] for field in right} == right


@pytest.mark.parametrize("model", ["vicuna", "moss"])
def test_the_documented_command_of_vicuna_and_moss_parses(model):
    found = finetune(
        *("--model_file", model, "--prompt_template_name", model, "--train_path", "data/train.json", "--fp16"),
        *("--optim", "paged_adamw_32bit", "--evaluation_strategy", "epoch", "--do_eval", "--bits", "8"),
        "--output_dir=lora/vicuna",
        without=("--train_file", "--output_dir"),
    )
    assert (found["model_name"], found["prompt_template_name"]) == (model, model)
    assert (found["train_file"], found["output_dir"]) == ("data/train.json", "lora/vicuna")


@pytest.mark.parametrize(("flag", "value", "field", "right"), DOCUMENTED)
def test_each_documented_flag_fills_its_field(flag, value, field, right):
    found = finetune(*([flag] if value is None else [flag, value]))
    assert found[field] == right


@pytest.mark.parametrize("flag", ["packing", "cuda_graphs", "gradient_checkpointing", "bf16"])
def test_a_flag_that_is_true_or_false_is_true_without_a_value(flag):
    for words in ([f"--{flag}"], [f"--{flag}", "--seed", "7"], [f"--{flag}", "True"], [f"--{flag}=true"]):
        assert finetune(*words)[flag] is True
    assert finetune(f"--{flag}", "False")[flag] is False
    assert error_of(finetune, f"--{flag}", "maybe").startswith(f"--{flag}: Truthy value expected: got maybe")


@pytest.mark.parametrize("flag", ["packing", "cuda_graphs", "use_liger_kernel"])
def test_a_flag_that_may_be_left_out_is_then_neither_true_nor_false(flag):
    assert finetune()[flag] is None


def test_p_tuning_takes_gradient_checkpointing_without_a_value():
    assert ptuning("--gradient_checkpointing")[1].gradient_checkpointing is True


@pytest.mark.parametrize("flag", ALIASES)
def test_an_old_spelling_means_the_new_one(flag):
    _, value, field, right = next(row for row in DOCUMENTED if row[0] == flag)
    assert finetune(ALIASES[flag], value, without=(flag,))[field] == right


def test_the_documented_prediction_command_parses():
    found = inference(
        *("--model_name", "zhixi", "--lora_weights", "lora/out", "--input_file", "data/valid.json"),
        *("--output_file", "results/results_valid.json", "--fp16", "--bits", "8"),
    )
    assert found["model_name_or_path"] == "models/base"
    assert (found["model_name"], found["lora_weights"]) == ("zhixi", "lora/out")
    assert (found["input_file"], found["output_file"]) == ("data/valid.json", "results/results_valid.json")
    assert (found["fp16"], found["bits"]) == (True, 8)


P_TUNING = """--local_rank=0 --train_path data/train.json --model_dir /model --num_train_epochs 21
    --train_batch_size 3 --gradient_accumulation_steps 2 --output_dir output_dir_pt --log_steps 11 --max_len 769
    --max_src_len 451 --pre_seq_len 17 --prefix_projection false"""
P_TUNING_PREDICTION = """--test_path data/valid.json --device 0 --ori_model_dir /model
    --model_dir output_dir_pt/global_step-N --max_len 769 --max_src_len 451"""


def test_the_documented_commands_of_p_tuning_parse_whole():
    model, args = parse_ptuning(P_TUNING.split())
    found = vars(model) | vars(args)
    right = {"model_name_or_path": "/model", "train_path": "data/train.json", "output_dir": "output_dir_pt"}
    right |= {"num_train_epochs": 21, "train_batch_size": 3, "gradient_accumulation_steps": 2, "log_steps": 11}
    right |= {"max_len": 769, "max_src_len": 451, "pre_seq_len": 17, "prefix_projection": False, "local_rank": 0}
    assert {name: found[name] for name in right} == right
    model, args = parse_ptuning_inference(P_TUNING_PREDICTION.split())
    found = vars(model) | vars(args)
    right = {"model_name_or_path": "/model", "test_path": "data/valid.json", "device": "0", "max_len": 769}
    right |= {"model_dir": "output_dir_pt/global_step-N", "max_src_len": 451}
    right |= {"output_file": "output_dir_pt/valid_global_step-N.json"}
    assert {name: found[name] for name in right} == right


def test_prediction_knows_the_old_spelling_of_the_model_name():
    assert inference("--model_file", "moss")["model_name"] == "moss"


def test_prediction_needs_no_flag_at_all():
    model, args = parse_inference([])
    assert (model.model_name_or_path, args.lora_weights) == (None, None)
    assert (args.input_file, args.output_file) == ("data/valid.json", "results/results_valid.json")
    assert (args.max_new_tokens, args.num_beams, args.batch_size, args.device) == (512, 1, None, None)


def test_ordinary_arguments_of_the_trainer_work():
    found = finetune("--warmup_steps", "3", "--dataloader_num_workers", "2", "--max_steps", "5", "--seed", "7")
    assert (found["warmup_steps"], found["dataloader_num_workers"]) == (3, 2)
    assert (found["max_steps"], found["seed"]) == (5, 7)


# Defaults


def test_defaults_are_those_of_the_original_documentation():
    found = finetune()
    right = {
        "num_train_epochs": 10,
        "learning_rate": 1e-4,
        "weight_decay": 5e-4,
        "adam_beta2": 0.95,
        **dict.fromkeys(("lora_r", "lora_alpha", "lora_dropout")),  # those of --init_lora, or these:
        "cutoff_len": 512,
        "max_target_length": 256,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 16,
        "gradient_accumulation_steps": 8,
        "save_total_limit": 10,
        "save_strategy": "epoch",
        "bits": None,  # 16, or in prediction what run.json says
        "report_to": [],
    }
    assert {field: found[field] for field in right} == right
    assert (starting.RANK, starting.ALPHA, starting.DROPOUT) == (8, 16, 0.05)


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ([], 0),
        (["--do_eval"], 1000),
        (["--do_eval", "--valid_file", "valid.json"], 0),
        (["--do_eval", "--val_set_size", "50"], 50),
        (["--do_eval", "--val_set_size", "0"], 0),
    ],
)
def test_a_thousand_records_are_split_off_only_for_an_evaluation_without_its_own_file(flags, size):
    assert finetune(*flags)["val_set_size"] == size


def test_do_eval_evaluates_each_epoch_unless_told_else():
    assert finetune()["eval_strategy"] == "no"
    assert finetune("--do_eval")["eval_strategy"] == "epoch"
    assert finetune("--do_eval", "--eval_strategy", "steps", "--eval_steps", "5")["eval_strategy"] == "steps"


@pytest.mark.parametrize(
    ("flags", "metric", "greater"),
    [(["--do_eval"], "eval_loss", False), (["--do_eval", "--predict_with_generate"], "eval_contest", True)],
)
def test_the_best_checkpoint_is_kept_by_the_score_if_there_is_one(flags, metric, greater):
    found = finetune(*flags)
    assert found["load_best_model_at_end"] is True
    assert (found["metric_for_best_model"], found["greater_is_better"]) == (metric, greater)


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ("--eval_strategy epoch --save_strategy epoch", True),
        ("--eval_strategy epoch --save_strategy best", True),
        ("--eval_strategy steps --save_strategy steps --eval_steps 5 --save_steps 5", True),
        ("--eval_strategy steps --save_strategy steps --eval_steps 5 --save_steps 10", True),
        ("--eval_strategy steps --save_strategy steps --eval_steps 5 --save_steps 7", False),
        ("--eval_strategy steps --save_strategy steps --save_steps 7", False),  # evaluated at each --logging_steps
        ("--eval_strategy epoch --save_strategy steps", False),
        ("--eval_strategy epoch --save_strategy no", False),
    ],
)
def test_the_best_checkpoint_is_kept_wherever_every_checkpoint_is_evaluated(flags, kept):
    assert finetune("--do_eval", *flags.split())["load_best_model_at_end"] is kept


# Errors


@pytest.mark.parametrize(
    ("call", "wrong", "right"),
    [
        (finetune, "--cutof_len", "--cutoff_len"),
        (finetune, "--learning_rates", "--learning_rate"),
        (finetune, "--lora-rr", "--lora-r"),
        (finetune, "--train_paht", "--train_path"),
        (finetune, "--evalution_strategy", "--evaluation_strategy"),
        (inference, "--input_flie", "--input_file"),
        (inference, "--lora_weight", "--lora_weights"),
    ],
)
@pytest.mark.parametrize("form", ["{} 5", "{}=5"])
def test_an_unknown_flag_is_an_error_that_names_the_nearest(call, wrong, right, form):
    assert error_of(call, *form.format(wrong).split()) == f"{wrong}: unknown flag; did you mean {right}?"


def test_an_unknown_flag_like_no_other_points_to_the_help():
    assert error_of(finetune, "--zzzzzzzzqqqq") == "--zzzzzzzzqqqq: unknown flag; see --help"


@pytest.mark.parametrize("short", ["--learning", "--max_mem", "--cutoff", "--gradient_acc", "--output"])
def test_an_abbreviated_flag_is_refused(short):
    assert error_of(finetune, short, "1").startswith(f"{short}: unknown flag")


@pytest.mark.parametrize("call", [finetune, inference])
def test_a_value_without_a_flag_is_an_error_that_names_it(call):
    assert "'stray'" in error_of(call, "stray")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--fp16", "--bf16"], ["--fp16", "--bf16"]),
        (["--full_finetune", "--bits", "8"], ["--full_finetune", "--bits 8"]),
        (["--full_finetune", "--bits", "4"], ["--full_finetune", "--bits 4"]),
        (["--full_finetune", "--lora_target_modules", "q_proj"], ["--full_finetune", "--lora_target_modules"]),
    ],
)
def test_flags_that_contradict_each_other_are_an_error_that_names_both(flags, named):
    message = error_of(finetune, *flags)
    assert [flag for flag in named if flag in message] == named


@pytest.mark.parametrize("missing", ["--do_train", *NEEDED])
def test_a_missing_flag_is_an_error_that_names_it(missing):
    assert error_of(finetune, without=(missing,)).startswith(f"{missing} is missing")


@pytest.mark.parametrize(
    "flag",
    [
        "--cutoff_len",
        "--lora_r",
        "--preprocessing_num_workers",
        "--max_target_length",
        "--gradient_accumulation_steps",
        "--per_device_train_batch_size",
        "--per_device_eval_batch_size",
    ],
)
@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_number_that_is_too_small_is_an_error_that_names_the_flag(flag, value):
    message = error_of(finetune, flag, value)
    assert flag.lstrip("-") in message
    assert value in message


@pytest.mark.parametrize(
    ("flag", "value"), [("--lora_dropout", "1.5"), ("--eval_generate_samples", "-3"), ("--max_memory_MB", "-4")]
)
def test_a_number_out_of_range_is_an_error_that_names_flag_and_value(flag, value):
    assert f"{flag} {value}" in error_of(finetune, flag, value)


def ptuning(*flags):
    return parse_ptuning(["--train_path", "t.json", "--model_dir", "models/base", "--output_dir", "lora/out", *flags])


def ptuning_inference(*flags):
    return parse_ptuning_inference(["--model_dir", "lora/out/global_step-1", *flags])


CALLS = (finetune, inference, ptuning, ptuning_inference)
NUMBERS = {  # flag -> values that no run can use, and the calls that have it
    "--learning_rate": ("nan -1 inf 0", (finetune, ptuning)),
    "--seed": ("-1 99999999999999", CALLS),
    "--adam_beta1": ("nan -0.1 1 2", (finetune,)),
    "--adam_beta2": ("nan -0.1 1 2", (finetune,)),
    "--adam_epsilon": ("nan 0 -1", (finetune,)),
    "--num_train_epochs": ("nan 0 -1 inf 1e300", (finetune, ptuning)),
    "--max_steps": ("0 -2", (finetune, ptuning)),
    "--max_grad_norm": ("nan -1 inf", (finetune, ptuning)),
    "--weight_decay": ("nan -1", (finetune, ptuning)),
    "--warmup_steps": ("nan -1 inf", (finetune, ptuning)),
    "--save_steps": ("0 -1", (finetune, ptuning)),
    "--logging_steps": ("0 -1", (finetune, ptuning)),
    "--eval_steps": ("0 nan", (finetune,)),
    "--save_total_limit": ("0 -1", (finetune, ptuning)),
    "--dataloader_num_workers": ("-1 100000", (finetune,)),
    "--preprocessing_num_workers": ("0 100000", (finetune,)),
    "--lora_r": ("0 9999999999999", (finetune,)),
    "--lora_alpha": ("0 -1", (finetune,)),
    "--lora_dropout": ("nan 1 -0.1", (finetune,)),
    "--pre_seq_len": ("0 9999999999999", (ptuning,)),
    "--max_len": ("0 -1", (ptuning, ptuning_inference)),
    "--num_beams": ("0 100000", (inference,)),
    "--max_new_tokens": ("0 -5 9999999999999", (inference, ptuning_inference)),
    "--temperature": ("nan 0 inf 1e-300", (inference, ptuning_inference)),
    "--repetition_penalty": ("nan 0 inf", (inference, ptuning_inference)),
    "--top_p": ("nan 0 1.1", (inference, ptuning_inference)),
    "--top_k": ("-1", (inference, ptuning_inference)),
    "--batch_size": ("0", (inference, ptuning_inference)),
    "--max_memory_MB": ("0", CALLS),
}


@pytest.mark.parametrize(
    ("call", "flag", "value"),
    [(call, flag, value) for flag, (values, calls) in NUMBERS.items() for value in values.split() for call in calls],
)
def test_a_number_that_no_run_can_use_is_an_error_with_flag_found_and_expected(call, flag, value):
    message = error_of(call, flag, value)
    if flag == "--logging_steps" and call is ptuning:
        flag = "--log_steps"
    assert message.startswith(f"{flag} {value}: expected ".replace("1e300", "1e+300"))


@pytest.mark.parametrize("value", ["", " ", "\u3000"])
@pytest.mark.parametrize(
    ("call", "flag"),
    [
        (finetune, "--valid_file"),
        (finetune, "--model_name"),
        (finetune, "--prompt_template_name"),
        (finetune, "--resume_from_checkpoint"),
        (finetune, "--report_to"),
        (inference, "--lora_weights"),
        (inference, "--window"),
        (inference, "--device"),
        (ptuning, "--deepspeed"),
        (ptuning_inference, "--ori_model_dir"),
    ],
)
def test_an_empty_value_is_an_error_that_names_the_flag(call, flag, value):
    for words in ([flag, value], [f"{flag}={value}"]):
        assert error_of(call, *words) == f"{flag}: a value is empty; give one, or leave the flag out"


@pytest.mark.parametrize("call", [finetune, ptuning])
@pytest.mark.parametrize("base", ["lora/out", "lora/out/", "lora/x/../out", "lora/out/checkpoint-7"])
def test_a_training_never_writes_into_its_base(call, base):
    flag = "--model_name_or_path" if call is finetune else "--model_dir"
    message = error_of(call, flag, base)
    assert message.startswith("--output_dir lora/out: ")
    assert flag in message


def test_a_tool_to_report_to_that_is_unknown_or_not_installed_is_an_error_before_anything_is_loaded():
    assert error_of(finetune, "--report_to", "evil").startswith("--report_to evil: expected one of none, all, ")
    assert "--report_to neptune: its package is not installed" in error_of(finetune, "--report_to", "neptune")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--optim", "galore_adamw"], "--optim galore_adamw: cannot be used so ("),
        (["--optim_args", "rank"], "--optim adamw_torch: cannot be used so ("),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr: cannot be used so ("),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_an_error_before_anything_is_loaded(flags, named):
    args = parse_finetune(["--do_train", *(word for pair in NEEDED.items() for word in pair), *flags]).train
    assert error_of(check_optimizer, args).startswith(named)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup", "polynomial", "reduce_lr_on_plateau"])
@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor", "sgd", "paged_adamw_32bit"])
def test_an_optimizer_that_can_be_made_is_let_through(kind, optimizer):
    flags = ["--do_eval", "--optim", optimizer, "--lr_scheduler_type", kind]
    check_optimizer(parse_finetune(["--do_train", *(word for pair in NEEDED.items() for word in pair), *flags]).train)


@pytest.mark.parametrize("flag", ["--batch_size", "--max_new_tokens", "--num_beams"])
def test_a_number_of_prediction_that_is_too_small_is_an_error_that_names_the_flag(flag):
    assert error_of(inference, flag, "0") == f"{flag} 0: expected at least 1"


def test_a_negative_validation_size_is_an_error_that_names_the_flag():
    assert "--val_set_size -1" in error_of(finetune, "--do_eval", "--val_set_size", "-1")


@pytest.mark.parametrize("call", [finetune, inference])
def test_bits_are_4_8_or_16(call):
    message = error_of(call, "--bits", "5")
    assert "--bits" in message
    assert re.search(r"4.*8.*16", message)


def test_a_value_of_the_wrong_type_is_an_error_that_names_flag_and_value():
    message = error_of(finetune, "--cutoff_len", "long")
    assert "--cutoff_len" in message
    assert "'long'" in message


@pytest.mark.parametrize(
    ("flag", "choice"), [("--eval_strategy", "epoch"), ("--lr_scheduler_type", "cosine"), ("--optim", "adamw_torch")]
)
def test_a_word_that_is_no_choice_is_an_error_that_names_it_and_the_choices(flag, choice):
    message = error_of(finetune, flag, "epochs")
    assert "epochs" in message
    assert f"'{choice}'" in message


# Falling back on a machine without a GPU


@pytest.mark.parametrize(
    ("flags", "line", "precision"),
    [
        ([], "dtype: float32 (no GPU)", ("float32", 16)),
        (["--fp16"], "dtype: float32 (float16 needs a GPU)", ("float32", 16)),
        (["--bf16"], "dtype: bfloat16 (as asked)", ("bfloat16", 16)),
        (["--bits", "8"], "weights: 8 bits (--bits 8), on a CPU this saves memory, not time", ("float32", 8)),
        (["--bits", "4"], "weights: 4 bits (--bits 4), on a CPU this saves memory, not time", ("float32", 4)),
    ],
)
def test_the_numbers_of_a_cpu_are_said_in_one_line(flags, line, precision, capsys):
    found = finetune(*flags)
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert found["precision"] == precision
    assert (found["fp16"], found["bf16"]) == (False, "--bf16" in flags)


@pytest.mark.parametrize("optimizer", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_bnb_8bit", "adamw_8bit"])
def test_an_optimizer_of_bitsandbytes_falls_back_with_one_line(optimizer, capsys):
    found = finetune("--optim", optimizer)
    assert found["optim"] == "adamw_torch"
    assert capsys.readouterr().err.splitlines().count(f"optimizer: adamw_torch ({optimizer} needs a GPU)") == 1


def test_a_plain_optimizer_is_taken_without_a_word(capsys):
    assert finetune("--optim", "sgd")["optim"] == "sgd"
    assert "optimizer" not in capsys.readouterr().err


def test_a_cpu_keeps_the_activations_unless_told_else():
    assert finetune()["gradient_checkpointing"] is False
    assert finetune("--gradient_checkpointing", "True")["gradient_checkpointing"] is True


def test_only_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    finetune("--fp16")
    assert "dtype" not in capsys.readouterr().err


# Help


def test_help_of_finetuning_is_grouped_and_short(capsys):
    text = help_of(parse_finetune, "--help", capsys)
    headings = [re.sub(r":.*", "", line) for line in text.splitlines() if re.match(r"\S.*:", line)]
    for heading in ("model", "data", "LoRA", "training"):
        assert any(heading in found for found in headings), heading
    assert "no_" not in text
    assert "--help_all" in text
    assert len(text.splitlines()) < 120
    assert max(map(len, text.splitlines())) <= 120


def test_help_of_prediction_is_grouped(capsys):
    text = help_of(parse_inference, "--help", capsys)
    assert re.search(r"^model", text, re.MULTILINE)
    assert re.search(r"^prediction", text, re.MULTILINE)
    assert "no_" not in text


def test_help_shows_every_documented_flag_and_old_spelling(capsys):
    text = help_of(parse_finetune, "--help", capsys)
    shown = set(re.findall(r"--[a-zA-Z0-9_]+", text))
    assert {flag for flag, *_ in DOCUMENTED} | set(ALIASES.values()) <= shown


def test_every_flag_of_the_help_has_a_text(capsys):
    text = help_of(parse_finetune, "--help", capsys)
    entries = re.split(r"\n(?=  -)", text)[1:]
    assert len(entries) > 30
    silent = [entry for entry in entries if len(re.sub(r"--?[\w-]+|[A-Z_]{2,}|\{.*?\}|[\[\]\s]", "", entry)) < 3]
    assert silent == []


def test_help_all_lists_the_trainers_other_arguments_too(capsys):
    short, whole = (help_of(parse_finetune, flag, capsys) for flag in ("--help", "--help_all"))
    assert "--dataloader_num_workers" not in short
    assert "--dataloader_num_workers" in whole
