"""src/utils/weight_diff.py: what it writes is exact, whole or not there, and nothing wrong is begun."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN, ROOT, python
from peft import (
    AdaLoraConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    MissConfig,
    OFTConfig,
    PeftModel,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import inference
from checkpoints import deltas, writing
from checkpoints.config import read_config
from checkpoints.family import find_family
from checkpoints.stored import blocks, tensors_of, whole_files
from common.errors import UserError
from decoding.answers import Rules
from decoding.batch_engine import generate
from loading.base import load_base
from loading.precision import Precision
from tokens.readers import load_codec
from utils import weight_diff

SCRIPT = ROOT / "src" / "utils" / "weight_diff.py"
BASE, ADAPTER, TENCENT = GOLDEN / "checkpoint", GOLDEN / "adapter", GOLDEN / "tencentpretrain"
CONFIG = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
PREDICTIONS = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["predictions"]
LORA = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"


def base_tensors():
    """The golden base, rotary buffers left out."""
    found = {}
    for file in BASE.glob("*.bin"):
        found |= torch.load(file, weights_only=True)
    return {name: tensor for name, tensor in found.items() if "inv_freq" not in name}


def noise(tensors, dtype, spread=1e-3, seed=0):
    """Something to add: normal noise for every tensor."""
    torch.manual_seed(seed)
    return {name: (torch.randn(tensor.shape) * spread).to(dtype) for name, tensor in tensors.items()}


def save(folder, tensors, kind="safetensors", parts=1, config=CONFIG, tokenizer=True):
    """A checkpoint folder in `parts` shards; kind: safetensors, bin, or old (.bin as torch wrote it before 1.6)."""
    folder.mkdir()
    names = sorted(tensors, key=hash)
    pattern = "model-{}.safetensors" if kind == "safetensors" else "pytorch_model-{}.bin"
    files = {}
    for part in range(parts):
        chosen = {name: tensors[name].contiguous() for name in names[part::parts]}
        file = folder / pattern.format(part)
        if kind == "safetensors":
            save_file(chosen, file)
        else:
            torch.save(chosen, file, _use_new_zipfile_serialization=kind == "bin")
        files |= dict.fromkeys(chosen, file.name)
    if parts > 1:
        index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
        (folder / index).write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        for file in (GOLDEN / "tokenizer_vicuna_style").iterdir():
            shutil.copyfile(file, folder / file.name)
    return folder


def load(folder):
    """Everything a written folder holds, by its index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for file in set(index.values()):
        tensors = load_file(folder / file)
        assert set(tensors) == {name for name, at in index.items() if at == file}
        found |= tensors
    return found


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def answer(model, case, most):
    """The new ids of a golden prompt, greedily."""
    with torch.no_grad():
        made = model.generate(torch.tensor([case["prompt_ids"]]), max_new_tokens=most)[0]
    return made[len(case["prompt_ids"]) :].tolist()


def run(command, **paths):
    weight_diff.main([command, *(str(word) for name, value in paths.items() for word in (f"--{name}", value))])


@pytest.fixture
def delta(tmp_path):
    """(folder of a delta in two safetensors shards, what must come out)"""
    base = base_tensors()
    change = noise(base, torch.float16)
    target = {name: (base[name].float() + change[name].float()).half() for name in base}
    return save(tmp_path / "delta", change, parts=2), target


# recover


@pytest.mark.parametrize(
    ("base_kind", "base_parts", "delta_kind", "delta_parts"),
    [("bin", 3, "safetensors", 2), ("safetensors", 1, "bin", 4), ("bin", 1, "old", 2), ("old", 2, "old", 1)],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_recovered_is_base_plus_delta_in_any_layout(tmp_path, dtype, base_kind, base_parts, delta_kind, delta_parts):
    base = base_tensors()
    change = noise(base, dtype)
    raw = save(
        tmp_path / "raw", base | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, base_kind, base_parts
    )
    diff = save(tmp_path / "diff", change, delta_kind, delta_parts)
    run("recover", path_raw=raw, path_diff=diff, path_tuned=tmp_path / "out")
    assert_equal(load(tmp_path / "out"), {name: (base[name].float() + change[name].float()).to(dtype) for name in base})
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == dtype


def test_what_is_written_in_shards_and_blocks_is_what_was_read(tmp_path):
    tensors = base_tensors()
    plan = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    sums = writing.write_model(tmp_path, plan, lambda name: blocks(tensors[name], 1000), shard_bytes=150_000)
    assert_equal(load(tmp_path), tensors)
    assert sums == {name: pytest.approx(tensor.double().sum().item()) for name, tensor in tensors.items()}
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    sizes = [sum(t.numel() * t.element_size() for t in load_file(file).values()) for file in files]
    assert all(size <= 150_000 or len(load_file(file)) == 1 for size, file in zip(sizes, files, strict=True))


def test_the_golden_base_as_published_serves_and_its_buffers_are_left_out(tmp_path, delta):
    folder, target = delta
    run("recover", path_raw=BASE, path_diff=folder, path_tuned=tmp_path / "out")
    assert_equal(load(tmp_path / "out"), target)


def test_tokenizer_and_config_come_from_the_delta_else_from_the_base(tmp_path, delta):
    folder, _ = delta
    (folder / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 1e-5, "dtype": "float64"}))
    run("recover", path_raw=BASE, path_diff=folder, path_tuned=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["rms_norm_eps"], config["torch_dtype"], "dtype" in config) == (1e-5, "float16", False)
    own = (folder / "tokenizer_config.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == own
    for file in folder.glob("*token*"):
        file.unlink()
    run("recover", path_raw=BASE, path_diff=folder, path_tuned=tmp_path / "other")
    assert (tmp_path / "other" / "tokenizer_config.json").read_bytes() == (BASE / "tokenizer_config.json").read_bytes()


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"dtype": "fp32"}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"is_fp16": "False"}, torch.float32),
        ({"is_fp16": "True", "device": "cpu"}, torch.float16),
    ],
)
def test_the_dtype_can_be_chosen_and_is_rounded_to_once(tmp_path, delta, flags, dtype):
    folder, _ = delta
    change = load_file(folder / "model-0.safetensors") | load_file(folder / "model-1.safetensors")
    run("recover", path_raw=BASE, path_diff=folder, path_tuned=tmp_path / "out", **flags)
    expected = {name: (tensor.float() + change[name].float()).to(dtype) for name, tensor in base_tensors().items()}
    assert_equal(load(tmp_path / "out"), expected)


def test_a_recovered_model_predicts_and_passes_its_own_checks(tmp_path, delta):
    folder, _ = delta
    run("recover", path_raw=BASE, path_diff=folder, path_tuned=tmp_path / "out")
    codec = load_codec(tmp_path / "out", find_family(tmp_path / "out", "vicuna")[0])
    model = load_base(tmp_path / "out", Precision("float32", 16), "cpu", codec).eval()
    assert generate(model, codec, [codec.encode([])], Rules(3))[0].tokens > 0


# make_diff


def unrelated(dtype):
    """Two models that have nothing in common, with weights of every size, and the delta's hard cases among them."""
    base = {name: tensor.to(dtype) for name, tensor in base_tensors().items()}
    other = {name: tensor * 30 for name, tensor in noise(base, dtype, spread=0.02, seed=1).items()}
    other["model.norm.weight"] = base["model.norm.weight"] * 1.5
    other["lm_head.weight"][:, :32] *= 1e-4  # far smaller than what is subtracted
    return base, other


@pytest.mark.parametrize(
    ("dtype", "saved", "exact"),
    [
        (torch.float16, "float32", True),
        (torch.bfloat16, "float64", True),
        (torch.float32, "float64", True),
        (torch.float32, "float32", False),
        (torch.float16, "float16", False),
    ],
)
def test_recover_gives_back_what_make_diff_took(tmp_path, capsys, dtype, saved, exact):
    base, other = unrelated(dtype)
    raw, tuned = save(tmp_path / "raw", base, "bin", 2), save(tmp_path / "tuned", other, parts=3)
    run("make_diff", path_raw=raw, path_tuned=tuned, path_diff=tmp_path / "diff", dtype=saved)
    said = capsys.readouterr().err
    assert {tensor.dtype for tensor in load(tmp_path / "diff").values()} == {getattr(torch, saved)}
    run("recover", path_raw=raw, path_diff=tmp_path / "diff", path_tuned=tmp_path / "out")
    assert "as make_diff says" in capsys.readouterr().err
    found = load(tmp_path / "out")
    wrong = sum(torch.count_nonzero(found[name] != other[name]).item() for name in other)
    if exact:
        assert_equal(found, other)
        assert "gives every weight back equal" in said
    else:
        assert wrong > 0
        assert f"recover gives {wrong} weights back unequal" in said
        assert {tensor.dtype for tensor in found.values()} == {dtype}


def test_any_fp16_numbers_below_1_come_back_from_a_float32_difference(tmp_path, capsys):
    torch.manual_seed(3)
    base, other = base_tensors(), base_tensors()
    for name in set(base) - {"model.norm.weight"}:
        for tensors in (base, other):
            size = torch.randint(0, 0x3C00, base[name].shape, dtype=torch.int16).view(torch.float16)
            tensors[name] = size * torch.tensor([1, -1])[torch.randint(2, size.shape)]
    raw, tuned = save(tmp_path / "raw", base), save(tmp_path / "tuned", other)
    run("make_diff", path_raw=raw, path_tuned=tuned, path_diff=tmp_path / "diff")
    assert "gives every weight back equal" in capsys.readouterr().err
    run("recover", path_raw=raw, path_diff=tmp_path / "diff", path_tuned=tmp_path / "out")
    assert_equal(load(tmp_path / "out"), other)


def test_a_fine_tuned_fp16_model_comes_back_whatever_the_sharding(tmp_path):
    base = base_tensors()
    tuned = {name: (tensor.float() + 1e-3 * torch.randn(tensor.shape)).half() for name, tensor in base.items()}
    run("make_diff", path_raw=BASE, path_tuned=save(tmp_path / "tuned", tuned), path_diff=tmp_path / "diff")
    run(
        "recover",
        path_raw=save(tmp_path / "raw", base, parts=5),
        path_diff=tmp_path / "diff",
        path_tuned=tmp_path / "o",
    )
    assert_equal(load(tmp_path / "o"), tuned)


# The integrity sum


@pytest.fixture
def made(tmp_path):
    """A diff of make_diff."""
    base, other = unrelated(torch.float16)
    save(tmp_path / "raw", base)
    run("make_diff", path_raw=tmp_path / "raw", path_tuned=save(tmp_path / "t", other), path_diff=tmp_path / "made")
    return tmp_path / "made"


def test_one_changed_weight_fails_the_check_and_nothing_is_left(tmp_path, made, capsys):
    file = made / "model-00001-of-00001.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.01
    save_file(tensors, file)
    paths = {"path_raw": tmp_path / "raw", "path_diff": made, "path_tuned": tmp_path / "out"}
    with pytest.raises(UserError, match=r"add up to .*, but make_diff says .*--check False"):
        run("recover", **paths)
    assert not list(tmp_path.glob("out*"))
    run("recover", **paths, check="False")
    assert "not checked (--check False)" in capsys.readouterr().err
    weight_diff.main(["recover", str(tmp_path / "raw"), str(made), str(tmp_path / "again"), "--nocheck"])
    assert_equal(load(tmp_path / "again"), load(tmp_path / "out"))


def test_the_wrong_base_fails_the_check(tmp_path, made):
    wrong = {name: tensor * 1.01 for name, tensor in base_tensors().items()}
    with pytest.raises(UserError, match="this base is not the one the delta was made of"):
        run("recover", path_raw=save(tmp_path / "w", wrong), path_diff=made, path_tuned=tmp_path / "out")


def test_without_a_known_sum_that_is_said(tmp_path, delta, made, capsys):
    run("recover", path_raw=BASE, path_diff=delta[0], path_tuned=tmp_path / "a")
    assert "none is known for this delta and dtype" in capsys.readouterr().err
    run("recover", path_raw=tmp_path / "raw", path_diff=made, path_tuned=tmp_path / "b", dtype="float32")
    assert "none is known for this delta and dtype" in capsys.readouterr().err


def test_an_expected_sum_is_compared_counting_rotary_buffers_or_not(tmp_path, delta, capsys):
    folder, target = delta
    total = math.fsum(tensor.double().sum().item() for tensor in target.values())
    rotary = 3 * sum(10000 ** (-i / 8) for i in range(8))  # 3 layers, 8 frequencies of a head of 16
    for number, expected in enumerate((total, total + rotary, total + 2 * rotary)):
        run("recover", path_raw=BASE, path_diff=folder, path_tuned=tmp_path / str(number), expected_sum=expected)
        assert "as --expected_sum says" in capsys.readouterr().err
    allowed = 0.01 + sum(abs(tensor.double().sum().item()) for tensor in target.values()) / 2048
    with pytest.raises(UserError, match="--expected_sum says"):
        run("recover", path_raw=BASE, path_diff=folder, path_tuned=tmp_path / "x", expected_sum=total + 1.1 * allowed)


def test_a_published_sum_is_known_by_name_size_and_dtype(tmp_path, delta, monkeypatch, capsys):
    folder, target = delta
    total = math.fsum(tensor.double().sum().item() for tensor in target.values())
    weights = sum(tensor.numel() for tensor in target.values())
    monkeypatch.setattr(deltas, "PUBLISHED_SUMS", {("zhixi", weights): {"float16": total + 5}})
    named = folder.rename(tmp_path / "ZhiXi-13b-diff")
    with pytest.raises(UserError, match="the publisher of zhixi says"):
        run("recover", path_raw=BASE, path_diff=named, path_tuned=tmp_path / "a")
    run("recover", path_raw=BASE, path_diff=named, path_tuned=tmp_path / "b", dtype="float32")
    other = named.rename(tmp_path / "vicuna-delta")
    run("recover", path_raw=BASE, path_diff=other, path_tuned=tmp_path / "c")
    assert capsys.readouterr().err.count("none is known for this delta and dtype") == 2


def test_the_sums_of_zhixi_are_those_it_was_published_with():
    layer = 4 * 5120 * 5120 + 3 * 5120 * 13824 + 2 * 5120
    weights = 40 * layer + 2 * 32000 * 5120 + 5120
    assert {("zhixi", weights): {"float32": 94052.2891, "float16": 94046.1875}} == deltas.PUBLISHED_SUMS


# Interrupted


KILLED = """
import functools, os, signal, sys
sys.path.insert(0, "src")
from checkpoints import writing
from utils import weight_diff
writing.write_model = functools.partial(writing.write_model, shard_bytes=150_000)
write = writing.write_shard
def once(path, *rest):
    if path.name.startswith("model-00003"):
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, *rest)
writing.write_shard = once
weight_diff.main(sys.argv[1:])
"""


def test_kill_9_leaves_no_model_and_the_same_command_makes_it(tmp_path, delta, capsys):
    folder, target = delta
    words = ["recover", "--path_raw", BASE, "--path_diff", folder, "--path_tuned", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], cwd=ROOT, capture_output=True, timeout=600)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    left = {path.name for path in (tmp_path / "out.partial").iterdir()}
    assert any(name.startswith("model-00002") for name in left)
    assert not left & {"config.json", "model.safetensors.index.json"}
    weight_diff.main(list(map(str, words)))
    assert "left by a run that did not end; starting over" in capsys.readouterr().err
    assert_equal(load(tmp_path / "out"), target)
    assert not (tmp_path / "out.partial").exists()
    assert {path.name.count("-of-00001") for path in (tmp_path / "out").glob("*.safetensors")} == {1}


def test_a_failing_disk_leaves_no_model(tmp_path, delta, monkeypatch):
    def full(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        run("recover", path_raw=BASE, path_diff=delta[0], path_tuned=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path, delta):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="--path_tuned .*out: is there already"):
        run("recover", path_raw=BASE, path_diff=delta[0], path_tuned=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        run("recover", path_raw=BASE, path_diff=delta[0], path_tuned=tmp_path / "new")
    assert (tmp_path / "new.partial" / "mine").read_text() == "mine"
    (tmp_path / "out" / "mine").unlink()
    run("recover", path_raw=BASE, path_diff=delta[0], path_tuned=tmp_path / "out")  # an empty folder is no obstacle
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_full_disk_is_known_before_anything_is_written(tmp_path, delta, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 600_000))
    with pytest.raises(UserError, match=r"needs 0.0 GB, and the disk of .* has 0.0 GB free"):
        run("recover", path_raw=BASE, path_diff=delta[0], path_tuned=tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


MEMORY = """
import sys
sys.path.insert(0, "src")
from utils import weight_diff
weight_diff.recover("raw", "diff", "out")
print(weight_diff.peak_memory())
"""


def test_memory_holds_tensors_and_not_shards(tmp_path):
    """Tensors of 64 MB in shards of 256 MB: one shard held whole, with what is needed anyway, is above the limit."""
    peaks = []
    for rows in (8, 16_000):
        tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.full((rows, 2000), 0.5).half() for i in range(4)}
        (tmp_path / str(rows)).mkdir()
        for name, kind in (("raw", "bin"), ("diff", "safetensors")):
            save(tmp_path / str(rows) / name, tensors, kind, tokenizer=False)
        words = [sys.executable, "-c", MEMORY.replace("src", str(ROOT / "src"))]
        done = subprocess.run(words, cwd=tmp_path / str(rows), capture_output=True, text=True, timeout=600, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 240e6


# What does not fit together


def changed(tensors, case):
    if case == "missing":
        tensors.pop("model.layers.2.mlp.up_proj.weight")
    if case == "extra":
        tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(160, 64)
    if case == "a row more":
        tensors["model.embed_tokens.weight"] = torch.zeros(1501, 64)
    if case == "another size":
        tensors["lm_head.weight"] = torch.zeros(1500, 65)
    if case == "integers":
        tensors["lm_head.weight"] = torch.zeros(1500, 64, dtype=torch.int8)
    if case == "not finite":
        tensors["lm_head.weight"][1499, 63] = math.inf
    return tensors


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", r"--path_raw holds model.layers.2.mlp.up_proj.weight, --path_diff does not \(1 such"),
        ("extra", r"--path_diff holds model.layers.3.mlp.up_proj.weight, --path_raw does not \(1 such"),
        ("a row more", r"embed_tokens.weight is \(1500, 64\) in --path_raw and \(1501, 64\) in .*1 more rows in one"),
        ("another size", r"lm_head.weight is \(1500, 64\) in --path_raw and \(1500, 65\) in .*of different sizes"),
        ("integers", r"--path_diff .*lm_head.weight is .*; only unquantised"),
        ("not finite", r"lm_head.weight would hold NaN or infinity"),
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_what_does_not_fit_is_named(tmp_path, case, message, kind):
    folder = save(tmp_path / "delta", changed(noise(base_tensors(), torch.float16), case), kind, 2)
    with pytest.raises(UserError, match=message):
        run("recover", path_raw=BASE, path_diff=folder, path_tuned=tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_swapped_paths_and_wrong_kinds_are_refused(tmp_path, delta, made):
    folder, _ = delta
    wrong = [
        ("recover", {"path_raw": folder, "path_diff": BASE}, "path_tuned", "--path_raw .* is a delta .*swapped"),
        ("recover", {"path_raw": BASE, "path_diff": tmp_path / "raw"}, "path_tuned", "--path_diff .* is a whole model"),
        ("recover", {"path_raw": made, "path_diff": folder}, "path_tuned", "--path_raw .* is a delta"),
        ("make_diff", {"path_raw": BASE, "path_tuned": folder}, "path_diff", "--path_tuned .* is a delta"),
        ("merge", {"path_base": folder, "path_adapter": ADAPTER}, "path_merged", "--path_base .* is a delta"),
    ]
    for command, paths, out, message in wrong:
        with pytest.raises(UserError, match=message):
            run(command, **paths, **{out: tmp_path / "out"})
    assert not list(tmp_path.glob("out*"))


class Trap:
    """An object whose pickle makes a file where it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nowhere", "--path_diff .*: no such folder"),
        ("empty", "--path_diff .*: no weights there .*found nothing"),
        ("shard missing", "the index names model-1.safetensors, not there"),
        ("cut off", "model-0.safetensors: cut off after"),
        ("cut off bin", "pytorch_model-0.bin: cut off"),
        ("pointer", "model-0.safetensors: a pointer of Git LFS"),
        ("index lies", "model-0.safetensors does not hold ghost, as the index says"),
        ("code in a bin", "pytorch_model-0.bin: no state dict"),
        ("no config", "--path_diff .*: no config.json there"),
    ],
)
def test_a_broken_download_is_named(tmp_path, case, message):
    kind = "bin" if case.endswith("bin") else "safetensors"
    folder = save(tmp_path / "d", noise(base_tensors(), torch.float16), kind, 2 if "bin" not in case else 1)
    first, index = folder / "model-0.safetensors", folder / "model.safetensors.index.json"
    raw = BASE
    if case == "nowhere":
        folder = tmp_path / "nowhere"
    elif case == "empty":
        folder = tmp_path / "empty"
        folder.mkdir()
    elif case == "shard missing":
        (folder / "model-1.safetensors").unlink()
    elif case == "cut off":
        first.write_bytes(first.read_bytes()[:-10])
    elif case == "cut off bin":
        file = folder / "pytorch_model-0.bin"
        file.write_bytes(file.read_bytes()[:-10_000])
    elif case == "pointer":
        first.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif case == "index lies":
        names = json.loads(index.read_text())["weight_map"]
        index.write_text(json.dumps({"weight_map": {**names, "ghost": "model-0.safetensors"}}))
    elif case == "code in a bin":
        torch.save({"model.norm.weight": Trap(tmp_path / "trapped")}, folder / "pytorch_model-0.bin")
    elif case == "no config":
        raw = save(tmp_path / "raw", base_tensors())
        (raw / "config.json").unlink()
        (folder / "config.json").unlink()
    with pytest.raises(UserError, match=message):
        run("recover", path_raw=raw, path_diff=folder, path_tuned=tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
    assert not (tmp_path / "trapped").exists()


# merge


def merged_by_peft(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def assert_merged(tmp_path, base, adapter):
    """The merged folder's weights and answers are those of peft, to 1e-6."""
    run("merge", path_base=base, path_adapter=adapter, path_merged=tmp_path / "merged", dtype="float32")
    theirs = merged_by_peft(base, adapter)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    mine, expected = ours.state_dict(), theirs.state_dict()
    assert set(mine) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-6)
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    return {name for name in mine if not torch.equal(mine[name], before[name])}


def test_the_golden_adapter_merges_as_peft_merges_it(tmp_path):
    moved = assert_merged(tmp_path, BASE, ADAPTER)
    assert moved == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in range(3) for p in "qv"}
    codec = load_codec(tmp_path / "merged", find_family(tmp_path / "merged")[0])
    model = load_base(tmp_path / "merged", Precision("float32", 16), "cpu", codec).eval()
    for case in [case for case in PREDICTIONS if case["adapter"]][:2]:
        assert answer(model, case, 16) == case["new_ids"][:16]


def trained(model, **settings):
    """A peft model with an adapter of random numbers."""
    return with_random_numbers(model, LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **settings))


def with_random_numbers(model, config):
    torch.manual_seed(5)
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.1
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"], "fan_in_fan_out": True},  # these layers are not turned, whatever it says
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["layers.1.self_attn.q_proj"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 7}, "alpha_pattern": {"q_proj": 30}},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
    ],
    ids=["all", "rslora", "modules_to_save", "fan_in_fan_out", "exclude", "path", "ends", "ranks", "dora", "tokens"],
)
def test_todays_adapters_merge_as_peft_merges_them(tmp_path, settings):
    trained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), **settings).save_pretrained(tmp_path / "a")
    if settings.get("fan_in_fan_out"):
        config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    assert assert_merged(tmp_path, BASE, tmp_path / "a")


@pytest.mark.parametrize(
    ("settings", "biases"),
    [({"bias": "none"}, 0), ({"bias": "all"}, 13), ({"bias": "lora_only", "lora_bias": True}, 6)],
)
def test_layers_that_keep_their_weights_turned_merge_as_peft_merges_them(tmp_path, settings, biases):
    """With their biases; the base's files leave out the beginning of each name, as GPT-2's do."""
    trained(gpt2(tmp_path), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, **settings).save_pretrained(
        tmp_path / "a"
    )
    tensors = load_file(tmp_path / "gpt2" / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "gpt2" / "model.safetensors", {"format": "pt"})
    moved = assert_merged(tmp_path, tmp_path / "gpt2", tmp_path / "a")
    assert {name for name in moved if name.endswith(".weight")} == {
        f"transformer.h.{i}.{part}.weight" for i in range(2) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    }
    assert len(moved) == 6 + biases


def gpt2(tmp_path):
    """A tiny GPT-2 of random numbers, saved: its embedding and its head are one weight."""
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=8))
    base.save_pretrained(tmp_path / "gpt2")
    return base


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn", "lm_head"]},
        {"target_modules": ["wte"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
    ],
    ids=["head", "embedding", "saved"],
)
def test_an_embedding_and_a_head_that_are_one_become_two(tmp_path, settings):
    """peft's own merge would add to both what was learnt for one; the answers are those of the adapter beside them."""
    trained(gpt2(tmp_path), **settings).save_pretrained(tmp_path / "a")
    run("merge", path_base=tmp_path / "gpt2", path_adapter=tmp_path / "a", path_merged=tmp_path / "out")
    ids = torch.arange(8)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.lm_head.weight is not merged.transformer.wte.weight
    beside = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2"), tmp_path / "a").eval()
    torch.testing.assert_close(merged(ids).logits, beside(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        AdaLoraConfig(target_modules=["q_proj"], total_step=9),
        HRAConfig(target_modules=["q_proj"]),
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        LoHaConfig(target_modules=["q_proj"]),
        LoKrConfig(target_modules=["q_proj"]),
        MissConfig(target_modules=["q_proj"]),
        OFTConfig(target_modules=["q_proj"], oft_block_size=8, r=0),
        TrainableTokensConfig(token_indices=[5, 6]),
        VeraConfig(target_modules=["q_proj"]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_adapters_of_other_kinds_merge_as_peft_merges_them(tmp_path, config):
    with_random_numbers(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), config).save_pretrained(
        tmp_path / "a"
    )
    assert assert_merged(tmp_path, BASE, tmp_path / "a")


def test_the_layers_of_a_base_with_code_of_its_own_are_told_by_its_tensors(tmp_path):
    """They are made of no config.json; an adapter on every linear layer leaves out embedding and head."""
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    config = json.loads((base / "config.json").read_text())
    for number, targets in enumerate(("all-linear", ["q_proj", "lm_head", "embed_tokens"])):
        model = trained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), target_modules=targets)
        model.save_pretrained(tmp_path / f"a{number}")
        file = tmp_path / f"a{number}" / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": targets}))
        (base / "config.json").write_text(json.dumps({**config, "model_type": "somebody-elses"}))
        made = {"path_base": base, "path_adapter": tmp_path / f"a{number}"}
        run("merge", **made, path_merged=tmp_path / f"own{number}", dtype="float32")
        (base / "config.json").write_text(json.dumps(config))
        run("merge", **made, path_merged=tmp_path / f"known{number}", dtype="float32")
        assert_equal(load(tmp_path / f"own{number}"), load(tmp_path / f"known{number}"))


def test_a_merge_keeps_the_bases_dtype_and_rounds_once(tmp_path):
    run("merge", path_zhixi=BASE, path_lora=ADAPTER, path_sfted=tmp_path / "out")  # the flags of old
    found, base = load(tmp_path / "out"), base_tensors()
    lora = torch.load(ADAPTER / "adapter_model.bin", weights_only=True)
    for layer in range(3):
        for part in "qv":
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            a, b = (lora[LORA.format(layer, part, half)] for half in "AB")
            base[name] = (base[name].float() + b @ a * 2).half()
    assert_equal(found, base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "lacks 6 of the 18 tensors .*lora_magnitude_vector"),
        ({"rank_pattern": {"q_proj": 4}}, "lora_A.weight is 8 x 64, with .* it would be 4 x 64"),
        ({"enable_lora": [True, False, True]}, "enable_lora = .* is not supported"),
        ({"lora_bias": True}, "lacks 6 of the 18 tensors .*lora_B.bias"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication = .* is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa is not supported"),
        ({"peft_type": "PREFIX_TUNING"}, "an adapter of kind PREFIX_TUNING; only LORA"),
        ({"r": 16}, "lora_A.weight is 8 x 64, with .* it would be 16 x 64"),
        ({"something_new": 1}, "something_new = 1 is not supported"),
    ],
)
def test_adapters_that_add_something_else_are_refused_by_name(tmp_path, settings, message):
    folder = tmp_path / "adapter"
    shutil.copytree(ADAPTER, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(UserError, match=message):
        run("merge", path_base=BASE, path_adapter=folder, path_merged=tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_bias_for_layers_without_one_is_not_merged(tmp_path):
    model = trained(AutoModelForCausalLM.from_pretrained(BASE), target_modules=["q_proj"], lora_bias=True)
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match="--path_adapter: the adapter .* cannot be merged: .*base layer has no bias.$"):
        run("merge", path_base=BASE, path_adapter=tmp_path / "a", path_merged=tmp_path / "out")


def test_an_adapter_of_another_base_is_refused(tmp_path):
    base = save(
        tmp_path / "base", {**base_tensors(), "model.layers.0.self_attn.q_proj.weight": torch.ones(32, 64).half()}
    )
    with pytest.raises(UserError, match=r"layers.0.self_attn.q_proj.weight is \(64, 64\), in the base \(32, 64\)"):
        run("merge", path_base=base, path_adapter=ADAPTER, path_merged=tmp_path / "out")
    with pytest.raises(UserError, match="--path_adapter .*: no adapter there"):
        run("merge", path_base=BASE, path_adapter=BASE, path_merged=tmp_path / "out")


# from_tencentpretrain


@pytest.fixture
def chatflow(tmp_path):
    """The golden base as Linly publishes it: one .bin and tokenizer.model."""
    folder = tmp_path / "chatflow"
    folder.mkdir()
    shutil.copyfile(TENCENT / "chatflow_7b.bin", folder / "chatflow_7b.bin")
    shutil.copyfile(BASE / "tokenizer.model", folder / "tokenizer.model")
    return folder


@pytest.mark.parametrize("given", ["folder", "file"])
def test_chatflow_becomes_the_golden_checkpoint_bit_for_bit(tmp_path, chatflow, given):
    path = chatflow / "chatflow_7b.bin" if given == "file" else chatflow
    run("from_tencentpretrain", path_in=path, path_out=tmp_path / "out", heads=4)
    assert_equal(load(tmp_path / "out"), base_tensors())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    same = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "rms_norm_eps",
        "vocab_size",
    )
    assert {name: config[name] for name in same} == {name: CONFIG[name] for name in same}
    assert (config["bos_token_id"], config["eos_token_id"], config["torch_dtype"]) == (1, 2, "float16")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


def test_the_converted_folder_answers_as_the_golden_checkpoint(tmp_path, chatflow):
    run("from_tencentpretrain", path_in=chatflow, path_out=tmp_path / "out", heads=4)
    family, name, _ = find_family(tmp_path / "out", "chatflow")
    codec = load_codec(tmp_path / "out", family)
    assert (name, codec.prefix_ids, codec.eos_id, codec.pad_id) == ("chatflow", (1,), 2, 0)
    model = load_base(tmp_path / "out", Precision("float32", 16), "cpu", codec).eval()
    for case in [case for case in PREDICTIONS if not case["adapter"]][:2]:
        assert answer(model, case, 32) == case["new_ids"][:32]


def test_heads_are_of_128_rows_unless_said(tmp_path, chatflow):
    paths = {"path_in": chatflow, "path_out": tmp_path / "out"}
    with pytest.raises(UserError, match="--heads: 64 rows cannot be told apart into heads of 128"):
        run("from_tencentpretrain", **paths)
    with pytest.raises(UserError, match="--heads 3: 64 rows do not divide"):
        run("from_tencentpretrain", **paths, heads=3)
    state = torch.load(chatflow / "chatflow_7b.bin", weights_only=True)
    wide = {name: torch.zeros([256 if size == 64 else size for size in t.shape]) for name, t in state.items()}
    torch.save(wide, chatflow / "chatflow_7b.bin")
    run("from_tencentpretrain", **paths)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_attention_heads"] == 2


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no tokenizer", "tokenizer.model: not there"),
        ("no sentencepiece", "tokenizer.model: no sentencepiece model"),
        ("fewer rows", "1500 pieces that begin with <unk> <s> </s>, for an embedding of 1499 rows"),
        ("lacking", r"lacks encoder.transformer.1.layer_norm_2.weight \(1 such"),
        ("more", r"holds encoder.transformer.0.adapter.weight, which LLaMA has not \(1 such"),
        ("hugging face", "no .bin file in TencentPretrain's format there; found config.json"),
        ("nowhere", "--path_in .*: no such file or folder"),
    ],
)
def test_what_is_no_chatflow_is_refused(tmp_path, chatflow, case, message):
    state = torch.load(chatflow / "chatflow_7b.bin", weights_only=True)
    path, tokenizer = chatflow, chatflow / "tokenizer.model"
    if case == "no tokenizer":
        tokenizer.unlink()
    elif case == "no sentencepiece":
        tokenizer.write_bytes(b"no model")
    elif case == "fewer rows":
        state["embedding.word.embedding.weight"] = state["embedding.word.embedding.weight"][:1499].clone()
    elif case == "lacking":
        state.pop("encoder.transformer.1.layer_norm_2.weight")
    elif case == "more":
        state["encoder.transformer.0.adapter.weight"] = torch.ones(2)
    elif case == "hugging face":
        path = BASE
    elif case == "nowhere":
        path = tmp_path / "nowhere"
    torch.save(state, chatflow / "chatflow_7b.bin")
    with pytest.raises(UserError, match=message):
        run("from_tencentpretrain", path_in=path, path_out=tmp_path / "out", heads=4)
    assert not list(tmp_path.glob("out*"))


# Loading what is no model


def test_a_delta_is_no_base_and_the_command_that_recovers_it_is_named(tmp_path, delta, made):
    command = r"is a delta, not a model .*weight_diff.py recover --path_raw BASE --path_diff .* --path_tuned"
    old = save(tmp_path / "bin", noise(base_tensors(), torch.float16), "bin", 3)
    for folder in (delta[0], made, old):
        with pytest.raises(UserError, match=command):
            find_family(folder)
        with pytest.raises(UserError, match=command):
            load_base(folder, Precision("float32", 16), "cpu", codec=None)
    with pytest.raises(UserError, match=command):
        inference.main(["--model_name_or_path", str(delta[0]), "--input_file", str(GOLDEN / "train.json")])


def test_tencentpretrain_is_no_base_and_the_command_that_converts_it_is_named(chatflow):
    command = "chatflow_7b.bin is in TencentPretrain's format; .* from_tencentpretrain --path_in"
    with pytest.raises(UserError, match=command):
        find_family(chatflow, "chatflow")
    (chatflow / "config.json").write_text('{"emb_size": 4096}')  # a config, but not one of Hugging Face
    with pytest.raises(UserError, match=command):
        find_family(chatflow)


def test_real_models_are_no_deltas(tmp_path, embedded_base, chatflow):
    fresh = {
        name: torch.ones_like(t) if "norm" in name else t for name, t in noise(base_tensors(), torch.float16).items()
    }
    around_zero = noise(base_tensors(), torch.float16)
    for folder in (
        BASE,
        embedded_base,
        save(tmp_path / "fresh", fresh),
        save(tmp_path / "gemma", around_zero, config={**CONFIG, "model_type": "gemma2"}),
    ):
        assert read_config(folder)["model_type"]
    run("from_tencentpretrain", path_in=chatflow, path_out=chatflow / "hf", heads=4)
    for file in (chatflow / "hf").iterdir():
        file.rename(chatflow / file.name)
    assert read_config(chatflow)["model_type"] == "llama"  # the old file beside the new ones does no harm


# The command line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "recover --path_raw a --path_diff b --path_tuned c --chek False",
            "--chek: unknown flag; did you mean --check?",
        ),
        ("recover --path_raw a --path_diff b --path_tuned c float16", "'float16': a value without a flag"),
        ("recover --path_raw a --path_diff b", "required: --path_tuned"),
        ("recover a b c d", "'d': a value without a flag"),
        ("recove --path_raw a --path_diff b --path_tuned c", "recove: no command; did you mean recover?"),
        ("--path_raw a", "--path_raw: no command; begin with one of recover, make_diff, merge, from_tencentpretrain"),
        ("merge --path_base a --path_adapter b --path_merged c --check False", "--check: unknown flag"),
        ("merge --base a --adapter b --output c", "--base: unknown flag; did you mean --path_base?"),
        ("merge --lora_weights b", "--lora_weights: unknown flag; did you mean --path_adapter?"),
        ("merge --model_name_or_path a", "--model_name_or_path: unknown flag; did you mean --path_base?"),
        ("merge --path_base a --output_dir c", "--output_dir: unknown flag; did you mean --path_merged?"),
        ("recover --base-model-path a", "--base_model_path: unknown flag; did you mean --path_raw?"),
        ("recover --target-model-path a", "--target_model_path: unknown flag; did you mean --path_tuned?"),
        ("recover --delta-path=a", "--delta_path: unknown flag; did you mean --path_diff?"),
        ("from_tencentpretrain --input_model_path a", "--input_model_path: unknown flag; did you mean --path_in?"),
        ("merge --path_base= --path_adapter b --path_merged c", "--path_base: a value is empty"),
    ],
)
def test_a_misspelt_command_line_starts_nothing_and_names_the_flag_that_was_meant(words, message, monkeypatch):
    monkeypatch.setattr(weight_diff, "tensors_of", lambda *_: pytest.fail("work was started"))
    with pytest.raises(UserError) as caught:
        weight_diff.main(words.split())
    assert message in str(caught.value)


def test_help_lists_the_commands_and_their_flags_in_plain_words(capsys):
    weight_diff.main([])
    assert "\n  merge: Add an adapter" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        weight_diff.main(["merge", "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert re.search(r"--path_adapter PATH_ADAPTER\s+folder of the adapter", text)
    assert "GROUP" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recover", "--path_raw", "a", "--path_diff", "b", "--path_tuned"], "--path_tuned: its value is missing"),
        (["recover", "--path_raw", "--path_diff", "b", "--path_tuned", "c"], "--path_raw: its value is missing"),
        (["recover", "a", "b", "c", "--check", "perhaps"], "--check perhaps: expected True or False"),
        (["recover", "a", "b", "c", "--expected_sum", "many"], "--expected_sum many: expected a number"),
        (["recover", "1e3", "b", "c"], "--path_raw 1e3: no such folder"),
        (["recover", str(BASE), str(BASE), "c", "--dtype", "int8"], "--path_diff .* is a whole model"),
        (["make_diff", str(BASE), str(BASE), "c", "--dtype", "int8"], "--dtype int8: expected one of bf16"),
        (["merge", str(BASE), str(ADAPTER), "c", "--dtype", "fp32", "--is_fp16", "True"], "drop --is_fp16"),
    ],
)
def test_bad_values_are_one_clear_error(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        weight_diff.main(words)
    assert not list(tmp_path.iterdir())


def test_the_script_runs_from_any_folder_and_reports(tmp_path, delta):
    words = [
        "--path_raw",
        BASE,
        "--path_diff",
        delta[0],
        "--path_tuned",
        tmp_path / "out",
        "--check_integrity_naively=False",
    ]
    done = python(SCRIPT, "recover", *words)
    assert done.returncode == 0, done.stderr
    assert "30 tensors, 333,760 weights in float16, 6 shards read, 1 written" in done.stderr
    assert "peak memory" in done.stderr
    again = python(SCRIPT, "recover", *words)
    assert again.returncode == 2
    assert again.stderr.startswith("error: --path_tuned")


def test_shards_without_an_index_must_be_all_there(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    (base / "pytorch_model.bin.index.json").unlink()
    (base / "pytorch_model-00004-of-00004.bin").unlink()
    with pytest.raises(UserError, match=r"3 of 4 shards are there, and no index"):
        tensors_of(base, "path_base")


def test_an_adapter_that_is_on_some_layers_of_the_base_is_not_merged(tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(ADAPTER, folder)
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True)
    torch.save({n: t for n, t in tensors.items() if "layers.1.self_attn.v" not in n}, folder / "adapter_model.bin")
    with pytest.raises(UserError, match="its file lacks 2 of the 12 tensors .*layers.1.self_attn.v_proj"):
        weight_diff.merge(str(BASE), str(folder), str(tmp_path / "out"))


def test_a_folder_that_another_run_is_writing_is_left_alone(tmp_path):
    plan = {"a": ((2,), torch.float32)}
    partial = writing.begin_folder(tmp_path / "out", "path_tuned", plan)
    with pytest.raises(UserError, match="another run is writing it"):
        writing.begin_folder(tmp_path / "out", "path_tuned", plan)
    assert partial.is_dir()


def test_a_bin_file_that_begins_as_an_archive_and_is_cut_is_named(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "pytorch_model.bin")
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="pytorch_model.bin"):
        whole_files(tmp_path, "model_name_or_path")
