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


@pytest.mark.parametrize("name", ["gb1830", "rot13"])
def test_an_encoding_that_is_none_is_refused_before_any_document_is_read(name):
    assert parse_corpus([*CORPUS, "--relations", "位于", "--encoding", "UTF-16"])[1].reading.encoding == "UTF-16"
    with pytest.raises(UserError, match=f"--encoding {name}: no such encoding; give utf-8, gb18030"):
        parse_corpus([*CORPUS, "--relations", "位于", "--encoding", name])


@pytest.mark.parametrize(
    ("parse", "needed"), [(parse_serve, ["--ptuning_dir", "x"]), (parse_ptuning_inference, ["--ptuning_dir", "x"])]
)
def test_drafts_are_refused_where_there_are_none(parse, needed):
    with pytest.raises(UserError, match="--drafts 4.* none"):
        parse([*needed, "--drafts", "4"])
    assert parse([*needed, "--drafts", "0"])[1].drafts == "0"


def test_a_file_of_topics_is_read_as_convert_reads_it_and_must_name_them(tmp_path):
    file = tmp_path / "topics.json"
    file.write_text('{"建筑": ["位于", "高度"]}', encoding="utf-8")
    instructions, _ = read_wanted(parse_corpus([*CORPUS, "--topics", str(file), "--cate", "建筑"])[1])
    assert read_schema(instructions["建筑"]) == ["位于", "高度"]
    file.write_text('["位于"]', encoding="utf-8")
    with pytest.raises(UserError, match="--topics .*: names without a topic"):
        read_wanted(parse_corpus([*CORPUS, "--topics", str(file), "--cate", "auto"])[1])
