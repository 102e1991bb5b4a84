"""The page in a real browser: everything a person does on it, and that it asks no other host.

It needs Chromium (Debian: apt install chromium). SCREENSHOTS=docs/images ADAPTER=lora/quickstart-400 writes the
pictures of the documentation, by an adapter that has learnt something.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT
from helpers_web import TEXT, hold, listening, open_adapter, open_plan, serving, wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (Debian, Ubuntu: apt install chromium)", allow_module_level=True)
from playwright.sync_api import expect, sync_playwright  # noqa: E402

PICTURES, ADAPTER = os.environ.get("SCREENSHOTS"), os.environ.get("ADAPTER")
SHOWN = "东方明珠广播电视塔位于上海市浦东新区，高468米，1994年建成，由江欢成设计。"
SAMPLE = ROOT / "data" / "sample"
TOPICS = json.loads((SAMPLE / "relations.json").read_text(encoding="utf-8"))
HOSTILE = "<img src=x onerror=alert(1)>"
LONGEST = 60_000  # milliseconds that anything may take
expect.set_options(timeout=LONGEST)


@pytest.fixture(scope="module")
def address(random_base, tmp_path_factory):
    opened = open_plan(random_base)
    with serving(opened, tmp_path_factory.mktemp("web"), rows=2) as (app, model, *_):
        more = {"model": model, "held": False}  # held: answers go on only when they have been stopped
        hold(model.server, lambda asked, ids: place.held and len(ids) > 5 and not asked.stopped)
        with listening(app) as address:
            place = type("Address", (str,), more)(address)
            yield place


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=LONGEST)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.set_default_timeout(LONGEST)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    yield page
    assert not [url for url in asked if not url.startswith((f"{address}/", "blob:", "data:"))]
    assert not [one for one in wrong if "status of 4" not in one]  # what the server refuses is shown, too
    context.close()


def ask(page, text=TEXT, relations=("位于", "高度")):
    page.fill("#text", text)
    while page.locator('#chips [aria-pressed="true"]').count():
        page.locator('#chips [aria-pressed="true"]').first.click()
    page.fill("#free", "，".join(relations))
    page.click("#add")
    page.click("#go")


def test_a_question_shows_marks_triples_and_a_graph(page):
    ask(page)
    expect(page.locator("ul.triples li .verdicts").first).to_be_visible()
    assert page.locator("#marked mark").count() >= 1
    assert page.inner_text("#marked") == TEXT
    wait_until(lambda: int(page.get_attribute("#drawing", "data-edges") or 0) > 0)
    assert page.inner_text("#raw") or page.text_content("#raw").startswith("(")
    page.reload()  # and nothing is lost
    expect(page.locator("ul.triples li .verdicts").first).to_be_visible()
    assert page.inner_text("#marked") == TEXT


def test_the_language_can_be_changed(page):
    assert page.inner_text("#go") == "Extract"
    page.click("#language")
    assert page.inner_text("#go") == "抽取"
    page.reload()
    expect(page.locator("#go")).to_have_text("抽取")


def test_names_are_shown_as_text(page):
    ask(page, text=f"{HOSTILE}位于{HOSTILE}。", relations=("位于",))
    expect(page.locator("#stop")).to_be_disabled()
    assert page.inner_text("#marked") == f"{HOSTILE}位于{HOSTILE}。"
    assert page.locator("main img").count() == 0


def test_a_question_can_be_stopped(page, address, monkeypatch):
    monkeypatch.setattr(address, "held", True)
    ask(page, text=TEXT * 120)
    expect(page.locator("#stop")).to_be_enabled()
    page.wait_for_selector("#raw:not(:empty)")
    page.click("#stop")
    expect(page.locator("#progress")).to_have_text("stopped")
    wait_until(lambda: not address.model.server.state()["running"])
    expect(page.locator("#go")).to_be_enabled()


def test_verdicts_are_kept_and_seen_again(page):
    ask(page)
    first = page.locator("ul.triples li").first
    first.locator('[data-verdict="correct"]').click()
    page.locator(".edit input").nth(2).fill("上海市")
    page.keyboard.press("Enter")
    expect(page.locator("ul.triples li.correct").first).to_contain_text("上海市")
    page.get_by_role("button", name="The rest is right").click()
    expect(page.locator("#triples")).to_contain_text("corrections.jsonl")
    page.click("#keep")
    expect(page.locator("#triples")).to_contain_text("It is in the graph.")
    page.reload()
    expect(page.locator("ul.triples")).to_contain_text("上海市")
    page.click("#tab-graph")
    expect(page.locator("#map-note")).to_contain_text("entities")
    page.locator("#about .link", has_text="上海市").first.click()
    expect(page.locator(".source").first).to_contain_text(TEXT)
    page.locator(".source button").first.click()
    expect(page.locator(".source ul.triples li").first).to_be_visible()
    page.fill("#name", "没有这个名字")
    page.keyboard.press("Enter")
    expect(page.locator("#graph-error")).to_contain_text("没有这个名字")
    with page.expect_download() as download:
        page.click("#corrections")
    rows = [json.loads(line) for line in Path(download.value.path()).read_text(encoding="utf-8").splitlines()]
    assert any("上海市" in triple for triple in rows[0]["kg"])


def test_a_file_is_answered(page, tmp_path):
    records = [
        {"id": n, "instruction": "关系列表：['位于']", "input": TEXT, "kg": [["东方明珠", "位于", "上海市"]]}
        for n in range(3)
    ]
    file = tmp_path / "valid.json"
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    page.click("#tab-batch")
    page.set_input_files("#file", file)
    page.get_by_role("button", name="Upload").click()
    job = page.locator('.job[data-status="finished"]').first
    expect(job).to_be_visible()
    expect(job).to_contain_text("F1")
    with page.expect_download() as download:
        job.get_by_text("predictions").click()
    assert len(Path(download.value.path()).read_text(encoding="utf-8").splitlines()) == 3
    page.set_input_files("#file", {"name": "a.exe", "mimeType": "text/plain", "buffer": b"x"})
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#batch-error")).to_contain_text(".jsonl")


def test_it_fits_a_phone(browser, address):
    context = browser.new_context(locale="zh-CN", viewport={"width": 375, "height": 700}, has_touch=True)
    context.set_default_timeout(LONGEST)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    assert page.inner_text("#go") == "抽取"
    ask(page)
    expect(page.locator("ul.triples li .verdicts").first).to_be_visible()
    for tab in ("ask", "batch", "graph"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, tab
    page.click("#tab-ask")
    context.close()


def test_the_keyboard_is_enough(page):
    def focused(selector):
        return page.evaluate("one => document.activeElement.matches(one)", selector)

    def tab_to(selector):
        for _ in range(60):
            if focused(selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{selector} cannot be reached")

    tab_to("#text")
    page.keyboard.insert_text(TEXT)
    tab_to("#free")
    page.keyboard.insert_text("位于")
    page.keyboard.press("Enter")
    tab_to("#go")
    page.keyboard.press("Enter")
    expect(page.locator("ul.triples li .verdicts").first).to_be_visible()
    tab_to('[data-verdict="accept"]')
    page.keyboard.press("Enter")
    expect(page.locator("ul.triples li.accept").first).to_be_visible()
    page.locator("#tab-ask").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#batch")).to_be_visible()


def test_the_page_of_the_api_needs_nothing_from_elsewhere(page, address):
    page.goto(f"{address}/docs")
    card = page.locator("article", has_text="/api/health")
    card.get_by_role("button").click()
    expect(card.locator("pre")).to_contain_text("ready")
    assert re.search("/api/extract", page.inner_text("#paths"))


@pytest.mark.skipif(not PICTURES, reason="SCREENSHOTS names no folder for pictures")
def test_pictures_of_the_documentation(browser, tmp_path):
    def take(page, name, **more):
        page.wait_for_timeout(500)
        page.screenshot(path=Path(PICTURES) / f"{name}.png", **more)

    some = b"".join((SAMPLE / "valid_gold.json").read_bytes().splitlines(True)[:16])
    plan = open_adapter(ADAPTER)
    with serving(plan, tmp_path, rows=4, topics=TOPICS) as (app, *_), listening(app) as address:
        page = browser.new_context(locale="zh-CN", viewport={"width": 1180, "height": 800}).new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        page.select_option("#topic", "建筑")
        page.fill("#text", SHOWN)
        page.click("#go")
        page.wait_for_selector("#keep")
        take(page, "web-ask")
        page.click("#keep")
        page.click("#tab-batch")
        page.set_input_files("#file", {"name": "valid_gold.json", "mimeType": "text/plain", "buffer": some})
        page.locator("#upload button").click()
        page.wait_for_selector('.job[data-status="finished"]')
        page.locator(".job details summary").click()
        take(page, "web-batch")
        page.get_by_role("button", name="加入图谱").last.click()
        page.wait_for_timeout(2000)
        page.click("#tab-graph")
        page.locator("#about .link").first.click()
        take(page, "web-graph")
        page.set_viewport_size({"width": 390, "height": 780})
        page.click("#tab-ask")
        page.locator("#marked").scroll_into_view_if_needed()
        take(page, "web-phone")
