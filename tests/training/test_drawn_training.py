"""Trainings whose relation lists are drawn: gone on from the middle of an epoch, with processes that load the rows."""

import json
import shutil

import pytest
import torch
from helpers_training import flags
from safetensors.torch import load_file

from common.errors import UserError
from common.files import write_rows
from test_finetune import main

NAMES = ["位于", "别名", "国籍"]


def record(number):
    return {
        "id": number,
        "cate": "人",
        "instruction": f"关系列表：{NAMES[number % 2 :]}，请抽取。",
        "input": f"甲{number}在乙。",
        "output": f"(甲{number},别名,乙),(甲{number},国籍,丙)",
    }


DRAWN = {"schema_batch": 2, "negative_relations": 1, "max_steps": 7, "save_strategy": "steps", "save_steps": 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 7 steps in epochs of 4 (4 records, 8 rows), its checkpoint at step 5."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder / "train.json", map(record, range(4)))
    main(flags(folder / "run", "--shuffle_schema", **DRAWN, train_file=folder / "train.json"))
    return folder


def test_a_run_gone_on_from_within_an_epoch_has_the_same_rows(trained, tmp_path, capsys):
    again = tmp_path / "run"
    shutil.copytree(trained / "run", again)
    shutil.rmtree(again / "checkpoint-7")
    (again / "adapter_model.safetensors").unlink()
    run = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps(run | {"status": "training"}))
    more = {"train_file": trained / "train.json", "resume_from_checkpoint": "auto"}
    main(flags(again, "--shuffle_schema", **DRAWN, **more, dataloader_num_workers=2))
    assert "checkpoint-5\n" in capsys.readouterr().err
    one, two = load_file(trained / "run/adapter_model.safetensors"), load_file(again / "adapter_model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UserError, match="the run to resume was started otherwise .*'shuffle_schema': True"):
        main(flags(again, **DRAWN, **more))
