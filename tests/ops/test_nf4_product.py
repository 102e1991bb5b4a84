"""Products with 4-bit weights on a card, and which of them are made straight from the codes.

TEST_ON_CARD=1 python -m pytest tests/ops/test_nf4_product.py
"""

import copy

import pytest
import torch

from loading.quantised import use_codes, weight_of
from ops.available import why_not

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card and TEST_ON_CARD=1")
HALVES = [torch.bfloat16, torch.float16]
# No multiple of any tile, but even: bitsandbytes 0.50.2 writes outputs in pairs, for which the second row of an odd
# width lies wrong. The card stops at it ("misaligned address"), and at all that it is asked for later.
OUTS = 334


def make_four_bits(width: int, dtype, kind: str = "nf4", nested: bool = True, bias: bool = True, outs: int = OUTS):
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    layer = Linear4bit(width, outs, bias, dtype, nested, kind).to(dtype).cuda()
    layer.dtype = dtype  # as models have it
    return layer


def exact_weight(layer):
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(layer.weight.quant_state)
    state.dtype = torch.float32
    return dequantize_4bit(layer.weight.data, state).double()


def assert_near(found, exact, bound: float, *of) -> None:
    """`found` is at most so far from `exact`; else it says so, of what, and where first."""
    found, exact = found.detach().double(), exact.detach().double()
    distance = torch.dist(found, exact).item()
    if distance <= bound:  # false for what is no number, too
        return
    off = (found - exact).abs()
    worst = [int(at) for at in torch.unravel_index(off.nan_to_num(torch.inf).argmax(), off.shape)]
    lost = int((~found.isfinite()).sum())
    pytest.fail(
        f"{of}: {distance:.3g} from exact, at most {bound:.3g} asked, of a length of {exact.norm().item():.3g}; "
        f"most at {worst}: {found[tuple(worst)].item()} for {exact[tuple(worst)].item()}; {lost} are no numbers"
    )


@pytest.fixture
def counted(monkeypatch):
    """The inputs of products that are made straight from 4-bit codes."""
    from ops import nf4_product  # needs Triton

    for dtype in HALVES:  # asked before products are counted, for it makes some
        reason = why_not("nf4_product", torch.device("cuda", 0), dtype)
        assert reason is None, reason
    inputs, multiply = [], nf4_product.multiply
    monkeypatch.setattr(nf4_product, "multiply", lambda *given: inputs.append(given[0]) or multiply(*given))
    return inputs


@pytest.mark.filterwarnings("ignore:inner dimension")  # bitsandbytes says that rows of 200 are slower
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("width", [64, 576, 4096, 200])  # 576: no multiple of what is read at a time; 200: of 64
@pytest.mark.parametrize(("kind", "nested", "bias"), [("nf4", True, True), ("nf4", False, False), ("fp4", True, False)])
def test_products_with_4_bit_weights(dtype, width, kind, nested, bias, counted):
    layer = make_four_bits(width, dtype, kind, nested, bias)
    weight = exact_weight(layer)
    assert use_codes(layer) == 1
    for count in (1, 2, 3, 16, 17, 33, 64, 100, 128, 129, 300):
        inputs = torch.randn(count, 2, width, dtype=dtype, device="cuda")[:, 1]  # apart, as the last tokens are
        with torch.inference_mode():
            out = layer(inputs[None])[0]
        assert (count, len(counted)) == (count, width % 64 == 0 and 3 <= count <= 128)
        counted.clear()
        exact = inputs.double() @ weight.T + (layer.bias.double() if bias else 0)
        rough = inputs @ weight.to(dtype).T + (layer.bias if bias else 0)
        assert (out.dtype, out.shape) == (dtype, exact.shape)
        times = 2.5 if count == 1 else 1.6  # bitsandbytes rounds every product of a single input
        assert_near(out, exact, times * torch.dist(rough.double(), exact).item(), count)


def test_products_with_4_bit_weights_by_every_tile():
    from ops.nf4_product import TILES, multiply

    layer = make_four_bits(4096 + 64, torch.bfloat16, outs=333)
    weight, codes = exact_weight(layer), weight_of(layer.weight, layer.weight.quant_state)
    for tile in TILES.values():
        for programs in (1, 64, 512):  # not split, and split to the last
            for count in (1, 200):
                inputs = torch.randn(count, 4096 + 64, dtype=torch.bfloat16, device="cuda")
                out = multiply(inputs, codes, None, tile._replace(programs=programs))
                exact = inputs.double() @ weight.T
                assert_near(out, exact, 5e-3 * exact.norm().item(), tile, programs, count)


@pytest.mark.parametrize("width", [130, 200])  # of 130 the codes are no whole words of 4 bytes
def test_rows_that_share_a_scale_are_left_to_bitsandbytes(width):
    from bitsandbytes.functional import quantize_4bit

    assert weight_of(*quantize_4bit(torch.ones(5, width), blocksize=64, quant_type="nf4")) is None


def test_gradients_and_inputs_in_32_bits_go_through_4_bit_weights(counted):
    layer = make_four_bits(640, torch.bfloat16)
    weight = exact_weight(layer)
    use_codes(layer)
    inputs = torch.randn(30, 640, device="cuda", requires_grad=True)
    gradient = torch.randn(30, OUTS, device="cuda")
    own = layer(inputs)
    own.backward(gradient)
    assert not counted
    assert_near(inputs.grad, gradient.double() @ weight, 1e-2 * inputs.grad.norm().item(), "gradient")
    with torch.inference_mode():
        out = layer(inputs)
    assert (len(counted), out.dtype) == (1, torch.float32)
    assert_near(out, own, 1e-2 * own.norm().item(), "product")


def test_a_layer_of_4_bits_can_be_captured(counted):
    layer = make_four_bits(4096, torch.bfloat16)
    use_codes(layer)
    inputs, graph = torch.randn(20, 4096, dtype=torch.bfloat16, device="cuda"), torch.cuda.CUDAGraph()
    with torch.inference_mode():
        layer(inputs)
        with torch.cuda.graph(graph):
            out = layer(inputs)
        inputs.copy_(torch.randn_like(inputs))
        graph.replay()
        assert_near(out, layer(inputs), 0.0, "graph")
    assert len(counted) == 3
