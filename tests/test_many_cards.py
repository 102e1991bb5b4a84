"""Training on many cards, here two processes with gloo on the CPU: they learn what one process learns."""

import json
import os
import subprocess
import sys

import pytest
from conftest import GOLDEN, ROOT

from test_finetune import main

BASE = GOLDEN / "checkpoint"
SCRIPT = ROOT / "src" / "test_finetune.py"
LINES = (GOLDEN / "train.json").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def nine(tmp_path_factory):
    """Nine records: with four or eight of them a step, one is left for the last, and nothing for the second process."""
    file = tmp_path_factory.mktemp("records") / "nine.json"
    file.write_text("\n".join(LINES[:9]), encoding="utf-8")
    return file


def flags(output, train, *more, **values):
    chosen = {
        "model_name_or_path": BASE,
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
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said[-3000:]
    return said


def losses(folder):
    return [row["loss"] for row in map(json.loads, (folder / "log.jsonl").open()) if "loss" in row]


def test_two_processes_learn_what_one_learns_to_the_last_record(tmp_path, nine):
    """Batches of like size, the last one uneven: four steps of nine records, five passes each."""
    for packing in (False, True):
        alone, two = tmp_path / f"alone-{packing}", tmp_path / f"two-{packing}"
        main(flags(alone, nine, per_device_train_batch_size=2, packing=packing))
        both(*flags(two, nine, packing=packing))
        assert len(losses(alone)) == 6
        assert losses(two) == pytest.approx(losses(alone), rel=1e-5)
