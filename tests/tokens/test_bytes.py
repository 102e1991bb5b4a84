"""Characters that no piece holds are spelt in bytes: their text is sentencepiece's, broken ones and all."""

import pytest
import sentencepiece
from helpers import GOLDEN
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from checkpoints.family import find_family
from tokens.codec import BROKEN, Codec
from tokens.readers import load_codec

LLAMA = GOLDEN / "checkpoint"
CODEC = load_codec(LLAMA, find_family(LLAMA)[0])
PIECES = sentencepiece.SentencePieceProcessor(model_file=str(LLAMA / "tokenizer.model"))
BYTES = 3  # the id of <0x00>
LAST = len(PIECES) - 1


def spelt(content: bytes) -> list[int]:
    return [BYTES + byte for byte in content]


ID = st.one_of(st.integers(BYTES, LAST), st.integers(BYTES, BYTES + 255), st.sampled_from(spelt(b" A\xe5\xbc\xa0\x96")))
CHARACTERS = st.text(min_size=1, max_size=3).filter(lambda text: text.isprintable()).map(lambda t: spelt(t.encode()))
STRETCH = st.one_of(st.lists(ID, min_size=1, max_size=6), CHARACTERS, CHARACTERS.map(lambda ids: ids[:-1]))


@settings(max_examples=200, deadline=None)
@given(st.lists(STRETCH, max_size=5).map(lambda parts: [token for part in parts for token in part]))
@example(spelt(b"(A\xe5,B)"))
@example(spelt("张三".encode()[:-1]))
@example(spelt(b" "))
@example(spelt("▁▁".encode()) + spelt(b"\xff"))
@example(spelt(b"\xed\xa0\x80\xc0\x80\xf5\xef\xbf\xbd"))
@example([342, 342, *spelt(b"\x80 ")])
def test_any_ids_decode_as_sentencepiece_decodes_them(ids):
    assert CODEC.decode(ids) == PIECES.decode(ids)


def test_special_tokens_are_left_out_before_the_bytes_are_read():
    whole = spelt("张".encode())
    assert CODEC.decode([1, whole[0], 0, *whole[1:], 2]) == "张"
    assert CODEC.decode([1, whole[0], 2, *spelt(b"A")]) == f"{BROKEN}A"


def test_readable_bytes_beside_a_broken_one_stay():
    ids = [*PIECES.encode("(张三"), *spelt(b",\xe5\xa6,B)")]
    assert CODEC.decode(ids) == f"(张三,{BROKEN * 2},B)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LLaMA as many later repositories have it: a tokenizer.json, and no tokenizer.model."""
    folder = tmp_path_factory.mktemp("json")
    CODEC.tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text((LLAMA / "config.json").read_text())
    return folder


def test_a_tokenizer_json_with_bytes_decodes_alike(folder):
    family, _, why = find_family(folder)
    assert (family.name, why) == ("auto", "model_type llama in config.json, no tokenizer.model")
    codec = load_codec(folder, family)
    for content in (b"(A\xe5,B)", "张三".encode()[:-1], b" x\xff", "张".encode()):
        ids = [*PIECES.encode("字"), *spelt(content)]
        assert codec.decode(ids) == PIECES.decode(ids)


def test_a_tokenizer_without_such_bytes_is_left_alone():
    """`<0x41>` may be a token like any other, and a broken character its own."""
    vocabulary = {"<0x41>": 0, BROKEN: 1, "b": 2}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Fuse()
    tokenizer = type(CODEC.tokenizer)(tokenizer_object=backend, eos_token="b")
    assert Codec(tokenizer, (), 2, 2, {}).decode([0, 1]) == f"<0x41>{BROKEN}"
