"""Times of the products of one layer of LLaMA-7B's shape with quantised weights, in microseconds, on a GPU.

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

from common.errors import UserError, run_script, say
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

    from ops.nf4_product import FEW, Tile, multiply

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
        return multiply(inputs, ours, None, tile and Tile(*tile))

    return Kind(COPIES // 4, "nf4_product", FEW, make, ways, from_codes)


KINDS = {8: eight_bits, 4: four_bits}


def main(argv=None) -> None:
    parser = command(__doc__)
    parser.add_argument("--bits", type=int, choices=KINDS, default=8, help="of a weight")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of inputs")
    parser.add_argument(
        "--tiles", type=read_tile, nargs="*", help="4 bits: tiles to try, their six numbers by commas; none: many"
    )
    flags = parse_flags(parser, argv)
    if min(flags.counts) < 1:
        raise UserError(f"--counts {min(flags.counts)}: expected at least 1")
    if not torch.cuda.is_available():
        raise UserError("a GPU is needed: the CPU multiplies in one way only")
    if flags.tiles is not None and flags.bits != 4:
        raise UserError(f"--tiles and --bits {flags.bits} contradict each other: only 4 bits have tiles to try")
    kind = KINDS[flags.bits]()
    if reason := available.why_not(kind.module, torch.device("cuda"), BF16):
        raise UserError(f"Triton is needed: {reason}")
    if flags.tiles is not None:
        counts = choose_counts(flags.counts, kind.few)
        return compare_tiles(counts, lambda count: flags.tiles or many_tiles(count), tile_timer(kind))
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


def read_tile(text: str) -> tuple[int, ...]:
    """The numbers of an ops.nf4_product.Tile, which only a machine with Triton has."""
    numbers = tuple(int(one) for one in text.split(",") if one.isascii() and one.isdigit() and int(one))
    if len(numbers) != 6 or text.count(",") != 5 or numbers[2] % 64:
        raise UserError(
            f"--tiles {text}: expected six whole numbers above 0 with commas between them: inputs, outs, inner (a "
            "multiple of 64), warps, stages, programs, as 64,64,64,4,3,512"
        )
    return numbers


def many_tiles(count: int):
    """Tiles that may serve `count` inputs, as `read_tile` gives them."""
    most = max(16, 1 << (count - 1).bit_length())
    for outs, inner, warps in itertools.product((32, 64, 128), (64, 128), (4, 8)):
        read, added = outs * inner, outs * most
        fits = read <= 1024 * warps and added <= 2048 * warps  # more takes the registers of blocks beside it
        if fits and (warps == 4 or max(read, added) >= 1024 * warps):  # smaller ones leave 8 warps too little
            yield from ((most, outs, inner, warps, 3, programs) for programs in (1, 256, 512, 1024))


@torch.inference_mode()
def tile_timer(kind: Kind) -> Callable:
    """(number of inputs, tile) -> microseconds of all products of a layer, by shape."""
    weights = {shape: [kind.make(*shape) for _ in range(kind.copies)] for shape in SHAPES}

    @torch.inference_mode()
    def time_tile(count: int, tile: tuple) -> list[float]:
        def way(*given):
            return kind.from_codes(*given, tile=tile)

        inputs = {width: torch.randn(count, width, dtype=BF16, device="cuda") for _, width in SHAPES}
        return [layers * product_time(inputs[shape[1]], weights[shape], way) for shape, layers in SHAPES.items()]

    return time_tile


def choose_counts(counts, most: int) -> list[int]:
    """The numbers of inputs that are `most` at most; what is left out is said, UserError where that is all."""
    above = [count for count in counts if count > most]
    said = f"--counts {' '.join(map(str, above))}: the kernel serves {most} inputs at most"
    if len(above) == len(counts):
        raise UserError(f"{said}; give smaller ones")
    if above:
        say(f"{said}; left out")
    return [count for count in counts if count <= most]


def compare_tiles(counts: list[int], tiles_of: Callable, time_tile: Callable) -> None:
    """Say the best tiles for each number of inputs, and of each shape the best; UserError where none ran at all.

    `tiles_of(count)`: those to try; `time_tile`: of `tile_timer`.
    """
    ran = False
    for count in counts:
        times = {}
        for tile in tiles_of(count):
            try:
                times[tile] = time_tile(count, tile)
            except Exception as error:  # noqa: BLE001 - more shared memory or registers than there are
                say(f"{count:6} {','.join(map(str, tile))}: {type(error).__name__}")
        if not times:
            say(f"{count:6} none of the tiles ran")
            continue
        ran = True
        for tile in sorted(times, key=lambda tile: sum(times[tile]))[:BEST]:
            print(
                f"{count:6} {','.join(map(str, tile)):>24} {sum(times[tile]):8.0f}",
                *(f"{time:8.1f}" for time in times[tile]),
                flush=True,
            )
        for at, shape in enumerate(SHAPES):
            tile = min(times, key=lambda tile: times[tile][at])
            print(f"{count:6} best for {shape}: {','.join(map(str, tile))} {times[tile][at]:.1f}", flush=True)
    if not ran:
        raise UserError("--tiles: none of them ran on this GPU, each for the error above; try smaller ones")


if __name__ == "__main__":
    run_script(main)
