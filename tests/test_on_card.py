"""What only a card computes: the fused attention of packed batches and of the engine `fast`, and the memory cap.

TEST_ON_CARD=1 python -m pytest tests/test_on_card.py
"""

import copy
import os
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT
from helpers_card import NUMBERS, check_answers, check_taken, said_by_fast
from transformers import AutoConfig, AutoModelForCausalLM

from data.prompts import Piece
from decoding import constrained, fast_engine
from decoding.answers import NOT_FINITE, Failure, Rules
from decoding.constrained import make_limits
from decoding.fast_engine import MEASURED, Tuning
from loading import quantised
from loading.quantised import QUANTISATIONS
from models import chatglm, moss  # noqa: F401 - which makes them known to transformers
from models.cpmbee import convert, prefill
from models.cpmbee.data import name_columns
from models.cpmbee.generation import Feed, Reader, _adjuster
from ops import fp8_product, packed_attention
from tokens import batches
from tokens.batches import IGNORED, make_collator
from tokens.cpmbee import load_tree_codec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card and TEST_ON_CARD=1")
KINDS = [
    ("llama", 8),
    ("llama", 2),
    ("mistral", 2),
    ("qwen2", 2),
    ("qwen3", 2),
    ("qwen3", 8),
    ("gemma3_text", 1),
    ("glm4", 2),
]
TIES = 0.7  # what bfloat16 on a CPU takes for one, too
WINDOW = 100  # of two layers of three, where the model has windows


def make(model_type: str, kv_heads: int):
    """A small model of 8 heads, whose random weights are large enough to prefer some tokens clearly."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 8}
    sizes |= {
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "vocab_size": 1000,
        "initializer_range": 0.06,
        "pad_token_id": 0,
    }
    if model_type == "gemma3_text":
        sizes |= {"head_dim": 256, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    config = AutoConfig.for_model(model_type, **sizes, max_position_embeddings=2048)
    config.sliding_window = WINDOW if model_type == "gemma3_text" else None
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).cuda()


def make_rows():
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(10, 1000, (length,), generator=draw).tolist() for length in (7, 300, 1, 129, 64, 511)]
    return [{"input_ids": ids, "labels": [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]} for ids in rows]


@pytest.mark.parametrize(("model_type", "kv_heads"), KINDS)
def test_packed_losses_and_gradients_are_padded_ones(model_type, kv_heads):
    model = make(model_type, kv_heads)
    rows = [row for row in make_rows() if len(row["input_ids"]) > 1]
    reference, exact = learn(model, make_collator(0, 8)(rows), torch.float32)
    padded, rough = learn(model, make_collator(0, 8)(rows), torch.bfloat16)
    packed_attention.use_packed_attention(model)
    packed, fused = learn(model, batches.pack(rows), torch.bfloat16)
    assert packed == pytest.approx(reference, rel=2e-3)
    assert padded == pytest.approx(reference, rel=2e-3)
    for name, gradient in exact.items():
        mistake, usual = (torch.dist(other[name], gradient) / gradient.norm() for other in (fused, rough))
        assert mistake < 1.3 * usual + 2e-3, name


def learn(model, batch, dtype):
    model.zero_grad()
    batch = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1, 24, 300])  # 300: more than are multiplied by the codes as they are
def test_fast_takes_the_likeliest_tokens_over_quantised_weights(bits, size, tmp_path, capsys):
    make("llama", 2).save_pretrained(tmp_path)
    config = QUANTISATIONS[bits].config(torch.bfloat16, None)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.bfloat16, device_map={"": 0}
    )
    assert QUANTISATIONS[bits].use_product(model) == 3 * 7
    compare_with_whole_passes(model, model, size)
    assert ("copied from" in capsys.readouterr().err) == (size != 24)  # of 24, all begin together


@pytest.mark.parametrize(("model_type", "kv_heads"), KINDS)
@pytest.mark.parametrize("size", [1, 4, 24])
@pytest.mark.parametrize("most", [1, Tuning().pass_tokens])  # tokens of a pass: 1 computes each prompt by itself
def test_fast_takes_the_likeliest_tokens(model_type, kv_heads, size, most, capsys):
    tuning = Tuning(pass_tokens=most, enough=1)  # steps of half as many rows, too
    compare_with_whole_passes(make(model_type, kv_heads), make(model_type, kv_heads).to(torch.bfloat16), size, tuning)
    assert ("copied from" in capsys.readouterr().err) == (size < 24 or most == 1)  # else all begin together


@pytest.mark.parametrize(("model_type", "kv_heads"), KINDS)
@pytest.mark.parametrize("size", [1, 24])
@pytest.mark.parametrize("drafts", [1, 3, 7])  # of heads that share keys, 7 are more than the kernel in Triton takes
def test_fast_takes_the_likeliest_tokens_with_drafts(model_type, kv_heads, size, drafts, capsys):
    """The texts that random models make repeat nothing, so their tokens are few: drafts are right now and then."""
    exact = make(model_type, kv_heads)
    exact.lm_head.weight.data[30:] = -exact.lm_head.weight.data[30:].abs() * 1e-3  # 30 tokens are what it mostly says
    model = copy.deepcopy(exact).to(torch.bfloat16)
    compare_with_whole_passes(exact, model, size, Tuning(enough=1), drafts=drafts)
    assert float(re.search(r"drafts: ([\d.]+) tokens a step", capsys.readouterr().err)[1]) > 1


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("size", [4, 24])
def test_fast_takes_the_likeliest_tokens_that_may_be_said(size, drafts, monkeypatch):
    def advance(asked, state, piece):  # of one token or several
        return state if all(int(token) % 5 for token in piece.split()) else None

    monkeypatch.setattr(constrained, "advance", advance)
    compare_with_whole_passes(
        make("llama", 2), make("llama", 2).to(torch.bfloat16), size, Tuning(enough=1), range(0, 1000, 5), drafts
    )


def compare_with_whole_passes(exact, model, size: int, tuning: Tuning = MEASURED, refused=(), drafts: int = 0) -> None:
    """What `fast` takes, `size` records at a time, by the logits of `exact`, which sees each answer in one pass; of all
    tokens but those that are `refused`.
    """
    prompts = {}
    for ids in [row["input_ids"] for row in make_rows()] * max(4, size // 6):
        half = len(ids) // 2  # a beginning that is copied, and an end that differs, or the last token alone
        prompts[len(prompts)] = ids[:half] + [10 + (token + len(prompts) // 18) % 990 for token in ids[half:]]
    prompts = dict(sorted(prompts.items(), key=lambda item: -len(item[1])))
    asked = dict.fromkeys(prompts)
    limits = make_limits([b"%d " % token for token in range(1000)], NUMBERS.eos_id, asked) if refused else None
    said = said_by_fast(model, NUMBERS, prompts, tuning, limits, batch_size=size, drafts=drafts)
    check_answers(exact, prompts, said, TIES, refused)


OWN = {  # this project's own models, in small; ids below 10 are in no prompt
    "chatglm": {"inner_hidden_size": 1024, "num_layers": 3, "num_attention_heads": 4, "bos_token_id": 5},
    "moss": {"n_embd": 1024, "n_layer": 3, "n_head": 4, "rotary_dim": 64, "n_positions": 2048},  # heads of 256
}


def make_own(model_type: str):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, hidden_size=512, vocab_size=1000, **OWN[model_type])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).cuda().eval()


@pytest.mark.parametrize("model_type", sorted(OWN))
@pytest.mark.parametrize("size", [1, 4, 24])
@pytest.mark.parametrize("most", [1, Tuning().pass_tokens])
def test_fast_takes_the_likeliest_tokens_of_own_models(model_type, size, most):
    exact = make_own(model_type)
    end = [exact.config.gmask_token_id, exact.config.bos_token_id] if model_type == "chatglm" else []
    rows = sorted((row["input_ids"] + end for row in make_rows() * 4), key=len, reverse=True)
    prompts = dict(enumerate(rows))
    model = make_own(model_type).to(torch.bfloat16)
    said = said_by_fast(model, NUMBERS, prompts, Tuning(pass_tokens=most, enough=1), batch_size=size)
    check_answers(exact, prompts, said, TIES)


@pytest.mark.parametrize("size", [1, 4, 24])
@pytest.mark.parametrize("most", [1, Tuning().pass_tokens])
def test_fast_takes_the_likeliest_tokens_of_trees(size, most):
    codec = load_tree_codec(ROOT / "tests" / "golden" / "cpmbee")
    words, draw = [word for word in codec.tokenizer.words[20:] if "<" not in word], random.Random(0)
    pieces = [
        [Piece("".join(draw.choices([*words, "☃", "㐀"], k=count)), False)] for count in (400, 250, 99, 8, 2, 1) * 4
    ]
    asked = sorted(map(codec.encode, pieces), key=len, reverse=True)
    exact, model = make_trees(codec), make_trees(codec).to(torch.bfloat16)
    own = SimpleNamespace(lay_out=codec.lay_out, naming=lambda names: NUMBERS, eos_id=-1)
    said = said_by_fast(model, own, dict(enumerate(asked)), Tuning(pass_tokens=most, enough=1), batch_size=size)
    given = prefill(codec.tokenizer, [one.data for one in asked])
    columns, _ = name_columns(codec.tokenizer, [convert(codec.tokenizer, one.data) for one in asked])
    for number in range(len(asked)):
        with torch.inference_mode():
            one = slice(number, number + 1)
            alone = given._replace(**{name: getattr(given, name)[one] for name in given._fields if name[:4] != "ext_"})
            reader, read = Reader(exact, alone), Feed(codec.tokenizer.bos_id, 0, 0, alone.predicted[0][0][0])
            adjust, logits = _adjuster(codec.tokenizer, alone, 1.0), []
            for token in said[number]:
                logits.append(adjust(reader.read([read]), [])[0])
                pair = (token, 0) if token < len(codec.tokenizer) else columns[token - len(codec.tokenizer)]
                read = Feed(*pair, read.position + 1, read.segment)
        check_taken(torch.stack(logits).clone(), said[number], TIES)


def make_trees(codec):
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "dim_ff": 1024, "num_hidden_layers": 3, "num_attention_heads": 4, "dim_head": 128}
    config = AutoConfig.for_model("cpmbee", vocab_size=len(codec.tokenizer), **sizes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).cuda().eval()


def test_a_record_whose_logits_are_not_finite_fails_alone():
    model = make("llama", 8).to(torch.bfloat16)
    prompts = {number: [10 + (7 * number + at) % 500 for at in range(60)] for number in range(6)}
    prompts[4] = [*prompts[4][:30], 999, *prompts[4][30:]]

    def answered() -> dict:
        made = fast_engine.answers(model, NUMBERS, prompts, Rules(20, batch_size=6))
        return {number: one for group in made for number, one in group.items()}

    expected = answered()
    assert not any("999" in answer.text.split() for answer in expected.values())
    model.get_input_embeddings().weight.data[999, 0] = float("nan")
    assert answered() == expected | {4: Failure(NOT_FINITE)}


@pytest.mark.parametrize(  # narrow: keys and values in 8-bit floats
    ("dtype", "narrow"), [(torch.bfloat16, False), (torch.float16, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("size", [16, 64, 128, 256])
@pytest.mark.parametrize("share", [1, 3, 16])  # heads that share keys and values
@pytest.mark.parametrize("window", [None, 70, 2])
@pytest.mark.parametrize("new", [1, 4, 8])  # tokens of a record
def test_attention_of_new_tokens(dtype, narrow, size, share, window, new):
    from ops.decode_attention import attend, serves  # needs Triton

    torch.manual_seed(0)
    query, kept = torch.randn(6 * new, 3 * share, size, dtype=dtype), torch.randn(2, 700, 3, size, dtype=dtype)
    kept = kept.to(fp8_product.NARROW) if narrow else kept
    starts, seen = torch.tensor([0, 15, 90, 115, 320, 650, 700]), torch.tensor([8, 33, 9, 200, 256, 8])
    assert serves(3 * share, 3, size, new) == (new * share <= 64)
    if new * share > 64:
        return
    moved = (part.cuda() for part in (query, *kept, starts.int(), seen.int()))
    out = attend(*moved, size**-0.5, window).cpu().double()
    for record, first, count in zip(range(6), starts.tolist(), seen.tolist(), strict=False):
        for at in range(new):
            end, row = first + count - new + 1 + at, record * new + at
            begin = first if window is None else max(first, end - window)
            key, value = kept[:, begin:end].double().repeat_interleave(share, 2)
            score = torch.einsum("hs,ths->ht", query[row].double(), key) * size**-0.5
            exact = torch.einsum("ht,ths->hs", score.softmax(-1), value)
            assert (out[row] - exact).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kept", [torch.float8_e4m3fn, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 3, 64), (300, 32, 128), (7, 1, 256)])
def test_keys_and_values_are_kept_as_torch_rounds_them(kept, shape):
    from ops.keep_rows import keep_rows  # needs Triton

    tokens, heads, size = shape
    torch.manual_seed(0)
    given = torch.float16 if kept == torch.float16 else torch.bfloat16
    key = 200 * torch.randn(heads, tokens, size, device="cuda", dtype=given).transpose(0, 1)  # some beyond 448
    value = 200 * torch.randn(tokens, heads, 2 * size, device="cuda", dtype=given)[..., size:]
    key[0, 0, 0] = torch.nan
    at = torch.randperm(2 * tokens, device="cuda")[:tokens]
    made = [torch.zeros(2 * tokens, heads, size, device="cuda").to(kept) for _ in range(2)]
    keep_rows(key, value, *made, at)
    for new, there in zip((key, value), made, strict=True):
        wanted = torch.zeros(2 * tokens, heads, size, device="cuda").to(kept)
        wanted.view(torch.int8)[at] = (new.clamp(-448, 448) if kept.itemsize == 1 else new).to(kept).view(torch.int8)
        assert torch.equal(there.float().nan_to_num(-1), wanted.float().nan_to_num(-1))


@pytest.mark.parametrize("share", [1, 3])
def test_attention_of_one_new_token_with_a_bias(share):
    from ops.decode_attention import attend  # needs Triton

    torch.manual_seed(0)
    query, kept = torch.randn(5, 4 * share, 64, dtype=torch.bfloat16), torch.randn(2, 600, 4, 64, dtype=torch.bfloat16)
    starts, seen = torch.tensor([0, 5, 90, 95, 300, 599]), torch.tensor([1, 33, 5, 200, 256])
    table, marks = torch.randn(30, 4 * share, dtype=torch.bfloat16), torch.randint(0, 4, (600,))
    apart, near = torch.randint(0, 15, (4, 4)).fill_diagonal_(-1), torch.randint(15, 30, (2 * 50 + 1,))
    moved = (part.cuda() for part in (query, *kept, starts.int(), seen.int()))
    out = attend(*moved, 0.125, None, tuple(part.cuda() for part in (table, marks, apart, near))).cpu().double()
    for record, first, count in zip(range(5), starts.tolist(), seen.tolist(), strict=False):
        key, value = kept[:, first : first + count].double().repeat_interleave(share, 2)
        mine, distance = marks[first + count - 1], torch.arange(1 - count, 1).clamp(min=-50)
        rows = apart[mine, marks[first : first + count]]
        rows = torch.where(rows < 0, near[distance + 50], rows)
        score = torch.einsum("hs,ths->ht", query[record].double(), key) * 0.125 + table[rows].double().T
        exact = torch.einsum("ht,ths->hs", score.softmax(-1), value)
        assert (out[record] - exact).abs().max() < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [640, 200])  # 200: no multiple of what the kernel reads at a time
@pytest.mark.parametrize("count", [1, 16, 17, 100, 300, 600])
def test_products_with_8_bit_weights(dtype, width, count):
    torch.manual_seed(0)
    codes = torch.randint(-127, 128, (333, width), dtype=torch.int8, device="cuda")
    scales = torch.rand(333, device="cuda")
    inputs = torch.randn(count, 2, width, dtype=dtype, device="cuda")[:, 1]  # apart, as the last tokens of records are
    weight = quantised.dequantise_by_torch(codes.cpu(), scales.cpu(), dtype).cuda()
    assert torch.equal(quantised.dequantise_by_torch(codes, scales, dtype), weight)
    assert torch.equal(quantised._dequantise(codes, scales, dtype), weight)
    with torch.inference_mode():
        out = quantised._multiply(inputs[None], codes, scales)[0]
    exact = inputs.double() @ (codes.double() * scales.double()[:, None] / 127).T
    assert torch.dist(out.double(), exact) < 1.1 * torch.dist((inputs @ weight.T).double(), exact)
    from ops.int8_product import serves  # needs Triton

    assert torch.equal(out, inputs @ weight.T) != serves(inputs)  # which of the two ways it went


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_through_8_bit_weights(autocast):
    codes = torch.randint(-127, 128, (333, 640), dtype=torch.int8, device="cuda")
    scales = torch.rand(333, device="cuda")
    weight = quantised.dequantise_by_torch(codes.cpu(), scales.cpu(), torch.bfloat16).cuda()
    inputs = torch.randn(300, 640, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    gradient = torch.randn(300, 333, dtype=torch.bfloat16, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        quantised._multiply(inputs, codes, scales).backward(gradient)
    assert torch.equal(inputs.grad, gradient @ weight)


@pytest.mark.parametrize("expandable", [False, True])  # pieces of memory that grow, as the training scripts ask for
def test_the_cap_holds(expandable):
    code = """
import torch
from loading.memory import limit_memory
limit_memory(2000, torch.device("cuda:0"))
parts = []
try:
    while len(parts) < 100:
        parts.append(torch.empty(100 * 2**20, dtype=torch.uint8, device="cuda"))
except torch.OutOfMemoryError:
    print(len(parts))
"""
    more = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    more["PYTORCH_ALLOC_CONF"] = f"expandable_segments:{expandable}"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True, check=True
    )
    assert 15 <= int(ran.stdout) <= 20


@pytest.mark.parametrize("kind", [fp8_product.NARROW, fp8_product.WIDE])
@pytest.mark.parametrize("width", [16, 4096, 11008])
def test_rows_are_rounded_to_eight_bits_as_on_a_cpu(kind, width):
    torch.manual_seed(0)
    rows, factors = torch.randn(33, width).bfloat16() * torch.logspace(-6, 3, 33)[:, None], torch.rand(width, 1) + 0.1
    for more in (None, factors):
        codes, scales = fp8_product.round_rows(rows.cuda(), kind, None if more is None else more.cuda())
        expected, sizes = fp8_product.round_rows(rows, kind, more)
        torch.testing.assert_close(scales.cpu(), sizes, rtol=1e-6, atol=0)
        assert (codes.cpu().float() != expected.float()).float().mean() < 2e-3  # a quotient's last bit


@pytest.mark.parametrize("count", [1, 7, 300])
def test_products_in_eight_bit_floats_and_their_gradients_are_near(count):
    torch.manual_seed(0)
    weight = (torch.randn(512, 1024) * torch.logspace(-2, 2, 512)[:, None]).cuda().bfloat16()
    inputs = torch.randn(count, 1024, device="cuda").bfloat16().requires_grad_()
    asked = torch.randn(count, 512, device="cuda").bfloat16() / weight.norm(dim=1)
    made, exact = fp8_product.multiply(inputs, fp8_product.keep_weight(weight, True)), inputs @ weight.T
    for one, other in (
        (made, exact),
        *zip(*(torch.autograd.grad(out, inputs, asked) for out in (made, exact)), strict=True),
    ):
        assert (one - other).norm() / other.norm() < 0.08


def test_a_layer_in_eight_bit_floats_can_be_captured():
    weight = fp8_product.keep_weight(torch.randn(256, 256, device="cuda").bfloat16(), False)
    inputs = torch.randn(4, 256, device="cuda").bfloat16()
    with torch.inference_mode():
        fp8_product.multiply(inputs, weight)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = fp8_product.multiply(inputs, weight)
        inputs.copy_(torch.randn_like(inputs))
        graph.replay()
        torch.testing.assert_close(made, fp8_product.multiply(inputs, weight))
