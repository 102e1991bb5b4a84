"""Files of predictions that vote, thresholds of confidence in convert.py and their curve in score.py."""

import json

import pytest
from helpers import rows

from common.errors import UserError
from common.files import write_rows
from utils import convert, score, vote

INSTRUCTION = "关系列表：['位于', '别名']，请抽取。"


def row(number, output, **more):
    return {"id": number, "instruction": INSTRUCTION, "input": "甲在乙，又名丙。", "output": output, **more}


def test_files_vote(tmp_path, capsys):
    files = [tmp_path / f"{name}.json" for name in "abc"]
    write_rows(files[0], [row(1, "(甲,位于,乙),(甲,别名,丁)"), row(2, "(甲,别名,丙)")])
    write_rows(files[1], [row(1, "(甲,位于,乙)")])
    write_rows(files[2], [{"id": 1, "kg": [["甲", "位于", "乙"]]}, row(2, "(甲,别名,丙)")])
    vote.main(["--pred", *map(str, files), "--tgt_path", str(tmp_path / "out.json")])
    first, second = rows(tmp_path / "out.json")
    assert (first["output"], first["confidence"]) == ("(甲,位于,乙)", [1.0])
    assert (second["kg"], second["confidence"]) == ([["甲", "别名", "丙"]], [0.6667])
    said = capsys.readouterr().err
    assert "2 rows, 2 triples that 2 or more of 3 files have" in said
    assert f"warning: {files[1]} lacks 1 of the 2 records of {files[0]}" in said
    assert "left out" not in said
    with pytest.raises(UserError, match="two or more"):
        vote.main(["--pred", str(files[0]), "--tgt_path", str(tmp_path / "x.json")])
    with pytest.raises(UserError, match="--min_votes 4"):
        vote.main(["--pred", *map(str, files), "--tgt_path", str(tmp_path / "x.json"), "--min_votes", "4"])


def test_a_file_has_one_vote_and_says_which_of_its_records_have_none(tmp_path, capsys):
    one, other, link = (tmp_path / name for name in ("a.json", "b.json", "link.json"))
    write_rows(one, [row(1, "(甲,位于,乙)")])
    write_rows(other, [row(1, "(甲,位于,乙)"), row("1", "(甲,别名,丙)")])
    vote.main(["--pred", str(one), str(other), "--tgt_path", str(tmp_path / "out.json")])
    assert f"warning: {other} has 1 records that {one} lacks: they are left out" in capsys.readouterr().err
    link.symlink_to(one)
    with pytest.raises(UserError, match="link.json: is given twice"):
        vote.main(["--pred", str(one), str(other), str(link), "--tgt_path", str(tmp_path / "out.json")])


def test_a_submission_leaves_out_what_is_less_sure(tmp_path):
    predicted, target = tmp_path / "p.json", tmp_path / "t.json"
    write_rows(predicted, [row(1, "(甲,位于,乙),(甲,国籍,丙),(甲,别名,丙)", confidence=[0.4, 0.9, 0.8])])
    words = ["--pred_path", str(predicted), "--tgt_path", str(target)]
    convert.main([*words, "--min_confidence", "0.5", "--schema", "strict"])
    assert rows(target)[0]["output"] == "(甲,别名,丙)"
    assert rows(target)[0]["confidence"] == [0.8]
    write_rows(predicted, [row(1, "(甲,位于,乙)", confidence=[0.4, 1])])
    with pytest.raises(
        UserError, match=r"p.json:1: confidence is \[0.4, 1\]; expected a number from 0 to 1 for each of"
    ):
        convert.main(words)
    write_rows(predicted, [row(1, "(甲,位于,乙)", confidence=0.4)])  # another program's, of the whole answer
    convert.main(words)
    assert rows(target)[0]["confidence"] == 0.4
    write_rows(predicted, [row(1, "(甲,位于,乙)")])
    with pytest.raises(UserError, match="p.json:1: --min_confidence: the row has no confidence"):
        convert.main([*words, "--min_confidence", "0.5"])
    write_rows(predicted, [row(1, "", finish_reason="error")])  # it failed, so nothing was said of it
    convert.main([*words, "--min_confidence", "0.5"])
    assert rows(target)[0]["kg"] == []


def test_a_score_says_which_threshold_is_best(tmp_path, capsys):
    predicted, gold = tmp_path / "p.json", tmp_path / "g.json"
    write_rows(predicted, [row(1, "(甲,位于,乙),(甲,位于,丙)", confidence=[0.9, 0.3]), row(2, "", confidence=[])])
    write_rows(gold, [row(1, "(甲,位于,乙)"), row(2, "")])
    words = ["--pred", str(predicted), "--gold", str(gold), "--bootstrap", "0", "--json", str(tmp_path / "s.json")]
    score.main(words)
    assert ">= 0.9000                        1    1.0000    1.0000    1.0000  best f1" in capsys.readouterr().out
    curve = json.loads((tmp_path / "s.json").read_text())["by_confidence"]
    assert [line["threshold"] for line in curve] == [0.3, 0.9]
    write_rows(predicted, [row(1, "(甲,位于,乙)"), row(2, "")])
    score.main(words)
    assert "confidence" not in "".join(capsys.readouterr())
    write_rows(predicted, [row(1, "(甲,位于,乙)"), row(2, "(甲,位于,乙)", confidence=[0.5])])
    score.main(words)
    said = capsys.readouterr()
    assert "warning: 1 predictions have no confidence, e.g. id 1: no thresholds are compared" in said.err
    assert "confidence" not in said.out
