"""Evaluation that also predicts, and scores what was predicted."""

import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from common.errors import UserError, say
from data.prompts import make_prompt
from data.records import name_of
from decoding.answers import Failure, Rules, blame, plan_batches
from decoding.batch_engine import answer
from kg.metrics import score_records
from tokens.codec import why_too_long


def make_score_answers(
    codec, template: dict, records: list[dict], batch_size: int, max_new_tokens: int, args, context: int | None
):
    """A function that answers `records` with a model, all processes sharing the work, and scores the answers.

    A prompt that fills the base's `context` (tokens; None: no limit is known) is not answered, which is said once.
    """
    prompts = [codec.encode(make_prompt(template, r["instruction"], r["input"])) for r in records]
    reasons = {index: why_too_long(ids, context) for index, ids in enumerate(prompts)}
    asked = [index for index, reason in reasons.items() if reason is None]
    if len(asked) < len(records):
        first = next(index for index, reason in reasons.items() if reason)
        say(
            f"warning: {len(records) - len(asked)} validation records are not predicted and count as answered by "
            f"nothing (the first: {name_of(records[first], first)}: {reasons[first]})"
        )
    planned = plan_batches([len(prompts[index]) for index in asked], batch_size)
    batches = [[asked[place] for place in batch] for batch in planned]

    def score_answers(model) -> dict[str, float]:
        was_training, used_cache = model.training, model.config.use_cache
        model.eval()
        model.config.use_cache = True
        answers = []
        with torch.autocast(args.device.type, dtype=args.precision.dtype, enabled=args.bf16 or args.fp16):
            for batch in tqdm(
                batches[args.process_index :: args.world_size],
                desc="predicting",
                unit="batch",
                leave=False,
                disable=args.process_index > 0,
            ):
                made = answer(model, codec, [prompts[index] for index in batch], Rules(max_new_tokens))
                for index, one in zip(batch, made, strict=True):
                    if isinstance(one, Failure):
                        raise UserError(f"{name_of(records[index], index)}, predicted: {one.reason}; {blame(model)}")
                    answers.append((index, one.text))
        model.config.use_cache = used_cache
        model.train(was_training)
        texts = dict(gather_object(answers))
        predicted = [{**record, "output": texts.get(index, ""), "kg": None} for index, record in enumerate(records)]
        return score_records(predicted, records)

    return score_answers
