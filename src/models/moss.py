"""MOSS (moss-moon-003): transformers' CodeGen under the published names, and its tokenizer from the published files.

Importing this module teaches transformers' Auto classes to load a MOSS checkpoint without its own code.
"""

import json
import re
from pathlib import Path

import torch
from torch import nn
from transformers import AddedToken, AutoConfig, AutoModelForCausalLM, CodeGenConfig, CodeGenForCausalLM, GPT2Tokenizer
from transformers.models.codegen.modeling_codegen import CodeGenAttention

# Keys of published configurations that mean nothing to the model: how it was made, or what no MOSS has.
MEANINGLESS = ("auto_map", "tokenizer_class", "wbits", "groupsize", "gradient_checkpointing", "scale_attn_weights")
CORES = 4  # parts that qkv_proj was made in
FIRST, EOS = "<|endoftext|>", "<eom>"


class MossConfig(CodeGenConfig):
    """CodeGen's configuration, under MOSS's name and its released sizes."""

    model_type = "moss"

    def __init__(self, **kwargs):
        kept = {k: v for k, v in kwargs.items() if k not in MEANINGLESS and not k.startswith("summary_")}
        released = {"vocab_size": 107008, "n_embd": 6144, "n_layer": 34, "n_head": 24}
        super().__init__(**{**released, "bos_token_id": 106028, "eos_token_id": 106068, **kept})


class MossAttention(CodeGenAttention):
    """CodeGen's, and with a cache that has an attention of its own (`attend`), that one."""

    def forward(self, hidden_states, layer_past=None, attention_mask=None, position_ids=None, **more):
        if not hasattr(layer_past, "attend"):
            return super().forward(hidden_states, layer_past, attention_mask, position_ids, **more)
        # (tokens, query, value or key, cores, heads of a core, size)
        parts = self.qkv_proj(hidden_states[0]).unflatten(-1, (CORES, 3, -1, self.head_dim)).transpose(1, 2)
        table = self.embed_positions[position_ids[0], None, None, None]  # (tokens, 1, 1, 1, rotated numbers)
        query, key = turn_pairs(parts[:, 0::2], *table.chunk(2, dim=-1)).flatten(2, 3).unbind(1)
        attended = layer_past.attend(query, key, parts[:, 1].flatten(1, 2), self.layer_idx)
        return self.out_proj(attended.flatten(1)[None]), None


def turn_pairs(numbers: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """The first numbers (tokens, …, size) turned, each pair of neighbours by one angle of (tokens, …, angles)."""
    pairs = numbers[..., : 2 * sin.shape[-1]].unflatten(-1, (-1, 2)).to(sin.dtype)
    others = torch.stack([-sin, sin], dim=-1) * pairs.flip(-1)
    turned = (pairs * cos[..., None] + others).flatten(-2)
    return torch.cat([turned.to(numbers.dtype), numbers[..., 2 * sin.shape[-1] :]], dim=-1)


class MossForCausalLM(CodeGenForCausalLM):
    """CodeGen's model: the same parameters, the same numbers."""

    config_class = MossConfig
    _keys_to_ignore_on_load_unexpected = [r"h\.\d+\.attn\.causal_mask"]  # noqa: RUF012 - buffers in every file

    def __init__(self, config: MossConfig):
        super().__init__(config)
        for block in self.transformer.h:
            block.attn.__class__ = MossAttention  # made anew, it would draw its first values again
            if config.activation_function == "gelu_new":  # as every published one has it
                block.mlp.act = nn.GELU(approximate="tanh")  # the same in one pass, not in eight


AutoConfig.register("moss", MossConfig, exist_ok=True)
AutoModelForCausalLM.register(MossConfig, MossForCausalLM, exist_ok=True)


def load_tokenizer(folder: str | Path) -> GPT2Tokenizer:
    """GPT-2's byte-level tokenizer over vocab.json and merges.txt, with the added tokens at the ids the files give.

    OSError for a missing file, ValueError for files that do not belong together. The stock classes reject the
    published layout of special_tokens_map.json, and would stop answers at <|endoftext|>, which no fine-tuned MOSS says.
    """
    folder = Path(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if not merges:
        raise ValueError("merges.txt holds no merge")
    tokenizer = GPT2Tokenizer(vocab=vocabulary, merges=merges, unk_token=FIRST, bos_token=FIRST, eos_token=FIRST)
    for text, number in sorted(_added_tokens(folder).items(), key=lambda item: item[1]):
        if text in vocabulary and vocabulary[text] == number:
            continue
        if number != len(tokenizer):
            raise ValueError(f"the added token {text!r} has id {number}, the next free one is {len(tokenizer)}")
        marker = re.fullmatch(r"<\|?\w+\|?>", text) is not None  # the others are runs of spaces and tabs
        tokenizer.add_tokens([AddedToken(text, lstrip=False, rstrip=False, normalized=False, special=marker)])
    if EOS not in tokenizer.get_vocab():
        raise ValueError(f"no added token {EOS}, which ends every answer")
    tokenizer.eos_token = EOS
    return tokenizer


def _added_tokens(folder: Path) -> dict[str, int]:
    """Token -> id, from added_tokens.json, or from tokenizer_config.json where newer releases keep it."""
    if (folder / "added_tokens.json").is_file():
        return json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return {token["content"]: int(number) for number, token in settings.get("added_tokens_decoder", {}).items()}
