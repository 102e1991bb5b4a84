"""ChatGLM-6B's tokenizer: sentencepiece over ice_text.model, with line breaks, tabs and runs of spaces as pieces."""

import json
import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor

LONGEST_BLANK = 80  # spaces that one piece can stand for; the shortest run with a piece of its own is 2
WRITTEN = re.compile(r"<n>|<\|tab\|>|<\|blank_([2-9]|[1-7]\d|80)\|>")  # what else looks so is text


class ChatGLMTokenizer:
    """Text to ids and back, for a folder with ice_text.model.

    Nothing that a text says becomes a special token: `<sop>` or `[MASK]` in it are characters. (The published
    tokenizer splits at five of them, so that a text could move the mask and the positions of the model.) The
    exceptions are `<n>`, `<|tab|>` and `<|blank_5|>`, which the vocabulary itself holds as text.
    """

    def __init__(self, folder: str | Path):
        self.pieces = SentencePieceProcessor(model_file=str(Path(folder) / "ice_text.model"))
        config = Path(folder) / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        # The first release kept 20,000 ids in front of the text's for images, and its files do not say so.
        self.offset = settings.get("num_image_tokens", 20000)
        self.remove_space = bool(settings.get("remove_space"))
        self.do_lower_case = bool(settings.get("do_lower_case"))
        self.unk_token_id, self.end_token_id, self.pad_token_id = self.convert_tokens_to_ids(["<unk>", "</s>", "<pad>"])
        self.mask_token_id, self.gmask_token_id = self.convert_tokens_to_ids(["[MASK]", "[gMASK]"])
        self.bos_token_id, self.eos_token_id = self.convert_tokens_to_ids(["<sop>", "<eop>"])

    def __len__(self) -> int:
        return self.pieces.get_piece_size() + self.offset

    def __call__(self, text: str, add_special_tokens: bool = True, **_) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text, add_special_tokens=add_special_tokens)}

    def encode(self, text: str, answer: str | None = None, add_special_tokens: bool = True, max_length=None):
        """Ids of a text + [gMASK] <sop>, and of an answer + <eop> behind them; max_length cuts the text alone."""
        ids = [piece + self.offset for piece in self.pieces.encode(self._written(text))]
        if not add_special_tokens:
            return ids[:max_length]
        if max_length is not None:
            ids = ids[: max(0, max_length - 2)]
        ids += [self.gmask_token_id, self.bos_token_id]
        return ids if answer is None else ids + self.encode(answer, add_special_tokens=False) + [self.eos_token_id]

    def tokenize(self, text: str) -> list[str]:
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def decode(self, ids, **_) -> str:
        """The text of ids. Padding and special tokens leave no trace, bytes that are no UTF-8 become U+FFFD, and ids
        without a piece (the embedding has more rows than there are pieces) become nothing. Nothing is cleaned up.
        """
        parts, run = [], []
        for number in ids:
            number = int(number)
            if number < self.offset:
                parts += [self.pieces.decode(run), f"<image_{number}>"]
                run = []
            elif number != self.pad_token_id and number < len(self):
                run.append(number - self.offset)
        text = "".join([*parts, self.pieces.decode(run)])
        return _read(text)

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self.pieces.piece_to_id(token) + self.offset for token in tokens]

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces.id_to_piece(number - self.offset) for number in ids]

    def piece_bytes(self) -> list[bytes | None]:
        """Of each id the bytes that it adds to a text; None for what leaves no trace."""
        pieces, found = self.pieces, [None] * len(self)
        for piece in range(pieces.get_piece_size()):
            if pieces.is_byte(piece):
                found[piece + self.offset] = bytes([int(pieces.id_to_piece(piece)[3:5], 16)])
            elif not (pieces.is_control(piece) or pieces.is_unknown(piece)):
                found[piece + self.offset] = _read(pieces.id_to_piece(piece).replace("▁", " ")).encode()
        return found

    def _written(self, text: str) -> str:
        """The text with its line breaks, tabs and runs of spaces as the vocabulary writes them."""
        if self.remove_space:
            text = " ".join(text.split())
        if self.do_lower_case:
            text = text.lower()
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        return re.sub(" {2,}", lambda run: _blanks(len(run[0])), text)


def _read(text: str) -> str:
    """The text with line breaks, tabs and runs of spaces for what the vocabulary writes."""
    return WRITTEN.sub(lambda found: " " * int(found[1]) if found[1] else "\n" if found[0] == "<n>" else "\t", text)


def _blanks(count: int) -> str:
    """`count` spaces as the longest pieces that fit: 163 are 80, 80 and 3; 81 are 80 and a plain space."""
    whole, rest = divmod(count, LONGEST_BLANK)
    return f"<|blank_{LONGEST_BLANK}|>" * whole + (f"<|blank_{rest}|>" if rest > 1 else " " * rest)
