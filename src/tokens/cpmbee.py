"""CPM-Bee's rows: a record is a small tree of texts, of which one is to be said, instead of one text."""

from dataclasses import dataclass, replace
from pathlib import Path

from common.labels import IGNORED
from data.prompts import Piece, make_prompt
from models.cpmbee import CpmBeeConfig, collate, convert, escape, lay_out, load_tokenizer, training_features, unescape
from models.cpmbee.data import ANSWER
from tokens.codec import Codec
from tokens.rows import Limits, fit_record

LISTS = ("input_ids", "input_id_sub", "context", "segment", "segment_rel")  # of a row, that collate needs


class Prompt(list):
    """The ids of what is given of a tree, and the tree itself, which they do not tell whole."""

    def __init__(self, ids: list[int], data: dict):
        super().__init__(ids)
        self.data = data


def make_tree(pieces: list[Piece], answer: str = "") -> dict:
    """A prompt and its answer as CPM-Bee's data; `<` in a record is a character, in a template it may be markup."""
    text = "".join(piece.text if piece.from_template else escape(piece.text) for piece in pieces)
    return {"input": text, ANSWER: escape(answer)}


@dataclass(frozen=True)
class TreeCodec(Codec):
    """CPM-Bee's rules: beside its ids a token has a number among its like, a segment and a place in the tree."""

    names: dict[int, str] | None = None  # what the record whose answer is read calls its own ids

    def lay_out(self, waiting: dict[int, Prompt]) -> tuple[dict, dict, dict, dict]:
        """Of prompts by their numbers what decoding.laid.Laid says: prompts, about and given; and their names."""
        laid = lay_out(self.tokenizer, [prompt.data for prompt in waiting.values()])
        about = ((len(ids) - 1, *unnamed) for ids, unnamed in zip(laid.prompts, laid.unnamed, strict=True))
        parts = (dict(zip(waiting, part, strict=True)) for part in (laid.prompts, about, laid.names))
        prompts, about, names = parts
        return prompts, about, laid.given, names

    def naming(self, names: dict[int, str]) -> "TreeCodec":
        """The codec that reads answers to a prompt with these names."""
        return replace(self, names=names)

    def decode(self, ids) -> str:
        return unescape(self.tokenizer.decode(ids, self.names or {}))

    def encode(self, pieces: list[Piece]) -> Prompt:
        data = make_tree(pieces)
        example = convert(self.tokenizer, data)
        return Prompt([i for i, given in zip(example.ids, example.context, strict=True) if given], data)

    def encode_pair(self, pieces: list[Piece], answer: str) -> tuple[list[int], list[int]]:
        example = convert(self.tokenizer, make_tree(pieces, answer))
        start = sum(example.context)
        return example.ids[:start], example.ids[start + 1 :]  # without the answer's <s>: it counts for the missing eos

    def row(self, template: dict, record: dict, limits: Limits, train_on_inputs: bool = False) -> dict:
        fitted = fit_record(self, template, record, limits)
        row = {name: [] for name in (*LISTS, "labels")} | {"num_segments": 0}
        if fitted.text is not None:
            data = make_tree(make_prompt(template, record["instruction"], fitted.text), record["output"])
            features = training_features(self.tokenizer, data)
            row = {name: features[name] for name in (*LISTS, "num_segments")}
            # How many are learnt; collate makes the real ones, which differ from batch to batch.
            row["labels"] = [IGNORED] * len(fitted.prompt) + fitted.answer
        cut = fitted.text is not None and fitted.text != record["input"]
        counts = {"prompt_tokens": fitted.prompt_tokens, "answer_tokens": fitted.answer_tokens}
        return {**row, **counts, "cut": cut, "answer_cut": False}

    def collator(self, width_of: int = 1):
        def batch(rows: list[dict]) -> dict:
            width = -(-max(len(row["input_ids"]) for row in rows) // width_of) * width_of
            return collate(self.tokenizer, rows, width)

        return batch


def load_tree_codec(folder: Path) -> TreeCodec:
    """The codec of a folder with vocab.txt; OSError or ValueError when that is none of CPM-Bee's."""
    tokenizer = load_tokenizer(folder)
    rows = CpmBeeConfig.from_pretrained(folder).vocab_size
    if rows != len(tokenizer):  # numbered tokens would be taken for words
        raise ValueError(f"vocab.txt has {len(tokenizer)} entries, config.json says {rows}; take both of one release")
    return TreeCodec(tokenizer, (), tokenizer.eos_id, tokenizer.pad_id, {})
