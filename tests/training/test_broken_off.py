"""Trainings that are broken off, by Ctrl-C, SIGTERM or a full disk: one line, and the same command goes on."""

import errno
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers import ROOT, python
from helpers_training import BASE, SCRIPT, TRAIN, flags
from safetensors import SafetensorError
from safetensors.torch import load_file

import finetuning_pt
from common.errors import run_script
from common.locks import take_lock
from test_finetune import main

AUTO = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "resume_from_checkpoint": "auto"}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def ptuning(output, *more, **values):
    """A short run of src/finetuning_pt.py on the golden LLaMA."""
    chosen = {"train_path": TRAIN, "model_dir": BASE, "output_dir": output, "max_len": 768, "max_src_len": 450}
    chosen |= {"pre_seq_len": 4, "max_steps": 6, "save_steps": 2, "log_steps": 1, **values}
    return ["--resume", *more, *(str(part) for name, value in chosen.items() for part in (f"--{name}", value))]


# Ctrl-C and SIGTERM


def test_both_trainings_stopped_at_any_moment_say_what_is_kept(tmp_path):
    """With workers that tokenise and workers that collate."""
    workers = {"preprocessing_num_workers": 2, "dataloader_num_workers": 2, "max_steps": 500}
    fine = [flags(tmp_path / f"fine-{i}", "--overwrite_cache", **{**AUTO, **workers}) for i in range(5)]
    prefix = [ptuning(tmp_path / f"prefix-{i}", max_steps=500) for i in range(3)]
    runs = [
        ("test_finetune", fine[0], "SIGINT", "family: llama", 0.1),
        ("test_finetune", fine[1], "SIGTERM", "num_proc=2", 0),
        ("test_finetune", fine[2], "SIGINT", "trained: ", 0.2),
        ("test_finetune", fine[3], "SIGINT", "2/500", 0.3),
        ("test_finetune", fine[4], "SIGTERM", "4/500", 0.1),
        ("finetuning_pt", prefix[0], "SIGINT", "family: llama", 0.3),
        ("finetuning_pt", prefix[1], "SIGTERM", "trained: ", 0.3),
        ("finetuning_pt", prefix[2], "SIGINT", "step 4 ", 0.1),
    ]
    done = python(ROOT / "tests" / "stop_often.py", json.dumps(runs), env=ONE_THREAD)
    assert done.returncode == 0, done.stderr[-2000:]
    for (_, words, name, text, _), (status, said) in zip(runs, json.loads(done.stdout), strict=True):
        stop = {"SIGINT": "stopped by Ctrl-C; ", "SIGTERM": "stopped by SIGTERM; "}[name]
        out = words[words.index("--output_dir") + 1]
        assert status == {"SIGINT": 130, "SIGTERM": 143}[name], said
        assert said.count(stop) == 1, said
        assert "Traceback" not in said
        assert "Exception ignored" not in said
        assert re.search(f"{stop}.* (goes on from it|begins anew)\n", said), said
        lock = f"{out}/training.lock"  # where what a library waits for takes too long, it stays, but nobody holds it
        assert not os.path.exists(lock) or take_lock(os.open(lock, os.O_RDONLY))
        if text in ("4/500", "step 4 "):
            kept = [word for word in said.split(stop)[1].split() if word.startswith(out)]
            whole = [file.parent for file in Path(out).glob("[cg]*-*/run.json")]
            assert kept[0] == str(max(whole, key=lambda folder: int(folder.name.rsplit("-", 1)[1])))


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    long = {**AUTO, "max_steps": 24, "lora_dropout": 0.1}
    main(flags(whole, **long))
    runs = [("test_finetune", flags(stopped, **long), "SIGTERM", "5/24", 0)]
    for _ in range(5):
        done = python(ROOT / "tests" / "stop_often.py", json.dumps(runs), env=ONE_THREAD)
        if not (stopped / "adapter_model.safetensors").exists():
            break
        shutil.rmtree(stopped)  # it was stopped too late, on a busy machine
    assert json.loads(done.stdout)[0][0] == 143, done.stdout
    main(flags(stopped, **long))
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, stopped))
    for name in one:  # sums of one thread in part: equal but for rounding
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_of_two_processes_the_first_speaks_and_none_leaves_a_traceback(tmp_path, name):
    """torchrun's own text, which follows, names its own files only."""
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    command = [sys.executable, *launcher, str(SCRIPT), *flags(tmp_path / "out", **{**AUTO, "max_steps": 500})]
    process = subprocess.Popen(
        command, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    began = time.time()
    while not list(tmp_path.glob("out/checkpoint-2/run.json")) and process.poll() is None:
        assert time.time() - began < 600
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, getattr(signal, name))
    said = process.communicate(timeout=300)[0].decode()
    assert said.count("stopped by ") == 1, said[-2000:]
    assert " is kept, and the same command goes on from it\n" in said
    assert str(SCRIPT.parent) not in said.split("stopped by ")[1]  # the traceback is torchrun's
    assert not psutil.wait_procs(children, timeout=60)[1]


# Full disks


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def rust_full(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def torch_full(*_, **__):
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 1152 vs 1046")


def at_call(number, real, error):
    """`real`, but `error` when it is called for the `number`-th time."""
    calls = []

    def function(*arguments, **more):
        calls.append(1)
        return error() if len(calls) == number else real(*arguments, **more)

    return function


KEPT = "checkpoint-2 is kept, and the same command goes on from it"
LAST = "checkpoint-6 is kept, and the same command goes on from it"
NONE = "no checkpoint was written yet, and the same command begins anew"
FULL = "No space left on device"
BREAKS = [  # what fails, at which call, with what; what is said
    ("peft.peft_model:safe_save_file", 1, rust_full, f"{FULL} .*checkpoint-2.; make room; {NONE}"),
    ("peft.peft_model:safe_save_file", 2, rust_full, f"{FULL} .*checkpoint-4.; make room; .*{KEPT}"),
    ("peft.peft_model:safe_save_file", 4, rust_full, f"{FULL} .*out.; make room; .*{LAST}"),
    ("torch:save", 2, torch_full, f"a file could not be written whole .*checkpoint-2.; make room.*{NONE}"),
    ("torch:save", 8, torch_full, f"a file could not be written whole .*checkpoint-4.; make room.*{KEPT}"),
    ("matplotlib.figure:Figure.savefig", 1, full, f"{FULL} .*curve.png.; make room; .*{LAST}"),
    ("os:fsync", 1, full, f"{FULL} .*run.json.; make room; nothing was trained yet"),
    ("os:fsync", 5, full, f"{FULL} .*run.json.; make room; .*{LAST}"),
]


def break_off(monkeypatch, place, number, error, script, words):
    """Run the script; what is called at `place`, as pkgutil names it, raises at the `number`-th call."""
    with monkeypatch.context() as patch:
        real = pkgutil.resolve_name(place)
        patch.setattr(place.replace(":", "."), at_call(number, real, error))
        with pytest.raises(SystemExit) as ended:
            run_script(lambda: script(words))
        assert ended.value.code == 2


@pytest.mark.parametrize(("place", "number", "error", "said"), BREAKS, ids=range(len(BREAKS)))
def test_a_disk_that_is_full_while_fine_tuning_is_one_line_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys, place, number, error, said
):
    break_off(monkeypatch, place, number, error, main, flags(tmp_path / "out", **AUTO))
    assert re.match(f"error: {said}", capsys.readouterr().err.splitlines()[-1])
    main(flags(tmp_path / "out", **AUTO))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "finished"
    assert [row["step"] for row in map(json.loads, (tmp_path / "out" / "log.jsonl").open()) if "loss" in row] == [
        *range(1, 7)
    ]


PREFIX_KEPT = "global_step-2 is kept, and the same command goes on from it"


@pytest.mark.parametrize(
    ("place", "number", "error", "said"),
    [
        ("torch:save", 1, torch_full, f"a file could not be written whole .*rank-0.pt.*{NONE}"),
        ("torch:save", 2, torch_full, f"a file could not be written whole .*rank-0.pt.*{PREFIX_KEPT}"),
        ("peft.peft_model:safe_save_file", 2, rust_full, f"{FULL}; make room; .*{PREFIX_KEPT}"),
        ("training.reporting:to_line", 4, full, f"{FULL} .*log.jsonl.; make room; .*{PREFIX_KEPT}"),
    ],
    ids=range(4),
)
def test_a_disk_that_is_full_while_p_tuning_is_one_line_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys, place, number, error, said
):
    break_off(monkeypatch, place, number, error, finetuning_pt.main, ptuning(tmp_path / "out"))
    assert re.match(f"error: .*{said}", capsys.readouterr().err.splitlines()[-1])
    finetuning_pt.main(ptuning(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "finished"
    assert not list(tmp_path.glob("out/tmp-*"))


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many KiB, and makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kib):
        more = "remount," if os.path.ismount(folder) else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{more}size={kib}k", "tmpfs", folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="mount is not there")
@pytest.mark.parametrize(("kib", "kept"), [(60, NONE), (200, KEPT), (450, LAST)])
def test_on_a_small_disk_training_says_what_is_kept_and_goes_on_when_there_is_room(small_disk, capsys, kib, kept):
    out = small_disk(kib) / "out"
    with pytest.raises(SystemExit):
        run_script(lambda: main(flags(out, **AUTO)))
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: No space left on device \(.*\); make room; .*{kept}$", line)
    small_disk(10_000)
    main(flags(out, **AUTO))
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
