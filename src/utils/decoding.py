"""The engine `fast`: many records decoded side by side, a finished one's place given to a waiting one at once.

Keys and values of all records lie one behind the other in one tensor a layer, made once. So a step always has the same
shapes, and on a card it is captured as a CUDA graph and replayed without the CPU. Greedy answers only.
"""

import gc
import math
from bisect import bisect
from collections import Counter, deque
from collections.abc import Iterable
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from torch.nn.functional import pad
from transformers import AutoConfig
from transformers.integrations.liger import apply_liger_kernel

from utils import fused, packing
from utils.errors import say
from utils.generating import ALONE, Answer, Failure, Rules, choose_batch_size, cut_answer, reason_of
from utils.kept import Kept, Spans, use_kept_attention
from utils.loading import read_adapter_config
from utils.loops import loops
from utils.memory import SAFE, cached_numbers, free_bytes
from utils.precision import Precision

STEPS = 8  # tokens made between two looks at what is finished
BLOCK = 64  # new tokens of a record between two looks for loops
PASS = 12288  # tokens of one pass over new prompts
MOST = 512  # rows on a card
ENOUGH = 64  # rows: with fewer, a card mostly reads weights
SHARED = 16  # tokens: so long a beginning, in common with a prompt that is kept, is copied
AHEAD = 128  # new tokens that a record gets room for at first, where the memory has none for all that it may have


def why_not(args, base, adapter, precision: Precision, device: torch.device, trust: bool = False) -> str | None:
    """Why the engine cannot serve these flags, base and adapter (or None) on this device; None: it can.

    `trust`: --trust_remote_code.
    """
    asked = {"num_beams": args.num_beams > 1, "do_sample": args.do_sample, "device_map": bool(args.device_map)}
    asked["repetition_penalty"] = args.repetition_penalty != 1
    if wrong := [f"--{name}" for name, there in asked.items() if there]:
        return f"it answers greedily, on one card, without {', '.join(wrong)}"
    if adapter and (kind := read_adapter_config(adapter).get("peft_type")) != "LORA":
        return f"adapters of kind {kind} are not known to it"
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust).get_text_config()
    except Exception as error:  # noqa: BLE001 - somebody's own code may fail in any way; loading will say more
        return reason_of(error)
    if trust and getattr(config, "auto_map", None):
        return "the base brings code of its own"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        return f"rope_type {rope} turns all records of a pass as the longest of them asks for"
    if method := getattr(config, "quantization_config", None):
        return f"the base comes quantised ({method.get('quant_method')}), which was not tried with it"
    return packing.why_not(config, device, precision.dtype)


def choose_rows(config, lengths, max_new_tokens: int, num_beams: int, device: torch.device) -> int:
    """How many records of average length the free memory holds, at most MOST, or 32 on a CPU.

    Where few fit with all the tokens that they may have, only AHEAD new ones are counted.
    """
    if device.type != "cuda":
        return choose_batch_size(config, lengths, max_new_tokens, num_beams, device)
    fit, mean = room(config, device), sum(lengths) / len(lengths)
    whole, short = (int(fit / (mean + new)) for new in (max_new_tokens, min(max_new_tokens, AHEAD)))
    return max(1, min(MOST, len(lengths), max(whole, min(short, ENOUGH))))


def room(config, device: torch.device) -> float:
    """Tokens whose keys and values the free memory of a card holds beside a pass; on a CPU any number."""
    if device.type != "cuda":
        return math.inf
    config = config.get_text_config()
    free = SAFE * free_bytes(device) - PASS * config.hidden_size * 16 * 2  # a pass: 16 numbers a hidden unit
    return free / (2 * cached_numbers(config))  # of 16 bits: the engine has no others on a card


class Place(NamedTuple):
    row: int
    start: int  # of its stretch of the kept tokens
    end: int


class Places:
    """`size` rows, each with a stretch of the kept tokens; a row without a record has one token, behind the others."""

    def __init__(self, model, size: int, count: int):
        self.kept, self.count = Kept(model, count + size), count
        self.tokens = torch.zeros(size, dtype=torch.long, device=model.device)  # the newest, not kept yet
        self.positions = torch.zeros_like(self.tokens)  # where it stands in its record
        self.each = torch.arange(size + 1, dtype=torch.int32, device=model.device)
        self.starts = torch.zeros_like(self.tokens)  # of the row's stretch
        self.last = torch.zeros_like(self.tokens)  # position that the stretch has room for
        self.taken = {}  # row -> Place
        self.prompts = []  # (tokens, where their keys and values stand), also of records that are done
        self.clear(list(range(size)))

    def clear(self, rows: list[int]) -> None:
        for row in rows:
            self.taken.pop(row, None)
        where = torch.tensor(rows, dtype=torch.long, device=self.tokens.device)
        self.starts[where] = self.count + where
        self.positions[where], self.last[where] = 0, 0

    def admit(self, new: "Started") -> list[tuple[int, int, int]]:
        """Records get their rows: (number, row, first new token) of each."""
        rows, starts, ends = torch.tensor(new.places, device=self.tokens.device).T
        lengths = torch.tensor(list(map(len, new.prompts)), device=self.tokens.device)
        self.tokens[rows], self.positions[rows] = new.firsts, lengths
        self.starts[rows], self.last[rows] = starts, ends - starts - 1
        self.taken |= {place.row: place for place in new.places}
        self.prompts += [(ids, place.start) for ids, place in zip(new.prompts, new.places, strict=True)]
        return list(zip(new.numbers, (place.row for place in new.places), new.firsts.tolist(), strict=True))

    def find(self, needs: Iterable[int]) -> list[Place]:
        """Where records of so many tokens go, in their order, while there are rows and room."""
        found = []
        for row, need in zip((row for row in range(len(self.tokens)) if row not in self.taken), needs, strict=False):
            start = 0
            for other in sorted([*self.taken.values(), *found], key=lambda place: place.start):
                if other.start - start >= need:
                    break
                start = other.end
            else:
                if self.count - start < need:
                    break
            found.append(Place(row, start, start + need))
        return found

    def overwrite(self, places: list[Place]) -> None:
        """Forget the prompts that stand at `places`."""
        self.prompts = [
            (ids, start)
            for ids, start in self.prompts
            if all(place.end <= start or start + len(ids) <= place.start for place in places)
        ]

    def beginnings(self, prompts: list[list[int]]) -> list[tuple[int, int]]:
        """The longest beginning of each prompt that stands here already, without its last token: (tokens, where)."""
        there, found = sorted(self.prompts), []
        for prompt in prompts:
            at = bisect(there, (prompt,))  # what has most in common with it is one of its neighbours
            near = [(common(prompt[:-1], ids), start) for ids, start in there[max(0, at - 1) : at + 1]]
            found.append(max((pair for pair in near if pair[0] >= SHARED), default=(0, 0)))
        return found


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two prompts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (mine, its) in pairs if mine != its), min(len(one), len(other)))


def answers(model, codec, waiting: dict[int, list[int]], rules: Rules):
    """The engine: see utils/answering.py. Out of memory it begins anew with half as many rows."""
    if not waiting:
        return
    if model.device.type == "cuda":
        torch.cuda.set_device(model.device)  # which streams, graphs and Triton take
        if reason := fused.why_not("decode_attention", model.device, model.dtype):
            say(f"kernels: torch's (Triton's: {reason})")
        elif fused.has_liger():
            apply_liger_kernel(model, fused.LIGER)
    usual = use_kept_attention(model)
    left, size, count = dict(waiting), rules.batch_size, Counter()
    try:
        while left:
            size = min(size, len(left))
            try:
                for made in _answers(model, codec, dict(left), rules._replace(batch_size=size), count):
                    for number in made:
                        del left[number]
                    yield made
                continue
            except torch.OutOfMemoryError:
                pass  # only after this block nothing holds on to the tensors that it was about
            if size > 1:
                size //= 2
                say(f"\nbatch_size: {size} (out of memory)")
                continue
            longest = next(iter(left))
            del left[longest]
            yield {longest: Failure(ALONE)}
            size = rules.batch_size
        if count["copied"]:
            computed, copied = count["computed"], count["copied"]
            say(f"\nprompts: {computed:,} tokens computed, {copied:,} copied from prompts that begin alike")
    finally:
        model.set_attn_implementation(usual)


def _answers(model, codec, waiting: dict[int, list[int]], rules: Rules, count: Counter):
    """One attempt of `answers`; adds the tokens of prompts to `count`: computed, copied."""
    budget = rules.max_new_tokens
    places, needs = _make_places(model, rules.batch_size, waiting, budget)
    beside = _stream_beside(places)
    queue, prompts, said = deque(waiting), dict(waiting), {number: [] for number in waiting}  # said: new tokens
    step, busy, finished = None, {}, {}  # busy: row -> number
    while queue or busy:
        if finished and not beside:
            yield finished
        if busy:
            step = step or _make_step(model, places)
            made = _decode(places, step)  # a card is not waited for: it works on while answers are put on disk
        if finished and beside:
            yield finished
        with torch.cuda.stream(beside):  # None: no other one
            finished, started = _start(model, prompts, queue, places, needs)
        free = []
        for row, new in zip(busy, made[list(busy)].tolist() if busy else [], strict=True):
            number = busy[row]
            before, prompt = len(said[number]), waiting[number]
            most = needs[number] - len(prompt) + 1  # that it has room for: the newest token is not kept yet
            said[number] = ids = (said[number] + new)[: min(budget, most)]
            if answer := _answer(codec, ids, before, rules):
                finished[number] = answer
            elif len(ids) == most:  # it goes on, with all the room that it may need, when its turn comes again
                prompts[number], needs[number] = prompt + ids, len(prompt) + budget
                queue.append(number)
            else:
                continue
            free.append(row)
        places.clear(free)
        for row in free:
            del busy[row]
        if started:
            if beside:
                torch.cuda.current_stream().wait_stream(beside)
            for number, row, first in places.admit(started):
                busy[row] = number
                said[number].append(first)
            count.update(copied=started.copied, computed=sum(map(len, started.prompts)) - started.copied)
    yield finished


def _answer(codec, ids: list[int], before: int, rules: Rules) -> Answer | Failure | None:
    """The answer that the new tokens of a record are, if they are a whole one; `before`: as many were looked at."""
    try:
        looped = (
            rules.max_repeats and before // BLOCK < len(ids) // BLOCK and loops(codec.decode(ids), rules.max_repeats)
        )
        if codec.eos_id in ids or len(ids) == rules.max_new_tokens or looped:
            return cut_answer(codec, ids, rules.max_repeats)
    except Exception as error:  # noqa: BLE001 - whatever one record's tokens make a tokenizer raise
        return Failure(reason_of(error))
    return None


def _stream_beside(places: Places):
    """On a card, the stream on which prompts are computed while other records are decoded; else None."""
    if places.tokens.device.type != "cuda":
        return None
    stream = torch.cuda.Stream(places.tokens.device)
    stream.wait_stream(torch.cuda.current_stream())  # the places are there
    return stream


def _make_places(model, size: int, waiting: dict[int, list[int]], budget: int) -> tuple[Places, dict[int, int]]:
    """Places for `size` records of average length, and the tokens that each needs: all that it may have, or AHEAD new
    ones at first where so few fit that a card would mostly read weights.
    """
    gc.collect()  # of an earlier use, or attempt
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    needs = {number: len(ids) + budget for number, ids in waiting.items()}
    longest, mean, fit = max(needs.values()), sum(needs.values()) / len(needs), room(model.config, model.device)
    if fit < 0.9 * min(size, ENOUGH) * mean:
        needs = {number: len(ids) + min(budget, AHEAD) for number, ids in waiting.items()}
        mean = sum(needs.values()) / len(needs)
    return Places(model, size, max(longest, int(min(size * mean, fit)))), needs


class Started(NamedTuple):
    """Records whose prompts are computed, and the token that follows each of these."""

    numbers: list[int]
    places: list[Place]
    prompts: list[list[int]]
    copied: int  # tokens of them
    firsts: torch.Tensor


def _start(model, prompts: dict, queue: deque, places: Places, needs: dict) -> tuple[dict, Started | None]:
    """Compute the next prompts of the queue, at most PASS tokens, where there is room; (failures, the rest)"""
    failed, most = {}, PASS
    while found := places.find(needs[number] for number in queue):
        texts = [prompts[number] for number in islice(queue, len(found))]
        shared = places.beginnings(texts)
        totals = list(accumulate(len(text) - tokens for text, (tokens, _) in zip(texts, shared, strict=True)))
        count = max(1, bisect(totals, most))
        numbers, texts, taken = [queue.popleft() for _ in range(count)], texts[:count], found[:count]
        places.overwrite(taken)  # even by an attempt that fails
        try:
            firsts = _compute(model, places.kept, texts, taken, shared[:count])
            copied = sum(tokens for tokens, _ in shared[:count])
            return failed, Started(numbers, taken, texts, copied, firsts)
        except torch.AcceleratorError:
            raise  # the card takes no further orders from this process
        except Exception as error:  # whatever one record makes a model raise, the others shall be answered
            if len(numbers) == 1:
                short = isinstance(error, torch.OutOfMemoryError)
                if short and len(places.tokens) > 1:
                    raise  # fewer rows leave it more
                failed[numbers[0]] = Failure(ALONE if short else reason_of(error))
                continue
            queue.extendleft(reversed(numbers))
            most = totals[count - 1] // 2  # at last each alone
    return failed, None


@torch.inference_mode()
def _compute(
    model, kept: Kept, prompts: list[list[int]], taken: list[Place], shared: list[tuple[int, int]]
) -> torch.Tensor:
    """Keys and values of prompts into the places `taken`, `shared` beginnings copied; the tokens that follow."""
    lengths, starts = torch.tensor([[len(prompt), place.start] for prompt, place in zip(prompts, taken, strict=True)]).T
    copied, sources = torch.tensor(shared).T
    if copied.any():
        inside = _ranges(torch.zeros_like(copied), copied)
        kept.copy(*((inside + first.repeat_interleave(copied)).to(kept.device) for first in (sources, starts)))
    new, positions = lengths - copied, _ranges(copied, lengths)
    bounds = pad(new.cumsum(0), (1, 0))
    ids = [token for prompt, (begin, _) in zip(prompts, shared, strict=True) for token in prompt[begin:]]
    given = torch.tensor(ids), positions, positions + starts.repeat_interleave(new)
    given = (part.to(kept.device) for part in given)
    spans = (part.to(kept.device, torch.int32) for part in (bounds, pad(starts, (0, 1)), lengths))
    last = (bounds[1:] - 1).to(kept.device)
    return _pass(model, kept, *given, Spans(*spans, int(max(new))), logits_to_keep=last).argmax(-1)


def _ranges(firsts: torch.Tensor, lasts: torch.Tensor) -> torch.Tensor:
    """first, first + 1, … last - 1 of each pair, one behind the other."""
    return torch.cat([torch.arange(first, last) for first, last in zip(firsts, lasts, strict=True)])


def _pass(model, kept: Kept, ids, positions, at, spans: Spans, **more):
    """The logits of tokens (each argument one number a token) whose keys and values go to `at`."""
    kept.at = at
    given = {"input_ids": ids[None], "position_ids": positions[None], "past_key_values": kept, "use_cache": True}
    return model(**given, spans=spans, **more).logits[0]


@torch.inference_mode()
def _decode(places: Places, step) -> torch.Tensor:
    """STEPS more tokens of every row, (rows, STEPS); those of rows without a record mean nothing."""
    new = []
    for _ in range(STEPS):
        step()
        new.append(places.tokens.clone())
    return torch.stack(new, 1)


@torch.inference_mode()
def _make_step(model, places: Places):
    """A function that makes one token of every row; on a card the replay of a CUDA graph."""

    def step() -> None:
        keys = pad(places.starts, (0, 1)).int()
        spans = Spans(places.each, keys, (places.positions + 1).int(), 1)
        at = places.starts + places.positions
        logits = _pass(model, places.kept, places.tokens, places.positions, at, spans)
        places.tokens.copy_(logits.argmax(-1))
        places.positions.copy_(torch.minimum(places.positions + 1, places.last))

    if places.tokens.device.type != "cuda":
        return step
    before = places.tokens.clone(), places.positions.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # kernels are loaded, workspaces made
    torch.cuda.current_stream().wait_stream(stream)
    places.tokens.copy_(before[0])  # what trying it changed is put back
    places.positions.copy_(before[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
