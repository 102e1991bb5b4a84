"""Tokens a second that a card's matrix products allow a base: 2 operations a weight and token. Prints the number.

python scripts/bench_limit.py models/counting-llama-7b
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from utils.memory import read_shape
from utils.speed import product_rate

if __name__ == "__main__":
    shape = read_shape(sys.argv[1])
    card = torch.cuda.is_available()
    rate = product_rate(torch.device("cuda" if card else "cpu"), torch.bfloat16 if card else torch.float32)
    print(rate / 2 / (shape.linear + shape.other))
