"""The top folder of a model in the hub cache stands for its snapshot."""

import json
import shutil

import pytest
from helpers import GOLDEN, rows
from helpers_prediction import flags

import inference
from checkpoints.hub_cache import find_snapshot
from common.errors import UserError
from utils import weight_diff
from utils.args import parse_finetune
from utils.args_pt import parse_ptuning

OLD, NEW = "0" * 40, "f" * 40


def cached(folder, *snapshots, main=None, source=GOLDEN / "checkpoint"):
    """A model as huggingface_hub keeps it: links to blobs in a folder for every revision."""
    top = folder / "models--some--llama"
    (top / "blobs").mkdir(parents=True)
    (top / "snapshots").mkdir()
    for name in snapshots:
        (top / "snapshots" / name).mkdir()
        for file in source.iterdir():
            shutil.copy(file, top / "blobs")
            (top / "snapshots" / name / file.name).symlink_to(top / "blobs" / file.name)
    if main:
        (top / "refs").mkdir()
        (top / "refs" / "main").write_text(main)
    return top


def test_the_only_snapshot_or_the_one_of_main_is_taken_and_said(tmp_path, capsys):
    top = cached(tmp_path, NEW)
    for folder in (top, top / "snapshots"):
        assert find_snapshot(folder, "model_name_or_path") == str(top / "snapshots" / NEW)
        assert f"model_name_or_path: {top / 'snapshots' / NEW} (the snapshot" in capsys.readouterr().err
    shutil.rmtree(top)
    top = cached(tmp_path, OLD, NEW, main=f"{OLD}\n")
    assert find_snapshot(top, "model_name_or_path") == str(top / "snapshots" / OLD)


@pytest.mark.parametrize("main", [None, "another"])
def test_of_several_snapshots_one_has_to_be_named(tmp_path, main):
    top = cached(tmp_path, OLD, NEW, main=main)
    with pytest.raises(UserError, match=f"--path_raw .*2 snapshots; give one of them: .*{OLD}, .*{NEW}"):
        find_snapshot(top, "path_raw")
    shutil.rmtree(top / "snapshots" / OLD)
    shutil.rmtree(top / "snapshots" / NEW)
    with pytest.raises(UserError, match="0 snapshots; download the model again"):
        find_snapshot(top, "path_raw")


def test_the_cache_of_all_models_lists_them(tmp_path):
    cached(tmp_path, NEW)
    with pytest.raises(UserError, match=r"the cache of several models; give the folder of one: .*models--some--llama"):
        find_snapshot(tmp_path, "model_name_or_path")


def test_any_other_folder_stays_what_it_is(tmp_path, capsys):
    for folder in (GOLDEN / "checkpoint", tmp_path, tmp_path / "nowhere", "relative"):
        assert find_snapshot(folder, "model_name_or_path") == str(folder)
    assert capsys.readouterr().err == ""


def test_every_command_takes_it(tmp_path, capsys):
    base = cached(tmp_path / "base", NEW)
    snapshot = str(base / "snapshots" / NEW)
    adapter = cached(tmp_path / "adapter", NEW, source=GOLDEN / "adapter")
    out = tmp_path / "out.json"
    inference.main(flags(out, model_name_or_path=base, lora_weights=adapter, max_new_tokens=2))
    assert len(rows(out)) == 12
    made = json.loads(out.with_name("out.run.json").read_text(encoding="utf-8"))
    assert (made["base"], made["adapter"]) == (snapshot, str(adapter / "snapshots" / NEW))
    train = ["--train_file", "train.json", "--output_dir", str(tmp_path / "run")]
    assert (
        parse_finetune(["--do_train", "--model_name_or_path", str(base), *train]).model.model_name_or_path == snapshot
    )
    assert parse_ptuning(["--model_dir", str(base), *train])[0].model_name_or_path == snapshot
    words = ("merge", "--path_base", base, "--path_adapter", adapter, "--path_merged", tmp_path / "merged")
    weight_diff.main([str(word) for word in words])
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
