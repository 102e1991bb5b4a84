"""The bytes that each token stands for in a text."""

import re

from common.errors import UserError

BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # a token that is a byte
# Written and put together again before the bytes of a tokenizer are believed: scripts, blanks, rare characters.
PROBES = ("(阿尔夫达尔,人口,2,424人),(韦瓦克机场,位于,巴布亚)", "(Wewak Airport,located in,Wewak)\n", "(𠮷野家,号,犇)")


def token_bytes(codec) -> list[bytes | None]:
    """Of each id the bytes that it adds to a text; None for special tokens, and ids that stand for nothing.

    The blank that sentencepiece puts before a text is one of its first token's bytes. UserError for a tokenizer whose
    tokens put together are not the text.
    """
    tokenizer = codec.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        pieces = _backend_bytes(backend, set(tokenizer.all_special_ids))
    elif hasattr(tokenizer, "piece_bytes"):
        pieces = tokenizer.piece_bytes()
    else:
        pieces = []
    for probe in PROBES:
        ids = codec.text_ids(probe)
        spelt = b"".join((pieces[token] if token < len(pieces) else None) or b"" for token in ids)
        if spelt.strip() != codec.decode(ids).encode().strip():
            raise UserError(
                f"--constrain: this base's tokenizer ({type(tokenizer).__name__}) does not tell which bytes its tokens "
                "stand for; drop the flag"
            )
    return pieces


def _backend_bytes(backend, special: set[int]) -> list[bytes | None]:
    """Of a tokenizer of the package tokenizers."""
    names = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    by_character = _byte_characters() if "ByteLevel" in repr(backend.decoder) else None
    pieces: list[bytes | None] = [None] * (max(names.values()) + 1)
    for name, number in names.items():
        if number in special or (number in added and added[number].special):
            continue
        if by_character is None:
            byte = BYTE.fullmatch(name)
            pieces[number] = bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()
        elif number in added or any(character not in by_character for character in name):
            pieces[number] = name.encode()
        else:
            pieces[number] = bytes(by_character[character] for character in name)
    return pieces


def _byte_characters() -> dict[str, int]:
    """The characters that GPT-2's byte-level pieces are written in -> bytes: printable ones are themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}
