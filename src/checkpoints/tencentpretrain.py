"""LLaMA in the format of TencentPretrain, as ChatFlow-7B and Chinese-LLaMA-7B are published: one .bin, other names."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import sentencepiece
import torch

from checkpoints.stored import Stored, load_bin
from common.errors import UserError
from common.files import write_lines

EMBEDDING = "embedding.word.embedding.weight"
OUTER = {  # Hugging Face's name -> TencentPretrain's
    "model.embed_tokens": "embedding.word.embedding",
    "model.norm": "encoder.layer_norm",
    "lm_head": "target.lm.output_layer",
}
INNER = {  # the same inside a layer: model.layers.N -> encoder.transformer.N
    "self_attn.q_proj": "self_attn.linear_layers.0",
    "self_attn.k_proj": "self_attn.linear_layers.1",
    "self_attn.v_proj": "self_attn.linear_layers.2",
    "self_attn.o_proj": "self_attn.final_linear",
    "mlp.gate_proj": "feed_forward.linear_gate",
    "mlp.up_proj": "feed_forward.linear_1",
    "mlp.down_proj": "feed_forward.linear_2",
    "input_layernorm": "layer_norm_1",
    "post_attention_layernorm": "layer_norm_2",
}


def find_file(folder: str | Path) -> Path | None:
    """The .bin file of a folder that holds weights in this format; None when no file does."""
    for file in sorted(Path(folder).glob("*.bin")):
        if not file.name.startswith(("pytorch_model", "adapter_model")) and zipfile.is_zipfile(file):
            try:
                names = load_bin(file)
            except UserError:  # something else, such as training_args.bin
                continue
            if EMBEDDING in names:
                return file
    return None


def rename(stored: dict[str, Stored], file: Path) -> dict[str, str]:
    """Hugging Face's names in the order of the model -> the names in `file`; UserError unless they match."""
    layers = {int(found[1]) for name in stored if (found := re.match(r"encoder\.transformer\.(\d+)\.", name))}
    names = {f"{new}.weight": f"{old}.weight" for new, old in OUTER.items()}
    for layer in range(max(layers, default=-1) + 1):
        for new, old in INNER.items():
            names[f"model.layers.{layer}.{new}.weight"] = f"encoder.transformer.{layer}.{old}.weight"
    missing, extra = set(names.values()) - set(stored), set(stored) - set(names.values())
    if missing or extra:
        what = f"lacks {min(missing)}" if missing else f"holds {min(extra)}, which LLaMA has not"
        raise UserError(f"{file}: not LLaMA in TencentPretrain's format: {what} ({len(missing | extra)} such tensors)")
    return names


def to_rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """q or k, (heads * d, in), from neighbouring rotary pairs within a head to pairs that are d/2 rows apart."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def make_config(stored: dict[str, Stored], names: dict[str, str], heads: int | None) -> dict:
    """config.json, its sizes read off the tensors. `heads` left out: 128 rows a head, as in the releases."""
    vocabulary, hidden = stored[EMBEDDING].shape
    shape = {new: stored[old].shape for new, old in names.items()}
    if heads is None and hidden % 128:
        raise UserError(f"--heads: {hidden} rows cannot be told apart into heads of 128; give the number of heads")
    heads = heads or hidden // 128
    if heads < 1 or hidden % (2 * heads):
        raise UserError(f"--heads {heads}: {hidden} rows do not divide into so many heads of an even number of rows")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": shape["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": sum(name.endswith(".q_proj.weight") for name in names),
        "num_attention_heads": heads,
        "num_key_value_heads": shape["model.layers.0.self_attn.k_proj.weight"][0] * heads // hidden,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def check_tokenizer(file: Path, rows: int) -> None:
    """UserError unless `file` is a sentencepiece model with LLaMA's special pieces and no more than `rows` pieces."""
    if not file.is_file():
        raise UserError(f"{file}: not there; put the tokenizer.model of the release beside its .bin file")
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file}: no sentencepiece model ({error}); download it again") from None
    first = [pieces.id_to_piece(number) for number in range(min(3, len(pieces)))]
    if first != ["<unk>", "<s>", "</s>"] or len(pieces) > rows:
        raise UserError(
            f"{file}: {len(pieces)} pieces that begin with {' '.join(first)}, for an embedding of {rows} rows; it "
            "belongs to another model (expected <unk> <s> </s>, and no more pieces than rows)"
        )


def write_tokenizer(folder: Path, model: Path) -> None:
    """tokenizer.model, the names of LLaMA's special pieces, and their ids for generation."""
    shutil.copyfile(model, folder / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        **special,
    }
    write_lines(folder / "tokenizer_config.json", [json.dumps(config, indent=2)])
    write_lines(folder / "special_tokens_map.json", [json.dumps(special, indent=2)])
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    write_lines(folder / "generation_config.json", [json.dumps(ids, indent=2)])
