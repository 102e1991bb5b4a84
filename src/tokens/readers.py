"""Checkpoint folders read as codecs, one reader a kind of tokenizer."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from tokenizers import AddedToken, normalizers
from transformers import AutoConfig, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from checkpoints.family import own_code
from checkpoints.stored import is_there, read_json
from checkpoints.vocabulary import NAME, tokens_beside, write_tokens
from common.errors import UserError, say
from models.families import Family
from tokens.chat import FLAG, choose_chat
from tokens.codec import Codec
from tokens.extending import extend_codec, plain_tokenizer

FILES = {  # of tokenizers that are read from their published files; without the first, transformers' own are written
    "llama": ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"),
    "chatglm": ("ice_text.model", "tokenizer_config.json"),
    "cpm-bee": ("vocab.txt",),
    "moss": ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"),
}
# What transformers reads of a tokenizer: JSON objects, and the rest.
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
STOCK = (*SETTINGS, "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
BEGINNING = 4 * 2**20  # characters of tokenizer.json, in which added tokens stand: 1.2 of Gemma's 33 millions
LLAMA_SPECIALS = {"<unk>": 0, "<s>": 1, "</s>": 2}
LLAMA_NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # which its files of 2023 leave empty


def load_codec(
    model_path: str | Path, family: Family, trust_remote_code: bool = False, adapter: str | Path | None = None
) -> Codec:
    """The codec of a checkpoint folder, with the tokens that a model or its `adapter` (a folder) was extended by."""
    folder = Path(model_path)
    codec = _read_codec(folder, family, trust_remote_code)
    if own := tokens_beside(folder):  # whose rows are in its weights
        codec = replace(extend_codec(codec, own, str(folder / NAME)), pieces_before={})
    return extend_codec(codec, tokens_beside(adapter), str(Path(adapter or "") / NAME))


def _read_codec(folder: Path, family: Family, trust_remote_code: bool) -> Codec:
    """What the files of a base say: a bare tokenizer.model is read as the originals of 2023 did."""
    for name in {*FILES.get(family.tokenizer, ()), *(STOCK if family.package is None else ())}:
        is_there(folder / name)
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


def load_prompting(
    template: dict,
    system: str | None,
    model_path: str | Path,
    family: Family,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
) -> tuple[dict, Codec]:
    """A template of `load_template`, or one that run.json kept, ready to be filled, and the codec that encodes it.

    `system`: --chat_system. `adapter`: see `load_codec`. UserError where a system line goes with no chat template, or
    the base's tokenizer has none.
    """
    if "chat" not in template:
        if system is not None:
            raise UserError(f"--chat_system goes with {FLAG} alone; drop it, or add that")
        return template, load_codec(model_path, family, trust_remote_code, adapter)
    if family.package is not None:
        raise UserError(f"{FLAG}: family {family.name} has no chat template; leave the flag out")
    # transformers' own tokenizer, as its chat template was written for it
    codec = load_codec(model_path, replace(family, tokenizer="auto"), trust_remote_code, adapter)
    return choose_chat(template, system, codec, str(model_path))


def _stock_codec(folder: Path, trust_remote_code: bool) -> Codec:
    """What transformers' AutoTokenizer reads."""
    _check_settings(folder)
    config = None
    try:
        with own_code(folder, trust_remote_code):
            if (folder / "config.json").is_file():  # the model's own code: noticed early
                config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            read = partial(AutoTokenizer.from_pretrained, folder, trust_remote_code=trust_remote_code)
            tokenizer = read(**read_added(folder))
            if not tokenizer.eos_token and _begins_as_llamas(getattr(tokenizer, "backend_tokenizer", None)):
                tokenizer = read(**read_added(folder), **LLAMA_NAMES)
    except UserError:
        raise
    except RecursionError:  # AutoTokenizer on LLaMA repositories of 2023, whose special tokens are empty strings
        raise UserError(
            f"{folder}: transformers cannot read this tokenizer; if it is LLaMA's, leave --model_name auto out"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged file makes the readers below raise anything
        there = ", ".join(sorted(path.name for path in folder.glob("*token*"))) or "no tokenizer file"
        raise UserError(f"{folder}: config or tokenizer cannot be read ({error}); found {there}") from None
    if not tokenizer.eos_token:
        raise UserError(f"{folder}: the tokenizer names no eos_token, so no answer could end; add it to its config")
    rows = config and getattr(config.get_text_config(), "vocab_size", None)
    prefix = [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
    specials = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    pad, eos = _choose_pad(folder, tokenizer, rows), tokenizer.eos_token_id
    return Codec(tokenizer, tuple(prefix), eos, pad, specials, space_byte=_space_byte(tokenizer))


def _check_settings(folder: Path) -> None:
    """UserError for a file of a tokenizer's settings that is no JSON object."""
    for name in SETTINGS:
        if is_there(folder / name):
            read_json(folder / name)


def read_added(folder: Path) -> dict:
    """What transformers takes for the tokens added to a tokenizer, as the beginning of tokenizer.json lists them.

    It would read the whole file a second time for them, where no other one names them. Nothing where one does, or where
    the file does not begin as the library tokenizers writes it.
    """
    settings, file = folder / SETTINGS[0], folder / "tokenizer.json"
    named = read_json(settings) if settings.is_file() else {}
    if named.keys() & {"added_tokens_decoder", "fast_tokenizer_files"} or not file.is_file():
        return {}
    if any((folder / name).is_file() for name in SETTINGS[1:]):
        return {}
    try:
        with open(file, encoding="utf-8") as text:
            before, _, tokens = text.read(BEGINNING).partition('"added_tokens":')
        if '"model":' in before:
            return {}
        tokens, _ = json.JSONDecoder().raw_decode(tokens.lstrip())
        return {"added_tokens_decoder": {token.pop("id"): AddedToken(**token) for token in tokens}}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # cut off, or damaged: see transformers
        return {}


def _choose_pad(folder: Path, tokenizer, rows: int | None) -> int:
    """The id that fills up batches: the tokenizer's own or, where the embedding has no row for it, eos.

    `rows`: of the embedding, None: not known. UserError when there is none for eos either.
    """
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if rows is None or max(eos, eos if pad is None else pad) < rows:
        return eos if pad is None else pad
    if eos >= rows:
        raise UserError(
            f"{folder}: the tokenizer's eos_token {tokenizer.eos_token} has the id {eos}, the embedding {rows} rows "
            "(vocab_size in config.json), so no answer could end; take both of one release"
        )
    say(f"padding: {tokenizer.eos_token} ({tokenizer.pad_token} has the id {pad}, the embedding {rows} rows)")
    return eos


def _space_byte(tokenizer) -> int | None:
    """The id of <0x20> where the tokenizer spells in bytes what no piece holds, as sentencepiece does; else None."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend.token_to_id("<0x20>") if backend and "ByteFallback" in repr(backend.decoder) else None


def save_tokenizer(codec: Codec, family: Family, model_path: str | Path, out: Path) -> None:
    """Put the tokenizer beside what was trained, in the form that `load_codec` reads alike."""
    write_tokens(out, codec.added)
    own = [Path(model_path) / name for name in FILES.get(family.tokenizer, ())]
    if not own or not own[0].is_file():
        plain_tokenizer(codec).save_pretrained(out)
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
    _check_settings(folder)
    try:
        stock = LlamaTokenizer.from_pretrained(folder, **LLAMA_NAMES)
    except Exception as error:  # noqa: BLE001 - a damaged file makes the readers below raise anything
        there = ", ".join(f"{path.name} ({path.stat().st_size} bytes)" for path in sorted(folder.glob("*token*")))
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder}: the tokenizer cannot be read ({reason}); found {there}; download it again"
        ) from None
    backend = stock.backend_tokenizer
    if not _begins_as_llamas(backend):
        return _stock_codec(folder, trust_remote_code)
    # transformers 5 adds the dummy space only to texts that start with none; the originals added it always.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<unk>", **LLAMA_NAMES)
    named = _names_specials(folder)
    rules = {"strips_spaces": named, "space_byte": _space_byte(tokenizer)}
    return Codec(tokenizer, (1,), 2, 0, LLAMA_SPECIALS if named else {}, **rules)


def _begins_as_llamas(backend) -> bool:
    """Whether a tokenizer's first tokens are LLaMA's special ones."""
    return backend is not None and all(backend.id_to_token(at) == piece for piece, at in LLAMA_SPECIALS.items())


def _names_specials(folder: Path) -> bool:
    """Whether the repository's own tokenizer knew `</s>` in a text (decapoda's files leave the names empty)."""
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return True
    eos = read_json(config).get("eos_token", "</s>")
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
