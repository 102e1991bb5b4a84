"""The engines: ways to get answers out of a model.

An engine is a function `answers(model, codec, waiting, rules)`. `waiting`: number -> prompt (as codec.encode gives it),
in the order planned, the longest first. It yields what is finished as {number: Answer or Failure}, in groups as they
come, until all of `waiting` is answered. Between two groups its caller puts the answers on disk.
"""

import gc
from collections.abc import Callable
from typing import NamedTuple

import torch

from utils import decoding, vllm_engine
from utils.errors import UserError, say
from utils.generating import ALONE, Failure, Rules, choose_batch_size, is_out_of_memory, reason_of


def choose_engine(asked: str, family, args, why_not_fast: Callable) -> str:
    """The name of the engine: the one asked for, or with `auto` the fastest that needs no other package.

    `why_not_fast()`: what the engine `fast` lacks for this run, or None. UserError for what family or engine cannot do.
    """
    if not family.draws and (args.do_sample or args.repetition_penalty < 1):
        flag = "--do_sample" if args.do_sample else f"--repetition_penalty {args.repetition_penalty:g}"
        raise UserError(
            f"{flag}: not for family {family.name}, whose own generation is greedy or a beam search, with a penalty "
            "of 1 or more; drop it"
        )
    if asked == "auto" and "fast" not in family.engines:
        return "batch"
    reason = why_not_fast() if asked in ("auto", "fast") else None
    if asked == "auto":
        say(f"engine: batch (fast: {reason})" if reason else "engine: fast (it knows this base)")
        return "batch" if reason else "fast"
    if asked not in family.engines:
        raise UserError(
            f"--engine {asked}: not for family {family.name} (it has {', '.join(family.engines)}); drop the flag"
        )
    if reason:
        raise UserError(f"--engine fast: {reason}; use --engine batch")
    return asked


def in_batches(model, codec, waiting: dict, rules: Rules):
    """The engine `batch`: prompts of like length together; every answer is there when the batch's longest one is.

    Out of memory, it goes on with half as many tokens at a time. When a batch raises anything else, each of its
    prompts is asked alone, so that only those at fault fail.
    """
    left, room = list(waiting), None
    while left:
        batch = _next_batch(left, waiting, rules, room)
        made = _try(model, codec, waiting, batch, rules)
        if made is None and len(batch) > 1:
            room = len(batch) * (len(waiting[batch[0]]) + rules.max_new_tokens) // 2
            count = len(_next_batch(left, waiting, rules, room))
            say(f"\nbatch_size: {count} (out of memory with {len(batch)}; it grows again where prompts are shorter)")
            continue
        if made is None:  # the record's own length is at fault, not the batch
            made, room = {batch[0]: Failure(ALONE)}, None
        left = left[len(batch) :]
        if isinstance(made, Exception):
            if len(batch) == 1:
                made = {batch[0]: Failure(reason_of(made))}
            else:
                for number in batch:
                    yield from in_batches(model, codec, {number: waiting[number]}, rules)
                continue
        yield made


def _next_batch(left: list[int], waiting: dict, rules: Rules, room: int | None) -> list[int]:
    """The numbers to ask next: at most `batch_size`, and as many as `room` tokens hold, but one at least."""
    width = len(waiting[left[0]]) + rules.max_new_tokens
    return left[: max(1, min(rules.batch_size, rules.batch_size if room is None else room // width))]


def _try(model, codec, waiting: dict, batch: list[int], rules: Rules):
    """The answers of a batch by number; None when memory ran out; the error when something else went wrong."""
    try:
        made = codec.answer(model, [waiting[number] for number in batch], rules, batch)
        return dict(zip(batch, made, strict=True))
    except torch.AcceleratorError:
        raise  # the card takes no further orders from this process
    except Exception as error:  # noqa: BLE001 - whatever one record makes a model raise, the others shall be answered
        if not is_out_of_memory(error):
            return error.with_traceback(None)  # which would hold on to the tensors of the batch
    gc.collect()  # the error held on to the tensors that it was about
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class Engine(NamedTuple):
    answers: Callable
    # (config, lengths, max_new_tokens, num_beams, device) -> the batch size it would take; None: it decides itself
    batch_size: Callable | None


ENGINES = {
    "batch": Engine(in_batches, choose_batch_size),
    "fast": Engine(decoding.answers, decoding.choose_rows),
    "vllm": Engine(vllm_engine.answers, None),
}
