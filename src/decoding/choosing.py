"""Which token comes next, and when a row is to stop: what `generate` of transformers is told beyond greedy search."""

import random

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kg.loops import CLOSE, loops

LOOK_EVERY = 8  # tokens between two looks for a loop
PIECES = 4  # tokens that a character may be spread over


def processors(rules, prompts: list[list[int]], numbers: list[int]) -> LogitsProcessorList:
    """What changes the logits of a batch, in transformers' order; draws with `numbers`, those of the prompts."""
    found = LogitsProcessorList()
    if rules.repetition_penalty != 1:
        found.append(Penalty(rules.repetition_penalty, [len(prompt) for prompt in prompts], rules.num_beams))
    if rules.do_sample:
        if rules.temperature != 1:
            found.append(TemperatureLogitsWarper(rules.temperature))
        if rules.top_k:
            found.append(TopKLogitsWarper(rules.top_k))
        if rules.top_p < 1:
            found.append(TopPLogitsWarper(rules.top_p))
        found.append(Draw(rules.seed, numbers, rules.max_new_tokens))
    return found


def chances_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The probabilities of one token a row by its logits (rows, vocabulary), in 32 bits."""
    logits = logits.float()
    return (logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).exp()


class Watch(LogitsProcessor):
    """Sees which rows' logits are not finite, and changes nothing. No card is waited for until somebody asks."""

    def __init__(self):
        self.seen = []  # of each step, the rows' truths
        self.logits = None  # of the newest step

    def __call__(self, input_ids, scores):
        self.seen.append(~scores.amax(-1).isfinite())  # the largest is NaN where any is
        self.logits = scores
        return scores

    def broken(self, records: int) -> list[list[bool]]:
        """Of each record, step by step, whether the logits of any of its rows were not finite."""
        if not self.seen:  # a model that generates in its own way
            return [[] for _ in range(records)]
        return torch.stack(self.seen, 1).view(records, -1, len(self.seen)).any(1).tolist()


class Sure(LogitsProcessor):
    """Sees how likely the token is that greedy search takes, by the logits as the model gave them: `watch` has seen
    them. It comes last, and changes nothing.
    """

    def __init__(self, watch: Watch):
        self.watch, self.seen = watch, []  # of each step, the rows' probabilities

    def __call__(self, input_ids, scores):
        self.seen.append(chances_of(self.watch.logits, scores.argmax(-1)))
        return scores

    def of_rows(self) -> list[list[float]]:
        """Of each row, step by step."""
        return torch.stack(self.seen, 1).tolist()


def seed_of(seed: int, number: int) -> int:
    """A seed of its own for a record: 32 bits, which is what torch's and vLLM's generators take of one."""
    return random.Random(f"{seed} {number}").getrandbits(32)


class Penalty(LogitsProcessor):
    """transformers' repetition penalty, which would also punish the padding token where a row is padded with it."""

    def __init__(self, penalty: float, lengths: list[int], beams: int):
        self.real = RepetitionPenaltyLogitsProcessor(penalty)
        self.lengths = torch.tensor(lengths).repeat_interleave(beams)
        self.width = None  # of the padded prompts

    def __call__(self, input_ids, scores):
        self.width = self.width or input_ids.shape[1]
        starts = (self.width - self.lengths).to(input_ids.device)
        padding = torch.arange(input_ids.shape[1], device=input_ids.device) < starts[:, None]
        return self.real(torch.where(padding, input_ids[:, -1:], input_ids), scores)


class Draw(LogitsProcessor):
    """Draw a token from the logits and leave only it, for greedy search to take.

    Each record has random numbers of its own, made from `seed` and its number: whatever its neighbours are, and
    wherever a restart begins, it draws the same.
    """

    def __init__(self, seed: int, numbers: list[int], most: int):
        generators = [random.Random(seed_of(seed, number)) for number in numbers]
        self.draws = torch.tensor([[one.random() for _ in range(most)] for one in generators], dtype=torch.float64)
        self.step = 0

    def __call__(self, input_ids, scores):
        reached = scores.double().softmax(-1).cumsum(-1)
        drawn = self.draws[:, self.step, None].to(scores.device) * reached[:, -1:]
        self.step += 1
        token = torch.searchsorted(reached, drawn, right=True).clamp(max=scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class StopLoops(StoppingCriteria):
    """Stop a row that says one triple `times` times. It looks at every eighth token, where a bracket has closed."""

    def __init__(self, codec, times: int):
        self.codec, self.times = codec, times
        self.width = None  # of the padded prompts
        self.stopped = {}  # row -> its new tokens when it was stopped

    def __call__(self, input_ids, scores, **more):
        self.width = self.width or input_ids.shape[1] - 1
        new = input_ids.shape[1] - self.width
        if new % LOOK_EVERY == 0:
            for row, ids in enumerate(input_ids[:, self.width :].tolist()):
                if row not in self.stopped and self._loops(ids):
                    self.stopped[row] = new
        stop = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        if self.stopped:
            stop[list(self.stopped)] = True
        return stop

    def _loops(self, ids: list[int]) -> bool:
        last = self.codec.decode(ids[-LOOK_EVERY - PIECES :])
        return any(character in CLOSE for character in last) and loops(self.codec.decode(ids), self.times)
