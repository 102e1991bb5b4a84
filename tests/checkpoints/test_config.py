"""config.json: what no model can have is named by its setting, before anything is loaded."""

import json
import math

import pytest
import torch
from helpers import GOLDEN, random_llama

from checkpoints.config import check_settings, pad_beyond, read_config
from checkpoints.family import choose_family
from common.errors import UserError
from loading.base import load_base
from loading.precision import Precision
from loading.shape import read_shape
from models.families import FAMILIES
from tokens.readers import load_codec

CONFIG = json.loads((GOLDEN / "checkpoint" / "config.json").read_text(encoding="utf-8")) | {"pad_token_id": 0}


def base_with(folder, **settings):
    """A folder of nothing but a config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **settings}))
    return folder


def opened(folder):
    """As a script opens a base, up to its weights."""
    choose_family(folder, None, False)
    read_shape(folder)


NUMBERS = (
    *[("hidden_size", value) for value in (0, -1, 1.5, "64", True, 2**40)],
    *[("num_attention_heads", value) for value in (0, -4, "4")],
    *[("num_key_value_heads", value) for value in (0, -2, "2")],
    *[("num_hidden_layers", value) for value in ("4", 0, -1, 100_000)],
    *[("vocab_size", value) for value in ("x", 0, -1, 10**12)],
    *[("max_position_embeddings", value) for value in ("x", 0, -5)],
    ("head_dim", 0),
    ("n_layer", 0),
)


@pytest.mark.parametrize(("name", "value"), NUMBERS)
def test_a_size_that_no_model_can_have_is_named(tmp_path, name, value):
    shown = repr(value)
    with pytest.raises(UserError, match=rf"config.json: {name} is {shown}; expected a whole number from 1 to \d+; "):
        read_config(base_with(tmp_path / "base", **{name: value}))
    with pytest.raises(UserError, match=rf"text_config.{name} is {shown}"):
        read_config(base_with(tmp_path / "base", text_config={name: value}))


@pytest.mark.parametrize(
    "settings",
    [
        {"rms_norm_eps": math.nan},
        {"layer_norm_epsilon": math.inf},
        {"eps": -1e-6},
        {"norm_eps": 3},
        {"layernorm_epsilon": "x"},
        {"rope_theta": math.nan},
        {"rope_parameters": {"factor": math.inf}},
    ],
)
def test_a_number_that_cannot_be_computed_with_is_named(tmp_path, settings):
    with pytest.raises(UserError, match=rf"config.json: {next(iter(settings))}.* is (nan|inf|-1e-06|3|'x'); expected "):
        read_config(base_with(tmp_path / "base", **settings))


def test_settings_of_other_architectures_pass(tmp_path):
    fine = {
        "time_step_limit": [0.0, math.inf],  # Mamba's
        "num_key_value_heads": [2, 4],  # one a layer
        "intermediate_size": 0,
        "head_dim": None,
        "layer_norm_eps": 0,
        "num_steps": 5,
        "vision_config": {"num_hidden_layers": 0},
        "rope_parameters": {"rope_theta": 1e6},
    }
    check_settings(fine, tmp_path / "config.json")


UNUSABLE = (
    ({"num_attention_heads": 3}, r"hidden size \(64\) is not a multiple of the number of attention heads \(3\)"),
    ({"hidden_size": None}, "'hidden_size' expected int"),
    ({"rope_parameters": {"rope_type": "foo", "rope_theta": 1e4}}, "rope_parameters.rope_type foo is not known"),
    ({"rope_scaling": {"type": "foo", "factor": 2.0}}, "rope_scaling.type foo is not known"),
    ({"rope_scaling": {"rope_type": "linear"}}, "Missing required keys"),
    ({"hidden_act": "foo"}, "hidden_act foo is not known"),
    ({"model_type": "foo"}, "model type `foo`"),
    ({"model_type": "t5", "d_model": 8}, "T5Config"),
    ({"auto_map": 5}, "not iterable"),
    ({"quantization_config": 5}, "no attribute"),
    ({"intermediate_size": -1}, "negative dimension"),
)


@pytest.mark.parametrize(("settings", "reason"), UNUSABLE)
def test_a_config_that_transformers_makes_no_model_of_is_one_sentence(tmp_path, settings, reason):
    with pytest.raises(UserError, match=rf"config.json: transformers [\d.]+ can make no model of it \(.*{reason}"):
        opened(base_with(tmp_path / "base", **settings))


@pytest.mark.parametrize("kind", [5, None, ["llama"], {}])
def test_a_model_type_that_is_no_name_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match="config.json: model_type is .*, no name of an architecture"):
        read_config(base_with(tmp_path / "base", model_type=kind))


TEXT = json.dumps(CONFIG)
FILES = {
    "byte order mark": (b"\xef\xbb\xbf" + TEXT.encode(), r": begins with a byte order mark \(BOM\); save it as UTF-8"),
    "GBK": (TEXT.replace("{", '{"注": "知识图谱", ', 1).encode("gbk"), r": not UTF-8 \(byte \d+\); save it as UTF-8"),
    "UTF-16": (TEXT.encode("utf-16"), ": not UTF-8"),
    "deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", r": not JSON \(.*nested too deeply\); download it"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", r": not JSON \(Exceeds the limit"),
    "empty": (b"", r":1: not JSON \(Expecting value\)"),
    "tab": (b'{"a": "\t"}', r":1: not JSON \(Invalid control character\)"),
    "line": (b'{\n"a": 1,\n"b" 2}', r":3: not JSON"),
    "list": (b"[]", ": no JSON object; download it again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", ": a pointer of Git LFS, not the file itself"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_file_that_is_no_json_is_named(tmp_path, case, name):
    base = base_with(tmp_path / "base")
    content, message = FILES[case]
    (base / name).write_bytes(content)
    with pytest.raises(UserError, match=name + message):
        read_config(base) if name == "config.json" else load_codec(base, FAMILIES[-1])


def test_a_pad_beyond_the_embedding_does_not_keep_a_base_from_loading(tmp_path):
    random_llama(tmp_path, num_hidden_layers=1, intermediate_size=16)
    fine = json.loads((tmp_path / "config.json").read_text())
    for pad, changed in ((fine["vocab_size"], True), (-1, False), (0, False), (None, False)):
        (tmp_path / "config.json").write_text(json.dumps({**fine, "pad_token_id": pad}))
        assert bool(pad_beyond(tmp_path)) == changed
        assert read_shape(tmp_path).vocabulary == fine["vocab_size"]
        codec = load_codec(tmp_path, FAMILIES[0])
        model = load_base(tmp_path, Precision("float32", 16), "cpu", codec)
        assert model.config.pad_token_id == codec.pad_id == 0
        assert torch.isfinite(model(torch.tensor([[1, 0, 5]])).logits).all()


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\x80", b'{"eos_token_id": 7, "do_sample": true}', b"[" * 9999])
def test_generation_config_is_not_needed_and_not_read(tmp_path, content):
    model = random_llama(tmp_path, num_hidden_layers=1, intermediate_size=16)
    (tmp_path / "generation_config.json").unlink()
    if content is not None:
        (tmp_path / "generation_config.json").write_bytes(content)
    codec = load_codec(tmp_path, FAMILIES[0])
    found = load_base(tmp_path, Precision("float32", 16), "cpu", codec)
    assert (found.generation_config.eos_token_id, found.generation_config.do_sample) == (2, False)
    ids = torch.tensor([[1, 9, 5]])
    torch.testing.assert_close(found(ids).logits, model(ids).logits)
