"""Answers in batches: prompts of like length together, padded on the left, cut by token count at the first eos."""

from typing import NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import StoppingCriteriaList

from utils.choosing import StopLoops, processors
from utils.errors import UserError
from utils.loops import loop_end
from utils.memory import cached_numbers, free_bytes


class Answer(NamedTuple):
    text: str
    # "eos": the model ended its answer; "length": it was stopped at max_new_tokens; "loop": it repeated a triple
    finish_reason: str
    tokens: int  # new tokens, eos included


class Failure(NamedTuple):
    """What takes an answer's place when a record cannot be answered."""

    reason: str


ALONE = "out of memory, even alone; a smaller --bits may help"  # a Failure's reason


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a card or the machine lacked memory, which fewer records at a time may need less of."""
    if isinstance(error, torch.AcceleratorError):
        return False  # the card takes no further orders from this process
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error)


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


def plan_batches(lengths: list[int], batch_size: int) -> list[list[int]]:
    """Indices of all prompts in batches of like length, longest first; the same for the same lengths."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def choose_batch_size(config, lengths: list[int], max_new_tokens: int, num_beams: int, device: torch.device) -> int:
    """How many of the longest records fit into the free memory, at most 128 on a GPU and 32 on a CPU.

    A record needs keys and values of its tokens in every layer and, once, the activations of its prompt, estimated at
    16 floats per hidden unit.
    """
    config = config.get_text_config()
    token = 4 * cached_numbers(config)
    record = num_beams * (max(lengths) + max_new_tokens) * token + max(lengths) * config.hidden_size * 16 * 4
    most = 128 if device.type == "cuda" else 32
    return max(1, min(most, len(lengths), int(0.6 * free_bytes(device) / record)))


def generate(model, codec, prompts: list[list[int]], rules: Rules, numbers: list[int] | None = None) -> list[Answer]:
    """The model's answers to one batch of prompts (token ids), in their order; drawing is seeded by their `numbers`.

    An answer ends where the model's positions do, if they do: prompts that leave too little room are answered with
    those of their own length, so that no answer depends on its neighbours.
    """
    numbers, groups = numbers or range(len(prompts)), {}
    for index, prompt in enumerate(prompts):
        room = min(rules.max_new_tokens, (codec.context or len(prompt) + rules.max_new_tokens) - len(prompt))
        groups.setdefault(room, []).append(index)
    answers = {}
    for room, indices in groups.items():
        about = [prompts[index] for index in indices], [numbers[index] for index in indices]
        made = _generate(model, codec, *about, rules._replace(max_new_tokens=room))
        answers |= dict(zip(indices, made, strict=True))
    return [answers[index] for index in range(len(prompts))]


@torch.inference_mode()
def _generate(model, codec, prompts, numbers, rules: Rules) -> list[Answer]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), codec.pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    # Beams are candidates, of which one repeats itself and is not taken: only what is taken is looked at.
    stop = StopLoops(codec, rules.max_repeats if rules.num_beams == 1 else 0)
    new = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=rules.max_new_tokens,
        num_beams=rules.num_beams,
        do_sample=False,
        logits_processor=processors(rules, prompts, numbers),
        stopping_criteria=StoppingCriteriaList([stop] if stop.times else []),
        use_cache=True,
        eos_token_id=codec.eos_id,
        pad_token_id=codec.pad_id,
    )[:, width:].tolist()
    rows = [ids[: stop.stopped.get(row)] for row, ids in enumerate(new)]
    return [cut_answer(codec, ids, rules.max_repeats) for ids in rows]


def cut_answer(codec, ids: list[int], max_repeats: int = 0) -> Answer:
    """An answer up to its first eos. The cut is made on ids: a record's text may hold anything a template holds."""
    if codec.eos_id in ids:
        end = ids.index(codec.eos_id)
        return end_loop(Answer(codec.decode(ids[:end]).strip(), "eos", end + 1), max_repeats)
    return end_loop(Answer(codec.decode(ids).strip(), "length", len(ids)), max_repeats)


def end_loop(answer: Answer, max_repeats: int) -> Answer:
    """The answer up to where it says one triple for the `max_repeats`-th time, if it does; 0: as it is.

    That depends on the text alone: engines may look for loops as often, and stop rows as late, as they like.
    """
    end = loop_end(answer.text, max_repeats) if max_repeats else None
    return answer if end is None else Answer(answer.text[:end], "loop", answer.tokens)
