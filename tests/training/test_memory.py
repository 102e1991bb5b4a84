"""The memory estimate: its parts by hand, peaks measured on a card, and the advice when a run does not fit."""

import json

import pytest
import random_base
import torch
from helpers import GOLDEN, ROOT

import test_finetune as finetuning
from checkpoints.family import find_family
from common import machine
from common.errors import UserError
from loading import memory
from loading.memory import MB
from loading.precision import Precision
from loading.shape import Shape, read_shape
from training import planning
from training.planning import Load, Plan

HALF = Precision("float16", 16)
CARD = torch.device("cuda")


def llama(folder, hidden, wide, layers, heads):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000}
    config |= {
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return read_shape(folder)


@pytest.fixture
def seven(tmp_path):
    return llama(tmp_path, 4096, 11008, 32, 32)


def rows(count=564, tokens=508, answer=216):
    """Rows as `tokenise` makes them, all of the same length."""
    label = [-100] * (tokens - answer) + [5] * answer
    return {"length": [tokens] * count, "labels": [label] * count}


class Rows(dict):
    def __len__(self):
        return len(self["length"])

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else {name: self[name][key] for name in self}


def test_llama_7b_has_the_weights_that_its_paper_says(seven):
    assert seven.linear + seven.other == 6_738_415_616
    assert seven.linear == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert (seven.layers, seven.hidden, seven.wide, seven.cached) == (32, 4096, 11008, 2 * 4096 * 32)


def test_grouped_heads_keep_fewer_keys_and_values(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "qwen2",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 3,
                "num_attention_heads": 8,
                "num_key_value_heads": 2,
                "vocab_size": 100,
            }
        )
    )
    assert read_shape(tmp_path).cached == 2 * 2 * 8 * 3


def test_a_config_that_cannot_be_built_gives_no_estimate(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "nobodys"}')
    with pytest.raises(UserError, match="can make no model of it"):
        read_shape(tmp_path)
    planning.fit_training(None, None, None, 0, False, "adamw_torch", CARD, None)
    assert "memory: not estimated" in capsys.readouterr().err


TOY = Shape(
    1000, 100, 2, 10, 20, 40, 50, False, 0, 0, {"a.q_proj": (10, 30), "a.v_proj": (10, 5), "b.q_proj": (10, 30)}
)


def test_the_parts_of_the_estimate_by_hand():
    assert memory.weight_bytes(TOY, HALF) == 2 * 1100
    assert memory.weight_bytes(TOY, Precision("float32", 16)) == 4 * 1100
    assert memory.weight_bytes(TOY, Precision("float16", 8)) == 1000 + 200
    assert memory.weight_bytes(TOY, Precision("bfloat16", 4)) == 530 + 200
    assert memory.adapter_weights(TOY, ("q_proj",), 4) == 4 * (40 + 40)
    assert memory.adapter_weights(TOY, ("all-linear",), 4) == 4 * (40 + 15 + 40)
    assert memory.trained_bytes(10, "adamw_torch") == 200
    assert memory.trained_bytes(10, "paged_adamw_32bit") == 80
    assert memory.trained_bytes(10, "adamw_8bit") == 100
    layer, between, logits = 6 * (9 * 10 + 3.5 * 20) * 2, 6 * 10 * 2 * 2, 2 * 2 * 50 * 14
    assert memory.activation_bytes(TOY, Load(6, 3, 4), HALF, recompute=False) == 2 * layer + logits
    assert memory.activation_bytes(TOY, Load(6, 3, 4), HALF, recompute=True) == between + max(layer, logits)
    stepwise = TOY._replace(norms32=True, step_heads=5)
    layer += 2 * 3 * 3 * 5 * 22
    assert memory.activation_bytes(stepwise, Load(6, 3, 4), HALF, recompute=True) == 2 * between + max(layer, logits)
    biased = memory.activation_bytes(TOY._replace(pair_bytes=7), Load(6, 3, 4), HALF, recompute=True)
    assert biased == memory.activation_bytes(TOY, Load(6, 3, 4), HALF, recompute=True) + 2 * 3 * 3 * 7
    fused = 2 * 6 * (9 * 10 + 2 * 20) * 2 + logits
    assert memory.activation_bytes(TOY, Load(6, 3, 4), HALF, recompute=False, fused=True) == fused
    assert memory.workspace_bytes(TOY) == 220 * MB + 4 * 300


def test_the_largest_batch_is_that_of_the_longest_rows():
    table = Rows(length=[4, 9, 7], labels=[[-100, -100, 1, 1], [-100] * 5 + [1] * 4, [-100] * 2 + [1] * 5])
    assert planning.largest_load(table, 1) == Load(9, 9, 5)
    assert planning.largest_load(table, 2) == Load(18, 9, 12)
    assert planning.largest_load(table, 2, packed=True) == Load(16, 9, 11)


# Peaks of torch's allocator on one NVIDIA H200 (docs/memory.md), of batches whose longest row has 508 tokens.
MEASURED = [
    ("7b", 16, 16, True, 217, 16_794),
    ("7b", 16, 32, True, 217, 20_654),
    ("7b", 8, 16, True, 217, 10_629),
    ("7b", 8, 4, True, 151, 7_782),
    ("7b", 4, 16, True, 217, 7_639),
    ("13b", 8, 4, True, 151, 14_285),
    ("13b", 4, 4, True, 151, 8_428),
    ("7b of 8 layers", 16, 4, False, 151, 6_339),
    ("7b of 8 layers", 8, 4, False, 151, 4_792),
    ("7b of 8 layers", 4, 4, False, 151, 4_035),
]
SIZES = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40), "7b of 8 layers": (4096, 11008, 8, 32)}


@pytest.mark.parametrize(("size", "bits", "batch", "recompute", "answers", "peak"), MEASURED)
def test_the_estimate_is_near_the_peaks_that_were_measured(tmp_path, size, bits, batch, recompute, answers, peak):
    shape = llama(tmp_path, *SIZES[size])
    plan = Plan(batch, 1, Precision("float16", bits), recompute)
    table = Rows(rows(answer=answers - 1))
    trained = memory.adapter_weights(shape, ("q_proj", "v_proj"), 8)
    estimate = sum(planning.training_bytes(shape, table, plan, trained, False, "adamw_torch").values()) / MB
    assert 0.98 * peak < estimate < 1.08 * peak


# bf16, packed rows of 120 to 512 tokens, no gradient checkpointing: batch, liger-kernel, peak.
PACKED = [(16, False, 52_630), (16, True, 42_700), (32, True, 71_880)]


@pytest.mark.parametrize(("batch", "fused", "peak"), PACKED)
def test_the_estimate_is_near_the_peaks_of_packed_batches(seven, batch, fused, peak):
    plan = Plan(batch, 1, Precision("bfloat16", 16), recompute=False, packed=True, fused=fused)
    table = Rows(rows(tokens=512, answer=20))
    estimate = sum(planning.training_bytes(seven, table, plan, 4_194_304, False, "adamw_torch").values()) / MB
    assert 0.96 * peak < estimate < 1.08 * peak


def test_the_fastest_plan_that_fits_is_taken(seven):
    table, asked = Rows(rows()), Plan(16, 8, Precision("bfloat16", 16), True, packed=True, fused=True)

    def choose(free, may_skip=True, may_regroup=True):
        def fits(plan):
            return (
                sum(planning.training_bytes(seven, table, plan, 4_194_304, False, "adamw_torch").values()) <= free * MB
            )

        plan = planning.choose_plan(asked, may_skip, may_regroup, fits)
        assert plan.batch * plan.accumulation == 128
        return plan.batch, plan.recompute

    assert choose(140_000) == (64, False)
    assert choose(80_000) == (32, False)
    assert choose(24_000) == (16, True)  # few records a pass leave a card idle (docs/log.md)
    assert choose(18_000) == (16, True)
    assert choose(16_000) == (8, True)
    assert choose(10_000) == (16, True)  # nothing fits: what was asked
    assert choose(140_000, may_regroup=False) == (16, False)
    assert choose(24_000, may_regroup=False) == (16, True)
    assert choose(140_000, may_skip=False) == (16, True)


OTHERS = [  # the same of other shapes: rows of 768, 1023 and 512 tokens
    ("chatglm-6b", 16, 4, 768, 257, 14_787),
    ("chatglm-6b", 16, 8, 768, 257, 17_684),
    ("chatglm-6b", 8, 4, 768, 257, 9_411),
    ("chatglm-6b", 4, 4, 768, 257, 6_810),
    ("moss-16b", 4, 4, 1023, 396, 17_111),
    ("moss-16b", 8, 2, 1023, 396, 19_999),
    ("cpmbee-10b", 8, 4, 512, 300, 11_725),
    ("cpmbee-10b", 4, 16, 512, 300, 13_650),
]
TOKENIZERS = {"moss-16b": ROOT / "tests/golden/moss", "cpmbee-10b": ROOT / "tests/golden/cpmbee"}


@pytest.mark.parametrize(("model", "bits", "batch", "tokens", "answers", "peak"), OTHERS)
def test_the_estimate_is_near_or_above_the_peaks_of_other_shapes(
    chatglm, tmp_path, model, bits, batch, tokens, answers, peak
):
    hidden, wide, layers, heads, vocabulary = random_base.SHAPES[model]
    kind, tokenizer = model.split("-")[0], TOKENIZERS.get(model, chatglm[0])
    random_base.CONFIGS[kind](hidden, wide, layers, heads, vocabulary, tokenizer).save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    family = find_family(tmp_path)[0]
    trained = memory.adapter_weights(shape, family.lora_targets, 16 if kind == "moss" else 8)
    plan = Plan(batch, 1, Precision("float16", bits), recompute=True)
    table = Rows(rows(tokens=tokens, answer=answers - 1))
    estimate = sum(planning.training_bytes(shape, table, plan, trained, False, "paged").values()) / MB
    assert 0.98 * peak < estimate < 1.11 * peak


def refused(seven, plan, free, full=False, trained=4_194_304, monkeypatch=None):
    monkeypatch.setattr(planning, "available", lambda device, cap: free * MB)
    with pytest.raises(UserError) as caught:
        planning.fit_training(seven, Rows(rows()), plan, trained, full, "adamw_torch", CARD, free)
    return str(caught.value)


def test_a_run_that_fits_is_said_in_one_line(seven, monkeypatch, capsys):
    monkeypatch.setattr(planning, "available", lambda device, cap: 24_000 * MB)
    plan = Plan(16, 8, Precision("float16", 8), True)
    planning.fit_training(seven, Rows(rows()), plan, 4_194_304, False, "adamw_torch", CARD, 24_000)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("memory: about 10,")
    assert "weights 6,676" in said[0]
    assert said[0].endswith("24,000 MB free")


def test_a_run_that_does_not_fit_names_the_flags_that_would_make_it(seven, monkeypatch):
    message = refused(seven, Plan(16, 8, Precision("float16", 8), False), 24_000, monkeypatch=monkeypatch)
    assert "24,000 MB --max_memory_MB 24000 allows" in message
    assert "what would fit: --gradient_checkpointing True, or --per_device_train_batch_size 4 " in message
    assert "--gradient_accumulation_steps 32" in message
    message = refused(seven, Plan(16, 8, HALF, True), 12_000, monkeypatch=monkeypatch)
    assert message.endswith("what would fit: --bits 8")


def test_two_flags_are_named_where_one_is_not_enough(seven, monkeypatch):
    message = refused(seven, Plan(16, 8, HALF, False), 9_000, monkeypatch=monkeypatch)
    assert "what would fit: --gradient_checkpointing True --bits 4" in message
    message = refused(seven, Plan(16, 8, HALF, True), 6_000, monkeypatch=monkeypatch)
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 32 --bits 4" in message


def test_what_fits_nowhere_says_so(seven, monkeypatch):
    assert "what would fit: LoRA instead of --full_finetune" in refused(
        seven, Plan(1, 1, Precision("float32", 16), True), 24_000, True, 6_738_415_616, monkeypatch
    )


def test_every_plan_that_is_named_fits_and_one_is_named_whenever_the_smallest_fits(seven):
    table = Rows(rows())

    def need(plan):
        return sum(planning.training_bytes(seven, table, plan, 4_194_304, False, "adamw_torch").values())

    for free in range(3_000, 60_000, 3_000):
        for plan in (Plan(16, 8, HALF, False), Plan(6, 1, HALF, True), Plan(3, 1, HALF, False, 16, 256)):
            smallest = Plan(1, 1, Precision("float16", 4), True, min(1, plan.answered), plan.answer_tokens)
            others = planning.plans_that_fit(plan, False, lambda other, free=free: need(other) <= free * MB)
            assert bool(others) == (need(smallest) <= free * MB)
            for other in others:
                assert need(other) <= free * MB
                assert other.batch * other.accumulation == plan.batch * plan.accumulation


def test_what_evaluation_answers_at_a_time_is_counted(seven, monkeypatch):
    plan = Plan(1, 1, Precision("float16", 8), True, 16, 256)
    counted = sum(planning.training_bytes(seven, Rows(rows()), plan, 0, False, "adamw_torch").values())
    assert counted > 16 * 764 * seven.cached * 2 + memory.weight_bytes(seven, plan.precision)
    assert "--per_device_eval_batch_size" in refused(seven, plan, 12_000, monkeypatch=monkeypatch)


def test_prediction_that_cannot_hold_its_weights_is_refused(seven, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device, cap: 9_000 * MB)
    with pytest.raises(UserError, match=r"prediction needs about 13,.* what would fit: --bits 8, or --bits 4"):
        memory.check_prediction(seven, 1024, HALF, CARD, None)
    memory.check_prediction(seven, 1024, Precision("float16", 8), CARD, None)


def test_on_a_cpu_too_little_memory_is_a_warning(seven, monkeypatch, capsys):
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("M", (), {"available": 5_000 * MB}))
    planning.fit_training(
        seven, Rows(rows()), Plan(16, 8, HALF, True), 1, False, "adamw_torch", torch.device("cpu"), None
    )
    assert "warning: the run needs about" in capsys.readouterr().err


def test_on_a_cpu_what_never_ends_there_is_refused(seven, monkeypatch):
    monkeypatch.setattr(machine, "MEMORY", 2_000 * MB)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("M", (), {"available": 1_000 * MB}))
    with pytest.raises(UserError, match=r"memory: the run needs about .*\(this machine has 2,000 MB, swap included\)"):
        planning.fit_training(
            seven, Rows(rows()), Plan(16, 8, HALF, True), 1, False, "adamw_torch", torch.device("cpu"), None
        )


def test_the_check_comes_before_the_base_is_loaded(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("memory: too much")

    monkeypatch.setattr(planning, "fit_training", refuse)
    monkeypatch.setattr(finetuning, "load_base", lambda *_: pytest.fail("the base was loaded first"))
    flags = {"model_name_or_path": GOLDEN / "checkpoint", "train_file": GOLDEN / "train.json", "output_dir": tmp_path}
    with pytest.raises(UserError, match="too much"):
        finetuning.main(["--do_train", *(str(w) for name, value in flags.items() for w in (f"--{name}", value))])
    assert not list(tmp_path.iterdir())


def test_what_ran_out_of_memory_is_refused(tmp_path):
    """MOSS, 4 bits, batch 8 needed more than 24,000 MB on the same card."""
    random_base.CONFIGS["moss"](*random_base.SHAPES["moss-16b"], TOKENIZERS["moss-16b"]).save_pretrained(tmp_path)
    plan, table = Plan(8, 1, Precision("float16", 4), recompute=True), Rows(rows(tokens=1023, answer=395))
    needs = planning.training_bytes(read_shape(tmp_path), table, plan, 13_369_344, False, "paged")
    assert sum(needs.values()) > 24_000 * MB


def test_logits_that_are_made_in_pieces_need_no_more_than_a_piece():
    whole, pieces, fewer = (
        memory.activation_bytes(TOY, Load(6, 3, logits), HALF, recompute=False, piece=piece)
        for logits, piece in ((4, None), (4, 120), (2, 120))
    )
    assert whole - pieces == 14 * (4 * 50 - 120)
    assert pieces - fewer == 14 * (120 - 2 * 50)


def test_how_many_logits_are_made_at_a_time(seven):
    assert planning.piece_of(seven, torch.device("cpu")) < planning.piece_of(seven, CARD)
    assert planning.piece_of(seven._replace(head_is_apart=False), CARD) is None  # capped or scaled ones: all
    assert planning.piece_of(None, CARD) is None
