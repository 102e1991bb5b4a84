"""Adapters that are none, or none of this base, or that cannot be served: one reason, before any weight is loaded."""

import json
import shutil

import pytest
import torch
from helpers_adapters import TASK, answers, load, lora, make_adapter, plan, rewrite
from peft import LoHaConfig, MultitaskPromptTuningConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

import test_finetune as finetuning
from checkpoints.adapters import find_adapter, read_adapter_config
from common.errors import UserError
from loading.adapted import check_adapter, empty_base
from loading.lora import load_adapter


@pytest.fixture
def saved(tmp_path, bases):
    """A LoRA adapter of the golden LLaMA."""
    make_adapter(bases["llama"], tmp_path / "saved", lora("llama"))
    return tmp_path / "saved"


def refusal(base, adapter, *more):
    with pytest.raises(UserError) as caught:
        plan(base, adapter, *more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "saving"),
    [
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, {}),
        ({}, {"save_embedding_layers": True}),
        ({"target_modules": ["lm_head"]}, {"save_embedding_layers": False}),
        ({"target_modules": ["embed_tokens"]}, {"save_embedding_layers": False}),
    ],
)
def test_an_adapter_of_a_larger_vocabulary_is_told_so(tmp_path, bases, settings, saving):
    model = load(bases["llama"])
    model.resize_token_embeddings(1503)
    model = get_peft_model(model, lora("llama", **settings))
    for weight in model.parameters():
        weight.data += 0.1
    model.save_pretrained(tmp_path, **saving)
    said = refusal(bases["llama"], tmp_path)
    assert "it was trained with a vocabulary of 1503 tokens, and this base has 1500" in said
    assert "resize_token_embeddings(1503)" in said


FRONT = {"num_virtual_tokens": 2, **TASK}
UNSERVED = {
    "answers by the number of a task": (
        "llama",
        MultitaskPromptTuningConfig(num_virtual_tokens=2, num_tasks=2, **TASK),
    ),
    "family chatglm takes tokens only": ("chatglm", PromptTuningConfig(num_virtual_tokens=2, **TASK)),
    "family cpm-bee takes tokens only": ("cpmbee", PromptTuningConfig(num_virtual_tokens=2, **TASK)),
    "the cache of model_type chatglm takes no prefix": ("chatglm", PrefixTuningConfig(num_virtual_tokens=2, **TASK)),
    "does not look for alora_invocation_tokens": ("cpmbee", lora("cpmbee", alora_invocation_tokens=[5])),
    "model_type qwen3 has layers of several kinds": ("qwen3", lora("qwen3", layer_replication=[[0, 2], [1, 3]])),
}


@pytest.mark.parametrize("reason", UNSERVED)
def test_what_cannot_be_served_is_refused_by_its_reason(tmp_path, bases, reason):
    base, config = UNSERVED[reason]
    make_adapter(bases[base], tmp_path, config)
    assert reason in refusal(bases[base], tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "NEWEST"}, "adapter_config.json: peft_type NEWEST is no kind of adapter that peft .* knows"),
        ({"task_type": "SEQ_CLS"}, "cannot be served: it was trained for the task SEQ_CLS, not to write answers"),
        ({"enable_lora": [True, False, True]}, "adapter_config.json: enable_lora is not supported"),
        ({"megatron_config": {"a": 1}}, "adapter_config.json: megatron_config is not supported"),
        ({"target_modules": ["c_attn"]}, "does not fit this base model: Target modules .*c_attn.* not found"),
        ({"target_modules": "(("}, "does not fit this base model: "),
        ({"r": 8}, "lora_A.weight is 4 x 64, with this base and adapter_config.json it would be 8 x 64"),
        (
            {"target_modules": ["q_proj", "k_proj"]},
            "its file holds 6 tensors that its adapter_config.json does ",
        ),
        ({"modules_to_save": ["lm_head"]}, "its file lacks 1 of the 13 tensors that its adapter_config.json asks for"),
        ({"layers_to_transform": [0, 1]}, "its file holds 4 tensors that its adapter_config.json does not ask for"),
        ({"bias": "some"}, "bias"),
    ],
)
def test_settings_that_are_not_of_the_file_or_the_base_are_named(bases, saved, settings, reason):
    rewrite(saved, settings)
    with pytest.raises(UserError, match=reason):
        plan(bases["llama"], saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 128}, "q_proj.lora_A.weight is 4 x 64, with this base and .* it would be 4 x 128"),
        ({"num_hidden_layers": 1}, r"the base has no layer model.layers.1.self_attn.q_proj"),
        ({"num_hidden_layers": 7}, r"its file lacks 16 of the 28 tensors .*it is incomplete, or of a smaller base"),
        ({"model_type": "gpt2", "n_embd": 64}, "Target modules .* not found in the base model"),
    ],
)
def test_an_adapter_of_another_base_is_refused_without_loading_weights(tmp_path, bases, saved, changes, message):
    base = tmp_path / "base"
    base.mkdir()
    config = json.loads((bases["llama"] / "config.json").read_text()) | changes
    (base / "config.json").write_text(json.dumps(config))  # and no weights, that anything could load
    serving = plan(bases["llama"], saved).serving
    with pytest.raises(UserError, match=message) as caught:
        check_adapter(saved, base, serving.family, serving.precision)
    assert f"--lora_weights {saved} (trained on " in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {n: t for n, t in tensors.items() if "lora_A" in n}, "its file lacks 6 of"),
        (lambda tensors: {n: t for n, t in tensors.items() if "layers.1" not in n or "lora_A" in n}, "file lacks 2 of"),
        (
            lambda tensors: {**tensors, "base_model.model.model.foo.lora_A.weight": torch.ones(8, 64)},
            "the base has no layer model.foo",
        ),
        (lambda tensors: {n: t * float("nan") for n, t in tensors.items()}, "holds NaN or infinity"),
        (
            lambda tensors: {n: (t * float("nan")).to(torch.float8_e4m3fn) for n, t in tensors.items()},
            "NaN or infinity",
        ),
        (lambda tensors: {n: torch.ones(0) for n in tensors}, "12 tensors hold no number, .*DeepSpeed's ZeRO-3"),
        (lambda tensors: {n: t.to("meta") for n, t in tensors.items()}, "something else than tensors"),
        (lambda tensors: [1], "something else than tensors"),
    ],
)
def test_a_partial_or_damaged_adapter_never_answers_as_the_bare_base(bases, saved, change, message):
    rewrite(saved, tensors=change(load_file(saved / "adapter_model.safetensors")))
    with pytest.raises(UserError, match=message):
        plan(bases["llama"], saved)


def test_loading_by_itself_checks_as_well(bases, saved):
    tensors = load_file(saved / "adapter_model.safetensors")
    rewrite(saved, tensors={name: tensor for name, tensor in tensors.items() if "layers.1" not in name})
    with pytest.raises(UserError, match="its file lacks 4 of the 12 tensors"):
        load_adapter(load(bases["llama"]), saved)


def test_a_file_of_more_than_tensors_is_refused_without_advice_to_run_it(bases, saved):
    (saved / "adapter_model.safetensors").unlink()
    torch.save({"a": pytest.Item}, saved / "adapter_model.bin")
    said = refusal(bases["llama"], saved)
    assert "holds more than tensors, which is never run" in said
    assert "weights_only" not in said


# a configuration of nonsense


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("r", 0, "a whole number above 0"),
        ("r", True, "a whole number above 0"),
        ("r", "8", "a whole number above 0"),
        ("lora_alpha", 0, "a number other than 0"),
        ("lora_alpha", None, "a number other than 0"),
        ("lora_dropout", 2, "a number from 0 to 1"),
        ("use_rslora", "false", "true or false"),
        ("target_modules", {"q_proj": 1}, "a name, a list of names, or null"),
        ("exclude_modules", [1], "a name, a list of names, or null"),
        ("modules_to_save", "lm_head", "a list of names, or null"),
        ("layers_to_transform", [0.5], "a number, a list of numbers, or null"),
        ("rank_pattern", {"q_proj": 0}, "whole numbers above 0 by name"),
        ("alpha_pattern", {"q_proj": "x"}, "numbers by name"),
        ("bias", ["all"], "none, all or lora_only"),
    ],
)
def test_a_setting_of_another_kind_is_named_with_what_it_should_be(saved, name, value, expected):
    rewrite(saved, {name: value})
    with pytest.raises(UserError) as caught:
        find_adapter(saved)
    assert f"adapter_config.json: {name} is {json.dumps(value)}; expected {expected}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON in UTF-8"),
        (b"[]", "names no peft_type"),
        (b"{}", "names no peft_type"),
        (b'{"peft_type": ["LORA"]}', "names no peft_type"),
        ('{"peft_type": "低秩"}'.encode("gbk"), "not JSON in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"peft_type": "LORA", "lora_alpha": NaN}', "holds NaN, which is no number"),
        (b'{"peft_type": "LORA", "lora_alpha": 1e999}', "holds 1e999, which is no number"),
        (b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}", "not JSON in UTF-8"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_clear_error(saved, content, message):
    (saved / "adapter_config.json").write_bytes(content)
    with pytest.raises(UserError, match=f"adapter_config.json: {message}"):
        find_adapter(saved)


def test_a_byte_order_mark_before_the_configuration_does_no_harm(bases, saved):
    expected, file = answers(bases["llama"], saved), saved / "adapter_config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_adapter_config(saved)["r"] == 4
    assert answers(bases["llama"], saved) == expected


# over few bits


@pytest.mark.parametrize("bits", [8, 4])
def test_over_few_bits_peft_has_layers_for_some_kinds_only(tmp_path, bases, bits):
    dora, other = tmp_path / "dora", tmp_path / "other"
    make_adapter(bases["llama"], dora, lora("llama", use_dora=True))
    assert answers(bases["llama"], dora, "--bits", bits)[0] != answers(bases["llama"], None, "--bits", bits)[0]
    make_adapter(bases["llama"], other, LoHaConfig(target_modules=["q_proj"], init_weights=False))
    if bits == 4:
        assert "peft has no such layers over weights of 4 bits; drop --bits 4" in refusal(
            bases["llama"], other, "--bits", bits
        )
    else:
        assert plan(bases["llama"], other, "--bits", bits).serving.precision.bits == 8


# a base with an adapter inside


def test_an_adapter_inside_a_base_is_never_applied_in_silence(tmp_path, bases, saved):
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    shutil.copytree(saved, base, dirs_exist_ok=True)
    for adapter in (None, saved, base):
        said = refusal(base, adapter)
        assert f"--model_name_or_path {base} holds an adapter (adapter_config.json) beside the model" in said
    flags = f"--model_name_or_path {base} --train_file x --output_dir {tmp_path / 'out'}"
    with pytest.raises(UserError, match="holds an adapter"):
        finetuning.main(["--do_train", *flags.split()])
    assert "is a LoRA adapter, not a base model" in refusal(saved, None)


def test_a_base_whose_shape_nobody_knows_is_left_to_loading(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "somebody-elses"}')
    assert empty_base(tmp_path) is None
