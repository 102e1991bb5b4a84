"""CPM-Bee's model and answers against the originals' numbers on a tiny checkpoint (golden/cpmbee)."""

import copy
import json
import math

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from helpers_cpmbee import (
    ARRAYS,
    BATCH,
    GOLDEN,
    PRUNED,
    TOKENIZER,
    WEIGHTS,
    folder_with,
    loaded,
    logits_of,
    pruned_folder,
    tensor,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from loading.quantised import use_plain_product
from models.cpmbee import generate, lora_alphas
from models.cpmbee.bias import distance_buckets
from models.cpmbee.modeling import scaled

LAYER = "cpmbee.encoder.layers.0.self_att.self_attention."
TARGETS = ["project_q", "project_k", "project_v", "attention_out", "w_0", "w_1", "w_out"]


def kept_classes(logits):
    """Of the vocabulary every second class lies in the golden file, of the extension table all."""
    vocabulary = GOLDEN["vocab_size"]
    return logits[..., [*range(0, vocabulary, 2), *range(vocabulary, logits.shape[-1])]]


@pytest.fixture(scope="module")
def model():
    return loaded()


@pytest.fixture
def own_model():
    """One that a test may change."""
    return loaded()


@pytest.fixture(scope="module")
def batch():
    return {name: tensor(f"train_{name}") for name in BATCH}


# the forward pass


def test_hidden_states_and_logits_are_the_originals(model, batch):
    seen = {}
    hook = model.cpmbee.register_forward_hook(lambda module, given, hidden: seen.update(hidden=hidden))
    logits, valid = logits_of(model, batch), tensor("train_valid_mask").bool()
    hook.remove()
    assert (seen["hidden"][valid] - tensor("train_hidden_states")[valid]).abs().max() < 1e-4
    assert (kept_classes(logits) - tensor("train_logits")[valid]).abs().max() < 1e-4


def test_loss_and_gradients_are_the_originals(own_model, batch):
    out = own_model(**batch)
    assert abs(out.loss.item() - ARRAYS["train_loss"].item()) < 1e-5
    assert out.logits.shape == ((batch["labels"] >= 0).sum(), GOLDEN["vocab_size"] + 1)
    out.loss.backward()
    for name, parameter in {
        "project_q_layer0": f"{LAYER}project_q.weight",
        "position_bias": "cpmbee.position_bias.relative_attention_bias",
        "input_embedding": "cpmbee.input_embedding.weight",
    }.items():
        assert (own_model.get_parameter(parameter).grad - tensor(f"grad_{name}")).abs().max() < 1e-4


def test_the_loss_of_an_accumulated_batch_is_divided_by_all_its_labels(model, batch):
    labels = int((batch["labels"] >= 0).sum())
    mean, shared = (model(**batch, num_items_in_batch=count).loss.item() for count in (None, 4 * labels))
    assert shared == pytest.approx(mean / 4)


def test_packed_samples_see_nothing_of_each_other_and_examples_only_themselves(model):
    names = {"input_ids": "input", "input_id_sub": "sub", "sample_ids": "sample", "num_segments": "num"}
    names |= {"segment_rel_offset": "off", "segment_rel": "rel", "ext_table_ids": "ext_ids", "ext_table_sub": "ext_sub"}
    names |= {name: name for name in ("length", "context", "segment", "span")}
    packed = {name: tensor(f"packed_{short}") for name, short in names.items()}
    assert packed["sample_ids"].max() == 1
    assert packed["span"].max() == 1
    real = torch.arange(packed["input_ids"].shape[1]) < packed["length"][:, None]
    assert (kept_classes(logits_of(model, packed)) - tensor("packed_logits")[real]).abs().max() < 1e-4


def test_numbered_tokens_are_turned_embeddings(model):
    with torch.no_grad():
        embedded = model.cpmbee.embed(tensor("ext_ids"), tensor("ext_sub"))
    assert (embedded - tensor("ext_embeddings")).abs().max() < 1e-5


def test_distances_fall_into_the_originals_buckets(model):
    config = model.config
    sizes = config.position_bias_num_buckets, config.position_bias_max_distance
    assert torch.equal(distance_buckets(tensor("rel_positions"), *sizes).long(), tensor("rel_position_buckets"))


def test_what_stands_in_the_padding_changes_nothing(model, batch):
    padding = torch.arange(batch["input_ids"].shape[1]) >= batch["length"][:, None]
    assert padding.any()
    torch.manual_seed(0)
    changed = {
        name: torch.where(padding, torch.randint(0, 2, padding.shape), batch[name])
        for name in ("input_ids", "input_id_sub", "context", "segment", "num_segments")
    }
    assert torch.allclose(logits_of(model, {**batch, **changed}), logits_of(model, batch), atol=1e-5)


def test_a_token_that_may_see_nothing_does_not_become_nan(model):
    visible = torch.tensor([[[True, False], [False, False]]])
    bias = model.cpmbee.position_bias(torch.zeros(1, 2, 2, dtype=torch.long), visible)
    assert bias.isinf().nonzero().tolist() == [[0, head, 0, 1] for head in range(4)]


def test_arguments_of_other_models_are_refused(model, batch):
    with pytest.raises(TypeError, match="no use for attention_mask; its batches come from models.cpmbee.collate"):
        model(**batch, attention_mask=batch["context"])


@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.1), (torch.float16, 0.015)])
def test_half_precision_gives_numbers_near_those_of_float32(model, batch, dtype, near):
    half = loaded(dtype=dtype)
    assert half.dtype == dtype
    logits, exact = logits_of(half, batch), logits_of(model, batch)
    assert logits.dtype == dtype
    assert (logits.float() - exact).abs().mean() < near  # false for NaN too
    assert len(generate(half, TOKENIZER, GOLDEN["gen_data"], 5)) == 3


def test_gradient_checkpointing_changes_no_gradient(own_model, batch):
    def gradients():
        own_model.zero_grad()
        own_model(**batch).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in own_model.named_parameters()}

    own_model.train()
    plain, calls = gradients(), []
    own_model.cpmbee.encoder.layers[0].ffn.register_forward_pre_hook(lambda *_: calls.append(1))
    own_model.gradient_checkpointing_enable()
    recomputed = gradients()
    assert len(calls) == 2  # forward, and again in the backward pass
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


def test_dropout_falls_on_training_alone(tmp_path, batch):
    dropping = loaded(folder_with(tmp_path, dropout_p=0.5))
    plain = logits_of(dropping, batch)
    assert torch.equal(plain, logits_of(loaded(), batch))
    assert not torch.allclose(logits_of(dropping.train(), batch), plain, atol=0.1)


# checkpoints


def bare(weights):
    return {name.removeprefix("cpmbee."): weight for name, weight in weights.items()}


def sharded(folder):
    names = sorted(WEIGHTS)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        torch.save({name: WEIGHTS[name] for name in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    where = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(names)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


HEAD = {"lm_head.weight": torch.zeros(515, 64)}  # unused by the originals, so it must not matter what it holds
FORMS = {
    "bin": lambda folder: torch.save(WEIGHTS, folder / "pytorch_model.bin"),
    "sharded bin": sharded,
    "OpenBMB's pt": lambda folder: torch.save(bare(WEIGHTS), folder / "cpm-bee.pt"),
    "a head": lambda folder: save_file(WEIGHTS | HEAD, folder / "model.safetensors", {"format": "pt"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_holds_the_same_model(tmp_path, model, batch, form):
    FORMS[form](folder_with(tmp_path, weights=None))
    other = loaded(tmp_path)
    assert other.lm_head.weight is other.cpmbee.input_embedding.weight
    assert torch.equal(logits_of(other, batch), logits_of(model, batch))


def test_dtype_and_bits_are_heeded_for_openbmb_files_too(tmp_path):
    FORMS["OpenBMB's pt"](folder_with(tmp_path, weights=None))
    assert loaded(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    quantised = loaded(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map={"": "cpu"})
    assert quantised.get_submodule(f"{LAYER}project_q").weight.dtype == torch.int8


def test_a_checkpoint_that_lacks_a_tensor_says_so(tmp_path):
    few = {name: weight for name, weight in WEIGHTS.items() if name != f"{LAYER}project_k.weight"}
    _, found = AutoModelForCausalLM.from_pretrained(folder_with(tmp_path, few), output_loading_info=True)
    assert found["missing_keys"] == {f"{LAYER}project_k.weight"}


def test_a_saved_model_holds_the_tensors_it_was_loaded_from(tmp_path, model, batch):
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == WEIGHTS.keys()
    for name, weight in WEIGHTS.items():
        assert torch.equal(saved[name], weight), name
    again = loaded(tmp_path / "saved")
    assert torch.equal(logits_of(again, batch), logits_of(model, batch))
    assert again.config.distance_scale == 16


def test_a_pruned_part_lets_the_hidden_state_pass(tmp_path, own_model, batch):
    pruned = loaded(pruned_folder(tmp_path))
    for layer, (attention, ffn) in zip(own_model.cpmbee.encoder.layers, PRUNED, strict=True):

        def forward(hidden, bias, past_key_values=None, layer=layer, attention=attention, ffn=ffn):
            if not attention:
                hidden = (hidden + layer.self_att(hidden, bias)) / 1.05
            return hidden if ffn else (hidden + layer.ffn(hidden)) / 1.05

        layer.forward = forward
    assert torch.equal(logits_of(pruned, batch), logits_of(own_model, batch))
    assert {name.split(".")[3] for name, _ in pruned.named_parameters() if ".layers." in name} == {"0", "1", "3"}


def test_mask_modules_of_another_length_are_named(tmp_path):
    with pytest.raises(ValueError, match="mask_modules: expected 4 pairs"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder_with(tmp_path, mask_modules=PRUNED[:3])))


def test_a_new_model_has_weights_of_the_configs_size(tmp_path):
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder_with(tmp_path, None, init_std=0.5)))
    for name, parameter in fresh.named_parameters():
        assert parameter.detach().std().item() == pytest.approx(0 if "layernorm" in name else 0.5, abs=0.05), name
    assert fresh.lm_head.weight is fresh.cpmbee.input_embedding.weight


# adapters and few bits


def adapted(model, targets=TARGETS):
    """With an adapter, of rank 8 and alpha 16, that has learnt something."""
    pattern = lora_alphas(model.config, 16, targets)
    config = LoraConfig(r=8, lora_alpha=16, alpha_pattern=pattern, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model.eval()


def test_an_adapter_has_its_usual_strength(own_model):
    for name in TARGETS:
        own = next(module for path, module in own_model.named_modules() if path.endswith(name))
        inputs, plain = torch.randn(3, own.in_features), copy.deepcopy(own)
        module = next(m for path, m in adapted(own_model).named_modules() if path.endswith(name))
        change = module.lora_B["default"].weight @ module.lora_A["default"].weight * 16 / 8
        expected = inputs @ (plain.weight / math.sqrt(own.in_features) + change).T
        assert (inputs @ change.T).abs().max() > 0.1
        assert torch.allclose(scaled(module, inputs), expected, atol=1e-4), name
        own_model = loaded()


def test_adapters_on_every_layer_leave_none_weak(model):
    every = lora_alphas(model.config, 16, TARGETS)
    linear = {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert every.keys() == linear - {"lm_head"}
    assert lora_alphas(model.config, 16, ("all-linear",)) == lora_alphas(model.config, 16, "all-linear") == every
    assert lora_alphas(model.config, 16, ("w_out",)) == {"w_out": 16 * math.sqrt(96)}


def test_a_merged_adapter_answers_as_before(own_model, batch):
    base, adapter = logits_of(own_model, batch), adapted(own_model)
    logits, answers = logits_of(adapter, batch), generate(adapter, TOKENIZER, GOLDEN["gen_data"], 8)
    assert (logits - base).abs().max() > 1
    merged = adapter.merge_and_unload()
    assert (logits_of(merged, batch) - logits).abs().max() < 2e-3
    assert generate(merged, TOKENIZER, GOLDEN["gen_data"], 8) == answers


def rounded(layer):
    """What a layer of 8 or 4 bits holds, as plain numbers."""
    if type(layer).__name__ == "Linear8bitLt":
        return layer.weight.CB.float() * (layer.weight.SCB / 127)[:, None]
    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


@pytest.mark.parametrize(
    ("options", "kind", "numbers"),
    [
        ({"load_in_8bit": True}, "Linear8bitLt", torch.int8),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "Linear4bit", torch.uint8),
    ],
)
def test_few_bits_multiply_by_the_rounded_weights_and_train_an_adapter(own_model, batch, options, kind, numbers):
    quantised = BitsAndBytesConfig(**options)
    small = loaded(quantization_config=quantised, device_map={"": "cpu"}, dtype=torch.float32)
    layers = {name: module for name, module in small.named_modules() if type(module).__name__ == kind}
    assert len(layers) == 4 * len(TARGETS)  # all but the head
    for name, layer in layers.items():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # as loading.base: sizes here are no multiples of 64
        assert layer.weight.dtype == numbers
        own_model.get_submodule(name).weight.data = rounded(layer)
    expected = logits_of(own_model, batch).flatten()
    assert torch.cosine_similarity(logits_of(small, batch).flatten(), expected, dim=0) > 0.99

    small = adapted(small, ["project_q", "project_v"])
    if kind == "Linear8bitLt":
        use_plain_product(small)
    small(**batch).loss.backward()
    gradients = {name: p.grad for name, p in small.named_parameters() if p.requires_grad}
    assert len(gradients) == 4 * 2 * 2
    assert all(gradient.any() for gradient in gradients.values())
