"""Embedded bases: packages -> a folder, whole or not there; a tiny Gemma 3 in two parts stands for the real one."""

import hashlib
import json

import gguf
import numpy
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM

from checkpoints.family import find_family
from common.errors import UserError
from tokens.readers import load_codec
from utils import gguf_to_hf
from utils.embedded_bases import BASES, mend_gemma

CONTROL, USERS, BYTE, NORMAL = 3, 4, 6, 1  # GGUF's types of tokens
WIDTH, LAYERS = 16, 6
PIECES = ["▁", "北", "京", "北京", "的", "1", "2", "9", "a", "b", "ab", "<", ">", "eos"]
TOKENS = [
    *((name, CONTROL) for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<end_of_turn>")),
    *(("\n" * count, USERS) for count in (1, 2)),
    *((" " * count, USERS) for count in (2, 3)),
    *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
    *((piece, NORMAL) for piece in PIECES),
]
TEXTS = ("北京的北", "龘𠮷🦄é", " 1 29  a   b", "a\n\nb\n\n\n", "<eos><bos><end_of_turn>", "", " ", "\u3000\r\n\t")


def write_gemma(file):
    """A random Gemma 3 of six layers, as llama.cpp writes one."""
    heads = {"attn_q": 8, "attn_k": 4, "attn_v": 4}  # rows: two heads of 4, keys and values for one
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": (rows, WIDTH) for name, rows in heads.items()}
        shapes |= {f"blk.{layer}.attn_output": (WIDTH, 8), f"blk.{layer}.ffn_down": (WIDTH, 32)}
        shapes |= {f"blk.{layer}.{name}": (32, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{layer}.{name}": (4,) for name in ("attn_q_norm", "attn_k_norm")}
        norms = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        shapes |= {f"blk.{layer}.{name}": (WIDTH,) for name in norms}
    writer, random = gguf.GGUFWriter(file, "gemma3"), numpy.random.default_rng(1)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(4)
    writer.add_value_length(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([piece for piece, _ in TOKENS])
    writer.add_token_scores([-float(at) for at in range(len(TOKENS))])
    writer.add_token_types([kind for _, kind in TOKENS])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gemma(file)
    return file.read_bytes()


@pytest.fixture
def packages(tmp_path, monkeypatch, whole):
    """The tiny Gemma in two packages, its terms in a third, as pip would have installed them, and its row."""
    files = {"tiny_one/data/tiny.part00": whole[:70_001], "tiny_two/data/tiny.part01": whole[70_001:]}
    files |= {"tiny_terms/data/TERMS.html": b"terms"}
    for name, content in files.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True)
        (file.parents[1] / "__init__.py").write_text("raise SystemExit('a package of data is not run')\n")
        file.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture
def base(packages, whole):
    return BASES["gemma3-270m"]._replace(
        name="tiny",
        requirements=("tiny-one==1", "tiny-two==1"),
        parts=("tiny_one/data/tiny.part00", "tiny_two/data/tiny.part01"),
        sha256=hashlib.sha256(whole).hexdigest(),
        notices=("tiny_terms/data/TERMS.html",),
    )


def test_parts_become_a_gemma_with_its_terms_and_every_text_comes_back(tmp_path, base, capsys):
    out = tmp_path / "models" / "tiny"
    gguf_to_hf.make_base(base, out)
    assert "made from tiny.part00, tiny.part01, TERMS.html beside it" in capsys.readouterr().err
    assert (out / "TERMS.html").read_bytes() == b"terms"
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    assert not list(out.glob("*.gguf"))
    config = json.loads((out / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"]
    rope = {name: part["rope_theta"] for name, part in config["rope_parameters"].items()}
    assert rope == {"full_attention": 1e6, "sliding_attention": 1e4}
    assert (config["sliding_window"], config["head_dim"], config["tie_word_embeddings"]) == (8, 4, True)
    assert [config[f"{name}_token_id"] for name in ("pad", "eos", "bos")] == [0, 1, 2]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert model(torch.tensor([[2, 11, 12]])).logits.isfinite().all()

    codec = load_codec(out, find_family(out)[0])
    assert (codec.prefix_ids, codec.eos_id, codec.pad_id) == ((2,), 1, 0)
    assert [codec.decode(codec.text_ids(text)) for text in TEXTS] == list(TEXTS)
    assert codec.tokenizer.convert_ids_to_tokens(codec.text_ids("北京9")) == ["北京", "9"]
    assert not {0, 1, 2, 3, 4, 5} & set(codec.text_ids("".join(TEXTS)))


def test_bos_stands_before_every_text_whatever_the_converter_made_of_it(tmp_path, base):
    out = tmp_path / "tiny"
    gguf_to_hf.make_base(base, out)
    tokenizer = load_codec(out, find_family(out)[0]).tokenizer
    assert tokenizer("北京")["input_ids"][0] == 2
    # As some releases leave it.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", "$A:0 $B:1", special_tokens=[])
    assert tokenizer("北京")["input_ids"][0] != 2
    mend_gemma(tokenizer)
    assert tokenizer("北京")["input_ids"][0] == 2
    assert tokenizer("北", "京")["input_ids"].count(2) == 2


def test_a_file_of_another_sha256_is_not_read(tmp_path, packages, base):
    part = packages / base.parts[1]
    found = hashlib.sha256((packages / base.parts[0]).read_bytes() + b"x" + part.read_bytes()[1:]).hexdigest()
    part.write_bytes(b"x" + part.read_bytes()[1:])
    with pytest.raises(UserError) as error:
        gguf_to_hf.make_base(base, tmp_path / "models" / "tiny")
    for said in (
        "--base tiny",
        f"{found}, expected {base.sha256}",
        "--force-reinstall --no-deps tiny-one==1 tiny-two==1",
    ):
        assert said in str(error.value)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("tiny_two/data/tiny.part01", "the package tiny_two is there without data/tiny.part01"),
        ("tiny_two", "the package tiny_two is not installed"),
        ("tiny_terms/data/TERMS.html", "the package tiny_terms is there without data/TERMS.html"),
    ],
)
def test_what_a_package_lacks_is_named_and_nothing_is_left(tmp_path, packages, base, lost, said):
    (packages / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=said):
        gguf_to_hf.make_base(base, tmp_path / "models" / "tiny")
    assert not list(tmp_path.glob("models/*"))


def test_a_conversion_that_fails_leaves_nothing(tmp_path, base):
    def fail(tokenizer):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        gguf_to_hf.make_base(base._replace(mend=fail), tmp_path / "models" / "tiny")
    assert not list((tmp_path / "models").iterdir())


def test_one_file_of_another_package_is_taken_as_it_is(tmp_path, monkeypatch, whole):
    (tmp_path / "site" / "other_tiny").mkdir(parents=True)
    (tmp_path / "site" / "other_tiny" / "any.gguf").write_bytes(whole)
    monkeypatch.syspath_prepend(tmp_path / "site")
    gguf_to_hf.main(["--base", "gemma3-270m", "--package", "other_tiny", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "config.json").is_file()
    assert not (tmp_path / "out" / "GEMMA_TERMS.html").exists()


@pytest.mark.parametrize("damage", [lambda file: b"no GGUF" * 99, lambda file: file[: len(file) // 2]])
def test_a_damaged_file_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, whole, damage):
    (tmp_path / "site" / "odd_tiny").mkdir(parents=True)
    (tmp_path / "site" / "odd_tiny" / "any.gguf").write_bytes(damage(whole))
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(UserError, match="any.gguf: no whole GGUF file of a model .*get it again"):
        gguf_to_hf.main(["--base", "gemma3-270m", "--package", "odd_tiny", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BASES)
def test_what_pip_installs_is_pinned_and_holds_the_files(name, capsys):
    gguf_to_hf.main(["--base", name, "--requirements"])
    printed = capsys.readouterr()
    assert printed.out.split() == list(BASES[name].requirements)
    assert printed.err == f"{name}: {BASES[name].licence}\n"
    pins = [requirement.split("==") for requirement in BASES[name].requirements]
    assert all(version for _, version in pins)
    assert {package.replace("-", "_") for package, _ in pins} == {
        path.split("/")[0] for path in BASES[name].parts + BASES[name].notices
    }
