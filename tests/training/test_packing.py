"""Packed batches: the same losses as padded ones, no record seeing another, and the speed that a run reports."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import GOLDEN, ROOT
from transformers import AutoConfig, AutoModelForCausalLM

from checkpoints.family import find_family
from common.errors import UserError
from data.prompts import load_template
from decoding.answers import Rules
from decoding.batch_engine import answer
from loading.base import load_base
from loading.precision import Precision
from models.families import FAMILIES
from ops import available, packed_attention
from test_finetune import main
from tokens import batches
from tokens.batches import IGNORED, make_collator
from tokens.readers import load_codec
from tokens.rows import Limits, encode_row
from training import speed
from training.trainer import real_tokens

BASE = GOLDEN / "checkpoint"
RECORDS = [json.loads(line) for line in (GOLDEN / "train.json").read_text(encoding="utf-8").splitlines()]
CPU = torch.device("cpu")


def make_rows():
    codec = load_codec(BASE, find_family(BASE)[0])
    return [encode_row(codec, load_template("alpaca"), r, Limits(1024))._asdict() for r in RECORDS[:4]], codec


def attend_alone(query, key, value, starts, longest, scale, window):
    """What the card's kernel computes: causal attention of every record by itself, and of its last `window` tokens."""
    pairs = list(itertools.pairwise(starts.tolist()))
    assert longest == max(end - start for start, end in pairs)
    parts = []
    for start, end in pairs:
        q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
        k, v = (part.repeat_interleave(len(q) // len(part), 0) for part in (k, v))
        seen = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        seen = seen.triu(1 - window) if window else seen
        parts.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, seen, scale=scale))
    return torch.cat(parts, 1).transpose(0, 1)


def losses(folder):
    return [row["loss"] for row in map(json.loads, (folder / "log.jsonl").open()) if "loss" in row]


def run(folder, *more, **values):
    chosen = {"model_name_or_path": BASE, "train_file": GOLDEN / "train.json", "output_dir": folder}
    chosen |= {"cutoff_len": 1024, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    chosen |= {"learning_rate": 3e-3, "max_steps": 20, "save_strategy": "no", "logging_steps": 1, "lora_dropout": 0}
    flags = [str(part) for name, value in (chosen | values).items() for part in (f"--{name}", value)]
    main(["--do_train", *more, *flags])
    return losses(folder)


def test_real_tokens_are_alike_packed_and_padded():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8, 2], "labels": [IGNORED, 2]}]
    assert [int(real_tokens(collate(rows))) for collate in (batches.pack, make_collator(0, 8))] == [5, 5]


def test_a_packed_batch_by_hand():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8, 2], "labels": [IGNORED, 2]}]
    batch = batches.pack(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["logits_to_keep"].tolist() == [0, 1, 3]
    assert batch["shift_labels"].tolist() == [[6, 7, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert batch["max_length_q"] == 3


PACKED = FAMILIES[-1].packed_types
SEES_ALL = {"sliding_window": None}
# Three layers of each kind there is: all tokens seen, and only the last four.
KINDS = [(kind, SEES_ALL if kind == "mistral" else {}) for kind in PACKED if kind != "gemma3_text"]
KINDS += [("mistral", {"sliding_window": 4})]
WINDOWED = {"use_sliding_window": True, "sliding_window": 4}
WINDOWED["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
KINDS += [("qwen3", WINDOWED), ("gemma3_text", WINDOWED)]


@pytest.mark.parametrize(("model_type", "more"), KINDS, ids=lambda part: part if isinstance(part, str) else len(part))
@pytest.mark.parametrize("bounds", [False, True], ids=["mask", "bounds"])
def test_no_record_sees_another(monkeypatch, model_type, more, bounds):
    """Each record's logits are those it has alone, on both ways: a mask of positions (CPU), bounds (the card's way)."""
    monkeypatch.setattr(packed_attention, "attend", attend_alone)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        model_type, **sizes, num_key_value_heads=2, head_dim=8, vocab_size=60, pad_token_id=0, **more
    )
    assert packed_attention.why_not(config, PACKED, CPU, torch.float32) is None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    rows = [{"input_ids": torch.randint(60, (n,)).tolist(), "labels": list(range(n))} for n in (5, 9, 2)]
    alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    if bounds:
        packed_attention.use_packed_attention(model)
    batch = batches.pack(rows)
    packed = model(**{k: v for k, v in batch.items() if "label" not in k and k != "logits_to_keep"}, use_cache=False)
    torch.testing.assert_close(packed.logits[0], torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == (packed_attention.NAME if bounds else "sdpa")
    generated = model.generate(torch.tensor([rows[0]["input_ids"]]), min_new_tokens=3, max_new_tokens=3)
    assert generated.shape[1] == 8


def test_generation_with_padding_is_the_same_with_the_packed_attention():
    rows, codec = make_rows()
    model = load_base(BASE, Precision("float32", 16), "cpu", codec)
    model.set_attn_implementation("sdpa")
    prompts = [row["input_ids"][:length] for row, length in zip(rows, (40, 25, 33, 9), strict=True)]
    before = [one.text for one in answer(model, codec, prompts, Rules(6))]
    packed_attention.use_packed_attention(model)
    assert [one.text for one in answer(model, codec, prompts, Rules(6))] == before


def test_the_packed_loss_is_the_padded_one():
    rows, codec = make_rows()
    model = load_base(BASE, Precision("float32", 16), "cpu", codec)
    padded = model(**make_collator(codec.pad_id)(rows)).loss
    torch.testing.assert_close(model(**batches.pack(rows), use_cache=False).loss, padded, rtol=1e-5, atol=1e-6)


def test_twenty_losses_of_a_packed_run_are_those_of_a_padded_one(tmp_path):
    plain, packed = run(tmp_path / "plain"), run(tmp_path / "packed", packing=True)
    assert len(plain) == 20
    assert packed == pytest.approx(plain, rel=1e-3)
    checkpointed = run(tmp_path / "checkpointed", packing=True, gradient_checkpointing=True)
    assert checkpointed == pytest.approx(plain, rel=1e-3)


def test_evaluation_of_a_packed_run_is_that_of_a_padded_one(tmp_path):
    common = {"val_set_size": 3, "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    common["per_device_eval_batch_size"] = 2
    run(tmp_path / "plain", "--do_eval", **common)
    run(tmp_path / "packed", "--do_eval", packing=True, **common)
    found = [
        [row["eval_loss"] for row in map(json.loads, (folder / "log.jsonl").open()) if "eval_loss" in row]
        for folder in (tmp_path / "plain", tmp_path / "packed")
    ]
    assert len(found[0]) == 2
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_what_cannot_be_packed_says_why(tmp_path):
    for config, why in (
        (AutoConfig.for_model("gemma3_text", attn_logit_softcapping=50.0), "caps scores"),
        (AutoConfig.for_model("gemma3_text", use_bidirectional_attention=True), "see those behind them"),
        (AutoConfig.for_model("qwen3", num_hidden_layers=1, layer_types=["chunked_attention"]), "chunked_attention"),
    ):
        assert why in packed_attention.why_not(config, PACKED, CPU, torch.float32)
    assert "model_type gpt2 is not known" in packed_attention.why_not(
        AutoConfig.for_model("gpt2"), PACKED, CPU, torch.float32
    )
    half = packed_attention.why_not(AutoConfig.for_model("llama"), PACKED, torch.device("cuda"), torch.float32)
    assert "16-bit" in half
    with pytest.raises(UserError, match="--use_liger_kernel: the package is not installed"):
        run(tmp_path, use_liger_kernel=True)


@pytest.mark.parametrize(
    ("there", "triton_lacks", "model_type", "reason"),
    [
        (True, None, "llama", None),
        (False, None, "llama", "it is not installed"),
        (True, "no C compiler", "llama", "no C compiler"),
        (True, None, "chatglm", "it does not know model_type chatglm"),
    ],
)
def test_liger_kernel_is_taken_where_it_works_and_knows_the_base(
    monkeypatch, capsys, there, triton_lacks, model_type, reason
):
    known = SimpleNamespace(MODEL_TYPE_TO_APPLY_LIGER_FN={"llama": None})
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", known)
    monkeypatch.setattr(available, "has_liger", lambda: there)
    monkeypatch.setattr(available, "why_not", lambda *_: triton_lacks)
    about = torch.device("cuda"), torch.bfloat16, model_type
    assert available.choose_liger(None, *about).value == (reason is None)
    assert f"liger-kernel: {'off (' + reason if reason else 'on'}" in capsys.readouterr().err
    if reason:
        with pytest.raises(UserError, match=f"--use_liger_kernel: {reason}; drop it"):
            available.choose_liger(True, *about)
    assert not available.choose_liger(False, *about).value
    assert not available.choose_liger(None, CPU, *about[1:]).value


def test_the_end_of_a_run_says_how_fast_it_was(tmp_path, capsys):
    run(tmp_path, max_steps=6)
    said = capsys.readouterr().err
    results = json.loads((tmp_path / "run.json").read_text())["results"]
    assert results["timed_steps"] == 4
    assert results["weights"] == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(BASE).parameters())
    assert f"{results['tokens_per_second']:,.0f} real tokens/s, MFU {results['mfu']:.3f} = 4 x " in said
    ratio = results["tokens_per_second"] / results["samples_per_second"]
    lengths = [row["length"] for row in make_all()]
    assert min(lengths) <= ratio <= max(lengths)


def make_all():
    codec = load_codec(BASE, find_family(BASE)[0])
    rows = [encode_row(codec, load_template("alpaca"), record, Limits(1024)) for record in RECORDS]
    return [{"length": len(row.input_ids)} for row in rows]


@pytest.mark.parametrize("name", ["llama", "llama packed", "chatglm", "moss", "cpm-bee", "auto"])
def test_padding_is_no_real_token_in_any_family(name, chatglm, embedded_base):
    folders = {"chatglm": chatglm[0], "moss": ROOT / "tests/golden/moss", "cpm-bee": ROOT / "tests/golden/cpmbee"}
    folder = (folders | {"auto": embedded_base}).get(name, BASE)
    family, asked, _ = find_family(folder)
    codec, template = load_codec(folder, family), load_template(family.templates[asked])
    rows = [codec.row(template, record, Limits(None, 4096, 4096)) for record in RECORDS[:3]]
    lengths = [len(row["input_ids"]) for row in rows]
    assert len(set(lengths)) == 3
    batch = (batches.pack if name == "llama packed" else codec.collator(8))(rows)
    assert int(real_tokens(batch)) == sum(lengths)
    assert (batch["input_ids"].numel() > sum(lengths)) == (name != "llama packed")


def test_mfu_counts_the_weights_gradient_only_where_there_is_one():
    assert speed.mfu(10, 100, 8000, full=False) == pytest.approx(0.5)
    assert speed.mfu(10, 100, 8000, full=True) == pytest.approx(0.75)
    assert speed.product_rate(CPU, torch.float32) > 0
