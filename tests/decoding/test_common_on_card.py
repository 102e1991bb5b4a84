"""What all prompts begin with, kept once, on a card: the attention of new tokens, and the answers of `fast`.

TEST_ON_CARD=1 python -m pytest tests/decoding/test_common_on_card.py
"""

import pytest
import torch
from helpers_card import NUMBERS, check_answers, said_by_fast
from transformers import AutoConfig, AutoModelForCausalLM

from decoding import fast_sizes
from decoding.fast_sizes import COMMON, MEASURED, Tuning
from models import moss  # noqa: F401 - which makes it known to transformers
from ops import fp8_product

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card and TEST_ON_CARD=1")


@pytest.mark.parametrize("narrow", [False, True])  # keys and values in 8-bit floats
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("share", [1, 3])  # heads that share keys and values
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("new", [1, 4])  # tokens of a record
@pytest.mark.parametrize("common", [1, 64, 93])
def test_attention_sees_what_is_common_and_then_its_own(narrow, size, share, window, new, common):
    from ops.decode_attention import attend  # needs Triton

    torch.manual_seed(0)
    dtype = torch.bfloat16
    query, kept = torch.randn(6 * new, 3 * share, size, dtype=dtype), torch.randn(2, 900, 3, size, dtype=dtype)
    kept = kept.to(fp8_product.NARROW) if narrow else kept
    # the last two see no more than what is common, as rows without a record do
    starts, seen = torch.tensor([0, 15, 190, 415, 700, 850, 0]), torch.tensor([100, 133, 99, 240, 8, new])
    moved = (part.cuda() for part in (query, *kept, starts.int(), seen.int()))
    out = attend(*moved, size**-0.5, window, None, common).cpu().double()
    for record, first, count in zip(range(6), starts.tolist(), seen.tolist(), strict=False):
        for at in range(new):
            end, row = count - new + 1 + at, record * new + at
            index = torch.arange(0 if window is None else max(0, end - window), end)
            index = torch.where(index < common, index, first + index)
            key, value = kept[:, index].double().repeat_interleave(share, 2)
            score = torch.einsum("hs,ths->ht", query[row].double(), key) * size**-0.5
            exact = torch.einsum("ht,ths->hs", score.softmax(-1), value)
            assert (out[row] - exact).abs().max() < 4 * torch.finfo(dtype).eps


SIZES = {"hidden_size": 512, "vocab_size": 1000, "initializer_range": 0.06}
KINDS = {
    "llama": {"intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 8, "head_dim": 64},
    "moss": {"n_embd": 1024, "n_layer": 3, "n_head": 4, "rotary_dim": 64, "n_positions": 2048},
}
KINDS["gemma3_text"] = KINDS["llama"] | {
    "head_dim": 256,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "pad_token_id": 0,
}


def make(model_type: str, kept_heads: int):
    torch.manual_seed(0)
    more = {} if model_type == "moss" else {"num_key_value_heads": kept_heads, "max_position_embeddings": 2048}
    config = AutoConfig.for_model(model_type, **SIZES, **KINDS[model_type], **more)
    if model_type == "gemma3_text":
        config.sliding_window = 100
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).cuda().eval()


def make_prompts(common: int) -> dict[int, list[int]]:
    """24 prompts that begin alike, some of them further than all do."""
    draw = torch.Generator().manual_seed(1)

    def some(count: int) -> list[int]:
        return torch.randint(10, 1000, (count,), generator=draw).tolist()

    start, more, lengths = some(common), some(50), (300, 1, 129, 64, 7, 211)
    prompts = [start + (more if number % 3 == 0 else []) + some(lengths[number % 6]) for number in range(24)]
    return dict(enumerate(sorted(prompts, key=len, reverse=True)))


@pytest.mark.parametrize(("model_type", "kept_heads"), [("llama", 8), ("llama", 2), ("gemma3_text", 1), ("moss", 4)])
@pytest.mark.parametrize("size", [1, 5, 24])  # records at a time
@pytest.mark.parametrize("most", [1, Tuning().pass_tokens])  # tokens of a pass: 1 computes each prompt by itself
@pytest.mark.parametrize("drafts", [0, 3])
def test_fast_takes_the_likeliest_tokens(model_type, kept_heads, size, most, drafts, capsys):
    prompts, tuning = make_prompts(150), Tuning(pass_tokens=most, enough=1)
    model = make(model_type, kept_heads).to(torch.bfloat16)
    said = said_by_fast(model, NUMBERS, prompts, tuning, batch_size=size, drafts=drafts)
    assert "; 150 with which all begin are kept once" in capsys.readouterr().err
    check_answers(make(model_type, kept_heads), prompts, said, ties=0.5)


@pytest.mark.parametrize("kept_heads", [8, 2])
def test_keys_in_eight_bits_answer_alike_kept_once_or_for_each(kept_heads, capsys):
    """In 8 bits most tokens are those that are taken without what is common, which is read from the same numbers."""
    model, prompts = make("llama", kept_heads).to(torch.bfloat16), make_prompts(150)
    once, each = (
        said_by_fast(model, NUMBERS, prompts, MEASURED._replace(common=common), batch_size=24, fp8=True)
        for common in (None, 10**6)
    )
    assert capsys.readouterr().err.count("with which all begin are kept once") == 1
    firsts = [one[:8] == each[number][:8] for number, one in once.items()]
    assert sum(firsts) > 0.6 * len(firsts)  # a near tie that rounding decides changes what follows


def test_it_is_used_where_enough_is_common_and_the_kernel_serves():
    model = make("llama", 2).to(torch.bfloat16)
    prompts = list(make_prompts(COMMON).values())
    assert fast_sizes.count_common(model, NUMBERS, prompts) == COMMON
    assert fast_sizes.count_common(model, NUMBERS, list(make_prompts(COMMON - 1).values())) == 0
    assert fast_sizes.count_common(model, NUMBERS, prompts, 15) == COMMON  # 16 tokens of 4 heads
    wide = make("llama", 1).to(torch.bfloat16)
    assert fast_sizes.count_common(wide, NUMBERS, prompts, 15) == 0  # of 8 heads they are more than it takes


def test_more_rows_fit():
    model, lengths = make("moss", 4).to(torch.bfloat16), [1100] * 10**6
    held = torch.empty(torch.cuda.mem_get_info()[0] - 12 * 2**30, dtype=torch.uint8, device="cuda")  # all but 12 GiB
    rows = [
        fast_sizes.choose_rows(model.config, lengths, 128, 1, model.device, False, common, Tuning(most=10**9))
        for common in (0, 800)
    ]
    del held
    assert 2.5 < rows[1] / rows[0] < 3  # (1100 + 128) / (300 + 128)
