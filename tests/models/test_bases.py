"""Bases by name, tiny and random: loss, gradients and answers are those of plain transformers and peft."""

import pytest
import torch
from helpers import ROOT
from helpers_adapters import RECORDS, answers, plan
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from checkpoints.family import find_family
from data.prompts import load_template
from decoding.answers import cut_answer
from loading.base import load_base
from loading.lora import add_lora
from loading.memory import adapter_weights
from loading.precision import Precision
from loading.shape import read_shape
from models.moss import load_tokenizer
from ops.packed_attention import why_not
from prediction.questions import ask_all
from tokens.batches import IGNORED, pack
from tokens.readers import load_codec
from tokens.rows import Limits

NEW = 6  # tokens of an answer, as in helpers_adapters
SIZES = {"vocab_size": 520, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048}
SIZES |= {"bos_token_id": 516, "eos_token_id": 518, "pad_token_id": 0}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
WINDOW = {"sliding_window": 4}
MORE = {
    "minicpm3": LATENT | {"num_key_value_heads": 4, "head_dim": 4, "dim_model_base": 16},
    "gemma2": WINDOW,
    "gemma3_text": WINDOW | {"layer_types": ["sliding_attention", "full_attention"]},
    "mistral": WINDOW,
}
STD = {"gemma": 0.02, "minicpm3": 0.02}
NAMED = {  # model type -> name, and the engine that is chosen
    "qwen2": ("qwen", "fast"),
    "qwen3": ("qwen", "fast"),
    "llama": ("llama3", "fast"),
    "glm": ("glm4", "fast"),
    "glm4": ("glm4", "fast"),
    "mistral": ("mistral", "fast"),
    "gemma": ("gemma", "fast"),
    "gemma2": ("gemma", "batch"),
    "gemma3_text": ("gemma", "fast"),
    "internlm3": ("internlm3", "fast"),
    "minicpm3": ("minicpm3", "batch"),
}


@pytest.fixture(scope="module", params=NAMED)
def base(request, tmp_path_factory):
    """Model type, and the folder of such a base with a tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[request.param](**SIZES | MORE.get(request.param, {})))
    for name, weight in model.named_parameters():
        if weight.dim() > 1:  # an embedding that is scaled up, and the head too, would say its last token for ever
            torch.nn.init.normal_(weight, std=STD.get(request.param, 0.2) if "embed_tokens" in name else 0.2)
    model.save_pretrained(folder)
    load_tokenizer(ROOT / "tests" / "golden" / "moss").save_pretrained(folder)
    return request.param, folder


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def test_loss_and_gradients_are_those_of_plain_transformers_and_peft(base):
    """Padded as this project does, packed where the base can, against a row at a time with labels of the whole row."""
    model_type, folder = base
    name = NAMED[model_type][0]
    family, found, _ = find_family(folder, name)
    assert found == name
    codec = load_codec(folder, family)
    template = load_template("plain")  # short
    assert family.templates[name] == "alpaca"
    outputs = ("(米卡,位于,北京)", "(fox,a,12),(A,a,B)", "无")
    records = [record | {"output": output} for record, output in zip(RECORDS, outputs, strict=True)]
    made = [codec.row(template, record, Limits(2048)) for record in records]

    ours = add_lora(load_base(folder, Precision("float32", 16), "cpu", codec), family.lora_targets, 4, 8, 0.0)
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0, target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(plain(folder), config)
    torch.manual_seed(2)
    weights = {n: torch.randn_like(w) * 0.1 for n, w in peft.named_parameters() if w.requires_grad}
    assert weights.keys() == {n for n, w in ours.named_parameters() if w.requires_grad}
    for model in (ours, peft):
        model.load_state_dict(weights, strict=False)

    learnt = sum(sum(label != IGNORED for label in row["labels"]) for row in made)
    expected = 0
    for row in made:
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        count = int((labels != IGNORED).sum())
        expected = expected + peft(input_ids=ids, labels=labels).loss * count / learnt
    expected.backward()
    gradients = {n: w.grad for n, w in peft.named_parameters() if w.requires_grad}
    assert all(gradient.any() for gradient in gradients.values())

    ways = [codec.collator()]
    if why_not(ours.config, family.packed_types, torch.device("cpu"), torch.float32) is None:
        ways.append(pack)
    assert len(ways) == (1 if model_type in ("gemma2", "minicpm3") else 2)
    for collate in ways:
        ours.zero_grad()
        loss = ours(**collate(made), use_cache=False).loss
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
        loss.backward()
        for part, weight in ours.named_parameters():
            if weight.requires_grad:
                torch.testing.assert_close(weight.grad, gradients[part], rtol=1e-3, atol=1e-5)

    shape = read_shape(folder)
    assert shape.linear + shape.other == sum(weight.numel() for weight in plain(folder).parameters())
    assert adapter_weights(shape, family.lora_targets, 4) == sum(weight.numel() for weight in weights.values())


def test_answers_are_those_of_plain_transformers(base):
    model_type, folder = base
    name, engine = NAMED[model_type]
    codec, model = load_codec(folder, find_family(folder, name)[0]), plain(folder).eval()
    expected = []
    for question in ask_all(plan(folder, None), RECORDS, None):
        ids = torch.tensor([question.ids])
        ends = {"eos_token_id": codec.eos_id, "pad_token_id": codec.pad_id}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **ends)
        expected.append(cut_answer(codec, out[0, ids.shape[1] :].tolist()).text)
    assert len(set(expected)) > 1
    for asked in ("batch", "auto"):
        found = answers(folder, None, "--model_name", name, engine=asked)
        assert found == (expected, engine if asked == "auto" else "batch")
