"""A list of relations is replaced in the form of its instruction, and read back as just these names, or not at all."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kg.replacing import replace_schema
from kg.schema import read_schema

seeded = settings(derandomize=True, deadline=None, database=None, max_examples=300)

CONTEST = "已知候选的关系列表：{}，请你根据关系列表，从以下输入中抽取。请按照 (Subject,Relation,Object) 的格式回答。"
OLDER = "抽取三元组,抽取实体类型为{'专业','时间'},关系类型为{%s},你可以先识别出实体,以(头实体,关系,尾实体)的形式回答"
NEW = ["父母", "国籍", "别名"]  # instead of 别名 and 国籍
FORMS = [  # an instruction that asks for 别名 and 国籍, and what it becomes
    (CONTEST.format("['别名', '国籍']"), CONTEST.format("['父母', '国籍', '别名']")),
    (OLDER % "'别名','国籍'", OLDER % "'父母','国籍','别名'"),
    ('关系列表：["别名", "国籍"]', '关系列表：["父母", "国籍", "别名"]'),
    ("关系列表：[别名，国籍]。", "关系列表：[父母，国籍，别名]。"),
    ("关系列表：【别名、国籍】", "关系列表：【父母、国籍、别名】"),
    ('关系列表：\n[\n  "别名",\n  "国籍"\n]', '关系列表：\n[\n  "父母",\n  "国籍",\n  "别名"\n]'),
    ("关系列表：别名、国籍，请抽取三元组。", "关系列表：父母、国籍、别名，请抽取三元组。"),
    ("关系列表：“别名”、“国籍”，请抽取", "关系列表：“父母”、“国籍”、“别名”，请抽取"),
    ("关系列表：\n- 别名\n- 国籍\n\n文本：张三", "关系列表：\n- 父母\n- 国籍\n- 别名\n\n文本：张三"),
    ("关系列表：\n* `别名`\n* `国籍`\n", "关系列表：\n* `父母`\n* `国籍`\n* `别名`\n"),
    ("关系列表：\n别名\n国籍\n\n请抽取", "关系列表：\n父母\n国籍\n别名\n\n请抽取"),
    ("关系类型如下：1. 别名 2. 国籍\n", "关系类型如下：1. 父母 2. 国籍 3. 别名\n"),
    ("关系类型如下：1、别名；2、国籍。", "关系类型如下：1、父母；2、国籍；3、别名。"),
    ("关系类型：①别名②国籍", "关系类型：①父母②国籍③别名"),
    (
        '{"schema": ["\\u522b\\u540d", "\\u56fd\\u7c4d"]}',
        '{"schema": ["\\u7236\\u6bcd", "\\u56fd\\u7c4d", "\\u522b\\u540d"]}',
    ),
    (
        '抽取关系 {"schema": ["别名", "国籍"], "input": "甲"}',
        '抽取关系 {"schema": ["父母", "国籍", "别名"], "input": "甲"}',
    ),
]
NUMBERED = "关系列表：\n1. 别名：其他名字\n2. 国籍：国家\n3. 父母：父亲或母亲\n请抽取"
KEYED = "抽取 {\"schema\": {'别名': '其他名字', '国籍': '国家', '父母': ''}}"


@pytest.mark.parametrize(("text", "wanted"), FORMS)
def test_the_new_list_has_the_old_ones_form(text, wanted):
    assert replace_schema(text, NEW) == wanted
    assert replace_schema(wanted, ["别名", "国籍"]) == text
    assert (
        replace_schema(text, ["国籍", "别名"]) == text.replace("别名", "_").replace("国籍", "别名").replace("_", "国籍")
        or "\\u" in text
    )


@pytest.mark.parametrize("text", [CONTEST.format("['别名', '国籍']"), OLDER % "'别名','国籍'"])
def test_a_list_may_lose_all_but_one_name_and_win_them_back(text):
    one = replace_schema(text, ["父母"])
    assert read_schema(one) == ["父母"]
    assert replace_schema(one, ["别名", "国籍"]) == text
    none = replace_schema(text, [])
    assert read_schema(none) == []
    assert read_schema(replace_schema(none, NEW)) == NEW


def test_descriptions_move_with_their_names():
    assert replace_schema(NUMBERED, ["父母", "别名"]) == "关系列表：\n1. 父母：父亲或母亲\n2. 别名：其他名字\n请抽取"
    assert replace_schema(KEYED, ["父母", "别名"]) == "抽取 {\"schema\": {'父母': '', '别名': '其他名字'}}"
    for text in (NUMBERED, KEYED):
        assert replace_schema(text, ["父母", "作者"]) is None  # which nothing describes


def test_an_example_before_the_task_and_lists_of_entity_types_stay():
    text = "例如关系列表：['位于']对应(a,位于,b)。\n实体类型：['人']，关系列表：['别名', '国籍']，请抽取。"
    assert replace_schema(text, ["位于"]) == text.replace("'别名', '国籍'", "'位于'")


@pytest.mark.parametrize("text", ["请抽取三元组", "关系列表：请看附件，谢谢", ""])
def test_without_a_list_there_is_nothing_to_replace(text):
    assert replace_schema(text, NEW) is None


def test_names_that_the_form_cannot_hold_are_refused():
    assert replace_schema(CONTEST.format("['别名', '国籍']"), ["a', 'b", "国籍"]) is None
    assert replace_schema("关系列表：别名、国籍。", ["a、b", "国籍"]) is None
    assert replace_schema("关系列表：别名、国籍。", ["国籍"]) is None  # one name alone would be no list


@seeded
@given(
    form=st.sampled_from([*(text for pair in FORMS for text in pair), NUMBERED, KEYED]),
    names=st.lists(st.text(st.sampled_from("甲乙国籍a' ,，、\"\\[]}：1.\n与和"), min_size=1, max_size=6), max_size=5),
)
def test_what_is_replaced_reads_as_the_new_names_and_leaves_the_rest(form, names):
    new = replace_schema(form, names)
    if new is None:
        return
    assert read_schema(new) == names
    start = next((at for at in range(min(map(len, (form, new)))) if form[at] != new[at]), None)
    assert start is None or start >= form.index("关系" if "schema" not in form else "schema")


@seeded
@given(form=st.sampled_from(FORMS[:8]), names=st.lists(st.sampled_from("甲乙丙丁戊己庚"), min_size=2, unique=True))
def test_plain_names_always_find_a_place_and_the_way_back(form, names):
    new = replace_schema(form[0], names)
    assert new is not None
    assert read_schema(new) == names
    assert replace_schema(new, ["别名", "国籍"]) == form[0]


def test_an_instruction_that_is_an_object_stays_one():
    text = json.dumps({"instruction": "抽取关系", "schema": ["别名", "国籍"], "input": "甲"}, indent=1)
    assert json.loads(replace_schema(text, NEW))["schema"] == NEW
