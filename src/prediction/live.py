"""A model that many ask at once: one thread owns it, and all their questions share its batches.

Who asks first is answered first, a question of each in turn, so that a long text in many windows does not hold up a
short one. Questions in the background (of files) take places that nobody else waits for, and never all of them.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from common.errors import UserError, reason_of
from decoding.answers import STOPPED, Answer, Failure
from decoding.engines import ENGINES
from decoding.fast_engine import Live
from decoding.fast_sizes import Tuning
from decoding.laid import takes_more
from prediction.opening import Opening
from prediction.predicting import choose_drafts, size_for_engine
from prediction.questions import Question, permit

ROWS = {"cpu": 16, "cuda": 64}  # questions answered side by side, at most
TUNING = {"cpu": Tuning(steps=1, drafted=1, pass_tokens=2048), "cuda": Tuning(steps=4)}  # tokens are seen as they come


def choose_rows(plan: Opening, model, window: int) -> int:
    """Questions answered side by side: what the memory holds, at most ROWS."""
    most = ROWS[model.device.type]
    return min(most, size_for_engine(model, plan, [window] * most))


class Busy(UserError):
    """More questions wait than may."""


@dataclass(eq=False)
class Asked:
    """The questions of one asker. `told(index of a question, value)` is called from the model's thread: str, its answer
    so far; Answer or Failure, its end.
    """

    questions: list[Question]
    told: Callable[[int, str | Answer | Failure], None]
    background: bool
    left: deque = field(default_factory=deque)  # indices of questions that wait
    stopped: bool = False


class Server:
    """Answers the questions of many with one open model. `window`: tokens of the longest prompt; `rows`: questions side
    by side; `most_waiting`: questions that may wait, those in the background apart.
    """

    def __init__(self, plan: Opening, model, window: int, rows: int, most_waiting: int):
        self.plan, self.model, self.window, self.rows, self.most_waiting = plan, model, window, rows, most_waiting
        self.rules = plan.serving.rules._replace(batch_size=rows)
        self.limits = plan.limits._replace(asked={}) if self.rules.constrain else None
        self.lock = threading.Condition()
        self.waiting: dict[bool, deque[Asked]] = {False: deque(), True: deque()}  # in the background or not
        self.running: dict[int, tuple[Asked, int]] = {}  # number -> who asked, and which of their questions
        self.numbers, self.answered, self.broken, self.ending = count(), 0, None, False
        self.thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def ask(self, questions: list[Question], told: Callable, background: bool = False) -> Asked:
        """Queue questions. Busy when too many wait; UserError when the model has failed for good.

        A question without a prompt is told its Failure at once.
        """
        asked = Asked(questions, told, background, deque(i for i, one in enumerate(questions) if one.ids))
        with self.lock:
            if self.broken or self.ending:
                raise UserError(self.broken or "the server is stopping")
            if not background and self.count_waiting() + len(asked.left) > self.most_waiting and self.count_waiting():
                raise Busy(f"{self.count_waiting()} questions wait already; ask again in a moment")
            if asked.left:
                self.waiting[background].append(asked)
            self.lock.notify_all()
        for index, question in enumerate(questions):
            if not question.ids:
                told(index, Failure(question.reason))
        return asked

    def stop(self, asked: Asked) -> None:
        """Its questions that wait are dropped, those at work are ended; nothing more is told."""
        with self.lock:
            asked.stopped = True
            asked.left.clear()
            self.lock.notify_all()

    def count_waiting(self) -> int:
        """Questions that wait, without those in the background."""
        return sum(len(asked.left) for asked in self.waiting[False])

    def state(self) -> dict:
        with self.lock:
            return {
                "waiting": self.count_waiting(),
                "running": len(self.running),
                "answered": self.answered,
                "broken": self.broken,
            }

    def close(self, seconds: float = 5.0) -> None:
        """End the thread; what is not answered is told that it was stopped."""
        with self.lock:
            self.ending = True
            self.lock.notify_all()
        self.thread.join(seconds)

    def _work(self) -> None:
        try:
            engine = ENGINES[self.plan.engine].answers
            rules = self.rules._replace(drafts=choose_drafts(self.model, self.plan, self.rows).value)
            more = {"limits": self.limits} if self.limits else {}
            if self.plan.engine == "fast" and takes_more(self.model, self.plan.codec):
                longest = self.window + self.rules.max_new_tokens
                live = Live(self.rows * longest, longest, self._take, self._took)
                tuning = TUNING[self.model.device.type]
                groups = engine(self.model, self.plan.codec, {}, rules, tuning, live=live, **more)
                self._hand_over(groups)
                return
            while (taken := self._take(self.rows, True)) is not None:
                longest_first = dict(sorted(taken.items(), key=lambda item: -len(item[1])))
                self._hand_over(engine(self.model, self.plan.codec, longest_first, rules, **more))
        except Exception as error:  # noqa: BLE001 - whatever a model raises, those who wait are told
            self.broken = f"the model has failed: {reason_of(error)}; start the server again"
        finally:
            self._end_all(Failure(self.broken or STOPPED))

    def _take(self, free: int, idle: bool) -> dict[int, list[int]] | None:
        """Prompts for `free` places at most; where nothing is at work it waits for one. None: the end."""
        taken = {}
        with self.lock:
            while idle and not self.ending and not any(asked.left for kind in self.waiting.values() for asked in kind):
                self.lock.wait()
            if self.ending:
                return None
            behind = sum(asked.background for asked, _ in self.running.values())
            room = {False: free, True: min(free, self.rows - max(1, self.rows // 4) - behind)}
            if self.rows == 1:
                room[True] = free
            for kind, queue in self.waiting.items():
                while queue and len(taken) < room[kind]:
                    asked = queue.popleft()
                    if not asked.left:
                        continue  # stopped
                    index = asked.left.popleft()
                    question, number = asked.questions[index], self._number(asked, index)
                    if self.limits:
                        self.limits.asked[number] = permit(self.plan, {0: question}, silent=True)[0]
                    taken[number], self.running[number] = question.ids, (asked, index)
                    if asked.left:
                        queue.append(asked)
        return taken

    def _number(self, asked: Asked, index: int) -> int:
        """The number of a question, by which its answer is known, and drawn with --do_sample: then it is made of the
        question, so that what was asked before has no part in the answer.
        """
        if not self.rules.do_sample:
            return next(self.numbers)
        ids = asked.questions[index].ids
        again = sum(one.ids == ids for one in asked.questions[:index])  # --votes
        number = int.from_bytes(hashlib.sha256(f"{ids} {again}".encode()).digest()[:8], "big")
        while number in self.running:  # the same question at the same time is drawn as a question of its own
            number += 1
        return number

    def _took(self, number: int, ids: list[int]) -> bool:
        asked, index = self.running[number]
        if asked.stopped or self.ending:
            return False
        if asked.background:
            return True
        try:
            text = self.plan.codec.decode(ids)
        except Exception:  # noqa: BLE001 - whatever one record's tokens make a tokenizer raise; its end says it again
            return True
        asked.told(index, text.strip().rstrip("\ufffd"))
        return True

    def _hand_over(self, groups) -> None:
        for made in groups:
            for number, answer in made.items():
                with self.lock:
                    asked, index = self.running.pop(number)
                    self.answered += 1
                if self.limits:
                    self.limits.asked.pop(number, None)
                if not asked.stopped:
                    asked.told(index, answer)

    def _end_all(self, failure: Failure) -> None:
        with self.lock:
            self.ending = True
            left = [(asked, index) for kind in self.waiting.values() for asked in kind for index in asked.left]
            left += self.running.values()
            self.waiting = {False: deque(), True: deque()}
            self.running = {}
        for asked, index in left:
            if not asked.stopped:
                asked.told(index, failure)
