"""A tokenizer and the rules its family adds to it: text to ids and back, exactly as published adapters saw it."""

import codecs
import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from threading import Lock

from transformers import PreTrainedTokenizerFast

from data.prompts import Piece
from tokens.batches import make_collator
from tokens.rows import Limits, encode_row

BROKEN = "\ufffd"  # what stands for a byte that is of no character
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a token that is a byte
TURN = Lock()  # a tokenizer keeps how it was last told to take special tokens: of two threads one would tell the other
codecs.register_error("each byte", lambda error: (BROKEN * (error.end - error.start), error.end))


@dataclass(frozen=True)
class Codec:
    """A tokenizer and the rules its family adds to it."""

    tokenizer: PreTrainedTokenizerFast
    prefix_ids: tuple[int, ...]  # what every sequence starts with, e.g. <s>
    eos_id: int  # ends every answer; generation stops here
    pad_id: int
    specials: dict[str, int]  # strings that are one token where a template writes them
    strips_spaces: bool = False  # spaces beside a special token vanish, as in the slow tokenizers of 2023
    suffix_ids: tuple[int, ...] = ()  # what every prompt ends with, e.g. [gMASK] <sop>
    space_byte: int | None = None  # id of <0x20>, where characters that no piece holds are spelt in bytes
    whole: bool = False  # a prompt is encoded as one text, special tokens and all, as apply_chat_template does it
    context: int | None = None  # positions that the model has; None: beyond config.json's limit it only gets worse
    added: tuple[str, ...] = ()  # tokens beyond the base's own tokenizer (tokens.extending)
    pieces_before: dict[int, tuple[int, ...]] = field(default_factory=dict)  # of those without a row in the base
    blank: str = ""  # what stands before every text, where the tokenizer does not put it there by itself

    @property
    def bos_id(self) -> int | None:
        """What starts a sequence, or with a suffix, which ends with it, the answer."""
        return (*self.suffix_ids[-1:], *self.prefix_ids, None)[0]

    def text_ids(self, text: str, first: bool = True) -> list[int]:
        """The ids of a text by itself; what it says never becomes a special token. `first`: it begins a stretch."""
        text = self.blank + text if first and text else text
        with TURN:
            return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def encode(self, pieces: list[Piece]) -> list[int]:
        """Token ids of a prompt given in pieces; what a record says never becomes a special token."""
        return [*self.prefix_ids, *self._ids_of(pieces), *self.suffix_ids]

    def encode_pair(self, pieces: list[Piece], answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt, as `encode` gives them, and of the answer behind it, without eos."""
        start, last = self.encode(pieces), Piece(answer, from_template=False)
        if not self.suffix_ids:  # one text, cut between the two
            ids = self.encode([*pieces, last])
            if ids[: len(start)] == start:
                return start, ids[len(start) :]
        return start, self._ids_of([last])  # else a token would span both: the prompt stays as prediction sees it

    def _ids_of(self, pieces: list[Piece]) -> list[int]:
        special = find_specials(tuple(self.specials))
        if self.whole and not any(special.search(text) for text, from_template in pieces if not from_template):
            with TURN:
                return self.tokenizer("".join(piece.text for piece in pieces), add_special_tokens=False)["input_ids"]
        ids, parts = [], self._parts(pieces)
        for index, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
                continue
            if self.strips_spaces and index > 0:
                part = part.lstrip()
            if self.strips_spaces and index < len(parts) - 1:
                part = part.rstrip()
            if part:
                ids += self.text_ids(part)
        return ids

    def decode(self, ids) -> str:
        """The text of an answer's ids, special tokens left out, nothing cleaned up; bytes as sentencepiece reads them.

        transformers makes `BROKEN` of all neighbouring bytes, readable ones among them, when one of them is broken, and
        takes a byte that is a space, as the first of all, for the space that a text begins with.
        """
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if self.space_byte is not None and (BROKEN in text or list(ids[:1]) == [self.space_byte]):
            return spell_bytes(self.tokenizer, ids)
        return text

    def row(self, template: dict, record: dict, limits: Limits, train_on_inputs: bool = False) -> dict:
        """A record as a training row: `Row` by names, and whatever else `collator` wants of it."""
        return encode_row(self, template, record, limits, train_on_inputs)._asdict()

    def collator(self, width_of: int = 1):
        """A function from rows to the model's arguments, padded to a multiple of `width_of`."""
        return make_collator(self.pad_id, width_of)

    def _parts(self, pieces: list[Piece]) -> list[str | int]:
        """The pieces as stretches of text (neighbours joined) and ids of special tokens."""
        special = find_specials(tuple(self.specials))
        parts = [""]
        for text, from_template in pieces:
            position = 0
            for match in special.finditer(text) if from_template else ():
                parts[-1] += text[position : match.start()]
                parts += [self.specials[match[0]], ""]
                position = match.end()
            parts[-1] += text[position:]
        return parts


@lru_cache(maxsize=64)
def find_specials(texts: tuple[str, ...]) -> re.Pattern:
    """A pattern that finds any of the texts, of two that begin alike the longer."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def why_too_long(prompt: list[int], context: int | None) -> str | None:
    """Why no answer to a prompt (token ids) is possible in a base of `context` positions (None: no limit is known);
    None: it is.
    """
    if context is None or len(prompt) < context:
        return None
    return f"its prompt of {len(prompt)} tokens leaves no room for an answer in the base's context of {context}"


def spell_bytes(tokenizer: PreTrainedTokenizerFast, ids) -> str:
    """The text of ids, special tokens left out, in which each byte that is of no character is one `BROKEN`."""
    decoder = tokenizer.backend_tokenizer.decoder
    tokens = [token for token in tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True) if token is not None]
    spelt = ["▁"] if tokens[:1] == ["<0x20>"] and not decoder.decode(["▁"]) else []  # it takes one space off
    for are_bytes, run in groupby(tokens, lambda token: BYTE.fullmatch(token) is not None):
        if not are_bytes:
            spelt += run
            continue
        for character in bytes(int(token[3:5], 16) for token in run).decode(errors="each byte"):
            spelt += [BROKEN] if character == BROKEN else map("<0x{:02X}>".format, character.encode())
    return decoder.decode(spelt)
