"""A run.json that says too little is no run to be resumed, and no traceback."""

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
    manifest.write_run(tmp_path, left)
    args = SimpleNamespace(output_dir=tmp_path, resume_from_checkpoint="auto")
    assert is_done(args, RUN, resume="checkpoint-2") is done
