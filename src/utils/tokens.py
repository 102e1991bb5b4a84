"""Text to token ids: prompts and training rows, exactly as published adapters saw them."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tokenizers import normalizers
from transformers import AutoConfig, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from utils import generating
from utils.batches import IGNORED, make_collator
from utils.errors import UserError
from utils.families import Family, own_code
from utils.prompter import Piece, prompt

FILES = {  # of tokenizers that are read from their published files; without the first, transformers' own are written
    "llama": ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    "chatglm": ("ice_text.model", "tokenizer_config.json"),
    "cpm-bee": ("vocab.txt",),
    "moss": ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"),
}
LLAMA_SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2}


@dataclass(frozen=True)
class Codec:
    """A tokenizer and the rules its family adds to it."""

    tokenizer: PreTrainedTokenizerFast
    prefix_ids: tuple[int, ...]  # what every sequence starts with, e.g. <s>
    eos_id: int  # ends every answer; generation stops here
    pad_id: int
    specials: dict[str, int]  # strings that are one token where a template writes them
    strips_spaces: bool = False  # spaces beside a special token vanish, as in the slow tokenizers of 2023
    suffix_ids: tuple[int, ...] = ()  # what every prompt ends with, e.g. [gMASK] <sop>
    context: int | None = None  # positions that the model has; None: beyond config.json's limit it only gets worse

    @property
    def bos_id(self) -> int | None:
        """What starts a sequence, or with a suffix, which ends with it, the answer."""
        return (*self.suffix_ids[-1:], *self.prefix_ids, None)[0]

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text by itself; what it says never becomes a special token."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def encode(self, pieces: list[Piece]) -> list[int]:
        """Token ids of a prompt given in pieces; what a record says never becomes a special token."""
        return [*self.prefix_ids, *self._ids_of(pieces), *self.suffix_ids]

    def encode_pair(self, pieces: list[Piece], answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt, as `encode` gives them, and of the answer behind it, without eos."""
        start, last = self.encode(pieces), Piece(answer, from_template=False)
        if not self.suffix_ids:  # one text, cut between the two
            ids = self.encode([*pieces, last])
            if ids[: len(start)] == start:
                return start, ids[len(start) :]
        return start, self._ids_of([last])  # else a token would span both: the prompt stays as prediction sees it

    def _ids_of(self, pieces: list[Piece]) -> list[int]:
        ids, parts = [], self._parts(pieces)
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

    def row(self, template: dict, record: dict, limits: "Limits", train_on_inputs: bool = False) -> dict:
        """A record as a training row: `Row` by names, and whatever else `collator` wants of it."""
        return encode_row(self, template, record, limits, train_on_inputs)._asdict()

    def collator(self, width_of: int = 1):
        """A function from rows to the model's arguments, padded to a multiple of `width_of`."""
        return make_collator(self.pad_id, width_of)

    def answer(self, model, prompts: list, rules: generating.Rules, numbers=None) -> list[generating.Answer]:
        """The model's answers to one batch of prompts, as `encode` gave them, in their order.

        `numbers`: of the prompts, which seed what is drawn; default: their places in the batch.
        """
        return generating.generate(model, self, prompts, rules, numbers)

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
    try:
        return READERS[family.tokenizer](folder, trust_remote_code)
    except UserError:
        raise
    except Exception as error:
        if family.package is None:
            raise
        # A damaged file makes the readers of src/models raise anything.
        there = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise UserError(f"{folder}: config or tokenizer cannot be read ({error}); found {there}") from error


def _stock_codec(folder: Path, trust_remote_code: bool) -> Codec:
    """What transformers' AutoTokenizer reads."""
    try:
        with own_code(folder, trust_remote_code):
            if not trust_remote_code and (folder / "config.json").is_file():  # the model's own code: noticed early
                AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except RecursionError:  # AutoTokenizer on LLaMA repositories of 2023, whose special tokens are empty strings
        raise UserError(
            f"{folder}: transformers cannot read this tokenizer; if it is LLaMA's, leave --model_name auto out"
        ) from None
    except (OSError, ValueError) as error:
        there = ", ".join(sorted(path.name for path in folder.glob("*token*"))) or "no tokenizer file"
        raise UserError(f"{folder}: config or tokenizer cannot be read ({error}); found {there}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: the tokenizer names no eos_token, so no answer could end; add it to its config")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    prefix = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
    specials = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return Codec(tokenizer, tuple(prefix), tokenizer.eos_token_id, pad, specials)


def save_tokenizer(codec: Codec, family: Family, model_path: str | Path, out: Path) -> None:
    """Put the tokenizer beside what was trained, in the form that `load_codec` reads alike."""
    own = [Path(model_path) / name for name in FILES.get(family.tokenizer, ())]
    if not own or not own[0].is_file():
        codec.tokenizer.save_pretrained(out)
        return
    for file in own:
        if file.is_file():
            shutil.copy(file, out)


def _llama_codec(folder: Path, trust_remote_code: bool) -> Codec:
    """`<s>` + sentencepiece ids of the text with its dummy leading space; ids 0, 1, 2 whatever the configs say.

    Without a tokenizer.model, or when its vocabulary does not begin with LLaMA's three special pieces, it is somebody
    else's: transformers reads it.
    """
    if not (folder / "tokenizer.model").is_file():
        return _stock_codec(folder, trust_remote_code)
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
        return _stock_codec(folder, trust_remote_code)
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


def _chatglm_codec(folder: Path, trust_remote_code: bool) -> Codec:
    """sentencepiece over ice_text.model; a prompt ends with [gMASK] <sop>."""
    from models.chatglm import ChatGLMConfig, ChatGLMTokenizer

    tokenizer, config = ChatGLMTokenizer(folder), ChatGLMConfig.from_pretrained(folder)
    own = (tokenizer.gmask_token_id, tokenizer.bos_token_id)
    if own != (config.gmask_token_id, config.bos_token_id):
        raise UserError(
            f"{folder}: the tokenizer's ids of [gMASK] and <sop> are {own}, config.json's are "
            f"{(config.gmask_token_id, config.bos_token_id)}; take all files from one release"
        )
    return Codec(tokenizer, (), tokenizer.eos_token_id, tokenizer.pad_token_id, {}, suffix_ids=own)


def _moss_codec(folder: Path, trust_remote_code: bool) -> Codec:
    """GPT-2's pieces; <eom> ends an answer, and pads."""
    from models.moss import MossConfig, load_tokenizer

    tokenizer, config = load_tokenizer(folder), MossConfig.from_pretrained(folder)
    specials = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Codec(tokenizer, (), tokenizer.eos_token_id, tokenizer.eos_token_id, specials, context=config.n_positions)


def _cpmbee_codec(folder: Path, trust_remote_code: bool) -> Codec:
    from utils.trees import load

    return load(folder)


READERS = {
    "auto": _stock_codec,
    "llama": _llama_codec,
    "chatglm": _chatglm_codec,
    "moss": _moss_codec,
    "cpm-bee": _cpmbee_codec,
}


def check_context(codec: Codec, prompts: list[list[int]], records: list[dict]) -> None:
    """UserError that names the records whose prompt leaves no room for an answer."""
    long = [index for index, ids in enumerate(prompts) if codec.context and len(ids) >= codec.context]
    if long:
        names = ", ".join(f"{records[i].get('id', f'number {i}')} ({len(prompts[i])} tokens)" for i in long[:5])
        raise UserError(
            f"{len(long)} prompts are as long as this base's {codec.context} positions or longer, so no answer is "
            f"possible (the first: id {names}); shorten their texts, or take another base"
        )


class Limits(NamedTuple):
    """Most tokens of a training row; None: any number."""

    row: int | None  # all of it
    prompt: int | None = None
    answer: int | None = None  # with its eos


class Row(NamedTuple):
    """A training row: ids and labels of equal length (both empty: the record does not fit)."""

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int  # of the whole record
    answer_tokens: int  # of the whole record, eos included
    cut: bool  # the text lost its end
    answer_cut: bool  # the answer lost its end, and eos is not learnt

    @property
    def whole(self) -> int:
        return self.prompt_tokens + self.answer_tokens


class Fitted(NamedTuple):
    """A record within its limits."""

    text: str | None  # as much of its text as fits; None: not even its first character does
    prompt: list[int]
    answer: list[int]  # whole, with eos
    prompt_tokens: int  # of the whole record
    answer_tokens: int


def fit(codec: Codec, template: dict, record: dict, limits: Limits) -> Fitted:
    """The longest beginning of a record's text with which prompt and answer keep to `limits`.

    The answer is only counted here: as far as its own limit, if it has one.
    """

    def encode(length: int) -> tuple[list[int], list[int]]:
        pieces = prompt(template, record["instruction"], record["input"][:length])
        start, answer = codec.encode_pair(pieces, record["output"])
        return start, [*answer, codec.eos_id]

    def fits(start: list[int], answer: list[int]) -> bool:
        size = len(start) + len(answer[: limits.answer])
        return len(start) <= (limits.prompt or size) and size <= (limits.row or size)

    text = record["input"]
    start, answer = encode(len(text))
    whole = len(start), len(answer)
    if fits(start, answer):
        return Fitted(text, start, answer, *whole)
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(*encode(middle)) else (low, middle - 1)
    return Fitted(text[:low], *encode(low), *whole) if low else Fitted(None, [], [], *whole)


def encode_row(codec: Codec, template: dict, record: dict, limits: Limits, train_on_inputs: bool = False) -> Row:
    """A record as prompt + answer + eos within `limits`; empty when there is no room for its text.

    A text that is too long loses its end. The answer is never cut for the prompt's or the row's limit, only for its
    own. Labels are IGNORED on the prompt unless `train_on_inputs`.
    """
    fitted = fit(codec, template, record, limits)
    start, answer = fitted.prompt, fitted.answer
    ids = start + answer[: limits.answer]
    return Row(
        ids,
        list(ids) if train_on_inputs else [IGNORED] * len(start) + ids[len(start) :],
        fitted.prompt_tokens,
        fitted.answer_tokens,
        cut=fitted.text is not None and len(fitted.text) < len(record["input"]),
        answer_cut=limits.answer is not None and len(answer) > limits.answer,
    )
