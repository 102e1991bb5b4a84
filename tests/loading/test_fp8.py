"""--fp8: which layers take 8-bit floats, and what it refuses."""

import json

import pytest
import torch
from helpers import random_llama
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from common.errors import UserError
from loading.fp8 import check_fp8_adapter, choose_fp8, use_fp8
from loading.precision import Precision

CPU = torch.device("cpu")


def test_a_base_with_an_adapter_answers_and_learns_nearly_as_before(tmp_path):
    random_llama(tmp_path)
    ids = torch.arange(5, 25)[None]
    found = {}
    for kept in (False, True):
        torch.manual_seed(0)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tmp_path),
            LoraConfig(r=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        )
        if kept:
            assert use_fp8(model, trained_through=True) == 7 * model.config.num_hidden_layers
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        trained = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
        assert all("lora_" in name for name in trained)
        found[kept] = out.loss.item(), torch.cat([gradient.flatten() for gradient in trained.values()])
        narrow = [name for name, weight in model.named_parameters() if weight.dtype.itemsize == 1]
        assert all("lora_" not in name and "lm_head" not in name and "embed" not in name for name in narrow)
        assert len(narrow) == kept * 7 * model.config.num_hidden_layers
    (plain, gradient), (rounded, near) = found[False], found[True]
    assert rounded == pytest.approx(plain, rel=0.05)
    assert torch.cosine_similarity(gradient, near, dim=0) > 0.85


def test_a_model_without_such_layers_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5))
    model.get_output_embeddings = lambda: None
    with pytest.raises(UserError, match="--fp8: Sequential has no linear layers"):
        use_fp8(model)


def test_what_cannot_be_is_refused_with_the_flag_to_drop():
    assert choose_fp8(False, Precision("float32", 8), CPU).value is False
    with pytest.raises(UserError, match="--fp8 and --bits 8 contradict"):
        choose_fp8(True, Precision("bfloat16", 8), CPU)
    with pytest.raises(UserError, match="--fp8: there is no GPU"):
        choose_fp8(True, Precision("bfloat16", 16), CPU)


@pytest.mark.parametrize(("settings", "kind"), [({"peft_type": "LOHA"}, "LOHA"), ({"use_dora": True}, "DoRA")])
def test_adapters_that_read_the_base_are_refused_unless_merged(tmp_path, settings, kind):
    made = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], **settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(made))
    with pytest.raises(UserError, match=f"of kind {kind}.*--merge_lora"):
        check_fp8_adapter(tmp_path, merge=False)
    check_fp8_adapter(tmp_path, merge=True)
