"""The page's API: what it answers, what it refuses, and that a file goes on after a restart."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2 as httpx
import pytest
import torch
from fastapi.testclient import TestClient
from helpers_web import BASE, QUESTION, RECORD, TEXT, hold, listening, open_flags, open_plan, serving, wait_until

from checkpoints.family import find_family
from checkpoints.prefixes import Kind
from data.records import load_training
from data.sources import find_run
from loading.precision import Precision
from loading.prefix import load_with_prefix, save_prefix
from prediction.extracting import ask_record, extract, put_together
from prediction.jobs import run_name
from prediction.live import Busy
from tokens.readers import load_codec
from web.jobs import FINISHED, RUNNING, STOPPED

LONGEST = 300  # seconds that an answer may take


@pytest.fixture(scope="module")
def opened(random_base):
    return open_plan(random_base)


@pytest.fixture
def client(opened, tmp_path):
    with serving(opened, tmp_path) as (app, model, jobs, graphs), TestClient(app, base_url=BASE) as client:
        client.model, client.jobs, client.graphs = model, jobs, graphs
        yield client


def events(text):
    blocks = [block.split("\n") for block in text.split("\n\n") if block.strip()]
    return [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks]


def stream(address):
    headers = {"Accept": "text/event-stream"}
    return httpx.stream("POST", f"{address}/api/extract", json=QUESTION, headers=headers, timeout=LONGEST)


def finished(client, job):
    return wait_until(lambda: (found := client.get(f"/api/jobs/{job['id']}").json())["status"] == FINISHED and found)


def upload(client, name, text, **form):
    return client.post("/api/jobs", files={"file": (name, text.encode())}, data=form)


def test_an_answer_comes_whole_or_as_it_is_made(client):
    whole = client.post("/api/extract", json=QUESTION)
    assert whole.status_code == 200
    found = whole.json()
    assert found["triples"]
    assert {one["relation"] for one in found["triples"]} <= {"位于", "高度"}
    for one in found["triples"]:
        start, end = one["head_at"]
        assert TEXT[start:end] == one["head"]
    streamed = events(client.post("/api/extract", json=QUESTION, headers={"Accept": "text/event-stream"}).text)
    names = [name for name, _ in streamed]
    assert names[0] == "start"
    assert names[-1] == "done"
    assert streamed[-1][1] | {"seconds": 0} == found | {"seconds": 0, "triples": streamed[-1][1]["triples"]}
    assert "".join(data["text"] for name, data in streamed if name == "text") == found["output"]
    seen = [triple for name, data in streamed if name == "triples" for triple in data["triples"]]
    assert seen == [[one["head"], one["relation"], one["tail"]] for one in found["triples"]]


def test_an_answer_is_read_while_it_is_made(opened, tmp_path):
    read, most = [], []
    with serving(opened, tmp_path) as (app, model, _, _):
        hold(model.server, lambda _, ids: most.append(len(ids)) or (len(ids) > 5 and not read))
        with listening(app) as address, stream(address) as answer:
            for line in answer.iter_lines():
                if line.startswith("event: text"):
                    read.append(max(most))
    assert read[0] < 20 < max(most)
    assert len(read) > 1


def test_a_long_text_is_asked_in_windows_and_both_wordings_are_known(client):
    long = client.post("/api/extract", json={**QUESTION, "text": TEXT * 60, "topic": "建筑", "wording": "older"})
    assert long.status_code == 200, long.text
    assert long.json()["parts"] > 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({**QUESTION, "text": "字" * 2001}, 413, "2,000"),
        ({**QUESTION, "relations": []}, 422, "relations"),
        ({**QUESTION, "relations": ["位于', '高度"]}, 400, "quotes"),
        ({**QUESTION, "text": " \n"}, 400, "empty"),
        ({**QUESTION, "text": "\ud800"}, 422, ""),
        ({**QUESTION, "temperature": 1}, 422, "temperature"),
    ],
)
def test_what_cannot_be_asked_is_said(client, body, status, says):
    answer = client.post("/api/extract", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert says in answer.text


def test_a_body_that_is_not_said_to_be_json_is_told_the_header(client):
    answer = client.post("/api/extract", content=json.dumps(QUESTION), headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()["detail"].split("; ")[1:]) == (
        422,
        ["send the header Content-Type: application/json"],
    )


def test_fifty_at_a_time_all_get_their_own_answer(opened, tmp_path):
    texts = [f"{number}号楼位于上海市第{number}街，高{number}米。" for number in range(50)]
    with serving(opened, tmp_path) as (app, model, _, _), listening(app) as address:

        def ask(text):
            question = {**QUESTION, "text": text}
            return httpx.post(f"{address}/api/extract", json=question, timeout=LONGEST).json()["output"]

        alone = [ask(text) for text in texts[:5]]
        with ThreadPoolExecutor(50) as people:
            together = list(people.map(ask, texts))
        assert together[:5] == alone
        assert len(together) == 50
        assert model.server.state()["waiting"] == model.server.state()["running"] == 0
        assert not model.server.limits.asked  # nothing is kept of them


def test_too_many_are_told_to_come_again(opened, tmp_path):
    with serving(opened, tmp_path, rows=1, waiting=2) as (app, model, _, _):
        questions = ask_record(model.plan, RECORD, model.window)
        answers = {}
        for number in range(2):  # its thread does not work yet
            model.server.ask(questions, lambda _, value, number=number: answers.update({number: value}))
        with pytest.raises(Busy, match="come|again"):
            model.server.ask(questions, answers.update)
        with TestClient(app, base_url=BASE) as client:
            wait_until(lambda: len(answers) == 2 and not any(isinstance(one, str) for one in answers.values()))
            assert client.post("/api/extract", json=QUESTION).status_code == 200
        assert put_together(model.plan, RECORD, questions, {0: answers[0]}).triples


def test_a_reader_who_leaves_stops_the_model_and_blocks_nobody(opened, tmp_path):
    most = []
    with serving(opened, tmp_path, rows=1) as (app, model, _, _):
        hold(model.server, lambda asked, ids: most.append(len(ids)) or (len(ids) > 5 and not asked.stopped))
        with listening(app) as address:
            with stream(address) as answer:
                lines = answer.iter_lines()
                while not next(lines).startswith("event: text"):
                    pass
            wait_until(lambda: not model.server.state()["running"])
            assert max(most) < 20  # of 40
            assert httpx.get(f"{address}/api/health", timeout=LONGEST).json()["status"] == "ready"


def test_a_file_is_answered_scored_and_brought_into_the_graph(client):
    records = [{**RECORD, "id": number, "kg": [["东方明珠", "位于", "上海市"]]} for number in range(3)]
    job = upload(client, "../../valid.jsonl", "\n".join(map(json.dumps, records)))
    assert job.status_code == 202, job.text
    done = finished(client, job.json())
    assert done["records"] == 3
    assert set(done["files"]) == {"predictions", "submission", "graph", "score"}
    assert set(done["score"]) > {"f1", "contest", "by_relation"}
    rows = client.get(f"/api/jobs/{done['id']}/files/predictions")
    assert [json.loads(line)["id"] for line in rows.text.splitlines()] == [0, 1, 2]
    assert "attachment" in rows.headers["content-disposition"]
    answer = client.post(f"/api/jobs/{done['id']}/graph")
    assert answer.json()["added"] == 3, answer.text
    assert client.get("/api/graph").json()["edges"]
    assert client.delete(f"/api/jobs/{done['id']}").status_code == 200
    assert client.get(f"/api/jobs/{done['id']}").status_code == 404


@pytest.mark.parametrize(
    ("name", "text", "form", "says"),
    [
        ("a.txt", "一行\n\n另一行\n", {"relations": "位于，高度"}, None),
        ("a.csv", "cate,text\n建筑,东方明珠位于上海。\n", {"relations": "位于"}, None),
        ("a.csv", "甲,乙\n1,2\n", {"relations": "位于"}, "column"),
        ("a.json", '[{"text": "东方明珠位于上海"}]', {}, "relations"),
        ("a.jsonl", '{"input": 3}', {"relations": "位于"}, "a.jsonl:1"),
        ("a.exe", "x", {}, ".jsonl"),
        ("a.txt", "x" * (2**20 + 5), {"relations": "位于"}, "larger"),
    ],
)
def test_uploads_of_many_kinds(client, name, text, form, says):
    answer = upload(client, name, text, **form)
    if says is None:
        assert answer.status_code == 202, answer.text
        assert finished(client, answer.json())["triples"] >= 0
    else:
        assert answer.status_code in (400, 413)
        assert says in answer.json()["detail"]
        assert str(client.jobs.folder) not in answer.text
        assert not list(client.jobs.folder.iterdir())


def test_a_job_that_a_restart_broke_off_goes_on(opened, tmp_path):
    lines = "\n".join(f"第{number}座楼位于上海。" for number in range(40))
    with serving(opened, tmp_path, rows=2) as (app, model, jobs, _):
        hold(model.server, lambda *_: model.server.answered > 6 and not model.server.ending)
        with TestClient(app, base_url=BASE) as client:
            job = upload(client, "many.txt", lines, relations="位于").json()
            wait_until(lambda: client.get(f"/api/jobs/{job['id']}").json()["done"] > 3)
        before = jobs.folder / job["id"] / "predictions.json.partial"
    kept = len(before.read_text(encoding="utf-8").splitlines()) - 1
    assert kept > 0
    with serving(opened, tmp_path) as (app, model, jobs, _):
        assert jobs.list_all()[0]["status"] in ("waiting", RUNNING)
        with TestClient(app, base_url=BASE) as client:
            assert finished(client, job)["records"] == 40
        assert model.server.answered < 40


def test_a_job_can_be_stopped_resumed_and_is_one_of_few(client):
    lines = "\n".join(f"第{number}座楼位于上海。" for number in range(300))
    jobs = [upload(client, f"{name}.txt", lines, relations="位于").json() for name in "甲乙丙"]
    assert upload(client, "丁.txt", lines, relations="位于").status_code == 429
    for job in jobs:
        assert client.post(f"/api/jobs/{job['id']}/stop").json()["status"] == STOPPED
    assert client.post(f"/api/jobs/{jobs[0]['id']}/stop").status_code == 400
    assert client.post("/api/extract", json=QUESTION).status_code == 200
    assert client.post(f"/api/jobs/{jobs[1]['id']}/resume").json()["status"] in ("waiting", RUNNING)
    client.post(f"/api/jobs/{jobs[1]['id']}/stop")


def test_a_short_question_does_not_wait_for_a_file(opened, tmp_path):
    lines = "\n".join(f"第{number}座楼位于上海。" for number in range(400))
    with serving(opened, tmp_path, rows=2) as (app, model, _, _), TestClient(app, base_url=BASE) as client:
        job = upload(client, "many.txt", lines, relations="位于").json()
        wait_until(lambda: model.server.state()["running"])
        for _ in range(3):
            assert client.post("/api/extract", json=QUESTION).status_code == 200
        assert client.get(f"/api/jobs/{job['id']}").json()["status"] == RUNNING


def test_verdicts_change_the_graph_and_become_training_records(client):
    right, wrong, other = ["东方明珠", "位于", "上海市"], ["东方明珠", "高度", "4米"], ["东方明珠", "高度", "468米"]
    assert client.post("/api/graph/records", json={"text": TEXT, "triples": [right, wrong]}).json()["added"] == 1
    said = {**QUESTION, "triples": [{"verdict": "accept", "triple": right}]}
    assert client.post("/api/corrections", json=said).json()["records"] == 0  # not all of it is judged
    assert (
        client.post("/api/corrections", json={**said, "triples": [{"verdict": "correct", "triple": wrong}]}).status_code
        == 400
    )
    said = {**said, "complete": True, "triples": [{"verdict": "correct", "triple": wrong, "to": other}]}
    assert client.post("/api/corrections", json=said).json()["records"] == 1
    view = client.get("/api/graph", params={"name": "东方明珠"}).json()
    names = [node["name"] for node in view["nodes"]]
    triples = {(names[edge["head"]], edge["relation"], names[edge["tail"]]): edge for edge in view["edges"]}
    assert set(triples) == {tuple(right), tuple(other)}
    runs = {source["run"] for source in triples[tuple(right)]["sources"]}
    assert "corrections" in runs
    source = next(one for one in triples[tuple(right)]["sources"] if one["run"] != "corrections")
    record = client.get("/api/graph/record", params={"run": source["run"], "id": json.dumps(source["id"])}).json()
    assert record == {"text": TEXT, "topic": "", "triples": [right]}
    file = client.graphs.folder / "corrections.jsonl"
    (learnt,) = load_training(file)
    assert (learnt["input"], learnt["kg"]) == (TEXT, [right, other])
    assert client.get("/api/corrections").text == file.read_text(encoding="utf-8")
    assert client.post("/api/verdicts", json={"text": TEXT}).json() == {
        "right": [right, other],
        "wrong": [wrong],
        "complete": True,
    }
    assert client.get("/api/graph/names", params={"part": "明珠"}).json() == ["东方明珠"]
    missing = client.get("/api/graph", params={"name": "明珠"})
    assert missing.status_code == 400
    assert "东方明珠" in missing.json()["detail"]


def test_a_text_as_long_as_the_flag_says_is_taken_however_it_is_escaped(opened, tmp_path):
    longest = 300_000
    triple = ["东方明珠", "位于", "上海市"]
    with serving(opened, tmp_path, text=longest) as (app, *_), TestClient(app, base_url=BASE) as client:

        def post(path, text, **more):
            body = json.dumps({"text": text, **more})  # 12 bytes a character
            return client.post(path, content=body, headers={"Content-Type": "application/json"})

        text, quoted = "😀" * longest, ["位于', '高度"]  # which is refused once the text is taken
        answer = post("/api/extract", text, relations=quoted)
        assert (answer.status_code, "quotes" in answer.text) == (400, True), answer.text
        answer = post("/api/extract", text + "😀", relations=quoted)
        assert (answer.status_code, "--max_text" in answer.text) == (413, True), answer.text
        assert post("/api/graph/records", text, triples=[triple]).json()["added"] == 1
        said = [{"verdict": "accept", "triple": triple}]
        assert post("/api/corrections", text, relations=["位于"], triples=said).status_code == 200
        assert post("/api/verdicts", text).json()["right"] == [triple]


def test_the_graph_can_be_had_in_every_form(client):
    forms = client.get("/api/options").json()["formats"]
    assert client.get(f"/api/graph/files/{forms[0]}").status_code == 400
    client.post("/api/graph/records", json={"text": TEXT, "triples": [["东方明珠", "位于", "上海市"]]})
    for form in forms:
        answer = client.get(f"/api/graph/files/{form}")
        assert answer.status_code == 200, form
        assert len(answer.content) > 20
    assert client.get("/api/graph/stats").json()["triples"] == 1


def test_a_model_that_fails_is_said_and_waits_for_nobody(opened, tmp_path):
    with serving((opened[0], None, opened[2]), tmp_path) as (app, model, *_), TestClient(app, base_url=BASE) as client:
        answer = client.post("/api/extract", json=QUESTION)
        assert answer.status_code == 503, answer.text
        assert "failed" in answer.json()["detail"]
        assert client.get("/api/health").status_code == 503
    assert not model.server.thread.is_alive()


def test_the_engine_batch_gives_the_same_answers_whole(opened, random_base, tmp_path):
    found = []
    for number, one in enumerate((opened, open_plan(random_base, "--engine", "batch"))):
        with serving(one, tmp_path / str(number)) as (app, *_), TestClient(app, base_url=BASE) as client:
            streamed = events(client.post("/api/extract", json=QUESTION, headers={"Accept": "text/event-stream"}).text)
            found.append(streamed[-1][1] | {"seconds": 0})
    assert found[0] == found[1]
    assert [name for name, _ in streamed] == ["start", "text", "triples", "part", "done"]


@pytest.fixture(scope="module")
def prefix(random_base, tmp_path_factory):
    """The folder of a prefix of random values for the random base."""
    folder, (family, _, _) = tmp_path_factory.mktemp("prefix") / "global_step-3", find_family(random_base)
    kind = Kind(4, False)
    torch.manual_seed(0)
    model = load_with_prefix(
        random_base, family, kind, Precision("float32", 16), "cpu", load_codec(random_base, family)
    )
    folder.mkdir()
    save_prefix(model.eval(), random_base, kind, folder)
    return folder


def test_a_prefix_of_ptuning_is_served(random_base, prefix, tmp_path):
    flags = ["--ptuning_dir", prefix, "--model_name_or_path", random_base, "--constrain", "text"]
    opened = open_flags(*flags, "--max_src_len", "250", "--max_new_tokens", "24")
    plan, _, window = opened
    assert (window, plan.engine, plan.serving.rules.max_new_tokens) == (250, "batch", 24)
    record = {**RECORD, "input": TEXT * 9}  # in several parts
    (alone,) = [extract(plan, record, window)]
    with serving(opened, tmp_path) as (app, *_), TestClient(app, base_url=BASE) as client:
        found = client.post("/api/extract", json=QUESTION | {"text": record["input"]}).json()
        assert client.get("/api/health").json()["model"].endswith("/global_step-3")
    assert found["output"] == alone.output
    assert found["triples"]
    assert found["parts"] > 1
    base, *_ = open_plan(random_base, "--max_new_tokens", "24")
    assert extract(base, record, window).output != alone.output


def test_a_text_can_be_asked_several_times_and_its_triples_have_their_share_of_the_votes(random_base, tmp_path):
    opened = open_plan(random_base, "--votes", "2", "--min_votes", "1")
    with serving(opened, tmp_path) as (app, *_), TestClient(app, base_url=BASE) as client:
        found = client.post("/api/extract", json=QUESTION).json()
        streamed = events(client.post("/api/extract", json=QUESTION, headers={"Accept": "text/event-stream"}).text)
    assert found["parts"] == 2  # both orders of the two relations
    assert {one["confidence"] for one in found["triples"]} <= {0.5, 1.0}
    assert found["triples"]
    assert {data["part"] for name, data in streamed if name == "text"} == {0, 1}
    assert {**streamed[-1][1], "seconds": 0} == {**found, "seconds": 0}


def test_a_drawn_answer_depends_on_its_question_alone(random_base, tmp_path):
    opened = open_plan(random_base, "--do_sample", constrained=False)

    def answers(name, *texts):
        with serving(opened, tmp_path / name) as (app, *_), TestClient(app, base_url=BASE) as client:
            return [client.post("/api/extract", json={**QUESTION, "text": text}).json()["output"] for text in texts]

    first, *others = answers("one", TEXT, TEXT * 2, TEXT)
    assert answers("two", TEXT * 2, TEXT) == [others[0], first]
    assert others[1] == first != others[0]


def test_single_answers_belong_to_the_run_that_those_of_jobs_belong_to(tmp_path):
    adapter = tmp_path / "lora" / "checkpoint-3"
    plan = SimpleNamespace(serving=SimpleNamespace(base="/models/gemma", adapter=adapter, prefix=None))
    run = {"base": "/models/gemma", "adapter": str(adapter)}
    (tmp_path / "predictions.run.json").write_text(json.dumps(run), encoding="utf-8")
    assert run_name(plan) == find_run(tmp_path / "predictions.json").name == "gemma + lora/checkpoint-3"


def test_questions_are_taken_in_turn_and_those_of_files_last_and_never_in_all_places(opened, tmp_path):
    with serving(opened, tmp_path, rows=2) as (_, model, *_):
        server, (question,) = model.server, ask_record(model.plan, RECORD, model.window)
        for name, count, background in (("file", 3, True), ("long", 3, False), ("short", 1, False)):
            server.ask([question._replace(text=name)] * count, print, background)
        taken = []
        while found := server._take(1, False):
            (number,) = found
            taken.append(server.running[number][0].questions[0].text)
            if taken[-1] != "file":
                server.running.pop(number)
        assert taken == ["long", "short", "long", "long", "file"]  # the other place is kept for who asks next
