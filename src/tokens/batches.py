"""Rows of tokens to the tensors of a training batch."""

import torch
from torch.nn.functional import pad

from common.labels import IGNORED

REAL = "real_tokens"  # of a padded packed batch: their number, which is nothing for the model
FEWEST = {"tokens": 512, "learnt": 256, "longest": 512}  # what the sizes of padded packed batches are multiples of


def make_collator(pad_id: int, width_of: int = 1):
    """A function from rows to a batch, padded on the right to a multiple of `width_of`.

    The batch asks for logits at the positions before an answer's tokens only (`logits_to_keep`), and gives the labels
    of just those (`shift_labels`): most of a vocabulary-sized product would be thrown away otherwise.
    """

    def collate(rows):
        width = -(-max(len(row["input_ids"]) for row in rows) // width_of) * width_of
        ids = torch.full((len(rows), width), pad_id)
        mask = torch.zeros_like(ids)
        labels = torch.full((len(rows), width), IGNORED)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[index, :length] = torch.tensor(row["input_ids"])
            mask[index, :length] = 1
            labels[index, : length - 1] = torch.tensor(row["labels"])[1:]
        kept = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
        labels = labels[:, kept]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "shift_labels": labels,
            "logits_to_keep": kept,
        }

    return collate


def pack(rows: list[dict]) -> dict:
    """A batch of one row: ids (1, tokens), positions, bounds of the records, logits wanted where an answer is learnt.

    `shift_labels` are those of the wanted logits only, as in `batches.make_collator`; no record's last token predicts
    the next record's first.
    """
    ids, positions, labels, bounds = [], [], [], [0]
    for row in rows:
        length = len(row["input_ids"])
        ids += row["input_ids"]
        positions += range(length)
        labels += [*row["labels"][1:], IGNORED]
        bounds.append(bounds[-1] + length)
    ids, positions, labels = (torch.tensor([part]) for part in (ids, positions, labels))
    kept = (labels[0] != IGNORED).nonzero()[:, 0]
    starts = torch.tensor(bounds, dtype=torch.int32)
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "labels": labels[:, kept],
        "shift_labels": labels[:, kept],
        "logits_to_keep": kept,
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def round_up(count: int, fewest: int) -> int:
    """The next multiple of `fewest`, or of a larger power of two such that at most an eighth is added to a large count.

    So sizes stay few: eight between a number and its double.
    """
    step = max(fewest, 1 << max(0, count.bit_length() - 4))
    return max(1, -(-count // step)) * step


def pad_batch(batch: dict, records: int, fewest: dict[str, int] = FEWEST) -> dict:
    """A packed batch (`pack`) in one of few sizes, with the same loss and gradients: see `round_up`.

    A last record of padding fills its tokens up; in front of it stand empty ones, so that it has `records` and one.
    Positions of which logits are wanted are repeated with a label that is not learnt. REAL is the number of tokens
    before.
    """
    count, learnt = batch["input_ids"].shape[1], len(batch["logits_to_keep"])
    tokens, wanted = round_up(count, fewest["tokens"]), round_up(learnt, fewest["learnt"])
    more, bounds = tokens - count, batch["cu_seq_lens_q"]
    missing = max(0, records + 1 - len(bounds))
    bounds = torch.cat([bounds, bounds.new_tensor([count] * missing + [tokens])])
    kept = torch.cat([batch["logits_to_keep"], torch.arange(wanted - learnt) % tokens])
    labels = pad(batch["shift_labels"], (0, wanted - learnt), value=IGNORED)
    longest = round_up(max(batch["max_length_q"], more), fewest["longest"])
    return {
        "input_ids": pad(batch["input_ids"], (0, more)),
        "position_ids": torch.cat([batch["position_ids"], torch.arange(more)[None]], 1),
        "labels": labels,
        "shift_labels": labels,
        "logits_to_keep": kept,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        REAL: count,
    }


def pack_in_sizes(rows: list[dict], records: int) -> dict:
    """A packed batch of at most `records` rows in one of few sizes: see `pad_batch`."""
    return pad_batch(pack(rows), records)
