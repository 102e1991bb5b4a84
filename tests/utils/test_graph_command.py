import json
import shutil

import pyoxigraph
import pytest
from helpers import ROOT, python, rows

from common.errors import UserError
from data.sources import find_run, source_of
from kg import export
from kg.store import open_graph
from kg.terms import name_of
from utils import convert, graph

SAMPLE = ROOT / "data" / "sample" / "valid_gold.json"
ASKED = "已知候选的关系列表：['位于', '别名', '面积']，请你根据关系列表抽取。"


def save(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def run(command, store, *flags):
    graph.main([command, "--store", str(store), *map(str, flags)])


def merged(store):
    quads = open_graph(store)[0].quads_for_pattern(None, None, None, pyoxigraph.DefaultGraph())
    return {tuple(name_of(part.value) for part in (q.subject, q.predicate, q.object)) for q in quads}


# records


@pytest.mark.parametrize(
    "record",
    [
        {"id": 1, "instruction": ASKED, "input": "甲,乙在丙", "output": "(甲,乙,位于,丙)"},
        {"id": 1, "input": "甲,乙在丙", "kg": [["甲,乙", "位于", "丙"]]},
        {"id": 1, "prompt": ASKED, "input": "甲,乙在丙", "<ans>": "(甲,乙,位于,丙)"},
        {"id": 1, "instruction": ASKED, "input": "甲,乙在丙", "output": "(甲,乙,位于,丙)", "kg": [["a", "b", "c"]]},
        {"id": 1, "input": "甲,乙在丙", "output": "(甲,乙,位于,丙)", "kg": [["甲,乙", "位于", "丙"]]},
    ],
)
def test_a_record_of_any_shape_gives_its_triples(record):
    source = source_of(record)
    assert (source.identity, source.triples, source.text) == (1, [("甲,乙", "位于", "丙")], "甲,乙在丙")


def test_a_record_without_an_id_is_known_by_what_it_asks():
    one, other = ({"instruction": ASKED, "input": text, "output": ""} for text in ("甲", "乙"))
    assert source_of(one).identity == source_of(one | {"output": "(甲,位于,乙)"}).identity != source_of(other).identity


def test_relations_that_were_not_asked_for_are_noted():
    record = {"id": 1, "instruction": ASKED, "input": "", "output": "(甲,位于,乙),(甲,首都,丙)"}
    assert source_of(record).unasked == ("首都",)


def test_the_run_is_named_by_base_and_adapter(tmp_path):
    predictions = save(tmp_path / "valid.json")
    assert find_run(predictions).name == "unnamed"
    made = {"base": "models/llama-7b", "adapter": "/x/lora/mine/checkpoint-200", "date": "2024-05-01"}
    save(tmp_path / "valid.run.json", made)
    assert find_run(predictions) == ("llama-7b + mine/checkpoint-200", made["base"], made["adapter"], made["date"])
    assert find_run(predictions, name="other").name == "other"
    with pytest.raises(UserError, match="--run_file nowhere.json: no such file"):
        find_run(predictions, "nowhere.json")


def test_a_submission_has_the_run_of_its_predictions(tmp_path):
    save(tmp_path / "valid.json", {"id": 1, "output": "(甲,位于,乙)"})
    save(tmp_path / "valid.run.json", {"base": "models/llama-7b"})
    convert.main(["--pred_path", str(tmp_path / "valid.json"), "--tgt_path", str(tmp_path / "submission.json")])
    assert find_run(tmp_path / "submission.json").base == "models/llama-7b"


@pytest.mark.parametrize("output", [None, 5, "valid.json", "valid.jsonl", "renamed.jsonl", "other.jsonl", "gone.json"])
def test_the_run_of_a_file_of_another_ending_is_not_taken(tmp_path, output):
    for name in ("valid.json", "valid.jsonl", "other.jsonl"):
        save(tmp_path / name)
    save(tmp_path / "valid.run.json", {"base": "models/llama-7b", "output": output})
    assert find_run(tmp_path / "valid.json").base == ("" if output == "valid.jsonl" else "models/llama-7b")
    save(tmp_path / "valid.json.run.json", {"base": "models/own"})
    assert find_run(tmp_path / "valid.json").base == "models/own"


# the commands


def test_errors_about_records_name_file_and_line(tmp_path):
    pred = save(tmp_path / "pred.json", *({"id": 7, "kg": [["甲", "位于", "乙"]]} for _ in range(2)))
    with pytest.raises(UserError, match=r"pred.json:2: id 7 comes twice; convert.py --dedupe keeps the last"):
        run("build", tmp_path / "new" / "graph", "--pred_path", pred)
    assert not (tmp_path / "new").exists()


def test_the_sample_becomes_a_graph(tmp_path, capsys):
    run("build", tmp_path / "graph", "--pred_path", SAMPLE)
    assert "108 records, 281 triples, 108 added, 0 replaced, 0 unchanged" in capsys.readouterr().err
    said = {tuple(triple) for record in rows(SAMPLE) for triple in record["kg"]}
    run("merge", tmp_path / "graph", "--merge", "none")
    assert merged(tmp_path / "graph") == said
    run("merge", tmp_path / "graph", "--merge", "normal")
    assert ("毕加索", "作品", "《格尔尼卡》") in merged(tmp_path / "graph")


def test_a_graph_keeps_its_way_of_merging(tmp_path):
    first = save(tmp_path / "first.json", {"id": 1, "kg": [["甲", "别名", "乙"], ["乙", "位于", "丙"]]})
    run("build", tmp_path / "graph", "--pred_path", first, "--merge", "none")
    second = save(tmp_path / "second.json", {"id": 2, "kg": [["乙", "属于", "丁"]]})
    run("build", tmp_path / "graph", "--pred_path", second)
    assert ("乙", "属于", "丁") in merged(tmp_path / "graph")
    run("build", tmp_path / "graph", "--pred_path", second, "--merge", "alias")
    assert merged(tmp_path / "graph") == {("甲", "别名", "乙"), ("甲", "位于", "丙"), ("甲", "属于", "丁")}


def test_relations_of_a_file_count(tmp_path):
    table = save(tmp_path / "relations.json", {"alias": ["绰号"]})
    pred = save(tmp_path / "pred.json", {"id": 1, "kg": [["甲", "绰号", "乙"], ["乙", "别名", "丙"]]})
    run("build", tmp_path / "graph", "--pred_path", pred, "--relations", table)
    assert merged(tmp_path / "graph") == {("甲", "绰号", "乙"), ("甲", "别名", "丙")}
    save(table, {"alias": "绰号"})
    with pytest.raises(UserError, match="relations.json: expected an object with the lists alias, apart"):
        run("merge", tmp_path / "graph", "--relations", table)
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UserError, match="--relations .*: (No such file|Is a directory).*; expected an object with"):
            run("merge", tmp_path / "graph", "--relations", path)


def test_remove_takes_a_record_or_a_run(tmp_path):
    pred = save(tmp_path / "pred.json", *({"id": n, "kg": [[f"甲{n}", "位于", "乙"]]} for n in (1, "1", "x", 2)))
    run("build", tmp_path / "graph", "--pred_path", pred)
    for identity, left in (("1", {"甲1", "甲x", "甲2"}), ("x", {"甲1", "甲2"}), ("1", {"甲2"})):
        run("remove", tmp_path / "graph", "--document", identity)
        assert {head for head, _, _ in merged(tmp_path / "graph")} <= left
    with pytest.raises(UserError, match="--document 7: nothing of it is in"):
        run("remove", tmp_path / "graph", "--document", "7")
    with pytest.raises(UserError, match="--run other: nothing of it is in .* stats lists the names"):
        run("remove", tmp_path / "graph", "--run", "other")
    run("remove", tmp_path / "graph", "--run", "unnamed")
    assert merged(tmp_path / "graph") == set()
    for flags in ((), ("--document", "1", "--run", "x")):
        with pytest.raises(UserError, match="give either --document ID or --run NAME"):
            run("remove", tmp_path / "graph", *flags)


def test_bad_lines_stop_a_build_or_are_left_out(tmp_path, capsys):
    pred = save(tmp_path / "pred.json", {"id": 1, "kg": [["甲", "位于", "乙"]]}, {"id": 2, "output": 3})
    with pytest.raises(UserError, match=r"pred.json:2: output is 3, expected a string"):
        run("build", tmp_path / "graph", "--pred_path", pred)
    assert not (tmp_path / "graph" / "current.json").exists()
    run("build", tmp_path / "graph", "--pred_path", pred, "--skip_bad")
    assert "pred.json:2" in capsys.readouterr().err


def test_the_command_says_what_it_can_and_what_is_wrong(tmp_path):
    script = ROOT / "src" / "utils" / "graph.py"
    assert "build" in python(script, "--help").stdout
    unknown = python(script, "biuld")
    assert unknown.returncode == 2
    assert "'biuld': no command; expected one of build, remove" in unknown.stderr
    nowhere = python(script, "remove", "--store", tmp_path / "none", "--run", "x")
    assert "no such folder; python src/utils/graph.py build makes a graph there" in nowhere.stderr
    assert not (tmp_path / "none").exists()


def test_a_graph_is_asked(tmp_path, capsys):
    store = tmp_path / "graph"
    run("build", store, "--pred_path", SAMPLE)
    capsys.readouterr()

    def said(command, *flags):
        run(command, store, *flags)
        return capsys.readouterr().out

    assert "triples                              281" in said("stats")
    assert json.loads(said("stats", "--json"))["records"] == 108
    assert "contradictions: 0" in said("check")
    assert set(json.loads(said("check", "--json"))) == {
        *("contradictions", "direction", "unasked", "not_in_text", "kept_apart")
    }
    assert "京沪高铁" in said("merges")
    merges = json.loads(said("merges", "--json"))
    assert {"name": "京沪高铁", "merged_into": "京沪高速铁路", "why": "京沪高速铁路 别名 京沪高铁"} in merges
    assert said("query", "--sparql", "SELECT * { e:毕加索 r:作品 ?b }", "--format", "csv") == "b\n《格尔尼卡》\n"
    assert "西班牙马拉加" in said("neighbours", "--entity", "毕加索")
    found = json.loads(said("path", "--from", "西班牙马拉加", "--to", "格尔尼卡", "--json"))
    assert [(row["hop"], row["tail"]) for row in found] == [(1, "西班牙马拉加"), (2, "《格尔尼卡》")]
    assert found[0]["sources"][0]["id"] == 10001
    with pytest.raises(UserError, match="no way of at most 12 triples from 毕加索 to 破伤风"):
        said("path", "--from", "毕加索", "--to", "破伤风")
    with pytest.raises(UserError, match="--hops 0: expected"):
        said("neighbours", "--entity", "毕加索", "--hops", "0")


@pytest.mark.parametrize("form", export.FORMATS)
def test_a_graph_is_exported_in_every_format(tmp_path, capsys, form):
    run("build", tmp_path / "graph", "--pred_path", SAMPLE)
    run("export", tmp_path / "graph", "--format", form, "--out", tmp_path / "out")
    assert "bytes" in capsys.readouterr().err
    files = [tmp_path / "out"] if form != "neo4j" else list((tmp_path / "out").iterdir())
    assert any("格尔尼卡" in file.read_text(encoding="utf-8") for file in files)
    assert not list(tmp_path.glob("**/*.tmp"))


def test_a_graph_is_drawn_whole_or_around_an_entity(tmp_path, capsys):
    run("build", tmp_path / "graph", "--pred_path", SAMPLE)
    run("show", tmp_path / "graph", "--out", tmp_path / "all.html")
    run(
        "show", tmp_path / "graph", "--out", tmp_path / "part.html", "--entity", "毕加索", "--hops", "1", "--limit", "1"
    )
    assert "1 triples, a part of the graph (--limit); open it in a browser" in capsys.readouterr().err
    assert "格尔尼卡" in (tmp_path / "all.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="show: give --out FILE.html, or --png FILE.png"):
        run("show", tmp_path / "graph")


def test_a_graph_that_was_moved_is_still_one(tmp_path):
    run("build", tmp_path / "graph", "--pred_path", SAMPLE)
    shutil.move(tmp_path / "graph", tmp_path / "moved")
    assert len(merged(tmp_path / "moved")) > 200


def test_push_wants_one_server_and_names_one_that_is_not_there(tmp_path):
    run("build", tmp_path / "graph", "--pred_path", SAMPLE)
    for flags in ((), ("--endpoint", "http://127.0.0.1:9/store", "--neo4j", "bolt://127.0.0.1:9")):
        with pytest.raises(UserError, match="push: give either --endpoint URL or --neo4j ADDRESS"):
            run("push", tmp_path / "graph", *flags)
    with pytest.raises(UserError, match=r"--endpoint http://127.0.0.1:9/store\?graph=.*is the server running"):
        run("push", tmp_path / "graph", "--endpoint", "http://127.0.0.1:9/store")
    with pytest.raises(UserError, match="--neo4j"):
        run("push", tmp_path / "graph", "--neo4j", "bolt://127.0.0.1:9")
