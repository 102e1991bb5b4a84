import json
import re

import pyoxigraph
import pytest

from common.errors import UserError
from kg import drawing, graph, queries
from kg.evidence import Run, Source
from kg.relations import read_relations
from kg.store import Settings

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--",
    "\u2028",
    "\ud800",
    "${x}",
    "'\"`",
    "/*DATA*/",
    "/*CYTOSCAPE*/",
]


@pytest.fixture
def opened(tmp_path):
    def build(*answers, **more):
        store = pyoxigraph.Store()
        sources = [Source(number, answer, **more) for number, answer in enumerate(answers)]
        graph.bring(store, sources, Run("a run"), Settings("alias", read_relations(None)), tmp_path)
        return store

    return build


def data_of(store, most=100):
    return drawing.as_data(store, drawing.choose_triples(store, most)[0])


def island(page):
    """The data that a page holds."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_data_has_nodes_edges_and_their_sources(opened):
    store = opened([("甲", "位于", "乙"), ("甲", "属于", "甲")], [("甲", "位于", "乙")], text="甲在乙")
    data = data_of(store)
    assert sorted((node["name"], node["degree"]) for node in data["nodes"]) == [("乙", 1), ("甲", 2)]
    edge = next(edge for edge in data["edges"] if edge["relation"] == "位于")
    assert (data["nodes"][edge["head"]]["name"], data["nodes"][edge["tail"]]["name"], edge["count"]) == ("甲", "乙", 2)
    assert edge["sources"][0]["tail"] == {"said": "乙", "place": [2, 3]}
    assert data["relations"] == [{"name": "位于", "count": 1}, {"name": "属于", "count": 1}]


def test_nodes_come_in_the_order_of_the_triples_whatever_the_hashes_of_names(opened):
    store = opened([(f"甲{n}", "位于", f"乙{n}") for n in range(10)])
    triples, _ = drawing.choose_triples(store, 100)
    names = [name for triple in triples for name in queries.as_names(triple)[::2]]
    assert [node["name"] for node in drawing.as_data(store, triples)["nodes"]] == names


def test_of_a_large_graph_the_entities_with_most_triples_are_drawn(opened):
    store = opened([("甲", "位于", f"乙{n}") for n in range(5)] + [("丙", "位于", "丁")])
    triples, more = drawing.choose_triples(store, 5)
    assert {queries.as_names(triple)[0] for triple in triples} == {"甲"}
    assert more
    assert drawing.choose_triples(store, 6)[1] is False


def test_the_page_asks_for_nothing_elsewhere_and_carries_the_licence(opened):
    page = drawing.page(data_of(opened([("甲", "位于", "乙")])))
    assert re.search(r"default-src 'none'", page)
    assert not re.search(r"<(?:link|img|iframe|script)[^>]+(?:src|href)=|@import|url\(", page.split("<script>")[0])
    own = page.rsplit("<script>", 1)[1]
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?://|innerHTML", own)
    assert "Cytoscape Consortium" in page
    assert 'THE SOFTWARE IS PROVIDED "AS IS"' in page.replace("“", '"').replace("”", '"')


def test_hostile_names_stay_data(opened):
    answers = [[(name, name, "乙" + name)] for name in HOSTILE]
    store = opened(*answers, text="</script>" + "".join(HOSTILE))
    page, data = drawing.page(data_of(store)), data_of(store)
    assert island(page) == data
    assert {node["name"] for node in data["nodes"]} >= set(HOSTILE)
    assert page.count("<script") == 3
    assert page.count("</script") == 3


def test_a_picture_is_drawn_of_a_small_graph(opened, tmp_path):
    store = opened([("a", "located in", "$b_"), ("a", "x", "a"), ("c", "y", "\n")])
    drawing.draw(data_of(store), tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_of_nothing_is_refused(opened, tmp_path):
    with pytest.raises(UserError, match=r"--png .*graph.png: the graph has no triple to draw"):
        drawing.draw(data_of(opened([])), tmp_path / "graph.png")


def test_a_picture_of_a_large_graph_is_refused(opened, tmp_path):
    store = opened([("a", "x", f"b{n}") for n in range(drawing.LARGEST_PICTURE)])
    with pytest.raises(
        UserError, match="151 entities are too many for a picture, 150 at most; choose a part by --entity"
    ):
        drawing.draw(data_of(store, 1000), tmp_path / "graph.png")
    assert not (tmp_path / "graph.png").exists()
