import pytest
from helpers import linear_time
from hypothesis import given, settings
from hypothesis import strategies as st

from kg.schema import read_schema
from kg.triples import Triple, parse, parse_with_rest, render

seeded = settings(derandomize=True, deadline=None, database=None, max_examples=300)

CONTEST = (
    "已知候选的关系列表：{}，请你根据关系列表，从以下输入中抽取出可能存在的头实体(Subject)与尾实体(Object)，"
    "并给出对应的关系三元组。请按照 (Subject,Relation,Object) 的格式回答。"
)
OLDER = (
    "使用自然语言抽取三元组,已知下列句子,请从句子中抽取出可能的实体、关系,抽取实体类型为{'专业','时间'},"
    "关系类型为{'体育运动','包含行政领土'},你可以先识别出实体再判断实体之间的关系,以(头实体,关系,尾实体)的形式回答"
)

# text, relations asked for, input, the right triples: the table of hard cases
HARD = {
    "comma in a number": (
        "(阿尔夫达尔,人口,2,424人)",
        ["人口", "位于"],
        "阿尔夫达尔有2,424人。",
        [("阿尔夫达尔", "人口", "2,424人")],
    ),
    "comma in a date": (
        "(A,出生日期,September 27, 1826)",
        ["出生日期"],
        "A was born on September 27, 1826.",
        [("A", "出生日期", "September 27, 1826")],
    ),
    "brackets inside a head": (
        "(中野站(东京都),位于,东京都)",
        ["位于"],
        "中野站(东京都)在东京都。",
        [("中野站(东京都)", "位于", "东京都")],
    ),
    "brackets that end a head": (
        "(f(x),研究领域,数学)",
        ["研究领域"],
        "f(x)属于数学。",
        [("f(x)", "研究领域", "数学")],
    ),
    "brackets that end a tail": (
        "(甲,位于,中野站(东京都))",
        ["位于"],
        "甲在中野站(东京都)。",
        [("甲", "位于", "中野站(东京都)")],
    ),
    "full-width delimiters": (
        "（刘德华，配偶，朱丽倩）",
        ["配偶"],
        "刘德华的妻子是朱丽倩。",
        [("刘德华", "配偶", "朱丽倩")],
    ),
    "mixed delimiters": (
        "(刘德华，配偶，朱丽倩)（刘德华,职业,歌手)",
        ["配偶", "职业"],
        "歌手刘德华的妻子是朱丽倩。",
        [("刘德华", "配偶", "朱丽倩"), ("刘德华", "职业", "歌手")],
    ),
    "square and round brackets mixed": (
        "[朱元璋,击败,元朝),(朱元璋,别名,明太祖)",
        ["击败", "别名"],
        "朱元璋即明太祖，击败元朝。",
        [("朱元璋", "击败", "元朝"), ("朱元璋", "别名", "明太祖")],
    ),
    "a list around the triples": (
        "[(a,b,c),(d,e,f)]",
        ["b", "e"],
        "a c d f",
        [("a", "b", "c"), ("d", "e", "f")],
    ),
    "cut off inside the last triple": (
        "(a,b,c)(女子水球世界杯,举办地点,天",
        ["b", "举办地点"],
        "a c 女子水球世界杯在天津",
        [("a", "b", "c")],
    ),
    "cut off behind an entity's bracket": (
        "(a,b,c),(中野站(东京都),位于,东",
        ["b", "位于"],
        "a c 中野站(东京都)在东京都",
        [("a", "b", "c")],
    ),
    "nothing found": ("(X,治愈率,NAN)", ["治愈率"], "X。", []),
    "empty parts": ("(,,),(甲,位于,),(,位于,乙),(甲,,乙)", ["位于"], "甲乙", []),
    "a loop": ("(a,b,c),(d,e,f)" + ",(a,b,c)" * 100, ["b", "e"], "a c d f", [("a", "b", "c"), ("d", "e", "f")]),
    "double quotes": ('("A","b","c")', ["b"], "A c", [("A", "b", "c")]),
    "single quotes": ("('A','b','c'), ('D', 'b', 'c')", ["b"], "A c D", [("A", "b", "c"), ("D", "b", "c")]),
    "title marks": ("(《活着》,作者,余华)", ["作者"], "余华写了《活着》。", [("《活着》", "作者", "余华")]),
    "prose and end marks behind": (
        "(a,b,c)\n以上就是全部关系。<eop></s>",
        ["b"],
        "a c",
        [("a", "b", "c")],
    ),
    "older form, nothing between": ("(a,b,c)(d,e,f)", ["b", "e"], "a c d f", [("a", "b", "c"), ("d", "e", "f")]),
    "one a line": ("(a,b,c)\n(d,e,f)\n", ["b", "e"], "a c d f", [("a", "b", "c"), ("d", "e", "f")]),
    "a known prefix": ("输入中包含的关系三元组是：\n(a,b,c)", ["b"], "a c", [("a", "b", "c")]),
    "NAN alone": ("NAN", ["b"], "a", []),
    "prefix and NAN": ("输入中包含的关系三元组是：\nNAN", ["b"], "a", []),
    "no text": ("", ["b"], "a", []),
    "left-open bracket in a head": (
        "(中野站(东京都,位于,东京都),(甲,位于,乙)",
        ["位于"],
        "中野站(东京都在东京都，甲在乙",
        [("中野站(东京都", "位于", "东京都"), ("甲", "位于", "乙")],
    ),
    "left-open bracket in the last head": (
        "(甲,位于,乙)，(中野站(东京都,位于,东京都)",
        ["位于"],
        "中野站(东京都在东京都，甲在乙",
        [("甲", "位于", "乙"), ("中野站(东京都", "位于", "东京都")],
    ),
    "black brackets": (
        "【甲，位于，乙】【丙，位于，丁】",
        ["位于"],
        "甲乙丙丁",
        [("甲", "位于", "乙"), ("丙", "位于", "丁")],
    ),
    "head that begins with a bracket": (
        "(甲,类型,乙),((10199)女凯龙星,类型,半人马小行星)",
        ["类型"],
        "甲是乙，(10199)女凯龙星是半人马小行星",
        [("甲", "类型", "乙"), ("(10199)女凯龙星", "类型", "半人马小行星")],
    ),
    "first head that begins with a bracket": (
        "（（10199）女凯龙星，类型，半人马小行星）",
        ["类型"],
        "（10199）女凯龙星是半人马小行星",
        [("（10199）女凯龙星", "类型", "半人马小行星")],
    ),
    "a bracket in the prose before": (
        "输入（节选，见上）中包含：(甲,位于,乙)",
        ["位于"],
        "甲在乙",
        [("甲", "位于", "乙")],
    ),
    "brackets without relations, three times": ("(甲乙),(甲乙),(甲乙)", ["位于"], "甲和乙", []),
    "brackets without relations, then a triple": (
        "(甲),(乙),(丙,位于,丁)",
        ["位于"],
        "甲乙丙丁",
        [("丙", "位于", "丁")],
    ),
    "numbered lines": ("1. (a,b,c)\n2. (d,e,f)", ["b", "e"], "a c d f", [("a", "b", "c"), ("d", "e", "f")]),
    "prose between": ("(a,b,c) 和 (d,e,f)。", ["b", "e"], "a c d f", [("a", "b", "c"), ("d", "e", "f")]),
    "JSON": (
        '[["甲, 乙","位于","丙"],["a","位于","f"]]',
        ["位于"],
        "甲, 乙在丙，a在f",
        [("甲, 乙", "位于", "丙"), ("a", "位于", "f")],
    ),
    "a head that is all in brackets": ("((a,b),位于,t)", ["位于"], "(a,b) t", [("(a,b)", "位于", "t")]),
    "Chinese quotes around every part": ("(“甲”,“位于”,“乙”)", ["位于"], "甲在乙", [("甲", "位于", "乙")]),
    "JSON objects": (
        '```json\n[{"head": "甲\\"a, b", "relation": "位于", "tail": "乙"}]\n```',
        ["位于"],
        '甲"a, b在乙',
        [('甲"a, b', "位于", "乙")],
    ),
    "one JSON object of other names": (
        '{"subject": "甲", "predicate": "位于", "object": "乙"}',
        ["位于"],
        "甲在乙",
        [("甲", "位于", "乙")],
    ),
    "JSON lists with escapes": ('[["\\u7532","位于","乙"]]', ["位于"], "甲在乙", [("甲", "位于", "乙")]),
    "the form asked for, said again": (
        "(头实体,关系,尾实体)：(甲,位于,乙)(Subject,Relation,Object)",
        ["位于"],
        "甲在乙",
        [("甲", "位于", "乙")],
    ),
    "the triple before was never closed": (
        "(甲,位于,乙\n(丙,位于,丁)",
        ["位于"],
        "甲在乙，丙在丁",
        [("丙", "位于", "丁")],
    ),
    "full-width comma in a head, half-width ones between": (
        "(你好，旧时光,主演,李兰迪)",
        ["主演"],
        "《你好，旧时光》由李兰迪主演",
        [("你好，旧时光", "主演", "李兰迪")],
    ),
    "comma between title marks": (
        "(《你好,再见》,作者,丁)",
        ["作者"],
        "丁写《你好,再见》",
        [("《你好,再见》", "作者", "丁")],
    ),
    "cut off right behind a tail's bracket": (
        "(a,b,c),(甲,位于,中野站(东京都)",
        ["b", "位于"],
        "a c 甲在中野站(东京都)",
        [("a", "b", "c")],
    ),
    "NAN in other spellings, and a name": (
        "(甲,位于,nan),(甲,位于,NaN),(Nan,位于,乙)",
        ["位于"],
        "Nan在乙",
        [("Nan", "位于", "乙")],
    ),
    "spaces of the format": ("( a , b , c )", ["b"], "x a y c z", [("a", "b", "c")]),
    "two pairs of brackets in a tail": (
        "(甲,位于,中野站(东京都)(中野区))",
        ["位于"],
        "甲在中野站(东京都)(中野区)",
        [("甲", "位于", "中野站(东京都)(中野区)")],
    ),
}


@pytest.mark.parametrize("knows", ["schema and source", "schema", "source", "neither"])
@pytest.mark.parametrize("case", HARD)
def test_hard_case_is_parsed_right_whatever_is_known(case, knows):
    text, relations, source, right = HARD[case]
    relations = relations if "schema" in knows else None
    assert parse(text, relations, source if "source" in knows else None) == right


HEAD_WITH_COMMA = "云南临沧市凤庆县(北纬24.34度，东经99.98度)"


@pytest.mark.parametrize(
    ("relations", "source"),
    [(["别名", "位于"], None), (None, f"{HEAD_WITH_COMMA}属于云南省。"), (["位于"], f"{HEAD_WITH_COMMA}属于云南省。")],
    ids=["schema", "source", "both"],
)
def test_a_comma_inside_a_head_is_kept_as_it_is_when_schema_or_source_tell(relations, source):
    assert parse(f"({HEAD_WITH_COMMA},位于,云南省)", relations, source) == [(HEAD_WITH_COMMA, "位于", "云南省")]


@pytest.mark.parametrize("between", [",", "", "；2、", "和", " 2. ", "|", " - ", "、以及", "：说明\n", "#\n", '","'])
@pytest.mark.parametrize("source", ["北京 中国 上海", ""])
def test_an_asked_relation_never_swallows_the_triple_before_it(between, source):
    text = f"1、(北京,首都,中国){between}(上海,位于,中国)"
    assert parse(text, ["位于"], source) == [("北京", "首都", "中国"), ("上海", "位于", "中国")]


def test_a_triple_whose_bracket_was_never_closed_does_not_take_the_next_one_along():
    assert parse_with_rest("(甲,位于,乙(丙,人口,3)", ["位于", "人口"], "甲乙丙3") == (
        [("丙", "人口", "3")],
        ["(甲,位于,乙"],
    )


def test_a_list_bracket_that_ends_a_triple_is_not_the_tails_although_the_source_has_both_together():
    assert parse("[(丙,位于,乙)]", ["位于"], "丙(在乙)") == [("丙", "位于", "乙")]
    assert parse("[(丙,位于,乙(丁))]", ["位于"], "丙在乙(丁)") == [("丙", "位于", "乙(丁)")]


@pytest.mark.parametrize("tail", ["朱子)", "(朱子", "朱)子", "朱子】", "的《朱子 "])
def test_a_bracket_or_space_without_a_partner_is_kept_when_the_source_has_it(tail):
    text = f"(甲,位于,{tail}),(乙,位于,丙)"
    assert parse(text, ["位于"], f"甲乙丙 {tail}。") == [("甲", "位于", tail), ("乙", "位于", "丙")]


@pytest.mark.parametrize(
    ("text", "source", "right"),
    [
        ("('A',b,'C')", "", ("'A'", "b", "'C'")),  # nothing says that the quotes are not the entity's
        ("('A',b,'C')", "A C", ("A", "b", "C")),
        ("('A',b,'C')", "'A' C", ("'A'", "b", "C")),
        ("('A','b','C')", "'A' C", ("A", "b", "C")),  # here the relation has them as well
        ("(理发店3 ,导演, 丙)", "理发店3 由丙执导", ("理发店3 ", "导演", "丙")),
        ("(理发店3 ,导演 ,丙)", "理发店3 由丙执导", ("理发店3", "导演", "丙")),
        ("(理发店3 ,导演,丙)", "", ("理发店3", "导演", "丙")),
    ],
)
def test_relation_and_source_tell_the_quotes_and_spaces_of_the_format_from_an_entitys_own(text, source, right):
    assert parse(text, None, source) == [right]


def test_a_bracket_left_open_at_the_very_end_is_believed_only_when_the_source_has_it_so():
    assert parse("(甲,位于,中野站(东京都)", ["位于"], "甲在中野站(东京都，即") == [("甲", "位于", "中野站(东京都")]
    assert parse("(甲,位于,中野站(东京都)", ["位于"], "甲在中野站(东京都)") == []


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("(a,b,c),(d,e,", ["(d,e,"]),
        ("(a,b,c),(甲,位于,中野站(东京都)", ["(甲,位于,中野站(东京都)"]),
        ("(a,b,c),(d,,f)", ["(d,,f)"]),
        ("(a,b,c\n(d,e,f)", ["(a,b,c\n"]),
        ("(a,b,c),(d,e,NAN)", []),
        ("(a,b,c)，以上（共一条）。", []),
        ("NAN", []),
        ("", []),
    ],
)
def test_what_began_like_a_triple_and_was_dropped_is_told(text, rest):
    assert parse_with_rest(text)[1] == rest


def test_a_relation_of_the_schema_beats_entities_that_stand_in_the_input():
    assert parse("(甲,乙,位于,丙)", ["位于"], "甲 位于,丙") == [("甲,乙", "位于", "丙")]


def test_the_longest_relation_of_the_schema_that_fits_is_taken():
    assert parse("(甲,属于,类型,乙)", ["属于", "属于,类型"]) == [("甲", "属于,类型", "乙")]


def test_a_relation_that_was_not_asked_for_is_parsed_too():
    assert parse("(甲,首都,乙)", ["位于"], "甲乙") == [("甲", "首都", "乙")]


def test_nothing_in_an_entity_is_normalised():
    triple = ("Ａ　Ｂ（１９）", "別名", "“ａ”：《b》")
    assert parse(render([triple]), ["別名"]) == [triple]


@pytest.mark.parametrize(
    ("instruction", "relations"),
    [
        (CONTEST.format("['事件', '位于', '名称由来']"), ["事件", "位于", "名称由来"]),
        (CONTEST.format("[]"), []),
        (CONTEST.format("['位于']"), ["位于"]),
        (OLDER, ["体育运动", "包含行政领土"]),
        ("候选关系列表: ['b', 'a']", ["b", "a"]),
        ("候选关系列表是['位于','别名']", ["位于", "别名"]),
        ("关系列表=['位于','别名']", ["位于", "别名"]),
        ('关系列表: ["位于", "别名"]', ["位于", "别名"]),
        ("关系列表：[位于，别名, 事件]", ["位于", "别名", "事件"]),
        ("关系列表：[‘位于’，“别名”]", ["位于", "别名"]),
        ("候选关系类型为['属于','夺得'], 以(头实体,关系,尾实体)的形式回答", ["属于", "夺得"]),
        (
            "Given the candidate relation list: ['named after', 'of'], answer (Subject,Relation,Object)",
            ["named after", "of"],
        ),
        ('Relation List = ["country of", "area"]', ["country of", "area"]),
        ("relation list：[]", []),
        ("请抽取三元组，以(头实体,关系,尾实体)的形式回答", None),
        ("抽取实体类型为{'专业','时间'}", None),
        ("关系列表：['位于', '别名'", None),
        ("关系列表：['位于,别名]", ["位于", "别名"]),
        ("实体列表：['人']，关系列表：['位于']", ["位于"]),
        ("", None),
        (None, None),
        (3, None),
    ],
)
def test_schema_finds_the_relations_in_every_wording(instruction, relations):
    assert read_schema(instruction) == relations


def test_schema_keeps_brackets_inside_a_quoted_relation():
    assert read_schema("关系列表：['语言(官方)', '位于']，请抽取") == ["语言(官方)", "位于"]


@seeded
@given(st.text() | st.text("关系列表类型为：[]{}'\"‘’，,= ab"))
def test_schema_of_any_text_is_none_or_a_list_of_names(text):
    names = read_schema("关系列表" + text)
    assert names is None or all(name and name == name.strip() for name in names)


def test_render_is_the_form_of_the_contest():
    assert render([("a", "b", "c"), Triple("d", "e", "f")]) == "(a,b,c),(d,e,f)"
    assert render([]) == ""
    assert render([("a", "b", "c"), ("d", "e", "f")], "older") == "(a,b,c)(d,e,f)"
    assert render([("a", "b", "c"), ("d", "e", "f")], "lines") == "(a,b,c)\n(d,e,f)"


WORDS = st.text("甲乙丙丁戊Ab19年·《》“”", min_size=1, max_size=4)
PAIRS = ("({})", "（{}）", "[{}]", "【{}】", "({}）", '"{}"', "'{}'", "“{}”", "《{}》")
# Entities with commas, quotes, and brackets that have their partners, in any order and depth.
ENTITIES = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.builds("{}{}{}".format, inner, st.sampled_from([",", "，", ", ", "、", ""]), inner),
        st.builds(lambda pair, inside: pair.format(inside), st.sampled_from(PAIRS), inner),
    ),
    max_leaves=6,
).filter(
    lambda entity: (
        not any(
            f"{close}{comma}{opening}" in entity
            for close in ")）]】"
            for comma in ("", ",", "，", ", ", "、")
            for opening in "(（[【"
        )
    )
)
TRIPLES = st.builds(Triple, ENTITIES, st.sampled_from(["位于", "出生日期", "named after"]), ENTITIES)


@seeded
@given(
    st.lists(TRIPLES, max_size=5, unique=True),
    st.randoms(use_true_random=False),
    st.sampled_from(["contest", "older", "lines"]),
)
def test_parse_gives_back_what_render_wrote(triples, order, style):
    source = "。".join(entity for head, _, tail in triples for entity in (head, tail))
    relations = ["位于", "出生日期", "named after", "别名"]
    order.shuffle(relations)
    assert parse(render(triples, style), relations, source) == triples
    assert parse(render(triples, style), relations) == triples


@seeded
@given(
    st.text("()（）[]【】,，\"' \nNAN甲乙") | st.text(),
    st.none() | st.lists(st.text("甲乙,，", max_size=3), max_size=3),
    st.none() | st.text("甲乙,，()", max_size=10),
)
def test_parse_of_any_text_holds_only_whole_distinct_triples_of_that_text(text, relations, source):
    found = parse(text, relations, source)
    assert len(found) == len(set(found))
    for triple in found:
        assert len(triple) == 3
        assert all(part and part == part.strip() and part in text and part.upper() != "NAN" for part in triple)


MEGABYTE = 1_000_000
PILES = ["(", ")", "()", "(,", "(,,", "(,,)", "[(", "([{)]}", "（", "(a,b,c),", "(a,b,c"]


@pytest.mark.parametrize("unit", PILES)
def test_a_megabyte_of_brackets_takes_linear_time(unit):
    text = (unit * MEGABYTE)[:MEGABYTE]
    with linear_time(5 + text.count("(a,b,c)") / 10_000):  # and 0.1 ms for a real triple
        parse(text, ["b"], "a c")


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(st.text("()（[】,， a\"'\n", min_size=1, max_size=12), st.none() | st.just(["a"]), st.sampled_from(["", "a"]))
def test_no_repeated_text_makes_the_parser_slow(unit, relations, source):
    text = (unit * 20_000)[:20_000]
    with linear_time():
        parse(text, relations, source)


@pytest.mark.parametrize(
    "unit",
    ["关系列表：[", "关系列表：['", "关系列表：['a',", "关系列表", "实体类型{'", " "],
)
def test_a_megabyte_of_instruction_takes_linear_time(unit):
    with linear_time():
        for text in (unit * (MEGABYTE // len(unit)), unit + " " * MEGABYTE):
            read_schema(text)
