"""CPM-Bee's tokenizer: the longest entry of a word list that fits, and a markup for special tokens.

In a text `<` opens a special token that ends at the next `>`; a `<` that is meant as such is written `<<` (`escape`).
What the word list lacks is not lost: a run of unknown characters, or a special token such as `<mask_1>`, becomes its
family's token (`<unk>`, `<mask>`) with a number, its sub id, that counts the family's members within one example.
"""

import re
from pathlib import Path
from typing import NamedTuple

VOCABULARY = "vocab.txt"
RENAMED = {"</n>": "\n", "</_>": " "}  # how the file writes what would break its lines
UNKNOWN = "<unk>"
NEEDED = ("<pad>", UNKNOWN, "<s>", "</s>", "<root>", "<ans>")

_MARKUP = re.compile(r"<<|<[^<>]*>|<")

Families = dict[int, dict[str, int]]  # id of a family's token -> its members in an example -> their sub ids


class Token(NamedTuple):
    text: str  # a special token with its brackets; of others what they stand for, `<` once
    is_special: bool
    is_unknown: bool


class CpmBeeTokenizer:
    """A vocabulary: `words` in the order of their ids."""

    def __init__(self, words: list[str]):
        self.words = [RENAMED.get(word, word) for word in words]
        self.ids = {word: number for number, word in enumerate(self.words)}
        missing = [name for name in NEEDED if name not in self.ids]
        if missing or len(self.ids) < len(self.words):
            fault = f"lacks {', '.join(missing)}" if missing else "names an entry twice"
            raise ValueError(f"the vocabulary {fault}; it is none of CPM-Bee")
        self.pad_id, self.unknown_id, self.bos_id, self.eos_id, self.root_id, self.answer_id = map(self.ids.get, NEEDED)
        plain = [word for word in self.words if word and not is_special(word)]
        self._plain = frozenset(plain)
        lengths: dict[str, set[int]] = {}  # of the entries that begin with a character
        for word in plain:
            lengths.setdefault(word[0], set()).add(len(word))
        self._lengths = {first: sorted(sizes, reverse=True) for first, sizes in lengths.items()}

    def __len__(self) -> int:
        return len(self.words)

    def tokenize(self, text: str) -> list[Token]:
        """The tokens of a text in markup; ValueError for a `<` that opens no special token and is not doubled."""
        tokens, plain, done = [], [], 0
        for match in _MARKUP.finditer(text):
            plain.append(text[done : match.start()])
            done = match.end()
            if match[0] == "<<":
                plain.append("<")
            elif match[0] == "<":
                near = text[match.start() : match.start() + 20]
                raise ValueError(f"{near!r} opens a special token that never ends; a plain < is written <<")
            else:
                tokens += [*self._split("".join(plain)), Token(match[0], True, False)]
                plain = []
        return tokens + self._split("".join([*plain, text[done:]]))

    def _split(self, text: str) -> list[Token]:
        """The tokens of a stretch without markup: the longest entry each, and runs where none begins."""
        tokens, position, unknown = [], 0, 0  # `unknown`: where the run of unknown characters before here begins
        while position < len(text):
            pieces = (text[position : position + length] for length in self._lengths.get(text[position], ()))
            piece = next((piece for piece in pieces if piece in self._plain), None)
            if piece is None:
                position += 1
                continue
            if unknown < position:
                tokens.append(Token(text[unknown:position], False, True))
            tokens.append(Token(piece, False, False))
            position += len(piece)
            unknown = position
        if unknown < position:
            tokens.append(Token(text[unknown:], False, True))
        return tokens

    def encode(self, text: str, families: Families) -> list[tuple[int, int]]:
        """(id, sub id) of every token of a text in markup.

        `families` is the example's and gets what is new. ValueError also for a special token of no known family.
        """
        pairs = []
        for token in self.tokenize(text):
            if not token.is_unknown and token.text in self.ids:
                pairs.append((self.ids[token.text], 0))
                continue
            family = UNKNOWN if token.is_unknown else f"<{token.text[1:-1].split('_')[0]}>"
            if family not in self.ids:
                raise ValueError(f"{token.text} is no special token of CPM-Bee; a plain < is written <<")
            members = families.setdefault(self.ids[family], {})
            pairs.append((self.ids[family], members.setdefault(token.text, len(members))))
        return pairs

    def decode(self, ids: list[int], names: dict[int, str]) -> str:
        """The text, in markup, of ids; `names` says what an example's own ids stand for, before the vocabulary."""
        texts = (names[number] if number in names else self.words[number] for number in ids)
        return "".join(text if is_special(text) else escape(text) for text in texts)


def load_tokenizer(folder: str | Path) -> CpmBeeTokenizer:
    """The tokenizer of a checkpoint folder, from its vocab.txt; OSError or ValueError when that cannot be one.

    Only "\\n" ends a line there: entries hold spaces and other line breaks.
    """
    file = Path(folder) / VOCABULARY
    try:
        return CpmBeeTokenizer(file.read_bytes().decode("utf-8").removesuffix("\n").split("\n"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def is_special(text: str) -> bool:
    return text.startswith("<") and text.endswith(">")


def escape(text: str) -> str:
    """A plain text as markup that means just it."""
    return text.replace("<", "<<")


def unescape(text: str) -> str:
    """The plain text of what `escape` or `decode` gave; special tokens stay as they are written."""
    return text.replace("<<", "<")
