"""Tokens added to a base's tokenizer: one id for a word that was several pieces."""

import copy
import json
from dataclasses import replace

from tokenizers import normalizers
from transformers import AddedToken, PreTrainedTokenizerFast

from common.errors import UserError
from tokens.codec import Codec

# How sentencepiece's blank before a text is written in tokenizer.json; here it would come behind each added token too.
PREPENDED = [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]


def extend_codec(codec: Codec, tokens: tuple[str, ...], source: str) -> Codec:
    """`codec` with `tokens` added behind those that there are; those that it has already stay as they are.

    The ids of the pieces that each one was before are in `pieces_before`. UserError, which begins with `source`, for a
    tokenizer that cannot be extended, and for a token that a text would not give back.
    """
    if not tokens:
        return codec
    if not isinstance(codec.tokenizer, PreTrainedTokenizerFast):
        kind = type(codec.tokenizer).__name__
        raise UserError(f"{source}: the tokenizer of this base ({kind}) cannot be extended; drop it")
    old = _without_blank(codec)
    known = old.tokenizer.get_vocab()
    fresh = [token for token in tokens if token not in known]
    pieces = [tuple(old.text_ids(token, first=False)) for token in fresh]
    if empty := [token for token, ids in zip(fresh, pieces, strict=True) if not ids]:
        raise UserError(f"{source}: {empty[0]!r} has no pieces in the base's tokenizer; drop it")
    tokenizer = copy.deepcopy(old.tokenizer)
    # As they are written, wherever they stand; not special, so that records and answers may hold them.
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in fresh])
    before = dict(zip(tokenizer.convert_tokens_to_ids(fresh), pieces, strict=True))
    codec = replace(
        old, tokenizer=tokenizer, added=(*codec.added, *tokens), pieces_before={**codec.pieces_before, **before}
    )
    for token in fresh:
        if codec.decode(codec.text_ids(f"甲{token}乙")) != f"甲{token}乙":
            raise UserError(
                f"{source}: a text with {token!r} would not be the same once it was made of tokens and read again by "
                "this base's tokenizer; drop it"
            )
    return codec


def _without_blank(codec: Codec) -> Codec:
    """`codec`, of which the text itself gets the blank in front; else each stretch between added tokens would."""
    backend = codec.tokenizer.backend_tokenizer
    rules = json.loads(backend.to_str()) if codec.blank == "" else {}
    normalizer, pre = rules.get("normalizer") or {}, rules.get("pre_tokenizer") or {}
    if normalizer.get("normalizers") == PREPENDED:
        tokenizer = copy.deepcopy(codec.tokenizer)
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
        return replace(codec, tokenizer=tokenizer, blank=" ")
    if pre.get("type") == "Metaspace" and pre.get("prepend_scheme") == "always":
        tokenizer = copy.deepcopy(codec.tokenizer)
        tokenizer.backend_tokenizer.pre_tokenizer.prepend_scheme = "first"
        return replace(codec, tokenizer=tokenizer)
    return codec


def plain_tokenizer(codec: Codec) -> PreTrainedTokenizerFast:
    """The tokenizer as other programs read it, with the blank that `codec` writes by itself."""
    if not codec.blank:
        return codec.tokenizer
    tokenizer = copy.deepcopy(codec.tokenizer)
    parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(parts)
    return tokenizer
