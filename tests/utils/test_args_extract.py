"""The flags of extract.py and serve.py, and what they share with those of prediction."""

import pytest
from helpers import ROOT

from common.errors import UserError
from kg.schema import read_schema
from utils.args_extract import parse_corpus, read_wanted
from utils.args_pt import parse_ptuning_inference
from utils.args_serve import parse_serve, parse_text

CORPUS = ["--input", str(ROOT / "README.md")]


def test_a_long_list_of_relations_is_no_path_that_is_too_long():
    names = [f"关系{number}" for number in range(200)]
    instructions, topics = read_wanted(parse_corpus([*CORPUS, "--relations", "，".join(names)])[1])
    assert (read_schema(instructions[""]), topics) == (names, None)
    typed = "，".join(names[:60])
    assert parse_text(["--text", "钟楼", "--relations", typed])[1].relations == typed


def test_relations_of_a_corpus_are_parted_and_refused_as_those_of_a_text():
    instructions, _ = read_wanted(parse_corpus([*CORPUS, "--relations", "位于、高度"])[1])
    assert read_schema(instructions[""]) == ["位于", "高度"]
    with pytest.raises(UserError, match="--relations 位{60}: the relation .* has 61 characters"):
        read_wanted(parse_corpus([*CORPUS, "--relations", "位" * 61])[1])


@pytest.mark.parametrize(
    ("parse", "needed"), [(parse_serve, ["--ptuning_dir", "x"]), (parse_ptuning_inference, ["--model_dir", "x"])]
)
def test_drafts_are_refused_where_there_are_none(parse, needed):
    with pytest.raises(UserError, match="--drafts 4.* none"):
        parse([*needed, "--drafts", "4"])
    assert parse([*needed, "--drafts", "0"])[1].drafts == "0"
