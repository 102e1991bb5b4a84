"""What scripts/bench_constrain.py prints, and what it says of bases that it cannot widen."""

import bench_constrain
import pytest
import torch
from helpers_prediction import VALID

from common.errors import UserError
from decoding import fast_engine


def test_each_way_answers_all_records_and_has_its_ratio(random_base, monkeypatch, capsys):
    monkeypatch.setattr(fast_engine, "Walks", fast_engine.Walks)  # the script puts its own in its place
    flags = ["--model_name_or_path", str(random_base), "--input_file", str(VALID), "--max_new_tokens", "3", "--fp32"]
    bench_constrain.main(["--rounds", "1", "--widen", "2", "--", *flags])
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[2:5]] == ["without", "relations", "text"]
    assert [int(line.split()[4]) > 0 for line in out[2:5]] == [False, True, True]  # tokens that were refused
    assert [line.split(":")[0] for line in out[5:]] == ["median of relations", "median of text"]


def test_what_cannot_be_widened_is_an_error():
    with pytest.raises(UserError, match="--widen needs --merge_lora"):
        bench_constrain.widen(torch.nn.Linear(2, 2), 2)
    part = torch.nn.Module()
    part.gate_proj, part.up_proj, part.down_proj = (torch.nn.Linear(2, 2) for _ in range(3))
    with pytest.raises(UserError, match="without biases"):
        bench_constrain.widen(part, 2)
    with pytest.raises(UserError, match="--rounds 0: expected 1 or more"):
        bench_constrain.main(["--rounds", "0"])
