"""Values out of a text that holds JSON or Python literals, whole, broken or cut off, with prose between them.

Pure functions of the standard library. Nothing is evaluated, nothing raises, and the time is linear in the text: every
place is read once, and a quote that nothing closes is looked for once a line.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

CLOSES = {'"': '"', "'": "'", "“": "”", "‘": "’"}
BRACKETS = {"}": "{", "]": "[", ")": "("}
NOTHING = {"null", "None", "none", "undefined", "NaN", "nan", "NAN", "nil"}
DEEPEST = 30  # brackets within brackets; what lies deeper is not read

_QUOTE = "[\"'“‘]"
_OPENS = re.compile(rf"[\[({{]\s*{_QUOTE}|\{{\s*[A-Za-z_]\w{{0,40}}\s*[:：]")  # where a value may begin in prose
_BETWEEN = re.compile(r"(?:[\s,，;；、]|//[^\n]*)*")
_HAS_QUOTE = re.compile(_QUOTE)
_SPACE, _COLON = re.compile(r"\s*"), re.compile(r"\s*(?:[:：]|=>)")
_NAME = re.compile(r"([^\W\d]\w{0,80})\s*[:：]")  # a key without quotes
_NUMBER = r"[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?%?"
_BARE = re.compile(rf"({_NUMBER}|true|false|True|False|{'|'.join(NOTHING)})(?=\s*(?:[,，}}\])]|//)|[^\S\n]*\n)")
_WORD = re.compile(r"""[^\s,，{}\[\]"'“”‘’](?:[^\n,，{}\[\]"'“”‘’]*[^\s,，{}\[\]"'“”‘’])?(?=\s*[,，}\n])""")
_GOES_ON = re.compile(rf"[\]}}]|\{{\s*{_QUOTE}")  # where reading may go on behind what cannot be read
_GOES_ON_IN_TUPLE = re.compile(rf"[\])}}]|\{{\s*{_QUOTE}")

# A quote closes its string only before what may follow a string there, so that those within a string need no escape.
_NEXT = rf"(?:{_QUOTE}|[{{\[(}}\])\d+\-]|[A-Za-z_]\w{{0,40}}\s*[,:\]}})]|//|\.\.\.|…|\Z)"
_KEY = rf"\s*{_QUOTE}[^\"'“”‘’\n]{{1,40}}[\"'”’]\s*[:：]"
_ENDS_KEY = re.compile(r"\s*(?:[:：}]|=>|[,，])")
_ENDS_VALUE = re.compile(rf"[^\S\n]*(?:\n|\Z)|\s*(?:[}}\])]|//|[,，]\s*{_NEXT})|{_KEY}")
_STOPS = {close: re.compile(rf"\\.|\n|{close}") for close in CLOSES.values()}

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8})|([^\n]))")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"} | dict(zip("/\\\"'", "/\\\"'", strict=True))


class Node(NamedTuple):
    """An object, list, tuple or set. A value is a Node, a str (numbers and booleans as they were spelt), or None."""

    items: list[tuple]  # (key, value); the keys of what is no object are None
    is_object: bool
    start: int  # where it stands in the text
    end: int
    whole: bool  # false: cut off, or something in it could not be read

    @property
    def values(self) -> list:
        return [value for _, value in self.items]


class Values(NamedTuple):
    nodes: list[Node]
    halves: list[str]  # the pieces that were cut off or could not be read
    clean: bool  # nothing was guessed but, perhaps, an end that is cut off


@dataclass
class _Frame:
    """A bracket that is open yet."""

    opener: str
    start: int
    items: list[tuple] = field(default_factory=list)
    key: str | None = None
    broken: bool = False

    def add(self, value) -> None:
        self.items.append((self.key, value))
        self.key = None


def read_values(text: str) -> Values:
    """Every value of a text that is in brackets and begins with a quote or a name, and what was dropped beside them."""
    nodes, halves, clean, at, unclosed = [], [], True, 0, {}
    while found := _OPENS.search(text, at):
        start = found.start()
        while start > at and found.start() - start < DEEPEST and text[start - 1] in "[({ \n\t":
            start -= 1
        node, dropped, is_clean, at = _read_node(text, _SPACE.match(text, start).end(), unclosed)
        nodes.append(node)
        halves += dropped
        clean = clean and is_clean
    return Values(nodes, halves, clean)


def read_value(text: str, start: int) -> Node:
    """The value whose bracket opens at `start`."""
    return _read_node(text, start, {})[0]


def _read_node(text: str, start: int, unclosed: dict) -> tuple[Node, list[str], bool, int]:
    """The value whose bracket opens at `start`, its pieces that were dropped, whether it is clean, its end."""
    frames, halves, clean, at = [], [], True, start
    while True:
        frame = frames[-1] if frames else None
        at = (_SPACE if frame and frame.key is not None else _BETWEEN).match(text, at).end()
        char = text[at : at + 1]
        if not char:  # cut off
            if _is_half(frame):
                halves.append(text[frame.start :])
            return _close(frames, 0, at, finished=False), halves, clean, at
        if char in "[({" and len(frames) < DEEPEST:
            frames.append(_Frame(char, at))
            at += 1
            continue
        if char in BRACKETS:
            at += 1
            fitting = [number for number, frame in enumerate(frames) if frame.opener == BRACKETS[char]]
            fits = bool(fitting) and fitting[-1] == len(frames) - 1 and not frame.broken
            clean = clean and fits and bool(_HAS_QUOTE.search(text, frame.start, at) or not frame.items)
            if fitting:
                halves += [text[f.start : at] for f in frames[fitting[-1] :] if f.broken and _is_half(f)]
                node = _close(frames, fitting[-1], at)
                if node:
                    return node, halves, clean, at
            continue
        if char in ",，":  # a key without a value
            frame.add(None)
            continue
        is_key = frame.opener == "{" and frame.key is None
        end = _read_scalar(text, at, frame, is_key, unclosed)
        if end is None:
            frame.broken = True
            is_cut = text[at] in CLOSES and unclosed[CLOSES[text[at]], is_key] == len(text)
            clean = clean and is_cut and CLOSES[text[at]] not in text[at + 1 :]
            at, depth = (len(text), len(frames)) if is_cut else _go_on(text, at + 1, frames)
            if depth < len(frames):
                halves.append(text[frame.start : at].rstrip())
                node = _close(frames, depth, at, finished=False)
                if node:
                    return node, halves, clean, at
            continue
        clean = clean and (is_key or text[at] not in CLOSES or text[at] not in _ESCAPE.sub("", text[at + 1 : end - 1]))
        at = end


def _go_on(text: str, at: int, frames: list[_Frame]) -> tuple[int, int]:
    """Where reading goes on behind what cannot be read, and how many of the brackets are still open there."""
    pattern = _GOES_ON_IN_TUPLE if any(frame.opener == "(" for frame in frames) else _GOES_ON
    found = pattern.search(text, at)
    if not found or found[0][0] != "{":
        return found.start() if found else len(text), len(frames)
    # the next object begins where this one should have ended
    return found.start(), next((n + 1 for n in range(len(frames) - 1, -1, -1) if frames[n].opener != "{"), 0)


def _read_scalar(text: str, at: int, frame: _Frame, is_key: bool, unclosed: dict) -> int | None:
    """Put the key or scalar that stands at `at` into the frame; where it ends, None if nothing can be read there."""
    if text[at] in CLOSES:
        end = _end_of_string(text, at, is_key, unclosed)
        if end is None:
            return None
        value = unescape(text[at + 1 : end - 1])
        colon = _COLON.match(text, end) if is_key else None
        if colon:
            frame.key = value
            return colon.end()
        frame.add(value)
        return end
    name = _NAME.match(text, at) if is_key else None
    if name:
        frame.key = name[1]
        return name.end()
    bare = _BARE.match(text, at) or (_WORD.match(text, at) if frame.key is not None else None)
    if bare:
        frame.add(None if bare[0] in NOTHING else bare[0])
        return bare.end()
    return None


def _end_of_string(text: str, at: int, is_key: bool, unclosed: dict) -> int | None:
    """Where the string that opens at `at` has been closed, on its line; None: nothing closes it."""
    close, ends = CLOSES[text[at]], _ENDS_KEY if is_key else _ENDS_VALUE
    if at < unclosed.get((close, is_key), 0):
        return None
    line_end = len(text)
    for stop in _STOPS[close].finditer(text, at + 1):
        if stop[0] == "\n":
            line_end = stop.start()
            break
        if stop[0] == close and ends.match(text, stop.end()):
            return stop.end()
    unclosed[close, is_key] = line_end
    return None


def _is_half(frame: _Frame) -> bool:
    """Whether an open bracket holds the beginning of something, and not only whole values in brackets."""
    if any(not isinstance(value, Node) for _, value in frame.items):
        return True
    return frame.key is not None or (frame.broken and (frame.opener == "{" or not frame.items))


def _close(frames: list[_Frame], depth: int, end: int, finished: bool = True) -> Node | None:
    """Close all frames but `depth` of them, each into the one around it; the outermost one's Node if none is left."""
    node = None
    while len(frames) > depth:
        frame = frames.pop()
        is_object = frame.opener == "{" and (not frame.items or any(key is not None for key, _ in frame.items))
        whole = finished and not frame.broken and frame.key is None
        node = Node(frame.items, is_object, frame.start, end, whole)
        if frames:
            frames[-1].add(node)
    return None if frames else node


def unescape(text: str) -> str:
    """A string with the escapes of JSON and Python undone; unknown ones stay, half a surrogate pair becomes U+FFFD."""
    if "\\" not in text:
        return text
    text = _ESCAPE.sub(_escaped, text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _escaped(match: re.Match) -> str:
    code = match[1] or match[2] or match[3]
    if code:
        return chr(int(code, 16)) if int(code, 16) < 0x110000 else match[0]
    return _ESCAPED.get(match[4], match[0])
