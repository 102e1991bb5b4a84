"""A LLaMA-shaped checkpoint of random weights, to measure memory and speed without downloading one.

python scripts/random_base.py --out models/random-7b --size 7b --tokenizer tests/golden/llama/checkpoint
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from utils.errors import UserError, run_script, say

SIZES = {  # hidden, feed-forward, layers, heads
    "tiny": (64, 176, 2, 4),
    "1b": (2048, 5504, 16, 16),
    "7b": (4096, 11008, 32, 32),
    "13b": (5120, 13824, 40, 40),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="new folder of the checkpoint")
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--layers", type=int, help="another number of layers than the size has")
    parser.add_argument("--tokenizer", required=True, help="folder whose tokenizer files are copied")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    if out.exists():
        raise UserError(f"--out {out} exists; give a new folder")
    hidden, wide, layers, heads = SIZES[arguments.size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=arguments.layers or layers,
        num_attention_heads=heads,
        vocab_size=32000,
        max_position_embeddings=2048,
        dtype="float16",
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.float16)
    model.save_pretrained(out)
    for file in Path(arguments.tokenizer).glob("*token*"):
        shutil.copy(file, out)
    say(f"{out}: {sum(p.numel() for p in model.parameters()):,} random weights in float16")


if __name__ == "__main__":
    run_script(main)
