"""Ray hands shards out; whatever is lost on the way, the rows are those of one process and no shard is redone.

Two nodes on one machine (ray.cluster_utils.Cluster); where only the distribution matters, workers have no model.
"""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers import ROOT
from helpers_prediction import ADAPTER, BASE, RECORDS, VALID
from helpers_ray import LONGEST, SHARD, answer_or_fail, hold_from, noted, run_here, run_spread, wait_for

import extract
import inference
from common.errors import UserError

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed (requirements-ray.txt)")

COUNT = 36  # documents, of which every seventh has one text
DECIDED = ("family: ", "dtype: ", "engine: ", "drafts: 8 tokens at most")
TESTS = str(ROOT / "tests")
PATIENT = {  # of Ray: a machine that is busy, or whose memory is nearly full, is no broken one; a node that is gone is
    "RAY_health_check_timeout_ms": "300000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "2",
    "RAY_gcs_server_port_wait_time_s": "300",
    "RAY_memory_monitor_refresh_ms": "0",
}


@pytest.fixture(scope="module")
def cluster():
    """A head where no worker has room, so that any node with workers may go."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 2**27}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", TESTS, prepend=os.pathsep)  # workers import helpers_ray
        made = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.shutdown()


def add_node(cluster, tries=3):
    """A node with room for a worker, beside those that `cluster` knows and no others."""
    before = set(psutil.Process().children(recursive=True))
    try:
        made = cluster.add_node(num_cpus=1, object_store_memory=2**27, wait=False)
    except Exception:  # Ray gives a node up that is not there after 30 s, and leaves its processes
        for process in set(psutil.Process().children(recursive=True)) - before:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if tries == 1:
            raise
        return add_node(cluster, tries - 1)
    cluster.wait_for_nodes(LONGEST)
    return made


@pytest.fixture
def nodes(cluster):
    """Two nodes with room for a worker each; those that are left are taken away again."""
    added = []
    try:
        added += [add_node(cluster)]
        added += [add_node(cluster)]
        yield added
    finally:
        for node in added:
            if node in cluster.worker_nodes:
                cluster.remove_node(node)


@pytest.fixture
def wanted(tmp_path):
    return run_here(tmp_path / "here.jsonl", COUNT)


def spread_beside(output, cluster, what):
    """The rows of a run, beside which `what()` is done; shards from the fifth on end when it has been."""

    def do():
        try:
            what()
        finally:
            hold_from(output, None)

    hold_from(output, 4 * SHARD)
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(do)
        rows = run_spread(output, cluster.address, COUNT)
        done.result()
    return rows


def processes(output):
    """Those that have begun a shard."""
    return {process for _, process in noted(output, "begun")}


def check_log(output, most_again):
    """Every shard was done, and only so many were begun more often than done."""
    done, begun = ([first for first, _ in noted(output, what)] for what in ("done", "begun"))
    assert len(set(done)) == COUNT // SHARD
    assert len(begun) - len(set(done)) <= most_again


def test_a_node_that_is_killed_costs_its_shard_alone(cluster, nodes, wanted, tmp_path):
    out = tmp_path / "out.jsonl"

    def kill():
        wait_for(lambda: len(noted(out, "done")) >= 3 and len(processes(out)) == 2)
        cluster.remove_node(nodes[0], allow_graceful=False)

    assert spread_beside(out, cluster, kill) == wanted
    check_log(out, 1 + 1)  # what ran, and what waited behind it


def test_a_worker_that_is_killed_is_replaced(cluster, nodes, wanted, tmp_path):
    out = tmp_path / "out.jsonl"

    def kill():
        wait_for(lambda: len(noted(out, "begun")) >= 4 and len(processes(out)) == 2)
        os.kill(int(noted(out, "begun")[-1][1]), signal.SIGKILL)
        wait_for(lambda: len(processes(out)) == 3)

    assert spread_beside(out, cluster, kill) == wanted
    check_log(out, 1 + 1)


def test_a_node_that_joins_late_is_used_even_where_there_was_none(cluster, wanted, tmp_path):
    out = tmp_path / "out.jsonl"
    first, late = add_node(cluster), []
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", cluster.address, "--num-cpus", "1"]

    def join():
        wait_for(lambda: len(noted(out, "done")) >= 1)
        cluster.remove_node(first, allow_graceful=False)
        late.append(subprocess.Popen([*command, "--block"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    try:
        assert spread_beside(out, cluster, join) == wanted
    finally:
        if first in cluster.worker_nodes:
            cluster.remove_node(first)
        for node in late:
            node.terminate()
            node.wait()
    assert len({process for _, process in noted(out, "done")}) == 2
    check_log(out, 1 + 1)


def test_a_driver_that_is_killed_goes_on_without_its_finished_shards(cluster, nodes, wanted, tmp_path):
    out = tmp_path / "out.jsonl"
    command = [sys.executable, str(ROOT / "tests" / "helpers_ray.py"), str(out), cluster.address, str(COUNT)]
    hold_from(out, 4 * SHARD)
    driver = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list((tmp_path / "out.jsonl.parts").glob("*.jsonl"))) >= 3)
    finally:
        driver.kill()
        driver.wait()
    hold_from(out, None)
    kept = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out.jsonl.parts").glob("*.jsonl"))]
    assert len(kept) in (3, 4)
    assert run_spread(out, cluster.address, COUNT, 0.05) == wanted
    check_log(out, 4)  # at most what two workers had, running or waiting


def test_workers_with_a_model_make_the_same_files_as_one_process_and_say_the_same(cluster, nodes, tmp_path, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    for number, record in enumerate(RECORDS[:6]):
        (docs / f"{number}.txt").write_text(record["input"], encoding="utf-8")
    here, there = tmp_path / "here", tmp_path / "there"
    model = ["--model_name_or_path", str(BASE), "--lora_weights", str(ADAPTER), "--max_new_tokens", "6"]
    ray = ["--ray", cluster.address, "--cpus_per_worker", "1", "--shard_size", "3"]
    corpus = [*model, "--input", str(docs), "--relations", "位于,类型", "--shard_size", "3"]
    file = [*model, "--input_file", str(VALID)]
    extract.main([*corpus, "--output_file", f"{here}.jsonl"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(DECIDED)]
    extract.main([*corpus, "--output_file", f"{there}.jsonl", *ray])
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith(DECIDED)] == said
    assert len(said) == len(DECIDED)
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    mine, theirs = (json.loads(Path(f"{path}.run.json").read_text())["decided"] for path in (here, there))
    assert theirs == {**mine, "workers": {"value": 2, "why": "1 cores each, on 2 machines of Ray"}}
    assert mine["drafts"]["value"] > 0
    inference.main([*file, "--output_file", f"{here}.json"])
    inference.main([*file, "--output_file", f"{there}.json", *ray, "--workers", "1"])
    assert (tmp_path / "there.json").read_bytes() == (tmp_path / "here.json").read_bytes()
    decided = json.loads(Path(f"{there}.run.json").read_text())["decided"]
    assert {"dtype", "engine", "batch_size", "drafts", "workers"} <= set(decided)


@pytest.mark.parametrize(("seconds", "error"), [(0.1, "ValueError: no such"), (0.5, "Odd: no such layer")])
def test_an_error_of_a_worker_is_one_line_with_the_shard_and_those_that_were_begun_are_kept(
    cluster, nodes, tmp_path, capsys, seconds, error
):
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=f"shard 2 failed .*{error}.* Finished shards are kept: the same") as found:
        run_spread(out, cluster.address, 24, seconds, answer_or_fail)
    assert "\n" not in str(found.value)
    assert "shards that workers have are finished first: 3\n" in capsys.readouterr().err
    kept = [path.name for path in sorted((tmp_path / "out.jsonl.parts").glob("*.jsonl"))]
    assert kept == ["000000.jsonl", "000001.jsonl", "000003.jsonl"]
    assert len(run_spread(out, cluster.address, 24, 0)) == 24
    assert len(noted(out, "begun")) == len(noted(out, "done")) == 24 // SHARD  # none was asked twice


def test_an_address_without_a_cluster_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--ray localhost:1: no cluster"):
        run_spread(tmp_path / "out.jsonl", "localhost:1", 3)
