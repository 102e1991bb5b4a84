"""The files of a checkpoint folder: which of them are read, as transformers reads them; what is no weights is named."""

import json
import os
import pickle
from itertools import product

import pytest
import torch
from helpers import GOLDEN, random_llama
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoints.config import read_config
from checkpoints.stored import model_files, read_record, read_tensor, tensors_of, whole_files
from common.errors import UserError
from models.families import FAMILIES
from tokens.readers import load_codec

WHOLE = {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder of a tiny LLaMA without weights, and these."""
    folder = tmp_path_factory.mktemp("tiny")
    random_llama(folder, num_hidden_layers=1, intermediate_size=16)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return folder, tensors


def put(folder, tensors, kind, mark, parts=1, index=True):
    """The weights in `parts` files beside each other, the last norm's first number being `mark`."""
    tensors = {**tensors, NORM: tensors[NORM].clone().index_fill(0, torch.tensor([0]), mark)}
    names, where = list(tensors), {}
    for part in range(parts):
        stem, end = WHOLE[kind].split(".")
        file = WHOLE[kind] if parts == 1 else f"{stem}-{part + 1:05d}-of-{parts:05d}.{end}"
        chosen = {name: tensors[name] for name in names[part::parts]}
        where |= dict.fromkeys(chosen, file)
        if kind == "safetensors":
            save_file(chosen, folder / file, {"format": "pt"})
        else:
            torch.save(chosen, folder / file)
    if parts > 1 and index:
        (folder / f"{WHOLE[kind]}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def copied(source, folder):
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


FORMS = tuple(product(WHOLE, (1, 2)))  # kind, files


@pytest.mark.parametrize("present", [mask for mask in product((False, True), repeat=len(FORMS)) if any(mask)])
def test_of_several_forms_the_one_is_read_that_transformers_reads(tmp_path, weights, present):
    base = copied(weights[0], tmp_path / "base")
    for mark, ((kind, parts), there) in enumerate(zip(FORMS, present, strict=True), 1):
        if there:
            put(base, weights[1], kind, float(mark), parts)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    stored = tensors_of(base, "path_raw")
    assert read_tensor(NORM, stored[NORM])[0] == model.model.norm.weight[0].item()
    assert {at.file for at in stored.values()} == set(whole_files(base, "model_name_or_path")[1])
    read_config(base)  # neither a delta nor a prefix


@pytest.mark.parametrize("kind", WHOLE)
def test_an_index_left_from_an_earlier_download_does_not_hide_a_whole_file(tmp_path, weights, kind):
    base = copied(weights[0], tmp_path / "base")
    put(base, weights[1], kind, 3.0)
    stale = {name: f"gone-{number % 2}.{kind}" for number, name in enumerate(weights[1])}
    (base / f"{WHOLE[kind]}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": stale}))
    assert AutoModelForCausalLM.from_pretrained(base).model.norm.weight[0] == 3
    assert whole_files(base, "model_name_or_path") == ({}, [base / WHOLE[kind]])


def test_a_stale_index_that_transformers_follows_is_refused_with_the_way_out(tmp_path, weights):
    base = copied(weights[0], tmp_path / "base")
    put(base, weights[1], "bin", 3.0)
    index = {"metadata": {}, "weight_map": {NORM: "model-00001-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"not there; .*or move the index away: pytorch_model.bin is whole"):
        whole_files(base, "model_name_or_path")


@pytest.mark.parametrize("kind", WHOLE)
def test_shards_without_an_index_come_after_what_transformers_reads(tmp_path, weights, kind):
    base = copied(weights[0], tmp_path / "base")
    put(base, weights[1], kind, 1.0, 2, index=False)
    assert len(model_files(base)[1]) == 2
    put(base, weights[1], "bin", 2.0, 1)
    assert model_files(base) == ({}, [base / "pytorch_model.bin"])


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\b.bin"])
def test_an_index_that_names_a_file_outside_its_folder_is_refused(tmp_path, weights, name):
    base = copied(weights[0], tmp_path / "base")
    put(base, weights[1], "safetensors", 1.0, 2)
    index = base / "model.safetensors.index.json"
    (tmp_path / "other").mkdir()
    put(tmp_path / "other", weights[1], "safetensors", 1.0)
    found = json.loads(index.read_text())
    found["weight_map"][NORM] = name
    index.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"index.json: names .*, which is not in its folder"):
        whole_files(base, "model_name_or_path")


def test_links_into_the_blobs_of_a_hub_cache_are_read_and_dangling_ones_named(tmp_path, weights):
    base = copied(weights[0], tmp_path / "base")
    put(base, weights[1], "safetensors", 1.0)
    (base / "model.safetensors").rename(tmp_path / "blob")
    (base / "model.safetensors").symlink_to(tmp_path / "blob")
    assert NORM in tensors_of(base, "path_raw")
    (tmp_path / "blob").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: no file, or a link to nowhere; download it again"):
        whole_files(base, "path_raw")


def test_a_name_that_no_file_system_allows_is_only_not_there(tmp_path, weights):
    base = copied(weights[0], tmp_path / "base")
    index = {"metadata": {}, "weight_map": {NORM: "a" * 5000, "b": "nul\0"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"the index names a{80}, nul.*, not there") as caught:
        whole_files(base, "model_name_or_path")
    assert len(str(caught.value)) < 400


FAMILY = {family.name: family for family in FAMILIES}
READERS = {  # of files whose place something else has
    "config.json": read_config,
    "weight_diff.json": read_record,
    "tokenizer_config.json": lambda folder: load_codec(folder, FAMILY["llama"]),
    "tokenizer.json": lambda folder: load_codec(folder, FAMILY["auto"]),
    "vocab.txt": lambda folder: load_codec(folder, FAMILY["cpm-bee"]),
    "merges.txt": lambda folder: load_codec(folder, FAMILY["moss"]),
    "ice_text.model": lambda folder: load_codec(folder, FAMILY["chatglm"]),
}
NO_FILES = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: os.symlink("/dev/zero", path),
    "a link to itself": lambda path: os.symlink(path, path),
}


@pytest.mark.parametrize("what", NO_FILES)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_neither_waited_for_nor_passed_over(tmp_path, name, what):
    NO_FILES[what](tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: no file, but a folder, a pipe, a device or a link to nowhere"):
        READERS[name](tmp_path)


class Trap:
    """A pickle of it would call os.system."""

    def __reduce__(self):
        return (os.system, ("true",))


BROKEN = {
    "a call": ({"weight": Trap()}, {}, r"asks for (posix|nt).system, which no weights need; nothing of it was run"),
    "a call, of old": ({"weight": Trap()}, {"_use_new_zipfile_serialization": False}, "asks for .*system"),
    "a class": ({"weight": torch.nn.Linear(1, 1)}, {}, "asks for torch.nn.modules.linear.Linear"),
    "numbers": ({"weight": 3}, {}, "holds more than tensors"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_pickle_of_more_than_tensors_is_refused_without_advice_to_trust_it(tmp_path, case):
    held, options, message = BROKEN[case]
    torch.save(held, tmp_path / "pytorch_model.bin", **options)
    with pytest.raises(UserError, match=message) as caught:
        tensors_of(tmp_path, "path_raw")
    for advice in ("weights_only", "trust", "safe_globals", "\n"):
        assert advice not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "no file of torch.save"),
        (pickle.dumps({"weight": 1}), "no file of torch.save"),
        (b"PK\x03\x04 and no more", "cut off"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\x80\x02\x8a\n and no more", "no state dict"),
    ],
)
def test_a_file_that_torch_never_wrote_is_named(tmp_path, content, message):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"pytorch_model.bin: {message}.*download it again") as caught:
        tensors_of(tmp_path, "path_raw")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("header", [b"[]", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b"[" * 3000, b"\xff"])
def test_a_header_that_is_none_is_named(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"model.safetensors: no safetensors file; download it again"):
        tensors_of(tmp_path, "path_raw")


def test_the_golden_checkpoint_is_read_by_its_index():
    index, files = whole_files(GOLDEN / "checkpoint", "model_name_or_path")
    assert len(files) == 4
    assert {file.name for file in files} == set(index.values())


@pytest.mark.parametrize("dtype", [3, None, "x", "nn", {"a": 1}])
def test_numbers_of_a_delta_that_are_none_of_torchs_are_named(tmp_path, dtype):
    (tmp_path / "weight_diff.json").write_text(json.dumps({"dtypes": {"lm_head.weight": dtype}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"weight_diff.json: dtypes: lm_head.weight is .*; expected float16"):
        read_record(tmp_path)
