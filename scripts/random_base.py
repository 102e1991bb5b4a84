"""A checkpoint of random weights in the shape of a known base, to measure memory and speed without downloading one.

python scripts/random_base.py --model llama-7b --out models/random-7b --tokenizer tests/golden/llama/checkpoint
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script, say
from common.flags import Range, check_ranges, command, parse_flags
from models.chatglm import ChatGLMConfig, ChatGLMTokenizer
from models.cpmbee import CpmBeeConfig
from models.cpmbee import load_tokenizer as cpmbee_tokenizer
from models.moss import MossConfig
from models.moss import load_tokenizer as moss_tokenizer

COUNTED = range(900, 1400)  # ids of single characters in the tokenizer of tests/golden/llama

SHAPES = {  # hidden, feed-forward, layers, heads, rows of the embedding (None: as many as the tokenizer has)
    "llama-tiny": (64, 176, 2, 4, 32000),
    "llama-1b": (2048, 5504, 16, 16, 32000),
    "llama-7b": (4096, 11008, 32, 32, 32000),
    "llama-13b": (5120, 13824, 40, 40, 32000),
    "chatglm-tiny": (64, 256, 2, 4, 1024),
    "chatglm-6b": (4096, 16384, 28, 32, 130528),
    "moss-tiny": (64, 256, 2, 4, 576),
    "moss-16b": (6144, 24576, 34, 24, 107008),
    "cpmbee-tiny": (64, 128, 2, 4, None),
    "cpmbee-10b": (4096, 10240, 48, 32, 86583),
}


def llama(hidden, wide, layers, heads, vocabulary, tokenizer) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
    )


def chatglm(hidden, wide, layers, heads, vocabulary, tokenizer) -> ChatGLMConfig:
    tokens = ChatGLMTokenizer(tokenizer)
    return ChatGLMConfig(
        hidden_size=hidden,
        inner_hidden_size=wide,
        num_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        bos_token_id=tokens.bos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def moss(hidden, wide, layers, heads, vocabulary, tokenizer) -> MossConfig:
    tokens = moss_tokenizer(tokenizer)
    return MossConfig(
        n_embd=hidden,
        n_inner=wide,
        n_layer=layers,
        n_head=heads,
        vocab_size=vocabulary,
        rotary_dim=min(64, hidden // heads // 2),
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )


def cpmbee(hidden, wide, layers, heads, vocabulary, tokenizer) -> CpmBeeConfig:
    return CpmBeeConfig(
        hidden_size=hidden,
        dim_ff=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        dim_head=hidden // heads,
        vocab_size=vocabulary or len(cpmbee_tokenizer(tokenizer)),
    )


CONFIGS = {"llama": llama, "chatglm": chatglm, "moss": moss, "cpmbee": cpmbee}


@torch.no_grad()
def make_counting(model) -> None:
    """Each of the ids COUNTED is followed by the one below it, the first by eos; all weights stay random numbers."""
    for layer in model.model.layers:  # of little weight beside the embedding
        layer.self_attn.o_proj.weight.mul_(0.01)
        layer.mlp.down_proj.weight.mul_(0.01)
    ids = torch.tensor(COUNTED)
    model.lm_head.weight[torch.where(ids == ids[0], model.config.eos_token_id, ids - 1)] = (
        model.model.embed_tokens.weight[ids]
    )
    model.model.embed_tokens.weight.mul_(50)


def parse(argv=None):
    parser = command(__doc__)
    parser.add_argument("--model", choices=SHAPES, default="llama-7b")
    parser.add_argument("--out", required=True, help="new folder of the checkpoint")
    parser.add_argument("--tokenizer", required=True, help="folder whose tokenizer files are copied")
    parser.add_argument(
        "--counting",
        action="store_true",
        help="llama: answers count down from the id of the prompt's last token, so that prompts decide their lengths",
    )
    parser.add_argument("--layers", type=int, help="another number of layers than the model has")
    return parse_flags(parser, argv)


def main(argv=None) -> None:
    arguments = parse(argv)
    out = Path(arguments.out)
    if out.exists():
        raise UserError(f"--out {out} exists; give a new folder")
    check_ranges(arguments, {"layers": Range(1)})
    if not Path(arguments.tokenizer).is_dir():
        raise UserError(f"--tokenizer {arguments.tokenizer}: no such folder; give one that holds tokenizer files")
    if arguments.counting and not arguments.model.startswith("llama"):
        raise UserError(f"--counting and --model {arguments.model}: only for the shapes llama-*; drop one of them")
    hidden, wide, layers, heads, vocabulary = SHAPES[arguments.model]
    make = CONFIGS[arguments.model.split("-")[0]]
    config = make(hidden, wide, arguments.layers or layers, heads, vocabulary, arguments.tokenizer)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    if arguments.counting:
        make_counting(model)
    model.save_pretrained(out)
    for pattern in ("*token*", "*.model", "vocab.*", "merges.txt"):
        for file in Path(arguments.tokenizer).glob(pattern):
            shutil.copy(file, out)
    if (out / "vocab.txt").is_file():  # CPM-Bee's: every row of the embedding has a word
        words = (out / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        words += [f"unused{number}" for number in range(config.vocab_size - len(words))]
        (out / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    say(f"{out}: {sum(p.numel() for p in model.parameters()):,} random weights in float16")


if __name__ == "__main__":
    run_script(main)
