"""The log of a training that goes on."""

import os

import pytest
from helpers import rows

from common.errors import UserError
from training.reporting import keep_log


def test_a_log_keeps_the_rows_before_its_step_and_nothing_damaged(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n\xcd\xff}\n[1]\n{"step": 3, "loss": 1.0}\n{"step": 2, "lo')
    keep_log(file, 2)
    assert rows(file) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_log_is_refused_and_never_waited_for(tmp_path, make):
    make(tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="log.jsonl: no file, but a folder, a pipe"):
        keep_log(tmp_path / "log.jsonl", 2)
