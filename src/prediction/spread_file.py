"""A file of records shared by Ray: its questions are handed out in shards, and what comes back is its partial file."""

import time
from collections.abc import Iterator

from tqdm import tqdm

from common.errors import keeping
from loading.shape import check_vocabulary
from prediction import partial
from prediction.distributed import count_places, decided_by, join_cluster, plan_on_worker, spread
from prediction.predicting import (
    NOTHING_DONE,
    Share,
    Task,
    cut_short,
    finish_file,
    hold_partial,
    in_order,
    make_task,
    resume_answers,
    warn_context,
)
from prediction.texts import Opened, answer_silently


def answer_file_spread(model_args, args, records: list[dict], started: float) -> None:
    """As prediction.predicting.answer_file, by the workers of a cluster; either goes on with what the other kept."""
    with join_cluster(args, model_args) as cluster:
        plan = plan_on_worker(cluster)
        task = make_task(plan, records, args, args.input_file)
        asked = {number: question for number, question in enumerate(task.questions) if question.ids}
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
            finish_file(task, settings, [sum_up(shares)], decided, started)


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


def answer_numbers(opened: Opened, records: dict, questions: dict, done: dict, batch_size: int | None):
    """Questions of a file of records, by their numbers: (rows by number, Share)."""
    share = answer_silently(opened, records, questions, done, batch_size=batch_size)
    return done, share


def sum_up(shares: list[tuple[float, Share]]) -> Share:
    """What workers did together, of (when it came back, Share) of each shard; seconds: from the first to the last."""
    if not shares:
        return NOTHING_DONE
    failed = {number: reason for _, share in shares for number, reason in share.failed.items()}
    seconds = shares[-1][0] - min(end - share.seconds for end, share in shares)
    count, tokens = sum(share.count for _, share in shares), sum(share.tokens for _, share in shares)
    return Share(failed, count, tokens, seconds, max(share.peak for _, share in shares))
