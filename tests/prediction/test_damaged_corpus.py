"""A corpus whose files something has cut or changed, or that another command would replace: no document is lost, and no
answer taken for another's.
"""

import json
import re
import shutil

import pytest
from helpers import rows
from helpers_prediction import RECORDS, corpus_flags

import extract
from common.errors import UserError
from common.files import write_rows
from common.manifest import run_file_of
from data.sources import read_corpus
from decoding import batch_engine
from prediction import whole_corpus


def flags(folder, output, **values):
    return corpus_flags(folder, output, **{"max_new_tokens": 4, "shard_size": 2, **values})


def interrupt(*_, **__):
    raise KeyboardInterrupt


def cut_row(part):
    """Without its last row."""
    return part[: part[:-1].rfind(b"\n") + 1]


DAMAGES = {  # what happens to a whole file -> the documents that are kept
    "cut": (lambda made: made[:-40], 2),
    "emptied": (lambda made: b"", 0),
    "lines between": (lambda made: made.replace(b"\n", b"\n\n"), 3),
    "no windows": (lambda made: made.replace(b'"windows": [', b'"windows": 7, "x": [', 1), 2),
    "no UTF-8": (lambda made: made.replace(b'"id"', b'"\xd6\xd0": 0, "id"', 1), 2),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with three documents, and what was made of them."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "docs").mkdir()
    for number, text in enumerate(record["input"] for record in RECORDS[:3]):
        (folder / "docs" / f"{number}.txt").write_text(text, encoding="utf-8")
    extract.main(flags(folder / "docs", folder / "out" / "out.jsonl"))
    return folder / "docs", folder / "out"


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_file_the_rows_that_are_whole_are_kept(three, tmp_path, capsys, damage):
    docs, made = three
    out, (change, kept) = tmp_path / "out.jsonl", DAMAGES[damage]
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    out.write_bytes(change(out.read_bytes()))
    shard_size = 2 if damage in ("cut", "emptied", "lines between") else 3  # what is changed within is a person's work
    extract.main(flags(docs, out, shard_size=shard_size))
    assert out.read_bytes() == (made / "out.jsonl").read_bytes()
    assert (f"resume: {kept} of 3 documents" in capsys.readouterr().err) is (kept > 0)


@pytest.mark.parametrize(
    ("damage", "named"),
    [(lambda part: b"", False), (lambda part: part[:9], False), (lambda part: part[:-40], True), (cut_row, True)],
)
def test_a_damaged_shard_is_asked_again_or_named_but_no_document_is_lost(three, tmp_path, monkeypatch, damage, named):
    docs, made = three
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts" / "000000.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(whole_corpus, "write_output", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract.main(flags(docs, out))
    part.write_bytes(damage(part.read_bytes()))
    if named:
        with pytest.raises(UserError, match="000000.jsonl: damaged; delete it"):
            extract.main(flags(docs, out))
        part.unlink()
    extract.main(flags(docs, out))
    assert out.read_bytes() == (made / "out.jsonl").read_bytes()


def test_another_output_with_the_same_stem_is_not_taken_for_this_one(three, tmp_path):
    docs, made = three
    out, other = tmp_path / "out.jsonl", tmp_path / "out.json"
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    extract.main(flags(docs, other, max_new_tokens=1))
    assert [run_file_of(file).name for file in (out, other)] == ["out.run.json", "out.json.run.json"]
    with pytest.raises(UserError, match=r"out.jsonl is there, .* \(max_new_tokens: 4 there, 1 now\)"):
        extract.main(flags(docs, out, max_new_tokens=1))
    extract.main(flags(docs, out))
    assert out.read_bytes() == (made / "out.jsonl").read_bytes()
    run_file_of(other).rename(run_file_of(out))  # as before there were two names, and the later run's was kept
    with pytest.raises(UserError, match="out.jsonl is there, .*nothing beside it, as out.jsonl.run.json, about how it"):
        extract.main(flags(docs, out, max_new_tokens=1))
    extract.main([*flags(docs, out, max_new_tokens=1), "--overwrite_output_file"])
    assert out.read_bytes() == other.read_bytes() != (made / "out.jsonl").read_bytes()


def test_killed_while_rows_are_replaced_no_older_run_stands_beside_them(three, tmp_path, monkeypatch):
    docs, made = three
    out = tmp_path / "out.jsonl"
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(whole_corpus.manifest, "write_run_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract.main([*flags(docs, out, max_new_tokens=1), "--overwrite_output_file"])
    (tmp_path / "out.jsonl.partial").unlink()  # to start over, with the first settings
    extract.main([*flags(docs, out), "--overwrite_output_file"])
    assert out.read_bytes() == (made / "out.jsonl").read_bytes()


def test_what_to_do_about_half_a_run_json_is_about_its_file(three, tmp_path, capsys):
    docs, made = three
    out, run = tmp_path / "out.jsonl", tmp_path / "out.run.json"
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    run.write_bytes(run.read_bytes()[:200])
    said = r"out.run.json:\d+: not JSON .*how .*out.jsonl was made: .*"
    with pytest.raises(UserError, match=rf"{said} give another --output_file, or --overwrite_output_file to replace"):
        extract.main(flags(docs, out))
    assert out.read_bytes() == (made / "out.jsonl").read_bytes()
    out.write_bytes(b"{}\n")
    capsys.readouterr()
    extract.main([*flags(docs, out), "--overwrite_output_file"])
    assert len(re.findall(rf"warning: .*{said} is replaced .--overwrite_output_file.\n", capsys.readouterr().err)) == 1
    assert out.read_bytes() == (made / "out.jsonl").read_bytes()
    assert json.loads(run.read_text())["output"] == "out.jsonl"
    run.write_bytes(run.read_bytes()[:200])
    out.unlink()
    extract.main(flags(docs, out))  # it is about nothing
    assert out.read_bytes() == (made / "out.jsonl").read_bytes()


OTHERS = {  # what differs -> what is said of it
    "max_new_tokens": (6, "max_new_tokens: 4 there, 6 now"),
    "relations": ("位于,别名", "what is asked: 已知候选的关系列表.* there, 已知候选的关系列表.* now"),
    "input": ("moved", "--input: .*docs there, .*moved now"),
    "encoding": ("gb18030", "encoding: None there, gb18030 now"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_finished_file_of_other_settings_or_documents_is_replaced_only_when_asked(tmp_path, monkeypatch, name):
    out, docs, asked, (value, said) = tmp_path / "out.jsonl", tmp_path / "docs", [], OTHERS[name]
    for folder in (docs, tmp_path / "moved"):
        folder.mkdir()
        (folder / "1.txt").write_text(RECORDS[0]["input"], encoding="gb18030" if name == "encoding" else "utf-8")
    extract.main(flags(docs, out, max_new_tokens=4))
    before = out.read_bytes()
    generate = batch_engine.generate
    monkeypatch.setattr(batch_engine, "generate", lambda *given: asked.append(1) or generate(*given))
    other = {"folder": docs, "output": out, "max_new_tokens": 4}
    other |= {"folder": tmp_path / value} if name == "input" else {name: value}
    with pytest.raises(UserError, match=f"out.jsonl is there, .*{said}.*another --output_file, or --overwrite_output"):
        extract.main(flags(**other))
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.run.json"]
    extract.main(flags(docs, out, max_new_tokens=4, shard_size=1))  # of which no answer depends
    assert not asked
    extract.main([*flags(**other), "--overwrite_output_file"])
    assert len(asked) == (name in ("max_new_tokens", "relations"))


CHANGES = {
    "no id": lambda row: row.pop("id"),
    "windows": lambda row: row.update(windows=7),
    "triples": lambda row: row.update(triples=7),
    "half a triple": lambda row: row.update(triples=[{"triple": ["钟楼", "位于"]}]),
    "a number": lambda row: row.update(triples=[{"triple": ["钟楼", "高度", 40]}]),
    "text": lambda row: row.update(text=7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_row_that_no_graph_can_be_made_of_is_named(three, tmp_path, change):
    file, (first, *others) = tmp_path / "out.jsonl", rows(three[1] / "out.jsonl")
    CHANGES[change](first)
    write_rows(file, [*others, first])
    with pytest.raises(UserError, match="out.jsonl:3: no row as src/extract.py writes it"):
        list(read_corpus(file))
    write_rows(file, others)
    assert len(list(read_corpus(file))) == 2
