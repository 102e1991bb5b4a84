"""Checkpoint folders read as codecs, one reader a kind of tokenizer."""

import json
import shutil
from pathlib import Path

from tokenizers import normalizers
from transformers import AutoConfig, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from checkpoints.family import own_code
from common.errors import UserError
from models.families import Family
from tokens.codec import Codec

FILES = {  # of tokenizers that are read from their published files; without the first, transformers' own are written
    "llama": ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    "chatglm": ("ice_text.model", "tokenizer_config.json"),
    "cpm-bee": ("vocab.txt",),
    "moss": ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"),
}
LLAMA_SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2}


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
    from tokens.cpmbee import load_tree_codec

    return load_tree_codec(folder)


READERS = {
    "auto": _stock_codec,
    "llama": _llama_codec,
    "chatglm": _chatglm_codec,
    "moss": _moss_codec,
    "cpm-bee": _cpmbee_codec,
}
