import json
from pathlib import Path

import pytest
from helpers import linear_time
from hypothesis import given, settings
from hypothesis import strategies as st

from kg.objects import cut_reasoning, read_objects
from kg.triples import parse, parse_with_rest

seeded = settings(derandomize=True, deadline=None, database=None, max_examples=200)

ASKED = ["主演", "导演", "别名", "身高", "父母", "国籍"]
ANSWERS = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text("utf-8").splitlines()]
ONE = '{"head": "张三", "relation": "别名", "tail": "小张"}'
TWO = '{"head": "甲", "relation": "国籍", "tail": "乙"}'
A, B = ("张三", "别名", "小张"), ("甲", "国籍", "乙")

# text, the right triples, how many pieces are dropped; the relations asked for change nothing
FORMS = {
    "names: Chinese": ('[{"头实体": "张三", "关系": "别名", "尾实体": "小张"}]', [A], 0),
    "names: 主体 and 客体": ('[{"主体": "张三", "关系": "别名", "客体": "小张"}]', [A], 0),
    "names: traditional": ('[{"主語": "张三", "謂詞": "别名", "賓語": "小张"}]', [A], 0),
    "names: capitals": ('{"Subject": "张三", "Relation": "别名", "Object": "小张"}', [A], 0),
    "names: REBEL's": ('{"head": "张三", "type": "别名", "tail": "小张"}', [A], 0),
    "names: nodes and an edge": ('{"node_1": "张三", "node_2": "小张", "edge": "别名"}', [A], 0),
    "names: types beside": (
        '{"head": "张三", "head_type": "人物", "relation": "别名", "tail": "小张", "tail_type": "人物", "score": 0.9}',
        [A],
        0,
    ),
    "names without quotes": ('{head: "张三", relation: "别名", tail: "小张"}', [A], 0),
    "names and parts without quotes": ("{head: 张三(演员), relation: 别名, tail: 小张}", [("张三(演员)", *A[1:])], 0),
    "Chinese quotes and commas": ("{“head”：“张三”，“relation”：“别名”，“tail”：“小张”}", [A], 0),
    "entities as objects": (
        '{"relationships": [{"source": {"id": "张三"}, "target": {"id": "小张"}, "type": "别名", "properties": {}}]}',
        [A],
        0,
    ),
    "entities in a list of their own": (
        '{"entities": [{"name": "张三", "type": "人物"}], "edges": [{"from": "张三", "to": "小张", "type": "别名"}]}',
        [A],
        0,
    ),
    "DuIE's whole record": (
        '{"text": "张三又名小张。", "spo_list": [{"predicate": "别名", "object_type": {"@value": "人物"}, '
        '"subject_type": "人物", "object": {"@value": "小张"}, "subject": "张三"}]}',
        [A],
        0,
    ),
    "UIE": (
        "[{'人物': [{'text': '张三', 'start': 0, 'end': 2, 'probability': 0.9, 'relations': {'别名': [{'text': '小张', "
        "'start': 4, 'end': 6}]}}, {'text': '李四', 'start': 8, 'end': 10, 'probability': 0.8}]}]",
        [A],
        0,
    ),
    "OneKE with attributes": ('{"人物": {"张三": {"attributes": {"别名": "小张"}}}}', [A], 0),
    "entity, relation": ('{"张三": {"别名": ["小张"], "国籍": "", "父母": null, "身高": []}}', [A], 0),
    "entities, one an object": ('[{"张三": {"别名": "小张"}}, {"甲": {"国籍": ["乙"]}}]', [A, B], 0),
    "an entity's list": ('{"entity": "张三", "relations": [{"relation": "别名", "target": "小张"}]}', [A], 0),
    "a relation's list": ('{"relation": "别名", "pairs": [["张三", "小张"]]}', [A], 0),
    "several keys around": (f'{{"code": 0, "data": {{"result": {{"triples": [{ONE}]}}}}}}', [A], 0),
    "numbered keys": (f'{{"1": ["张三", "别名", "小张"], "triple2": {TWO}}}', [A, B], 0),
    "a list in a key": ('{"triples": ["张三", "别名", "小张"]}', [A], 0),
    "text in a key": ('{"output": "输入中包含的关系三元组是：\\n(张三,别名,小张)"}', [A], 0),
    "text in a list": ('["(张三,别名,小张)", "(甲,国籍,乙)", "(a,b,c)"]', [A, B, ("a", "b", "c")], 0),
    "JSON in a string": (json.dumps({"output": f"[{ONE}]"}), [A], 0),
    "JSON in a string alone": (json.dumps(f"[{ONE}]"), [A], 0),
    "a whole record": (f'{{"id": 1, "input": "张三又名小张", "output": "(张三,别名,小张)", "kg": [{ONE}]}}', [A], 0),
    "one object a line": (f"{ONE}\n{TWO}\n", [A, B], 0),
    "numbered lines": (f"1. {ONE}\n2. {TWO}", [A, B], 0),
    "nothing between": (f"{ONE}{TWO}", [A, B], 0),
    "no comma between": (f"[{ONE} {TWO}]", [A, B], 0),
    "trailing commas": ('[{"head": "张三", "relation": "别名", "tail": "小张",},]', [A], 0),
    "no comma between the parts": ('{\n  "head": "张三"\n  "relation": "别名"\n  "tail": "小张"\n}', [A], 0),
    "a remark and dots": (f"[{ONE}, // 一条\n {TWO},\n ...]", [A, B], 0),
    "a bracket missing": (f"[{ONE}, {TWO[:-1]}]", [A, B], 0),
    "a bracket too many": (f"[{ONE}}}, {TWO}]", [A, B], 0),
    "a fence that does not end": (f"```json\n[{ONE}]", [A], 0),
    "brackets in the prose around": (f"答案（JSON）：[{ONE}]（共一条，如上，完）", [A], 0),
    "a tag around": (f"<answer>\n[{ONE}]\n</answer>", [A], 0),
    "Python: tuples": ("[('张三', '别名', '小张'), ('甲', '国籍', '乙')]", [A, B], 0),
    "Python: a set of tuples": ("{('张三', '别名', '小张')}", [A], 0),
    "Python: a statement": ("triples = [('张三', '别名', '小张'), ]", [A], 0),
    "Python: quotes by need": ("[('O\\'Hara', '别名', \"Tom's\")]", [("O'Hara", "别名", "Tom's")], 0),
    "Python: None": ("{'head': '张三', 'relation': '别名', 'tail': None}", [], 0),
    "apostrophes": ("{'head': 'Tom's', 'relation': '别名', 'tail': 'the boys''}", [("Tom's", "别名", "the boys'")], 0),
    "quotes in a string": (ONE.replace("小张", '他说"好",走'), [("张三", "别名", '他说"好",走')], 0),
    "numbers as they are spelt": (
        '[{"head": 3, "relation": "身高", "tail": 2.50}, ["a", "身高", 1e5], ["b", "身高", -3], ["c", "身高", true]]',
        [("3", "身高", "2.50"), ("a", "身高", "1e5"), ("b", "身高", "-3"), ("c", "身高", "true")],
        0,
    ),
    "escapes": ('[["\\u7532\\ud83d\\ude00", "国籍", "a\\/\\"b\\""]]', [("甲😀", "国籍", 'a/"b"')], 0),
    "tails in a list of three": ('[["甲", "国籍", ["乙", "丙"]], ["a", "国籍", null]]', [B, ("甲", "国籍", "丙")], 0),
    "cut off between items": (f"[{ONE}, ", [A], 0),
    "cut off in a tail": (f"[{ONE}, {TWO[:-3]}", [A], 1),
    "cut off behind a tail": (f"[{ONE}, {TWO[:-1]}", [A], 1),
    "cut off in a number": (f'[{ONE}, {{"head": "张三", "relation": "身高", "tail": 18', [A], 1),
    "cut off in the tails of a relation": ('{"人物": {"张三": {"别名": ["小张", "老', [A], 1),
    "cut off in a list": ('[["张三", "别名", "小张"], ["甲", "国籍", "乙', [A], 1),
    "broken in the middle": (f'[{{"head": "x" 错, "relation": "别名", "tail": "y"}}, {ONE}]', [A], 1),
    "a line that does not end": (f'{{"head": "a", "relation": "别名", "tail": "c\n{ONE}', [A], 1),
    "parts missing": (f'[{{"head": "a", "relation": "别名"}}, {ONE}, ["a", "b"]]', [A], 2),
    "an empty part": (f'[{ONE}, {{"head": "", "relation": "别名", "tail": "x"}}]', [A], 1),
    "many heads and many tails": ('{"head": ["a", "b"], "relation": "别名", "tail": ["c", "d"]}', [], 1),
    "NAN in a list": ('[["NAN", "别名", "NAN"], ["张三", "别名", "小张"]]', [A], 0),
    "nothing: a list": ("[]", [], 0),
    "nothing: relations": ('{"主演": [], "国籍": []}', [], 0),
    "nothing: a word": ('{"triples": "NAN"}', [], 0),
    "a refusal": ('{"error": "(没有,找到,任何)三元组"}', [], 1),
    "the form said again, then text": (
        '格式：{"head": "头实体", "relation": "关系", "tail": "尾实体"}\n(张三,别名,小张)',
        [A],
        0,
    ),
    "text with a remark in JSON": ('(张三,别名,小张)\n{"备注": "无"}', [A], 1),
    "braces in an entity": (
        '(集合{1,2},国籍,数学),({"a": 1},国籍,c)',
        [("集合{1,2}", "国籍", "数学"), ('{"a": 1}', "国籍", "c")],
        0,
    ),
}

# only the relations asked for tell these
NESTED = {
    "relation, head, tails": (
        '{"主演": {"甲片": ["张三", "李四"]}}',
        [("甲片", "主演", "张三"), ("甲片", "主演", "李四")],
    ),
    "relation, then objects of a head": ('{"主演": [{"甲片": "张三"}]}', [("甲片", "主演", "张三")]),
    "relation, pairs": ('{"主演": [["甲片", "张三"]]}', [("甲片", "主演", "张三")]),
    "head, pairs": ('{"张三": [["别名", "小张"]]}', [A]),
    "a kind, triples": ('{"人物": [["张三", "别名", "小张"]]}', [A]),
    "entities of a kind are no triple": ('{"人物": ["张三", "李四", "王五"]}', []),
    "the relations said again": (f'["别名", "国籍", "父母"]\n[{ONE}]', [A]),
    "a relation not asked for beside one asked for": (
        '{"张三": {"职业": "演员", "别名": "小张"}}',
        [("张三", "职业", "演员"), A],
    ),
    "no relation asked for": ('{"张三": {"职业": "演员"}}', []),
}


@pytest.mark.parametrize("case", ANSWERS, ids=lambda case: case["name"])
def test_answers_of_other_projects_are_read(case):
    assert parse(case["output"], ASKED) == [tuple(triple) for triple in case["kg"]]


@pytest.mark.parametrize("asked", [ASKED, None], ids=["asked", "unknown"])
@pytest.mark.parametrize("case", FORMS)
def test_every_form_of_objects_is_read_whatever_is_known(case, asked):
    text, right, dropped = FORMS[case]
    triples, rest = parse_with_rest(text, asked)
    assert triples == right
    assert len(rest) == dropped, rest


@pytest.mark.parametrize("case", NESTED)
def test_the_relations_asked_for_tell_relation_from_entity(case):
    text, right = NESTED[case]
    assert parse(text, ASKED) == right


def test_relations_that_are_called_like_parts_stay_relations():
    asked = ["start", "end", "type", "value"]
    text = '{"会议": {"start": "3月", "end": "4月", "type": "展会", "value": 3}}'
    assert parse(text, asked) == [
        ("会议", name, value) for name, value in zip(asked, ("3月", "4月", "展会", "3"), strict=True)
    ]


def test_a_piece_that_was_dropped_is_told_as_it_stands():
    half = '{"head": "张三", "relation": "父母", "tai'
    assert parse_with_rest(f"[{ONE}, {half}") == ([A], [half])
    assert parse_with_rest('{"结果": {"说明": "(没有,找到,它)"}}') == ([], ['{"结果": {"说明": "(没有,找到,它)"}}'])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>(甲,国籍,乙)</think>x", "x"),
        ("<think>(甲,国籍,乙)", ""),
        ("(甲,国籍,乙)</think>x", "x"),
        ("a<THINK>b</THINK>c<thinking>d</thinking>e", "ace"),
        ("<think>I use <think> here</think>x", "x"),
        ("<think>a</think>b</think>x", "x"),
        ("<think>a</think>x<think>b", "x"),
        ("<reasoning>a</reasoning>x", "x"),
        ("<thought>a</thought>x", "x"),
        ("◁think▷a◁/think▷x", "x"),
        ("[THINK]a[/THINK]x", "x"),
        ("<|begin_of_thought|>a<|end_of_thought|>x", "x"),
        ("<seed:think>a</seed:think>x", "x"),
        ("(甲,think,[think])", "(甲,think,[think])"),
    ],
)
def test_reasoning_is_no_answer(text, answer):
    assert cut_reasoning(text) == answer


@pytest.mark.parametrize("answer", ["(张三,别名,小张)", f"[{ONE}]"])
def test_triples_in_reasoning_are_not_read_in_any_form(answer):
    for thought in ("(甲,国籍,乙)", f"[{TWO}]", '["甲","国籍","乙"]'):
        assert parse_with_rest(f"<think>\n{thought}\n</think>\n{answer}", ASKED) == ([A], [])
        assert parse_with_rest(f"{answer}<think>{thought}", ASKED) == ([A], [])


@pytest.mark.parametrize(
    "text",
    [
        "(a,b,c),(d,e,f)",
        "[(a,b,c),(d,e,f)]",
        "[朱元璋,击败,元朝)",
        "NAN",
        "",
        "('A',b,'C')",
        '("A",b,"C"),("D","e","F")',
    ],
)
def test_the_text_form_is_left_to_its_own_reader(text):
    assert read_objects(text, [], pytest.fail) is None


ENTITIES = (
    st.text("甲乙丙Ab19 .,，:：'\"“”‘’()（）[]{}\\\n\t/《》<>😀", min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda text: text and not (text[0] in "([（" and text.count(",") + text.count("，") > 1))
)
TRIPLES = st.lists(
    st.tuples(ENTITIES, st.sampled_from(["别名", "国籍", "named after"]), ENTITIES), min_size=1, max_size=5, unique=True
)


def nest(triples, order):
    """Objects in objects, by the parts in this order."""
    nested = {}
    for triple in triples:
        first, second, last = (triple[part] for part in order)
        nested.setdefault(first, {}).setdefault(second, []).append(last)
    return nested


RENDERED = {
    "lists": lambda triples: [list(triple) for triple in triples],
    "objects": lambda triples: [dict(zip(("head", "relation", "tail"), triple, strict=True)) for triple in triples],
    "keys around": lambda triples: {
        "text": "x",
        "spo_list": [{"subject": h, "predicate": r, "object": t} for h, r, t in triples],
    },
    "DuIE": lambda triples: [{"predicate": r, "object": {"@value": t}, "subject": h} for h, r, t in triples],
    "IEPile": lambda triples: {
        relation: [{"subject": h, "object": t} for h, r, t in triples if r == relation] for _, relation, _ in triples
    },
    "UIE": lambda triples: [{"词": [{"text": h, "relations": {r: [{"text": t}]}} for h, r, t in triples]}],
    "OneKE": lambda triples: {"词": nest(triples, (0, 1, 2))},
    "entity first": lambda triples: nest(triples, (0, 1, 2)),
    "relation first": lambda triples: nest(triples, (1, 0, 2)),
}
WRITERS = {
    "JSON": lambda value: json.dumps(value, ensure_ascii=False),
    "JSON in ASCII": json.dumps,
    "JSON in lines": lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    "JSON without spaces": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    "Python": repr,
}


@seeded
@given(
    st.sampled_from(list(RENDERED)),
    st.sampled_from(list(WRITERS)),
    TRIPLES,
    st.sampled_from(["{}", "结果如下：\n```json\n{}\n```\n以上。", "<think>({{}},a,b)</think>{}"]),
)
def test_rendered_objects_are_read_back(form, writer, triples, around):
    text = around.format(WRITERS[writer](RENDERED[form](triples)))
    assert sorted(parse(text, ["别名", "国籍", "named after", "主演"])) == sorted(triples)


@seeded
@given(TRIPLES, st.sampled_from(list(WRITERS)), st.sampled_from([True, False]), st.integers(0))
def test_of_an_answer_cut_anywhere_the_whole_items_stay(triples, writer, in_list, cut):
    items = [WRITERS[writer](item) for item in RENDERED["objects"](triples)]
    text = "[" * in_list + (", " if in_list else "\n").join(items)
    cut %= len(text) + 1
    ends = [len("[" * in_list) + sum(map(len, items[: n + 1])) + n * (1 + in_list) for n in range(len(items))]
    found, rest = parse_with_rest(text[:cut])
    assert found == triples[: sum(end <= cut for end in ends)]
    assert len(rest) <= 1


@seeded
@given(
    st.text("[]{}()\"'“”‘’:：,，\\ \n甲乙1.enult/<>think") | st.text(),
    st.lists(st.sampled_from(["甲", "乙", "th"]), max_size=2),
)
def test_any_text_is_read_without_an_error(text, relations):
    for whole in (text, '{"head": "' + text, '[{"甲": ' + text, text + "</think>"):
        triples, rest = parse_with_rest(whole, relations)
        assert all(part and part == part.strip() for triple in triples for part in triple)
        assert all(isinstance(piece, str) for piece in rest)


UNITS = [
    '{"a" ',
    '{"a": ',
    '{"a":{',
    '[["',
    '["a",',
    '{"h": "',
    "{'a': x\n",
    '{"a": \\)',
    '[{"a": 1}, 以下 ',
    "<think>",
    '{"a": 1',
]
UNITS += [
    '{"a": 1} ]',
    '{"": ["(a,b,c)", ',
    f"{ONE}, ",
    '{"a": {"b": ["c"]}},',
    '("',
    "“",
    '{"text": "a", "relations": {',
]


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_in_the_text(unit):
    text = (unit * 100_000)[:100_000]
    with linear_time():
        read_objects(cut_reasoning(text), ["b"], lambda part: [])


@settings(seeded, max_examples=100)
@given(st.text("[]{}()\"'“:,\\ \na1", min_size=1, max_size=12), st.sampled_from(["", "[", '{"a": ', '{"a": [']))
def test_no_repeated_text_makes_the_reader_slow(unit, before):
    text = (before + unit * 20_000)[:20_000]
    with linear_time():
        read_objects(text, ["a"], lambda part: [])


def test_deep_nesting_is_no_error():
    for text in ("[" * 20_000 + '"a"', '{"a": ' * 20_000, '[{"a": ' * 20_000 + "1" + "}]" * 20_000):
        assert parse_with_rest(text)  # and no RecursionError
