"""convert.py --from and --to: files of other projects, turned both ways."""

import json

import pytest

from common.errors import UserError
from kg.schema import read_schema
from utils import convert

DUIE = [
    {
        "text": "甲在乙",
        "spo_list": [{"subject": "甲", "predicate": "位于", "object": {"@value": "乙", "inArea": "丙"}}],
    },
    {"text": "空", "spo_list": []},
]


@pytest.fixture
def turn(tmp_path):
    """A function from rows, or the text of a file, and flags to the rows that convert.py makes of them."""

    def run(rows, *flags, name="in.json"):
        source, target = tmp_path / name, tmp_path / "out.json"
        lines = rows if isinstance(rows, str) else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        source.write_text(lines, encoding="utf-8")
        convert.main(["--pred_path", str(source), "--tgt_path", str(target), *flags])
        return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]

    return run


def test_a_file_is_turned_and_back_and_says_what_it_lost(turn, capsys):
    ours = turn(DUIE, "--from", "duie")
    assert [row["kg"] for row in ours] == [[["甲", "位于", "乙"]], []]
    said = capsys.readouterr().err
    assert (
        "in.json: read as --from duie: 2 records; lost: other parts of complex objects of 1 records (the first:" in said
    )
    assert "out.json: 2 records" in said
    back = turn(ours, "--to", "duie")
    assert [row["spo_list"][0]["object"] if row["spo_list"] else None for row in back] == [{"@value": "乙"}, None]
    assert "relations that are asked for without an answer of 1 records (the first: 2)" in capsys.readouterr().err


def test_a_form_becomes_another_without_being_named(turn, capsys):
    rows = turn(DUIE, "--to", "iepile")
    assert [json.loads(row["instruction"])["schema"] for row in rows] == [["位于"], ["位于"]]
    assert json.loads(rows[0]["output"]) == {"位于": [{"subject": "甲", "object": "乙"}]}
    assert "in.json: read as --from duie" in capsys.readouterr().err


def test_relations_can_be_given(turn, tmp_path):
    (tmp_path / "r.json").write_text('["位于", "别名"]', encoding="utf-8")
    relations = ("--relations", str(tmp_path / "r.json"))
    rows = turn([{"text": "甲在乙"}], "--from", "duie", *relations)
    assert (read_schema(rows[0]["instruction"]), rows[0]["id"], "output" in rows[0]) == (["位于", "别名"], 1, False)
    with pytest.raises(UserError, match="--relations: the records of .* have instructions already"):
        turn([{"instruction": "抽取", "input": ""}], "--to", "messages", *relations)
    with pytest.raises(UserError, match="--relations .*no.json: no such file"):
        turn(DUIE, "--from", "duie", "--relations", str(tmp_path / "no.json"))
    with pytest.raises(UserError, match="--tgt_path .*: is an input of this command"):
        turn(DUIE, "--from", "duie", "--relations", str(tmp_path / "out.json"))


@pytest.mark.parametrize("flag", ["--sort=id", "--dedupe", "--skip_bad", "--min_confidence=0.5"])
def test_flags_of_submissions_do_not_go_with_it(turn, flag):
    with pytest.raises(UserError, match=f"{flag.split('=')[0]} would have no effect"):
        turn(DUIE, "--from", "duie", flag)


def test_records_of_this_project_are_not_taken_for_another_form(turn):
    with pytest.raises(UserError, match="^--from duie: the records of .*in.json have instruction and input, .*drop it"):
        turn([{"instruction": "抽取", "input": "甲在乙"}], "--from", "duie")


def test_a_file_of_no_known_form_is_said_to_lack_its_fields(turn):
    with pytest.raises(UserError, match="in.json:1: expected records with instruction, input, found text; rename text"):
        turn([{"text": "甲"}], "--to", "messages")


def test_a_table_is_turned(turn):
    rows = turn("id,instruction,input\n7,抽取,甲\n", "--from", "csv", name="in.txt")
    assert rows == [{"id": 7, "instruction": "抽取", "input": "甲"}]
