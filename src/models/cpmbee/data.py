"""Structured data to what CPM-Bee reads: a tree of segments, rows for training, prompts for generation.

The data are dicts of texts in markup (see the tokenizer), nested at will: `{"input": "…", "<ans>": "…"}`. The texts
under the key `<ans>` of the outermost dict are what the model says; all else is its context.
"""

from itertools import compress
from typing import NamedTuple

import torch

from models.cpmbee.tokenizer import CpmBeeTokenizer, Families

ANSWER, ROOT = "<ans>", "<root>"
IGNORED = torch.nn.CrossEntropyLoss().ignore_index  # the label of a position that is not learnt: torch's own
DEEPEST = 8  # steps up and down the tree are told apart below this number


class Example(NamedTuple):
    """Data as tokens; the first four lists have an entry per token."""

    ids: list[int]
    subs: list[int]
    context: list[int]  # 1: given, 0: to be predicted
    segments: list[int]
    relations: list[int]  # of segment i to segment j, at i · count + j
    count: int  # segments
    families: Families  # what is numbered in this example
    predicted: list[tuple[int, tuple[str, ...]]]  # segment, and keys below `<ans>`, of every text to be predicted


def convert(tokenizer: CpmBeeTokenizer, data: dict) -> Example:
    """The tokens of structured data; ValueError where the data hold anything but dicts, string keys and texts."""
    texts, parents, predicted = [ROOT], [None], []

    def walk(branch, parent: int, path: tuple[str, ...]) -> None:
        for key, value in branch.items():
            if not isinstance(key, str) or not isinstance(value, (str, dict)):
                raise ValueError(f"expected a key and a text or dict, found {key!r}: {value!r:.80}")
            here, below = len(texts), (*path, key)
            texts.append(key)
            parents.append(parent)
            if isinstance(value, dict):
                walk(value, here, below)
                continue
            if below[0] == ANSWER:
                predicted.append((len(texts), below[1:]))
            texts.append(value)
            parents.append(here)

    walk(data, 0, ())
    families: Families = {}
    ids, subs, context, segments, answers = [], [], [], [], {number for number, _ in predicted}
    for number, text in enumerate(texts):
        pairs = [(tokenizer.bos_id, 0), *tokenizer.encode(text, families)]
        if number not in answers:  # what is predicted ends by the model's own word
            pairs.append((tokenizer.eos_id, 0))
        ids += [pair[0] for pair in pairs]
        subs += [pair[1] for pair in pairs]
        context += [int(number not in answers)] * len(pairs)
        segments += [number] * len(pairs)
    return Example(ids, subs, context, segments, _relations(parents), len(texts), families, predicted)


def _relations(parents: list[int | None]) -> list[int]:
    """Relation of every pair of segments: 8 · up + down + 1, the steps to and from their common ancestor; 0 to itself.

    1 is the relation of different samples. So a child is 2 to its parent, the parent 9 to it, and siblings are 10.
    """
    lines = []  # from the root down to each segment
    for number, parent in enumerate(parents):
        lines.append([*(lines[parent] if parent is not None else []), number])
    relations = []
    for one in lines:
        for other in lines:
            shared = sum(a == b for a, b in zip(one, other, strict=False))
            up, down = (min(len(line) - shared, DEEPEST - 1) for line in (one, other))
            relations.append(up * DEEPEST + down + 1 if up or down else 0)
    return relations


def training_features(tokenizer: CpmBeeTokenizer, data: dict) -> dict:
    """Data with their answer as a training row: what `collate` makes batches of.

    A row whose `context` holds no 0 teaches nothing, and a batch of such rows has no loss: leave them out.
    """
    example = convert(tokenizer, data)
    return {
        "input_ids": example.ids,
        "input_id_sub": example.subs,
        "context": example.context,
        "segment": example.segments,
        "segment_rel": example.relations,
        "num_segments": example.count,
    }


def collate(tokenizer: CpmBeeTokenizer, features: list[dict], width: int | None = None) -> dict[str, torch.Tensor]:
    """The model's arguments for a batch of training rows, padded with 0 on the right to `width` or the longest row.

    A label stands at the token before the one it names, `</s>` at an answer's last token. Numbered tokens are classes
    of their own, in the order in which they appear.
    """
    width = width or max(len(row["input_ids"]) for row in features)
    names = ("input_ids", "input_id_sub", "context", "segment")
    batch = {name: _padded([row[name] for row in features], width) for name in names}
    lengths = torch.tensor([len(row["input_ids"]) for row in features])
    real = torch.arange(width) < lengths[:, None]
    zeros = torch.zeros_like(batch["input_ids"])

    ids, subs, columns = batch["input_ids"], batch["input_id_sub"], {}
    classes = ids.clone()
    for row, place in subs.nonzero().tolist():
        pair = (int(ids[row, place]), int(subs[row, place]))
        classes[row, place] = len(tokenizer) + columns.setdefault(pair, len(columns))
    classes[ids == tokenizer.bos_id] = tokenizer.eos_id  # before the next segment begins, this one ends
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = torch.where(real[:, 1:], classes[:, 1:], IGNORED)
    labels[torch.arange(len(features)), lengths - 1] = tokenizer.eos_id
    labels[(batch["context"] == 1) | ~real] = IGNORED

    table = torch.tensor(list(columns) or [(0, 1)])  # the originals never leave it empty
    return {
        **batch,
        "context": batch["context"].bool(),
        "length": lengths,
        "sample_ids": zeros,
        "num_segments": torch.where(real, torch.tensor([[row["num_segments"]] for row in features]), 0),
        "segment_rel_offset": zeros,
        "segment_rel": _padded([row["segment_rel"] for row in features]),
        "span": zeros,
        "labels": labels,
        "ext_table_ids": table[:, 0],
        "ext_table_sub": table[:, 1],
    }


def _padded(rows: list[list[int]], width: int | None = None, left: bool = False) -> torch.Tensor:
    """Rows as one tensor (rows, `width` or the longest), filled with 0."""
    width = max(map(len, rows)) if width is None else width
    gaps = ([0] * (width - len(row)) for row in rows)
    return torch.tensor([[*gap, *row] if left else [*row, *gap] for gap, row in zip(gaps, rows, strict=True)])


class Prompts(NamedTuple):
    """A batch to be answered; tensors are (records, longest prompt), padded with 0 on the left."""

    ids: torch.Tensor
    subs: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    num_segments: torch.Tensor  # 0 where there is padding
    relations: torch.Tensor  # (records, entries)
    ext_ids: torch.Tensor  # (X): tokens with sub ids that some record of the batch names
    ext_subs: torch.Tensor
    names: list[dict[int, str]]  # per record: what it calls these columns (vocabulary + X) and unnumbered families
    predicted: list[list[tuple[int, tuple[str, ...]]]]  # per record: segment and path of every answer


def prefill(tokenizer: CpmBeeTokenizer, data: list[dict]) -> Prompts:
    """The context of data whose answers are asked for; texts under `<ans>` only mark where answers belong.

    ValueError for data without `<ans>`, or with none but empty dicts there.
    """
    examples = [convert(tokenizer, _asked(one)) for one in data]
    if not all(example.predicted for example in examples):
        raise ValueError(f"data to be answered need a text under {ANSWER}, e.g. {{{ANSWER!r}: ''}}")
    columns, names = name_columns(tokenizer, examples)

    def padded(entries) -> torch.Tensor:
        """Of each example the `entries` of its context."""
        return _padded([list(compress(entries(example), example.context)) for example in examples], left=True)

    table = torch.tensor(columns, dtype=torch.long).view(-1, 2)
    return Prompts(
        ids=padded(lambda example: example.ids),
        subs=padded(lambda example: example.subs),
        positions=_padded([list(range(sum(example.context))) for example in examples], left=True),
        segments=padded(lambda example: example.segments),
        num_segments=padded(lambda example: [example.count] * len(example.ids)),
        relations=_padded([example.relations for example in examples]),
        ext_ids=table[:, 0],
        ext_subs=table[:, 1],
        names=names,
        predicted=[example.predicted for example in examples],
    )


def name_columns(tokenizer, examples: list[Example]) -> tuple[list[tuple[int, int]], list[dict[int, str]]]:
    """(id, sub id) of every token with a sub id that some example names, the columns of the ext table; and what each
    example calls those columns (vocabulary + column) and families that it names.
    """
    columns, names = {}, []
    for example in examples:
        named = {}
        for base, members in example.families.items():
            for text, sub in members.items() if base != tokenizer.answer_id else ():
                column = len(tokenizer) + columns.setdefault((base, sub), len(columns)) if sub else base
                named[column] = text
        names.append(named)
    return list(columns), names


class Laid(NamedTuple):
    """Records to be answered side by side by `CpmBeeForCausalLM` with a cache that has an attention of its own."""

    prompts: list[list[int]]  # marked tokens, and the `<s>` of the answer
    unnamed: list[list[bool]]  # of each record: the `columns` that it does not name
    given: dict[str, list]  # the model's arguments: ext_table_ids, ext_table_sub, relations and columns
    names: list[dict[int, str]]  # as in Prompts


def lay_out(tokenizer: CpmBeeTokenizer, data: list[dict]) -> Laid:
    """The same as `prefill` for data of one shape with one answer each; ValueError for others."""
    examples = [convert(tokenizer, _asked(one)) for one in data]
    first = examples[0]
    if any(len(one.predicted) != 1 or one.relations != first.relations for one in examples):
        raise ValueError(f"data answered side by side need one text under {ANSWER} and one shape")
    columns, names = name_columns(tokenizer, examples)
    columns, words = columns or [(tokenizer.pad_id, 1)], len(tokenizer)  # never empty; nobody names this one
    class_of = {pair: words + column for column, pair in enumerate(columns)}
    classes = words + len(columns)

    def prompt(example: Example) -> list[int]:
        rows = zip(example.ids, example.subs, example.segments, example.context, strict=True)
        given = (row[:3] for row in rows if row[3])
        marked = [(class_of[i, sub] if sub else i) + (segment + 1) * classes for i, sub, segment in given]
        return [*marked, tokenizer.bos_id]

    checked = [tokenizer.unknown_id, *range(words, classes)]
    order = [first.predicted[0][0], *range(first.count)]
    given = {
        "ext_table_ids": [base for base, _ in columns],
        "ext_table_sub": [sub for _, sub in columns],
        "relations": [[first.relations[one * first.count + other] for other in order] for one in order],
        "columns": checked,
    }
    unnamed = [[column not in named for column in checked] for named in names]
    return Laid([prompt(example) for example in examples], unnamed, given, names)


def _asked(data: dict) -> dict:
    """`data` with every text under `<ans>` emptied."""
    return {key: fill(value, lambda path: "") if key == ANSWER else value for key, value in data.items()}


def fill(answer, text_at, path: tuple[str, ...] = ()):
    """A copy of what stands under `<ans>`, each text replaced by `text_at(path)`, its keys below `<ans>`."""
    if isinstance(answer, dict):
        return {key: fill(value, text_at, (*path, key)) for key, value in answer.items()}
    return text_at(path)
