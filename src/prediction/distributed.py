"""Work shared by Ray: shards are handed out to workers with a model each, and what comes back is written here.

Ray decides where workers run, watches them and their machines, and finds new machines. A shard whose worker is
lost is given to another one. Nothing here depends on which worker answers what, or when.

The project, the weights and the environment have to be at the same paths on every machine; texts and answers travel.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tqdm import tqdm

from common.decisions import Decision, decide
from common.errors import UserError, hearing, keeping, reason_of, say
from data.records import load_records
from loading.precision import Precision
from loading.shape import check_vocabulary
from prediction import partial
from prediction.corpus import Corpus, Shard
from prediction.opening import Opening, plan_adapter
from prediction.predicting import (
    NOTHING_DONE,
    Share,
    Task,
    cut_short,
    finish_file,
    hold_partial,
    in_order,
    resume_answers,
    warn_context,
)
from prediction.questions import ask_all
from prediction.texts import Opened, answer_documents, answer_silently, open_planned

SOURCE = Path(__file__).resolve().parents[1]
AHEAD = 2  # shards a worker has, for it never to wait for the next
LOOK = 2.0  # seconds between two looks at which machines there are
OPENING = 120.0  # seconds that a worker may take to open its model before the others have its shards ahead
TIMES = 5  # a shard whose worker is lost so often is at fault itself; so are workers that never come to answer


class Reply(NamedTuple):
    """What a worker sends back."""

    value: object  # a UserError: what went wrong, for the person to mend
    said: list[str]  # the lines that it would have said in the driver's place
    decided: dict[str, Decision] = {}  # with its first shard  # noqa: RUF012


class Worker:
    """A process of Ray's with a model. Every method gives a Reply."""

    def __init__(self, model_args, args):
        self.flags, self.opened, self.turn = (model_args, args), None, Lock()

    def plan(self) -> Reply:
        """The value: an Opening."""
        return reply_with(plan_adapter, *self.flags)

    def open(self, longest: int, precision: Precision) -> Reply:
        """Read the weights; `longest`: tokens of the longest prompt; `precision`: of the worker that made the plan."""
        return reply_with(self._open, longest, precision)

    def _open(self, longest: int, precision: Precision) -> None:
        plan = plan_adapter(*self.flags)
        if plan.serving.precision != precision:
            mine, first = (f"{one.name}, --bits {one.bits}" for one in (plan.serving.precision, precision))
            raise UserError(f"--ray: a worker would take {mine}, another {first}; say which: --bf16, --fp32, …")
        self.opened = open_planned(plan, longest)

    def call(self, function: Callable, *arguments) -> Reply:
        """The value: `function(the model, *arguments)`. Of what it says, what is about more than one shard."""
        with nullcontext() if self.opened.feed else self.turn:  # calls come in threads of their own
            value, said, _ = reply_with(function, self.opened, *arguments)
        told = [line for line in said if line.startswith(("warning", "drafts: "))]
        return Reply(value, told, dict(self.opened.decided))


def reply_with(function: Callable, *arguments) -> Reply:
    """`function(*arguments)`, or the UserError that it raises; the driver gets other errors from Ray."""
    with hearing() as said:
        try:
            value = function(*arguments)
        except UserError as error:
            value = error
        except torch.AcceleratorError as error:  # the card takes no further orders from this process
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
        except Exception:
            traceback.print_exc()  # into Ray's logs: the driver says but one line
            raise
    return Reply(value, said)


def read_reply(cluster, reply: Reply):
    """The value of a worker's Reply; what it says is said here, but each line once, whichever worker comes with it."""
    for line in reply.said:
        if line not in cluster.said:
            cluster.said.add(line)
            say(line)
    if isinstance(reply.value, UserError):
        raise reply.value
    return reply.value


@contextmanager
def join_cluster(args, model_args, worker: type = Worker):
    """A cluster that workers can be started on until the block ends; `args`: with utils.args_ray.RayFlags."""
    try:
        import ray
    except ImportError:
        raise UserError(f"--ray {args.ray} needs the package ray: pip install -r requirements-ray.txt") from None
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in its place
    try:
        address = None if args.ray == "auto" else args.ray  # None: RAY_ADDRESS, else one that runs here, else a new one
        check_address(address)
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="error")
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--ray {args.ray}: no cluster ({str(error).splitlines()[0]:.200}); ray status shows it"
        ) from None
    signal.signal(signal.SIGTERM, handler)
    try:
        paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
        needs = choose_needs(ray, args)
        how = {**needs, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": AHEAD}
        how["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}}
        actor = ray.remote(worker).options(**how)
        flags = absolute(model_args), absolute(args if "num_gpus" in needs else replace(args, device="cpu"))
        cluster = SimpleNamespace(ray=ray, args=args, needs=needs, start=lambda: actor.remote(*flags))
        cluster.waiting, cluster.precision = [], None  # workers without a model; what `plan_on_worker` finds
        cluster.said, cluster.decided = set(), {}  # lines of workers that were said here; what the first one decides
        where = f"{_say_needs(needs)} each, on {len(nodes(ray))} machines of Ray"
        cluster.workers = decide("workers", count_places(cluster), where)
        yield cluster
    finally:
        ray.shutdown()


def check_address(address: str | None, seconds: float = 10) -> None:
    """OSError, or ValueError, where nothing listens: Ray would try for a minute."""
    if address is not None:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host or "localhost", int(port)), seconds).close()


def absolute(flags):
    """The flags with paths that mean the same in every process."""
    changed = {}
    for name in ("model_name_or_path", "lora_weights", "prompt_template_name", "output_file"):
        value = getattr(flags, name, None)
        if value and (os.path.exists(value) or name == "output_file"):
            changed[name] = os.path.abspath(value)
    return replace(flags, **changed)


def nodes(ray) -> list[dict]:
    """The resources of the machines that live, as Ray counts them."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def choose_needs(ray, args) -> dict[str, int]:
    """What a worker takes: a card, or --cpus_per_worker cores, or as many as the smallest machine has."""
    if args.cpus_per_worker is None and args.device != "cpu" and any(node.get("GPU") for node in nodes(ray)):
        return {"num_gpus": 1}
    smallest = min((int(node["CPU"]) for node in nodes(ray)), default=1)
    return {"num_cpus": args.cpus_per_worker or smallest}


def _say_needs(needs: dict[str, int]) -> str:
    return "one GPU" if "num_gpus" in needs else f"{needs['num_cpus']} cores"


def count_places(cluster) -> int:
    """Workers that may be started: --workers, else as many as the machines have room for now."""
    if cluster.args.workers:
        return cluster.args.workers
    (name, each), names = next(iter(cluster.needs.items())), {"num_gpus": "GPU", "num_cpus": "CPU"}
    return sum(int(node.get(names[name], 0) // each) for node in nodes(cluster.ray))


def plan_on_worker(cluster) -> Opening:
    """The plan as it is made where models will be: this machine may lack a card, or torch's build for one.

    All workers are started, for each takes seconds to come up; the plan is that of the first one there.
    """
    places = count_places(cluster)
    if not places:
        raise UserError(f"--ray {cluster.args.ray}: no machine has {_say_needs(cluster.needs)}; ray status shows them")
    ray, cluster.waiting = cluster.ray, [cluster.start() for _ in range(places)]
    plans = {worker.plan.remote(): worker for worker in cluster.waiting}
    first = ray.wait(list(plans), num_returns=1)[0][0]
    try:
        reply = ray.get(first)
    except ray.exceptions.RayActorError as error:
        raise UserError(f"--ray {cluster.args.ray}: a worker cannot start ({_first_line(error)})") from None
    except ray.exceptions.RayError as error:
        raise UserError(_say_failed("a worker, before it opened its model", error)) from None
    plan = read_reply(cluster, reply)
    cluster.waiting.sort(key=lambda worker: worker is plans[first])  # the last is taken first
    cluster.precision = plan.serving.precision
    return plan


def decided_by(cluster, plan: Opening) -> dict[str, Decision]:
    """What the workers have decided, for run.json."""
    return {**plan.decided, **cluster.decided, "workers": cluster.workers}


def spread(cluster, longest: int, jobs: Iterable[tuple], look: float = LOOK) -> Iterator[tuple[int, object]]:
    """Have workers do `jobs`, (number, function, arguments…) each, and yield (number, result) as they are finished.

    Jobs are taken when a worker is free for them, so that few are held; `longest`: tokens of the longest prompt.
    UserError where a worker returns one or fails in another way, where a job has lost TIMES workers, or where so many
    end before one has opened its model. Whatever the error, that of `jobs` too: the jobs that workers have are yielded
    before it is raised, and no others are begun.
    """
    ray, jobs = cluster.ray, iter(jobs)
    losses = ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError
    again: deque = deque()  # jobs whose worker was lost
    lost: Counter = Counter()  # by the number of a job how often
    running: dict = {}  # what Ray will give -> (worker, job; None: it opens its model)
    begun: dict = {}  # worker -> when it was told to open its model
    busy: dict = {}  # worker that has opened -> jobs it has
    failed: list[Exception] = []  # the first of them ends the run, when no worker has a job any more
    looked = -look

    def fail(error: Exception) -> None:
        failed.append(error)
        left = sum(one is not None for _, one in running.values())
        if left and len(failed) == 1:
            say(f"ray: an error ends this run; shards that workers have are finished first: {left}")

    def count_ahead() -> int:
        """Shards that a worker may have: one, while another that will want one opens its model; it may be the last."""
        since = time.monotonic() - OPENING
        return 1 if any(done is None and begun[worker] > since for worker, done in running.values()) else AHEAD

    def next_job():
        try:
            return None if failed else again.popleft() if again else next(jobs, None)
        except Exception as error:  # noqa: BLE001 - of reading documents; it is raised at the end
            fail(error)

    def give_up(worker, job, error) -> None:
        busy.pop(worker, None)
        with suppress(Exception):
            ray.kill(worker)
        number, why = (job[0] if job else None), _first_line(error)
        lost[number] += 1
        if job:
            say(f"ray: a worker was lost ({why}); shard {number} is asked again{'' if failed else ' elsewhere'}")
            again.append(job)
        if lost[number] >= TIMES and (job or not busy):
            what = (
                f"shard {number} has lost {TIMES} workers" if job else f"{TIMES} workers ended as they opened the model"
            )
            fail(UserError(f"--ray: {what} ({why}); look at memory, and at Ray's logs on their machine"))

    job = next_job()
    while job is not None or any(one for _, one in running.values()):
        if job is not None and time.monotonic() - looked > look:
            looked = time.monotonic()
            for _ in range(count_places(cluster) - len(busy) - sum(one is None for _, one in running.values())):
                worker = cluster.waiting.pop() if cluster.waiting else cluster.start()
                running[worker.open.remote(longest, cluster.precision)] = worker, None
                begun[worker] = time.monotonic()
        ahead = count_ahead()
        while job is not None and (free := [worker for worker, count in busy.items() if count < ahead]):
            worker = min(free, key=busy.get)
            running[worker.call.remote(*job[1:])] = worker, job
            busy[worker] += 1
            job = next_job()
        if not running:  # no machine is left; one may come
            time.sleep(look)
            continue
        for ref in ray.wait(list(running), timeout=look)[0]:
            worker, done = running.pop(ref)
            try:
                reply = ray.get(ref)
                result = read_reply(cluster, reply)
            except losses as error:
                give_up(worker, done, error)
            except UserError as error:
                fail(error)
            except ray.exceptions.RayError as error:
                fail(UserError(_say_failed(f"shard {done[0]}" if done else "a worker, as it opened its model", error)))
            else:
                if done is None:
                    busy[worker], lost[None] = 0, 0
                    continue
                cluster.decided = cluster.decided or reply.decided
                if worker in busy:
                    busy[worker] -= 1
                yield done[0], result
                continue
            job = None if failed else job or next_job()
    if failed:
        raise failed[0]


def _first_line(error: Exception) -> str:
    """Why a worker was lost, in Ray's words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0]:.160}" if lines else type(error).__name__


def _say_failed(what: str, error: Exception) -> str:
    """One line for an error that a worker did not mean for a person; `error`: as Ray hands it on."""
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = reason_of(cause) if isinstance(cause, Exception) else lines[-1] if lines else type(error).__name__
    return (
        f"--ray: {what} failed ({why:.200}). Finished shards are kept: the same command asks the others. If it fails "
        "again, the traceback is in Ray's logs on the worker's machine (/tmp/ray/session_latest/logs/worker-*.err)"
    )


def answer_spread(cluster, corpus: Corpus, function: Callable = answer_documents, look: float = LOOK) -> Callable:
    """As prediction.corpus.answer_here, by the workers of a cluster; `function`: what they do with each shard."""

    def answer_all(shards: Iterator[Shard]) -> Iterator[tuple[Shard, list[dict], Share]]:
        wanted, given = cluster.ray.put(corpus.wanted), {}  # sent to each machine once; shards that are being asked

        def jobs() -> Iterator[tuple]:
            for shard in shards:
                given[shard.number] = shard
                yield shard.number, function, wanted, shard.asked, corpus.most, shard.again

        for number, (rows, share) in spread(cluster, corpus.most, jobs(), look):
            yield given.pop(number), rows, share

    return answer_all


def answer_numbers(opened: Opened, records: dict, questions: dict, done: dict, batch_size: int | None):
    """Questions of a file of records, by their numbers: (rows by number, Share)."""
    share = answer_silently(opened, records, questions, done, batch_size=batch_size)
    return done, share


def answer_file_spread(model_args, args, started: float) -> None:
    """As prediction.predicting.answer_file, by the workers of a cluster; either goes on with what the other kept."""
    with join_cluster(args, model_args) as cluster:
        plan = plan_on_worker(cluster)
        records = load_records(args.input_file, needs=("instruction", "input"))
        questions = ask_all(plan, records, args.window)
        task = Task(plan, records, questions, args.input_file, args.output_file, args.window, args.skip_failed)
        asked = {number: question for number, question in enumerate(questions) if question.ids}
        check_vocabulary(plan.serving.shape, [question.ids for question in asked.values()])
        with hold_partial(task, 0) as settings, keeping(lambda: partial.kept_answers(args.output_file, len(asked))):
            if asked:
                warn_context(task)
            done = resume_answers(task, settings, len(asked))
            shares = []
            jobs = file_jobs(cluster, task, asked, done, settings["batch_size"])
            longest = max((len(question.ids) for question in asked.values()), default=1)
            with tqdm(total=len(asked), initial=len(done), unit="record", desc="predicting") as bar:
                for _, (rows, share) in spread(cluster, longest, jobs):
                    if rows:
                        partial.append_answers(args.output_file, rows)
                    shares.append((time.monotonic(), share))
                    bar.update(share.count)
            decided = decided_by(cluster, plan)
            finish_file(task, [sum_up(shares)], decided, started)


def sum_up(shares: list[tuple[float, Share]]) -> Share:
    """What workers did together, of (when it came back, Share) of each shard; seconds: from the first to the last."""
    if not shares:
        return NOTHING_DONE
    failed = {number: reason for _, share in shares for number, reason in share.failed.items()}
    seconds = shares[-1][0] - min(end - share.seconds for end, share in shares)
    count, tokens = sum(share.count for _, share in shares), sum(share.tokens for _, share in shares)
    return Share(failed, count, tokens, seconds, max(share.peak for _, share in shares))


def file_jobs(cluster, task: Task, asked: dict, done: dict, batch_size: int | None) -> Iterator[tuple]:
    """The questions that are left, in shards that are alike: each has long and short ones, the longest first."""
    codec, rules, retry = task.plan.codec, task.plan.serving.rules, task.plan.serving.retry_length
    left = [
        number
        for number in in_order(asked)
        if number not in done or (retry and cut_short(done[number], asked[number].ids, codec, rules))
    ]
    size = max(1, min(cluster.args.shard_size, -(-len(left) // max(1, count_places(cluster)))))
    count = -(-len(left) // size)
    for at in range(count):
        mine = {number: asked[number] for number in left[at::count]}
        records = {question.record: task.records[question.record] for question in mine.values()}
        known = {number: done[number] for number in mine if number in done}
        yield at, answer_numbers, records, mine, known, batch_size
