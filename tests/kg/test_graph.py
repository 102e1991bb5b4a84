"""The graph: built, changed and cut back; after any change it is what a build of the same records is."""

import errno
import os
import signal
import subprocess
import sys
import time

import pyoxigraph
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from kg import graph, store
from kg.entities import mentions_of
from kg.evidence import Run, Source
from kg.relations import read_relations
from kg.terms import PREFIXES, encode, name_of

ALIAS = store.Settings("alias", read_relations(None))
RUN = Run("a run", "models/base", "lora/adapter", "2024-05-01")


def entity(name):
    return f"urn:kg:e:{encode(name)}"


def merged(opened):
    """The merged triples, by names."""
    quads = opened.quads_for_pattern(None, None, None, pyoxigraph.DefaultGraph())
    return {tuple(name_of(part.value) for part in (q.subject, q.predicate, q.object)) for q in quads}


def content(opened):
    return {str(quad) for quad in opened}


def build(folder, *sources, run=RUN, settings=ALIAS, **more):
    return graph.build(folder, sources, run, settings, **more)


def look(folder):
    return store.open_graph(folder)[0]


# build


def test_every_triple_keeps_its_sources(tmp_path):
    source = Source(
        7,
        [("京沪高铁", "位于", "中国"), ("京沪高铁", "长度", "1,318千米")],
        "京沪高铁全长1,318千米。",
        "运输",
        0.75,
        "eos",
    )
    counts = build(tmp_path, source)
    assert (counts["records"], counts["triples"], counts["added"]) == (1, 2, 1)
    opened = look(tmp_path)
    assert merged(opened) == {("京沪高铁", "位于", "中国"), ("京沪高铁", "长度", "1,318千米")}
    question = "SELECT * { GRAPH ?g { e:京沪高铁 r:位于 e:中国 } GRAPH kg:sources { ?g ?what ?value } }"
    found = {name_of(row["what"].value): row["value"].value for row in opened.query(question, prefixes=PREFIXES)}
    assert (
        found.pop("detail") == '{"places":{"1,318千米":[6,13],"中国":null,"京沪高铁":[0,4]},"text":"b42561a98f53163e"}'
    )
    assert found == {
        "id": "7",
        "run": "urn:kg:run:a%20run",
        "topic": "运输",
        "confidence": "0.75",
        "finish_reason": "eos",
        "text": "京沪高铁全长1,318千米。",
    }
    question = "SELECT * { GRAPH kg:sources { <urn:kg:run:a%20run> ?what ?value } }"
    found = {name_of(row["what"].value): row["value"].value for row in opened.query(question, prefixes=PREFIXES)}
    assert found == {"name": "a run", "base": "models/base", "adapter": "lora/adapter", "date": "2024-05-01"}


def test_texts_are_left_out_on_request(tmp_path):
    build(tmp_path, Source(7, [("甲", "位于", "乙")], "甲在乙"), with_text=False)
    assert "甲在乙" not in str(look(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        'O\'Neil "x"',
        "`a`}) DETACH DELETE n //",
        "<b>&",
        "a\nb\r\t\x00\x7f",
        "😀",
        "%41",
        "\ud800",
        "=1+1",
        "长" * 10_000,
        "a#b",
        " ",
    ],
)
def test_no_name_is_lost_or_run(tmp_path, name):
    build(tmp_path, Source(name, [(name, name, "乙" + name)], name, name))
    assert merged(look(tmp_path)) == {(name, name, "乙" + name)}


@given(st.text())
def test_every_name_comes_back_and_is_an_iri(name):
    assert name_of(pyoxigraph.NamedNode(entity(name)).value) == name


# adding, changing, deleting


def test_the_same_records_again_change_nothing(tmp_path):
    build(tmp_path, Source(1, [("甲", "位于", "乙")]))
    before = (tmp_path / "current.json").read_bytes()
    assert build(tmp_path, Source(1, [("甲", "位于", "乙")]))["unchanged"] == 1
    assert (tmp_path / "current.json").read_bytes() == before


def test_another_answer_replaces_the_old_one_and_other_runs_stay(tmp_path):
    build(tmp_path, Source(1, [("甲", "位于", "乙")]), Source(2, [("丙", "位于", "乙")]))
    build(tmp_path, Source(1, [("甲", "位于", "丁")]), run=Run("another"))
    assert build(tmp_path, Source(1, [("甲", "属于", "乙")]))["replaced"] == 1
    assert merged(look(tmp_path)) == {("甲", "属于", "乙"), ("丙", "位于", "乙"), ("甲", "位于", "丁")}


def test_another_text_under_the_same_id_is_refused_unless_it_is_said_to_have_changed(tmp_path):
    build(tmp_path, Source(1, [("甲", "位于", "乙")], "甲在乙"))
    with pytest.raises(UserError, match="id 1 is in the graph with another text.*--collection"):
        build(tmp_path, Source(1, [("丙", "位于", "丁")], "丙在丁"))
    build(tmp_path, Source(1, [("丙", "位于", "丁")], "丙在丁"), collection="other.json")
    assert len(merged(look(tmp_path))) == 2
    build(tmp_path, Source(1, [("戊", "位于", "己")], "戊在己"), changed_texts=True)
    assert merged(look(tmp_path)) == {("丙", "位于", "丁"), ("戊", "位于", "己")}


def test_an_id_that_comes_twice_is_refused_and_7_is_not_the_text_7(tmp_path):
    with pytest.raises(UserError, match="id 7 comes twice"):
        build(tmp_path, Source(7, []), Source(7, []))
    assert build(tmp_path, Source(7, [("甲", "位于", "乙")]), Source("7", [("丙", "位于", "乙")]))["added"] == 2


def test_a_record_or_a_run_that_is_removed_takes_along_what_nothing_else_supports(tmp_path):
    build(tmp_path, Source(1, [("甲", "位于", "乙"), ("甲", "属于", "丙")]), Source(2, [("甲", "位于", "乙")]))
    build(tmp_path, Source(1, [("甲", "位于", "丁")]), run=Run("another"))
    graph.remove(tmp_path, lambda opened: graph.sources_of_document(opened, 1))
    assert merged(look(tmp_path)) == {("甲", "位于", "乙")}
    assert "urn:kg:run:another" not in str(look(tmp_path))
    graph.remove(tmp_path, lambda opened: graph.sources_of_run(opened, "a run"))
    assert len(look(tmp_path)) == 0


def test_another_adapter_under_the_name_of_a_run_is_refused(tmp_path):
    build(tmp_path, Source(1, []))
    with pytest.raises(UserError, match="the run a run is in the graph with the adapter lora/adapter.*--run NAME"):
        build(tmp_path, Source(1, []), run=RUN._replace(adapter="lora/other"))


NAMES = st.sampled_from(["甲", "《甲》", "甲 ", "乙", "ＡＢ", "AB", "丙", "1980年", "1980年5月", "1990年"])
RELATIONS = st.sampled_from(["别名", "简称", "位于", "出生日期", "面积", "导演"])
ANSWERS = st.lists(st.tuples(NAMES, RELATIONS, NAMES), max_size=4, unique=True)
CHANGES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["a", "b"]), st.none() | ANSWERS), max_size=7)


@settings(max_examples=100, deadline=None)
@given(CHANGES)
def test_after_any_changes_the_graph_is_what_a_build_of_the_same_records_is(tmp_path_factory, changes):
    changed, there, folder = pyoxigraph.Store(), {}, tmp_path_factory.mktemp("scratch")
    graph.bring(changed, [Source(99, [])], Run("a"), ALIAS, folder)
    for identity, run, answer in changes:
        if answer is None:
            there.pop((identity, run), None)
            graphs = [g for g in graph.sources_of_document(changed, identity) if f":{run}:" in g]
            graph.take(changed, graphs, ALIAS, folder)
        else:
            there[identity, run] = Source(identity, answer)
            graph.bring(changed, [there[identity, run]], Run(run), ALIAS, folder)
    fresh = pyoxigraph.Store()
    sources = {run: [s for (_, of), s in there.items() if of == run] for run in ("a", "b")}
    graph.bring(fresh, [Source(99, []), *sources["a"]], Run("a"), ALIAS, folder)
    if sources["b"]:
        graph.bring(fresh, sources["b"], Run("b"), ALIAS, folder, anew=True)
    assert content(changed) == content(fresh)
    said = {
        mention
        for triple in changed.quads_for_pattern(None, None, None, pyoxigraph.DefaultGraph())
        for mention in mentions_of(changed, triple.subject.value, triple.predicate.value, triple.object.value)
    }
    assert len(said) == sum(len(source.triples) for source in there.values())


# killed, or two at once

CHANGE = """
import sys
from pathlib import Path
from kg import graph, store
from kg.evidence import Run, Source
from kg.relations import read_relations
def sources():
    for number in range({count}):
        if number == {wait_at}:
            print("here", flush=True)
            {then}
        yield Source(number, [(f"人{{number}}", "位于", "乙"), ("甲", "属于", f"人{{number}}")], "text")
graph.build(Path(sys.argv[1]), sources(), Run("killed"), store.Settings("alias", read_relations(None)))
print("done", flush=True)
"""


def start(folder, count=3000, wait_at=-1, then="pass"):
    code = CHANGE.format(count=count, wait_at=wait_at, then=then)
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.2])
def test_killed_at_any_moment_the_graph_is_as_before_or_after(tmp_path, delay):
    build(tmp_path, Source(1, [("甲", "位于", "乙")], "text"))
    process = start(tmp_path, wait_at=2999)
    process.stdout.readline()  # all that is read: from here on it is loaded, merged and put in place
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(merged(look(tmp_path))) in (1, 6001)
    store.let_go(tmp_path)
    assert build(tmp_path, Source(2, [("丙", "位于", "乙")]))["added"] == 1
    assert len(merged(look(tmp_path))) in (2, 6002)
    assert len(list(tmp_path.iterdir())) == 2  # the one generation and current.json: nothing is left behind


def test_a_build_that_is_killed_leaves_no_graph_and_the_next_one_makes_it(tmp_path):
    process = start(tmp_path / "new", wait_at=10, then="import time; time.sleep(60)")
    process.stdout.readline()
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="no graph in it; python src/utils/graph.py build"):
        look(tmp_path / "new")
    assert build(tmp_path / "new", Source(2, [("丙", "位于", "乙")]))["added"] == 1


def test_a_second_process_is_refused_and_reading_is_not(tmp_path):
    build(tmp_path, Source(1, [("甲", "位于", "乙")], "text"))
    process = start(tmp_path, wait_at=10, then="sys.stdin.read()")
    process.stdout.readline()
    with pytest.raises(UserError, match="another process is changing this graph"):
        build(tmp_path, Source(2, []))
    assert len(merged(look(tmp_path))) == 1
    process.kill()
    process.wait()


READING = """
import sys
from kg import store
opened, _ = store.open_graph(sys.argv[1])
print("here", flush=True)
sys.stdin.readline()
print(len(set(opened)), flush=True)
"""


def test_who_reads_goes_on_reading_what_was_there(tmp_path):
    build(tmp_path, *(Source(n, [(f"甲{n}", "位于", "乙")]) for n in range(50)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", READING, str(tmp_path)]
    reader = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    reader.stdout.readline()
    count = len(look(tmp_path))
    store.let_go(tmp_path)
    for change in range(3):
        build(tmp_path, Source(f"new {change}", [("丙", "位于", f"丁{change}")]))
    assert len(list(tmp_path.glob("generation-*"))) == 2
    assert reader.communicate("\n")[0] == f"{count}\n"
    build(tmp_path, Source("last", []))
    assert len(list(tmp_path.glob("generation-*"))) == 1


def test_an_error_while_reading_leaves_the_graph_as_it_was(tmp_path):
    build(tmp_path, Source(1, [("甲", "位于", "乙")]))
    before = content(look(tmp_path))

    def broken():
        yield Source(2, [("丙", "位于", "乙")])
        raise UserError("line 2 is broken")

    with pytest.raises(UserError, match="line 2 is broken"):
        graph.build(tmp_path, broken(), RUN, ALIAS)
    assert content(look(tmp_path)) == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_with_something_else_in_it_is_no_graph(tmp_path):
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(UserError, match="no graph .it holds thesis.docx.; give a folder of its own"):
        build(tmp_path, Source(1, []))
    with pytest.raises(UserError, match="--store .*thesis.docx: is a file, expected the folder of a graph"):
        store.check_store(tmp_path / "thesis.docx")
    store.check_store(tmp_path / "none yet")


def test_a_large_change_is_the_same_as_many_small_ones(tmp_path):
    many = [Source(n, [(f"《{n % 7}》", "别名", f"{n % 7}"), (f"{n % 5}", "位于", f"{n}")]) for n in range(50)]
    small, large = pyoxigraph.Store(), pyoxigraph.Store()
    for opened, at_once in ((small, 10**6), (large, 0)):
        graph.bring(opened, [Source(99, [])], RUN, ALIAS, tmp_path)
        graph.bring(opened, many, RUN, ALIAS, tmp_path, at_once=at_once)
    assert content(small) == content(large)


def test_what_is_loaded_in_pieces_is_whole(tmp_path):
    done = []
    pieces = [f"line {number}\n" for number in range(10)]
    files = graph.spool(iter(pieces), tmp_path, "piece", done.append, chunk=20)
    assert len(files) == 4
    assert done == files
    assert "".join(file.read_text() for file in files) == "".join(pieces)
    assert graph.spool([], tmp_path, "none", done.append) == []


@pytest.mark.parametrize(
    ("said", "number"), [("IO error: No space left on device: While appending", errno.ENOSPC), ("Corruption: x", None)]
)
def test_what_the_system_refuses_the_store_is_told_with_its_number(tmp_path, said, number):
    build(tmp_path, Source(1, [("甲", "位于", "乙")]))

    def refused():
        yield Source(2, [("丙", "位于", "乙")])
        raise OSError(said)

    with pytest.raises(OSError if number else UserError) as caught:
        graph.build(tmp_path, refused(), RUN, ALIAS)
    assert getattr(caught.value, "errno", None) == number
    assert len(merged(look(tmp_path))) == 1
