"""How the engine `fast` lays prompts out: the ids that a model reads, and what it is told beside them."""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Laid(NamedTuple):
    """The prompts of a run, by their numbers.

    `about` is None for a model that is told nothing. Else its first number is how many tokens at the beginning of the
    prompt see each other whole, and all of them are the model's argument `about`, in a row for each token of a pass.
    """

    prompts: dict[int, list[int]]
    about: dict[int, tuple[int, ...]] | None
    given: dict[str, torch.Tensor]  # arguments of the model that are the same in every pass
    reader: Callable  # number -> what decodes the tokens of its answer
    learnt: list = ()  # keys and values of each layer, (tokens, heads, size), in front of every record


def takes_more(model, codec) -> bool:
    """Whether prompts are their ids alone, as they stand: then some can come while others are answered, and drafts be
    verified.
    """
    return not (hasattr(codec, "lay_out") or hasattr(model, "sees_prompts_whole") or hasattr(model, "learnt_prefix"))


def lay_out(model, codec, waiting: dict[int, list[int]]) -> Laid:
    """The prompts as the model takes them: a codec whose prompts are more than their ids lays them out by itself."""
    own = getattr(codec, "lay_out", None)
    if own:
        prompts, about, given, names = own(waiting)
        given = {name: torch.tensor(value, device=model.device) for name, value in given.items()}
        return Laid(prompts, about, given, lambda number: codec.naming(names[number]))
    about = None
    if getattr(model, "sees_prompts_whole", False):  # but for the last token, with which the answer begins
        about = {number: (len(ids) - 1,) for number, ids in waiting.items()}
    prefix = getattr(model, "learnt_prefix", None)
    return Laid(waiting, about, {}, lambda _: codec, prefix() if prefix else ())
