"""src/serve.py as a person starts it: one address, an answer, and an end by Ctrl-C."""

import signal
import subprocess
import sys

import httpx2 as httpx
import pytest
from helpers import ROOT
from helpers_web import QUESTION

import serve
from common.errors import UserError


def test_it_prints_its_address_answers_and_ends_by_ctrl_c(random_base, tmp_path):
    flags = ["--port", "0", "--data_dir", tmp_path / "web", "--max_new_tokens", "8", "--window", "256"]
    command = [sys.executable, "src/serve.py", "--model_name_or_path", random_base, *flags]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        assert httpx.get(f"{address}api/health", timeout=300).json()["status"] == "ready"
        assert httpx.post(f"{address}api/extract", json=QUESTION, timeout=300).status_code == 200
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert rest == ""
    assert "Traceback" not in said
    assert "stopped by Ctrl-C" in said


@pytest.mark.parametrize(("host", "says"), [("no.such.host.invalid", "--host"), ("192.0.2.1", "--port")])
def test_an_address_that_cannot_be_had_names_its_flag(host, says):
    with pytest.raises(UserError, match=says):
        serve.listen(host, 0)


def test_a_folder_that_another_server_uses_or_that_is_a_file_is_refused(tmp_path):
    folder = str(tmp_path / "web")
    refused = pytest.raises(UserError, match="--data_dir .*: another server is using it")
    with serve.hold_data(folder), refused, serve.hold_data(folder):
        pass
    with serve.hold_data(folder):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--data_dir .*file cannot be written"), serve.hold_data(tmp_path / "file"):
        pass


def test_a_store_that_is_no_graph_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "thesis.docx").touch()
    flags = ["--model_name_or_path", str(tmp_path), "--data_dir", str(tmp_path / "web"), "--store", str(tmp_path)]
    with pytest.raises(UserError, match="--store .*: no graph .it holds thesis.docx"):
        serve.main(flags)


def test_the_examples_are_of_the_sample():
    found = serve.read_examples({"人物": {"relations": ["国籍"]}, "医学": {"relations": ["病因"]}})
    assert [one["topic"] for one in found] == ["医学", "人物"]
    assert all(one["text"] and one["relations"] for one in found)
