"""Long texts: cut into windows at sentence ends, asked about one by one, their triples merged."""

import json
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest
from helpers import GOLDEN, rows
from helpers_prediction import RECORDS, flags, loaded
from hypothesis import given
from hypothesis import strategies as st

import inference
from checkpoints.config import read_context
from checkpoints.family import find_family
from common.errors import UserError
from data.answer_form import ask_json
from data.asking import Asking
from data.documents import Document
from data.prompts import load_template, make_prompt
from data.windows import sentences, window_places, windows
from kg.wordings import ask_for
from prediction.extracting import choose_short_window
from prediction.questions import Question, choose_window, make_questions, make_rows
from prediction.texts import Wanted, cut_documents
from tokens.lengths import TEXT_WINDOW

BASE = GOLDEN / "checkpoint"


def test_a_window_without_a_number_is_what_the_context_leaves(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 100}}))
    (tmp_path / "model.safetensors").touch()
    context = read_context(tmp_path, find_family(tmp_path)[0])
    assert choose_window(0, context, 40) == 60
    assert choose_window(9, context, 512) == 9
    assert choose_window(None, context, 512) is None
    with pytest.raises(UserError, match="--max_new_tokens 512 leaves nothing of the base's context of 100"):
        choose_window(0, context, 512)
    (tmp_path / "config.json").write_text("{}")
    assert read_context(tmp_path, find_family(tmp_path)[0]) is None
    with pytest.raises(UserError, match="no limit in its config.json; give one"):
        choose_window(0, None, 40)


def test_a_single_text_has_windows_of_a_usual_size_unless_one_is_asked_for():
    assert choose_short_window(None, None, 512) == choose_short_window(None, 8192, 512) == TEXT_WINDOW
    assert choose_short_window(None, 1000, 512) == 488
    assert choose_short_window(9, 8192, 512) == 9
    assert choose_short_window(0, 8192, 512) == 7680  # --window without a number
    with pytest.raises(UserError, match="--max_new_tokens 512 leaves nothing of the base's context of 512"):
        choose_short_window(None, 512, 512)


@pytest.mark.parametrize(
    ("settings", "context"),
    [
        ({"max_position_embeddings": 100}, 100),
        ({"max_sequence_length": 100}, 100),  # the first LLaMA repositories
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 200),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 50}}, 200),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8}, "sliding": {}}}, 800),
        # These count the positions after they were stretched.
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 20}}, 100),
        ({"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 20}}, 100),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, 100),
    ],
)
def test_the_context_of_a_base_counts_how_far_its_positions_are_stretched(tmp_path, settings, context):
    known = {} if "max_sequence_length" in settings else {"max_position_embeddings": 100}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **known, **settings}))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.model").touch()
    for family in ("llama", "auto"):
        assert read_context(tmp_path, find_family(tmp_path, family if family == "llama" else None)[0]) == context


def test_sentences_end_where_chinese_and_english_ones_do():
    text = "甲说：“好！”乙在3.5千米外。 Mr J. Smith left. (He ran.) Then\nend"
    assert sentences(text) == ["甲说：“好！”", "乙在3.5千米外。 ", "Mr J. Smith left. ", "(He ran.) ", "Then\n", "end"]


def test_windows_overlap_by_a_sentence_and_lose_nothing():
    text = "一二三。四五六。七八九。十百千。"
    assert windows(text, lambda part: len(part) <= 8) == ["一二三。四五六。", "四五六。七八九。", "七八九。十百千。"]
    assert windows("一二三四。五六七八九，十百。千", lambda part: len(part) <= 6) == [
        "一二三四。",
        "五六七八九，",
        "十百。千",
    ]
    assert windows("一二三四五六七八九", lambda part: len(part) <= 4) == ["一二三四", "五六七八", "九"]
    assert windows("一二", lambda part: len(part) <= 2) == ["一二"]
    assert windows("一二", lambda part: not part) is None


@given(st.integers(0, 2**32), st.integers(1, 25))
def test_windows_of_any_text_cover_it_in_order(seed, most):
    random_ = random.Random(seed)
    characters = [chr(0x4E00 + index) for index in range(random_.randrange(1, 80))]  # each once: their order is known
    text = "".join(character + random_.choice(["", "", "", "。", "，", ". ", "\n"]) for character in characters)
    found = windows(text, lambda part: len(part) <= most)
    assert all(part in text and len(part) <= most for part in found)
    held = [[character for character in part if character in characters] for part in found]
    assert sorted({character for part in held for character in part}) == characters
    firsts = [part[0] for part in held if part]
    assert firsts == sorted(firsts)
    assert len("".join(found)) <= 2 * len(text)


def test_a_text_without_a_character_fits_or_has_no_window():
    for text in ("", " \n" * 20):
        assert windows(text, lambda part: True) == [text]
        assert windows(text, lambda part: not part) == [""]
        assert windows(text, lambda part: False) is None


def test_blanks_around_a_window_take_no_room_and_are_none_themselves():
    def fits(part):
        return len(part) <= 8

    assert windows("\n" * 20 + "一二三。" + " " * 20, fits) == ["一二三。"]
    assert windows("一二三。" + "\u3000" * 20 + "四五六。\n\n\n七八九。", fits) == ["一二三。", "四五六。", "七八九。"]
    assert windows("\n一二三四五六七八九，" + " " * 20 + "十", fits) == ["一二三四五六七八", "九，", "十"]


def test_the_triples_of_windows_are_merged_in_order_without_repeats():
    record = {"id": 1, "instruction": "已知候选的关系列表：['位于']", "input": "甲在乙。丙在丁。", "kg": []}
    other = {"id": 2, "instruction": "", "input": "x"}
    questions = [Question(0, "甲在乙。", [1]), Question(0, "丙在丁。", [2]), Question(1, "x", [3])]
    answers = {
        0: {"output": "(甲,位于,乙)", "finish_reason": "length"},
        1: {"output": "(丙,位于,丁),(甲,位于,乙)", "finish_reason": "eos"},
        2: {"output": "as it is", "finish_reason": "eos"},
    }
    merged, plain = make_rows([record, other], questions, answers)
    assert merged["output"] == "(甲,位于,乙),(丙,位于,丁)"
    assert (merged["finish_reason"], merged["windows"]) == ("length", 2)
    assert "kg" not in merged
    assert plain == {**other, "output": "as it is", "finish_reason": "eos"}
    del answers[1]
    assert make_rows([record, other], questions, answers)[0]["finish_reason"] == "error"


def test_long_texts_are_asked_about_in_windows(tmp_path, capsys):
    codec = loaded(BASE)[1]
    template = load_template("alpaca")
    sizes = [len(codec.encode(make_prompt(template, r["instruction"], r["input"]))) for r in RECORDS]
    least = max(len(codec.encode(make_prompt(template, r["instruction"], "字"))) for r in RECORDS)
    window = (least + max(sizes)) // 2
    inference.main(flags(tmp_path / "out.json", window=window))
    inference.main(flags(tmp_path / "plain.json"))
    out, plain = rows(tmp_path / "out.json"), rows(tmp_path / "plain.json")
    split = [row for row in out if "windows" in row]
    assert [row["id"] for row in split] == [r["id"] for r, size in zip(RECORDS, sizes, strict=True) if size > window]
    assert split
    assert [row for row in out if "windows" not in row] == [p for p, s in zip(plain, sizes, strict=True) if s <= window]
    assert f"windows: {len(split)} of 12 texts" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["text", ""])
def test_an_instruction_without_room_for_a_text_fails_by_itself(text, capsys):
    records = [{"id": 3, "instruction": "x", "input": text}, {"id": 4, "instruction": "", "input": text}]
    long, short = make_questions(records, lambda record: [1], lambda record: record["id"] == 4)
    assert long.ids == []
    assert long.reason.startswith("its instruction leaves no room for any text in a window")
    assert "has 1 tokens; give --window clearly more" in long.reason
    assert short == Question(1, text, [1])
    assert "warning: 1 of 2 records cannot be asked (the first: id 3: its instruction" in capsys.readouterr().err


def test_a_very_long_text_is_cut_in_linear_time():
    counts = []
    for size in (2_000, 20_000):
        for text in ("一二三。" * size, "一" * size, "一二三，" * size, " " * size):
            tried = 0

            def fits(part):
                nonlocal tried
                tried += len(part)
                return len(part) <= 100

            assert "".join(windows(text, fits)).count("一") >= text.count("一")
            counts.append(tried / len(text))
    assert max(counts[4:]) < 1.5 * max(counts[:4])  # characters tried for each one of the text


@given(st.text("甲乙。\n，a. ", max_size=60), st.integers(1, 9))
def test_places_are_those_of_the_windows_and_leave_nothing_out_but_blanks(text, most):
    def fits(part):
        return len(part) <= most

    places = window_places(text, fits)
    assert [text[start:end] for start, end in places] == windows(text, fits)
    if fits(text):
        assert places == [(0, len(text))]
        return
    assert all(text[start:end] == text[start:end].strip() for start, end in places)
    assert all(start < end for start, end in places) or not text.strip()
    outside = [0, *(end for _, end in places)], [*(start for start, _ in places), len(text)]
    assert not any(text[end:start].strip() for end, start in zip(*outside, strict=True))
    for (start, end), (after, behind) in pairwise(places):
        assert start < after
        assert end < behind


def test_a_document_of_many_blanks_has_as_many_windows_as_without_them():
    codec = SimpleNamespace(encode=lambda pieces: "".join(piece.text for piece in pieces))
    template = {"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}"}
    plan = SimpleNamespace(codec=codec, template=template, asking=Asking())
    text = RECORDS[0]["input"]
    padded = f"{' ' * 300}{text}{' ' * 300}\n"
    wanted, most = Wanted({"": ask_for(["位于"])}), len(ask_for(["位于"]) + text)
    for document, count in ((Document("a", "a", padded), 1), (Document("b", "b", 2 * padded), 2)):
        records, (cut,) = cut_documents(plan, [document], wanted, most)
        assert [document.text[slice(*window.place)] for window in cut] == [text] * count
        assert [record["input"] for record in records] == [text]


def test_windows_leave_room_for_the_sentence_that_asks_for_json():
    long = "\n\n".join(record["input"] for record in RECORDS[:6])
    codec = SimpleNamespace(encode=lambda pieces: "".join(piece.text for piece in pieces))
    template = {"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}"}
    plan = SimpleNamespace(codec=codec, template=template, asking=Asking(as_json=True))
    wanted = Wanted({"": ask_for(["位于"])})
    records, _ = cut_documents(plan, [Document("a", "a", long)], wanted, most=300)
    lengths = [len(ask_json(record)["instruction"] + record["input"]) for record in records]
    assert len(lengths) > 1
    assert max(lengths) <= 300
