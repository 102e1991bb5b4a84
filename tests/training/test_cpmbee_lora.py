"""CPM-Bee through the scripts: rows, OpenBMB's own files, LoRA that learns, adapters of 2023 and merged ones."""

import json
import shutil

import pytest
import torch
from helpers import ROOT
from helpers_cpmbee import tree_of
from overfit import EIGHT, overfit, tiny_base
from safetensors.torch import load_file, save_file

import inference
import test_finetune as finetuning
from checkpoints.family import find_family
from common.errors import UserError
from data.prompts import load_template, make_prompt
from decoding.answers import Rules
from decoding.batch_engine import answer
from loading.base import load_base
from loading.precision import Precision
from models.cpmbee import modeling, training_features
from tokens.batches import IGNORED
from tokens.readers import load_codec
from tokens.rows import Limits
from utils import weight_diff

BEE = ROOT / "tests" / "golden" / "cpmbee"
GOLDEN = json.loads((BEE / "golden.json").read_text(encoding="utf-8"))
TEMPLATE = load_template("cpm-bee")


@pytest.fixture(scope="module")
def codec():
    return load_codec(BEE, find_family(BEE)[0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_base("cpmbee-tiny", BEE, tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A folder with an adapter that knows EIGHT by heart, the answers it gave, and its F1."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, overfit(tiny, folder, prompt_template_name="cpm-bee", lora_target_modules="all-linear")


def answers(folder, *flags):
    """The answers to the records of a folder."""
    out = folder / f"answers{len(list(folder.glob('answers*')))}.json"
    command = ["--input_file", folder / "eight.json", "--output_file", out, "--max_new_tokens", 40, *flags]
    inference.main([str(part) for part in command])
    return [json.loads(line)["output"] for line in out.read_text(encoding="utf-8").splitlines()]


# Rows


@pytest.mark.parametrize("record", [*GOLDEN["train_records"], {"instruction": "a<b", "input": "", "output": "<ans>"}])
def test_a_row_is_the_originals_record(codec, record):
    features = training_features(codec.tokenizer, tree_of(record))
    row = codec.row(TEMPLATE, record, Limits(4096))
    shared = features.keys() & row.keys()
    assert len(shared) == 6
    assert {name: row[name] for name in shared} == {name: features[name] for name in shared}
    assert row["prompt_tokens"] + row["answer_tokens"] == len(row["input_ids"])
    start = codec.encode(make_prompt(TEMPLATE, record["instruction"], record["input"]))
    assert row["input_ids"][: len(start)] == start
    assert row["labels"].count(IGNORED) == len(start)


def test_a_long_record_loses_the_end_of_its_text_and_learns_its_whole_answer(codec):
    record = {**EIGHT[0], "input": EIGHT[0]["input"] * 40}
    row = codec.row(TEMPLATE, record, Limits(120))
    assert row["cut"]
    assert 110 < len(row["input_ids"]) <= 120
    short = codec.row(TEMPLATE, EIGHT[0], Limits(120))
    learnt = [codec.collator()([one])["labels"][0] for one in (row, short)]
    assert [ids[ids != IGNORED].tolist()[-1] for ids in learnt] == [codec.eos_id] * 2
    assert len({int((ids != IGNORED).sum()) for ids in learnt}) == 1


def test_a_record_that_does_not_fit_is_empty_and_says_its_length(codec):
    row = codec.row(TEMPLATE, EIGHT[0], Limits(20))
    assert row["input_ids"] == row["labels"] == []
    assert row["prompt_tokens"] + row["answer_tokens"] > 20
    assert set(row) == set(codec.row(TEMPLATE, EIGHT[0], Limits(500)))


def test_the_batch_is_padded_to_a_multiple(codec):
    rows = [codec.row(TEMPLATE, record, Limits(500)) for record in EIGHT[:3]]
    assert codec.collator(8)(rows)["input_ids"].shape[1] % 8 == 0


def test_train_on_inputs_is_refused(tiny, tmp_path):
    (tmp_path / "eight.json").write_text(json.dumps(EIGHT[0]), encoding="utf-8")
    flags = (
        f"--do_train --model_name_or_path {tiny} --train_file {tmp_path / 'eight.json'} --output_dir {tmp_path / 'x'}"
    )
    with pytest.raises(UserError, match="--train_on_inputs: a prompt of family cpm-bee sees itself whole"):
        finetuning.main([*flags.split(), "--train_on_inputs"])


# Checkpoints


def test_a_folder_with_openbmbs_own_file_trains_and_predicts(tiny, trained, tmp_path):
    folder, f1 = trained
    other = shutil.copytree(tiny, tmp_path / "openbmb")
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    torch.save({name.removeprefix("cpmbee."): tensor for name, tensor in tensors.items()}, other / "pytorch_model.pt")
    assert overfit(other, tmp_path, prompt_template_name="cpm-bee", max_steps=2) >= 0
    same = answers(folder, "--model_name_or_path", other, "--lora_weights", folder / "run")
    assert same == [record["output"] for record in EIGHT]
    assert f1 == 1.0


def test_a_cut_pt_file_is_named_before_anything_is_loaded(tiny, trained, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "openbmb", ignore=shutil.ignore_patterns("*.safetensors"))
    whole = (tiny / "model.safetensors").read_bytes()
    (other / "model.pt").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"model\.pt"):
        answers(trained[0], "--model_name_or_path", other, "--lora_weights", trained[0] / "run")


@pytest.mark.parametrize("spoilt", ["missing", "foreign"])
def test_a_vocabulary_that_is_not_cpm_bees_is_named(tiny, tmp_path, spoilt):
    other = shutil.copytree(tiny, tmp_path / "bee")
    (other / "vocab.txt").unlink()
    if spoilt == "foreign":
        (other / "vocab.txt").write_text("[PAD]\n[UNK]\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer cannot be read .*vocab\.txt.* found .*config\.json"):
        load_codec(other, find_family(other)[0])


def test_vocabulary_and_config_of_two_releases_are_refused(tiny, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "bee")
    with open(other / "vocab.txt", "a", encoding="utf-8") as file:
        file.write("一个新词\n")
    with pytest.raises(UserError, match=r"vocab\.txt has 516 entries, config\.json says 515"):
        load_codec(other, find_family(other)[0])


def test_contradicting_names_are_errors():
    with pytest.raises(UserError, match="--model_name chatglm contradicts .*'cpmbee'"):
        find_family(BEE, "chatglm")
    with pytest.raises(UserError, match="--model_name auto contradicts .*, a cpm-bee checkpoint; drop --model_name"):
        find_family(BEE, "auto")
    assert find_family(BEE, "cpm-bee")[1] == "cpm-bee"


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_bases_train_and_predict(tiny, tmp_path, bits):
    assert overfit(tiny, tmp_path, prompt_template_name="cpm-bee", bits=bits, max_steps=3) >= 0


# LoRA


def test_lora_overfits_eight_records(trained):
    assert trained[1] == 1.0


def test_answers_are_alike_alone_in_batches_and_with_a_merged_adapter(trained):
    folder, _ = trained
    adapter = ("--lora_weights", folder / "run")
    right = [record["output"] for record in EIGHT]
    assert answers(folder, *adapter, "--batch_size", 1) == right
    assert answers(folder, *adapter, "--batch_size", 3) == right
    assert answers(folder, *adapter, "--merge_lora") == right
    assert answers(folder, *adapter, "--num_beams", 3) == right


def test_the_flags_of_prediction_work_or_are_refused(trained, tmp_path, monkeypatch):
    folder, _ = trained
    adapter = ("--lora_weights", folder / "run")
    right = [record["output"] for record in EIGHT]
    assert answers(folder, *adapter, "--repetition_penalty", 1.0001) == right
    assert answers(folder, *adapter, "--repetition_penalty", 30) != right
    for flags in (("--do_sample",), ("--repetition_penalty", 0.5)):
        with pytest.raises(UserError, match=f"{flags[0]}.*: not for family cpm-bee, whose own generation is greedy"):
            answers(folder, *adapter, *flags)
    with pytest.raises(UserError, match="--engine vllm: not for family cpm-bee"):
        answers(folder, *adapter, "--engine", "vllm")
    with pytest.raises(UserError, match="--window: this base has no limit in its config.json"):
        answers(folder, *adapter, "--window")
    said = modeling.generate

    def again(*arguments):
        """The answers, each of them three times."""
        made = said(*arguments)
        return [one._replace(data={**one.data, "<ans>": one.data["<ans>"] * 3}) for one in made]

    monkeypatch.setattr(modeling, "generate", again)
    batch = ("--engine", "batch")  # the model's own generation
    assert answers(folder, *adapter, *batch, "--max_repeats", 2) == [text * 2 for text in right]
    assert answers(folder, *adapter, *batch, "--max_repeats", 0) == [text * 3 for text in right]


def test_windows_of_a_tree_are_prompts_of_their_own(tiny, tmp_path):
    record = {"id": 1, "instruction": "已知候选的关系列表：['位于']", "input": "甲在乙。丙在丁。" * 9}
    (tmp_path / "in.json").write_text(json.dumps(record), encoding="utf-8")
    command = [
        "--model_name_or_path",
        tiny,
        "--input_file",
        tmp_path / "in.json",
        "--output_file",
        tmp_path / "out.json",
    ]
    inference.main([str(part) for part in (*command, "--window", 70, "--max_new_tokens", 4)])
    [row] = [json.loads(line) for line in (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()]
    assert row["windows"] > 1


def test_an_adapter_merged_into_the_files_is_the_merged_model(tiny, trained, tmp_path):
    folder, _ = trained
    weight_diff.merge(path_base=str(tiny), path_adapter=str(folder / "run"), path_merged=str(tmp_path / "merged"))
    assert answers(folder, "--model_name_or_path", tmp_path / "merged") == [record["output"] for record in EIGHT]


def test_an_adapter_of_2023_has_the_strength_it_was_trained_with(tiny, trained, tmp_path):
    """Without alpha_pattern: it was added to products that were divided already."""
    folder, _ = trained
    old = shutil.copytree(folder / "run", tmp_path / "old")
    settings = json.loads((old / "adapter_config.json").read_text())
    assert set(settings["alpha_pattern"]) >= {"project_q", "w_out"}
    assert settings.pop("alpha_pattern")["project_q"] == settings["lora_alpha"] * 8  # √64
    settings["target_modules"] = [name for name in settings["target_modules"] if name != "lm_head"]
    (old / "adapter_config.json").write_text(json.dumps(settings))
    right = [record["output"] for record in EIGHT]
    assert answers(folder, "--lora_weights", old, "--model_name_or_path", tiny) == right
    weight_diff.merge(path_base=str(tiny), path_adapter=str(old), path_merged=str(tmp_path / "merged"))
    assert answers(folder, "--model_name_or_path", tmp_path / "merged") == right


def test_a_fully_fine_tuned_model_is_a_cpm_bee_checkpoint_again(tiny, tmp_path):
    more = {"lora_r": None, "lora_alpha": None, "lora_dropout": None, "prompt_template_name": "cpm-bee"}
    overfit(tiny, tmp_path, more=["--full_finetune"], max_steps=2, **more)
    assert find_family(tmp_path / "run")[0].name == "cpm-bee"
    assert "cpmbee.encoder.layers.0.ffn.ffn.w_in.w_0.weight" in load_file(tmp_path / "run" / "model.safetensors")


def test_unknown_characters_come_back(codec, tmp_path):
    """Their temporary ids are those of the record: 龘 is not in the vocabulary."""
    model = load_base(BEE, Precision("float32", 16), "cpu", codec).eval()
    record = {"instruction": "抽取", "input": "龘出生于😀。"}
    prompts = [codec.encode(make_prompt(TEMPLATE, record["instruction"], record["input"]))]
    made = answer(model, codec, prompts, Rules(8))
    again = answer(model, codec, [*prompts, codec.encode(make_prompt(TEMPLATE, "a", "b"))], Rules(8))[:1]
    assert made == again
    row = codec.row(TEMPLATE, {**record, "output": "(龘,出生地,😀)"}, Limits(500))
    batch = codec.collator()([row])
    assert int(batch["labels"].max()) >= len(codec.tokenizer)  # 😀 is the second unknown run: a class of its own


def test_incomplete_files_are_refused(tiny, tmp_path, trained):
    other = shutil.copytree(tiny, tmp_path / "bee")
    tensors = load_file(other / "model.safetensors")
    tensors.pop("cpmbee.encoder.output_layernorm.weight")
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensors"):
        answers(trained[0], "--model_name_or_path", other, "--lora_weights", trained[0] / "run")


def test_a_config_of_another_size_is_refused(tiny, tmp_path, trained):
    other = shutil.copytree(tiny, tmp_path / "bee")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "mask_modules": [[True, False], [False, False]]}))
    with pytest.raises(UserError, match=r"config.json does not ask for, e.g. cpmbee.encoder.layers.0.self_att"):
        answers(trained[0], "--model_name_or_path", other)
    (other / "config.json").write_text(json.dumps({**settings, "mask_modules": [1, 2]}))
    with pytest.raises(UserError, match="expected 2 pairs"):
        answers(trained[0], "--model_name_or_path", other)


def test_several_pt_files_are_refused(tiny, tmp_path, trained):
    other = shutil.copytree(tiny, tmp_path / "bee", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("one.pt", "two.pt"):
        torch.save({}, other / name)
    with pytest.raises(UserError, match=r"one.pt, two.pt: expected one .pt file"):
        answers(trained[0], "--model_name_or_path", other, "--lora_weights", trained[0] / "run")


def test_noise_on_the_embeddings_trains(tiny, tmp_path):
    assert overfit(tiny, tmp_path, prompt_template_name="cpm-bee", neftune_noise_alpha=5, max_steps=2) >= 0
