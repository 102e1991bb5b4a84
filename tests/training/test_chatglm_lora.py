"""ChatGLM-6B through the scripts: rows, refused checkpoints, LoRA that learns, adapters of 2023."""

import json

import pytest
import torch
from helpers import CHATGLM, GOLDEN, published
from helpers_chatglm import Golden, near
from overfit import EIGHT, overfit, tiny_base
from safetensors.torch import load_file

import inference
import test_finetune as finetuning
from checkpoints.family import find_family, may_run_code
from common.errors import UserError
from data.prompts import Piece, load_template, make_prompt
from loading.base import load_base
from loading.lora import add_lora
from loading.precision import Precision
from tokens.batches import IGNORED, make_collator
from tokens.readers import load_codec
from tokens.rows import Limits, encode_row

ALPACA = load_template("alpaca")
EVERY_LAYER = "query_key_value,dense,dense_h_to_4h,dense_4h_to_h"


@pytest.fixture
def folder(tmp_path):
    """The golden checkpoint with its tokenizer, to be spoilt."""
    return published("base", tmp_path / "chatglm")[0]


@pytest.fixture
def codec(folder):
    return load_codec(folder, find_family(folder)[0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    for file in (CHATGLM / "ice_text.model", CHATGLM / "base" / "tokenizer_config.json"):
        (tokenizer / file.name).write_bytes(file.read_bytes())
    return tiny_base("chatglm-tiny", tokenizer, tokenizer.parent)


def change(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# Rows


def test_a_row_is_prompt_gmask_sop_answer_eop(codec):
    pair = json.loads((CHATGLM / "base" / "golden.json").read_text(encoding="utf-8"))["tokenizer"]["pair"]
    start, answer = codec.encode_pair([Piece(pair["text"], from_template=True)], pair["text_pair"])
    assert [*start, *answer, codec.eos_id] == pair["ids"]
    assert start == codec.encode([Piece(pair["text"], from_template=True)])


@pytest.mark.parametrize("record", EIGHT[:3])
def test_only_the_answer_is_learnt_and_the_prompt_is_that_of_prediction(codec, record):
    row = encode_row(codec, ALPACA, record, Limits(None, 512, 256))
    start = codec.encode(make_prompt(ALPACA, record["instruction"], record["input"]))
    assert row.input_ids[: len(start)] == start
    assert start[-2:] == [codec.tokenizer.gmask_token_id, codec.tokenizer.bos_token_id]
    assert row.labels == [IGNORED] * len(start) + row.input_ids[len(start) :]
    assert codec.decode(row.input_ids[len(start) : -1]) == record["output"]
    assert row.input_ids[-1] == codec.eos_id
    assert not row.cut
    assert not row.answer_cut


def test_a_long_prompt_loses_the_end_of_its_text_only(codec):
    record = {**EIGHT[0], "input": EIGHT[0]["input"] * 40}
    row = encode_row(codec, ALPACA, record, Limits(None, 300, 256))
    start = row.labels.count(IGNORED)
    assert row.cut
    assert 290 < start <= 300
    text = codec.decode(row.input_ids[:start])
    assert "抽取关系:出生地" in text  # full-width punctuation becomes ASCII
    assert text.endswith("### Response:\n")
    assert codec.decode(row.input_ids[start:]) == record["output"]


def test_a_long_answer_is_cut_without_teaching_to_stop_there(codec):
    record = {**EIGHT[0], "output": EIGHT[0]["output"] * 40}
    row = encode_row(codec, ALPACA, record, Limits(None, 512, 50))
    learnt = [label for label in row.labels if label != IGNORED]
    assert row.answer_cut
    assert len(learnt) == 50
    assert codec.eos_id not in learnt
    assert row.answer_tokens > 50


@pytest.mark.parametrize("layout", ["trainA", "trainB"])
def test_the_collator_gives_the_published_losses(layout):
    golden = Golden(CHATGLM / "base")
    ids, labels = golden[f"{layout}_input_ids"], golden[f"{layout}_labels"]
    pad = golden.model.config.pad_token_id
    valid = golden[f"{layout}_valid"] if layout == "trainB" else ids != pad
    rows = [
        {"input_ids": ids[row][valid[row]].tolist(), "labels": labels[row][valid[row]].tolist()} for row in range(3)
    ]
    batch = make_collator(pad, 8)(rows)
    near(golden.model(**batch).loss, torch.tensor(golden.json[layout]["loss"]), atol=1e-4)


# Checkpoints


def test_the_family_is_read_from_config_and_its_own_code_is_not_wanted(folder, capsys):
    family, name, why = find_family(folder)
    assert (family.name, name, why) == ("chatglm", "chatglm", "model_type chatglm in config.json")
    assert may_run_code(family, trusted=True) is False
    assert "trust_remote_code: not needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"padded_vocab_size": 65024, "multi_query_attention": True}, "is ChatGLM2 or ChatGLM3"),
        ({"quantization_bit": 4}, r"int4 or int8 weights; give chatglm-6b itself, and --bits 4 or 8 \(quantization"),
    ],
)
def test_other_models_of_the_name_are_refused(folder, settings, words):
    change(folder, **settings)
    for name in (None, "chatglm"):
        with pytest.raises(UserError, match=words):
            find_family(folder, name)


def test_another_familys_name_is_a_contradiction(folder):
    with pytest.raises(UserError, match="--model_name auto contradicts .*, a chatglm checkpoint; drop --model_name"):
        find_family(folder, "auto")
    with pytest.raises(UserError, match="--model_name llama contradicts .*'chatglm'"):
        find_family(folder, "llama")


def test_tokenizer_and_config_of_two_releases_are_refused(folder):
    (folder / "tokenizer_config.json").write_text('{"num_image_tokens": 20000}')
    with pytest.raises(UserError, match=r"ids of \[gMASK\] and <sop> are \(20601, 20604\), config.json's are \(601,"):
        load_codec(folder, find_family(folder)[0])


@pytest.mark.parametrize("spoilt", ["missing", "empty", "cut"])
def test_a_tokenizer_that_cannot_be_read_is_named(folder, spoilt):
    file = folder / "ice_text.model"
    whole = file.read_bytes()
    file.unlink()
    if spoilt != "missing":
        file.write_bytes(whole[: 1000 if spoilt == "cut" else 0])
    with pytest.raises(UserError, match="tokenizer cannot be read .* found .*config.json"):
        load_codec(folder, find_family(folder)[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_bases_train_and_predict(tiny, tmp_path, bits):
    assert overfit(tiny, tmp_path, bits=bits, lora_target_modules=EVERY_LAYER, max_steps=3) is not None


# LoRA


def test_the_documented_command_runs(folder, tmp_path, monkeypatch):
    train = tmp_path / "train.json"
    train.write_text("\n".join(json.dumps(record) for record in EIGHT), encoding="utf-8")
    flags = (
        f"--do_train --do_eval --model_name_or_path {folder} --model_name chatglm --prompt_template_name alpaca "
        f"--train_path {train} --output_dir={tmp_path / 'lora'} --per_device_train_batch_size 4 "
        "--per_device_eval_batch_size 4 --gradient_accumulation_steps 1 --preprocessing_num_workers 2 "
        "--num_train_epochs 1 --learning_rate 1e-4 --weight_decay 5e-4 --adam_beta2 0.95 --optim adamw_torch "
        "--max_source_length 512 --max_target_length 256 --val_set_size 2 --evaluation_strategy epoch "
        "--save_strategy epoch --save_total_limit 10 --lora_r 8 --lora_alpha 16 --lora_dropout 0.05 "
        "--max_memory_MB 24000 --fp16"
    )
    finetuning.main(flags.split())
    run = json.loads((tmp_path / "lora" / "run.json").read_text(encoding="utf-8"))
    assert run["family"] == "chatglm"
    assert run["lora"]["lora_target_modules"] == ["query_key_value"]
    assert run["training"]["max_source_length"] == 512
    assert (tmp_path / "lora" / "ice_text.model").is_file()


def test_train_on_inputs_is_refused(folder, tmp_path):
    train = tmp_path / "train.json"
    train.write_text(json.dumps(EIGHT[0]), encoding="utf-8")
    flags = f"--do_train --model_name_or_path {folder} --train_file {train} --output_dir {tmp_path / 'x'}"
    with pytest.raises(UserError, match="--train_on_inputs: a prompt of family chatglm sees itself whole"):
        finetuning.main([*flags.split(), "--train_on_inputs"])


def test_lora_overfits_eight_records(tiny, tmp_path):
    assert overfit(tiny, tmp_path, lora_target_modules=EVERY_LAYER) == 1.0


def test_a_fully_fine_tuned_model_predicts_by_itself(tiny, tmp_path):
    overfit(tiny, tmp_path, more=["--full_finetune"], max_steps=2, lora_r=None, lora_alpha=None, lora_dropout=None)
    assert (tmp_path / "run" / "ice_text.model").is_file()
    assert "transformer.layers.0.attention.query_key_value.weight" in load_file(tmp_path / "run/model.safetensors")


def test_an_adapter_of_2023_loads_and_changes_the_answers(folder, codec, tmp_path):
    torch.manual_seed(0)
    base = load_base(folder, Precision("float32", 16), "cpu", codec)
    model = add_lora(base, ("query_key_value",), 8, 32, 0.0)
    tensors = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
            tensors[name.replace(".default", "")] = parameter.detach().clone()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    torch.save(tensors, adapter / "adapter_model.bin")
    settings = {  # what peft 0.3 wrote
        "base_model_name_or_path": "THUDM/chatglm-6b",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 8,
        "target_modules": ["query_key_value"],
        "task_type": "CAUSAL_LM",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    records = tmp_path / "in.json"
    records.write_text(json.dumps(EIGHT[0]), encoding="utf-8")
    answers = []
    for flags in ([], ["--lora_weights", adapter], ["--lora_weights", adapter, "--merge_lora"]):
        out = tmp_path / f"{len(answers)}.json"
        command = ["--model_name_or_path", folder, "--input_file", records, "--output_file", out, *flags]
        inference.main([*map(str, command), "--max_new_tokens", "12", "--fp32"])
        answers.append(json.loads(out.read_text(encoding="utf-8"))["output"])
    ids = torch.tensor([codec.encode(make_prompt(ALPACA, EIGHT[0]["instruction"], EIGHT[0]["input"]))])
    expected = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12)
    assert answers[0] != answers[1]
    assert answers[1] == answers[2] == codec.decode(expected[0, ids.shape[1] :]).strip()


def test_a_tokenizer_config_that_is_no_object_is_one_clear_error(folder):
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="tokenizer cannot be read .* found .*ice_text.model"):
        load_codec(folder, find_family(folder)[0])


def test_results_never_replace_a_file_of_the_base(folder, tmp_path):
    records = tmp_path / "in.json"
    records.write_text(json.dumps(EIGHT[0]), encoding="utf-8")
    command = ["--model_name_or_path", folder, "--input_file", records, "--output_file", folder / "config.json"]
    with pytest.raises(UserError, match="holds what is read here; give a file elsewhere"):
        inference.main([str(part) for part in command])


def test_a_prefix_given_as_a_model_or_adapter_is_sent_to_its_script(folder, tmp_path):
    prefix = tmp_path / "global_step-3"
    prefix.mkdir()
    change(folder, pre_seq_len=4)
    (prefix / "config.json").write_text((folder / "config.json").read_text())
    torch.save({"transformer.prefix_encoder.embedding.weight": torch.ones(4, 384)}, prefix / "pytorch_model.bin")
    files = ["--input_file", str(GOLDEN / "train.json"), "--output_file", str(tmp_path / "out.json")]
    for flag in ("--model_name_or_path", "--lora_weights"):
        with pytest.raises(
            UserError, match="holds a prefix of P-Tuning v2 and no model; predict with python src/infer"
        ):
            inference.main([flag, str(prefix), *files])
