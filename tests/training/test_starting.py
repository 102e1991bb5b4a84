"""Training that goes on from an adapter, modules trained whole, and tokens that a base lacked."""

import json
import shutil

import pytest
import torch
from helpers import GOLDEN, ROOT, rows
from helpers_training import BASE, TRAIN, flags
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import inference
from checkpoints.adapters import check_weights
from checkpoints.family import choose_family, find_family
from checkpoints.vocabulary import NAME, read_tokens
from common.errors import UserError
from common.files import fingerprint, write_rows
from loading.base import load_base
from loading.precision import Precision
from loading.shape import read_shape
from loading.starting import choose_lora
from models.moss import load_tokenizer
from test_finetune import main
from tokens.extending import extend_codec
from tokens.readers import load_codec
from tokens.rows import Limits
from training.planning import count_trained
from utils import weight_diff
from utils.args import parse_finetune

ADAPTER = GOLDEN / "adapter"  # saved by peft 0.4, as a .bin file
TOKENS = ("位于", "三元组。", "<人物>", "成立 时间", "Wewak-Airport")  # the first is a piece of the golden tokenizer
FRESH = TOKENS[1:]


def losses(folder):
    return [row["loss"] for row in rows(folder / "log.jsonl") if "loss" in row]


def predict(out, **values):
    asked = out.with_name("asked.json")
    write_rows(asked, rows(GOLDEN / "valid.json")[:4])
    chosen = {"input_file": asked, "output_file": out, "max_new_tokens": 5, "batch_size": 4} | values
    inference.main([str(word) for name, value in chosen.items() for word in (f"--{name}", value)])
    return [row["output"] for row in rows(out)]


@pytest.fixture
def vocabulary(tmp_path):
    file = tmp_path / "tokens.txt"
    file.write_text("\r\n".join(TOKENS) + "\n\n", encoding="utf-8")
    return file


def test_an_adapter_of_2023_is_trained_on_as_peft_does(tmp_path):
    """The first loss is the trained adapter's, not the base's; after a step of SGD its weights are plain torch's."""
    out, values = tmp_path / "out", {"max_steps": 1, "lora_dropout": 0, "optim": "sgd", "weight_decay": 0}
    values |= {"learning_rate": 0.5, "lr_scheduler_type": "constant", "max_grad_norm": 1000}
    values |= {"lora_r": 8, "lora_alpha": 16, "lora_target_modules": "v_proj,q_proj"}  # what the adapter says, too
    main(flags(out, init_lora=ADAPTER, per_device_train_batch_size=12, **values))
    run = json.loads((out / "run.json").read_text())
    assert run["lora"]["init_lora"]["path"] == str(ADAPTER)
    assert run["lora"]["init_lora"]["sha256"] == fingerprint(ADAPTER / "adapter_model.bin")
    settings = json.loads((ADAPTER / "adapter_config.json").read_text())
    assert (run["lora"]["lora_r"], run["lora"]["lora_alpha"]) == (settings["r"], settings["lora_alpha"])
    assert run["lora"]["lora_target_modules"] == sorted(settings["target_modules"])

    codec = load_codec(BASE, find_family(BASE)[0])
    model = load_base(BASE, Precision("float32", 16), "cpu", codec)
    model = PeftModel.from_pretrained(model, ADAPTER, is_trainable=True)
    made = [codec.row(run["template"], record, Limits(1024)) for record in rows(TRAIN)]
    loss = model(**codec.collator()(made)).loss
    assert losses(out)[0] == pytest.approx(loss.item(), abs=2e-5)
    loss.backward()
    after = load_file(out / "adapter_model.safetensors")
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            expected = weight.detach() - 0.5 * weight.grad
            torch.testing.assert_close(after[name.replace(".default", "")], expected, rtol=1e-4, atol=1e-6)


def start_with(folder, **training):
    """A copy of the adapter whose run.json says that it was trained so."""
    shutil.copytree(ADAPTER, folder)
    (folder / "run.json").write_text(json.dumps({"training": training}))
    return folder


def test_answers_keep_the_form_that_the_adapter_learnt(tmp_path, capsys):
    out, form = tmp_path / "out", {"schema_batch": 2, "answer_format": "json"}
    main(flags(out, init_lora=start_with(tmp_path / "adapter", **form), max_steps=1))
    said, run = capsys.readouterr().err, json.loads((out / "run.json").read_text())
    assert {name: run["training"].get(name) for name in form} == form
    for name, value in form.items():
        assert f"{name}: {value} (as the adapter of --init_lora was trained, by its run.json)" in said
        assert run["decided"][name]["value"] == value
    assert "answer_order" not in run["training"]
    main(flags(tmp_path / "plain", init_lora=tmp_path / "adapter", max_steps=1, answer_format="text", schema_batch=0))
    assert "--answer_format text contradicts run.json, which says json; using text" in capsys.readouterr().err
    plain = json.loads((tmp_path / "plain" / "run.json").read_text())
    assert not form.keys() & {*plain["training"], *plain["decided"]}
    assert losses(tmp_path / "plain") != losses(out)


def test_a_form_that_does_not_go_with_a_flag_is_refused(tmp_path):
    folder = start_with(tmp_path / "adapter", answer_order="tail")
    with pytest.raises(UserError, match="json and --answer_order tail .* answer_order came from the run"):
        main(flags(tmp_path / "out", init_lora=folder, answer_format="json"))


def test_a_run_from_an_adapter_is_resumed_to_the_same_bits(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    values = {"init_lora": ADAPTER, "save_strategy": "steps", "save_steps": 2}
    main(flags(whole, **values))
    shutil.copytree(whole, parts)
    for name in ("adapter_model.safetensors", "run.json"):
        (parts / name).unlink()
    shutil.rmtree(parts / "checkpoint-4")
    main(flags(parts, resume_from_checkpoint="auto", **values))
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    before = check_weights(ADAPTER)
    assert any(not torch.equal(one[name], before[name]) for name in one)
    run = (parts / "run.json").read_text()
    (parts / "run.json").write_text(run.replace(fingerprint(ADAPTER / "adapter_model.bin"), "0" * 64))
    with pytest.raises(UserError, match=r"started otherwise \(lora:"):
        main(flags(parts, resume_from_checkpoint="auto", **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora_r": 3}, r"--lora_r 3 and --init_lora .* contradict each other: adapter_config.json there says 8"),
        ({"lora_alpha": 3}, r"--lora_alpha 3 and --init_lora .* says 16"),
        ({"lora_target_modules": "all-linear"}, r"--lora_target_modules all-linear .* says on q_proj, v_proj"),
        ({"modules_to_save": "lm_head"}, r"--modules_to_save lm_head and --init_lora .* says none"),
        ({"extend_vocab": TRAIN}, r"--init_lora and --extend_vocab contradict"),
        ({"full_finetune": True}, r"--full_finetune and --init_lora contradict"),
        ({"init_lora": BASE}, r"--init_lora .* is a whole model, no adapter"),
    ],
)
def test_flags_that_differ_from_the_adapter_are_errors_that_name_both(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        main(flags(tmp_path / "out", **{"init_lora": ADAPTER, **values}))
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_no_plain_lora_is_not_trained_on(tmp_path):
    shutil.copytree(ADAPTER, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(UserError, match="says init_lora_weights pissa, and only plain LoRA is trained on; merge it"):
        main(flags(tmp_path / "out", init_lora=tmp_path / "adapter"))


def test_modules_are_trained_whole_resumed_and_merged(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    values = {"modules_to_save": "embed_tokens, norm", "save_strategy": "steps", "save_steps": 2}
    main(flags(whole, **values))
    shutil.copytree(whole, parts)
    (parts / "adapter_model.safetensors").unlink()
    run = json.loads((parts / "run.json").read_text())
    assert run["lora"]["modules_to_save"] == ["embed_tokens", "norm"]
    (parts / "run.json").write_text(json.dumps({**run, "status": "training"}))
    shutil.rmtree(parts / "checkpoint-4")
    main(flags(parts, resume_from_checkpoint="auto", **values))
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)
    trained = run["results"]["trained_weights"]
    assert sum(tensor.numel() for tensor in one.values()) == trained
    _, _, lora_args, _ = parse_finetune(flags(whole, **values))
    chosen = choose_family(BASE, None, False)
    codec, shape = load_codec(BASE, chosen.family), read_shape(BASE)
    lora = choose_lora(lora_args, chosen, BASE, Precision("float32", 16), shape, codec)
    assert count_trained(shape, lora) == trained  # by which the memory is estimated
    with pytest.raises(UserError, match=r"--modules_to_save nrm: this model has no such module; .*embed_tokens"):
        main(flags(tmp_path / "no", modules_to_save="nrm"))


def test_new_tokens_begin_as_the_mean_of_their_pieces(vocabulary):
    family = find_family(BASE)[0]
    plain = load_codec(BASE, family)
    codec = extend_codec(plain, read_tokens(vocabulary), "x")
    base, model = (load_base(BASE, Precision("float32", 16), "cpu", one) for one in (plain, codec))
    assert len(codec.text_ids("米卡三元组。")) < len(plain.text_ids("米卡三元组。"))
    assert codec.text_ids("米卡在北京 Mica") == plain.text_ids("米卡在北京 Mica")
    count = len(plain.tokenizer)
    assert sorted(codec.pieces_before) == list(range(count, count + len(FRESH)))
    for end in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(base, end)().weight, getattr(model, end)().weight
        assert torch.equal(new[: len(old)][:count], old[:count])
        for token, (number, pieces) in zip(FRESH, codec.pieces_before.items(), strict=True):
            assert plain.tokenizer.convert_ids_to_tokens(list(pieces))[0][0] != "▁"
            assert codec.text_ids(f"甲{token}乙").count(number) == 1
            torch.testing.assert_close(new[number], old[list(pieces)].mean(0))


def test_tokens_are_learnt_saved_predicted_with_and_merged(tmp_path, vocabulary):
    """The adapter, its checkpoint, the model merged by weight_diff and its base by plain transformers agree."""
    out, merged = tmp_path / "out", tmp_path / "merged"
    main(flags(out, extend_vocab=vocabulary, max_steps=3, learning_rate=2e-2, save_strategy="steps", save_steps=3))
    assert read_tokens(out / NAME) == read_tokens(out / "checkpoint-3" / NAME) == TOKENS
    saved = load_file(out / "adapter_model.safetensors")
    assert [name.split(".")[-2] for name in saved if "lora_" not in name] == ["lm_head", "embed_tokens"]
    codec = load_codec(BASE, find_family(BASE)[0], adapter=out)
    assert {tensor.shape[0] for name, tensor in saved.items() if "lora_" not in name} == {len(codec.tokenizer)}
    assert json.loads((out / "run.json").read_text())["training"]["extend_vocab"] == list(TOKENS)

    answers = predict(tmp_path / "batch.json", lora_weights=out, engine="batch")
    assert len(set(answers)) > 1
    assert predict(tmp_path / "fast.json", lora_weights=out, engine="fast") == answers
    assert predict(tmp_path / "checkpoint.json", lora_weights=out / "checkpoint-3", merge_lora=True) == answers
    words = ["merge", "--path_base", BASE, "--path_adapter", out, "--path_merged", merged, "--dtype", "float32"]
    weight_diff.main(list(map(str, words)))
    assert predict(tmp_path / "merged.json", model_name_or_path=merged) == answers
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert model.config.vocab_size == len(codec.tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, saved["base_model.model.model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight, saved["base_model.model.lm_head.weight"])
    assert load_codec(merged, find_family(merged)[0]).text_ids("三元组。三元组。 a") == codec.text_ids(
        "三元组。三元组。 a"
    )


def test_a_base_with_one_weight_at_both_ends_gets_tokens_too(tmp_path, vocabulary):
    base, out, merged = tmp_path / "base", tmp_path / "out", tmp_path / "merged"
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(1)
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 530, "tie_word_embeddings": True}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes))
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(base)
    load_tokenizer(ROOT / "tests" / "golden" / "moss").save_pretrained(base)
    more = {"model_name_or_path": base, "cutoff_len": 2048, "prompt_template_name": "plain", "max_steps": 2}
    main(flags(out, extend_vocab=vocabulary, **more))
    answers = predict(tmp_path / "one.json", lora_weights=out)
    assert len(set(answers)) > 1
    words = ["merge", "--path_base", base, "--path_adapter", out, "--path_merged", merged, "--dtype", "float32"]
    weight_diff.main(list(map(str, words)))
    assert predict(tmp_path / "two.json", model_name_or_path=merged, prompt_template_name="plain") == answers
    codec = load_codec(base, find_family(base)[0], adapter=out)
    assert load_codec(merged, find_family(merged)[0]).text_ids("a位于 b") == codec.text_ids("a位于 b")
    assert AutoTokenizer.from_pretrained(merged)("a位于 b")["input_ids"] == codec.text_ids("a位于 b")


def test_a_whole_model_is_trained_with_new_tokens(tmp_path, vocabulary):
    main(flags(tmp_path / "out", "--full_finetune", extend_vocab=vocabulary, max_steps=1))
    codec = load_codec(tmp_path / "out", find_family(tmp_path / "out")[0])
    model = load_base(tmp_path / "out", Precision("float32", 16), "cpu", codec)
    assert max(codec.text_ids("位于<人物>")) == model.config.vocab_size - 3
    assert model.get_output_embeddings().weight.shape[0] == model.config.vocab_size == len(codec.tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("甲\n乙\n甲\n", "line 3: '甲' stands in line 1 too"),
        ("甲\n 乙\n", "line 2: ' 乙' has blanks at its ends"),
        ("\n", "holds no token"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_a_file_of_tokens_that_is_none_is_named_with_its_line(tmp_path, text, message):
    file = tmp_path / "tokens.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        main(flags(tmp_path / "out", extend_vocab=file))


def test_modules_that_new_tokens_need_are_asked_for(tmp_path, vocabulary):
    with pytest.raises(UserError, match="--modules_to_save embed_tokens lacks lm_head, without which the tokens"):
        main(flags(tmp_path / "out", extend_vocab=vocabulary, modules_to_save="embed_tokens"))
