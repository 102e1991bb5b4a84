"""Tokens a second that this machine's matrix products allow a base: 2 operations a weight and token.

python scripts/bench_limit.py --base models/counting-llama-7b
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script
from common.flags import command, parse_flags
from loading.shape import read_shape
from training.speed import product_rate


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--base", required=True, help="folder of a checkpoint")
    base = parse_flags(parser, argv).base
    shape = read_shape(base)
    if shape is None:
        raise UserError(f"--base {base}: the number of its weights cannot be told from its config.json")
    on_gpu = torch.cuda.is_available()
    rate = product_rate(torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32)
    print(rate / 2 / (shape.linear + shape.other))


if __name__ == "__main__":
    run_script(main)
