"""The sweep of rates: no held-out record is used, what is done is not done again, and the table counts right."""

import json
import shutil
import subprocess

import pytest
import sweep_rate
from helpers import ROOT

from common.errors import UserError

TRAIN = ROOT / "data" / "sample" / "train.json"
FIGURES = {"f1": 0.5, "precision": 0.6, "recall": 0.7, "rouge2": 0.8, "seconds": [10, 2]}


def sweep(out, how, *more, rates="1e-3,5e-4"):
    sweep_rate.main(
        ["--model", "x", "--train", str(TRAIN), "--out", str(out), "--rates", rates, "--seeds", "1,2", *more], how
    )


def test_done_jobs_are_not_done_again_and_failed_ones_are_named(tmp_path, capsys):
    did = []

    def how(job, out, place, started):
        this = job["rate"], job["seed"]
        did.append(this)
        if this == (5e-4, 2) and did.count(this) == 1:
            raise UserError("it broke")
        return {"job": job, **FIGURES, "f1": 0.4 + job["seed"] / 10}

    with pytest.raises(UserError, match="^it broke$"):
        sweep(tmp_path, how, "--jobs", "2", "--", "--shuffle_schema")
    said = capsys.readouterr()
    assert "| 0.001 | 32 | 200 | 2 | 0.550 | ± 0.071 (0.500 to 0.600) | 0.600 | 0.700 | 0.800 | 10 | 2 |" in said.out
    assert "| 0.0005 | 32 | 200 | 1 | 0.500 | - |" in said.out
    assert said.out.startswith("flags: --shuffle_schema\n")
    with open(tmp_path / "jobs.jsonl", "a", encoding="utf-8") as file:
        file.write('{"job": {"ra')  # a kill
    del did[:]
    did += [(5e-4, 2)]
    sweep(tmp_path, how, "--", "--shuffle_schema")
    assert did == [(5e-4, 2)] * 2
    assert "jobs: 1 of 4 to do" in capsys.readouterr().err
    sweep(tmp_path, how, rates="1e-3")  # other flags are other jobs
    assert len(did) == 4


def test_the_scored_records_are_a_part_of_the_training_ones(tmp_path):
    sweep(tmp_path, lambda job, *_: {"job": job, **FIGURES})
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("train.json", "valid.json")]
    train, valid = (text.splitlines() for text in texts)
    assert sorted(train + valid) == sorted(TRAIN.read_text(encoding="utf-8").splitlines())
    assert len(valid) == 85
    assert all(json.loads(line)["output"] for line in valid)
    with pytest.raises(UserError, match=r"train\.json there is of another split or file; give another folder"):
        sweep(tmp_path, None, "--split_seed", "7")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "8,x"], "--ranks 8,x: 'x' is no number"),
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["--valid_share", "1"], "--valid_share 1: expected more than 0, and less than 1"),
        (["--shuffle_schema"], "--shuffle_schema: unknown flag"),
    ],
)
def test_what_cannot_be_swept_is_named(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        sweep(tmp_path, None, *flags)


def test_flags_of_prediction_may_begin_with_two_hyphens():
    words = ["--model", "x", "--rates", "1", "--predict", "--engine batch", "--", "--bf16"]
    arguments, extra = sweep_rate.read_flags(words)
    assert (arguments.predict, extra) == ("--engine batch", ["--bf16"])


def test_jobs_at_once_share_the_memory_of_a_card():
    cards = [("0", 1000.0), ("3", 2000.0)]
    places = sweep_rate.make_places(3, cards)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment, _ in places] == ["0", "3", "0"]
    assert [flags for _, flags in places] == [["--max_memory_MB", "450"], [], ["--max_memory_MB", "450"]]
    assert sweep_rate.make_places(1, cards)[0] == ({"CUDA_VISIBLE_DEVICES": "0"}, [])


def test_the_rows_of_bench_quality_are_calls_that_are_understood(tmp_path):
    """With a `python` that notes what it is called with."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "requirements.txt").write_text("")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".installed-requirements.txt").write_text("")  # nothing is installed
    stub = tmp_path / ".venv" / "bin" / "python"
    stub.write_text(
        f'#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >>{tmp_path}/calls\necho >>{tmp_path}/calls\n'
    )
    stub.chmod(0o755)
    subprocess.run(["bash", str(tmp_path / "scripts" / "bench_quality.bash")], check=True, timeout=600)
    calls = [line.split("\0")[:-1] for line in (tmp_path / "calls").read_text().splitlines()]
    sweeps = [words[1:] for words in calls if words[0].endswith("sweep_rate.py")]
    assert len(sweeps) == 8
    for words in sweeps:
        sweep_rate.read_flags(words)
