import json
from pathlib import Path

import pytest
from helpers import linear_time
from hypothesis import given, settings
from hypothesis import strategies as st

from kg.schema import read_schema

seeded = settings(derandomize=True, deadline=None, database=None, max_examples=200)

WORDINGS = [json.loads(line) for line in Path(__file__).with_name("wordings.jsonl").read_text("utf-8").splitlines()]
CONTEST = (
    "已知候选的关系列表：{}，请你根据关系列表，从以下输入中抽取出可能存在的头实体(Subject)与尾实体(Object)，"
    "并给出对应的关系三元组。请按照 (Subject,Relation,Object) 的格式回答。"
)
OLDER = (
    "使用自然语言抽取三元组,已知下列句子,请从句子中抽取出可能的实体、关系,抽取实体类型为{'专业','时间'},"
    "关系类型为{'体育运动','包含行政领土'},你可以先识别出实体再判断实体之间的关系,以(头实体,关系,尾实体)的形式回答"
)
NAMES, ENGLISH = ["别名", "国籍"], ["alias", "nationality"]

INTRODUCTIONS = [
    "已知候选的关系列表：",
    "给定的关系列表是：",
    "关系列表是",
    "关系列表是:",
    "关系列表为",
    "关系列表为：",
    "关系列表=",
    "关系列表如下：",
    "关系类型包括",
    "关系类型包括：",
    "关系类型列表：",
    "候选关系：",
    "候选关系是",
    "候选关系列表:",
    "候選關係：",
    "關係列表：",
    "關係類型為",
    "關係類型列表：",
    "可选的关系类型有：",
    "关系类型有以下2种：",
    "关系集合：",
    "关系类别：",
    "关系标签为",
    "关系列表（共2个）：",
    "**关系列表**：",
    "【关系列表】",
    "“关系列表”：",
    "`关系类型`:",
    "##关系列表",
    "关系类型限定为：",
    "关系类型必须是以下之一：",
    "schema：",
    "关系类型（候选）：",
    "需要抽取的关系类型如下所示：",
]
LISTS = [
    "['别名', '国籍']",
    '["别名", "国籍"]',
    "[别名, 国籍]",
    "[别名，国籍]",
    "{别名、国籍}",
    "【别名、国籍】",
    "[`别名`, `国籍`]",
    "[‘别名’，“国籍”]",
    '\n[\n  "别名",\n  "国籍"\n]',
    '["别名", "国籍",]',
    "{'别名','国籍'}",
    "['别名'、'国籍']",
    '["\\u522b\\u540d", "\\u56fd\\u7c4d"]',
    "{'别名': '人物的[别名]', '国籍': '国家'}",
]
ENGLISH_INTRODUCTIONS = [
    "Given the candidate relation list: ",
    "The relations are ",
    "relation types: ",
    "Relation types are: ",
    "provide the relation triples from relation list ",
    "the possible relation list is ",
    "from the given relationships are ",
    "provide the relation triples from relation ",
    "relationship types: ",
    "Use only the following relation types: ",
    "The allowed relations are ",
    "Relations = ",
    "relation_types = ",
    "Relation labels include ",
    "Predicates: ",
    "relation types (2): ",
    "Given the ",
]

WITHOUT_BRACKETS = [
    ("关系列表：别名、国籍。", NAMES),
    ("关系列表：别名、国籍，请抽取三元组。", NAMES),
    ("关系列表：别名、国籍和父母。", [*NAMES, "父母"]),
    ("关系类型包括别名、国籍。", NAMES),
    ("关系类型包括：别名，国籍，请你抽取", NAMES),
    ("关系列表：“别名”、“国籍”，请抽取", NAMES),
    ("关系类型：'别名','国籍'", NAMES),
    ("关系列表：“别名、国籍”", NAMES),
    ("关系列表：\n- 别名\n- 国籍\n\n文本：张三", NAMES),
    ("关系列表：\n* `别名`\n* **国籍**\n", NAMES),
    ("关系列表：\n1. 别名：人物的其他名字\n2. 国籍：国家\n请抽取", NAMES),
    ("关系列表：\n别名\n国籍\n\n请抽取", NAMES),
    ("关系类型如下：1. 别名 2. 国籍\n", NAMES),
    ("关系类型如下：1、别名；2、国籍。", NAMES),
    ("关系类型有3种：1. 别名 2. 国籍 3. 父母", [*NAMES, "父母"]),
    ("关系类型：①别名②国籍", NAMES),
    ("The relation types are: alias, nationality. Please extract.", ENGLISH),
    ("relation list: alias, nationality, and place of birth.", [*ENGLISH, "place of birth"]),
    ("Relation types: alias and nationality", ENGLISH),
    ("Relation types:\n- alias\n- nationality\n\nText: x", ENGLISH),
]

OBJECTS = [
    ({"instruction": "从input中抽取出符合schema定义的关系三元组", "schema": NAMES, "input": "关系"}, NAMES),
    ({"instruction": "抽取关系", "schema": [], "input": ""}, []),
    ({"instruction": "抽取关系", "schema": {"别名": "人[物]的, “名”", "国籍": ""}}, NAMES),
    ({"instruction": "按实体类型的schema抽取属性", "schema": [{"entity_type": "人物", "attributes": NAMES}]}, NAMES),
    ({"instruction": "图谱", "schema": [{"entity_type": "人", "attributes": {"别名": "a", "国籍": "b"}}]}, NAMES),
    ({"instruction": "按实体类型抽取属性", "schema": {"人物": NAMES}}, NAMES),
    (
        {"instruction": "spo", "schema": [{"subject_type": "人", "predicate": r, "object_type": "x"} for r in NAMES]},
        NAMES,
    ),
    ({"instruction": "你是专门进行实体抽取的专家。请抽取符合schema定义的实体", "schema": ["人物", "组织"]}, None),
    ({"instruction": "You are an expert in named entity recognition.", "schema": ["person"], "input": "x"}, None),
    ({"instruction": "你是专门进行事件提取的专家。", "schema": ["上映"], "input": "x"}, None),
]

SEVERAL = [
    ("例如关系列表：['位于']对应(a,位于,b)。\n关系列表：['别名', '国籍']，请抽取。", NAMES),
    ("关系列表：['别名', '国籍']，例如关系列表：['位于']对应(a,位于,b)。", NAMES),
    ("示例：\n关系列表：['位于']\n文本：甲\n输出：(甲,位于,乙)\n\n关系列表：['别名', '国籍']\n文本：张三", NAMES),
    ("举个例子：关系列表：['位于']，现在，关系列表：[]", []),
    ("关系列表：['别名', '国籍']\n抽取的关系类型包括：实体、属性、事件", NAMES),
    ("实体类型列表：['人', '地点']，关系类型列表：['别名', '国籍']", NAMES),
    ("关系列表：['别名', '国籍']，请以JSON字符串[{'head':'', 'relation':'', 'tail':''}, ]的格式回答", NAMES),
    ("以\"关系：头实体,尾实体\n\"的格式回答，关系列表=['别名', '国籍']。", NAMES),
]

NONE = """
请抽取三元组，以(头实体,关系,尾实体)的形式回答
抽取实体类型为{'专业','时间'}
实体类型列表：['人', '地点']
给定的实体类型列表是：['人', '地点']，请抽取实体
Given the entity type list: ['person']
请以JSON字符串[{'head':'', 'relation':'', 'tail':''}, ]的格式回答
请抽取关系，输出格式：关系：['头实体', '关系', '尾实体']
抽取关系列表(头实体,关系,尾实体)
抽取所有关系三元组
请识别关系类型，再以(头实体,关系,尾实体)回答
关系类型有哪些、分别是什么？
关系类型是什么？请回答。
关系类型包括但不限于：别名、国籍
关系类型包括别名、国籍等。
关系列表：['位于', '别名'
关系列表：
关系列表：无
关系列表：请看附件，谢谢
关系类型：多对多
候选关系（含文中没有的关系）已给出
Please extract relation triples in the format [Subject, Relation, Object]
Return the relations: (head, relation, tail)
Output the relation types as a list
parse(text, schema, source) and schema(instruction)
""".strip().split("\n")


@pytest.mark.parametrize("case", WORDINGS, ids=lambda case: case["name"])
def test_wordings_of_other_projects_are_found(case):
    assert read_schema(case["instruction"]) == case["schema"]


@pytest.mark.parametrize("names", LISTS)
@pytest.mark.parametrize("introduction", INTRODUCTIONS)
def test_every_introduction_goes_with_every_list(introduction, names):
    for behind in ("，请抽取。", "\n请按照(头实体,关系,尾实体)的格式回答。", "。请以[Subject, Relation, Object]回答"):
        assert read_schema(f"你是专家。{introduction}{names}{behind}") == NAMES


@pytest.mark.parametrize("introduction", ENGLISH_INTRODUCTIONS)
def test_every_english_introduction_is_found(introduction):
    for names in ("['alias', 'nationality']", '["alias", "nationality"]', "[`alias`, `nationality`]"):
        instruction = f"Extract triples. {introduction}{names}. Answer in the form of [Subject, Relation, Object]."
        assert read_schema(instruction) == ENGLISH


@pytest.mark.parametrize(("instruction", "names"), WITHOUT_BRACKETS)
def test_lists_without_brackets_are_found(instruction, names):
    assert read_schema(instruction) == names


@pytest.mark.parametrize(("instruction", "names"), OBJECTS)
def test_the_schema_of_an_instruction_that_is_an_object_is_found(instruction, names):
    for written in (json.dumps(instruction, ensure_ascii=False), json.dumps(instruction, indent=1), repr(instruction)):
        assert read_schema(written) == names


@pytest.mark.parametrize(("instruction", "names"), SEVERAL)
def test_of_several_lists_the_tasks_own_is_taken(instruction, names):
    assert read_schema(instruction) == names


@pytest.mark.parametrize("instruction", NONE)
def test_where_no_relations_are_listed_there_is_no_schema(instruction):
    assert read_schema(instruction) is None


@pytest.mark.parametrize(
    ("instruction", "relations"),
    [
        (CONTEST.format("['事件', '位于', '名称由来']"), ["事件", "位于", "名称由来"]),
        (CONTEST.format("[]"), []),
        (CONTEST.format("['位于']"), ["位于"]),
        (OLDER, ["体育运动", "包含行政领土"]),
        ("关系列表：[位于，别名, 事件]", ["位于", "别名", "事件"]),
        ("relation list：[]", []),
        ("关系列表：['位于,别名]", ["位于", "别名"]),
        ("关系列表：['语言(官方)', '位于']，请抽取", ["语言(官方)", "位于"]),
        ("relation list: [\"writer's work\", 'of']", ["writer's work", "of"]),
        ("候选关系类型有[是,出生于,击败]", ["是", "出生于", "击败"]),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_the_names_are_those_of_the_instruction(instruction, relations):
    assert read_schema(instruction) == relations


RELATION = st.text("甲乙ab关系类型()（）[]的'\" ", min_size=1, max_size=6).map(str.strip).filter(bool)


# Without quotes in names, and without the parts of a triple, of which several are no list but a form of answers.
QUOTED = st.lists(RELATION.filter(lambda name: not set(name) & set("'\"") and name != "关系"), max_size=6)


@seeded
@given(QUOTED, st.sampled_from(INTRODUCTIONS))
def test_any_quoted_names_are_read_back(names, introduction):
    assert read_schema(f"{introduction}{names}，请抽取。") == names


@seeded
@given(st.text("关系列表类型为：[]{}'\"‘’`，,、= ab1.\n-schema（）"), st.text())
def test_the_schema_of_any_text_is_none_or_a_list_of_names(text, other):
    for instruction in ("关系列表" + text, "schema: " + text, other, "关系列表：" + other, text):
        names = read_schema(instruction)
        assert names is None or all(name and name == name.strip() for name in names)


LONG = 200_000
UNITS = [
    "关系列表：[",
    "关系列表：['",
    "关系列表：['a',",
    "关系列表",
    "关系列表：“",
    "关系['",
    "schema: {'a':",
    "关系列表：\n- a\n",
]
UNITS += ["关系列表：甲、", "given the [", " ", "relation types: 'a', "]


@pytest.mark.parametrize("unit", UNITS)
def test_the_time_is_linear_in_the_instruction(unit):
    for text in (unit * (LONG // len(unit)), unit + " " * LONG, "'" + unit * (LONG // len(unit)) + "]"):
        with linear_time():
            read_schema(text)


@settings(seeded, max_examples=100)
@given(
    st.sampled_from(["关系列表", "relation list", "schema", "关系"]),
    st.text("：[{'\"“a1.,、\n- ]", min_size=1, max_size=8),
)
def test_no_repeated_text_makes_the_search_slow(label, behind):
    for text in (f"{label}{behind}" * (20_000 // len(label + behind)), label + behind * (20_000 // len(behind))):
        with linear_time():
            read_schema(text)
