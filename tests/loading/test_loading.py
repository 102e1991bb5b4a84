"""Checkpoints and adapters: golden numbers, wrong ones refused before the base is loaded, every bits x dtype works."""

import json
import os
import shutil

import pytest
import torch
from compare_8bit import keep_own
from helpers import GOLDEN, python
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import inference
import test_finetune as finetuning
from checkpoints.adapters import find_adapter
from checkpoints.family import find_family
from common import manifest
from common.errors import UserError
from loading.base import load_base
from loading.lora import load_adapter
from loading.precision import Precision
from loading.quantised import QUANTISATIONS, use_plain_product
from loading.shape import check_vocabulary, read_shape
from tokens.readers import load_codec

BASE, ADAPTER, TRAIN, VALID = (GOLDEN / name for name in ("checkpoint", "adapter", "train.json", "valid.json"))
PREDICTIONS = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["predictions"]


def loaded(base, bits=16, dtype="float32"):
    precision = Precision(dtype, bits)
    return load_base(base, precision, "cpu", load_codec(base, find_family(base)[0])).eval()


def as_safetensors(folder):
    """The golden checkpoint as later repositories have it: safetensors, and today's class name."""
    folder.mkdir()
    for file in BASE.iterdir():
        if not file.name.startswith("pytorch_model"):
            shutil.copy(file, folder)
    weights = {}
    for file in BASE.glob("pytorch_model-*.bin"):
        weights |= torch.load(file, weights_only=True)
    save_file(
        {name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((BASE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    return folder


def copied_adapter(folder, **files):
    shutil.copytree(ADAPTER, folder)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


# golden numbers


@pytest.mark.parametrize("form", ["sharded bin", "safetensors"])
@pytest.mark.parametrize("adapter", [None, "bin", "safetensors"])
def test_logits_are_those_of_2023(tmp_path, form, adapter):
    model = loaded(BASE if form == "sharded bin" else as_safetensors(tmp_path / "base"))
    if adapter == "bin":
        model = load_adapter(model, find_adapter(ADAPTER))
    elif adapter:
        folder = copied_adapter(tmp_path / "adapter")
        save_file(torch.load(folder / "adapter_model.bin", weights_only=True), folder / "adapter_model.safetensors")
        (folder / "adapter_model.bin").unlink()
        model = load_adapter(model, find_adapter(folder))
    cases = [case for case in PREDICTIONS if case["adapter"] == bool(adapter)]
    assert len(cases) == 12
    for case in cases:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([case["prompt_ids"]])).logits[0, -1]
        assert (logits - torch.tensor(case["last_logits"])).abs().max() < 2e-4


def test_settings_of_an_older_peft_are_named_once_and_peft_is_quiet(capsys, recwarn):
    load_adapter(loaded(BASE), find_adapter(ADAPTER))
    said = capsys.readouterr().err
    assert "adapter: settings of another version of peft, without effect: enable_lora, merge_weights" in said
    assert not [warning for warning in recwarn if "Unexpected keyword" in str(warning.message)]


# adapters that are none


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_model__bin", b"", "not a readable adapter"),
        ("adapter_model__bin", b"x" * 443, "not a readable adapter"),
        ("adapter_model__bin", "empty", r"holds no tensor \(\d+ bytes\)"),
        ("adapter_model__bin", "zero", "every lora_B is zero"),
        ("adapter_model__bin", None, "no adapter there"),
        ("adapter_config__json", None, "no adapter there"),
    ],
)
def test_a_broken_adapter_is_listed_with_the_nearest_sound_one(tmp_path, name, content, message):
    run = tmp_path / "run"
    broken = copied_adapter(run / "checkpoint-8")
    file = broken / name.replace("__", ".")
    if content in ("empty", "zero"):
        tensors = torch.load(file, weights_only=True)
        torch.save({} if content == "empty" else {key: torch.zeros_like(t) for key, t in tensors.items()}, file)
    elif content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    left = sorted(path.name for path in broken.iterdir())
    sound = copied_adapter(run / "checkpoint-4")
    copied_adapter(run / "checkpoint-6", adapter_model__bin=b"")
    with pytest.raises(UserError, match=message) as caught:
        find_adapter(broken)
    assert f"found {', '.join(left)}; the newest adapter near it is {sound}" in str(caught.value)


def test_a_run_folder_whose_adapter_lies_in_its_checkpoints_names_the_newest(tmp_path):
    for step in (4, 8):
        config = copied_adapter(tmp_path / "run" / f"checkpoint-{step}") / "adapter_config.json"
        os.utime(config, (step, step))
    with pytest.raises(
        UserError, match=r"found checkpoint-4, checkpoint-8; the newest adapter near it is .*checkpoint-8"
    ):
        find_adapter(tmp_path / "run")
    assert find_adapter(tmp_path / "run" / "checkpoint-4").name == "checkpoint-4"


def test_a_misspelt_folder_names_the_newest_adapter_beside_it(tmp_path):
    for step, name in enumerate(("mine", "yours")):
        os.utime(copied_adapter(tmp_path / name) / "adapter_config.json", (step, step))
    copied_adapter(tmp_path / "broken", adapter_model__bin=b"")
    with pytest.raises(UserError, match="found no such folder; the newest adapter near it is .*yours$"):
        find_adapter(tmp_path / "your")


def test_an_adapter_of_another_run_is_never_suggested(tmp_path):
    copied_adapter(tmp_path / "other")
    broken = copied_adapter(tmp_path / "run", adapter_model__bin=b"")
    with pytest.raises(UserError) as caught:
        find_adapter(broken)
    assert "the newest adapter" not in str(caught.value)


# bases that are none

INDEX = "model.safetensors.index.json"
DAMAGES = {
    "pointer of Git LFS": lambda base: (base / "model.safetensors").write_bytes(b"version https://git-lfs.github.com"),
    "cut off after 5000": lambda base: os.truncate(base / "model.safetensors", 5000),
    "no weights there": lambda base: (base / "model.safetensors").unlink(),
    "config.json: no JSON object": lambda base: (base / "config.json").write_text("[]"),
    "no weight_map": lambda base: (base / "model.safetensors").rename(base / INDEX).write_text("{}"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_base_is_named_before_anything_is_tokenised(tmp_path, monkeypatch, message):
    base = as_safetensors(tmp_path / "base")
    DAMAGES[message](base)
    monkeypatch.setattr(finetuning, "tokenise", lambda *_: pytest.fail("tokenised first"))
    flags = {"model_name_or_path": base, "train_file": TRAIN, "output_dir": tmp_path / "out"}
    with pytest.raises(UserError, match=message):
        finetuning.main(["--do_train", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))])


def test_a_base_that_lacks_a_tensor_is_refused_instead_of_filled_with_random_numbers(tmp_path):
    base = as_safetensors(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.gate_proj.weight"]
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors .*e.g. model.layers.1.mlp.gate_proj.weight"):
        loaded(base)


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused():
    shape = read_shape(BASE)
    check_vocabulary(shape, [[0, shape.vocabulary - 1], []])
    with pytest.raises(UserError, match=f"made the id {shape.vocabulary}, its embedding has {shape.vocabulary} rows"):
        check_vocabulary(shape, [[1], [shape.vocabulary]])


# every combination of bits and dtype


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_bits_and_dtype_trains_and_predicts(tmp_path, bits, dtype):
    out = tmp_path / "adapter"
    flags = ["--do_train", "--model_name_or_path", BASE, "--train_file", TRAIN, "--output_dir", out]
    flags += ["--max_steps", 1, "--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1]
    finetuning.main([str(flag) for flag in [*flags, "--bits", bits, f"--{dtype}", "--learning_rate", "1e-2"]])
    adapter = load_file(out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)
    run = manifest.read_run(out)
    assert run["precision"] == {"name": {"fp16": "float32", "bf16": "bfloat16"}.get(dtype, "float32"), "bits": bits}
    assert run["results"]["weights"] == 333_760  # of four bits each, too, which lie in half as many bytes
    flags = ["--lora_weights", out, "--input_file", VALID, "--output_file", tmp_path / "out.json"]
    inference.main([str(flag) for flag in [*flags, "--max_new_tokens", 3, "--batch_size", 12]])
    assert len((tmp_path / "out.json").read_text(encoding="utf-8").splitlines()) == 12


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_are_quantised_and_the_others_as_the_dtype_says(bits):
    model = loaded(BASE, bits, "bfloat16")
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == {8: "Linear8bitLt", 4: "Linear4bit"}[bits]
    assert layer.weight.dtype == {8: torch.int8, 4: torch.uint8}[bits]
    assert model.lm_head.weight.dtype == torch.bfloat16
    if bits == 4:
        assert (layer.weight.quant_state.quant_type, layer.weight.quant_state.nested) == ("nf4", True)


def test_without_bitsandbytes_everything_else_works_and_bits_say_what_is_missing():
    script = (
        "import sys; sys.modules['bitsandbytes'] = None; sys.path.insert(0, 'src'); import test_finetune, inference\n"
        "from loading.precision import choose_bits; print(choose_bits(8).value)"
    )
    done = python("-c", script)
    assert (done.returncode, done.stdout.strip()) == (0, "16"), done.stderr
    assert "weights: not quantised (--bits 8 needs bitsandbytes: pip install -r requirements.txt)" in done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_8_bit_products_are_those_of_the_dequantised_weight_and_keep_no_input(dtype):
    torch.manual_seed(0)
    layer = loaded(BASE, 8).model.layers[0].mlp.up_proj
    inputs, gradient = torch.randn(3, 7, 64), torch.randn(3, 7, layer.out_features)
    bitsandbytes_own = type(layer).forward(layer, inputs).detach()  # it rounds the inputs too
    weight = layer.state.CB.float() * (layer.state.SCB / 127)[:, None]
    assert use_plain_product(layer) == 1
    kept, hidden = [], inputs.clone().requires_grad_()
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):
        out = layer(hidden)
    out.backward(gradient.to(out.dtype))
    assert {tuple(tensor.shape) for tensor in kept} == {tuple(weight.shape), (layer.out_features,)}  # codes, scales
    exact = 1e-4 if dtype == torch.float32 else 3e-2
    assert out.dtype == dtype
    assert torch.allclose(out.float(), inputs @ weight.T, rtol=exact, atol=exact)
    assert torch.allclose(hidden.grad, gradient @ weight, rtol=exact, atol=exact)
    assert (out - bitsandbytes_own).abs().max() < 0.05 * bitsandbytes_own.abs().max()


def test_products_with_4_bits_are_bitsandbytes_own_without_a_card_and_with_gradients():
    from bitsandbytes.functional import dequantize_4bit

    torch.manual_seed(0)
    layer = loaded(BASE, 4, "bfloat16").model.layers[0].mlp.up_proj
    assert "forward" in vars(layer)
    inputs, gradient = torch.randn(3, 7, 64, dtype=torch.bfloat16), torch.randn(3, 7, layer.out_features).bfloat16()
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    hidden = inputs.clone().requires_grad_()
    layer(hidden).backward(gradient)
    with torch.inference_mode():
        out = layer(inputs)
    assert torch.allclose(out.float(), inputs.float() @ weight.T, rtol=3e-2, atol=3e-2)
    assert torch.allclose(hidden.grad.float(), gradient.float() @ weight, rtol=3e-2, atol=3e-2)


def test_the_benchmarks_can_leave_bitsandbytes_its_own_product(monkeypatch):
    assert "forward" in vars(loaded(BASE, 8).model.layers[0].mlp.up_proj)
    monkeypatch.setitem(QUANTISATIONS, 8, QUANTISATIONS[8]._replace(use_product=keep_own))
    assert "forward" not in vars(loaded(BASE, 8).model.layers[0].mlp.up_proj)


def test_the_turned_layers_of_gpt2_are_linear_layers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2}))
    assert read_shape(tmp_path).sizes["transformer.h.1.attn.c_attn"] == (64, 192)


def test_the_shape_of_a_base_comes_from_its_config_alone():
    shape, model = read_shape(BASE), AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE))
    assert shape.linear + shape.other == sum(p.numel() for p in model.parameters())
    assert shape.sizes["model.layers.0.mlp.up_proj"] == (64, model.config.intermediate_size)
    assert "lm_head" not in shape.sizes
