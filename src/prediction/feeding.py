"""One run of the engine `fast` that several shards feed, so that a card does not run empty between two of them."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, as_completed, wait
from itertools import count
from queue import SimpleQueue

from decoding.answers import STOPPED, Answer, Failure, Rules
from decoding.constrained import Limits
from decoding.fast_engine import Live
from decoding.fast_engine import answers as answer_live
from decoding.laid import takes_more
from kg.permitted import Asked
from prediction.opening import Opening

SPARE = 64  # tokens by which a prompt may be longer: votes, and parts of a list, change the order of relations
TOGETHER = 2  # shards that are at work: one begins while the last answers of the other are made


def feeds(plan: Opening, model) -> bool:
    """Whether shards are to share a run: on a CPU few records are at work, and their end costs little."""
    one_way = plan.engine == "fast" and takes_more(model, plan.codec) and not plan.serving.retry_length
    return one_way and model.device.type == "cuda"


class Feed:
    """Its `answers` is that of an engine, but for several threads at once, whose prompts are answered side by side.

    `longest`: tokens of the longest prompt, but for SPARE. Rows and drafts are those of the first call. There is room
    for as many of the longest prompts and answers, as far as the memory goes: what comes later may be longer than what
    the first call asks.
    """

    def __init__(self, plan: Opening, model, longest: int):
        self.plan, self.model, self.prompt = plan, model, longest
        self.longest = longest + SPARE + plan.serving.rules.max_new_tokens
        self.changed = threading.Condition()
        self.waiting: deque[tuple[int, list[int], Asked | None]] = deque()  # (number, prompt, with --constrain more)
        self.askers: dict[int, tuple[SimpleQueue, int]] = {}  # number -> where its answer goes, under which number
        self.numbers, self.limits, self.thread, self.ending = count(), None, None, False
        self.rules: Rules | None = None  # that every call goes by, once whoever asks first has chosen them

    def answers(
        self, model, codec, prompts: dict[int, list[int]], rules: Rules, limits: Limits | None = None
    ) -> Iterator[dict[int, Answer | Failure]]:
        """See decoding/engines.py. What the run raises, every call raises."""
        made, mine, left = SimpleQueue(), [], len(prompts)
        with self.changed:
            if self.ending:
                raise RuntimeError("the model has ended")
            if self.thread is None:
                self._begin(rules, limits is not None)
            for own, ids in prompts.items():
                number = next(self.numbers)
                mine.append(number)
                self.askers[number] = made, own
                self.waiting.append((number, ids, limits and limits.asked[own]))
            self.changed.notify_all()
        try:
            while left:
                group = made.get()
                if isinstance(group, BaseException):
                    raise group
                left -= len(group)
                yield group
        finally:
            with self.changed:
                for number in mine:
                    self.askers.pop(number, None)

    def close(self) -> None:
        """End the run; calls that wait raise."""
        with self.changed:
            self.ending = True
            self.changed.notify_all()
        if self.thread:
            self.thread.join()

    def guess_length(self, lengths: list[int]) -> int:
        """Tokens of the prompts that rows are counted by, of `lengths` of those that are there: their mean, or half of
        the longest where that is less. Rows that stay empty cost little, and shorter prompts may come.
        """
        return max(1, min(sum(lengths) // len(lengths), self.prompt // 2))

    def _begin(self, rules: Rules, limited: bool) -> None:
        if limited:
            self.limits = self.plan.limits._replace(asked={})
        self.thread = threading.Thread(target=self._run, args=(rules,), name="feed", daemon=True)
        self.thread.start()

    def _run(self, rules: Rules) -> None:
        more, room = {"limits": self.limits} if self.limits else {}, rules.batch_size * self.longest
        live = Live(room, self.longest, self._take, self._is_wanted, read_along=False)
        try:
            for made in answer_live(self.model, self.plan.codec, {}, rules, live=live, **more):
                groups: dict[SimpleQueue, dict] = {}
                with self.changed:
                    for number, answer in made.items():
                        if self.limits:
                            self.limits.asked.pop(number, None)
                        if number in self.askers and answer != Failure(STOPPED):  # who asked may have gone
                            queue, own = self.askers.pop(number)
                            groups.setdefault(queue, {})[own] = answer
                for queue, group in groups.items():
                    queue.put(group)
                if self.ending:
                    break
            error = RuntimeError("the model has ended")
        except BaseException as found:  # noqa: BLE001 - every thread that waits shall raise it
            error = found
        with self.changed:
            self.ending = True
            for queue in {id(queue): queue for queue, _ in self.askers.values()}.values():
                queue.put(error)

    def _is_wanted(self, number: int, said: list[int]) -> bool:
        """As Live.took."""
        return number in self.askers and not self.ending

    def _take(self, free: int, idle: bool) -> dict[int, list[int]] | None:
        """As Live.more."""
        with self.changed:
            while idle and not self.waiting and not self.ending:
                self.changed.wait()
            if self.ending:
                return None
            taken = {}
            while self.waiting and len(taken) < free:
                number, ids, asked = self.waiting.popleft()
                if number in self.askers:
                    taken[number] = ids
                    if self.limits:
                        self.limits.asked[number] = asked
            return taken


def side_by_side(function: Callable, items: Iterable, most: int) -> Iterator:
    """function(item) of all items, `most` of them at a time, each in a thread, as they are finished."""
    if most == 1:
        yield from map(function, items)
        return
    pool, running = ThreadPoolExecutor(most), set()
    try:
        for item in items:
            running.add(pool.submit(function, item))
            if len(running) == most:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        yield from (one.result() for one in as_completed(running))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
