"""Every kind of adapter that peft saves and loads: predicted with as peft does, on each engine, merged or not."""

import pytest
import torch
from helpers_adapters import TASK, answers, load, lora, make_adapter, peft_answers, plan, rewrite
from peft import (
    AdaLoraConfig,
    AdaptionPromptConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file

from checkpoints.adapters import as_peft_names, check_weights
from common.errors import UserError


@pytest.fixture(scope="module")
def bare(bases):
    """What each base answers by itself."""
    return {name: peft_answers(folder, None) for name, folder in bases.items()}


NOT_MERGED = {"lora_bias", "prompt tuning", "prefix tuning", "adaption prompt", "P-tuning"}
KINDS = [  # base, what it is called here, configuration, how it is saved
    ("llama", "head", lora("llama", ["lm_head"])),
    ("llama", "head and embedding", lora("llama", target_modules=["embed_tokens", "lm_head"])),
    ("llama", "exclude_modules", lora("llama", exclude_modules=["layers.0.self_attn.q_proj"])),
    ("llama", "module path", lora("llama", target_modules=["layers.1.self_attn.q_proj"])),
    ("llama", "pattern", lora("llama", target_modules=r".*\.[12]\.self_attn\.[kv]_proj")),
    ("llama", "layers_to_transform", lora("llama", layers_to_transform=[1], layers_pattern="layers")),
    ("llama", "DoRA", lora("llama", use_dora=True)),
    ("llama", "lora_bias", lora("llama", lora_bias=True)),
    ("llama", "saved embeddings", lora("llama"), {"save_embedding_layers": True}),
    ("llama", "modules_to_save", lora("llama", modules_to_save=["lm_head", "embed_tokens"])),
    ("llama", "PiSSA", lora("llama", init_lora_weights="pissa")),
    ("llama", "no task", lora("llama", task_type=None)),
    ("llama", "OFT", OFTConfig(target_modules=["q_proj"], oft_block_size=8, r=0)),
    ("llama", "VeRA", VeraConfig(target_modules=["q_proj"], vera_dropout=0.0, d_initial=2.0)),
    ("llama", "prompt tuning", PromptTuningConfig(num_virtual_tokens=4, **TASK)),
    ("llama", "prefix tuning", PrefixTuningConfig(num_virtual_tokens=4, **TASK)),
    ("llama", "adaption prompt", AdaptionPromptConfig(adapter_len=4, adapter_layers=2, **TASK)),
    ("qwen3", "one weight, head", lora("qwen3", ["lm_head"])),
    ("qwen3", "one weight, embedding", lora("qwen3", ["embed_tokens"])),
    ("qwen3", "one weight, tied adapters", lora("qwen3", ["embed_tokens"], ensure_weight_tying=True)),
    ("qwen3", "one weight, saved", lora("qwen3", modules_to_save=["embed_tokens"])),
    ("qwen3", "IA3", IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"])),
    ("gpt2", "every bias", lora("gpt2", bias="all")),
    ("gpt2", "lora_bias beside a bias", lora("gpt2", lora_bias=True)),
    ("gpt2", "turned", lora("gpt2", fan_in_fan_out=True, use_rslora=True, rank_pattern={"c_attn": 7})),
    ("gpt2", "all-linear, one weight", lora("gpt2", target_modules="all-linear", modules_to_save=["wte"])),
    ("gpt2", "P-tuning", PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=32, **TASK)),
    ("gpt2", "tokens", lora("gpt2", trainable_token_indices=[*range(150, 250)])),
    ("chatglm", "its biases", lora("chatglm", ["dense"], bias="lora_only", alpha_pattern={"dense": 30})),
    ("chatglm", "head and embedding", lora("chatglm", ["lm_head", "word_embeddings"])),
    ("chatglm", "LoKr", LoKrConfig(target_modules=["query_key_value"])),
    ("moss", "head and all-linear", lora("moss", target_modules=["qkv_proj", "out_proj", "fc_in", "lm_head"])),
    ("moss", "LoHa", LoHaConfig(target_modules=["qkv_proj", "fc_out"], init_weights=False)),
    ("cpmbee", "strong alphas", lora("cpmbee", ["w_0"], exclude_modules=r".*layers\.[13]\..*w_0")),
    ("cpmbee", "embedding", lora("cpmbee", ["input_embedding"])),
    ("cpmbee", "tokens", TrainableTokensConfig(token_indices=[*range(515)])),
]


@pytest.mark.parametrize(
    ("base", "kind", "config", "saving"),
    [(*case, {})[:4] for case in KINDS],
    ids=[f"{base}: {kind}" for base, kind, *_ in KINDS],
)
def test_answers_are_those_of_peft_on_both_engines_merged_or_not(tmp_path, bases, bare, base, kind, config, saving):
    folder, adapter, known = bases[base], tmp_path / "adapter", base != "gpt2"
    make_adapter(folder, adapter, config, **saving)
    expected = peft_answers(folder, adapter)
    assert expected != bare[base]
    assert answers(folder, adapter)[0] == expected
    if known and config.peft_type == "LORA":
        assert answers(folder, adapter, engine="auto") == (expected, "fast")
    else:
        assert plan(folder, adapter, engine="auto").engine == "batch"
    if kind in NOT_MERGED:
        with pytest.raises(UserError, match="--merge_lora: the adapter .* cannot be merged: .*; drop --merge_lora"):
            plan(folder, adapter, "--merge_lora")
    else:
        assert answers(folder, adapter, "--merge_lora", engine="auto") == (expected, "fast" if known else "batch")


def test_layers_that_are_repeated_are_served_by_batch_and_merged_each_by_itself(tmp_path, bases):
    make_adapter(bases["llama"], tmp_path, lora("llama", layer_replication=[[0, 2], [1, 3]]))
    expected = peft_answers(bases["llama"], tmp_path), "batch"
    assert answers(bases["llama"], tmp_path, engine="auto") == expected
    assert answers(bases["llama"], tmp_path, "--merge_lora", engine="auto") == expected


def test_an_adapter_that_was_pruned_while_it_was_trained_is_loaded(tmp_path, bases):
    ranks = {"target_r": 2, "init_r": 4, "tinit": 1, "tfinal": 1, "deltaT": 1, "total_step": 4}
    model = get_peft_model(
        load(bases["llama"]), AdaLoraConfig(target_modules=["q_proj"], lora_alpha=64, **ranks, **TASK)
    )
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    ids = torch.arange(5, 45).reshape(2, 20)
    for step in range(4):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    assert len({tensor.shape[0] for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}) > 2
    assert answers(bases["llama"], tmp_path)[0] == peft_answers(bases["llama"], tmp_path)


def test_settings_that_older_versions_left_out_are_made_up_for(tmp_path, bases):
    """Of training alone: before peft 0.14 an AdaLoRA's total_step could be null, which today's peft refuses."""
    make_adapter(bases["llama"], tmp_path, AdaLoraConfig(target_modules=["q_proj"], total_step=9, **TASK), size=0.5)
    expected = answers(bases["llama"], tmp_path)
    rewrite(tmp_path, {"total_step": None})
    assert answers(bases["llama"], tmp_path) == expected


def test_biases_that_peft_did_not_save_are_said_to_be_the_bases(tmp_path, bases, capsys):
    make_adapter(bases["gpt2"], tmp_path, lora("gpt2", bias="lora_only"))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rewrite(tmp_path, tensors={name: tensor for name, tensor in tensors.items() if "bias" not in name})
    assert answers(bases["gpt2"], tmp_path)[0] == peft_answers(bases["gpt2"], tmp_path)
    assert capsys.readouterr().err.count("its file lacks the biases that bias = lora_only means") == 1


# by other names


def renamed(**changes):
    def rename(tensors):
        for old, new in changes.items():
            tensors = {name.replace(old.replace("__", "."), new): tensor for name, tensor in tensors.items()}
        return tensors

    return rename


@pytest.mark.parametrize(
    ("base", "config", "rename"),
    [
        ("llama", lora("llama"), renamed(base_model__model__="")),
        ("llama", lora("llama", ["lm_head"]), renamed(lora_A__="lora_A.default.", lora_B__="lora_B.default.")),
        ("llama", lora("llama", ["embed_tokens"]), renamed(lora_embedding_A="lora_embedding_A.default")),
        ("llama", lora("llama", modules_to_save=["lm_head"]), renamed(lm_head__="lm_head.modules_to_save.default.")),
        ("gpt2", lora("gpt2", bias="lora_only"), renamed(base_layer__="")),  # of peft before 0.7
        ("gpt2", lora("gpt2", bias="all"), renamed(base_layer__="")),
    ],
    ids=["short", "default", "default, embedding", "modules_to_save", "old bias", "old biases"],
)
def test_names_of_other_days_mean_the_same(tmp_path, bases, base, config, rename):
    make_adapter(bases[base], tmp_path, config)
    expected = answers(bases[base], tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rewrite(tmp_path, tensors=rename(tensors))
    assert set(check_weights(tmp_path)) != set(tensors)
    assert answers(bases[base], tmp_path) == expected


def test_a_whole_state_dict_is_an_adapter_and_its_base(tmp_path, bases, capsys):
    model = make_adapter(bases["llama"], tmp_path, lora("llama"))
    expected = answers(bases["llama"], tmp_path)
    rewrite(tmp_path, tensors=model.state_dict())
    assert answers(bases["llama"], tmp_path) == expected
    assert "adapter: it brings 30 weights of the base along, e.g. " in capsys.readouterr().err


def test_what_stands_in_front_of_a_prompt_keeps_its_name():
    assert as_peft_names({"prompt_embeddings": 1}) == {"prompt_embeddings": 1}
