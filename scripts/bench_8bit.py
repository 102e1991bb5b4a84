"""Times of the products of one layer of LLaMA-7B's shape with quantised weights, in microseconds, on a card.

python scripts/bench_8bit.py
python scripts/bench_8bit.py --bits 4
python scripts/bench_8bit.py --bits 4 --tiles --counts 16 32 64    the best of many tiles for each number of inputs
python scripts/bench_8bit.py --bits 4 --tiles 64,64,64,4,4,384 128,64,64,4,3,256
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from common.errors import UserError, run_script
from common.flags import command, parse_flags
from loading.quantised import dequantise_by_torch, weight_of
from ops import available

SHAPES = {(4096, 4096): 4, (11008, 4096): 2, (4096, 11008): 1}  # (outs, width) of a weight: how many a layer has
BF16 = torch.bfloat16
COPIES = 48  # of every weight, divided by its bits: 100 MB at least, so that none is found in the cache
REPEATS = 20
COUNTS = (1, 16, 32, 64, 128, 256, 512, 4096)
BEST = 6  # tiles that are said for a number of inputs


class Kind(NamedTuple):
    """How weights of so many bits are made and multiplied; a weight is a tuple that its last one, in 16 bits, ends."""

    copies: int  # of every weight
    module: str  # of ops/, whose kernels it needs
    few: int  # inputs that are multiplied from codes, at most
    make: Callable  # (outs, width) -> a weight
    ways: dict[str, Callable]  # by name: (inputs, *weight) -> their product
    from_codes: Callable  # the same with a tile


def eight_bits() -> Kind:
    from ops.int8_product import FEW, dequantise, multiply

    def make(outs, width):
        codes = torch.randint(-127, 128, (outs, width), dtype=torch.int8, device="cuda")
        scales = torch.rand(outs, device="cuda")
        return codes, scales, dequantise_by_torch(codes, scales, BF16)

    ways = {
        "16 bits": lambda inputs, codes, scales, weight: inputs @ weight.T,
        "torch": lambda inputs, codes, scales, weight: inputs @ dequantise_by_torch(codes, scales, BF16).T,
        "dequantised": lambda inputs, codes, scales, weight: inputs @ dequantise(codes, scales, BF16).T,
    }
    return Kind(
        COPIES // 8,
        "int8_product",
        FEW,
        make,
        ways,
        lambda inputs, codes, scales, weight: multiply(inputs, codes, scales),
    )


def four_bits() -> Kind:
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from ops.nf4_product import FEW, multiply

    def make(outs, width):
        weight = torch.randn(outs, width, dtype=BF16, device="cuda") / 64
        codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        return codes, state, weight_of(codes, state), weight

    ways = {
        "16 bits": lambda inputs, codes, state, ours, weight: inputs @ weight.T,
        "bitsandbytes": lambda inputs, codes, state, *_: bitsandbytes.matmul_4bit(inputs, codes, state),
        "dequantised": lambda inputs, codes, state, *_: inputs @ dequantize_4bit(codes, state).T,
    }

    def from_codes(inputs, codes, state, ours, weight, tile=None):
        return multiply(inputs, ours, None, tile)

    return Kind(COPIES // 4, "nf4_product", FEW, make, ways, from_codes)


KINDS = {8: eight_bits, 4: four_bits}


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--bits", type=int, choices=KINDS, default=8, help="of a weight")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of inputs")
    parser.add_argument("--tiles", nargs="*", help="4 bits: tiles to try, their six numbers by commas; none: many")
    flags = parse_flags(parser, argv)
    if not torch.cuda.is_available():
        raise UserError("a card is needed: the CPU multiplies in one way only")
    if flags.tiles is not None and flags.bits != 4:
        raise UserError(f"--tiles and --bits {flags.bits} contradict each other: only 4 bits have tiles to try")
    kind = KINDS[flags.bits]()
    if reason := available.why_not(kind.module, torch.device("cuda"), BF16):
        raise UserError(f"Triton is needed: {reason}")
    if flags.tiles is not None:
        return compare_tiles(kind, flags.counts, flags.tiles)
    ways = kind.ways | {"from codes": kind.from_codes}
    print(f"{'inputs':>6}", *(f"{name:>12}" for name in ways))
    for count in flags.counts:
        times = (
            layer_time(count, kind, way) if count <= kind.few or name != "from codes" else None
            for name, way in ways.items()
        )
        print(
            f"{count:6}", *(f"{'-' if time is None else round(sum(time.values())):>12}" for time in times), flush=True
        )


@torch.inference_mode()
def layer_time(count: int, kind: Kind, way) -> dict[tuple[int, int], float]:
    """Microseconds of all products of a layer with `count` inputs, by shape; the CPU has no part in them (a graph)."""
    times = {}
    for (outs, width), layers in SHAPES.items():
        inputs = torch.randn(count, width, dtype=BF16, device="cuda")
        weights = [kind.make(outs, width) for _ in range(kind.copies)]
        times[outs, width] = layers * product_time(inputs, weights, way)
    return times


def product_time(inputs, weights, way) -> float:
    """Microseconds of one of the products."""
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
    return start.elapsed_time(end) / REPEATS / len(weights) * 1000


def many_tiles(count: int):
    """Tiles that may serve `count` inputs."""
    from ops.nf4_product import Tile

    most = max(16, 1 << (count - 1).bit_length())
    for outs, inner, warps in itertools.product((32, 64, 128), (64, 128), (4, 8)):
        read, added = outs * inner, outs * most
        fits = read <= 1024 * warps and added <= 2048 * warps  # more takes the registers of blocks beside it
        if fits and (warps == 4 or max(read, added) >= 1024 * warps):  # smaller ones leave 8 warps too little
            yield from (Tile(most, outs, inner, warps, 3, programs) for programs in (1, 256, 512, 1024))


@torch.inference_mode()
def compare_tiles(kind: Kind, counts, asked: list[str]) -> None:
    """Say the best tiles for each number of inputs, and of each shape the best."""
    from ops.nf4_product import Tile

    weights = {shape: [kind.make(*shape) for _ in range(kind.copies)] for shape in SHAPES}
    for count in (count for count in counts if count <= kind.few):
        inputs = {width: torch.randn(count, width, dtype=BF16, device="cuda") for _, width in SHAPES}
        times = {}
        for tile in [Tile(*map(int, one.split(","))) for one in asked] or many_tiles(count):
            way = lambda *given, tile=tile: kind.from_codes(*given, tile=tile)  # noqa: E731
            try:
                each = [product_time(inputs[width], weights[outs, width], way) for outs, width in SHAPES]
            except Exception as error:  # noqa: BLE001 - more shared memory or registers than there are
                print(f"{count:6} {','.join(map(str, tile))}: {type(error).__name__}", file=sys.stderr)
                continue
            times[tile] = [layers * time for layers, time in zip(SHAPES.values(), each, strict=True)]
        for tile in sorted(times, key=lambda tile: sum(times[tile]))[:BEST]:
            print(
                f"{count:6} {','.join(map(str, tile)):>24} {sum(times[tile]):8.0f}",
                *(f"{time:8.1f}" for time in times[tile]),
                flush=True,
            )
        for at, shape in enumerate(SHAPES):
            tile = min(times, key=lambda tile: times[tile][at])
            print(f"{count:6} best for {shape}: {','.join(map(str, tile))} {times[tile][at]:.1f}", flush=True)


if __name__ == "__main__":
    run_script(main)
