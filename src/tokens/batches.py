"""Rows of tokens to the tensors of a training batch."""

import torch

from common.labels import IGNORED


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
