"""P-Tuning v2: its rows, its prefix on every supported architecture, its steps, checkpoints and predictions."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import CHATGLM, GOLDEN, ROOT
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

import finetuning_pt
import inference_pt
import models.moss  # noqa: F401 - teaches transformers its name
from utils import args_pt, memory, prefix, pt_checkpoints
from utils import engine as engines
from utils.args_pt import parse_ptuning
from utils.errors import UserError
from utils.families import find_family
from utils.generating import generate
from utils.precision import Precision
from utils.prefix import Kind, Prefixed, find_prefix, load_trained, load_with_prefix, named, save_prefix
from utils.prompter import load_template
from utils.ptuning_rows import encode, encode_question, layout_a, make_questions, make_rows
from utils.records import load
from utils.score import score
from utils.steps import answer_tokens, learning_rates, plan_epoch
from utils.tokens import IGNORED, load_codec

SCRIPT = ROOT / "src" / "finetuning_pt.py"
FLOAT32 = Precision("float32", 16)
PLAIN = load_template("plain")
PAIRS = [("A", "in", "B"), ("C", "in", "D"), ("E", "of", "F"), ("G", "of", "H")]
PAIRS += [(tail, relation, head) for head, relation, tail in PAIRS]
RECORDS = [
    {
        "id": i,
        "instruction": f"relations: ['{relation}']",
        "input": f"{head} {tail}",
        "output": f"({head},{relation},{tail})",
    }
    for i, (head, relation, tail) in enumerate(PAIRS)
]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A LLaMA of random weights, larger than a trained one's, so that its layers do look at the prefix."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(GOLDEN / "checkpoint" / name, folder)
    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(GOLDEN / "checkpoint", intermediate_size=128)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def train_path(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "train.json"
    file.write_text("\n".join(json.dumps(record) for record in RECORDS), encoding="utf-8")
    return file


@pytest.fixture
def flags(base, train_path):
    def make(output, *more, **values):
        """A short run's command line; `values` replace or add flags."""
        chosen = {
            "train_path": train_path,
            "model_dir": base,
            "output_dir": output,
            "prompt_template_name": "plain",
            "max_len": 120,
            "max_src_len": 80,
            "pre_seq_len": 4,
            "train_batch_size": 2,
            "max_steps": 4,
            "log_steps": 1,
            **values,
        }
        return [*more, *(str(part) for name, value in chosen.items() for part in (f"--{name}", value))]

    return make


def log(output):
    return [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]


def weights(output, step):
    """Every part of the trained weights that a checkpoint holds for going on."""
    files = sorted((Path(output) / f"global_step-{step}" / "state").iterdir())
    return torch.cat([part for file in files for part in torch.load(file, weights_only=True)["weights"]])


# Rows


def test_layout_a_joins_by_token_count_and_learns_sop():
    row = layout_a([1, 2], [3, 4, 5], [6, 7], (91, 92, 99), max_len=12, max_src_len=6)
    assert row.input_ids == [1, 2, 3, 4, 5, 91, 92, 6, 7, 99]
    assert row.labels == [*[IGNORED] * 6, 92, 6, 7, 99]
    assert (row.cut, row.answer_cut) == (False, False)


def test_layout_a_cuts_the_text_to_what_the_instruction_leaves():
    row = layout_a([1, 2], [3, 4, 5, 6, 7], [8], (91, 92, 99), max_len=12, max_src_len=4)
    assert row.input_ids == [1, 2, 3, 4, 91, 92, 8, 99]
    assert (row.cut, row.needs_source) == (True, 7)


def test_layout_a_says_which_max_len_would_keep_an_answer_and_gives_a_cut_one_no_end():
    long = [8, 9, 10, 11, 12]
    row = layout_a([1, 2], [3], long, (91, 92, 99), max_len=11, max_src_len=4)
    assert row.input_ids == [1, 2, 3, 91, 92, 8, 9, 10, 11]
    assert row.answer_cut
    whole = layout_a([1, 2], [3], long, (91, 92, 99), max_len=row.needs, max_src_len=4)
    assert whole.input_ids == [1, 2, 3, 91, 92, *long, 99]
    assert not whole.answer_cut
    assert layout_a([1, 2], [3], long, (91, 92, 99), max_len=row.needs - 1, max_src_len=4).answer_cut


def test_layout_a_drops_what_loses_its_instruction_and_keeps_one_that_just_fits():
    assert layout_a([1, 2, 3, 4, 5], [6], [7], (91, 92, 99), max_len=12, max_src_len=4).input_ids == []
    row = layout_a([1, 2, 3, 4], [6], [7], (91, 92, 99), max_len=12, max_src_len=4)
    assert row.input_ids == [1, 2, 3, 4, 91, 92, 7, 99]


def published(name, folder):
    """A tiny ChatGLM-6B as published, tokenizer and all: its folder and its codec."""
    shutil.copytree(CHATGLM / name, folder)
    shutil.copy(CHATGLM / "ice_text.model", folder)
    return folder, load_codec(folder, find_family(folder)[0])


@pytest.fixture(scope="session")
def chatglm(tmp_path_factory):
    return published("base", tmp_path_factory.mktemp("chatglm") / "base")


def test_a_codec_with_tokens_between_has_rows_of_layout_a_and_asks_with_their_beginning(chatglm):
    codec = chatglm[1]
    record = {"instruction": "抽取[gMASK]三元组", "input": "北京是中国的首都。", "output": "(北京,首都,中国)"}
    row = encode(codec, {}, record, 768, 450)
    parts = [codec.text_ids(record[name]) for name in ("instruction", "input", "output")]
    assert row.input_ids == [*parts[0], *parts[1], *codec.suffix_ids, *parts[2], codec.eos_id]
    assert row.input_ids.count(codec.suffix_ids[0]) == 1
    asked, cut = encode_question(codec, {}, record, 450)
    assert asked == row.input_ids[: len(asked)]
    assert row.labels[len(asked) - 1 : len(asked)] == [codec.suffix_ids[1]]
    assert not cut


def test_rows_with_a_template_keep_the_prompt_within_max_src_len_and_the_answer_whole(base):
    codec = load_codec(base, find_family(base)[0])
    record = {**RECORDS[0], "input": "A B " * 50}
    row = encode(codec, PLAIN, record, 120, 60)
    asked, cut = encode_question(codec, PLAIN, record, 60)
    assert cut
    assert row.cut
    assert 57 < len(asked) <= 60
    assert row.input_ids[: len(asked)] == asked
    assert row.labels[: len(asked)] == [IGNORED] * len(asked)
    assert codec.decode(row.labels[len(asked) :]) == record["output"]
    assert row.labels[-1] == codec.eos_id
    assert encode(codec, PLAIN, record, 1000, row.needs_source).cut is False
    assert encode(codec, PLAIN, record, 1000, row.needs_source - 1).cut is True


def test_what_is_cut_or_left_out_is_said_and_a_question_too_long_is_an_error(base, chatglm, capsys):
    codec = load_codec(base, find_family(base)[0])
    long = {**RECORDS[1], "id": 77, "instruction": "x " * 200}
    rows = make_rows(codec, PLAIN, [RECORDS[0], long], 120, 80)
    assert len(rows) == 1
    assert "1 records left out (id 77)" in capsys.readouterr().err
    with pytest.raises(UserError, match="no record of --train_path fits"):
        make_rows(codec, PLAIN, [long], 120, 80)
    with pytest.raises(UserError, match="--max_src_len 80: the instruction of the record id 77 is longer"):
        make_questions(codec, PLAIN, [RECORDS[0], long], 80)
    answers = [{**RECORDS[0], "output": "北京" * size} for size in (8, 9)]
    make_rows(chatglm[1], {}, answers, 30, 20)
    said = capsys.readouterr().err
    most = 20 + 3 + len(chatglm[1].text_ids("北京" * 9))
    assert f"2 answers lost their end (no end-of-answer token is learnt from them); --max_len {most} would" in said


# Steps


@pytest.mark.parametrize("passes", [1, 3])
def test_an_epoch_takes_every_record_once_however_many_processes_share_it(passes):
    lengths = [5, 9, 3, 7, 7, 2, 8, 4, 6, 1, 3, 11, 5]
    alone = plan_epoch(lengths, 4, passes, 1, 0, 0)
    both = plan_epoch(lengths, 2, passes, 2, 0, 0)
    for steps in (alone, both):
        assert sorted(i for step in steps for turn in step for part in turn for i in part) == list(range(13))
        assert all(len(step) == passes for step in steps)
    one, two = ([[list(chain(*turn)) for turn in step] for step in steps] for steps in (alone, both))
    assert one == two
    assert plan_epoch(lengths, 4, passes, 1, 0, 1) != alone


def test_the_learning_rate_rises_and_falls(flags):
    args = parse_ptuning(flags("out", learning_rate=0.1, warmup_steps=0.2))[1]
    rate = learning_rates(args, 10)
    assert [round(rate(step), 4) for step in (0, 1, 2, 9)] == [0, 0.05, 0.1, 0.0125]


def test_tokens_are_counted_as_the_loss_sees_them():
    assert answer_tokens({"labels": [5, IGNORED, 6, 7]}) == 2


# The prefix

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
    return model(input_ids=ids, attention_mask=mask, logits_to_keep=torch.arange(width) if keep is None else keep)


class Letters:
    """A codec whose text is its ids."""

    pad_id, eos_id, context = 0, 99, None

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.mark.parametrize("model_type", prefix.SUPPORTED)
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
    assert [answer.text for answer in generate(model, Letters(), rows, 5)] == expected
    assert [generate(model, Letters(), [row], 5)[0].text for row in rows] == expected

    def gradients():
        model.train().zero_grad()
        logits(model, rows).logsumexp(-1).mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    before = gradients()
    assert len(before) == 5
    assert all(gradient.abs().max() > 0 for gradient in before)
    if model_type not in prefix.NO_RECOMPUTING:
        model.recompute()
        layers = [module for module in model.base.modules() if getattr(module, "gradient_checkpointing", False)]
        assert layers
        for one, two in zip(before, gradients(), strict=True):
            torch.testing.assert_close(one, two)


def test_the_lists_of_architectures_agree():
    assert set(prefix.NO_RECOMPUTING) < set(prefix.SUPPORTED)
    assert set(MORE) <= set(prefix.SUPPORTED)


@pytest.mark.parametrize("projection", [True, False])
def test_the_number_of_weights_is_known_before_the_base_is_loaded(base, projection):
    kind, codec = Kind(5, projection), load_codec(base, find_family(base)[0])
    model = load_with_prefix(base, find_family(base)[0], kind, FLOAT32, "cpu", codec)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == prefix.count_weights(memory.read_shape(base), kind)
    grouped = random_model("llama", projection)  # two keys for four heads: the prefix is narrower than the base
    grouped.base.config.save_pretrained(base.parent / "grouped")
    expected = prefix.count_weights(memory.read_shape(base.parent / "grouped"), Kind(3, projection))
    assert sum(parameter.numel() for parameter in grouped.parameters()) == expected


def test_the_prefix_stays_in_32_bits_over_a_base_in_16_and_is_all_that_is_trained(base):
    family = find_family(base)[0]
    codec = load_codec(base, family)
    model = load_with_prefix(base, family, Kind(4, True), Precision("bfloat16", 16), "cpu", codec)
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
    assert sum(p.numel() for p in model.parameters()) == prefix.count_weights(memory.read_shape(base), kind)
    save_prefix(model.eval(), base, kind, tmp_path)
    saved = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert saved.keys() == named(model).keys()
    assert json.loads((tmp_path / "config.json").read_text())["pre_seq_len"] == 4
    assert find_prefix(tmp_path, own, memory.read_shape(base)) == kind
    again = load_trained(base, own, kind, tmp_path, FLOAT32, "cpu", codec).eval()
    ids = codec.text_ids("北京是中国的首都。") + list(codec.suffix_ids)
    assert torch.equal(logits(model, [ids]), logits(again, [ids]))
    answers = generate(again, codec, [ids, ids[3:]], 5)
    assert answers == [generate(again, codec, [row], 5)[0] for row in (ids, ids[3:])]


@pytest.mark.parametrize("name", ["ptv2-mlp", "ptv2-emb"])
def test_a_whole_model_with_its_encoder_is_a_checkpoint_too(tmp_path, name):
    """Of the published script: its prefix is taken out of it, and over its own base it answers as it does itself."""
    folder, codec = published(name, tmp_path / name)
    own = find_family(folder)[0]
    kind = find_prefix(folder, own, memory.read_shape(folder))
    assert kind.projection == (name == "ptv2-mlp")
    model = load_trained(folder, own, kind, folder, FLOAT32, "cpu", codec).eval()
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [*codec.text_ids("北京是中国的首都。"), *codec.suffix_ids]
    torch.testing.assert_close(logits(model, [ids]), whole(input_ids=torch.tensor([ids])).logits)
    with pytest.raises(UserError, match="it was trained on another base"):
        find_prefix(folder, own, memory.read_shape(CHATGLM / "base")._replace(cached=7))


# The engine


def test_deepspeeds_configuration_takes_a_file_but_not_what_flags_decide(flags, tmp_path):
    file = tmp_path / "ds.json"

    def config(settings):
        file.write_text(json.dumps(settings))
        return engines.make_config(parse_ptuning(flags("out", deepspeed=file, train_batch_size=3))[1])

    found = config({"zero_optimization": {"stage": 2}, "wall_clock_breakdown": True, "optimizer": "auto"})
    assert found["zero_optimization"]["stage"] == 2
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert (found["wall_clock_breakdown"], found["train_micro_batch_size_per_gpu"]) == (True, 3)
    with pytest.raises(UserError, match="optimizer cannot be set there: --learning_rate and --weight_decay decide"):
        config({"optimizer": {"type": "Adam"}})
    with pytest.raises(UserError, match="stage 3: expected 1 or 2"):
        config({"zero_optimization": {"stage": 3}})
    with pytest.raises(UserError, match="train_micro_batch_size_per_gpu cannot be set there: --train_batch_size"):
        config({"train_micro_batch_size_per_gpu": 8})


def steps_of(flags, scaled, losses):
    """The weights after steps whose losses are scaled by `losses`, and the scale in the end."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    args = parse_ptuning(flags("out", learning_rate=0.1))[1]
    with engines.processes() as deepspeed:
        engine = engines.make_engine(deepspeed, model, args)
        if scaled:
            engines.scale_loss(engine)
        for factor in losses:
            engine.backward(engine(torch.ones(1, 3)).square().sum() * factor)
            engine.step()
        return model.weight.detach().clone(), engine.optimizer.loss_scale


def test_the_engine_scales_the_loss_without_changing_the_step_and_leaves_out_an_overflow(flags):
    plain, scale = steps_of(flags, False, [1.0, 0.5])
    scaled, first = steps_of(flags, True, [1.0, 0.5])
    assert (scale, first) == (1.0, engines.FIRST_SCALE)
    assert torch.equal(plain, scaled)
    skipped, lowered = steps_of(flags, True, [1.0, float("inf"), 0.5])
    assert torch.equal(skipped, plain)
    assert lowered == first / 2


# Runs


def test_a_run_learns_eight_records_by_heart_and_prediction_gets_them_all(flags, tmp_path, base):
    """A frozen base of random weights: what is learnt is in the prefix alone."""
    out, file = tmp_path / "out", tmp_path / "train.json"
    finetuning_pt.main(
        flags(out, pre_seq_len=32, train_batch_size=8, learning_rate=2e-2, max_steps=400, log_steps=50, save_steps=400)
    )
    assert log(out)[-1]["loss"] < 0.15 < log(out)[0]["loss"]
    gold = [{**record, "cate": "x"} for record in RECORDS]
    file.write_text("\n".join(json.dumps(record) for record in RECORDS))
    words = ["--test_path", file, "--device", "0", "--model_dir", out / "global_step-400"]
    inference_pt.main([*map(str, words), "--ori_model_dir", str(base), "--max_len", "120", "--max_src_len", "80"])
    predicted = load(out / "train_global_step-400.json")
    assert [record["output"] for record in predicted] == [record["output"] for record in RECORDS]
    figures = score([{**record, "cate": "x", "kg": None} for record in predicted], gold)
    assert figures["f1"] == 1.0
    # In batches of another size, and without naming the base:
    inference_pt.main([*map(str, words), "--batch_size", "3", "--output_file", str(tmp_path / "again.json")])
    assert load(tmp_path / "again.json") == predicted


def test_a_base_in_float16_is_trained_with_a_scaled_loss(flags, tmp_path, monkeypatch):
    """float16 is chosen on a GPU only; a CPU can compute in it all the same."""
    monkeypatch.setattr(args_pt, "choose_dtype", lambda *_: "float16")
    finetuning_pt.main(flags(tmp_path, pre_seq_len=32, train_batch_size=8, learning_rate=2e-2, max_steps=80))
    assert log(tmp_path)[-1]["loss"] < 0.5 * log(tmp_path)[0]["loss"]
    state = torch.load(tmp_path / "global_step-80" / "state" / "rank-0.pt", weights_only=True)
    assert state["weights"][0].dtype == torch.float32
    assert 1 < state["scaler"]["cur_scale"] <= engines.FIRST_SCALE
    assert state["scaler"]["cur_iter"] == 80


def test_a_checkpoint_holds_the_prefix_alone_and_describes_itself(flags, tmp_path, base):
    finetuning_pt.main(flags(tmp_path, num_train_epochs=3, max_steps=-1, save_total_limit=2))
    assert [step for step, _ in pt_checkpoints.steps_in(tmp_path)] == [8, 12]  # four steps an epoch
    newest, older = tmp_path / "global_step-12", tmp_path / "global_step-8"
    assert (newest / "state").is_dir()
    assert not (older / "state").exists()
    assert not list(tmp_path.glob("tmp-*"))
    for folder in (newest, older):
        saved = prefix.check_weights(folder)
        assert {name: tensor.shape for name, tensor in saved.items()} == {"prompt_embeddings": (4, 2 * 3 * 64)}
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "PREFIX_TUNING"
        assert (folder / "tokenizer.model").is_file()
    run = json.loads((newest / "run.json").read_text())
    assert (run["step"], run["base"], run["template_name"]) == (12, str(base.resolve()), "plain")
    whole = json.loads((tmp_path / "run.json").read_text())
    assert whole["status"] == "finished"
    assert whole["results"]["steps"] == 12
    assert whole["versions"]["deepspeed"]
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert [row["step"] for row in log(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("moment", [1, 3])
def test_killed_and_resumed_gives_the_same_bits_as_uninterrupted(flags, tmp_path, base, moment):
    """kill -9 when a checkpoint appears, or is being written; the base's dropout draws random numbers."""
    shaky = tmp_path / "base"
    shutil.copytree(base, shaky)
    config = json.loads((shaky / "config.json").read_text())
    (shaky / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.2}))
    long = {"model_dir": shaky, "max_steps": 18, "save_steps": 3, "gradient_accumulation_steps": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finetuning_pt.main(flags(whole, **long))
    command = [sys.executable, str(SCRIPT), *flags(killed, "--resume", **long)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    waited = time.time()
    while process.poll() is None and len(list(killed.glob("*global_step-*"))) < moment:
        assert time.time() - waited < 120
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "global_step-18").exists()
    finetuning_pt.main(flags(killed, "--resume", **long))
    assert torch.equal(weights(whole, 18), weights(killed, 18))
    one, two = (prefix.check_weights(folder / "global_step-18") for folder in (whole, killed))
    assert torch.equal(one["prompt_embeddings"], two["prompt_embeddings"])
    assert [row["step"] for row in log(killed)] == list(range(1, 19))
    assert not list(killed.glob("tmp-*"))


@pytest.mark.parametrize("bits", [8, 4])
def test_chatglm_goes_the_whole_way(bits, flags, tmp_path, chatglm, train_path):
    """Computing layers twice changes nothing; what is saved are the encoder's tensors, and prediction takes them."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    common = {"model_dir": chatglm[0], "max_steps": 3, "train_batch_size": 3, "learning_rate": 1e-2}
    finetuning_pt.main(flags(once, **common))
    finetuning_pt.main(flags(twice, **common, gradient_checkpointing="true"))
    torch.testing.assert_close(weights(once, 3), weights(twice, 3), atol=1e-6, rtol=1e-5)
    finetuning_pt.main(flags(twice, "--overwrite_output_dir", **common, bits=bits))  # the encoder is not quantised
    step = once / "global_step-3"
    saved = torch.load(step / "pytorch_model.bin", weights_only=True)
    assert {name.rsplit(".", 2)[0] for name in saved} >= {"transformer.prefix_encoder"}
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert (step / "ice_text.model").is_file()
    config = json.loads((step / "config.json").read_text())
    assert (config["model_type"], config["pre_seq_len"], config["prefix_projection"]) == ("chatglm", 4, True)
    words = ["--test_path", str(train_path), "--model_dir", str(step), "--max_new_tokens", "4"]
    inference_pt.main(words)
    assert [record["id"] for record in load(once / "train_global_step-3.json")] == [r["id"] for r in RECORDS]
    (step / "run.json").unlink()  # a checkpoint of the published script has none
    more = ["--ori_model_dir", str(chatglm[0]), "--max_src_len", "80", "--output_file", str(tmp_path / "again.json")]
    inference_pt.main([*words, *more])
    assert load(tmp_path / "again.json") == load(once / "train_global_step-3.json")


def deepspeed(*words, **variables):
    """DeepSpeed's launcher, as a user calls it in the project's folder."""
    command = [str(Path(sys.executable).with_name("deepspeed")), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stderr + done.stdout


def test_the_documented_command_runs_as_it_is_written(tmp_path):
    words = f"""--include localhost:0 src/finetuning_pt.py
        --train_path {GOLDEN}/train.json --model_dir {GOLDEN}/checkpoint --num_train_epochs 1
        --train_batch_size 2 --gradient_accumulation_steps 1 --output_dir {tmp_path} --log_steps 10
        --max_len 768 --max_src_len 450 --pre_seq_len 16 --prefix_projection true"""
    code, said = deepspeed(*words.split())
    assert code == 0, said[-2000:]
    assert "trained 6 steps (1.00 epochs)" in said
    assert (tmp_path / "global_step-6" / "adapter_config.json").is_file()


def test_two_processes_learn_what_one_learns(flags, tmp_path):
    """The same three records a step; in the last step of an epoch one process has none."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    common = {"max_steps": 6, "learning_rate": 1e-2}
    finetuning_pt.main(flags(alone, **common, train_batch_size=2))
    code, said = deepspeed("--num_gpus", 2, "--master_port", 29613, SCRIPT, *flags(both, **common, train_batch_size=1))
    assert code == 0, said[-2000:]
    one, two = ([row["loss"] for row in log(folder)] for folder in (alone, both))
    assert one == pytest.approx(two, rel=1e-5)
    size = len(weights(alone, 6))
    torch.testing.assert_close(weights(alone, 6), weights(both, 6)[:size], atol=1e-4, rtol=1e-4)
    assert said.count("family: llama") == 1
    with pytest.raises(UserError, match="written by 2 processes; go on with as many, not 1"):
        finetuning_pt.main(flags(both, "--resume", **common, train_batch_size=1))


def test_a_run_is_not_overwritten_or_continued_otherwise_in_silence(flags, tmp_path, capsys):
    finetuning_pt.main(flags(tmp_path, max_steps=2))
    with pytest.raises(UserError, match=r"holds a run already .global_step-2.; .* --resume to go on"):
        finetuning_pt.main(flags(tmp_path, max_steps=2))
    with pytest.raises(UserError, match="the run to resume was started otherwise .seed: 42 then, 7 now"):
        finetuning_pt.main(flags(tmp_path, "--resume", max_steps=2, seed=7))
    with pytest.raises(UserError, match="started otherwise .prefix: .*4.* then, .*5"):
        finetuning_pt.main(flags(tmp_path, "--resume", max_steps=2, pre_seq_len=5))
    capsys.readouterr()
    finetuning_pt.main(flags(tmp_path, "--resume", max_steps=2))
    assert "finished already, nothing to train" in capsys.readouterr().err
    finetuning_pt.main(flags(tmp_path, "--resume", max_steps=3))
    assert [row["step"] for row in log(tmp_path)] == [1, 2, 3]
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"status": "training"}))  # killed behind its last checkpoint
    finetuning_pt.main(flags(tmp_path, "--resume", max_steps=3))
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"
    finetuning_pt.main(flags(tmp_path, "--overwrite_output_dir", max_steps=1))
    assert [step for step, _ in pt_checkpoints.steps_in(tmp_path)] == [1]
    assert [row["step"] for row in log(tmp_path)] == [1]


def test_a_loss_that_is_no_number_ends_the_run(flags, tmp_path):
    with pytest.raises(UserError, match="the loss is nan; lower --learning_rate"):
        finetuning_pt.main(flags(tmp_path, learning_rate=1e38, max_steps=20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_path": GOLDEN / "valid.json"}, "looks like the test set"),
        ({"model_dir": GOLDEN / "adapter"}, "is a LoRA adapter, not a base"),
        ({"model_name": "lama"}, "not a family; known"),
        ({"max_src_len": 118}, "--max_len 120 and --max_src_len 118 leave no room for an answer"),
        ({"pre_seq_len": 0}, "--pre_seq_len 0: expected at least 1"),
        ({"prefix_projection": "maybe"}, "--prefix_projection"),
        ({"lr_scheduler_type": "linea"}, "--lr_scheduler_type: invalid choice: 'linea'"),
        ({"deepspeed": "/nowhere.json"}, "--deepspeed /nowhere.json: no such file"),
        ({"lora_r": 8}, "--lora_r: unknown flag"),
        ({"num_train_epochs": 0, "max_steps": -1}, "--num_train_epochs 0: nothing would be trained"),
        ({"learning_rat": 8}, "--learning_rat: unknown flag; did you mean --learning_rate"),
    ],
)
def test_bad_input_of_training_is_one_clear_error_before_the_base_is_loaded(
    flags, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(finetuning_pt, "load_with_prefix", lambda *_, **__: pytest.fail("the base was loaded first"))
    with pytest.raises(UserError, match=message):
        finetuning_pt.main(flags(tmp_path, **change))


def test_an_architecture_that_takes_no_prefix_is_an_error_that_names_those_that_do(flags, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="does not work with model_type 'mamba'.*llama, mistral.*LoRA"):
        finetuning_pt.main(flags(tmp_path / "out", model_dir=tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="--gradient_checkpointing: this architecture cannot"):
        finetuning_pt.main(flags(tmp_path / "out", "--gradient_checkpointing", "true", model_dir=tmp_path))


def test_bad_input_of_prediction_is_one_clear_error(flags, tmp_path, base, train_path, monkeypatch):
    finetuning_pt.main(flags(tmp_path / "out", max_steps=2, save_steps=1))
    step = tmp_path / "out" / "global_step-2"
    monkeypatch.setattr(inference_pt, "load_trained", lambda *_, **__: pytest.fail("the base was loaded first"))

    def error(model_dir, *more):
        with pytest.raises(UserError) as caught:
            inference_pt.main(["--test_path", str(train_path), "--model_dir", str(model_dir), *map(str, more)])
        return str(caught.value)

    steps = "holds the steps global_step-1, global_step-2"
    assert steps in error(tmp_path / "out" / "global_step-")
    assert steps in error(tmp_path / "out")
    assert "an adapter of LoRA is for" in error(GOLDEN / "adapter", "--ori_model_dir", base)
    assert "--ori_model_dir is missing" in error(GOLDEN / "adapter")
    assert "trained on another base" in error(step, "--ori_model_dir", ROOT / "models" / "smollm2-135m-instruct")
    assert "leave no room" in error(step, "--max_len", 81)
    assert "--device 1x" in error(step, "--device", "1x")
    assert "is an input of this command" in error(step, "--output_file", train_path)
    assert "--model_dri: unknown flag; did you mean --model_dir" in error(step, "--model_dri", step)
    torch.save({"prompt_embeddings": torch.full((4, 384), float("nan"))}, step / "adapter_model.bin")
    (step / "adapter_model.safetensors").unlink()
    assert "NaN or infinity" in error(step)


def test_booleans_are_read_as_such():
    def parsed(*words):
        return parse_ptuning(["--train_path", "t.json", "--model_dir", "m", "--output_dir", "o", *words])[1]

    assert parsed("--prefix_projection", "false").prefix_projection is False
    assert parsed("--prefix_projection", "true").prefix_projection is True
    assert parsed().learning_rate == 1e-3
    assert parsed("--prefix_projection", "false").learning_rate == 2e-2
    assert parsed("--local_rank=3").local_rank == 3
