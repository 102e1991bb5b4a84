"""Evaluation that also predicts, and scores what was predicted."""

import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from common.errors import UserError, say
from data.asking import PLAINLY, Asking, ask_all_parts, merge_answers
from data.prompts import make_prompt
from data.records import name_of
from decoding.answers import NOT_FINITE, Failure, Rules, blame, plan_batches
from decoding.batch_engine import answers
from kg.metrics import score_records
from kg.triples import render
from tokens.codec import why_too_long


def make_score_answers(
    codec,
    template: dict,
    records: list[dict],
    batch_size: int,
    max_new_tokens: int,
    args,
    context: int | None,
    asking: Asking = PLAINLY,
):
    """A function that answers `records` with a model, all processes sharing the work, and scores the answers.

    `asking`: in how many parts they are asked for their relations, and in which order they answer.
    A prompt that fills the base's `context` (tokens; None: no limit is known) is not answered, which is said once.
    `batch_size`: most prompts at a time; fewer where memory runs out, which must not end a training.
    """
    parts = ask_all_parts(records, asking, "validation records")
    owners = [index for index, asked in enumerate(parts) for _ in asked]
    prompts = [codec.encode(make_prompt(template, r["instruction"], r["input"])) for asked in parts for r in asked]
    reasons = {index: why_too_long(ids, context) for index, ids in enumerate(prompts)}
    asked = [index for index, reason in reasons.items() if reason is None]
    if len(asked) < len(prompts):
        unasked = [index for index, reason in reasons.items() if reason]
        first, count = owners[unasked[0]], len({owners[index] for index in unasked})
        say(
            f"warning: {count} validation records are not predicted and count as answered by nothing (the first: "
            f"{name_of(records[first], first)}: {reasons[unasked[0]]})"
        )
    batches = plan_batches([len(prompts[index]) for index in asked], batch_size)[args.process_index :: args.world_size]
    mine = {asked[place]: prompts[asked[place]] for batch in batches for place in batch}

    def score_answers(model) -> dict[str, float]:
        was_training, used_cache = model.training, model.config.use_cache
        model.eval()
        model.config.use_cache = True
        texts = {}
        with (
            torch.autocast(args.device.type, dtype=args.precision.dtype, enabled=args.bf16 or args.fp16),
            tqdm(total=len(mine), desc="predicting", unit="prompt", leave=False, disable=args.process_index > 0) as bar,
        ):
            for made in answers(model, codec, mine, Rules(max_new_tokens, batch_size)):
                for index, one in made.items():
                    if isinstance(one, Failure):
                        name = name_of(records[owners[index]], owners[index])
                        why = f"; {blame(model)}" if one.reason == NOT_FINITE else ""
                        raise UserError(f"{name}, predicted: {one.reason}{why}")
                    texts[index] = one.text
                bar.update(len(made))
        model.config.use_cache = used_cache
        model.train(was_training)
        texts, of_record = dict(gather_object(list(texts.items()))), [[] for _ in records]
        for index, owner in enumerate(owners):
            of_record[owner].append((records[owner]["input"], texts.get(index, "")))
        outputs = [
            said[0][1]
            if len(said) == 1 and not asking.tail_first
            else render(merge_answers(record, said, len(said) > 1, asking.tail_first))
            for record, said in zip(records, of_record, strict=True)
        ]
        predicted = [{**record, "output": said, "kg": None} for record, said in zip(records, outputs, strict=True)]
        return score_records(predicted, records)

    return score_answers
