"""What an answer is, how it is to be made, and where it ends."""

from itertools import chain
from typing import NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size

from kg.loops import loop_end


class Answer(NamedTuple):
    """What a model said to one prompt."""

    text: str
    # "eos": the model ended its answer; "length": it was stopped at max_new_tokens; "loop": it repeated a triple
    finish_reason: str
    tokens: int  # new tokens, eos included
    # with Rules.confidence: of each token of the text where it ends (characters), and its probability
    sure: tuple[tuple[int, float], ...] | None = None


class Failure(NamedTuple):
    """What takes an answer's place when a record cannot be answered."""

    reason: str


# Reasons of a Failure.
ALONE = "out of memory, even alone; a smaller --bits may help"
STOPPED = "stopped"  # before its answer was whole
NOT_FINITE = "the model gave NaN or infinity instead of an answer"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a card or the machine lacked memory, which fewer records at a time may need less of."""
    if isinstance(error, torch.AcceleratorError):
        return False  # the card takes no further orders from this process
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error)


def blame(model) -> str:
    """What may have caused NOT_FINITE: the first weight that holds such a number, or numbers that grew too large."""
    base = vars(model).get("base")  # of a model with a prefix, which it is no part of
    for name, tensor in chain(*(part.state_dict().items() for part in (model, base) if part is not None)):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return f"{name} holds NaN or infinity: a damaged file, or a training that failed; get it again"
    wider = "; --bf16 or --fp32 may help" if model.config.dtype == torch.float16 else ""
    return f"every weight is finite, but what is computed with them grows beyond what {model.config.dtype} holds{wider}"


class Rules(NamedTuple):
    """How answers are made: what every engine is told."""

    max_new_tokens: int
    batch_size: int = 1  # most prompts at a time
    num_beams: int = 1  # 1: no beam search
    repetition_penalty: float = 1.0  # divides the logits of tokens that are there already; 1: none
    do_sample: bool = False  # draw each token, instead of the likeliest; the next four are about that
    temperature: float = 1.0
    top_k: int = 50  # 0: any token
    top_p: float = 1.0
    seed: int = 42
    max_repeats: int = 0  # an answer ends where it says a triple for this time; 0: it may repeat
    constrain: str | None = None  # what answers may hold: a key of kg.permitted.BOUND; None: anything
    confidence: bool = False  # how likely each token was is kept
    constrain_exempt: str | None = None  # records whose instruction holds this pattern need not keep to their text
    fp8: bool = False  # frozen products in 8-bit floats, and with `fast` keys and values
    drafts: int = 0  # most tokens that `fast` looks up and verifies in one pass; it changes no answer


def plan_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices of all prompts in batches of like length, longest first; the same for the same lengths."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


NEAR = 8  # tokens before one that decide which characters it adds: a character may be spread over several


def cut_answer(codec, ids: list[int], max_repeats: int = 0, chances: list[float] | None = None) -> Answer:
    """An answer up to its first eos. The cut is made on ids: a record's text may hold anything a template holds.

    `chances`: the tokens' probabilities, for Answer.sure.
    """
    ended = codec.eos_id in ids
    end = ids.index(codec.eos_id) if ended else len(ids)
    text = codec.decode(ids[:end])
    sure = None if chances is None else _place(codec, ids[:end], chances, len(text) - len(text.lstrip()))
    reason, tokens = ("eos", end + 1) if ended else ("length", end)
    return end_loop(Answer(text.strip(), reason, tokens, sure), max_repeats)


def _place(codec, ids: list[int], chances: list[float], blanks: int) -> tuple[tuple[int, float], ...]:
    """Of each token where it ends in the text, whose first `blanks` characters are cut off, and its probability."""
    placed, end = [], -blanks
    for at, chance in zip(range(len(ids)), chances, strict=False):
        near = ids[max(0, at + 1 - NEAR) : at + 1]
        end += len(codec.decode(near)) - len(codec.decode(near[:-1]))
        placed.append((max(0, end), round(chance, 4)))
    return tuple(placed)


def end_loop(answer: Answer, max_repeats: int) -> Answer:
    """The answer up to where it says one triple for the `max_repeats`-th time, if it does; 0: as it is.

    That depends on the text alone: engines may look for loops as often, and stop rows as late, as they like.
    """
    end = loop_end(answer.text, max_repeats) if max_repeats else None
    return answer if end is None else answer._replace(text=answer.text[:end], finish_reason="loop")
