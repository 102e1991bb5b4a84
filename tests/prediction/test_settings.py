"""A run.json that says something wrong is an error that names file and key, before the base is loaded."""

import json
import shutil

import pytest
from helpers_prediction import ADAPTER, BASE, flags

import inference
from common.errors import UserError
from data.prompts import load_template
from decoding import batch_engine
from prediction.settings import check_apart

RUN = {"base": str(BASE), "model_name": "llama", "template_name": "mine", "template": load_template("plain")}


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """The folder of an adapter, to write a run.json into; no base will be loaded."""
    monkeypatch.setattr(batch_engine, "load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    shutil.copytree(ADAPTER, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": 5}, "run.json: base is 5, expected a text"),
        (
            {"base": "/nowhere/base"},
            "run.json: base is /nowhere/base, no such folder; give the base's as --model_name_or",
        ),
        ({"model_name": "evil"}, "run.json: model_name is 'evil', as if typed: --model_name evil: not a family; known"),
        ({"precision": []}, "run.json: precision is [], expected an object"),
        ({"precision": {"name": "float32", "bits": 77}}, "run.json: precision.bits is 77, expected one of 4, 8, 16"),
        ({"template": {}}, "run.json: template: the template lacks prompt_input, prompt_no_input"),
        ({"template": {**RUN["template"], "prompt_input": "x"}}, "run.json: template: prompt_input holds neither"),
        ({"template": None}, "--prompt_template_name mine: no such template"),
    ],
)
def test_a_wrong_run_is_an_error_that_names_file_and_key(tmp_path, adapter, change, message):
    (adapter / "run.json").write_text(json.dumps(RUN | change), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        inference.main(flags(tmp_path / "out.json", model_name_or_path=None, lora_weights=adapter))
    assert message in str(caught.value)


def test_results_are_kept_out_of_folders_of_weights_also_through_links(tmp_path):
    base, blobs = tmp_path / "base", tmp_path / "blobs"
    base.mkdir()
    blobs.mkdir()
    (blobs / "abc").write_text("{}")
    (base / "config.json").symlink_to(blobs / "abc")
    (tmp_path / "link").symlink_to(base)
    for output in (base / "out.json", tmp_path / "link" / "out.json", base / "config.json", base / ".." / "base" / "x"):
        with pytest.raises(UserError, match="holds what is read here; give a file elsewhere"):
            check_apart(str(output), str(base))
    check_apart(str(tmp_path / "out.json"), str(base), None)


@pytest.mark.parametrize("given", ["input_file", "prompt_template_name"])
@pytest.mark.parametrize("name", ["out.json", "out.run.json", "out.json.partial", "out.json.tmp"])
def test_no_input_is_replaced_by_what_is_written(tmp_path, given, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="--output_file .*is an input of this command"):
        inference.main(flags(tmp_path / "out.json", **{given: tmp_path / name}))
