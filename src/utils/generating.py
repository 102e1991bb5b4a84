"""Answers in batches: prompts of like length together, padded on the left, cut by token count at the first eos."""

from typing import NamedTuple

import psutil
import torch

from utils.memory import cached_numbers


class Answer(NamedTuple):
    text: str
    finish_reason: str  # "eos": the model ended its answer; "length": it was stopped at max_new_tokens
    tokens: int  # new tokens, eos included


class Failure(NamedTuple):
    """What takes an answer's place when a record cannot be answered."""

    reason: str


class Rules(NamedTuple):
    """How answers are made: what every engine is told."""

    max_new_tokens: int
    batch_size: int = 1  # most prompts at a time
    num_beams: int = 1  # 1: no beam search


def plan_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices of all prompts in batches of like length, longest first; the same for the same lengths."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def choose_batch_size(
    config, lengths: list[int], max_new_tokens: int, num_beams: int, device: torch.device, cap: int | None = None
) -> int:
    """How many of the longest records fit into the free memory (of `cap` MB), at most 128 on a GPU and 32 on a CPU.

    A record needs keys and values of its tokens in every layer and, once, the activations of its prompt, estimated at
    16 floats per hidden unit.
    """
    config = config.get_text_config()
    token = 4 * cached_numbers(config)
    record = num_beams * (max(lengths) + max_new_tokens) * token + max(lengths) * config.hidden_size * 16 * 4
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if device.type == "cuda" and cap:
        free = min(free, cap * 2**20 - torch.cuda.memory_allocated(device))
    most = 128 if device.type == "cuda" else 32
    return max(1, min(most, len(lengths), int(0.6 * free / record)))


def generate(model, codec, prompts: list[list[int]], rules: Rules) -> list[Answer]:
    """The model's answers to one batch of prompts (token ids), in their order.

    An answer ends where the model's positions do, if they do: prompts that leave too little room are answered with
    those of their own length, so that no answer depends on its neighbours.
    """
    groups = {}
    for index, prompt in enumerate(prompts):
        room = min(rules.max_new_tokens, (codec.context or len(prompt) + rules.max_new_tokens) - len(prompt))
        groups.setdefault(room, []).append(index)
    answers = {}
    for room, indices in groups.items():
        made = _generate(model, codec, [prompts[index] for index in indices], rules._replace(max_new_tokens=room))
        answers |= dict(zip(indices, made, strict=True))
    return [answers[index] for index in range(len(prompts))]


@torch.inference_mode()
def _generate(model, codec, prompts, rules: Rules) -> list[Answer]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), codec.pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    new = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=rules.max_new_tokens,
        num_beams=rules.num_beams,
        do_sample=False,
        use_cache=True,
        eos_token_id=codec.eos_id,
        pad_token_id=codec.pad_id,
    )[:, width:].tolist()
    return [cut_answer(codec, row) for row in new]


def cut_answer(codec, ids: list[int]) -> Answer:
    """An answer up to its first eos. The cut is made on ids: a record's text may hold anything a template holds."""
    if codec.eos_id in ids:
        end = ids.index(codec.eos_id)
        return Answer(codec.decode(ids[:end]).strip(), "eos", end + 1)
    return Answer(codec.decode(ids).strip(), "length", len(ids))
