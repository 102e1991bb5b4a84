"""P-Tuning v2 as its two scripts run it: the engine, what is learnt, checkpoints, kills, launches, predictions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN, ROOT, kill_when

import finetuning_pt
import inference_pt
from checkpoints import adapters, prefixes
from common import locks
from common.decisions import Decision
from common.errors import UserError
from data.records import load_records
from decoding import batch_engine
from kg.metrics import score_records
from loading import precision
from training import deepspeed_engine
from training.ptuning import learning_rates
from utils.args_pt import parse_ptuning

SCRIPT = ROOT / "src" / "finetuning_pt.py"
PAIRS = [("A", "in", "B"), ("C", "in", "D"), ("E", "of", "F"), ("G", "of", "H")]
PAIRS += [(tail, relation, head) for head, relation, tail in PAIRS]
RECORDS = [
    {
        "id": i,
        "instruction": f"relations: ['{relation}']",
        "input": f"{head} {tail}",
        "output": f"({head},{relation},{tail})",
    }
    for i, (head, relation, tail) in enumerate(PAIRS)
]


@pytest.fixture(scope="session")
def train_path(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "train.json"
    file.write_text("\n".join(json.dumps(record) for record in RECORDS), encoding="utf-8")
    return file


@pytest.fixture
def flags(random_base, train_path):
    def make(output, *more, **values):
        """A short run's command line; `values` replace or add flags."""
        chosen = {
            "train_path": train_path,
            "model_dir": random_base,
            "output_dir": output,
            "prompt_template_name": "plain",
            "max_len": 120,
            "max_src_len": 80,
            "pre_seq_len": 4,
            "train_batch_size": 2,
            "max_steps": 4,
            "log_steps": 1,
            **values,
        }
        return [*more, *(str(part) for name, value in chosen.items() for part in (f"--{name}", value))]

    return make


def log(output):
    return [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]


def weights(output, step):
    """Every part of the trained weights that a checkpoint holds for going on."""
    files = sorted((Path(output) / f"global_step-{step}" / "state").iterdir())
    return torch.cat([part for file in files for part in torch.load(file, weights_only=True)["weights"]])


# The engine


def test_deepspeeds_configuration_takes_a_file_but_not_what_flags_decide(flags, tmp_path):
    file = tmp_path / "ds.json"

    def config(settings):
        file.write_text(json.dumps(settings))
        return deepspeed_engine.make_config(parse_ptuning(flags("out", deepspeed=file, train_batch_size=3))[1])

    found = config({"zero_optimization": {"stage": 2}, "wall_clock_breakdown": True, "optimizer": "auto"})
    assert found["zero_optimization"]["stage"] == 2
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert (found["wall_clock_breakdown"], found["train_micro_batch_size_per_gpu"]) == (True, 3)
    with pytest.raises(UserError, match="optimizer cannot be set there: --learning_rate and --weight_decay decide"):
        config({"optimizer": {"type": "Adam"}})
    with pytest.raises(UserError, match="stage 3: expected 1 or 2"):
        config({"zero_optimization": {"stage": 3}})
    with pytest.raises(UserError, match="train_micro_batch_size_per_gpu cannot be set there: --train_batch_size"):
        config({"train_micro_batch_size_per_gpu": 8})


@pytest.mark.parametrize("zero", [{"stage": 2}, {"offload_optimizer": {"device": "none"}}])
def test_another_stage_or_place_of_the_optimizer_learns_the_same(flags, tmp_path, zero):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": zero}))
    common = {"gradient_accumulation_steps": 2, "learning_rate": 1e-2}
    finetuning_pt.main(flags(tmp_path / "one", **common))
    finetuning_pt.main(flags(tmp_path / "two", **common, deepspeed=file))
    assert log(tmp_path / "one")[0]["loss"] != log(tmp_path / "one")[3]["loss"]
    torch.testing.assert_close(weights(tmp_path / "one", 4), weights(tmp_path / "two", 4), atol=1e-5, rtol=1e-5)


def steps_of(flags, scaled, losses):
    """The weights after steps whose losses are scaled by `losses`, and the scale in the end."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    args = parse_ptuning(flags("out", learning_rate=0.1))[1]
    with deepspeed_engine.processes() as deepspeed:
        engine = deepspeed_engine.make_engine(deepspeed, model, args)
        if scaled:
            deepspeed_engine.scale_loss(engine)
        for factor in losses:
            engine.backward(engine(torch.ones(1, 3)).square().sum() * factor)
            engine.step()
        return model.weight.detach().clone(), engine.optimizer.loss_scale


def test_the_engine_scales_the_loss_without_changing_the_step_and_leaves_out_an_overflow(flags):
    plain, scale = steps_of(flags, False, [1.0, 0.5])
    scaled, first = steps_of(flags, True, [1.0, 0.5])
    assert (scale, first) == (1.0, deepspeed_engine.FIRST_SCALE)
    assert torch.equal(plain, scaled)
    skipped, lowered = steps_of(flags, True, [1.0, float("inf"), 0.5])
    assert torch.equal(skipped, plain)
    assert lowered == first / 2


# Runs


def test_a_run_learns_eight_records_by_heart_and_prediction_gets_them_all(flags, tmp_path, random_base):
    """A frozen base of random weights: what is learnt is in the prefix alone."""
    out, file = tmp_path / "out", tmp_path / "train.json"
    finetuning_pt.main(
        flags(out, pre_seq_len=32, train_batch_size=8, learning_rate=2e-2, max_steps=400, log_steps=50, save_steps=400)
    )
    assert log(out)[-1]["loss"] < 0.15 < log(out)[0]["loss"]
    gold = [{**record, "cate": "x"} for record in RECORDS]
    file.write_text("\n".join(json.dumps(record) for record in RECORDS))
    words = ["--test_path", file, "--device", "0", "--model_dir", out / "global_step-400"]
    inference_pt.main(
        [*map(str, words), "--ori_model_dir", str(random_base), "--max_len", "120", "--max_src_len", "80"]
    )
    predicted = load_records(out / "train_global_step-400.json")
    assert [record["output"] for record in predicted] == [record["output"] for record in RECORDS]
    figures = score_records([{**record, "cate": "x", "kg": None} for record in predicted], gold)
    assert figures["f1"] == 1.0
    # In batches of another size, and without naming the base:
    inference_pt.main([*map(str, words), "--batch_size", "3", "--output_file", str(tmp_path / "again.json")])
    assert load_records(tmp_path / "again.json") == predicted


def test_a_base_in_float16_is_trained_with_a_scaled_loss(flags, tmp_path, monkeypatch):
    """float16 is chosen on a GPU only; a CPU can compute in it all the same."""
    monkeypatch.setattr(precision, "choose_dtype", lambda *_: Decision("float16", "as asked"))
    finetuning_pt.main(flags(tmp_path, pre_seq_len=32, train_batch_size=8, learning_rate=2e-2, max_steps=80))
    assert log(tmp_path)[-1]["loss"] < 0.5 * log(tmp_path)[0]["loss"]
    state = torch.load(tmp_path / "global_step-80" / "state" / "rank-0.pt", weights_only=True)
    assert state["weights"][0].dtype == torch.float32
    assert 1 < state["scaler"]["cur_scale"] <= deepspeed_engine.FIRST_SCALE
    assert state["scaler"]["cur_iter"] == 80


def test_a_checkpoint_holds_the_prefix_alone_and_describes_itself(flags, tmp_path, random_base):
    finetuning_pt.main(flags(tmp_path, num_train_epochs=3, max_steps=-1, save_total_limit=2))
    assert [step for step, _ in prefixes.steps_in(tmp_path)] == [8, 12]  # four steps an epoch
    newest, older = tmp_path / "global_step-12", tmp_path / "global_step-8"
    assert (newest / "state").is_dir()
    assert not (older / "state").exists()
    assert not list(tmp_path.glob("tmp-*"))
    for folder in (newest, older):
        saved = adapters.check_weights(folder)
        assert {name: tensor.shape for name, tensor in saved.items()} == {"prompt_embeddings": (4, 2 * 3 * 64)}
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"
        assert (folder / "tokenizer.model").is_file()
    run = json.loads((newest / "run.json").read_text())
    assert (run["step"], run["base"], run["template_name"]) == (12, str(random_base.resolve()), "plain")
    whole = json.loads((tmp_path / "run.json").read_text())
    assert whole["status"] == "finished"
    assert whole["results"]["steps"] == 12
    assert whole["versions"]["deepspeed"]
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert [row["step"] for row in log(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("moment", [1, 3])
def test_killed_and_resumed_gives_the_same_bits_as_uninterrupted(flags, tmp_path, random_base, moment):
    """kill -9 when a checkpoint appears, or is being written; the base's dropout draws random numbers."""
    shaky = tmp_path / "base"
    shutil.copytree(random_base, shaky)
    config = json.loads((shaky / "config.json").read_text())
    (shaky / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    long = {"model_dir": shaky, "max_steps": 18, "save_steps": 3, "gradient_accumulation_steps": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finetuning_pt.main(flags(whole, **long))
    command = [sys.executable, str(SCRIPT), *flags(killed, "--resume", **long)]
    kill_when(
        lambda: len(list(killed.glob("*global_step-*[0-9]"))) >= moment, command, killed / "global_step-18", killed
    )
    finetuning_pt.main(flags(killed, "--resume", **long))
    assert json.loads((killed / "run.json").read_text())["results"]["resumed_at_step"] >= 3 * (moment - 1)
    assert torch.equal(weights(whole, 18), weights(killed, 18))
    one, two = (adapters.check_weights(folder / "global_step-18") for folder in (whole, killed))
    assert torch.equal(one["prompt_embeddings"], two["prompt_embeddings"])
    assert [row["step"] for row in log(killed)] == list(range(1, 19))
    assert not list(killed.glob("tmp-*"))


@pytest.mark.parametrize("bits", [8, 4])
def test_chatglm_goes_the_whole_way(bits, flags, tmp_path, chatglm, train_path):
    """Computing layers twice changes nothing; what is saved are the encoder's tensors, and prediction takes them."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    common = {"model_dir": chatglm[0], "max_steps": 3, "train_batch_size": 3, "learning_rate": 1e-2}
    finetuning_pt.main(flags(once, **common))
    finetuning_pt.main(flags(twice, **common, gradient_checkpointing="true"))
    torch.testing.assert_close(weights(once, 3), weights(twice, 3), atol=1e-6, rtol=1e-5)
    finetuning_pt.main(flags(twice, "--overwrite_output_dir", **common, bits=bits))  # the encoder is not quantised
    step = once / "global_step-3"
    saved = torch.load(step / "pytorch_model.bin", weights_only=True)
    assert {name.rsplit(".", 2)[0] for name in saved} >= {"transformer.prefix_encoder"}
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert (step / "ice_text.model").is_file()
    config = json.loads((step / "config.json").read_text())
    assert (config["model_type"], config["pre_seq_len"], config["prefix_projection"]) == ("chatglm", 4, True)
    words = ["--test_path", str(train_path), "--model_dir", str(step), "--max_new_tokens", "4"]
    inference_pt.main(words)
    assert [record["id"] for record in load_records(once / "train_global_step-3.json")] == [r["id"] for r in RECORDS]
    torch.save({"anything": 1}, step / "training_args.bin")  # the publishers' script leaves one
    (step / "run.json").unlink()  # a checkpoint of the published script has none
    more = ["--ori_model_dir", str(chatglm[0]), "--max_src_len", "80", "--output_file", str(tmp_path / "again.json")]
    inference_pt.main([*words, *more])
    assert load_records(tmp_path / "again.json") == load_records(once / "train_global_step-3.json")


def deepspeed(*words, **variables):
    """DeepSpeed's launcher, as a user calls it in the project's folder."""
    command = [str(Path(sys.executable).with_name("deepspeed")), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=environment)
    return done.returncode, done.stderr + done.stdout


def test_the_documented_command_runs_as_it_is_written(tmp_path):
    words = f"""--include localhost:0 src/finetuning_pt.py
        --train_path {GOLDEN}/train.json --model_dir {GOLDEN}/checkpoint --num_train_epochs 1
        --train_batch_size 2 --gradient_accumulation_steps 1 --output_dir {tmp_path} --log_steps 10
        --max_len 768 --max_src_len 450 --pre_seq_len 16 --prefix_projection true"""
    code, said = deepspeed(*words.split())
    assert code == 0, said[-2000:]
    assert "trained 6 steps (1.00 epochs)" in said
    assert (tmp_path / "global_step-6" / "adapter_config.json").is_file()


def test_two_processes_learn_what_one_learns(flags, tmp_path):
    """The same three records a step; in the last step of an epoch one process has none."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    common = {"max_steps": 6, "learning_rate": 1e-2}
    finetuning_pt.main(flags(alone, **common, train_batch_size=2))
    code, said = deepspeed("--num_gpus", 2, "--master_port", 29613, SCRIPT, *flags(both, **common, train_batch_size=1))
    assert code == 0, said[-2000:]
    one, two = ([row["loss"] for row in log(folder)] for folder in (alone, both))
    assert one == pytest.approx(two, rel=1e-5)
    size = len(weights(alone, 6))
    torch.testing.assert_close(weights(alone, 6), weights(both, 6)[:size], atol=1e-4, rtol=1e-4)
    assert said.count("family: llama") == 1
    with pytest.raises(UserError, match="written by 2 processes; go on with as many, not 1"):
        finetuning_pt.main(flags(both, "--resume", **common, train_batch_size=1))


def test_a_run_is_not_overwritten_or_continued_otherwise_in_silence(flags, tmp_path, capsys):
    finetuning_pt.main(flags(tmp_path, max_steps=2))
    with pytest.raises(UserError, match=r"holds a run already .global_step-2.; .* --resume to go on"):
        finetuning_pt.main(flags(tmp_path, max_steps=2))
    with (
        locks.hold_file(tmp_path / "training.lock", "", ""),
        pytest.raises(UserError, match="another training is writing it"),
    ):
        finetuning_pt.main(flags(tmp_path, "--overwrite_output_dir", max_steps=2))
    with pytest.raises(UserError, match="the run to resume was started otherwise .seed: 42 then, 7 now"):
        finetuning_pt.main(flags(tmp_path, "--resume", max_steps=2, seed=7))
    with pytest.raises(UserError, match="started otherwise .prefix: .*4.* then, .*5"):
        finetuning_pt.main(flags(tmp_path, "--resume", max_steps=2, pre_seq_len=5))
    capsys.readouterr()
    finetuning_pt.main(flags(tmp_path, "--resume", max_steps=2))
    assert "finished already, nothing to train" in capsys.readouterr().err
    finetuning_pt.main(flags(tmp_path, "--resume", max_steps=3))
    assert [row["step"] for row in log(tmp_path)] == [1, 2, 3]
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"status": "training"}))  # killed behind its last checkpoint
    finetuning_pt.main(flags(tmp_path, "--resume", max_steps=3))
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    finetuning_pt.main(flags(tmp_path, "--overwrite_output_dir", max_steps=1))
    assert [step for step, _ in prefixes.steps_in(tmp_path)] == [1]
    assert [row["step"] for row in log(tmp_path)] == [1]


def test_a_loss_that_is_no_number_ends_the_run(flags, tmp_path):
    with pytest.raises(UserError, match="the loss is nan; lower --learning_rate"):
        finetuning_pt.main(flags(tmp_path, learning_rate=1e38, max_steps=20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_path": GOLDEN / "valid.json"}, "looks like the test set"),
        ({"model_dir": GOLDEN / "adapter"}, "is a LoRA adapter, not a base"),
        ({"model_name": "lama"}, "not a family; known"),
        ({"max_src_len": 118}, "--max_len 120 and --max_src_len 118 leave no room for an answer"),
        ({"pre_seq_len": 0}, "--pre_seq_len 0: expected at least 1"),
        ({"prefix_projection": "maybe"}, "--prefix_projection"),
        ({"lr_scheduler_type": "linea"}, "--lr_scheduler_type: invalid choice: 'linea'"),
        ({"deepspeed": "/nowhere.json"}, "--deepspeed /nowhere.json: no such file"),
        ({"lora_r": 8}, "--lora_r: unknown flag"),
        ({"num_train_epochs": 0, "max_steps": -1}, "--num_train_epochs 0: expected more than 0"),
        ({"learning_rat": 8}, "--learning_rat: unknown flag; did you mean --learning_rate"),
    ],
)
def test_bad_input_of_training_is_one_clear_error_before_the_base_is_loaded(
    flags, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(finetuning_pt, "load_with_prefix", lambda *_, **__: pytest.fail("the base was loaded first"))
    with pytest.raises(UserError, match=message):
        finetuning_pt.main(flags(tmp_path, **change))


def test_without_deepspeed_the_error_says_how_to_install_it(flags, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package deepspeed: pip install -r requirements.txt"):
        finetuning_pt.main(flags(tmp_path))


def test_an_architecture_that_takes_no_prefix_is_an_error_that_names_those_that_do(flags, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="does not work with model_type 'mamba'.*llama, mistral.*LoRA"):
        finetuning_pt.main(flags(tmp_path / "out", model_dir=tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="--gradient_checkpointing: this architecture cannot"):
        finetuning_pt.main(flags(tmp_path / "out", "--gradient_checkpointing", "true", model_dir=tmp_path))


def test_bad_input_of_prediction_is_one_clear_error(flags, tmp_path, random_base, train_path, monkeypatch):
    finetuning_pt.main(flags(tmp_path / "out", max_steps=2, save_steps=1))
    step = tmp_path / "out" / "global_step-2"
    monkeypatch.setattr(batch_engine, "load_trained", lambda *_, **__: pytest.fail("the base was loaded first"))

    def error(model_dir, *more):
        with pytest.raises(UserError) as caught:
            inference_pt.main(["--test_path", str(train_path), "--model_dir", str(model_dir), *map(str, more)])
        return str(caught.value)

    steps = "holds the steps global_step-1, global_step-2"
    assert steps in error(tmp_path / "out" / "global_step-")
    assert steps in error(tmp_path / "out")
    assert "an adapter of LoRA is for" in error(GOLDEN / "adapter", "--ori_model_dir", random_base)
    assert "--ori_model_dir is missing" in error(GOLDEN / "adapter")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    other = error(step, "--ori_model_dir", tmp_path, "--model_name", "auto")
    assert other.startswith(f"--model_name_or_path {tmp_path}: P-Tuning does not work with model_type 'mamba'")
    assert "trained on another base" in error(step, "--ori_model_dir", ROOT / "models" / "smollm2-135m-instruct")
    assert "leave no room" in error(step, "--max_len", 81)
    assert "--device 1x" in error(step, "--device", "1x")
    assert "is an input of this command" in error(step, "--output_file", train_path)
    assert "--model_dri: unknown flag; did you mean --model_dir" in error(step, "--model_dri", step)
    torch.save({"prompt_embeddings": torch.full((4, 384), float("nan"))}, step / "adapter_model.bin")
    (step / "adapter_model.safetensors").unlink()
    assert "NaN or infinity" in error(step)


def test_booleans_are_read_as_such():
    def parsed(*words):
        return parse_ptuning(["--train_path", "t.json", "--model_dir", "m", "--output_dir", "o", *words])[1]

    assert parsed("--prefix_projection", "false").prefix_projection is False
    assert parsed("--prefix_projection", "true").prefix_projection is True
    assert parsed().learning_rate == 1e-4
    assert parsed("--prefix_projection", "false").learning_rate == 2e-2
    assert parsed("--local_rank=3").local_rank == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", "nan"), ("learning_rate", -1), ("warmup_steps", -3), ("num_train_epochs", "inf")],
)
def test_numbers_that_mean_nothing_are_refused(flags, name, value):
    with pytest.raises(UserError, match=f"--{name}"):
        parse_ptuning(flags("out", **{"max_steps": -1, name: value}))


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"])
def test_every_course_of_the_learning_rate_that_is_offered_works(flags, kind):
    rate = learning_rates(parse_ptuning(flags("out", lr_scheduler_type=kind, learning_rate=0.5))[1], 10)
    assert all(0 <= rate(step) <= 0.5 for step in range(10))
    assert max(map(rate, range(10))) == pytest.approx(0.5)
    with pytest.raises(UserError, match="--lr_scheduler_type"):
        parse_ptuning(flags("out", lr_scheduler_type="greedy"))


def test_a_run_that_is_past_what_is_asked_says_so(flags, tmp_path):
    finetuning_pt.main(flags(tmp_path / "out", max_steps=4))
    with pytest.raises(UserError, match="global_step-4 has done more than the 2 steps that are asked"):
        finetuning_pt.main(flags(tmp_path / "out", "--resume", max_steps=2))


def test_a_copy_beside_the_checkpoints_does_not_disturb(tmp_path):
    for name in ("global_step-4", "global_step-4.bak2", "global_step-12"):
        (tmp_path / name).mkdir()
    assert prefixes.nearby_steps(tmp_path / "global_step-").endswith("holds the steps global_step-4, global_step-12")
