"""Token ids and labels against what transformers 4.30.2 made of the same files (tests/golden/llama)."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import GOLDEN
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from checkpoints.family import find_family
from common.errors import UserError
from data.prompts import Piece, load_template, make_prompt
from tokens.batches import IGNORED
from tokens.codec import Codec
from tokens.readers import load_codec, read_added, save_tokenizer
from tokens.rows import Limits, encode_row

RECORDS = {r["id"]: r for r in map(json.loads, (GOLDEN / "train.json").read_text(encoding="utf-8").splitlines())}
EXPECTED = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
STYLES = {"decapoda": ("checkpoint", EXPECTED), "vicuna": ("tokenizer_vicuna_style", EXPECTED["vicuna_style"])}


@pytest.fixture(scope="module")
def codecs():
    family, _, _ = find_family(GOLDEN / "checkpoint")
    return {style: load_codec(GOLDEN / folder, family) for style, (folder, _) in STYLES.items()}


@pytest.fixture(scope="module")
def embedded(embedded_base):
    return load_codec(embedded_base, find_family(embedded_base)[0])


@pytest.mark.parametrize("style", STYLES)
def test_texts_become_the_ids_published_adapters_saw(codecs, style):
    for case in STYLES[style][1]["tokenize"]:
        assert codecs[style].encode([Piece(case["text"], from_template=True)]) == case["ids"], case["text"]


@pytest.mark.parametrize("style", STYLES)
def test_training_rows_equal_the_original_pipeline_where_it_cut_nothing(codecs, style):
    compared = 0
    for case in STYLES[style][1]["examples"]:
        cutoff = case.get("cutoff_len", 4096)
        row = encode_row(codecs[style], load_template(case["template"]), RECORDS[case["id"]], Limits(cutoff))
        if row.whole <= cutoff:
            compared += 1
            assert (row.input_ids, row.labels) == (case["input_ids"], case["labels"]), (case["template"], case["id"])
    assert compared >= 20


@pytest.mark.parametrize("style", STYLES)
def test_special_ids_are_llamas_whatever_the_configs_say(codecs, style):
    codec = codecs[style]
    assert (codec.prefix_ids, codec.eos_id, codec.pad_id) == ((1,), 2, 0)


def test_a_cut_row_keeps_its_instruction_its_whole_answer_and_eos(codecs):
    record = next(iter(RECORDS.values()))
    template = load_template("alpaca")
    whole = encode_row(codecs["decapoda"], template, record, Limits(4096))
    row = encode_row(codecs["decapoda"], template, record, Limits(whole.whole - 20))
    answer = [label for label in whole.labels if label != IGNORED]
    assert row.cut
    assert len(row.input_ids) <= whole.whole - 20
    assert [label for label in row.labels if label != IGNORED] == answer
    assert row.input_ids[:100] == whole.input_ids[:100]
    # as much of the text as fits is kept
    assert len(row.input_ids) > whole.whole - 20 - 4


def test_a_row_that_cannot_hold_instruction_and_answer_is_empty_and_says_its_length(codecs):
    record = next(iter(RECORDS.values()))
    row = encode_row(codecs["decapoda"], load_template("alpaca"), record, Limits(50))
    assert row.input_ids == []
    assert row.labels == []
    assert row.whole > 50


def test_a_saved_tokenizer_keeps_the_chat_template_of_its_base(tmp_path):
    base, out = shutil.copytree(GOLDEN / "checkpoint", tmp_path / "base"), tmp_path / "out"
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    out.mkdir()
    family = find_family(base)[0]
    save_tokenizer(load_codec(base, family), family, base, out)
    for name in ("tokenizer.model", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_train_on_inputs_labels_every_token(codecs):
    row = encode_row(codecs["decapoda"], load_template("alpaca"), next(iter(RECORDS.values())), Limits(4096), True)
    assert row.labels == row.input_ids


def test_a_records_own_special_tokens_stay_text(codecs, embedded):
    vicuna = codecs["vicuna"]
    assert 2 in vicuna.encode([Piece("a</s>b", from_template=True)])
    assert 2 not in vicuna.encode([Piece("a</s>b", from_template=False)])
    assert embedded.encode([Piece("a<|im_end|>b", from_template=True)])[-2] == embedded.eos_id
    assert embedded.eos_id not in embedded.encode([Piece("a<|im_end|>b", from_template=False)])


@pytest.mark.parametrize("name", ["alpaca", "vicuna", "moss", "plain"])
def test_a_rows_beginning_is_the_prompt_of_prediction(codecs, embedded, name):
    for codec in (*codecs.values(), embedded):
        for record in RECORDS.values():
            start = codec.encode(make_prompt(load_template(name), record["instruction"], record["input"]))
            row = encode_row(codec, load_template(name), record, Limits(10_000))
            assert row.input_ids[: len(start)] == start
            assert row.labels[: len(start)] == [IGNORED] * len(start)
            assert row.labels[-1] == codec.eos_id


def test_an_answer_decodes_to_its_text(codecs, embedded):
    for codec in (*codecs.values(), embedded):
        for record in RECORDS.values():
            row = encode_row(codec, load_template("alpaca"), record, Limits(10_000))
            assert codec.decode([label for label in row.labels if label != IGNORED]) == record["output"]


def test_the_embedded_tokenizer_splits_digits_one_by_one(embedded):
    ids = embedded.encode([Piece("2,424人", from_template=False)])
    assert embedded.tokenizer.convert_ids_to_tokens(ids)[:5] == ["2", ",", "4", "2", "4"]


def test_the_recursion_of_the_stock_tokenizer_never_reaches_a_user(tmp_path):
    with pytest.raises(UserError, match="--model_name auto contradicts .*drop --model_name, or give one of llama"):
        find_family(GOLDEN / "checkpoint", "auto")
    for file in (GOLDEN / "checkpoint").glob("*token*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')  # a repository that copied LLaMA's files
    with pytest.raises(UserError, match="transformers cannot read this tokenizer"):
        load_codec(tmp_path, find_family(tmp_path)[0])


def test_a_damaged_tokenizer_says_what_is_there(tmp_path):
    shutil.copytree(GOLDEN / "checkpoint", tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.model").write_bytes((tmp_path / "tokenizer.model").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"the tokenizer cannot be read .*tokenizer.model \(1000 bytes\)"):
        load_codec(tmp_path, find_family(tmp_path)[0])


def json_only(folder, codec, settings):
    """LLaMA's tokenizer as tokenizer.json alone, which begins a text with <s>; `settings`: tokenizer_config.json."""
    backend = codec.tokenizer.backend_tokenizer
    before = backend.post_processor
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    backend.post_processor = before
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copy(GOLDEN / "checkpoint" / "config.json", folder)
    return folder


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
EMPTY = {**dict.fromkeys(NAMED, ""), "tokenizer_class": "LLaMATokenizer"}


@pytest.mark.parametrize(
    "settings", [NAMED, {**NAMED, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, EMPTY, None]
)
def test_llama_without_tokenizer_model_is_read_as_transformers_reads_it(tmp_path, codecs, settings):
    folder = json_only(tmp_path, codecs["vicuna"], settings)
    family, name, why = find_family(folder)
    assert (family.name, name, why) == ("auto", "auto", "model_type llama in config.json, no tokenizer.model")
    codec, stock = load_codec(folder, family), AutoTokenizer.from_pretrained(folder)
    assert (codec.prefix_ids, codec.eos_id, codec.pad_id) == ((1,), 2, 2)
    for record in RECORDS.values():
        prompt = make_prompt(load_template("alpaca"), record["instruction"], record["input"])
        ids = stock("".join(piece.text for piece in prompt))["input_ids"]
        assert codec.encode(prompt) == ids
    assert load_codec(folder, find_family(folder, "llama")[0]).encode(prompt) == ids


def with_pad(folder, base, pad="[PAD]", rows=None, **names):
    """A base's tokenizer with a token for padding behind all others; `rows`: of the embedding, None: one fewer."""
    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = len(tokenizer) if rows is None else rows
    tokenizer.add_special_tokens({"pad_token": pad, **names})
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
    return folder


def test_padding_without_a_row_in_the_embedding_is_done_with_a_token_that_has_one(tmp_path, embedded_base, capsys):
    auto, count = find_family(embedded_base)[0], len(AutoTokenizer.from_pretrained(embedded_base))
    codec = load_codec(with_pad(tmp_path / "beyond", embedded_base), auto)
    assert (codec.pad_id, codec.eos_id) == (2, 2)
    assert f"padding: <|im_end|> ([PAD] has the id {count}, the embedding {count} rows)" in capsys.readouterr().err
    assert codec.collator()([{"input_ids": [5], "labels": [5]}, {"input_ids": [5] * 3, "labels": [5] * 3}])[
        "input_ids"
    ].tolist() == [[5, 2, 2], [5, 5, 5]]
    assert load_codec(with_pad(tmp_path / "within", embedded_base, rows=count + 1), auto).pad_id == count
    assert capsys.readouterr().err == ""


def test_an_end_of_answer_without_a_row_in_the_embedding_is_refused(tmp_path, embedded_base):
    folder = with_pad(tmp_path / "eos", embedded_base, eos_token="<end>")
    with pytest.raises(
        UserError, match=r"eos_token <end> has the id \d+, the embedding \d+ rows .*no answer could end"
    ):
        load_codec(folder, find_family(folder)[0])


class OneAtATime:
    """A tokenizer that takes special tokens as it was told last."""

    def __call__(self, text, add_special_tokens, split_special_tokens=False):
        self.split = split_special_tokens
        time.sleep(0.002)
        return {"input_ids": [self.split]}


def test_threads_do_not_tell_a_tokenizer_how_to_take_the_special_tokens_of_others():
    codec = Codec(OneAtATime(), (), 0, 0, {}, whole=True)

    def encode(number):
        return codec.text_ids("a") if number % 2 else codec.encode([Piece("a", True)])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(encode, range(40))) == [[False], [True]] * 20


BESIDE = {"special_tokens_map.json": {}, "added_tokens.json": {}, "tokenizer_config.json": {"added_tokens_decoder": {}}}


def test_added_tokens_are_those_that_transformers_finds_where_no_other_file_names_them(embedded, tmp_path):
    embedded.tokenizer.save_pretrained(tmp_path)
    found = read_added(tmp_path)["added_tokens_decoder"]
    assert found == AutoTokenizer.from_pretrained(tmp_path).added_tokens_decoder
    assert len(found) > 10
    for name, settings in BESIDE.items():
        other = shutil.copytree(tmp_path, tmp_path.parent / f"with {name}")
        (other / name).write_text(json.dumps(settings), encoding="utf-8")
        assert read_added(other) == {}, name
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    cut = text[: text.index('"added_tokens":') + 40]
    for odd in (cut, text.replace('"id"', '"of"'), '{"model": {"vocab": {}}, "added_tokens": []}', "{}", ""):
        (tmp_path / "tokenizer.json").write_text(odd, encoding="utf-8")
        assert read_added(tmp_path) == {}, odd[:50]
