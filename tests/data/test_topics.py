"""The topic of a text, and what is asked for it."""

import json

import pytest
from helpers import ROOT, rows

from common.errors import UserError
from data.topics import RECORDS, RELATIONS, count_topics, learn_topics, pick_topic, read_topics

HELD_OUT = ROOT / "data" / "sample" / "valid.json"


def test_nine_of_ten_held_out_texts_get_their_topic():
    relations = read_topics(RELATIONS)
    topics = learn_topics(RECORDS, set(relations))
    records = rows(HELD_OUT)
    right = sum(pick_topic(topics, record["input"]) == record["cate"] for record in records)
    assert len(relations) == 12
    assert right / len(records) >= 0.9, right


def test_a_topic_is_what_its_texts_say_and_of_no_text_the_most_frequent():
    topics = count_topics([("天", "行星绕恒星"), ("天", "恒星发光"), ("地", "河流入海")])
    assert pick_topic(topics, "一颗恒星") == "天"
    assert pick_topic(topics, "这条河流") == "地"
    assert pick_topic(topics, "") == "天"


def test_topics_without_records_or_relations_are_named(tmp_path):
    file = tmp_path / "topics.json"
    file.write_text(json.dumps({"建筑": {"relations": ["位于"]}, "菜谱": ["食材"]}), encoding="utf-8")
    assert read_topics(file) == {"建筑": ["位于"], "菜谱": ["食材"]}
    with pytest.raises(UserError, match="no record has the topic 菜谱"):
        learn_topics(RECORDS, {"建筑", "菜谱"})
    odd = [{"cate": ["菜谱"], "input": "锅"}, {"cate": "菜谱", "input": 7}, {"cate": "菜谱", "input": ""}]
    records = tmp_path / "records.json"
    records.write_text("\n".join(map(json.dumps, odd)), encoding="utf-8")
    with pytest.raises(UserError, match="no record has the topic 菜谱"):
        learn_topics(records, {"菜谱"})
    file.write_text('{"建筑": {"relations": []}}', encoding="utf-8")
    with pytest.raises(UserError, match="topics.json: 建筑: expected an object like"):
        read_topics(file)
    with pytest.raises(UserError, match="no such file"):
        read_topics(tmp_path / "none.json")
    with pytest.raises(UserError, match="--relations .*: is a folder, not a file"):
        read_topics(tmp_path, "--relations")
