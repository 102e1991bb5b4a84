"""Documents of every kind that people have, one after the other as text: files, rows of files, folders of them.

Nothing here keeps more than one document, and of a folder the names in it. A document that cannot be read is one with
a reason instead of a text.
"""

import codecs
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError, reason_of
from data.records import TEXT_NAMES, stream_records

BLOCK = 2**20  # bytes that are decoded at a time
MARKS = {  # the beginnings that name an encoding
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, which is its beginning
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
COMMON = 0.9  # of what a file says beyond ASCII, the least share of GB2312 that lets it pass for Chinese
INSTALL = "pip install -r requirements-documents.txt"


class Document(NamedTuple):
    """A text and where it comes from."""

    id: str  # path, and of a file of rows the line, a/b.jsonl:3
    path: str  # within the folder that was given
    text: str
    line: int | None = None  # of a file that holds several, from 1
    own: object = None  # the id that a row gives itself
    encoding: str = ""
    reason: str = ""  # why it could not be read; then the text is empty
    end: int = 0  # bytes of all files up to here, of a file of rows about so many


class Reading(NamedTuple):
    """How files are read: the flags --encoding and --text_field; None: as each file has it."""

    encoding: str | None = None
    text_field: str | None = None


class Row(NamedTuple):
    """What a reader finds in a file, once or often."""

    text: str
    line: int | None = None
    own: object = None
    encoding: str = ""
    reason: str = ""
    size: int = 0  # bytes of a row of several, about


AS_FOUND = Reading()


def read_documents(root: str | Path, how: Reading = AS_FOUND, skipped: Counter | None = None) -> Iterator[Document]:
    """The documents of a file or a folder, in the order of their paths, and of their rows.

    `skipped` counts the files of other kinds in a folder, by their suffixes. UserError where there is nothing at
    `root`, or a file of another kind.
    """
    root, before = Path(root), 0
    check_input(root)
    for path in walk(root):
        kind = path.suffix.lower()
        if kind not in READERS:
            if skipped is not None:
                skipped[kind or path.name] += 1
            continue
        name = path.name if path == root else path.relative_to(root).as_posix()
        size, place = path.stat().st_size if path.is_file() else 0, 0
        for row in _rows_of(path, how):
            place += size if row.line is None else row.size
            name_of_row = name if row.line is None else f"{name}:{row.line}"
            yield Document(name_of_row, name, row.text, *row[1:-1], before + min(place, size))
        before += size


def check_input(root: Path) -> None:
    """UserError for a path that leads to no document."""
    if root.is_dir():
        return
    kinds = " ".join(READERS)
    if not root.is_file():
        raise UserError(f"--input {root}: no such file or folder; give a document ({kinds}) or a folder of them")
    if root.suffix.lower() not in READERS:
        raise UserError(f"--input {root}: cannot read files of this kind; expected one of {kinds}, or a folder of them")


def check_encoding(name: str | None) -> None:
    """UserError for an --encoding that Python has none of, for texts."""
    try:
        "a".encode(name or "utf-8")
    except (LookupError, UnicodeError):
        raise UserError(f"--encoding {name}: no such encoding; give utf-8, gb18030, big5, utf-16, …") from None


def walk(root: Path) -> Iterator[Path]:
    """The files of a folder and of those in it, by name; hidden ones, and links to folders, are left out."""
    if not root.is_dir():
        yield root
        return
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(root / entry.name)
        elif not entry.is_dir():
            yield root / entry.name


def size_of(root: str | Path) -> int:
    """Bytes of all files that `read_documents` would read."""
    return sum(path.stat().st_size for path in walk(Path(root)) if path.suffix.lower() in READERS and path.is_file())


def _rows_of(path: Path, how: Reading) -> Iterator[Row]:
    """What the reader of a file finds; what it raises, and what no model could read, as a reason."""
    try:
        for row in READERS[path.suffix.lower()](path, how):
            yield row if row.reason else _check(row)
    except Exception as error:  # noqa: BLE001 - whatever a file makes its reader raise, the others can be read
        reason = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else reason_of(error)
        yield Row("", reason=reason.removeprefix(f"{path}: "))


def _check(row: Row) -> Row:
    if "\0" in row.text:
        return row._replace(text="", reason="holds NUL characters: no text")
    try:
        row.text.encode()
    except UnicodeEncodeError:
        return row._replace(text="", reason="holds half a surrogate pair, which is no character")
    return row


def find_encoding(path: Path, forced: str | None = None, declared: str | None = None) -> str:
    """The encoding of a file: `forced` (with the mark that its first bytes may be, which is no part of the text), the
    one that its first bytes name, UTF-8 if it is that, `declared` if it is that, else GB18030 if it is that and nearly
    all characters are common ones. UserError if none.
    """
    with open(path, "rb") as file:
        first = file.read(4)
    marked = next((name for mark, name in MARKS.items() if first.startswith(mark)), None)
    if forced:
        name = codecs.lookup(forced).name
        return marked if marked and (marked.startswith(name) or name.startswith(marked)) else forced
    if marked:
        return marked
    for name in filter(None, ("utf-8", declared, "gb18030")):
        counts: Counter = Counter()
        if _decodes(path, name, counts) and (name != "gb18030" or counts["common"] >= COMMON * counts["all"]):
            return name
    raise UserError("neither UTF-8 nor GB18030, and no mark at its beginning; --encoding NAME says what it is")


def _decodes(path: Path, name: str, counts: Counter) -> bool:
    """Whether a file is in an encoding; counts its characters beyond ASCII, and those of them in GB2312."""
    try:
        decoder = codecs.getincrementaldecoder(name)()
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                _count(decoder.decode(block), counts)
        _count(decoder.decode(b"", True), counts)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def _count(text: str, counts: Counter) -> None:
    beyond = "".join(letter for letter in text if letter > "\x7f") if not text.isascii() else ""
    counts["all"] += len(beyond)
    counts["common"] += len(beyond.encode("gb2312", "ignore")) // 2


def _read_text(path: Path, encoding: str) -> str:
    try:
        return path.read_bytes().decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"not {encoding} (byte {error.start})") from None


def _plain(path: Path, how: Reading) -> Iterator[Row]:
    encoding = find_encoding(path, how.encoding)
    yield Row(_read_text(path, encoding), encoding=encoding.removesuffix("-sig"))


def _html(path: Path, how: Reading) -> Iterator[Row]:
    with open(path, "rb") as file:
        declared = _declared(file.read(2**12))
    encoding = find_encoding(path, how.encoding, declared)
    page = _Page()
    page.feed(_read_text(path, encoding))
    page.close()
    yield Row(page.text(), encoding=encoding.removesuffix("-sig"))


def _declared(start: bytes) -> str | None:
    """The encoding that the beginning of a page names: <meta charset=gbk>."""
    _, found, rest = start.lower().partition(b"charset=")
    name = rest.lstrip(b"\"' ")[:20].split(b'"')[0].split(b"'")[0].split(b">")[0].split(b";")[0].split(b" ")[0]
    name = name.decode("ascii", "ignore").rstrip("/") if found else ""
    return {"gb2312": "gb18030", "gbk": "gb18030"}.get(name, name) or None


class _Page(HTMLParser):
    """The words of a page, block by block."""

    NO_TEXT = frozenset(("script", "style", "template", "noscript", "head", "svg", "nav"))
    IN_LINE = re.compile(
        "a|abbr|b|bdi|bdo|big|cite|code|data|del|dfn|em|font|i|ins|kbd|mark|q|rp|rt|ruby|s|samp|small|span|strong|sub|"
        "sup|time|tt|u|var|wbr"
    )

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.hidden = [], []  # `hidden`: the open tags whose words are no text

    def handle_starttag(self, tag, attrs):
        if tag == "body":  # of a page that does not close its head
            self.hidden = []
        if tag in self.NO_TEXT:
            self.hidden.append(tag)
        if not self.IN_LINE.fullmatch(tag):
            self.parts.append("\n")

    def handle_endtag(self, tag):
        if tag in self.hidden:
            del self.hidden[len(self.hidden) - 1 - self.hidden[::-1].index(tag) :]
        if not self.IN_LINE.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(" ".join(data.split("\n")))

    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self.parts).split("\n"))
        return "\n".join(line for line in lines if line)


def _records(path: Path, how: Reading) -> Iterator[Row]:
    """The rows of JSON lines, or of one JSON list; those that are none with their reason."""
    bad: list[str] = []

    def refused() -> Iterator[Row]:
        for text in bad:
            line, _, reason = text.removeprefix(f"{path}:").partition(": ")
            yield Row("", int(line), reason=reason)
        bad.clear()

    for line, record in stream_records(path, bad):
        yield from refused()
        yield _row(record, line, "utf-8", how)
    yield from refused()


def _csv(path: Path, how: Reading) -> Iterator[Row]:
    encoding = find_encoding(path, how.encoding)
    with open(path, encoding=encoding, newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            for record in rows:
                yield _row(record, rows.line_num, encoding.removesuffix("-sig"), how)
        except UnicodeDecodeError:  # its place is that in a block, not in the file
            raise UserError(f"not {encoding} (behind line {rows.line_num})") from None


def _parquet(path: Path, how: Reading) -> Iterator[Row]:
    import datasets  # takes seconds, and only these files need it

    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    for number, record in enumerate(rows, 1):
        yield _row(record, number, "", how)


def _row(record: dict, line: int, encoding: str, how: Reading) -> Row:
    """A row of a table: its text is that of --text_field, else of the first of TEXT_NAMES that it has."""
    name = how.text_field or next((name for name in TEXT_NAMES if name in record), None)
    text, own = record.get(name), record.get("id")
    own = own if isinstance(own, int | str | None) else str(own)
    size = len(json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace")) + 1
    if isinstance(text, str):
        return Row(text, line, own, encoding, size=size)
    found = f"found {', '.join(map(str, record)) or 'nothing'}"
    wanted = name if how.text_field else " or ".join(TEXT_NAMES)
    advice = "" if how.text_field else "; --text_field says which it is"
    return Row("", line, own, encoding, f"no text in the field {wanted}; {found:.200}{advice}", size)


csv.field_size_limit(2**31 - 1)


@lru_cache(maxsize=1)
def _converter():
    try:
        from markitdown import MarkItDown
    except ImportError:
        raise UserError(f"this kind of file needs the package markitdown: {INSTALL}") from None
    return MarkItDown(enable_plugins=False)


def _office(path: Path, how: Reading) -> Iterator[Row]:
    begins = b"%PDF" if path.suffix.lower() == ".pdf" else b"PK"  # markitdown would take another file for plain text
    with open(path, "rb") as file:
        if begins not in file.read(2**10):
            raise UserError(f"no {path.suffix.lower()[1:]} file: it lacks the mark {begins.decode()} at its beginning")
    text = _converter().convert_local(str(path)).text_content
    if not text.strip():
        raise UserError("no text in it: of pages that are pictures, text recognition has to make it first")
    yield Row(text, encoding="")


READERS = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), _plain),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _html),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _records),
    **dict.fromkeys((".csv", ".tsv"), _csv),
    ".parquet": _parquet,
    **dict.fromkeys((".pdf", ".docx", ".pptx", ".xlsx", ".epub"), _office),
}
