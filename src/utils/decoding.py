"""The engine `fast`: many records decoded side by side, a finished one's place given to a waiting one at once.

Keys and values of every place lie in one tensor a layer, made once. So a step always has the same shapes, and on a card
it is captured as a CUDA graph and replayed without the CPU. Greedy answers only.
"""

import gc
from collections import deque

import torch
from transformers import DynamicCache

from utils.errors import UserError, say
from utils.generating import Failure, Rules, cut_answer, reason_of
from utils.loops import loops
from utils.memory import kept_shape
from utils.packing import why_unknown

STEPS = 16  # tokens made between two looks at what is finished
BLOCK = 64  # attention reads as many positions as the longest row has, in multiples of this; loops are sought as often
PASS = 8192  # tokens, padding included, of one pass over new prompts


def check(args) -> None:
    """UserError for flags that the engine does not know."""
    asked = {"num_beams": args.num_beams > 1, "do_sample": args.do_sample, "device_map": bool(args.device_map)}
    asked["repetition_penalty"] = args.repetition_penalty != 1
    if wrong := [f"--{name}" for name, there in asked.items() if there]:
        raise UserError(f"--engine fast and {', '.join(wrong)}: it answers greedily, on one card; drop one of them")


class Places:
    """Keys and values of `size` rows of at most `width` tokens, as a model's attention asks for them."""

    def __init__(self, model, size: int, width: int):
        layers, heads, per_head = kept_shape(model.config.get_text_config())
        shape, like = (size, heads, width, per_head), {"device": model.device, "dtype": model.dtype}
        self.layers = [(torch.zeros(shape, **like), torch.zeros(shape, **like)) for _ in range(layers)]
        self.rows = torch.arange(size, device=model.device)
        self.tokens = torch.zeros_like(self.rows)  # the newest one of each row, without keys and values yet
        self.positions = torch.zeros_like(self.rows)  # where it stands
        self.shown = width  # positions that attention reads

    def update(self, key, value, layer: int, *_, **__):
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            kept[self.rows, :, self.positions] = new[:, :, 0].to(kept.dtype)
        return tuple(kept[:, :, : self.shown] for kept in self.layers[layer])

    def get_seq_length(self, *_) -> int:
        return 0


def answers(model, codec, waiting: dict[int, list[int]], rules: Rules):
    """The engine: see utils/answering.py."""
    if reason := why_unknown(model.config.get_text_config()):
        raise UserError(f"--engine fast: {reason}; use --engine batch")
    if not waiting:
        return
    queue = deque(waiting)
    budgets = {n: min(rules.max_new_tokens, (codec.context or 10**9) - len(ids)) for n, ids in waiting.items()}
    width = max(len(ids) + budgets[number] for number, ids in waiting.items()) + STEPS
    places = _make_places(model, min(rules.batch_size, len(waiting)), width)
    size = len(places.rows)
    graphs, busy, said = {}, {}, {}  # busy: row -> number; said: number -> its new tokens
    while queue or busy:
        free = [row for row in range(size) if row not in busy]
        if queue and len(free) * 8 >= size:
            for number, row, first in _start(model, codec, waiting, queue, places, free):
                if isinstance(first, Failure):
                    yield {number: first}
                else:
                    busy[row], said[number] = number, [first]
        if not busy:
            continue
        longest = max(len(waiting[number]) + len(said[number]) for number in busy.values())
        places.shown = min(width, -(-(longest + STEPS) // BLOCK) * BLOCK)
        made = _decode(model, places, graphs)
        finished = {}
        for row, number in list(busy.items()):
            before = len(said[number])
            said[number] = (said[number] + made[row])[: budgets[number]]
            ids = said[number]
            looked = before // BLOCK < len(ids) // BLOCK and loops(codec.decode(ids), rules.max_repeats)
            if codec.eos_id in ids or len(ids) == budgets[number] or looked:
                finished[number] = cut_answer(codec, ids, rules.max_repeats)
                del busy[row], said[number]
        if finished:
            yield finished


def _make_places(model, size: int, width: int) -> Places:
    """As many places as the memory holds, `size` at most."""
    while True:
        try:
            return Places(model, size, width)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        gc.collect()
        torch.cuda.empty_cache()
        size //= 2
        say(f"batch_size: {size} (out of memory with {2 * size})")


def _start(model, codec, waiting: dict, queue: deque, places: Places, free: list[int]):
    """Compute the next prompts of the queue into the `free` rows: (number, row, first new token or Failure) of each.

    Whoever fails takes no row.
    """
    taken, room = 0, PASS
    while queue and taken < len(free):
        group = [queue.popleft()]
        while queue and len(group) < min(len(free) - taken, room // len(waiting[group[0]])):
            group.append(queue.popleft())
        rows = free[taken : taken + len(group)]
        try:
            firsts = _compute(model, codec, [waiting[number] for number in group], places, rows)
        except torch.AcceleratorError:
            raise  # the card takes no further orders from this process
        except Exception as error:  # noqa: BLE001 - whatever one record makes a model raise, the others shall be answered
            if len(group) == 1:
                yield group[0], None, Failure(reason_of(error))
                continue
            queue.extendleft(reversed(group))
            room = len(waiting[group[0]]) * (len(group) // 2)  # at last each alone
            continue
        taken += len(group)
        yield from zip(group, rows, firsts, strict=True)


@torch.inference_mode()
def _compute(model, codec, prompts: list[list[int]], places: Places, rows: list[int]) -> list[int]:
    """Keys and values of prompts into `rows`, and the token that follows each. Padding stands behind, unseen."""
    ids = torch.full((len(prompts), max(map(len, prompts))), codec.pad_id if codec.pad_id >= 0 else 0)
    for index, prompt in enumerate(prompts):
        ids[index, : len(prompt)] = torch.tensor(prompt)
    cache, last = DynamicCache(), torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
    out = model(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=last)
    firsts = out.logits.diagonal(dim1=0, dim2=1).argmax(0)
    where = torch.tensor(rows, device=model.device)
    for layer, (keys, values) in enumerate(places.layers):
        keys[where, :, : ids.shape[1]] = cache.layers[layer].keys.to(keys.dtype)
        values[where, :, : ids.shape[1]] = cache.layers[layer].values.to(values.dtype)
    places.tokens[where], places.positions[where] = firsts, last + 1
    return firsts.tolist()


@torch.inference_mode()
def _decode(model, places: Places, graphs: dict) -> list[list[int]]:
    """STEPS more tokens of every row, the idle ones' among them, which mean nothing."""
    if model.device.type == "cuda" and places.shown not in graphs:
        graphs[places.shown] = _capture(model, places, graphs)
    new = []
    for _ in range(STEPS):
        if graphs:
            graphs[places.shown].replay()
        else:
            _step(model, places)
        new.append(places.tokens.clone())
    return torch.stack(new, 1).tolist()


def _step(model, places: Places) -> None:
    """One token of every row: `tokens` and `positions` move on."""
    seen = torch.arange(places.shown, device=model.device) <= places.positions[:, None]
    mask = torch.zeros(seen.shape, dtype=model.dtype, device=model.device)
    mask = mask.masked_fill_(~seen, torch.finfo(model.dtype).min)[:, None, None]
    at = {"position_ids": places.positions[:, None], "attention_mask": mask, "past_key_values": places}
    logits = model(input_ids=places.tokens[:, None], use_cache=True, **at).logits[:, -1]
    places.tokens.copy_(logits.argmax(-1))
    places.positions.add_(1).clamp_(max=places.layers[0][0].shape[2] - 1)


def _capture(model, places: Places, graphs: dict) -> torch.cuda.CUDAGraph:
    """The step as a graph; what trying it changes is put back."""
    before = places.tokens.clone(), places.positions.clone()
    pool = next(iter(graphs.values())).pool() if graphs else None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _step(model, places)  # kernels are loaded, workspaces made
    torch.cuda.current_stream().wait_stream(stream)
    places.tokens.copy_(before[0])
    places.positions.copy_(before[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        _step(model, places)
    return graph
