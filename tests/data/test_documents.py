"""Documents of every kind become text; what cannot be read is said and stops nothing."""

import importlib.util
import io
import json
import zipfile
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from common.errors import UserError
from data import documents
from data.documents import Reading, find_encoding, read_documents, size_of

TEXT = "钟楼位于旧城，高四十米。\n它建于一九〇二年。"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    return tmp_path


def found(root, *how):
    return [(one.id, one.text, one.reason) for one in read_documents(root, *how)]


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-16"), ("utf-32", "utf-32"), ("gb18030", "gb18030")],
)
def test_encodings_are_recognised_and_said(folder, encoding, name):
    (folder / "a.txt").write_bytes(TEXT.replace("\n", "\r\n").encode(encoding))
    (one,) = read_documents(folder / "a.txt")
    assert one.text == TEXT
    assert one.encoding == name
    assert one.end == size_of(folder)


@pytest.mark.parametrize(
    ("text", "encoding"), [("鐘樓位於舊城，高四十米。" * 3, "big5"), ("café à côté, très élégant", "latin-1")]
)
def test_what_is_neither_utf8_nor_chinese_is_not_guessed(folder, text, encoding):
    (folder / "a.txt").write_bytes(text.encode(encoding))
    ((_, nothing, reason),) = found(folder)
    assert nothing == ""
    assert "neither UTF-8 nor GB18030" in reason
    assert found(folder, Reading(encoding=encoding)) == [("a.txt", text, "")]


@pytest.mark.parametrize(("mark", "encoding"), [("utf-8", "UTF8"), ("utf-16-le", "utf-16"), ("utf-16-be", "utf-16-be")])
def test_a_mark_at_the_beginning_is_no_part_of_a_text_whose_encoding_is_given(folder, mark, encoding):
    (folder / "a.txt").write_bytes("\ufeff钟楼".encode(mark))
    assert found(folder, Reading(encoding=encoding)) == [("a.txt", "钟楼", "")]


def test_an_encoding_is_found_across_blocks(folder, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK", 7)  # in the middle of characters
    (folder / "a.txt").write_bytes(TEXT.encode("gb18030"))
    (folder / "b.txt").write_bytes(TEXT.encode())
    assert find_encoding(folder / "a.txt") == "gb18030"
    assert find_encoding(folder / "b.txt") == "utf-8"


def test_a_folder_is_read_by_name_and_what_is_no_document_is_counted(folder):
    for name in ("b/2.md", "b/10.txt", "a.txt", ".hidden.txt", "c.TXT"):
        (folder / name).write_text(name, encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "README").write_text("x")
    skipped = Counter()
    assert [one.id for one in read_documents(folder, Reading(), skipped)] == ["a.txt", "b/10.txt", "b/2.md", "c.TXT"]
    assert skipped == {".png": 1, "README": 1}


def test_a_page_is_its_words_block_by_block(folder):
    page = (
        "<html><head><meta charset=gb2312><title>不</title></head><body><script>var 不 = 1</script><p>钟楼&#x4F4D;于"
        "<b>旧城</b>，\n高四十米。</p><ul><li>一<li>二</ul><nav>不</nav><div>三&lt;四</div></body></html>"
    )
    (folder / "a.html").write_bytes(page.encode("gb18030"))
    (one,) = read_documents(folder)
    assert one.text == "钟楼位于旧城， 高四十米。\n一\n二\n三<四"
    assert one.encoding == "gb18030"


def test_rows_of_files_are_documents(folder):
    lines = [{"id": "x", "input": "一"}, {"text": "二"}, {"title": "三"}, {"text": "\ud800"}]
    (folder / "a.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n[1]\n", encoding="utf-8"
    )
    (folder / "b" / "c.csv").write_bytes('id,正文\n7,"四\n五"\n8,六\n'.encode("gb18030"))
    (folder / "d.json").write_text('[{"text": "七"}]')
    table = pyarrow.table({"id": [1, 2], "content": ["八", None]})
    pyarrow.parquet.write_table(table, folder / "e.parquet")
    read = {one.id: one for one in read_documents(folder)}
    texts = {name: one.text for name, one in read.items() if not one.reason}
    assert texts == {
        "a.jsonl:1": "一",
        "a.jsonl:2": "二",
        "b/c.csv:3": "四\n五",
        "b/c.csv:4": "六",
        "d.json:1": "七",
        "e.parquet:1": "八",
    }
    assert [read[name].own for name in ("a.jsonl:1", "b/c.csv:4", "e.parquet:1")] == ["x", "8", 1]
    reasons = {name: one.reason for name, one in read.items() if one.reason}
    assert list(reasons) == ["a.jsonl:3", "a.jsonl:4", "a.jsonl:5", "a.jsonl:6", "e.parquet:2"]
    assert "found title; --text_field says which it is" in reasons["a.jsonl:3"]
    assert "half a surrogate pair" in reasons["a.jsonl:4"]
    assert "not JSON" in reasons["a.jsonl:5"]
    assert found(folder / "a.jsonl", Reading(text_field="title"))[2] == ("a.jsonl:3", "三", "")


def test_what_cannot_be_read_is_listed_and_stops_nothing(folder):
    (folder / "a.txt").write_bytes(b"\x00\x01\x02")
    (folder / "b.parquet").write_bytes(b"PAR1 no")
    (folder / "c.json").write_text("[{")
    (folder / "d.jsonl").write_text("")
    (folder / "e.txt").symlink_to(folder / "nowhere.txt")
    (folder / "f.txt").write_text("好")
    *bad, good = found(folder)
    assert good == ("f.txt", "好", "")
    assert [name for name, _, reason in bad if reason] == ["a.txt", "b.parquet", "c.json", "d.jsonl", "e.txt"]
    assert "No such file" in bad[-1][2]


def test_a_table_that_is_not_in_the_encoding_that_is_given_says_so(folder):
    (folder / "a.csv").write_bytes("text\n一\n\n二\n".encode("gb18030") + b"\xff\n")
    *_, last = read_documents(folder, Reading("gb18030"))
    assert (last.text, last.reason) == ("", "not gb18030 (behind line 0)")


def test_word_and_pdf_are_read_by_markitdown_or_the_reason_says_how_to_get_it(folder):
    words = io.BytesIO()
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    with zipfile.ZipFile(words, "w") as file:
        file.writestr(
            "[Content_Types].xml",
            '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override '
            f'PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        )
        file.writestr(
            "_rels/.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
            'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
            'Target="word/document.xml"/></Relationships>',
        )
        paragraphs = "".join(f"<w:p><w:r><w:t>{line}</w:t></w:r></w:p>" for line in TEXT.split("\n"))
        file.writestr("word/document.xml", f"<w:document {space}><w:body>{paragraphs}</w:body></w:document>")
    (folder / "a.docx").write_bytes(words.getvalue())
    (folder / "b.docx").write_bytes(b"no zip")
    (_, text, reason), (_, nothing, other) = found(folder)
    assert (nothing, other) == ("", "no docx file: it lacks the mark PK at its beginning")
    if importlib.util.find_spec("markitdown"):
        assert text.split() == TEXT.split()
    else:
        assert reason == "this kind of file needs the package markitdown: pip install -r requirements-documents.txt"


def test_an_input_that_is_nothing_or_of_another_kind_is_an_error(folder):
    with pytest.raises(UserError, match=r"--input .*nowhere: no such file or folder"):
        found(folder / "nowhere")
    (folder / "a.mp3").touch()
    with pytest.raises(UserError, match="cannot read files of this kind; expected one of .txt"):
        found(folder / "a.mp3")
