"""Who is let in: names, origins, tokens; what every answer says; nothing of another host on the page."""

import json
import re

import pytest
from fastapi.testclient import TestClient
from helpers import ROOT, python
from helpers_web import BASE, QUESTION, open_plan, serving

from common.errors import UserError
from utils.args_serve import parse_serve, parse_text
from web.guard import BODY

STATIC = ROOT / "src" / "web" / "static"
TOKEN = "0123456789abcdef-secret"


@pytest.fixture(scope="module")
def opened(random_base):
    return open_plan(random_base)


@pytest.fixture
def app(opened, tmp_path):
    with serving(opened, tmp_path) as (app, *_):
        yield app


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "10.0.0.5:7860"}, 421),
        ({"Host": "[::"}, 421),
        ({"Host": "a:99999999"}, 421),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[x"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Content-Length": "99999999999999999999"}, 413),
        ({"Content-Length": "-1"}, 400),
    ],
)
def test_only_known_names_and_this_page_are_answered(app, headers, status):
    with TestClient(app, base_url=BASE) as client:
        answer = client.get("/api/health", headers=headers)
        assert answer.status_code == status
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_longer_than_it_says_is_cut_off(app):
    def pieces():
        for _ in range(20):
            yield b" " * (BODY // 10)

    with TestClient(app, base_url=BASE) as client:
        answer = client.post("/api/extract", content=pieces(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413


def test_with_a_token_nothing_is_seen_without(opened, tmp_path):
    with (
        serving(opened, tmp_path, token=TOKEN, host="0.0.0.0") as (app, *_),
        TestClient(app, base_url="http://10.0.0.5") as c,
    ):
        for path in ("/", "/api/health", "/static/main.js", "/openapi.json", "/docs"):
            assert c.get(path).status_code == 401
        assert c.get("/", params={"token": "wrong"}).status_code == 401
        assert c.get("/api/health", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert c.get("/api/health", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert c.get("/api/health", headers={"Host": "evil.example"}).status_code == 421
        first = c.get("/", params={"token": TOKEN}, follow_redirects=False)
        assert first.headers["location"] == "/"
        assert "httponly" in first.headers["set-cookie"].lower()
        assert c.get("/api/health").status_code == 200  # by the cookie


def test_no_path_of_the_machine_is_reached(app):
    with TestClient(app, base_url=BASE) as client:
        for path in (
            *("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/%2e%2e/serve.py", "/static//etc/passwd"),
            *("/static/vendor/../../store.py", "/api/jobs/../../etc", "/api/jobs/..%2f..%2fetc/files/predictions"),
        ):
            assert client.get(path).status_code in (404, 405), path
        assert client.get("/static/vendor/cytoscape.min.js").status_code == 200


def test_the_page_is_small_its_own_and_shows_everything_as_text(app):
    with TestClient(app, base_url=BASE) as client:
        page = client.get("/").text
        links = re.findall(r'(?:src|href)="([^"]+)"', page)
        files = {
            *(link for link in links if link.startswith("/static/")),
            *(f"/static/{f.name}" for f in STATIC.glob("*.js")),
        }
        size = len(page) + sum(len(client.get(file).content) for file in files)
        assert size <= 600_000, size
    code = "".join(file.read_text(encoding="utf-8") for file in STATIC.iterdir())
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", code)
    assert set(re.findall(r"https?://[^\s\"'`]+", code)) <= {"http://www.w3.org/2000/svg"}
    assert "style=" not in page


def test_every_word_is_there_in_both_languages(app):
    words = (STATIC / "words.js").read_text(encoding="utf-8")
    keys = set(re.findall(r'(\w+): \["', words))
    code = "".join(
        (STATIC / name).read_text(encoding="utf-8")
        for name in ("index.html", "ask.js", "batch.js", "graph.js", "judge.js")
    )
    used = set(re.findall(r'data-(?:say|hint)="(\w+)"', code)) | set(re.findall(r'say\("(\w+)"', code))
    assert used <= keys, used - keys
    for chinese in re.findall(r'\w+: \["[^"]*", "([^"]*)"\]', words):
        assert re.search(r"[\u4e00-\u9fff]|English", chinese), chinese


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--host", "0.0.0.0"], "--token"),
        (["--host", "example.org"], "--token"),
        (["--token", "short"], "--token"),
        (["--allow_host", "a"], "--allow_host"),
        (["--port", "70000"], "--port"),
        (["--ptuning_dir", "a", "--lora_weights", "b"], "--lora_weights and --ptuning_dir a"),
        (["--ptuning_dir", "a", "--fp8"], "--fp8 and --ptuning_dir a"),
        (["--ptuning_dir", "a", "--window", "300"], "--max_src_len"),
        (["--max_src_len", "300"], "--max_src_len without --ptuning_dir"),
        (["--retry_length"], "--retry_length"),
    ],
)
def test_flags_of_the_server_that_cannot_be(flags, says):
    with pytest.raises(UserError, match=says):
        parse_serve(flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--text", "甲"], "--relations"),
        (["--relations", "位于"], "--text"),
        (["--text", "甲", "--relations", "'"], "--relations"),
    ],
)
def test_flags_of_one_sentence_that_cannot_be(flags, says):
    with pytest.raises(UserError, match=says):
        parse_text(flags)


def test_one_sentence_in_a_pipe_is_json_lines(random_base):
    asked = ["--text", QUESTION["text"], "--relations", "位于，高度", "--constrain", "text", "--max_new_tokens", "40"]
    run = python("src/extract.py", "--model_name_or_path", random_base, *asked)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert rows
    assert {row["relation"] for row in rows} <= {"位于", "高度"}
