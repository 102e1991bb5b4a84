"""MOSS against the published code under transformers 4.30.2 (tests/golden/moss: of the arrays of logits every fourth
column is kept, of the gradient every fourth row), and through the scripts.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import ROOT
from overfit import EIGHT, overfit, tiny_base
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.activations import ACT2FN

import inference
import test_finetune as finetuning
from checkpoints.family import find_family
from common.errors import UserError
from data.prompts import Piece, load_template
from decoding.answers import Rules
from decoding.batch_engine import answer
from loading.base import load_base
from loading.precision import Precision
from models.moss import MossConfig, MossForCausalLM
from tokens.batches import IGNORED
from tokens.readers import load_codec
from tokens.rows import Limits, encode_row

MOSS = ROOT / "tests" / "golden" / "moss"
GOLDEN = json.loads((MOSS / "golden.json").read_text(encoding="utf-8"))
ARRAYS = {name: torch.from_numpy(np.asarray(array)) for name, array in np.load(MOSS / "golden.npz").items()}


@pytest.fixture(scope="module")
def codec():
    return load_codec(MOSS, find_family(MOSS)[0])


@pytest.fixture(scope="module")
def model(codec):
    return load_base(MOSS, Precision("float32", 16), "cpu", codec).eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_base("moss-tiny", MOSS, tmp_path_factory.mktemp("bases"))


@pytest.fixture
def folder(tmp_path):
    """The golden checkpoint, to be spoilt."""
    return shutil.copytree(MOSS, tmp_path / "moss", ignore=shutil.ignore_patterns("golden.*"))


# Numbers


def test_logits_states_loss_and_gradient(model):
    model.zero_grad()
    out = model(input_ids=ARRAYS["fwd_input_ids"], labels=ARRAYS["loss_labels"], output_hidden_states=True)
    out.loss.backward()
    near = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(out.logits[..., ::4], ARRAYS["fwd_logits"], **near)
    torch.testing.assert_close(out.loss.double(), ARRAYS["loss"], **near)
    states = torch.stack([state[0] for state in out.hidden_states])
    # Numbers up to 26, with steps of 2e-6: a CPU that adds in another order (one without AVX) is 1.3e-5 away.
    torch.testing.assert_close(states, ARRAYS["fwd_hidden_states_seq0"], rtol=0, atol=5e-5)
    gradient = model.transformer.h[0].attn.qkv_proj.weight.grad
    torch.testing.assert_close(gradient[::4], ARRAYS["grad_qkv_proj_layer0"], **near)


def test_a_base_keeps_the_activation_of_its_config():
    sizes = {"vocab_size": 8, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4}
    numbers = torch.linspace(-4, 4, 99)
    for name in ("gelu_new", "relu"):
        (block,) = MossForCausalLM(MossConfig(**sizes, activation_function=name)).transformer.h
        torch.testing.assert_close(block.mlp.act(numbers), ACT2FN[name](numbers))


def test_greedy_answers_alone_in_a_batch_and_in_beams(model):
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 518}
    for ids, greedy, beams in zip(GOLDEN["prompt_ids"], GOLDEN["greedy_single"], GOLDEN["beam3_single"], strict=True):
        prompt, mask = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long)
        assert model.generate(prompt, attention_mask=mask, max_new_tokens=48, **options)[0].tolist() == greedy
        made = model.generate(prompt, attention_mask=mask, max_new_tokens=24, num_beams=3, **options)
        assert made[0].tolist() == beams
    batch = model.generate(
        ARRAYS["batch_input_ids"], attention_mask=ARRAYS["batch_attention_mask"], max_new_tokens=48, **options
    )
    assert batch.tolist() == GOLDEN["greedy_batch"]
    logits = model(input_ids=ARRAYS["batch_input_ids"], attention_mask=ARRAYS["batch_attention_mask"]).logits[:, -1]
    torch.testing.assert_close(logits[..., ::4], ARRAYS["batch_logits_last"], rtol=0, atol=2e-5)


def test_an_answer_stops_at_the_stop_token(model):
    stop = GOLDEN["greedy_stop"]
    prompt = torch.tensor([GOLDEN["prompt_ids"][stop["prompt"]]])
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=48, eos_token_id=stop["eos_token_id"]
    )
    assert made[0].tolist() == stop["ids"]


# Texts


def test_texts_become_the_ids_and_come_back(codec):
    for case in GOLDEN["tokenizer_cases"]:
        ids = codec.encode([Piece(case["text"], from_template=True)])
        assert ids == case["stock_v5_ids"], case["text"]
        assert codec.decode(ids) == case["stock_v5_decoded_skip_special"]
        assert codec.tokenizer.decode(ids) == case["stock_v5_decoded"]
    assert len(codec.tokenizer) == GOLDEN["len_tokenizer"]
    assert (codec.eos_id, codec.pad_id, codec.prefix_ids) == (GOLDEN["special_ids"]["<eom>"],) * 2 + ((),)
    assert codec.specials == GOLDEN["special_ids"]


def test_a_records_own_markers_stay_text(codec):
    ids = codec.encode([Piece("a<eom>b<|endoftext|>", from_template=False)])
    assert not set(ids) & set(codec.specials.values())
    assert codec.decode(ids) == "a<eom>b<|endoftext|>"


def test_training_rows_are_the_originals_where_nothing_was_cut(codec, tmp_path):
    example = GOLDEN["training_example"]
    record, whole = example["record"], len(max((v["input_ids"] for v in example["variants"]), key=len))
    start = "### Instruction:\n{instruction}\n\n"
    template = tmp_path / "short.json"
    keys = {"description": "", "response_split": "### Response:", "prompt_no_input": start + "### Response:\n"}
    template.write_text(json.dumps({**keys, "prompt_input": start + "### Input:\n{input}\n\n### Response:\n"}))
    compared = 0
    for variant in example["variants"]:
        if len(variant["input_ids"]) == whole:
            row = encode_row(codec, load_template(str(template)), record, Limits(variant["cutoff"]))
            assert (row.input_ids, row.labels) == (variant["input_ids"], variant["labels"])
            compared += 1
    assert compared


def test_runs_of_spaces_among_the_added_tokens_are_one_token_even_in_records(folder):
    added = json.loads((folder / "added_tokens.json").read_text())
    moved = {" " * 4: 517, "\t\t": 518, **{token: number + 2 for token, number in added.items()}}
    (folder / "added_tokens.json").write_text(json.dumps(moved))
    codec = load_codec(folder, find_family(folder)[0])
    ids = codec.encode([Piece("a    b\t\tc", from_template=False)])
    assert {517, 518} <= set(ids)
    assert codec.decode(ids) == "a    b\t\tc"
    assert codec.eos_id == 520


def test_newer_files_name_the_added_tokens_elsewhere(folder, codec):
    (folder / "added_tokens.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {"516": {"content": "<|endoftext|>"}} | {str(n): {"content": t} for t, n in GOLDEN["added_tokens"].items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "added_tokens_decoder": tokens}))
    other = load_codec(folder, find_family(folder)[0])
    assert other.specials == codec.specials
    assert other.eos_id == codec.eos_id


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "vocab.json").unlink(), "vocab.json.* found .*merges.txt"),
        (lambda folder: (folder / "added_tokens.json").write_text("{}"), "no added token <eom>"),
        (
            lambda folder: (folder / "added_tokens.json").write_text('{"<eom>": 530}'),
            "id 530, the next free one is 517",
        ),
        (lambda folder: (folder / "merges.txt").write_text("#version: 0.2\n"), "merges.txt holds no merge"),
    ],
)
def test_files_that_do_not_belong_together_are_named(folder, spoil, words):
    spoil(folder)
    with pytest.raises(UserError, match=words):
        load_codec(folder, find_family(folder)[0])


# Checkpoints and training


def test_gptq_files_are_refused(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "wbits": 4}))
    with pytest.raises(UserError, match=r"holds GPTQ's 4-bit or 8-bit weights; give moss-moon-003-sft .*wbits 4"):
        find_family(folder)


def test_lora_names_that_moss_lacks_are_refused_with_the_real_ones(tmp_path):
    records = tmp_path / "train.json"
    records.write_text(json.dumps(EIGHT[0]), encoding="utf-8")
    flags = f"--do_train --model_name_or_path {MOSS} --train_file {records} --output_dir {tmp_path / 'x'}"
    with pytest.raises(UserError, match="q_proj,v_proj: .* no such layer; .*fc_in, fc_out, out_proj, qkv_proj"):
        finetuning.main([*flags.split(), "--lora_target_modules", "q_proj,v_proj", "--prompt_template_name", "plain"])


def test_a_cutoff_beyond_the_positions_is_lowered_and_a_longer_prompt_fails(tmp_path, capsys):
    records = tmp_path / "train.json"
    records.write_text(json.dumps(EIGHT[0]), encoding="utf-8")
    flags = f"--do_train --model_name_or_path {MOSS} --train_file {records} --output_dir {tmp_path / 'x'} --max_steps 1"
    finetuning.main([*flags.split(), "--prompt_template_name", "plain"])
    assert "cutoff_len: 160 instead of 512 (the base has no more positions)" in capsys.readouterr().err
    records.write_text(json.dumps({**EIGHT[0], "input": "长" * 400}), encoding="utf-8")
    predict = f"--model_name_or_path {MOSS} --input_file {records} --output_file {tmp_path / 'out.json'}"
    with pytest.raises(UserError, match="1 of 1 records failed"):
        inference.main([*predict.split(), "--prompt_template_name", "plain"])
    assert re.search(r"failed: id 0: its prompt of \d+ tokens .* context of 160; --window", capsys.readouterr().err)


def test_an_answer_ends_where_the_positions_do(tmp_path):
    records, out = tmp_path / "in.json", tmp_path / "out.json"
    records.write_text(json.dumps(EIGHT[0]), encoding="utf-8")
    predict = f"--model_name_or_path {MOSS} --input_file {records} --output_file {out} --max_new_tokens 1000"
    inference.main([*predict.split(), "--prompt_template_name", "plain"])
    assert json.loads(out.read_text(encoding="utf-8"))["finish_reason"] == "length"


def test_lora_overfits_eight_records(tiny, tmp_path):
    assert overfit(tiny, tmp_path, lora_target_modules="qkv_proj,out_proj,fc_in,fc_out") == 1.0


def test_the_documented_qlora_command_runs(tiny, tmp_path):
    overfit(
        tiny,
        tmp_path,
        model_name=None,
        model_file="moss",
        prompt_template_name="moss",
        cutoff_len=2048,
        bits=4,
        optim="paged_adamw_32bit",
        max_grad_norm=0.3,
        lr_scheduler_type="constant",
        lora_r=16,
        lora_alpha=64,
        max_steps=2,
    )
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (run["family"], run["model_name"], run["precision"]["bits"]) == ("moss", "moss", 4)
    assert run["lora"]["lora_target_modules"] == ["qkv_proj"]
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert "base_model.model.transformer.h.0.attn.qkv_proj.lora_A.weight" in adapter


def test_a_fully_fine_tuned_model_is_a_moss_checkpoint_again(tiny, tmp_path):
    overfit(tiny, tmp_path, more=["--full_finetune"], max_steps=2, lora_r=None, lora_alpha=None, lora_dropout=None)
    family, name, _ = find_family(tmp_path / "run")
    assert (family.name, name) == ("moss", "moss")
    assert load_codec(tmp_path / "run", family).specials == load_codec(tiny, family).specials


def test_the_stock_tokenizer_class_still_rejects_the_published_layout():
    """Why models/moss.py reads the files itself; when this fails, it may be time to drop that code."""
    with pytest.raises(Exception, match=r"trust_remote_code|List\[Union"):
        AutoTokenizer.from_pretrained(MOSS, trust_remote_code=False)


def test_no_label_on_the_prompt(codec):
    row = encode_row(codec, load_template("plain"), EIGHT[0], Limits(512))
    learnt = [label for label in row.labels if label != IGNORED]
    assert codec.decode(learnt) == EIGHT[0]["output"]
    assert learnt[-1] == codec.eos_id


def test_an_answer_near_the_last_position_does_not_depend_on_its_neighbours(model, codec):
    long, short = GOLDEN["prompt_ids"][0] * 8, GOLDEN["prompt_ids"][1]
    assert len(long) == 144
    alone = [answer(model, codec, [prompt], Rules(40))[0] for prompt in (long, short, long[:-4])]
    assert [answer.tokens for answer in alone] == [16, 40, 20]
    assert answer(model, codec, [long, short, long[:-4]], Rules(40)) == alone
    for more in ({"repetition_penalty": 1.5}, {"do_sample": True, "temperature": 2.0}):  # the padding is <eom>
        rules = Rules(40, **more)
        alone = [answer(model, codec, [ids], rules, [n])[0] for n, ids in enumerate((long, short, long[:-4]))]
        assert answer(model, codec, [long, short, long[:-4]], rules) == alone


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", "[]"),
        ("vocab.json", "[]"),
        ("merges.txt", "a b\nhalf"),
        ("config.json", '{"n_embd": "x"}'),
    ],
)
def test_damaged_tokenizer_files_are_one_clear_error(folder, file, content):
    family = find_family(folder)[0]
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=r"config or tokenizer cannot be read [\s\S]* found .*vocab.json"):
        load_codec(folder, family)


def test_tensors_that_the_model_has_not_are_refused(folder, codec):
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.9.extra"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="hold 1 tensors that config.json does not ask for, e.g. transformer.h.9.extra"):
        load_base(folder, Precision("float32", 16), "cpu", codec)
