"""CPM-Bee's tokenizer, training rows and prompts, against what the originals made of the same texts (golden/cpmbee)."""

import copy

import numpy
import pytest
import torch
from helpers import linear_time
from helpers_cpmbee import ARRAYS, BATCH, GOLDEN, TOKENIZER, tree_of
from hypothesis import given, settings
from hypothesis import strategies as st

from common import labels
from models.cpmbee import (
    CpmBeeTokenizer,
    collate,
    convert,
    escape,
    load_tokenizer,
    prefill,
    training_features,
    unescape,
)
from models.cpmbee.modeling import IGNORED
from training.trainer import real_tokens

RECORD = {"instruction": "抽取", "input": "北京", "output": "(北京，首都，中国)"}


def numbered(text, families):
    """The originals' ids of a text: unlisted tokens are numbered after the vocabulary as they first appear."""
    names, ids = {}, []
    for token, (number, _) in zip(TOKENIZER.tokenize(text), TOKENIZER.encode(text, families), strict=True):
        listed = not token.is_unknown and token.text in TOKENIZER.ids
        ids.append(number if listed else names.setdefault(token.text, len(TOKENIZER) + len(names)))
    return ids, {number: name for name, number in names.items()}


@pytest.mark.parametrize("case", GOLDEN["tokenizer_cases"], ids=lambda case: case["text"][:20] or "empty")
def test_texts_become_the_tokens_and_ids_of_the_originals(case):
    tokens = TOKENIZER.tokenize(case["text"])
    assert [token.text for token in tokens] == case["tokens"]
    assert [token.is_unknown for token in tokens] == case["is_unk"]
    assert [token.is_special for token in tokens] == case["is_special"]
    ids, names = numbered(case["text"], {})
    assert ids == case["ids"]
    assert {str(number): name for number, name in names.items()} == case["ext_table"]
    assert TOKENIZER.decode(ids, names) == case["decoded"]


def test_special_ids_are_those_of_the_vocabulary():
    named = {name.strip("'").replace("\\n", "\n"): number for name, number in GOLDEN["ids"].items()}
    assert {name: TOKENIZER.ids[name] for name in named} == named
    assert len(TOKENIZER) == GOLDEN["vocab_size"]
    own = (TOKENIZER.pad_id, TOKENIZER.unknown_id, TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.root_id)
    assert (*own, TOKENIZER.answer_id) == (0, 1, 6, 7, 8, 9)


@pytest.mark.parametrize("case", GOLDEN["bad_strings"], ids=lambda case: case["text"])
def test_a_bracket_that_opens_nothing_is_an_error(case):
    if "ids" in case:
        assert [number for number, _ in TOKENIZER.encode(case["text"], {})] == case["ids"]
        return
    with pytest.raises(ValueError, match="a plain < is written <<"):
        TOKENIZER.encode(case["text"], {})


@pytest.mark.parametrize("text", ["<b>", "<>", "<b_1>", "<_1>"])
def test_a_special_token_of_no_family_is_an_error(text):
    with pytest.raises(ValueError, match=f"{text} is no special token"):
        TOKENIZER.encode(text, {})


TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(["<", ">", "<<", "<mask_0>", "</s>", "知识", "图谱", " the", "龘", "😀", "\n", "\r"])).map(
        "".join
    ),
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_plain_text_survives_escaping_encoding_and_decoding(text):
    assert unescape(escape(text)) == text
    tokens = TOKENIZER.tokenize(escape(text))
    assert not any(token.is_special for token in tokens)
    assert "".join(token.text for token in tokens) == text
    ids, names = numbered(escape(text), {})
    assert unescape(TOKENIZER.decode(ids, names)) == text


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_every_token_is_the_longest_entry_that_fits(text):
    plain = {word for word in TOKENIZER.words if not (word.startswith("<") and word.endswith(">"))}
    expected, position = [], 0
    while position < len(text):
        fitting = [size for size in range(1, 40) if text[position : position + size] in plain]
        size = min(max(fitting, default=1), len(text) - position)
        known = bool(fitting)
        if not known and expected and not expected[-1][1]:
            expected[-1] = (expected[-1][0] + text[position], False)
        else:
            expected.append((text[position : position + size], known))
        position += size
    assert [(token.text, not token.is_unknown) for token in TOKENIZER.tokenize(escape(text))] == expected


@pytest.mark.parametrize("text", ["😀" * 200_000, "😀中" * 100_000, "".join(map(chr, range(0x20000, 0x2A000)))])
def test_long_runs_of_unknown_characters_take_linear_time(text):
    with linear_time(10):
        assert sum(number == 1 for number, _ in TOKENIZER.encode(text, {})) in (1, 100_000)


def test_only_newlines_end_an_entry_of_the_vocabulary(tmp_path):
    words = ["<pad>", "<unk>", "</n>", "</_>", "<s>", "</s>", "<root>", "<ans>", "\r", "a\u2028b", "\x85", " the"]
    (tmp_path / "vocab.txt").write_bytes("\n".join([*words, ""]).encode())
    assert load_tokenizer(tmp_path).words == [*words[:2], "\n", " ", *words[4:]]


@pytest.mark.parametrize(("content", "message"), [(b"a\nb", "lacks <pad>"), (b"\xff", "vocab.txt")])
def test_a_vocabulary_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="names an entry twice"):
        CpmBeeTokenizer([*TOKENIZER.words, "知识"])


# structured data


@pytest.mark.parametrize("case", GOLDEN["data_cases"], ids=lambda case: str(case["data"])[:40])
def test_data_become_the_segments_of_the_originals(case):
    example = convert(TOKENIZER, case["data"])
    assert example.ids == case["input_ids"]
    assert example.subs == case["input_id_subs"]
    assert example.context == case["context"]
    assert example.segments == case["segments"]
    assert example.relations == case["segment_rel"]
    assert example.count == case["n_segments"]
    families = {
        TOKENIZER.ids[family]: {case["ext_table"][number]: sub for number, sub in members.items()}
        for family, members in case["token_id_table"].items()
    }
    assert example.families == families


def test_relations_deep_in_the_tree_stop_at_seven_steps():
    data = {"<ans>": ""}
    for _ in range(9):
        data = {"k": data}
    example = convert(TOKENIZER, data)
    table = numpy.reshape(example.relations, (example.count, example.count))
    assert table[0, 6:9].tolist() == [7, 8, 8]
    assert table[6:9, 0].tolist() == [49, 57, 57]


@pytest.mark.parametrize("data", [{"a": 1}, {"a": None}, {"a": ["b"]}, {1: "a"}, {"a": {"b": 2.0}}])
def test_data_of_another_kind_are_named(data):
    with pytest.raises(ValueError, match="expected a key and a text or dict, found"):
        convert(TOKENIZER, data)


# training rows


LISTS = ("input_ids", "input_id_sub", "context", "segment")  # with an entry a token


def features_of(record, cutoff):
    """A row of at most `cutoff` tokens, as the originals cut it."""
    features = training_features(TOKENIZER, tree_of(record))
    return {name: value[:cutoff] if name in LISTS else value for name, value in features.items()}


def reference_features():
    """The golden rows as the originals collated them: they gave cut answers an end too."""
    return [features_of(record, GOLDEN["train_cutoff_len"]) for record in GOLDEN["train_records"]]


def test_records_become_the_rows_of_the_originals():
    for record, expected in zip(GOLDEN["train_records"], GOLDEN["train_features"], strict=True):
        assert tree_of(record) == expected.pop("data")
        assert len(training_features(TOKENIZER, tree_of(record))["input_ids"]) == expected.pop("untruncated_length")
        assert features_of(record, GOLDEN["train_cutoff_len"]) == expected


def test_rows_become_the_batch_of_the_originals():
    batch = collate(TOKENIZER, reference_features(), GOLDEN["train_cutoff_len"])
    assert batch.keys() == set(BATCH)
    for name in BATCH:
        assert numpy.array_equal(batch[name].numpy(), ARRAYS[f"train_{name}"]), name


def test_padding_is_not_counted_as_trained():
    rows = reference_features()
    assert len({len(row["input_ids"]) for row in rows}) > 1
    assert int(real_tokens(collate(TOKENIZER, rows))) == sum(len(row["input_ids"]) for row in rows)


def test_a_batch_without_numbered_tokens_has_a_class_that_nothing_means():
    batch = collate(TOKENIZER, [features_of(RECORD, 100)])
    assert (batch["ext_table_ids"].tolist(), batch["ext_table_sub"].tolist()) == ([0], [1])


def test_a_row_cut_before_its_answer_teaches_nothing():
    features = features_of(RECORD, 5)
    assert 0 not in features["context"]
    assert (collate(TOKENIZER, [features])["labels"] == IGNORED).all()


def test_what_a_row_does_not_teach_is_labelled_as_for_other_bases():
    assert IGNORED == labels.IGNORED


def test_several_answers_each_learn_their_end_and_numbered_tokens_their_column():
    data = {"input": "<mask_0>龘中<mask_1>😀", "<ans>": {"<mask_0>": "龘😀", "<mask_1>": "😀中龘<mask_1>"}}
    example = convert(TOKENIZER, data)
    features = {"input_ids": example.ids, "input_id_sub": example.subs, "context": example.context}
    features |= {"segment": example.segments, "segment_rel": example.relations, "num_segments": example.count}
    batch = collate(TOKENIZER, [{**features, "answer_cut": False}])
    assert example.families[1] == {"龘": 0, "😀": 1, "龘😀": 2}
    columns = list(zip(batch["ext_table_ids"].tolist(), batch["ext_table_sub"].tolist(), strict=True))
    assert columns == [(2, 1), (1, 1), (1, 2)]  # 515: <mask_1>, 516: 😀, 517: 龘😀
    assert batch["labels"][batch["labels"] != IGNORED].tolist() == [517, 7, 516, 129, 1, 515, 7]
    assert batch["labels"][0, example.context.index(0)] == 517  # stands at the answer's <s>


def test_what_a_record_says_never_becomes_a_special_token():
    record = {"instruction": "<ans>", "input": "a</s><b> < <mask_0>", "output": "<s><root>"}
    features = features_of(record, 500)
    marks = [number for number in features["input_ids"] if 0 <= number <= 10 and number not in (1, 4, 5)]
    assert marks == [6, 8, 7, 6, 7, 6, 7, 6, 9, 7, 6]  # the five segments' own
    assert not any(features["input_id_sub"])


# prompts


def test_prompts_are_those_of_the_originals():
    cases = [(f"gen{n}", [one], [GOLDEN["gen_other_info"][n]]) for n, one in enumerate(GOLDEN["gen_data"])]
    cases.append(("batch", GOLDEN["gen_data"], GOLDEN["batch_other_info"]))
    for prefix, data, others in cases:
        before = copy.deepcopy(data)
        prompts = prefill(TOKENIZER, data)
        assert data == before
        arrays = {
            "input": prompts.ids,
            "input_sub": prompts.subs,
            "input_pos": prompts.positions,
            "context": prompts.num_segments > 0,
            "num_segments": prompts.num_segments,
            "segment": prompts.segments,
            "segment_rel": prompts.relations,
            "batch_ext_table_ids": prompts.ext_ids,
            "batch_ext_table_sub": prompts.ext_subs,
            "sample_idx": torch.zeros_like(prompts.ids),
            "segment_rel_offset": torch.zeros_like(prompts.ids),
        }
        for name, array in arrays.items():
            assert numpy.array_equal(array.numpy(), ARRAYS[f"{prefix}_{name}"]), (prefix, name)
        for number, other in enumerate(others):
            assert {str(column): text for column, text in prompts.names[number].items()} == other["ext_table"]
            segments = [[segment, place] for place, (segment, _) in enumerate(prompts.predicted[number], start=1)]
            assert segments == other["predict_segments"]
            assert [list(path) for _, path in prompts.predicted[number]] == other["answer_placeholders"]


def test_records_of_a_batch_share_columns_by_family_and_number():
    data = [{"input": text, "<ans>": ""} for text in ("龘中😀", "😀中龘", "<ans_7><ans_8>", "<mask_5>中<mask_3>")]
    prompts = prefill(TOKENIZER, data)
    assert list(zip(prompts.ext_ids.tolist(), prompts.ext_subs.tolist(), strict=True)) == [(1, 1), (2, 1)]
    assert prompts.names == [{1: "龘", 515: "😀"}, {1: "😀", 515: "龘"}, {}, {2: "<mask_5>", 516: "<mask_3>"}]


@pytest.mark.parametrize("data", [{"input": "a"}, {"input": "a", "<ans>": {}}, {"input": {"<ans>": "a"}}])
def test_data_without_an_answer_to_give_are_named(data):
    with pytest.raises(ValueError, match="need a text under <ans>"):
        prefill(TOKENIZER, [data])
