"""The engine `fast`: many records decoded at a time, with continuous batching.

Keys and values of all records lie one behind the other in one tensor a layer, made once. So all steps of as many rows
have the same shapes, and on a card each is captured as a CUDA graph and replayed without the CPU. Greedy answers only.
"""

import gc
import sys
from bisect import bisect, bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from typing import NamedTuple

import torch
from transformers.integrations.liger import apply_liger_kernel

from common.errors import reason_of, say
from decoding.answers import ALONE, NOT_FINITE, STOPPED, Answer, Failure, Rules, cut_answer, is_out_of_memory
from decoding.batch_engine import load_model
from decoding.constrained import Limits, Walks
from decoding.fast_sizes import MEASURED, Tuning, count_common, room
from decoding.kept import use_kept_attention
from decoding.laid import Laid, lay_out
from decoding.lookup import NONE
from decoding.passes import Made, compute, compute_common, decode, make_steps
from decoding.places import BROKEN, Places, Started
from decoding.serving import Serving
from kg.loops import loops
from ops import available

SEEN = 4  # tokens whose keys and values are copied for a pass take the memory of one that it computes, at most


class Live(NamedTuple):
    """Where prompts come from while others are answered, for a server."""

    room: int  # tokens, prompts and answers together, of all records at work, where the memory holds so many
    longest: int  # the same of one record, at most; a longer one fails
    # (free rows, whether nothing is at work) -> number -> prompt of so many at most; it may wait where nothing is at
    # work; None: no more will come
    more: Callable
    took: Callable  # (number, tokens of its answer so far) -> whether it shall go on; else it fails, as STOPPED
    read_along: bool = True  # whether somebody waits for the next token of records at work


class Run(NamedTuple):
    """What one attempt goes by, and so what answers depend on."""

    model: object
    codec: object
    rules: Rules
    tuning: Tuning
    limits: Limits | None
    laid: Laid
    live: Live | None


def open_model(serving: Serving, codec, longest: int):
    """The model, ready to answer. The engine makes of --batch_size what fits: one record has to."""
    model = load_model(serving, codec, longest, 1)
    model = model.base if serving.prefix else model  # which has a prefix of its own kind within
    use_kernels(model)
    return model


def _room_now(model, tuning: Tuning, rules: Rules) -> float:
    """`room` beside a model, with what an earlier use has left given back."""
    if model.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return room(model.config, model.device, tuning, rules.fp8)


def use_kernels(model) -> None:
    """Give `model`, on a card, what kernels there are beyond torch's; `answers` is slower without."""
    if model.device.type != "cuda":
        return
    if reason := available.why_not("decode_attention", model.device, model.dtype):
        say(f"kernels: torch's (Triton's: {reason})")
    elif available.has_liger():
        apply_liger_kernel(model, available.LIGER)


def answers(
    model,
    codec,
    waiting: dict[int, list[int]],
    rules: Rules,
    tuning: Tuning = MEASURED,
    limits: Limits | None = None,
    live: Live | None = None,
) -> Iterator[dict[int, Answer | Failure]]:
    """The engine: see engines.py. Out of memory it begins anew with half as many rows.

    `live`: more prompts come from there, until it says that there will be none.
    """
    if not waiting and not live:
        return
    if model.device.type == "cuda":
        torch.cuda.set_device(model.device)  # which streams, graphs and Triton take
    usual = use_kept_attention(model)
    laid = lay_out(model, codec, waiting)
    if laid.about:  # what a prompt that sees itself whole begins with is not that of another
        tuning = tuning._replace(shared=sys.maxsize)
    waiting = laid.prompts
    left, size, count = dict(waiting), rules.batch_size, Counter()
    if live:  # what is halved, out of memory, is what was tried
        live = live._replace(room=int(min(live.room, _room_now(model, tuning, rules))))
    try:
        while left or live:
            size = size if live else min(size, len(left))
            try:
                fed = live and live._replace(room=live.room * size // rules.batch_size)
                run = Run(model, codec, rules._replace(batch_size=size), tuning, limits, laid, fed)
                for made in _answers(run, dict(left), left, count):
                    for number in made:
                        del left[number]
                    yield made
                live = None  # there is no more to come
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            gc.collect()  # only here nothing holds on to the tensors that the error was about
            if size > 1:
                size //= 2
                say(f"\nbatch_size: {size} (out of memory)")
                continue
            if not left:
                raise MemoryError(ALONE)
            longest = next(iter(left))
            del left[longest]
            yield {longest: Failure(ALONE)}
            size = rules.batch_size
        copied = f", {count['copied']:,} copied from prompts that begin alike" if count["copied"] else ""
        once = f"; {count['common']:,} with which all begin are kept once" if count["common"] else ""
        if copied or once:
            say(f"\nprompts: {count['computed']:,} tokens computed{copied}{once}")
        if rules.drafts and count["steps"]:
            say(f"\ndrafts: {count['said'] / count['steps']:.2f} tokens a step of a record")
    finally:
        model.set_attn_implementation(usual)


def _answers(run: Run, waiting: dict, left: dict, count: Counter):
    """One attempt of `answers` at the prompts `waiting`; those that come are added to `left`, and to `count` the tokens
    of prompts: computed, copied; and, that all have in common, of the first attempt.
    """
    model, codec, rules, tuning, limits, laid, live = run
    budgets, walks = {number: _budget(codec, ids, rules) for number, ids in waiting.items()}, limits and Walks(limits)
    places, needs, most_new = _make_places(run, waiting, budgets)
    count["common"] = count["common"] or places.common
    count["computed"] += places.common
    beside, steps = _stream_beside(places), make_steps(model, places, tuning.enough)
    looks = [tuning.watched] * bool(walks) + [tuning.drafted] * bool(rules.drafts)
    every = tuning.steps if beside or not looks else min(looks)
    queue, prompts = deque(waiting), dict(waiting)
    said, sure = ({number: [] for number in waiting} for _ in range(2))  # new tokens, and their probabilities
    busy, finished = {}, {}  # row -> number; number -> its tokens, or Failure
    coming = live is not None
    while queue or busy or coming:
        if finished and not beside:
            yield _cut(laid, finished, sure, rules, walks)
            finished = {}
        if busy:
            size = next(size for size in steps if size >= len(busy))
            if max(busy) >= size:
                busy = places.gather(busy)
            made = decode(places, size, steps[size], every, walks and walks.mend(busy, places), bool(walks))
        if finished:  # a card is not waited for: it decodes while answers are put on disk, and new prompts computed
            yield _cut(laid, finished, sure, rules, walks)
        refused = {}
        if coming:  # what is done has been handed over
            for number in said.keys() - {*queue, *busy.values()}:
                for part in (waiting, prompts, needs, budgets, said, sure):
                    part.pop(number, None)
                if walks:
                    walks.forget(number)
            came = live.more(len(places.tokens) - len(busy) - len(queue), not busy and not queue)
            coming = came is not None
            for number, ids in (came or {}).items():
                left[number] = waiting[number] = prompts[number] = ids
                budgets[number] = _budget(codec, ids, rules)
                needs[number], said[number], sure[number] = len(ids) + min(budgets[number], most_new), [], []
                if (whole := len(ids) + budgets[number]) > live.longest:
                    refused[number] = Failure(f"prompt and answer may have {whole} tokens, of {live.longest}")
                else:
                    queue.append(number)
        wait = busy and not beside and rules.drafts and rules.batch_size - len(busy) < min(tuning.together, len(queue))
        with torch.cuda.stream(beside):  # None: no other one
            more = ({}, []) if wait else _fill(run, prompts, queue, places, needs)
        finished, started = refused | more[0], more[1]
        # New tokens that there is room for; the newest is not kept yet.
        rest = {n: min(budgets[n], needs[n] - len(waiting[n]) + 1) - len(said[n]) for n in busy.values()}
        permitted = _take_permitted(walks, made, busy, rest) if walks and busy else {}
        free = []
        for (row, number), (new, chances, ends) in zip(busy.items(), made.of(list(busy)) if busy else (), strict=True):
            before, prompt = len(said[number]), waiting[number]
            new = permitted[number] if walks else new[: rest[number]]
            said[number] = ids = said[number] + new
            sure[number] = [*sure[number], *chances][: len(ids)]
            how = laid.reader(number), ids, before, rules, tuning.block
            count["said"] += len(ids) - before
            count["steps"] += 1 + bisect_left(ends, len(ids) - before)  # those behind the end do not count
            if _is_broken(codec, ids[max(0, before - 1) :]):
                finished[number] = Failure(NOT_FINITE)
            elif _has_ended(*how, budgets[number]):
                finished[number] = ids
            elif live and not live.took(number, ids):
                finished[number] = Failure(STOPPED)
            elif len(new) == rest[number]:  # it goes on, with all the room that it may need, when its turn comes again
                prompts[number], needs[number] = prompt + ids, len(prompt) + budgets[number]
                queue.append(number)
            else:
                continue
            free.append(row)
        places.clear(free)
        for row in free:
            del busy[row]
        if started and beside:
            torch.cuda.current_stream().wait_stream(beside)
        for new in started:
            for number, row, first, chance in places.admit(new):
                busy[row] = number
                said[number] += walks.take(number, [first]) if walks else [first]
                sure[number] = [*sure[number], chance][: len(said[number])]
            there = new.copied + places.common * len(new.prompts)
            count.update(copied=new.copied, computed=sum(map(len, new.prompts)) - there)
        if walks and walks.refused:
            places.set_back({row: waiting[n] + said[n] for row, n in busy.items() if n in walks.refused})
    yield _cut(laid, finished, sure, rules, walks)


def _take_permitted(walks: Walks, made: Made, busy: dict[int, int], rest: dict[int, int]) -> dict[int, list[int]]:
    """The new tokens of rows (busy: row -> number) that may be said, as many as there is room for (number -> rest);
    while they are looked at, a card makes those behind them.
    """
    taken, going_on = {number: [] for number in busy.values()}, dict(busy)
    for steps in made.arriving():
        rows = list(going_on.items())
        for (row, number), said in zip(rows, steps[list(going_on)].flatten(1).tolist(), strict=True):
            new = [token for token in said if token != NONE][: rest[number] - len(taken[number])]
            permitted = walks.take(number, new)
            taken[number] += permitted
            if permitted != new or BROKEN in new or len(taken[number]) == rest[number]:
                del going_on[row]
    return taken


def _is_broken(codec, ids: list[int]) -> bool:
    """Whether new tokens of a record stand for logits that are not finite, before its answer ends."""
    return BROKEN in ids and codec.eos_id not in ids[: ids.index(BROKEN)]


def _budget(codec, prompt: list[int], rules: Rules) -> int:
    """Tokens of an answer, which ends where the model's positions do, if they do."""
    context = getattr(codec, "context", None)
    return min(rules.max_new_tokens, (context or sys.maxsize) - len(prompt))


def _has_ended(codec, ids: list[int], before: int, rules: Rules, block: int, budget: int) -> bool:
    """Whether the new tokens of a record are a whole answer; `before`: as many were looked at, in blocks."""
    if codec.eos_id in ids or len(ids) == budget:
        return True
    if not rules.max_repeats or before // block == len(ids) // block:
        return False
    try:
        return loops(codec.decode(ids), rules.max_repeats)
    except Exception:  # noqa: BLE001 - `_cut` meets it again
        return True


def _cut(laid: Laid, finished: dict, sure: dict, rules: Rules, walks: Walks | None) -> dict[int, Answer | Failure]:
    """The answers that tokens are; what has failed already stays as it is."""
    made = {}
    for number, ids in finished.items():
        if isinstance(ids, Failure):
            made[number] = ids
            continue
        try:
            chances = sure[number] if rules.confidence else None
            answer = cut_answer(laid.reader(number), ids, rules.max_repeats, chances)
            made[number] = walks.end(number, answer) if walks else answer
        except Exception as error:  # noqa: BLE001 - whatever one record's tokens make a tokenizer raise
            made[number] = Failure(reason_of(error))
    return made


def _stream_beside(places: Places):
    """On a card, the stream on which prompts are computed while other records are decoded; else None."""
    if places.tokens.device.type != "cuda":
        return None
    stream = torch.cuda.Stream(places.tokens.device)
    stream.wait_stream(torch.cuda.current_stream())  # the places are there
    return stream


def _make_places(run: Run, waiting: dict, budgets: dict[int, int]) -> tuple[Places, dict[int, int], int]:
    """Places for a batch of records of average length, the tokens that each needs at first, and how many new ones are
    the most of these: all that it may have, or `ahead` where so few fit that a card would mostly read weights.
    """
    model, _, rules, tuning, _, laid, live = run
    size, learnt = rules.batch_size, len(laid.learnt[0][0]) if laid.learnt else 0
    common = 0 if live else count_common(model, run.codec, waiting.values(), rules.drafts, tuning)
    fit = _room_now(model, tuning, rules) - common
    needs = {number: len(ids) + budgets[number] for number, ids in waiting.items()}
    if live:  # what will come may be as long as it may be
        longest, expected, mean = live.longest, live.longest, live.room / size
    else:
        longest, expected = max(needs.values()), sum(needs.values()) / len(needs)
    short = fit < 0.9 * min(size, tuning.enough) * (expected + learnt - common)
    most_new = tuning.ahead if short else sys.maxsize
    needs = {number: len(ids) + min(budgets[number], most_new) for number, ids in waiting.items()}
    if not live:
        mean = sum(needs.values()) / len(needs)
    beside = learnt - common + rules.drafts  # tokens of each stretch beside those of the record
    count = max(longest + beside, int(min(size * (mean + beside), fit)))
    told = {"about": len(next(iter(laid.about.values()))) if laid.about else 0, "given": laid.given}
    more = {"drafts": rules.drafts, "longest": longest, "learnt": laid.learnt, "fp8": rules.fp8, **told}
    return Places(model, size, count, tuning.shared, rules.confidence, common=common, **more), needs, most_new


def _fill(run: Run, prompts: dict, queue: deque, places: Places, needs: dict) -> tuple[dict, list[Started]]:
    """Compute prompts of the queue, pass after pass, until there is no room, for a step with rows to fill takes as long
    as a full one; one pass where somebody reads along. (failures, the rest)
    """
    failed, started, once = {}, [], run.live and run.live.read_along
    while not started or (started[-1].cut and not once):
        new, made = _start(run, prompts, queue, places, needs)
        failed |= new
        if made is None:
            break
        places.hold(made)
        started.append(made)
    return failed, started


def _start(run: Run, prompts: dict, queue: deque, places: Places, needs: dict) -> tuple[dict, Started | None]:
    """Compute the next prompts of the queue, at most a pass, where there is room; (failures, the rest)"""
    model, laid, most = run.model, run.laid, run.tuning.pass_tokens
    failed = {}
    while found := places.find(needs[number] for number in queue):
        texts = [prompts[number] for number in islice(queue, len(found))]
        shared = places.beginnings(texts)
        costs = [len(text) - tokens for text, (tokens, _) in zip(texts, shared, strict=True)]
        if places.common:  # all that is seen is copied for the pass
            costs = [max(cost, len(text) // SEEN) for cost, text in zip(costs, texts, strict=True)]
        totals = list(accumulate(costs))
        count = max(1, bisect(totals, most))
        numbers, texts, taken = [queue.popleft() for _ in range(count)], texts[:count], found[:count]
        about = [laid.about[number] for number in numbers] if laid.about else None
        places.overwrite(taken)  # even by an attempt that fails
        try:
            if places.common and not places.begun:
                compute_common(model, places, texts[0][: places.common])
                places.begun = True
            firsts, chances = compute(model, places, texts, taken, shared[:count], about)
            copied = sum(tokens - places.common for tokens, _ in shared[:count])
            return failed, Started(numbers, taken, texts, copied, firsts, chances, about, count < len(found))
        except torch.AcceleratorError:
            raise  # the card takes no further orders from this process
        except Exception as error:  # whatever one record makes a model raise, the others shall be answered
            if len(numbers) == 1:
                short = is_out_of_memory(error)
                if short and len(places.tokens) > 1:
                    raise  # fewer rows leave it more
                failed[numbers[0]] = Failure(ALONE if short else reason_of(error))
                continue
            queue.extendleft(reversed(numbers))
            most = totals[count - 1] // 2  # at last each alone
    return failed, None
