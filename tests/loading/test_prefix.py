"""P-Tuning's prefix: on every supported architecture, in 32 bits over any base, and in a model of its own encoder."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers import CHATGLM, published
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import models.moss  # noqa: F401 - teaches transformers its name
from checkpoints import prefixes
from checkpoints.family import find_family
from checkpoints.prefixes import Kind, find_prefix
from common.errors import UserError
from decoding.answers import Rules
from decoding.batch_engine import generate
from loading import prefix
from loading.precision import Precision
from loading.prefix import Prefixed, load_trained, load_with_prefix, named, save_prefix
from loading.shape import read_shape
from models.families import FAMILIES
from tokens.readers import load_codec
from training import deepspeed_engine

FLOAT32 = Precision("float32", 16)
SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 256, "pad_token_id": 0}
GROUPED = {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
GPT |= {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0}
MORE = {
    **dict.fromkeys(["llama", "mistral", "mixtral", "qwen2", "phi3", "granite", "smollm3", "starcoder2"], GROUPED),
    **dict.fromkeys(["exaone4", "olmo2"], GROUPED),
    **dict.fromkeys(["qwen3", "gemma", "gemma2", "gemma3_text"], GROUPED | {"head_dim": 16}),
    **dict.fromkeys(["glm", "glm4", "ernie4_5", "hunyuan_v1_dense"], GROUPED | {"head_dim": 8}),
    **dict.fromkeys(["gpt2", "gpt_bigcode"], GPT),
    **dict.fromkeys(["gptj", "codegen", "moss"], GPT | {"rotary_dim": 4}),
    "qwen2_moe": GROUPED | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "stablelm": {"num_key_value_heads": 4},
    "bloom": {"n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0, "layerdrop": 0},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]], "resid_dropout": 0},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
}


def random_model(model_type, projection=True):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**{**SIZES, **MORE.get(model_type, {})})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:
            parameter.normal_(0, 0.15)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    settings = prefix.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=projection)
    peft = prefix.get_peft_model(model, settings)
    return Prefixed(model, peft.prompt_encoder["default"], peft=peft).eval()


def logits(model, rows, keep=None):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return model.read(ids, mask, logits_to_keep=torch.arange(width) if keep is None else keep).logits


class Letters:
    """A codec whose text is its ids."""

    pad_id, eos_id, context = 0, 99, None

    def decode(self, ids):
        return " ".join(map(str, ids))


SUPPORTED = list(dict.fromkeys(one for family in FAMILIES for one in family.prefix_types))
NO_RECOMPUTING = [one for family in FAMILIES for one in family.prefix_keeps]


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_the_prefix_works_on(model_type):
    """It is seen; rows padded right, padded left and read token by token are alike, and so are both gradients."""
    model, rows = random_model(model_type), [[5, 17, 3, 44, 60, 8, 21], [70, 9, 33, 2]]
    plain = model.base(input_ids=torch.tensor(rows[:1])).logits
    together, single = logits(model, rows), [logits(model, [row])[0] for row in rows]
    assert (single[0] - plain[0]).abs().max() > 0.05
    for row, found, alone in zip(rows, together, single, strict=True):
        torch.testing.assert_close(found[: len(row)], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(model, rows[:1], torch.tensor([2, 6]))[0], single[0][[2, 6]])
    expected = []
    for row in rows:
        row, new = list(row), []
        while len(new) < 5 and new[-1:] != [99]:
            new.append(int(logits(model, [row])[0, -1].argmax()))
            row.append(new[-1])
        expected.append(Letters().decode([number for number in new if number != 99]))
    assert [answer.text for answer in generate(model, Letters(), rows, Rules(5))] == expected
    assert [generate(model, Letters(), [row], Rules(5))[0].text for row in rows] == expected

    def gradients():
        model.train().zero_grad()
        logits(model, rows).logsumexp(-1).mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    before = gradients()
    assert len(before) == 5
    assert all(gradient.abs().max() > 0 for gradient in before)
    if model_type not in NO_RECOMPUTING:
        model.recompute()
        layers = [module for module in model.base.modules() if getattr(module, "gradient_checkpointing", False)]
        assert layers
        for one, two in zip(before, gradients(), strict=True):
            torch.testing.assert_close(one, two)


def test_the_lists_of_architectures_agree():
    assert set(NO_RECOMPUTING) < set(SUPPORTED)
    assert set(MORE) <= set(SUPPORTED)


@pytest.mark.parametrize("projection", [True, False])
def test_the_number_of_weights_is_known_before_the_base_is_loaded(random_base, projection):
    kind, codec = Kind(5, projection), load_codec(random_base, find_family(random_base)[0])
    model = load_with_prefix(random_base, find_family(random_base)[0], kind, FLOAT32, "cpu", codec)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == prefixes.count_weights(read_shape(random_base), kind)
    grouped = random_model("llama", projection)  # two keys for four heads: the prefix is narrower than the random_base
    grouped.base.config.save_pretrained(random_base.parent / "grouped")
    expected = prefixes.count_weights(read_shape(random_base.parent / "grouped"), Kind(3, projection))
    assert sum(parameter.numel() for parameter in grouped.parameters()) == expected


def test_the_prefix_stays_in_32_bits_over_a_base_in_16_and_is_all_that_is_trained(random_base):
    family = find_family(random_base)[0]
    codec = load_codec(random_base, family)
    model = load_with_prefix(random_base, family, Kind(4, True), Precision("bfloat16", 16), "cpu", codec)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.base.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.base.parameters())
    assert logits(model, [[5, 6, 7]]).dtype == torch.bfloat16


@pytest.mark.parametrize("projection", [True, False])
def test_a_models_own_encoder_is_trained_saved_by_full_names_and_loaded(chatglm, tmp_path, projection):
    kind, (base, codec) = Kind(4, projection), chatglm
    own = find_family(base)[0]
    torch.manual_seed(0)
    model = load_with_prefix(base, own, kind, FLOAT32, "cpu", codec)
    trained = [name for name, parameter in model.base.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(name.startswith("transformer.prefix_encoder.") for name in trained)
    assert sum(p.numel() for p in model.parameters()) == prefixes.count_weights(read_shape(base), kind)
    save_prefix(model.eval(), base, kind, tmp_path)
    saved = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert saved.keys() == named(model).keys()
    assert json.loads((tmp_path / "config.json").read_text())["pre_seq_len"] == 4
    assert find_prefix(tmp_path, own, read_shape(base)) == kind
    again = load_trained(base, own, kind, tmp_path, FLOAT32, "cpu", codec).eval()
    ids = codec.text_ids("北京是中国的首都。") + list(codec.suffix_ids)
    assert torch.equal(logits(model, [ids]), logits(again, [ids]))
    answers = generate(again, codec, [ids, ids[3:]], Rules(5))
    assert answers == [generate(again, codec, [row], Rules(5))[0] for row in (ids, ids[3:])]


@pytest.mark.parametrize("name", ["ptv2-mlp", "ptv2-emb"])
def test_a_whole_model_with_its_encoder_is_a_checkpoint_too(tmp_path, name):
    """Of the published script: its prefix is taken out of it, and over its own base it answers as it does itself."""
    folder, codec = published(name, tmp_path / name)
    own = find_family(folder)[0]
    kind = find_prefix(folder, own, read_shape(folder))
    assert kind.projection == (name == "ptv2-mlp")
    model = load_trained(folder, own, kind, folder, FLOAT32, "cpu", codec).eval()
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [*codec.text_ids("北京是中国的首都。"), *codec.suffix_ids]
    torch.testing.assert_close(logits(model, [ids]), whole(input_ids=torch.tensor([ids])).logits)
    with pytest.raises(UserError, match="it was trained on another base"):
        find_prefix(folder, own, read_shape(CHATGLM / "base")._replace(cached=7))


def test_a_large_weight_is_trained_in_parts_and_saved_as_one(chatglm, tmp_path):
    folder, codec = chatglm
    family, kind, found = find_family(folder)[0], Kind(4, True), []
    for most in (prefix.MOST_OF_A_PART, 1000):
        torch.manual_seed(0)
        model = load_with_prefix(folder, family, kind, FLOAT32, "cpu", codec, most_of_a_part=most).eval()
        made = model.encoder()
        made.square().sum().backward()
        gradients = [parameter.grad.flatten() for parameter in model.encoder.trans[2].parameters()]
        found.append((model, made, torch.cat(gradients)))
    (whole, *numbers), (parted, *same) = found
    assert max(part.numel() for part in parted.encoder.trans[2].parts()) <= 1000
    assert not hasattr(whole.encoder.trans[2], "parts")
    torch.testing.assert_close(same[0], numbers[0])
    torch.testing.assert_close(same[1].sum(), numbers[1].sum())
    torch.testing.assert_close(same[1].norm(), numbers[1].norm())
    assert named(whole).keys() == named(parted).keys()
    for name, tensor in named(whole).items():
        assert torch.equal(named(parted)[name], tensor), name
    save_prefix(parted, folder, kind, tmp_path)
    trained = load_trained(folder, family, kind, tmp_path, FLOAT32, "cpu", codec).eval()
    torch.testing.assert_close(trained.encoder(), numbers[0])


def test_a_part_is_below_what_deepspeed_copies():
    arguments = {"train_batch_size": 1, "gradient_accumulation_steps": 1, "max_grad_norm": 1, "deepspeed": None}
    config = deepspeed_engine.make_config(SimpleNamespace(**arguments))
    assert config["zero_optimization"]["reduce_bucket_size"] > prefix.MOST_OF_A_PART


def test_a_whole_model_with_another_prefix_can_be_the_base(tmp_path):
    folder, codec = published("ptv2-mlp", tmp_path / "whole")
    model = load_with_prefix(folder, find_family(folder)[0], Kind(7, True), FLOAT32, "cpu", codec)
    assert model.encoder().shape[0] == 7
