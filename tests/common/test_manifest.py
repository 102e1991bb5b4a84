"""run.json: read where it is one, else an error that names file and key."""

import json

import pytest

from common import manifest
from common.errors import UserError

WHOLE = {
    "status": "finished",
    "base": "models/x",
    "model_name": "llama",
    "template_name": "mine",
    "template": {"prompt_input": "{input}", "prompt_no_input": "{instruction}"},
    "precision": {"name": "bfloat16", "bits": 8},
    "training": {"max_len": 768, "max_src_len": 450, "cutoff_len": 512},
    "lora": None,
}


def test_a_run_is_read_back_also_from_a_checkpoint_and_with_a_byte_order_mark(tmp_path):
    step = tmp_path / "checkpoint-5"
    step.mkdir()
    assert manifest.read_run(step) == {}
    manifest.write_run(tmp_path, WHOLE)
    assert manifest.read_run(tmp_path) == manifest.read_run(step) == WHOLE
    (tmp_path / "run.json").write_text(json.dumps({**WHOLE, "base": None}), encoding="utf-8-sig")
    assert manifest.read_run(step) == {**WHOLE, "base": None}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("base", 5, "base is 5, expected a text"),
        ("model_name", ["llama"], "model_name is ['llama'], expected a text"),
        ("template", "alpaca", "template is 'alpaca', expected an object"),
        ("precision", [], "precision is [], expected an object"),
        ("precision", {"bits": 77}, "precision.bits is 77, expected one of 4, 8, 16"),
        ("precision", {"bits": True}, "precision.bits is True, expected one of 4, 8, 16"),
        ("precision", {"name": "int8"}, "precision.name is 'int8', expected one of float32, bfloat16, float16"),
        ("training", 3, "training is 3, expected an object"),
        ("training", {"max_len": "768"}, "training.max_len is '768', expected a whole number above 0"),
        ("training", {"max_src_len": -5}, "training.max_src_len is -5, expected a whole number above 0"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_file_and_key(tmp_path, key, value, said):
    manifest.write_run(tmp_path, {**WHOLE, key: value})
    with pytest.raises(UserError) as caught:
        manifest.read_run(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path.resolve()}/run.json: {said}; mend it, or delete the file")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, '{"base": "模型"}'.encode("gbk")])
def test_a_run_that_is_no_json_object_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match="run.json"):
        manifest.read_run(tmp_path)
