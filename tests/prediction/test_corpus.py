"""A corpus: documents in, triples with their places out, nothing asked twice, whatever breaks it off."""

import json
import os
import tracemalloc
from collections import Counter
from types import SimpleNamespace

import pytest
from helpers import ROOT, python, rows
from helpers_prediction import RECORDS, corpus_flags, interrupted_at

import extract
from common.errors import UserError
from data.documents import Document
from data.sources import read_corpus
from decoding import batch_engine
from decoding.answers import Failure
from kg import graph
from kg.queries import find_entities, neighbours
from kg.store import open_graph
from kg.wordings import ask_for
from prediction import texts, whole_corpus
from prediction.answered import count_failed
from prediction.corpus import Corpus, answer_corpus, gather
from prediction.texts import Window, keep_answers, make_row

SENTENCES = [record["input"] for record in RECORDS]
LONG = "\n\n".join(SENTENCES[:6])


def flags(folder, output, *more, **values):
    return corpus_flags(
        folder, output, *more, **{"max_new_tokens": 8, "window": 400, "batch_size": 2, "shard_size": 3, **values}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine documents of several kinds: a long one, a twin, one that is none, an empty one."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "a.txt").write_text(SENTENCES[0], encoding="utf-8")
    (folder / "b.txt").write_text(LONG, encoding="utf-8")
    (folder / "c.txt").write_bytes(b"\0")
    (folder / "d.md").write_bytes(SENTENCES[7].encode("gb18030"))
    (folder / "e.html").write_text(f"<p>{SENTENCES[0]}</p>", encoding="utf-8")  # the text of a.txt
    (folder / "f.txt").write_text(" \n", encoding="utf-8")
    lines = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(SENTENCES[8:11]))
    (folder / "g.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The file of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out.jsonl"
    extract.main(flags(folder, out))
    return out


def test_each_document_is_a_line_with_windows_that_have_their_places(folder, whole, tmp_path, capsys):
    extract.main(flags(folder, tmp_path / "out.jsonl"))
    said, made = capsys.readouterr().err, rows(whole)
    assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
    assert [row["id"] for row in made] == [
        *("a.txt", "b.txt", "c.txt", "d.md", "e.html", "f.txt"),
        *("g.jsonl:1", "g.jsonl:2", "g.jsonl:3"),
    ]
    by_name = {row["id"]: row for row in made}
    long = by_name["b.txt"]
    assert len(long["windows"]) > 2
    places = [window["place"] for window in long["windows"]]
    asked = [long["text"][start:end] for start, end in places]
    assert all(part and part == part.strip() for part in asked)
    covered = {at for start, end in places for at in range(start, end)}
    assert all(at in covered for at, letter in enumerate(long["text"]) if letter.strip())
    assert by_name["c.txt"]["reason"] == "holds NUL characters: no text"
    assert "windows" not in by_name["c.txt"]
    assert by_name["d.md"]["encoding"] == "gb18030"
    assert by_name["e.html"]["same_as"] == "a.txt"
    assert by_name["e.html"]["windows"] == by_name["a.txt"]["windows"]
    assert by_name["f.txt"]["windows"] == []
    assert by_name["g.jsonl:2"]["own_id"] == 1
    assert "resume" not in said
    run = json.loads((whole.parent / "out.run.json").read_text())
    assert run["results"]["documents"] == 9
    assert sorted(path.name for path in whole.parent.iterdir()) == ["out.jsonl", "out.run.json"]


def test_a_triple_stands_once_with_its_places_in_the_document():
    text = "前言。钟楼位于旧城。钟楼高四十米，位于旧城。"
    cut = [Window((3, 10), "建筑", 0), Window((3, 22), "建筑", 1), Window((0, 3), "", None, "too long")]
    instruction = ask_for(["位于", "高度"])
    answers = [
        {"output": "(钟楼,位于,旧城)", "finish_reason": "eos", "confidence": [0.5]},
        {
            "output": "(钟楼,高度,四十米),(钟楼,位于,旧城),(钟楼,位于,新城)",
            "finish_reason": "loop",
            "confidence": [0.7, 0.9, 1],
        },
    ]
    row = make_row(Document("a", "a", text), cut, [one | {"instruction": instruction} for one in answers], {1: "why"})
    first, second, third = row["triples"]
    assert first == {
        **{"triple": ["钟楼", "位于", "旧城"], "window": 0, "confidence": 0.9},
        **{"head_place": [3, 5], "tail_place": [7, 9]},
    }
    assert text[slice(*second["tail_place"])] == "四十米"
    assert third["tail_place"] is None
    assert [window.get("reason") for window in row["windows"]] == [None, "why", "too long"]


def test_a_row_with_a_window_that_failed_is_completed_to_what_it_would_have_been():
    text, instruction = "钟楼高四十米。钟楼位于旧城。钟楼高四十米，位于旧城。", ask_for(["位于", "高度"])
    document, cut = Document("a", "a", text), [Window((0, 7), "", 0), Window((7, 14), "", 1), Window((14, 27), "", 2)]
    outputs = "(钟楼,高度,四十米)", "(钟楼,位于,旧城)", "(钟楼,位于,旧城),(钟楼,高度,四十米)"
    chances = [0.4], [0.8], [0.7, 0.6]
    records = [{"instruction": instruction, "input": text[slice(*window.place)]} for window in cut]
    answers = [
        {**record, "output": output, "finish_reason": "eos", "confidence": sure}
        for record, output, sure in zip(records, outputs, chances, strict=True)
    ]
    whole = make_row(document, cut, answers, {})
    for failed in range(3):
        missing = [*answers]
        missing[failed] = {**records[failed], "output": "", "finish_reason": "error"}
        partly = make_row(document, cut, missing, {failed: "why"})
        assert count_failed(partly) == 1
        kept = keep_answers(records, [document], [cut], [json.loads(json.dumps(partly))])
        assert sorted(kept) == [number for number in range(3) if number != failed]
        assert make_row(document, cut, [kept.get(number, answers[number]) for number in range(3)], {}) == whole


def test_a_corpus_has_drafts_and_no_line_for_each_shard(tmp_path, capsys, monkeypatch):
    asked, answer = [], texts.answer_questions
    monkeypatch.setattr(texts, "answer_questions", lambda *args, **more: asked.append(args[5]) or answer(*args, **more))
    (tmp_path / "a.txt").write_text(SENTENCES[0], encoding="utf-8")
    extract.main(flags(tmp_path / "a.txt", tmp_path / "out.jsonl", engine="fast", drafts=3))
    assert [rules.drafts for rules in asked] == [3]
    told = capsys.readouterr().err
    assert "drafts: 3 tokens at most" in told
    assert "tokens a step" not in told


def test_killed_at_12_random_moments_the_file_is_the_same(folder, whole, tmp_path):
    out, environment = tmp_path / "out.jsonl", {**os.environ, "OMP_NUM_THREADS": "1"}
    done = python(ROOT / "tests" / "kill_often.py", 12, 5, 1, out, *flags(folder, None), env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split("with ")[1].split()[0]) > 3
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.run.json"]


def test_nothing_that_was_answered_is_asked_again(folder, whole, tmp_path, monkeypatch):
    out, asked = tmp_path / "out.jsonl", []
    generate, calls = interrupted_at(4)

    def noting(*arguments):
        made = generate(*arguments)
        asked.extend(map(tuple, arguments[2]))
        return made

    monkeypatch.setattr(batch_engine, "generate", noting)
    with pytest.raises(KeyboardInterrupt):
        extract.main(flags(folder, out))
    assert len(calls) == 4
    assert (tmp_path / "out.jsonl.partial").is_file()
    with pytest.raises(UserError, match="unfinished predictions of another command .*max_new_tokens: 8 there, 9 now"):
        extract.main(flags(folder, out, max_new_tokens=9))
    extract.main(flags(folder, out))
    assert out.read_bytes() == whole.read_bytes()
    assert len(asked) == len(set(asked))  # each prompt once in all, the twin's too
    monkeypatch.setattr(batch_engine, "generate", lambda *_: pytest.fail("asked again"))
    extract.main(flags(folder, out))  # of a file that is whole
    assert out.read_bytes() == whole.read_bytes()


def test_only_documents_that_changed_are_asked_again(folder, tmp_path, monkeypatch, capsys):
    out, docs = tmp_path / "out.jsonl", tmp_path / "docs"
    docs.mkdir()
    for number, text in enumerate(SENTENCES[:6]):
        (docs / f"{number}.txt").write_text(text, encoding="utf-8")
    generate, calls = interrupted_at(3)
    monkeypatch.setattr(batch_engine, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        extract.main(flags(docs, out, shard_size=2))
    (docs / "3.txt").write_text(SENTENCES[8], encoding="utf-8")
    extract.main(flags(docs, out, shard_size=2))
    assert [row["text"] for row in rows(out)] == [*SENTENCES[:3], SENTENCES[8], *SENTENCES[4:6]]
    assert len(calls) == 5  # two shards, the interrupted one, and of the second run the changed one and the last
    assert "resume: 3 of 6 documents were answered before" in capsys.readouterr().err


def failing(number, asked):
    """`batch_engine.generate`, whose answer of this number has failed; `asked` gets all prompts."""
    real = batch_engine.generate

    def generate(*arguments):
        made = real(*arguments)
        for at, prompt in enumerate(arguments[2]):
            asked.append(tuple(prompt))
            if len(asked) == number:
                made[at] = Failure("a card fell out")
        return made

    return generate


@pytest.mark.parametrize("number", [1, 3])
def test_windows_that_failed_are_asked_again_and_no_others(folder, whole, tmp_path, monkeypatch, capsys, number):
    out, first, second = tmp_path / "out.jsonl", [], []
    with monkeypatch.context() as patch:
        patch.setattr(batch_engine, "generate", failing(number, first))
        extract.main(flags(folder, out))
    failed = [window for row in rows(out) if "same_as" not in row for window in row.get("windows", ())]
    failed = [window for window in failed if "reason" in window]
    assert [window["reason"] for window in failed] == ["a card fell out"]
    assert "asks about them again" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(batch_engine, "generate", failing(0, second))
        extract.main(flags(folder, out))
    assert second == [first[number - 1]]
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.run.json"]


def test_a_window_that_fails_again_costs_no_other_and_a_kill_in_between_asks_nothing_twice(
    folder, whole, tmp_path, monkeypatch
):
    out, asked = tmp_path / "out.jsonl", []
    with monkeypatch.context() as patch:
        patch.setattr(batch_engine, "generate", failing(2, asked))
        extract.main(flags(folder, out))
    with monkeypatch.context() as patch:
        patch.setattr(batch_engine, "generate", failing(len(asked) + 1, asked))
        extract.main(flags(folder, out))
        assert asked[-1] == asked[1]
        assert len(asked) == len(set(asked)) + 1
        made = out.read_bytes()
        patch.setattr(whole_corpus, "write_output", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract.main(flags(folder, out))
        assert out.read_bytes() == made
    with monkeypatch.context() as patch:
        patch.setattr(batch_engine, "generate", lambda *_: pytest.fail("asked again"))
        extract.main(flags(folder, out))
    assert out.read_bytes() == whole.read_bytes()


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_documents_that_are_added_to_a_finished_corpus_are_all_that_is_asked(folder, tmp_path, monkeypatch, capsys):
    out, docs, asked = tmp_path / "out.jsonl", tmp_path / "docs", []
    docs.mkdir()
    for number, text in enumerate(SENTENCES[:4], start=1):
        (docs / f"{number}.txt").write_text(text, encoding="utf-8")
    extract.main(flags(docs, out))
    before = {row["text"]: row["triples"] for row in rows(out)}
    (docs / "0.txt").write_text(SENTENCES[4], encoding="utf-8")
    (docs / "2.txt").unlink()
    capsys.readouterr()
    monkeypatch.setattr(batch_engine, "generate", failing(0, asked))
    extract.main(flags(docs, out, shard_size=2))
    assert len(asked) == 1
    assert "resume: 3 of 4 documents were answered before" in capsys.readouterr().err
    made = rows(out)
    assert [row["id"] for row in made] == ["0.txt", "1.txt", "3.txt", "4.txt"]
    assert all(row["triples"] == before[row["text"]] for row in made[1:])
    extract.main(flags(docs, out, "--overwrite_output_file", max_new_tokens=6))  # other answers: none is taken over
    assert len(asked) == 5


def test_a_graph_is_made_of_the_rows_and_a_broken_build_asks_nothing_again(folder, tmp_path, monkeypatch):
    out, store = tmp_path / "out.jsonl", tmp_path / "graph"
    triple = {"triple": ["钟楼", "位于", "旧城"], "window": 0, "head_place": None, "tail_place": None}
    real = whole_corpus.gather

    def with_a_triple(*arguments):  # for the golden base says none
        for row in real(*arguments):
            yield {**row, "triples": [triple]} if row["id"] == "a.txt" else row

    with monkeypatch.context() as patch:
        patch.setattr(graph, "build", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract.main(flags(folder, out, store=store))
    assert not store.exists()
    with monkeypatch.context() as patch:
        patch.setattr(batch_engine, "generate", lambda *_: pytest.fail("asked again"))
        patch.setattr(whole_corpus, "gather", with_a_triple)
        extract.main(flags(folder, out, store=store))
    assert out.read_bytes().count(b"\n") == 9
    assert len(list(read_corpus(out))) == 8  # but for the one that could not be read
    opened, _ = open_graph(store)
    found, _ = neighbours(opened, find_entities(opened, "钟楼"), 1, 10)
    assert len(found) == 1


def test_a_topic_is_chosen_for_each_window_and_decides_what_is_asked(tmp_path):
    out, docs = tmp_path / "out.jsonl", tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text(
        "鸭嘴兽属于单孔目，靠产卵繁殖。" * 3 + "\n" + "勾股定理是一条几何定理。" * 6, encoding="utf-8"
    )
    extract.main(flags(docs, out, relations=None, cate="auto", window=370, max_new_tokens=2))
    (row,) = rows(out)
    assert {window["cate"] for window in row["windows"]} == {"生物", "自然科学"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"input": None}, "--input is missing"),
        ({"relations": None}, "give either --relations .* or --cate"),
        ({"relations": "，,"}, "no relation is asked for"),
        ({"relations": None, "cate": "菜谱"}, "--cate 菜谱: no topic of .*expected auto, 建筑"),
        ({"store": str(ROOT / "README.md")}, "--store .*README.md: is a file, expected the folder of a graph"),
        ({"workers": 2}, "--workers without --ray"),
        ({"text": "钟楼位于旧城。"}, "--text and --input do not go together"),
        ({"ray": "auto", "device": "cuda:1"}, "Ray hands out the GPUs"),
    ],
)
def test_flags_that_do_not_go_together_are_named(folder, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        extract.main(flags(more.pop("input", folder), tmp_path / "out.jsonl", **more))


def test_help_shows_the_flags_of_a_corpus_and_of_one_sentence(capsys):
    with pytest.raises(SystemExit):
        extract.main(["--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--text ", "--wording ", "--input ", "--cate "))


def test_an_output_among_the_documents_and_a_folder_without_any_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="would be read as a document"):
        extract.main(flags(folder, folder / "out.jsonl"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.png").touch()
    with pytest.raises(UserError, match=r"no document in it; skipped: 1 files of other kinds \(1 .png\)"):
        extract.main(flags(tmp_path / "docs", tmp_path / "out.jsonl"))
    assert not list(tmp_path.glob("out.*"))


def test_memory_does_not_grow_with_the_documents(tmp_path):
    share = SimpleNamespace(count=1, tokens=1, seconds=0.0)

    def answer_all(shards):
        for shard in shards:
            yield shard, [{"windows": [], "triples": []} for _ in shard.asked], share

    def peak(count):
        documents = lambda: (Document(f"{n}", f"{n}", f"text {n % (count - 9)} " * 20) for n in range(count))  # noqa: E731
        corpus = Corpus(documents, count, str(tmp_path / f"{count}.jsonl"), None, 1, 100)
        tracemalloc.start()
        digests = answer_corpus(corpus, answer_all, Counter())
        made = sum("same_as" in row for row in gather(corpus.output, len(digests), Counter()))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert made == 9
        return found

    peak(200)
    assert peak(4000) < peak(400) + 200_000
