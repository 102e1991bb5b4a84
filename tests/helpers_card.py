"""What the tests on a card share: what `fast` answers there in 16 bits, and whether those are the likeliest tokens."""

from types import SimpleNamespace

import torch

from decoding import fast_engine
from decoding.answers import Rules
from decoding.fast_sizes import MEASURED, Tuning

NUMBERS = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)), eos_id=-1)  # a codec that writes ids


def said_by_fast(model, codec, prompts: dict, tuning: Tuning = MEASURED, limits=None, **rules) -> dict[int, list[int]]:
    """The 40 tokens that `fast` answers each prompt with; `codec` writes them as numbers."""
    said = {}
    fast_engine.use_kernels(model)
    for made in fast_engine.answers(model, codec, prompts, Rules(40, **rules), tuning, limits):
        said |= {number: [int(token) for token in answer.text.split()] for number, answer in made.items()}
    assert {len(ids) for ids in said.values()} == {40}
    return said


def check_answers(exact, prompts: dict, said: dict, ties: float, refused=()) -> None:
    """`check_taken` of all prompts, by the logits of `exact`, which sees each answer in one pass."""
    for number, ids in prompts.items():
        with torch.inference_mode():
            logits = exact(torch.tensor([ids + said[number]], device=exact.device)).logits[0, len(ids) - 1 : -1]
        check_taken(logits.clone(), said[number], ties, refused)  # no longer one of inference mode


def check_taken(logits, said: list[int], ties: float, refused=()) -> None:
    """Tokens are the likeliest by exact logits (tokens, vocabulary) of those that are not refused, but for near ties,
    which rounding decides: nearer than `ties` standard deviations of all, or of the few that may be said.
    """
    taken = logits.gather(1, torch.tensor(said, device=logits.device)[:, None])[:, 0]
    near = ties * torch.maximum(logits.std(-1), logits.topk(30).values.std(-1))
    logits[:, list(refused)] = -torch.inf
    assert ((logits.max(-1).values - taken).abs() < near).all()
