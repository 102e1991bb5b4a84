"""Questions to a graph in memory: what is in it, what is doubtful, what is around an entity."""

import csv
import json

import pyoxigraph
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from kg import graph, quality, queries
from kg.evidence import Run, Source
from kg.relations import read_relations, relations_of
from kg.store import Settings
from kg.tables import as_csv, as_json, as_table

SETTINGS = Settings("alias", read_relations(None))
OWN = relations_of(SETTINGS.relations)


@pytest.fixture
def opened(tmp_path):
    """Builds a graph in memory of lists of triples, a record each."""

    def build(*answers, **more):
        store = pyoxigraph.Store()
        sources = [Source(number, answer, **more) for number, answer in enumerate(answers)]
        graph.bring(store, sources, Run("a run"), SETTINGS, tmp_path)
        return store

    return build


CHAIN = [("甲", "位于", "乙"), ("丙", "位于", "乙"), ("丙", "属于", "丁"), ("丁", "属于", "戊")]


def named(triples):
    return [tuple(queries.as_names(triple)) for triple in triples]


def find(store, name):
    return queries.find_entities(store, name)


# query


def test_a_query_answers_in_names_or_iris(opened):
    store = opened(CHAIN)
    question = "SELECT ?a ?none { ?a r:位于 e:乙 } ORDER BY ?a"
    assert list(queries.query(store, question).rows) == [["丙", None], ["甲", None]]
    assert next(queries.query(store, question, as_iris=True).rows) == ["urn:kg:e:丙", None]
    assert list(queries.query(store, "ASK { e:甲 r:位于 e:乙 }").rows) == [[True]]
    made = queries.query(store, "CONSTRUCT { ?b r:有 ?a } WHERE { ?a r:位于 ?b FILTER(?a = e:甲) }")
    assert (made.columns, list(made.rows)) == (["head", "relation", "tail"], [["乙", "有", "甲"]])


@pytest.mark.parametrize("text", ["DELETE WHERE { ?a ?r ?b }", "SELECT", "INSERT DATA { e:a r:b e:c }", "CLEAR ALL"])
def test_what_is_no_query_is_refused_and_changes_nothing(opened, text):
    store = opened(CHAIN)
    with pytest.raises(UserError, match="--sparql: not a SPARQL query") as caught:
        queries.query(store, text)
    assert len(str(caught.value)) < 150  # the words of a parser may fill a screen
    assert len(quality.stats(store)["by_relation"]) == 2


@pytest.mark.parametrize("pattern", ["?a ?r ?b FILTER(<urn:own>(?a))", "SERVICE ?elsewhere { ?a ?r ?b }"])
def test_what_the_store_cannot_answer_is_said_at_once_or_when_rows_are_read(opened, pattern):
    with pytest.raises(UserError, match="--sparql: the query cannot be answered"):
        list(queries.query(opened(CHAIN), f"SELECT * {{ {pattern} }}").rows)


def test_a_query_may_stand_in_a_file(tmp_path):
    (tmp_path / "q.rq").write_text("\ufeffASK {}", encoding="utf-8")
    assert queries.read_sparql(str(tmp_path / "q.rq")) == "ASK {}"
    assert queries.read_sparql("ASK { ?a ?b ?c }") == "ASK { ?a ?b ?c }"
    with pytest.raises(UserError, match="no such file, and no query"):
        queries.read_sparql("nowhere.rq")
    with pytest.raises(UserError, match="--sparql .*: is a folder, and no query"):
        queries.read_sparql(str(tmp_path))


# neighbours, path, sources


def test_neighbours_are_found_by_hop_in_both_directions(opened):
    found, more = queries.neighbours(opened(CHAIN), ["urn:kg:e:甲"], 2, 10)
    assert [(hop, tuple(queries.as_names(triple))) for hop, triple in found] == [(1, CHAIN[0]), (2, CHAIN[1])]
    assert not more
    found, more = queries.neighbours(opened(CHAIN), ["urn:kg:e:甲"], 9, 3)
    assert (len(found), more) == (3, True)


def test_a_path_is_a_shortest_one_whatever_the_directions(opened):
    store = opened(
        CHAIN, [("甲", "x", "己"), ("己", "x", "庚"), ("庚", "x", "辛"), ("辛", "x", "壬"), ("壬", "x", "戊")]
    )
    assert named(queries.path(store, find(store, "甲"), find(store, "戊"))) == CHAIN
    assert named(queries.path(store, find(store, "戊"), find(store, "甲"))) == CHAIN[::-1]
    assert queries.path(store, find(store, "甲"), find(store, "戊"), 3) is None
    assert queries.path(store, find(store, "甲"), find(store, "甲")) == []
    apart = opened(CHAIN, [("子", "x", "丑")])
    assert queries.path(apart, find(apart, "甲"), find(apart, "丑")) is None


@given(
    st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=12),
    st.integers(0, 7),
    st.integers(0, 7),
)
def test_no_path_is_longer_than_it_must_be(edges, start, goal):
    store = pyoxigraph.Store()
    node = pyoxigraph.NamedNode
    store.extend(pyoxigraph.Quad(node(f"urn:kg:e:{a}"), node("urn:kg:r:x"), node(f"urn:kg:e:{b}")) for a, b in edges)
    far, edge = {start: 0}, [start]
    while edge:
        here = edge.pop(0)
        for a, b in edges:
            for one, other in ((a, b), (b, a)):
                if one == here and other not in far:
                    far[other] = far[here] + 1
                    edge.append(other)
    found = queries.path(store, [f"urn:kg:e:{start}"], [f"urn:kg:e:{goal}"])
    assert (None if found is None else len(found)) == far.get(goal)


def test_an_entity_is_found_by_any_of_its_names(opened):
    store = opened([("大鲵", "别名", "娃娃鱼"), ("《山海经》", "作者", "佚名")])
    assert find(store, "娃娃鱼") == ["urn:kg:e:大鲵"]
    assert find(store, "山海经") == find(store, "“山海经”") == ["urn:kg:e:《山海经》"]
    with pytest.raises(UserError, match="no entity is called '大'; there is 大鲵"):
        find(store, "大")
    with pytest.raises(UserError, match="no entity is called"):
        find(store, '") } DROP ALL #')


def test_entities_kept_apart_are_both_found(opened):
    store = opened([("李娜", "出生日期", "1963年"), ("李娜", "职业", "歌手")], [("李娜", "出生日期", "1982年")])
    assert {queries.name_of(iri) for iri in find(store, "李娜")} == {"李娜 [出生日期 1963年]", "李娜 [出生日期 1982年]"}
    [triple] = queries.around(store, find(store, "李娜")[1])
    assert [one["id"] for one in queries.sources_of(store, triple)] == [1]


def test_a_triple_says_where_it_comes_from(opened):
    store = opened([("《京沪高铁》", "位于", "中国")], [("京沪高铁", "位于", "中国")], text="京沪高铁", confidence=0.5)
    [triple] = queries.around(store, "urn:kg:e:京沪高铁")
    first, second = queries.sources_of(store, triple)
    assert first["head"] == {"said": "《京沪高铁》", "place": None}
    assert second == {
        "id": 1,
        "run": "a run",
        "confidence": 0.5,
        "text": "京沪高铁",
        "head": {"said": "京沪高铁", "place": [0, 4]},
        "tail": {"said": "中国", "place": None},
    }


# stats and check


def test_stats_count(opened):
    found = quality.stats(opened(CHAIN, [("甲", "位于", "乙"), ("子", "x", "丑")], [], finish_reason="eos"))
    assert {key: found[key] for key in list(found)[:11]} == {
        "triples": 5,
        "entities": 7,
        "relations": 3,
        "records": 3,
        "records_without_a_triple": 1,
        "names_merged": 0,
        "names_kept_apart": 0,
        "mentions_not_in_their_text": 9,
        "entities_in_one_triple": 4,
        "components": 2,
        "largest_component": 5,
    }
    assert found["by_finish_reason"] == [{"name": "eos", "count": 3}]
    assert found["by_relation"][0] == {"name": "位于", "count": 2}
    assert [one["name"] for one in found["most_named"][:3]] == ["丁", "丙", "乙"]


def test_stats_of_an_empty_graph(opened):
    assert quality.stats(opened([]))["components"] == 0


def test_check_finds_what_contradicts_itself(opened):
    store = opened(
        [("长江", "长度", "6,300千米"), ("黄河", "长度", "5464千米"), ("苏轼", "出生日期", "1037年")],
        [("长江", "长度", "6397千米"), ("黄河", "长度", "5464千米"), ("苏轼", "出生日期", "1037年1月8日")],
    )
    assert quality.check(store, OWN)["contradictions"] == [
        {"head": "长江", "relation": "长度", "tails": ["6,300千米", "6397千米"]}
    ]


def test_check_finds_directions_that_cannot_be(opened):
    store = opened([("甲", "属于", "乙"), ("乙", "属于", "甲"), ("甲", "配偶", "乙"), ("乙", "配偶", "甲")])
    assert quality.check(store, OWN)["direction"] == [
        {"head": "乙", "relation": "属于", "tail": "甲", "why": "said in both directions"}
    ]
    store = opened([("成都", "出生地点", "李四"), ("成都", "面积", "14335平方千米"), ("李四", "职业", "诗人")])
    [found] = quality.check(store, OWN)["direction"]
    assert (found["head"], found["relation"], found["tail"]) == ("成都", "出生地点", "李四")


def test_check_lists_the_unasked_the_completed_and_what_is_kept_apart(opened):
    answers = [("甲", "首都", "乙"), ("朱元璋", "别名", "太祖"), ("赵匡胤", "别名", "太祖")]
    found = quality.check(opened(answers, text="甲和朱元璋赵匡胤太祖", unasked=("首都",)), OWN)
    assert found["unasked"] == [{"name": "首都", "records": 1, "example": 0}]
    assert found["not_in_text"] == [{"name": "乙", "records": 1, "example": 0}]
    assert found["kept_apart"] == [{"name": "太祖", "why": "an alias of several: 朱元璋 / 赵匡胤"}]


def test_merges_say_why(opened):
    assert quality.merges(opened([("大鲵", "别名", "娃娃鱼")])) == [
        {"name": "娃娃鱼", "merged_into": "大鲵", "why": "大鲵 别名 娃娃鱼"}
    ]


# rows as text

ROWS = [["=1+1", 3], ['a,"b"\nc', None], ["'x", True], ["中文", -1.5]]


def test_csv_comes_back_and_holds_no_formula():
    lines = list(as_csv(["name", "value"], ROWS))
    found = list(csv.reader("\n".join(lines).splitlines(keepends=True)))
    assert found == [["name", "value"], ["'=1+1", "3"], ['a,"b"\nc', ""], ["''x", "true"], ["中文", "-1.5"]]


def test_json_comes_back():
    assert [list(row.values()) for row in json.loads("\n".join(as_json(["name", "value"], ROWS)))] == ROWS
    assert json.loads("\n".join(as_json(["a"], []))) == []


def test_a_table_is_cut_and_says_so():
    lines = list(as_table(["name", "value"], ROWS, 3))
    assert lines[0] == "name      value"
    assert lines[3] == 'a,"b"\\nc'
    assert lines[-1] == "… and more; shown are 3"
