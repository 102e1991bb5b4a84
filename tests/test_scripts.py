"""The scripts: a failed run fails the script, and its log is captured; comparisons count right."""

import os
import shlex
import shutil
import subprocess

import compare_engines
import pytest
from helpers import GOLDEN, ROOT

from common.errors import UserError
from common.files import write_rows
from data.records import read_records


@pytest.fixture
def project(tmp_path):
    """A copy of the scripts with a `torchrun`, a `deepspeed` and a `python` that print to both streams and fail."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("torchrun", "deepspeed", "python"):
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text("#!/bin/sh\necho to stdout\necho to stderr >&2\nexit 3\n")
        stub.chmod(0o755)
    return tmp_path


def bash(project, *words, **variables):
    environment = {**os.environ, "PATH": f"{project}/bin:{os.environ['PATH']}", **variables}
    return subprocess.run(["bash", *words], cwd="/", env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts").glob("fine_*.bash")))
def test_a_failed_training_fails_the_script_and_its_log_is_whole(project, name):
    out = project / "runs" / "out"
    done = bash(project, f"{project}/scripts/{name}", OUTPUT=str(out))
    assert done.returncode == 3
    assert not out.parent.exists()  # refused: nothing is left
    out.mkdir(parents=True)
    assert bash(project, f"{project}/scripts/{name}", OUTPUT=str(out)).returncode == 3
    assert (out / "train.log").read_text() == "to stdout\nto stderr\n"


@pytest.mark.parametrize("wait", ["until [ -f {out}/train.log ]; do sleep 0.05; done", ""])
def test_the_log_of_a_training_that_has_begun_lies_in_its_folder_however_short_it_was(project, wait):
    out = project / "it's out"
    lines = ("#!/bin/sh", "echo one", "mkdir {out}", "touch {out}/run.json", wait, "echo two")
    (project / "bin" / "python").write_text("\n".join(lines).format(out=shlex.quote(str(out))) + "\n")
    done = bash(project, f"{project}/scripts/fine_llama.bash", OUTPUT=str(out), NPROC="1")
    assert done.returncode == 0
    assert (out / "train.log").read_text() == "one\ntwo\n"
    assert not list(project.glob(".train-log*"))


TRAINED = {"LORA": "lora", "OUTPUT": "out"}  # what is trained, for the scripts that predict


def make_trained(project):
    (project / "lora").mkdir()
    (project / "out" / "global_step-1").mkdir(parents=True)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "scripts").glob("infer_*.bash")))
def test_a_failed_prediction_fails_the_script(project, name):
    done = bash(project, f"{project}/scripts/{name}", **TRAINED)
    assert done.returncode == 2
    assert f"bash scripts/fine_{name[6:]}" in done.stderr
    make_trained(project)
    assert bash(project, f"{project}/scripts/{name}", **TRAINED).returncode == 3


def test_a_failed_prediction_is_not_converted(project):
    make_trained(project)
    done = bash(project, f"{project}/scripts/run_inference.bash", LORA="lora")
    assert done.returncode == 3
    assert done.stdout.count("to stdout") == 1


def test_dry_run_prints_the_command_with_further_flags_and_runs_nothing(project):
    done = bash(project, f"{project}/scripts/fine_llama.bash", "--seed", "7", DRY_RUN="1", NPROC="2")
    assert done.returncode == 0
    assert done.stdout.startswith("torchrun --nproc_per_node=2 --master_port=1331 src/test_finetune.py --do_train")
    assert done.stdout.rstrip().endswith("--fp16 --bits 8 --seed 7")
    assert not (project / "lora").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.bash")), ids=lambda path: path.name)
def test_every_script_is_strict_or_sourced_and_parses(path):
    text = path.read_text()
    assert "set -euo pipefail" in text or text.startswith("# Sourced by")
    assert subprocess.run(["bash", "-n", path], timeout=600).returncode == 0


def test_a_prediction_is_shared_between_processes_with_nproc(project):
    said = {n: bash(project, f"{project}/scripts/infer_llama.bash", DRY_RUN="1", NPROC=n).stdout for n in ("1", "2")}
    assert said["1"].startswith("python src/inference.py --model_name_or_path")
    assert said["2"].startswith("torchrun --nproc_per_node=2 --master_port=1331 src/inference.py --model_name_or_path")


def test_engines_are_compared_answer_by_answer_and_by_f1(tmp_path, capsys):
    """Each row is predicted for itself, a row's shares beside each other; these engines agree in 32 bits."""
    records = read_records(GOLDEN / "train.json")[:3]
    write_rows(tmp_path / "ask.json", records)
    run = ["--model_name_or_path", GOLDEN / "checkpoint", "--lora_weights", GOLDEN / "adapter", "--max_new_tokens", 4]
    files = ["--input_file", tmp_path / "ask.json", "--gold", tmp_path / "ask.json", "--output_dir", tmp_path / "out"]
    compare_engines.main(list(map(str, [*run, *files, "--rows", "one", "fast", "--processes", 2])))
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["equal", "answers", "of", "3", "one", "fast", "F1"],
        ["one", "3", "3", "0.0000"],
        ["fast", "3", "3", "0.0000"],
    ]
    assert {row["id"] for row in read_records(tmp_path / "out" / "one.json")} == {row["id"] for row in records}


def test_of_engines_that_differ_the_equal_answers_and_the_f1_are_told(tmp_path, capsys, monkeypatch):
    records = read_records(GOLDEN / "train.json")[:2]
    wrong = [records[0], records[1] | {"output": "(无,无,无)"}]
    write_rows(tmp_path / "ask.json", records)
    write_rows(tmp_path / "one.json", records)
    write_rows(tmp_path / "fast.json", wrong)
    monkeypatch.setattr(compare_engines, "predict", lambda *_: None)
    files = ["--input_file", tmp_path / "ask.json", "--gold", tmp_path / "ask.json", "--output_dir", tmp_path]
    compare_engines.main(list(map(str, ["--lora_weights", "x", *files, "--rows", "fast", "one"])))
    fast, one = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert fast[:3] == ["fast", "2", "1"]
    assert one == ["one", "1", "2", "1.0000"]
    assert 0 < float(fast[3]) < 1


@pytest.mark.parametrize("asked", [[0], [0, 0], [0, 1, 2]])
def test_engines_are_compared_on_the_records_of_gold_alone(tmp_path, asked):
    records = [record | {"id": number} for number, record in enumerate(read_records(GOLDEN / "train.json")[:3])]
    write_rows(tmp_path / "ask.json", [records[number] for number in asked])
    write_rows(tmp_path / "gold.json", records[:2])
    files = ["--input_file", tmp_path / "ask.json", "--gold", tmp_path / "gold.json", "--output_dir", tmp_path / "out"]
    with pytest.raises(UserError, match="expected the same ids in both, each once"):
        compare_engines.main(list(map(str, ["--lora_weights", "x", *files])))


@pytest.mark.parametrize(
    ("script", "more", "why"),
    [
        ("fine_llama", {"NPROC": "x"}, "NPROC=x: expected how many processes"),
        ("fine_llama", {"NPROC": "2", "MODEL": "nowhere"}, "nowhere: no such folder"),
        ("infer_llama", {"NPROC": "0"}, "NPROC=0: expected how many processes"),
        ("fine_ptuning", {"CARDS": "x"}, "CARDS=x: expected the numbers of GPUs"),
    ],
)
def test_what_a_script_cannot_start_is_one_line(project, script, more, why):
    done = bash(project, f"{project}/scripts/{script}.bash", **more)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
