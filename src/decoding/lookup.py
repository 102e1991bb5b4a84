"""Drafts of the engine `fast`: the tokens that may come next, looked up where the last ones stood before.

Answers copy names from the text and relations from the list, so what followed there often follows again. All rows are
looked up at once by operations on tensors of fixed shapes: on a card they are part of a step's CUDA graph.
"""

import torch
from torch.nn.functional import pad

NONE = -1  # stands where there is no token; no id


def look_up(texts: torch.Tensor, newest: torch.Tensor, longest: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` tokens that followed the last ones of each row where these stood before: ((rows, count), (rows,)).

    `texts` (rows, width): token ids, of which those up to the position `newest` (rows,) are known. As many of the last
    tokens as possible, `longest` at most, decide; among places with as many, the latest. The second result is how many
    they were; 0: not even the last one stood before, and the row holds NONE. A draft that reaches the newest token goes
    on as if what stands between the place and the newest token came again and again.
    """
    at = torch.arange(texts.shape[1], device=texts.device)
    alive = at < newest[:, None]
    score = torch.zeros_like(texts)
    for back in range(min(longest, texts.shape[1])):
        last = texts.gather(1, (newest - back).clamp(min=0)[:, None])
        same = (texts == last) & (newest >= back)[:, None]
        alive = alive & pad(same[:, : texts.shape[1] - back], (back, 0))
        score = score + alive
    best = (score * texts.shape[1] + at).max(1).values
    matched, place = best // texts.shape[1], best % texts.shape[1]
    between = (newest - place).clamp(min=1)  # without a place, whatever: the row is filled with NONE
    steps = torch.arange(count, device=texts.device)
    drafts = texts.gather(1, (place[:, None] + 1 + steps % between[:, None]).clamp(max=texts.shape[1] - 1))
    return drafts.masked_fill(matched[:, None] == 0, NONE), matched
