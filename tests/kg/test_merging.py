import pytest
from hypothesis import given
from hypothesis import strategies as st

from kg.merging import KIND, Fact, contradict, normal_form, resolve

ASPECTS = ("出生日期", "死亡日期")


def merge(names, aliases=(), facts=(), mode="alias"):
    return resolve(names, aliases, lambda name: [Fact(*fact) for who, *fact in facts if who == name], mode, ASPECTS)


def pairs(found):
    return {name: main for name, (main, _) in found.same.items()}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("《红楼梦》", "红楼梦"),
        ("“红楼梦”", "红楼梦"),
        ("「ＡＢＣ」", "ABC"),
        ("ＩＢＭ 公司", "IBM公司"),
        ("中 国", "中国"),
        (" United  States\t", "United States"),
        ("O’Neil", "O'Neil"),
        ("e\u0301", "é"),
        ("電影《紅樓夢》", "電影《紅樓夢》"),  # marks within a name are part of it
        ("《红楼梦》与《西游记》", "《红楼梦》与《西游记》"),
        ("10²米", "10²米"),  # NFKC would make 102 of it
        ("①", "①"),
        ("US", "US"),  # not us
        ("《》", "《》"),
        ("", ""),
    ],
)
def test_the_normal_form_of_a_name(name, form):
    assert normal_form(name) == form


@given(st.text("《》“”\"' ＡA中é²\u200b", max_size=8))
def test_a_normal_form_is_its_own_and_is_not_empty(name):
    assert normal_form(normal_form(name)) == normal_form(name)
    assert bool(normal_form(name)) == bool(name)


def test_names_that_differ_in_marks_or_width_are_one_and_say_why():
    found = merge({"《红楼梦》", "红楼梦", "红 楼 梦", "西游记"}, mode="normal")
    why = "the same but for width, white space or marks: 红楼梦"
    assert found.same == {"《红楼梦》": ("红楼梦", why), "红 楼 梦": ("红楼梦", why)}


def test_an_extracted_alias_is_merged_into_its_head():
    found = merge({"大鲵", "娃娃鱼", "Andrias"}, [("大鲵", "别名", "娃娃鱼"), ("大鲵", "学名", "Andrias")])
    assert found.same == {"娃娃鱼": ("大鲵", "大鲵 别名 娃娃鱼"), "Andrias": ("大鲵", "大鲵 学名 Andrias")}
    assert merge({"大鲵", "娃娃鱼"}, [("大鲵", "别名", "娃娃鱼")], mode="normal").same == {}
    assert merge({"《大鲵》", "大鲵"}, mode="none").same == {}


def test_an_alias_of_several_joins_none_of_them():
    found = merge(
        {"朱元璋", "赵匡胤", "太祖", "《太祖》"}, [("朱元璋", "别名", "太祖"), ("赵匡胤", "别名", "《太祖》")]
    )
    assert pairs(found) == {"《太祖》": "太祖"}
    assert found.apart == [("太祖", "an alias of several: 朱元璋 / 赵匡胤")]


def test_an_alias_of_several_names_of_one_entity_is_merged():
    aliases = [("刘德华", "英文名", "Andy Lau"), ("刘德华", "别名", "华仔"), ("Andy Lau", "别名", "华仔")]
    assert pairs(merge({"刘德华", "Andy Lau", "华仔"}, aliases)) == {"Andy Lau": "刘德华", "华仔": "刘德华"}


def test_one_name_with_two_birth_dates_is_two_entities():
    found = merge({"李娜"}, facts=[("李娜", "出生日期", "1982年2月26日", "a"), ("李娜", "出生日期", "1963年", "b")])
    assert found.parts == {"李娜": {"a": "出生日期 1982年2月26日", "b": "出生日期 1963年"}}
    assert found.apart == [("李娜", "several entities, told apart by 出生日期 1963年 / 出生日期 1982年2月26日")]


def test_the_entity_most_records_speak_of_keeps_the_name():
    dates = {"a": "1982年", "b": "1982年2月26日", "c": "1963年"}
    found = merge({"李娜"}, facts=[("李娜", "出生日期", date, source) for source, date in dates.items()])
    assert found.parts == {"李娜": {"c": "出生日期 1963年"}}


def test_two_dates_in_one_record_tell_nothing_apart():
    facts = [
        ("李娜", "出生日期", "1982年", "a"),
        ("李娜", "出生日期", "1963年", "a"),
        ("李娜", "出生日期", "1963年", "b"),
    ]
    assert merge({"李娜"}, facts=facts).parts == {}


def test_a_person_and_a_book_of_one_name_are_not_merged():
    found = merge({"李白", "《李白》"}, facts=[("李白", KIND, "人物", "a"), ("《李白》", KIND, "作品", "b")])
    assert found.same == {}
    assert found.apart == [("李白", "not merged (the same but for width, white space or marks: 李白): 人物 / 作品")]


def test_an_alias_with_another_birth_date_is_not_merged():
    facts = [("苏轼", "出生日期", "1037年1月8日", "a"), ("东坡", "出生日期", "1901年", "b")]
    assert merge({"苏轼", "东坡"}, [("苏轼", "别名", "东坡")], facts).same == {}
    facts[1] = ("东坡", "出生日期", "1037年", "b")
    assert pairs(merge({"苏轼", "东坡"}, [("苏轼", "别名", "东坡")], facts)) == {"东坡": "苏轼"}


@pytest.mark.parametrize(
    ("values", "contradictory"),
    [
        (["1982年", "1982年2月26日"], False),
        (["1982-02-26", "1982年2月26日"], False),
        (["公元前551年", "551年"], True),
        (["2,424人", "2424人"], False),
        (["1982年2月", "1982年3月"], True),
        (["北京", "北京市"], False),
        (["北京", "上海"], True),
        (["约1982年"], False),
    ],
)
def test_values_that_contradict(values, contradictory):
    assert contradict(values) is contradictory
    assert contradict(values[::-1]) is contradictory


NAMES = st.sampled_from(["甲", "《甲》", "乙", "丙", "丁", "Ｘ", "X"])


@given(
    st.sets(NAMES),
    st.lists(st.tuples(NAMES, st.just("别名"), NAMES)),
    st.lists(st.tuples(NAMES, st.just("出生日期"), st.sampled_from(["1980", "1990"]), st.sampled_from("abc"))),
    st.randoms(),
)
def test_the_order_decides_nothing_and_what_is_one_does_not_contradict_itself(names, aliases, facts, random):
    found = merge(names, aliases, facts)
    random.shuffle(aliases)
    random.shuffle(facts)
    assert merge(names, aliases, facts) == found
    main = pairs(found)
    assert all(one not in main and one in names for one in main.values())
    for one in set(main.values()):
        group = {one, *(name for name in main if main[name] == one)}
        assert not group & set(found.parts)
        said = [(value, source) for who, _, value, source in facts if who in group]
        agreed = {source: {v for v, s in said if s == source} for _, source in said}
        assert len({frozenset(values) for values in agreed.values() if len(values) == 1}) < 2
