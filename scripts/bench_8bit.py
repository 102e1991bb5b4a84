"""Times of the products of one layer of LLaMA-7B's shape with 8-bit weights, in microseconds, on a card.

python scripts/bench_8bit.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script
from common.flags import command, parse_flags
from loading.quantised import dequantise_by_torch
from ops import available

SHAPES = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}  # (outs, width) of a weight: how many a layer has
BF16 = torch.bfloat16
COPIES = 6  # of every weight, so that none is found in the cache
REPEATS = 20
COUNTS = (1, 16, 32, 64, 128, 256, 512, 4096)


def main(argv=None) -> None:
    parser = command(__doc__)
    parse_flags(parser, argv)
    if not torch.cuda.is_available():
        raise UserError("a card is needed: the CPU multiplies in one way only")
    if reason := available.why_not("int8_product", torch.device("cuda"), BF16):
        raise UserError(f"Triton is needed: {reason}")
    from ops.int8_product import FEW, dequantise, multiply

    ways = {
        "16 bits": lambda inputs, codes, scales, weight: inputs @ weight.T,
        "torch": lambda inputs, codes, scales, weight: inputs @ dequantise_by_torch(codes, scales, BF16).T,
        "dequantised": lambda inputs, codes, scales, weight: inputs @ dequantise(codes, scales, BF16).T,
        "from codes": lambda inputs, codes, scales, weight: multiply(inputs, codes, scales),
    }
    print(f"{'inputs':>6}", *(f"{name:>12}" for name in ways))
    for count in COUNTS:
        taken = (layer_time(count, way) if count <= FEW or name != "from codes" else None for name, way in ways.items())
        print(f"{count:6}", *(f"{'-' if time is None else round(time):>12}" for time in taken), flush=True)


@torch.inference_mode()
def layer_time(count: int, way) -> float:
    """Microseconds of all products of a layer with `count` inputs; the CPU has no part in them (a CUDA graph)."""
    total = 0.0
    for (outs, width), layers in SHAPES.items():
        inputs = torch.randn(count, width, dtype=BF16, device="cuda")
        codes = torch.randint(-127, 128, (COPIES, outs, width), dtype=torch.int8, device="cuda")
        scales = torch.rand(COPIES, outs, device="cuda")
        weights = [(*one, dequantise_by_torch(*one, BF16)) for one in zip(codes, scales, strict=True)]
        way(inputs, *weights[0])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for weight in weights:
                way(inputs, *weight)
        graph.replay()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(REPEATS):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        total += layers * start.elapsed_time(end) / REPEATS / COPIES * 1000
    return total


if __name__ == "__main__":
    run_script(main)
