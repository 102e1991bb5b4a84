"""Answers of CPM-Bee to structured data: greedy, or by the originals' beam search; batched, with a cache."""

import math
from typing import NamedTuple

import torch
from transformers import DynamicCache

from models.cpmbee.bias import bias_index, segment_relations
from models.cpmbee.data import ANSWER, Prompts, fill, prefill
from models.cpmbee.tokenizer import CpmBeeTokenizer

SUPPRESSED = -10000.0  # logit of a token that the record does not name


class Generated(NamedTuple):
    data: dict  # a copy of the data with the answers in it, in markup; None for an answer that was never begun
    finish_reason: str  # "eos": the model ended its (last) answer; "length": it was stopped at max_new_tokens
    tokens: int  # new tokens, every `</s>` included


class Feed(NamedTuple):
    """The token the model reads next."""

    id: int
    sub: int
    position: int  # counted from 0 in every answer
    segment: int


class Path(NamedTuple):
    """What has been said so far of one record."""

    said: list[tuple[int, int]]  # (id or column of the ext table, number of the answer counted from 1)
    number: int  # of the answer that comes next or goes on
    feed: Feed
    score: float = 0.0  # sum of log-probabilities, for beam search


@torch.inference_mode()
def generate(
    model,
    tokenizer: CpmBeeTokenizer,
    data: list[dict],
    max_new_tokens: int,
    num_beams: int = 1,
    repetition_penalty: float = 1.0,
) -> list[Generated]:
    """The answers to a batch of data, in its order; the data stay as they are.

    `max_new_tokens` counts the tokens of all answers of one record, every `</s>` included. With one beam each token is
    the likeliest. `repetition_penalty` ≥ 1 divides (multiplies, if negative) the logits of tokens said before.
    ValueError for data that are no dicts of texts with an `<ans>`, or for numbers below 1; FloatingPointError for
    logits that are not finite.
    """
    if max_new_tokens < 1 or num_beams < 1 or repetition_penalty < 1:
        raise ValueError("max_new_tokens, num_beams and repetition_penalty must be at least 1")
    prompts = prefill(tokenizer, data)
    if num_beams == 1:
        said = greedy(model, tokenizer, prompts, max_new_tokens, repetition_penalty)
    else:
        said = beam_search(model, tokenizer, prompts, max_new_tokens, num_beams, repetition_penalty)
    return [_result(tokenizer, prompts, index, one, said[index]) for index, one in enumerate(data)]


def _result(tokenizer, prompts: Prompts, index: int, data: dict, said) -> Generated:
    texts = {}
    for number, (_, path) in enumerate(prompts.predicted[index], start=1):
        ids = [token for token, answer in said if answer == number]
        texts[path] = tokenizer.decode([i for i in ids if i != tokenizer.eos_id], prompts.names[index]) if ids else None
    filled = {key: fill(value, texts.get) if key == ANSWER else value for key, value in data.items()}
    ended = said[-1] == (tokenizer.eos_id, len(prompts.predicted[index]))
    return Generated(filled, "eos" if ended else "length", len(said))


class Reader:
    """A model in the middle of a batch: what it has read, and the logits of what comes next.

    Every record is read in `copies` rows, which stand one after the other. `hidden`: the state (records, hidden) of
    the prompts' last tokens.
    """

    def __init__(self, model, prompts: Prompts, copies: int = 1):
        device = model.cpmbee.input_embedding.weight.device
        one = Prompts(*(part.to(device) if isinstance(part, torch.Tensor) else part for part in prompts))
        self.model, self.cache, self.one = model, DynamicCache(), one
        relation = segment_relations(one.relations, one.segments, one.num_segments, one.num_segments * 0, one.segments)
        index = bias_index(model.config, one.positions[:, None, :] - one.positions[:, :, None], relation)
        visible = (one.num_segments > 0)[:, None, :].expand_as(index)
        self.hidden = model.cpmbee(one.ids, one.subs, index, visible, self.cache)[:, -1]

        self.cache.batch_repeat_interleave(copies)
        self.positions, self.segments, self.relations, self.visible, self.count = (
            part.repeat_interleave(copies, dim=0)
            for part in (one.positions, one.segments, one.relations, one.num_segments > 0, one.num_segments[:, -1:])
        )

    def read(self, feeds: list[Feed]) -> torch.Tensor:
        """Read a token in every row; the logits (rows, vocabulary + X) of the next one in float32."""
        ids, subs, positions, segments = torch.tensor(feeds, device=self.positions.device).T[:, :, None]
        self.positions = torch.cat((self.positions, positions), dim=1)
        self.segments = torch.cat((self.segments, segments), dim=1)
        self.visible = torch.cat((self.visible, torch.ones_like(positions, dtype=torch.bool)), dim=1)
        relation = segment_relations(self.relations, segments, self.count, segments * 0, self.segments)
        index = bias_index(self.model.config, (self.positions - positions)[:, None, :], relation)
        hidden = self.model.cpmbee(ids, subs, index, self.visible[:, None, :], self.cache)
        return self.model.logits(hidden[:, 0], self.one.ext_ids, self.one.ext_subs).float()

    def reorder(self, rows: list[int]) -> None:
        """Go on with these rows, each in the place it has in the list."""
        order = torch.tensor(rows, device=self.positions.device)
        self.cache.reorder_cache(order)
        # Relations, segment counts and visible keys are the same in all rows of a record.
        self.positions, self.segments = self.positions[order], self.segments[order]


def greedy(
    model, tokenizer, prompts: Prompts, max_new_tokens: int, repetition_penalty: float = 1.0
) -> list[list[tuple[int, int]]]:
    """What is said to every record, as `Path.said`: always the likeliest token."""
    reader, adjust = Reader(model, prompts), _adjuster(tokenizer, prompts, repetition_penalty)
    paths = [_start(tokenizer, prompts, index) for index in range(len(prompts.ids))]
    going = set(range(len(paths)))
    for _ in range(max_new_tokens):
        logits = adjust(reader.read([path.feed for path in paths]), paths)
        for index, token in enumerate(logits.argmax(-1).tolist()):
            if index not in going:
                continue
            if not logits[index, token].isfinite():
                raise FloatingPointError("the logits are not finite")
            if _ends(tokenizer, prompts, index, paths[index], token):
                going.discard(index)
            paths[index] = _extend(tokenizer, prompts, index, paths[index], token)
        if not going:
            break
    return [path.said for path in paths]


def beam_search(
    model, tokenizer, prompts: Prompts, max_new_tokens: int, beams: int, repetition_penalty: float = 1.0
) -> list[list[tuple[int, int]]]:
    """What is said to every record, as `Path.said`: the best mean log-probability that the originals' search finds.

    Unlike `greedy`, it goes on after an answer's end while something better may come, even with one beam.
    """
    records, last = range(len(prompts.ids)), max_new_tokens - 1
    reader, adjust = Reader(model, prompts, beams), _adjuster(tokenizer, prompts, repetition_penalty, beams)
    paths = [_start(tokenizer, prompts, index) for index in records for _ in range(beams)]
    paths = [path._replace(score=-1e9 if row % beams else 0.0) for row, path in enumerate(paths)]
    finished = [[] for _ in records]  # the best (mean, said) of each record, best first
    done = set()
    for step in range(max_new_tokens):
        logits = adjust(reader.read([path.feed for path in paths]), paths)
        classes = logits.shape[-1]
        scores = logits.log_softmax(-1) + torch.tensor([[path.score] for path in paths], device=logits.device)
        best = scores.view(len(records), -1).topk(2 * beams, dim=-1)
        rows, new = list(range(len(paths))), list(paths)
        for index, (values, places) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            if len(finished[index]) == beams and finished[index][-1][0] * step >= values[0]:
                done.add(index)
            if index in done:
                continue
            if not math.isfinite(values[0]):
                raise FloatingPointError("the logits are not finite")
            kept = index * beams
            for value, place in zip(values, places, strict=True):
                row, token = index * beams + place // classes, place % classes
                path = paths[row]
                ends = _ends(tokenizer, prompts, index, path, token)
                longer = _extend(tokenizer, prompts, index, path, token)._replace(score=value)
                if ends or step == last:
                    finished[index].append((value / len(longer.said), longer.said))
                    finished[index] = sorted(finished[index], key=lambda found: -found[0])[:beams]
                    continue
                rows[kept], new[kept] = row, longer
                kept += 1
                if kept == (index + 1) * beams:
                    break
        if len(done) == len(records):
            break
        paths = new
        if beams > 1:
            reader.reorder(rows)
    return [found[0][1] for found in finished]


def _start(tokenizer, prompts: Prompts, index: int) -> Path:
    return Path([], 1, Feed(tokenizer.bos_id, 0, 0, prompts.predicted[index][0][0]))


def _ends(tokenizer, prompts: Prompts, index: int, path: Path, token: int) -> bool:
    """Whether the token is the end of the record's last answer."""
    return token == tokenizer.eos_id and path.number == len(prompts.predicted[index])


def _extend(tokenizer, prompts: Prompts, index: int, path: Path, token: int) -> Path:
    """The path after a token. An answer's end is not read: `<s>` of the next answer takes its place."""
    said, answers = [*path.said, (token, path.number)], prompts.predicted[index]
    if token != tokenizer.eos_id:
        feed = Feed(*_pair(tokenizer, prompts, token), path.feed.position + 1, path.feed.segment)
        return Path(said, path.number, feed)
    if path.number == len(answers):
        return path._replace(said=said)
    return Path(said, path.number + 1, Feed(tokenizer.bos_id, 0, 0, answers[path.number][0]))


def _pair(tokenizer, prompts: Prompts, token: int) -> tuple[int, int]:
    """(id, sub id) of a token or of a column of the ext table."""
    column = token - len(tokenizer)
    return (token, 0) if column < 0 else (int(prompts.ext_ids[column]), int(prompts.ext_subs[column]))


def _adjuster(tokenizer, prompts: Prompts, penalty: float, copies: int = 1):
    """A function that changes the logits of a step as the originals do, in place, before a token is chosen.

    Names that the record does not give, and the unknown character where it has none, are suppressed. Then what was
    read since the prompt is made less likely by `penalty`; numbered tokens count as their family's.
    """
    names = [
        {tokenizer.unknown_id, *range(len(tokenizer), len(tokenizer) + len(prompts.ext_ids))} - set(named)
        for named in prompts.names
        for _ in range(copies)
    ]
    banned = [(row, column) for row, columns in enumerate(names) for column in columns]
    rows, columns = torch.tensor(banned, dtype=torch.long).view(-1, 2).T

    def adjust(logits: torch.Tensor, paths: list[Path]) -> torch.Tensor:
        logits[rows.to(logits.device), columns.to(logits.device)] = SUPPRESSED
        for row, path in enumerate(paths) if penalty != 1 else ():
            read = {_pair(tokenizer, prompts, token)[0] for token, _ in path.said if token != tokenizer.eos_id}
            read = sorted(read | {tokenizer.bos_id})
            old = logits[row, read]
            logits[row, read] = torch.where(old < 0, old * penalty, old / penalty)
        return logits

    return adjust
