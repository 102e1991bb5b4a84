"""Shards that workers have when something ends a run of Ray's: they are yielded first. Ray is played by a list of what
it would give, in the order in which it would.
"""

from types import SimpleNamespace

import pytest

from common.errors import UserError
from prediction.distributed import AHEAD, Reply, spread


class RayError(Exception):
    """As Ray's own."""


class RayActorError(RayError):
    """A worker that is lost."""


class Started:
    """A worker."""

    def __init__(self, call):
        self.open, self.call = SimpleNamespace(remote=lambda *_: ("open", self)), SimpleNamespace(remote=call)


class Playing:
    """What `spread` asks of Ray: calls are answered in their order, with what `answers` has for the job."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayActorError=RayActorError, ObjectLostError=RayActorError, NodeDiedError=RayActorError
    )

    def __init__(self, answers):
        self.answers, self.begun = answers, []

    def start(self):
        return Started(self.call)

    def call(self, number):
        self.begun.append(number)
        return "call", number

    def wait(self, refs, timeout):
        return refs[:1], refs[1:]

    def get(self, ref):
        kind, number = ref
        answer = self.answers.get(number, f"answer {number}") if kind == "call" else None
        if isinstance(answer, RayError | KeyboardInterrupt):
            raise answer
        return Reply(answer, [])

    def kill(self, worker):
        pass


def numbered(count):
    """Jobs: (number, what is asked) each."""
    return ((number, number) for number in range(count))


def take(results, got):
    """Enter the numbers of results as they come."""
    for number, result in results:
        assert result == f"answer {number}"
        got.append(number)


def run(answers, jobs):
    """(numbers that were begun, numbers that were yielded, the error) of a run with one worker."""
    ray, got = Playing(answers), []
    cluster = SimpleNamespace(ray=ray, args=SimpleNamespace(workers=1), start=ray.start)
    cluster.waiting, cluster.precision, cluster.said, cluster.decided = [], None, set(), {}
    with pytest.raises((UserError, OSError, KeyboardInterrupt)) as caught:
        take(spread(cluster, 1, jobs, 0), got)
    return ray.begun, got, caught.value


ENDS = {  # what shard 1 of nine comes to -> what the run ends with
    "an error for a person": (UserError("no such file"), "no such file"),
    "an error of its worker": (RayError("KeyError: 7"), "--ray: shard 1 failed (KeyError: 7)"),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_workers_have_when_a_shard_fails_is_yielded_first_and_nothing_else_is_begun(capsys, end):
    error, said = ENDS[end]
    begun, got, raised = run({1: error}, numbered(9))
    assert begun == [0, 1, 2]
    assert got == [0, 2]
    assert str(raised).startswith(said)
    assert capsys.readouterr().err == "ray: an error ends this run; shards that workers have are finished first: 1\n"


def test_the_first_error_is_the_one_that_is_raised(capsys):
    begun, got, raised = run({0: UserError("first"), 1: UserError("second")}, numbered(9))
    assert (begun, got, str(raised)) == ([0, 1], [], "first")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_worker_that_is_lost_meanwhile_is_not_waited_for_and_its_shard_is_left(capsys):
    begun, got, raised = run({0: UserError("first"), 1: RayActorError("gone")}, numbered(9))
    assert (begun, got, str(raised)) == ([0, 1], [], "first")
    assert capsys.readouterr().err.endswith("ray: a worker was lost (gone); shard 1 is asked again\n")


@pytest.mark.parametrize("error", [UserError("docs/7.txt: gone"), OSError("disk")])
def test_an_error_of_reading_the_next_shard_loses_none_that_workers_have(error):
    def jobs():
        yield from numbered(AHEAD + 1)
        raise error

    begun, got, raised = run({}, jobs())
    assert begun == got == [0, 1, 2]  # one was yielded, and two are asked, when the fourth is read
    assert raised is error


def test_ctrl_c_ends_a_run_at_once():
    begun, got, _ = run({0: UserError("first"), 1: KeyboardInterrupt()}, numbered(9))
    assert (begun, got) == ([0, 1], [])
