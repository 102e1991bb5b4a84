"""The loss in pieces: equal to that of all logits together, with its gradient, and only where the head is apart."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from ops.answer_loss import IGNORED, by_pieces, head_is_apart

SIZES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
SIZES |= {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
LABELS = torch.tensor([[5, IGNORED, 17, 3, IGNORED, 44], [IGNORED, 60, 8, IGNORED, IGNORED, 21]])
BATCH = {
    "input_ids": torch.tensor([[7, 9, 33, 2, 70, 12, 5], [5, 17, 3, 44, 60, 8, 0]]),
    "attention_mask": torch.tensor([[1] * 7, [1] * 6 + [0]]),
    "labels": LABELS,
    "shift_labels": LABELS,
    "logits_to_keep": torch.arange(1, 7),
    "use_cache": False,
}


def random_model(model_type, **more):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**SIZES, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize(
    ("model_type", "apart"),
    [("llama", True), ("qwen3", True), ("gemma3_text", True), ("gemma2", False), ("granite", False), ("cohere", False)],
)
def test_a_head_is_apart_where_logits_are_neither_capped_nor_scaled(model_type, apart):
    model = random_model(model_type, **({"logits_scaling": 4.0} if model_type == "granite" else {}))
    before = model(**BATCH)
    assert head_is_apart(model) is apart
    after = model(**BATCH)  # which it leaves as it was
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
    with torch.device("meta"):
        assert head_is_apart(AutoModelForCausalLM.from_config(model.config)) is apart


def learn(model, **batch):
    """The loss of a batch, twice as large as a mean would give it, and the gradients of what is trained."""
    model.zero_grad()
    out = model(**batch)
    (2 * out.loss).backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def lora(**more):
    model = get_peft_model(random_model("gemma3_text"), LoraConfig(target_modules="all-linear", **more))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model, model.get_base_model()


def whole(tied):
    model = random_model("gemma3_text", tie_word_embeddings=tied)
    return model, model


KINDS = {
    "adapter": lora,
    "adapter and head": lambda: lora(modules_to_save=["lm_head"]),
    "adapter and new tokens": lambda: lora(trainable_token_indices=[3, 5]),
    "all weights": lambda: whole(tied=False),
    "all weights, head tied": lambda: whole(tied=True),
}


@pytest.mark.parametrize("count", [None, torch.tensor(4)])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_loss_and_the_gradient_of_all_logits_together(kind, count):
    model, base = KINDS[kind]()
    assert head_is_apart(base)
    sizes, batch = [], BATCH | ({} if count is None else {"num_items_in_batch": count})
    expected, gradients = learn(model, **batch)
    watch = base.get_output_embeddings().register_forward_hook(lambda _, given, out: sizes.append(out.numel()))
    with by_pieces(base, most=200):
        found, pieces = learn(model, **batch)
    watch.remove()
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == pieces.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert max(sizes) == 200  # 7 learnt positions of 12, two at a time
    assert sum(sizes) <= (2 * 7 + 1) * 100
    assert torch.equal(model(**batch).loss, expected.loss)


def test_without_gradients_and_without_an_answer():
    model, base = lora()
    with torch.no_grad(), by_pieces(base, most=200):
        alone = model(**BATCH).loss
    torch.testing.assert_close(alone, model(**BATCH).loss)
    nothing = dict.fromkeys(("labels", "shift_labels"), torch.full_like(LABELS, IGNORED))
    with by_pieces(base, most=200):
        out, gradients = learn(model, **BATCH | nothing | {"num_items_in_batch": 3})
    assert out.loss == 0
    assert not any(gradient.any() for gradient in gradients.values())
