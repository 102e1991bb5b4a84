"""The engine `batch`: transformers' own generation over prompts of like length, padded on the left."""

import gc
from collections.abc import Iterator

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from common.errors import reason_of, say
from common.machine import free_bytes
from decoding.answers import ALONE, NOT_FINITE, Answer, Failure, Rules, cut_answer, end_loop, is_out_of_memory
from decoding.choosing import StopLoops, Sure, Watch, processors
from decoding.constrained import Constrain, Limits, Walks
from decoding.serving import Serving
from loading.adapted import has_learnt_prompt
from loading.base import load_base
from loading.fp8 import use_fp8
from loading.lora import load_adapter
from loading.memory import check_prediction, limit_memory
from loading.prefix import load_trained
from loading.reordered import use_reordered
from loading.shape import cached_numbers


def why_not(serving: Serving) -> None:
    """Nothing: it serves whatever transformers can generate with."""


def check(serving: Serving) -> None:
    """Nothing to refuse."""


def open_model(serving: Serving, codec, longest: int):
    """The model, ready to answer. `longest`: tokens of the longest prompt."""
    return load_model(serving, codec, longest, (serving.batch_size or 1) * serving.rules.num_beams)


def load_model(serving: Serving, codec, longest: int, rows: int):
    """The base with its adapter or prefix on its device, in evaluation mode; `rows`: answers made side by side.

    UserError with the flags that would help where a card cannot hold it.
    """
    prefixed = serving.prefix.kind.length if serving.prefix else 0
    kept = max(rows * (prefixed + longest + serving.rules.max_new_tokens), prefixed + serving.budget(longest))
    if not serving.device_map:
        check_prediction(serving.shape, kept, serving.precision, serving.device, serving.max_memory_mb)
    limit_memory(serving.max_memory_mb, serving.device)
    if serving.prefix:
        folder, kind = serving.prefix
        how = serving.precision, serving.device, codec, serving.trust
        return load_trained(serving.base, serving.family, kind, folder, *how).eval()
    where = serving.device_map or serving.device
    model = load_base(serving.base, serving.precision, where, codec, serving.trust)
    if serving.adapter:
        model = load_adapter(model, serving.adapter, serving.merge)
    if serving.rules.fp8:
        use_fp8(model)
    if not serving.device_map:
        use_reordered(model)
    return model.eval()


def answers(
    model, codec, waiting: dict, rules: Rules, *, limits: Limits | None = None
) -> Iterator[dict[int, Answer | Failure]]:
    """The engine `batch`: prompts of like length together; every answer is there when the batch's longest one is.

    Out of memory, it goes on with half as many tokens at a time. When a batch raises anything else, each of its
    prompts is asked alone, so that only those at fault fail.
    """
    left, room = list(waiting), None
    while left:
        batch = _next_batch(left, waiting, rules, room)
        made = _try(model, codec, waiting, batch, rules, limits)
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
                made = {batch[0]: Failure(NOT_FINITE if isinstance(made, FloatingPointError) else reason_of(made))}
            else:
                for number in batch:
                    yield from answers(model, codec, {number: waiting[number]}, rules, limits=limits)
                continue
        yield made


def _next_batch(left: list[int], waiting: dict, rules: Rules, room: int | None) -> list[int]:
    """The numbers to ask next: at most `batch_size`, and as many as `room` tokens hold, but one at least."""
    width = len(waiting[left[0]]) + rules.max_new_tokens
    return left[: max(1, min(rules.batch_size, rules.batch_size if room is None else room // width))]


def _try(model, codec, waiting: dict, batch: list[int], rules: Rules, limits: Limits | None):
    """The answers of a batch by number; None when memory ran out; the error when something else went wrong."""
    try:
        made = answer(model, codec, [waiting[number] for number in batch], rules, batch, limits)
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


def answer(
    model, codec, prompts: list, rules: Rules, numbers: list[int] | None = None, limits: Limits | None = None
) -> list[Answer | Failure]:
    """The model's answers to one batch of prompts, as `codec.encode` gave them, in their order.

    A Failure takes the place of one that was made of logits that are not finite.

    `numbers`: of the prompts, which seed what is drawn, and by which `limits` are kept; default: their places in the
    batch. A model that answers trees of texts (CPM-Bee) generates by itself.
    """
    own = getattr(model, "answer_trees", None)
    if own is None:
        return generate(model, codec, prompts, rules, numbers, limits)
    trees = [prompt.data for prompt in prompts]
    made = own(codec.tokenizer, trees, rules.max_new_tokens, rules.num_beams, rules.repetition_penalty)
    return [end_loop(Answer(text.strip(), reason, tokens), rules.max_repeats) for text, reason, tokens in made]


def choose_batch_size(
    config,
    lengths: list[int],
    max_new_tokens: int,
    num_beams: int,
    device: torch.device,
    fp8: bool = False,
    common: int = 0,
) -> int:
    """How many of the longest records fit into the free memory, at most 128 on a GPU and 32 on a CPU.

    A record needs keys and values of its tokens in every layer and, once, the activations of its prompt, estimated at
    16 floats per hidden unit.
    """
    config = config.get_text_config()
    token = 4 * cached_numbers(config)
    record = num_beams * (max(lengths) + max_new_tokens) * token + max(lengths) * config.hidden_size * 16 * 4
    most = 128 if device.type == "cuda" else 32
    return max(1, min(most, len(lengths), int(0.6 * free_bytes(device) / record)))


def generate(
    model,
    codec,
    prompts: list[list[int]],
    rules: Rules,
    numbers: list[int] | None = None,
    limits: Limits | None = None,
) -> list[Answer | Failure]:
    """The model's answers to one batch of prompts (token ids), in their order; drawing is seeded by their `numbers`.

    An answer ends where the model's positions do, if they do: prompts that leave too little room are answered with
    those of their own length, so that no answer depends on its neighbours. Behind a prompt that was learnt (peft) no
    padding may stand, which would move the text away from it: there only prompts of one length go together.
    """
    numbers, groups = numbers or range(len(prompts)), {}
    learnt = has_learnt_prompt(model)
    for index, prompt in enumerate(prompts):
        room = min(rules.max_new_tokens, (codec.context or len(prompt) + rules.max_new_tokens) - len(prompt))
        groups.setdefault((room, len(prompt) if learnt else 0), []).append(index)
    answers = {}
    for (room, _), indices in groups.items():
        about = [prompts[index] for index in indices], [numbers[index] for index in indices]
        made = _generate(model, codec, *about, rules._replace(max_new_tokens=room), limits)
        answers |= dict(zip(indices, made, strict=True))
    return [answers[index] for index in range(len(prompts))]


@torch.inference_mode()
def _generate(model, codec, prompts, numbers, rules: Rules, limits: Limits | None) -> list[Answer | Failure]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), codec.pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    # Beams are candidates, of which one repeats itself and is not taken: only what is taken is looked at.
    stop, watch = StopLoops(codec, rules.max_repeats if rules.num_beams == 1 else 0), Watch()
    walks = limits and Walks(limits)
    last = [Constrain(walks, numbers)] if walks else []
    sure = [Sure(watch)] if rules.confidence else []
    new = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=rules.max_new_tokens,
        num_beams=rules.num_beams,
        do_sample=False,
        logits_processor=LogitsProcessorList([watch, *processors(rules, prompts, numbers), *last, *sure]),
        stopping_criteria=StoppingCriteriaList([stop] if stop.times else []),
        use_cache=True,
        eos_token_id=codec.eos_id,
        pad_token_id=codec.pad_id,
    )[:, width:].tolist()
    rows = [ids[: stop.stopped.get(row)] for row, ids in enumerate(new)]
    chances = sure[0].of_rows() if sure else [None] * len(rows)
    made = [cut_answer(codec, ids, rules.max_repeats, some) for ids, some in zip(rows, chances, strict=True)]
    if walks:
        made = [walks.end(number, one) for number, one in zip(numbers, made, strict=True)]
    pairs = zip(made, watch.broken(len(prompts)), strict=True)
    return [Failure(NOT_FINITE) if any(broken[: one.tokens]) else one for one, broken in pairs]
