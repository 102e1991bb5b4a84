"""Text to token ids: prompts and training rows, exactly as published adapters saw them."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import normalizers
from transformers import AutoConfig, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from utils.errors import UserError
from utils.families import Family, own_code
from utils.prompter import Piece, prompt

IGNORED = -100  # the label of a token that is not learnt
LLAMA_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
LLAMA_SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2}


@dataclass(frozen=True)
class Codec:
    """A tokenizer and the rules its family adds to it."""

    tokenizer: PreTrainedTokenizerFast
    prefix_ids: tuple[int, ...]  # what every sequence starts with, e.g. <s>
    eos_id: int  # ends every answer; generation stops here
    pad_id: int
    specials: dict[str, int]  # strings that are one token where a template writes them
    strips_spaces: bool  # spaces beside a special token vanish, as in the slow tokenizers of 2023
    between: tuple[int, ...] = ()  # what stands between question and answer if no template says it: [gMASK] <sop>

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text by itself; what it says never becomes a special token."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def encode(self, pieces: list[Piece]) -> list[int]:
        """Token ids of a text given in pieces; what a record says never becomes a special token."""
        ids, parts = list(self.prefix_ids), self._parts(pieces)
        for index, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
                continue
            if self.strips_spaces and index > 0:
                part = part.lstrip()
            if self.strips_spaces and index < len(parts) - 1:
                part = part.rstrip()
            if part:
                ids += self.text_ids(part)
        return ids

    def decode(self, ids) -> str:
        """The text of an answer's ids, special tokens left out, nothing cleaned up."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _parts(self, pieces: list[Piece]) -> list[str | int]:
        """The pieces as stretches of text (neighbours joined) and ids of special tokens."""
        special = re.compile("|".join(f"({re.escape(text)})" for text in self.specials) or r"(?!)")
        parts = [""]
        for text, from_template in pieces:
            position = 0
            for match in special.finditer(text) if from_template else ():
                parts[-1] += text[position : match.start()]
                parts += [self.specials[match[0]], ""]
                position = match.end()
            parts[-1] += text[position:]
        return parts


def load_codec(model_path: str | Path, family: Family, trust_remote_code: bool = False) -> Codec:
    """The codec of a checkpoint folder: a bare tokenizer.model is read as the originals of 2023 did."""
    folder = Path(model_path)
    if family.sentencepiece and (folder / "tokenizer.model").is_file() and (codec := _llama_codec(folder)):
        return codec
    try:
        with own_code(folder, trust_remote_code):
            if not trust_remote_code and (folder / "config.json").is_file():  # the model's own code: noticed early
                AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except RecursionError:  # AutoTokenizer on LLaMA repositories of 2023, whose special tokens are empty strings
        raise UserError(
            f"{folder}: transformers cannot read this tokenizer; if it is LLaMA's, leave --model_name {family.name} out"
        ) from None
    except (OSError, ValueError) as error:
        there = ", ".join(sorted(path.name for path in folder.glob("*token*"))) or "no tokenizer file"
        raise UserError(f"{folder}: config or tokenizer cannot be read ({error}); found {there}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer names no eos_token, so no answer could end; add it to its config")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    prefix = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
    specials = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return Codec(tokenizer, tuple(prefix), tokenizer.eos_token_id, pad, specials, strips_spaces=False)


def save_tokenizer(codec: Codec, family: Family, model_path: str | Path, out: Path) -> None:
    """Put the tokenizer beside what was trained, in the form that `load_codec` reads alike."""
    own = [Path(model_path) / name for name in LLAMA_FILES]
    if not family.sentencepiece or not own[0].is_file():
        codec.tokenizer.save_pretrained(out)
        return
    for file in own:
        if file.is_file():
            shutil.copy(file, out)


def _llama_codec(folder: Path) -> Codec | None:
    """`<s>` + sentencepiece ids of the text with its dummy leading space; ids 0, 1, 2 whatever the configs say.

    None when the vocabulary does not begin with LLaMA's three special pieces: it is somebody else's.
    """
    try:
        stock = LlamaTokenizer.from_pretrained(folder, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    except Exception as error:  # noqa: BLE001 - a damaged file makes the readers below raise anything
        there = ", ".join(f"{path.name} ({path.stat().st_size} bytes)" for path in sorted(folder.glob("*token*")))
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder}: the tokenizer cannot be read ({reason}); found {there}; download it again"
        ) from None
    backend = stock.backend_tokenizer
    if any(backend.id_to_token(number) != piece for piece, number in LLAMA_SPECIALS.items()):
        return None
    # transformers 5 adds the dummy space only to texts that start with none; the originals added it always.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    named = _names_specials(folder)
    return Codec(tokenizer, (1,), 2, 0, LLAMA_SPECIALS if named else {}, strips_spaces=named)


def _names_specials(folder: Path) -> bool:
    """Whether the repository's own tokenizer knew `</s>` in a text (decapoda's files leave the names empty)."""
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return True
    eos = json.loads(config.read_text(encoding="utf-8")).get("eos_token", "</s>")
    return bool(eos.get("content") if isinstance(eos, dict) else eos)


class Row(NamedTuple):
    """A training row: ids and labels of equal length (both empty: the record does not fit)."""

    input_ids: list[int]
    labels: list[int]
    whole: int  # tokens of the whole record
    cut: bool  # the text lost its end


def encode_row(codec: Codec, template: dict, record: dict, cutoff: int, train_on_inputs: bool = False) -> Row:
    """A record as prompt + answer + eos within `cutoff` tokens; empty when even its instruction and answer are longer.

    The answer is never cut: a text that is too long loses its end instead. Labels are IGNORED on the prompt unless
    `train_on_inputs`.
    """
    row = _join(codec, template, record, record["input"], train_on_inputs)
    whole = len(row[0])
    if whole <= cutoff:
        return Row(*row, whole, cut=False)
    low, high = 0, len(record["input"])  # the longest beginning of the text that fits
    while low < high:
        middle = (low + high + 1) // 2
        if len(_join(codec, template, record, record["input"][:middle], train_on_inputs)[0]) <= cutoff:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        return Row([], [], whole, cut=False)
    return Row(*_join(codec, template, record, record["input"][:low], train_on_inputs), whole, cut=True)


def _join(codec, template, record, text, train_on_inputs):
    pieces = prompt(template, record["instruction"], text)
    start = codec.encode(pieces)
    ids = codec.encode([*pieces, Piece(record["output"], from_template=False)])
    if ids[: len(start)] != start:  # a token spans prompt and answer: keep the prompt as prediction will see it
        ids = start + codec.encode([Piece(record["output"], from_template=False)])[len(codec.prefix_ids) :]
    ids.append(codec.eos_id)
    labels = ids if train_on_inputs else [IGNORED] * len(start) + ids[len(start) :]
    return ids, list(labels)
