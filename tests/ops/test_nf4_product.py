"""Products with 4-bit weights on a card, and which of them are made straight from the codes.

TEST_ON_CARD=1 python -m pytest tests/ops/test_nf4_product.py
"""

import copy

import pytest
import torch

from loading.quantised import use_codes, weight_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card and TEST_ON_CARD=1")


def make_four_bits(width: int, dtype, kind: str = "nf4", nested: bool = True, bias: bool = True):
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    layer = Linear4bit(width, 333, bias, dtype, nested, kind).to(dtype).cuda()
    layer.dtype = dtype  # as models have it
    return layer


def exact_weight(layer):
    from bitsandbytes.functional import dequantize_4bit

    state = copy.copy(layer.weight.quant_state)
    state.dtype = torch.float32
    return dequantize_4bit(layer.weight.data, state).double()


@pytest.fixture
def counted(monkeypatch):
    """How many products are made straight from 4-bit codes."""
    from ops import nf4_product  # needs Triton

    inputs, multiply = [], nf4_product.multiply
    monkeypatch.setattr(nf4_product, "multiply", lambda *given: inputs.append(given[0]) or multiply(*given))
    return inputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 576, 4096, 200])  # 576: no multiple of what is read at a time; 200: of 64
@pytest.mark.parametrize(("kind", "nested", "bias"), [("nf4", True, True), ("nf4", False, False), ("fp4", True, False)])
def test_products_with_4_bit_weights(dtype, width, kind, nested, bias, counted):
    layer = make_four_bits(width, dtype, kind, nested, bias)
    weight = exact_weight(layer)
    assert use_codes(layer) == 1
    for count in (1, 16, 17, 33, 64, 100, 256, 300):
        inputs = torch.randn(count, 2, width, dtype=dtype, device="cuda")[:, 1]  # apart, as the last tokens are
        with torch.inference_mode():
            out = layer(inputs[None])[0]
        assert len(counted) == (width % 64 == 0 and count <= 256)
        counted.clear()
        exact = inputs.double() @ weight.T + (layer.bias.double() if bias else 0)
        rough = inputs @ weight.to(dtype).T + (layer.bias if bias else 0)
        assert out.dtype == dtype
        assert torch.dist(out.double(), exact) < 1.6 * torch.dist(rough.double(), exact)


def test_products_with_4_bit_weights_by_every_tile():
    from ops.nf4_product import TILES, multiply

    layer = make_four_bits(4096 + 64, torch.bfloat16)
    weight, codes = exact_weight(layer), weight_of(layer.weight, layer.weight.quant_state)
    for tile in TILES.values():
        for programs in (1, 64, 512):  # not split, and split to the last
            for count in (1, 200):
                inputs = torch.randn(count, 4096 + 64, dtype=torch.bfloat16, device="cuda")
                out = multiply(inputs, codes, None, tile._replace(programs=programs)).double()
                exact = inputs.double() @ weight.T
                assert torch.dist(out, exact) < 5e-3 * exact.norm()


def test_gradients_and_inputs_in_32_bits_go_through_4_bit_weights(counted):
    layer = make_four_bits(640, torch.bfloat16)
    weight = exact_weight(layer)
    use_codes(layer)
    inputs = torch.randn(30, 640, device="cuda", requires_grad=True)
    gradient = torch.randn(30, 333, device="cuda")
    own = layer(inputs)
    own.backward(gradient)
    assert not counted
    assert torch.dist(inputs.grad.double(), gradient.double() @ weight) < 1e-2 * inputs.grad.norm()
    with torch.inference_mode():
        out = layer(inputs)
    assert (len(counted), out.dtype) == (1, torch.float32)
    assert torch.dist(out, own.detach()) < 1e-2 * out.norm()


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
        assert torch.equal(out, layer(inputs))
    assert len(counted) == 3
