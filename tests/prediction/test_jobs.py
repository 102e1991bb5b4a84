"""Jobs of the server, as far as they need no model."""

from types import SimpleNamespace

import pytest

from decoding.answers import STOPPED, Answer, Failure, Rules
from prediction import jobs, partial
from prediction.questions import Question


def test_answers_that_come_with_the_end_of_the_server_are_kept(tmp_path):
    records, output = [{"instruction": "", "input": ""}] * 3, tmp_path / "predictions.json"
    task = SimpleNamespace(output_file=str(output), records=records, questions=[Question(n, "", [5]) for n in range(3)])

    def ask(questions, told, background):
        for index in range(3):
            told(index, Failure(STOPPED) if index == 0 else Answer("(a,b,c)", "eos", 3))

    server = SimpleNamespace(ask=ask, stop=lambda asked: None, ending=True, rules=Rules(8))
    with pytest.raises(jobs.Stopped):
        jobs._answer(server, task, {"batch_size": 1}, lambda *_: None, lambda: False)
    assert sorted(partial.read_finished(output)) == [1, 2]
