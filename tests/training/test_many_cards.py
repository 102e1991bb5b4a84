"""Training on many cards, here two processes with gloo on the CPU: they learn what one process learns."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import torch
from helpers import GOLDEN, ROOT
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import inference
from common.errors import UserError
from loading.fsdp import empty_model
from test_finetune import main
from tokens.batches import IGNORED, make_collator, pack
from training.order import deal, plan_epoch, with_empty

BASE = GOLDEN / "checkpoint"
SCRIPT = ROOT / "src" / "test_finetune.py"
LINES = (GOLDEN / "train.json").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def nine(tmp_path_factory):
    """Nine records: with four or eight of them a step, one is left for the last, and nothing for the second process."""
    file = tmp_path_factory.mktemp("records") / "nine.json"
    file.write_text("\n".join(LINES[:9]), encoding="utf-8")
    return file


def flags(output, base, train, *more, **values):
    chosen = {
        "model_name_or_path": base,
        "train_file": train,
        "output_dir": output,
        "cutoff_len": 1024,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 3e-3,
        "num_train_epochs": 2,
        "save_strategy": "no",
        "logging_steps": 1,
        "lora_dropout": 0,
        **values,
    }
    if "--full_finetune" in more:
        del chosen["lora_dropout"]
    return ["--do_train", *more, *(str(part) for name, value in chosen.items() for part in (f"--{name}", value))]


def start(*command):
    """torchrun with two processes, as a user would; not waited for."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(SCRIPT), *command],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def both(*command):
    """The same to its end; what it said."""
    process = start(*command)
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 0, said[-3000:]
    return said


def losses(folder):
    return [row["loss"] for row in map(json.loads, (folder / "log.jsonl").open()) if "loss" in row]


def kill_and_resume(folder, *command):
    """Start two processes, kill them when a checkpoint is whole, and give the same command again; what that said.

    Where they have ended before they were killed, that is done once more.
    """
    command = [*command, "--resume_from_checkpoint", "auto"]
    last = "trainer_state.json", "rng_state_1.pth"  # what each of the two writes last
    for _ in range(5):
        process, began = start(*command), time.time()
        while not all(list(folder.glob(f"checkpoint-*/{name}")) for name in last) and process.poll() is None:
            assert time.time() - began < 600
            time.sleep(0.002)
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid)
            for one in (*started.children(recursive=True), started):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        said = process.communicate()[1]
        if not (folder / "run.json").read_text().count("finished"):
            return both(*command)
        shutil.rmtree(folder)
    raise AssertionError(f"killed too late each time: {said[-2000:]}")


def predicts(folder, *more):
    """What src/inference.py answers with the result, on two tokens a record."""
    out = folder.parent / f"{folder.name}.json"
    files = ["--input_file", str(GOLDEN / "valid.json"), "--output_file", str(out)]
    inference.main([*more, *files, "--max_new_tokens", "2", "--batch_size", "12"])
    return [json.loads(line)["output"] for line in out.read_text().splitlines()]


def differ(one, two):
    """The largest difference between the weights of two files with the same names."""
    a, b = load_file(one), load_file(two)
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def test_two_processes_learn_what_one_learns_to_the_last_record(tmp_path, random_base, nine):
    """Records of like length, the last step uneven; a run that goes on from the middle of an epoch repeats its order.

    Without an own plan of batches the last step would be filled up with the epoch's first records.
    """
    alone, two, packed = tmp_path / "alone", tmp_path / "two", tmp_path / "packed"
    main(flags(alone, random_base, nine, per_device_train_batch_size=2))
    both(*flags(two, random_base, nine))
    kill_and_resume(packed, *flags(packed, random_base, nine, packing=True, save_strategy="steps", save_steps=2))
    expected = losses(alone)
    assert len(expected) == 6
    assert losses(two) == pytest.approx(expected, rel=1e-5)
    assert losses(packed) == pytest.approx(expected, rel=1e-5)
    for folder in (two, packed):
        assert differ(alone / "adapter_model.safetensors", folder / "adapter_model.safetensors") < 2e-4


def test_lora_of_a_split_model_is_that_of_a_whole_one(tmp_path, nine):
    """In bf16, where a split model must not round the number, some 1,600, of a step's tokens; killed and resumed."""
    alone, split = tmp_path / "alone", tmp_path / "split"
    common = {"packing": True, "save_steps": 2, "save_strategy": "steps", "gradient_checkpointing": True}
    main(flags(alone, BASE, nine, "--bf16", "--train_on_inputs", per_device_train_batch_size=2, **common))
    said = kill_and_resume(split, *flags(split, BASE, nine, "--bf16", "--train_on_inputs", "--fsdp", **common))
    assert losses(split) == pytest.approx(losses(alone), rel=5e-4)
    assert (split / "checkpoint-6" / "optimizer.bin").is_file(), "accelerate did not split the model"
    assert "weights, read back)" in said
    base = ["--model_name_or_path", str(BASE), "--fp32", "--lora_weights"]
    assert predicts(split, *base, str(split)) == predicts(alone, *base, str(alone))


def test_full_fine_tuning_of_a_split_model_is_that_of_a_whole_one(tmp_path, random_base, nine):
    alone, split = tmp_path / "alone", tmp_path / "split"
    common = {"val_set_size": 2, "learning_rate": 1e-3, "save_strategy": "epoch"}
    main(flags(alone, random_base, nine, "--full_finetune", "--do_eval", per_device_train_batch_size=2, **common))
    both(*flags(split, random_base, nine, "--full_finetune", "--do_eval", "--fsdp", **common))
    assert losses(split) == pytest.approx(losses(alone), rel=1e-5)
    assert differ(alone / "model.safetensors", split / "model.safetensors") < 1e-4
    results = [json.loads((folder / "run.json").read_text())["results"] for folder in (alone, split)]
    assert {one["trained_weights"] for one in results} == {one["weights"] for one in results}
    assert results[0]["weights"] == results[1]["weights"] > 0
    assert predicts(split, "--model_name_or_path", str(split)) == predicts(alone, "--model_name_or_path", str(alone))


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_a_step_has_the_same_records_however_many_processes_share_it(processes):
    lengths = [(7 * i) % 41 + 3 for i in range(65)]
    alone = plan_epoch(lengths, 12, 2, 1, 5, 3)
    shared = plan_epoch(lengths, 12 // processes, 2, processes, 5, 3)
    assert [sorted(r for part in step for rows in part for r in rows) for step in shared] == [
        sorted(r for part in step for rows in part for r in rows) for step in alone
    ]
    counts = [[len(rows) for rows in part] for step in shared for part in step]
    assert all(max(part) - min(part) <= 1 and max(part) <= 12 // processes for part in counts)


def test_processes_get_nearly_as_many_tokens():
    lengths = list(range(100, 132))
    shares = deal(list(range(32)), lengths, 4)
    assert [len(share) for share in shares] == [8] * 4
    assert len({sum(lengths[row] for row in share) for share in shares}) == 1
    assert deal([3, 1, 2], lengths, 4) == [[3], [2], [1], []]
    assert deal([3, 1, 2], lengths, 1) == [[3, 1, 2]]


@pytest.mark.parametrize("collate", [pack, make_collator(0)])
def test_an_empty_share_teaches_nothing(collate):
    row = {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}
    batch = with_empty(collate, row)([])
    assert batch["shift_labels"].tolist() == batch["labels"].tolist() == [[IGNORED, IGNORED]]
    assert with_empty(collate, row)([row])["labels"].tolist() == [[6, 7]]


def test_a_model_without_its_weights_has_their_names_and_shapes():
    model, base = empty_model(BASE, dtype=torch.bfloat16), AutoModelForCausalLM.from_pretrained(BASE)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in base.named_parameters()}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--bits", "4"], "--bits 4 and --fsdp contradict each other"),
        (["--do_eval", "--predict_with_generate"], "--predict_with_generate does not work on a model split by --fsdp"),
        (["--optim", "paged_adamw_32bit"], "--optim paged_adamw_32bit does not work on a model split by --fsdp"),
        (["--fsdp_config", "mine.json"], "--fsdp_config cannot be set here"),
        (["--deepspeed", "zero3.json"], "--deepspeed cannot be set here: --fsdp splits a model"),
        (["--dataloader_drop_last"], "--dataloader_drop_last cannot be set here: every record"),
    ],
)
def test_what_does_not_go_together_is_one_clear_error(tmp_path, nine, monkeypatch, more, message):
    monkeypatch.setenv("RANK", "0")  # as torchrun does
    with pytest.raises(UserError, match=message):
        main(flags(tmp_path, BASE, nine, "--fsdp", *more))


def test_a_model_is_not_split_among_one(tmp_path, nine, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="--fsdp: one process has nobody to share with; start it with torchrun"):
        main(flags(tmp_path, BASE, nine, "--fsdp"))
