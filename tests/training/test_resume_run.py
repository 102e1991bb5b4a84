"""A run.json that says too little is no run that is finished, and no traceback."""

from types import SimpleNamespace

import pytest

from common import manifest
from training.resuming import is_done

RUN = {"status": "training", "base": "x", "planned": {"max_steps": 4}}


@pytest.mark.parametrize(
    ("left", "done"),
    [
        ({}, False),
        ({"status": "finished"}, False),
        ({"planned": RUN["planned"]}, False),
        (RUN, False),
        ({**RUN, "status": "finished"}, True),
    ],
)
def test_only_a_run_that_says_it_finished_what_is_planned_is_done(tmp_path, left, done):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    manifest.write_run(tmp_path, left)
    manifest.write_run(checkpoint, RUN)
    args = SimpleNamespace(output_dir=tmp_path, resume_from_checkpoint="auto")
    assert is_done(args, RUN, str(checkpoint)) is done
