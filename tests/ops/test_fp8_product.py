"""Products in 8-bit floats, by the numbers that a card's would have."""

import pytest
import torch

from ops import fp8_product
from ops.fp8_product import NARROW, WIDE, Latest, keep_weight, multiply, round_rows


@pytest.mark.parametrize(("kind", "most"), [(NARROW, 2**-4), (WIDE, 2**-3)])
def test_each_row_is_rounded_by_a_scale_of_its_own(kind, most):
    torch.manual_seed(0)
    rows = torch.randn(5, 64) * torch.tensor([1e-6, 1e-2, 1.0, 1e3, 0.0])[:, None]
    codes, scales = round_rows(rows, kind)
    assert codes.dtype == kind
    assert codes.float().isfinite().all()
    near = rows.abs() > rows.abs().amax(1, keepdim=True) / 64  # smaller ones have fewer digits
    assert ((codes.float() * scales - rows).abs() / rows.abs())[near].max() <= most
    assert codes[:4].float().abs().amax(1).tolist() == [torch.finfo(kind).max] * 4
    assert not codes[4].float().any()


def test_factors_go_into_the_columns_before_they_are_rounded():
    rows, factors = torch.randn(3, 32), torch.rand(32, 1) + 0.1
    for one, other in zip(round_rows(rows, WIDE, factors), round_rows(rows * factors.T, WIDE), strict=True):
        assert torch.equal(one.float(), other.float())


def test_product_and_gradient_are_near_those_of_the_exact_weight():
    torch.manual_seed(0)
    sizes = torch.logspace(-3, 3, 48)  # of the outputs
    weight, inputs = torch.randn(48, 64) * sizes[:, None], torch.randn(2, 7, 64, requires_grad=True)
    asked = torch.randn(2, 7, 48) / sizes
    out, exact = multiply(inputs, keep_weight(weight, True)), inputs @ weight.T
    gradient, expected = (torch.autograd.grad(made, inputs, asked)[0] for made in (out, exact))
    assert ((out - exact).abs().mean((0, 1)) / exact.abs().mean((0, 1))).max() < 0.08  # of the small ones too
    assert (gradient - expected).norm() / expected.norm() < 0.1


def test_without_gradients_the_weight_is_kept_once():
    kept = keep_weight(torch.randn(16, 32), False)
    with torch.inference_mode():
        made = multiply(torch.randn(1, 32), kept)
    assert kept.turned is None
    assert made.shape == (1, 16)


def test_layers_that_share_their_inputs_round_them_once(monkeypatch):
    rounded = []
    monkeypatch.setattr(fp8_product, "round_rows", lambda *args: rounded.append(args) or round_rows(*args))
    weights, latest = [keep_weight(torch.randn(16, 32), True) for _ in range(3)], Latest()
    rounded.clear()
    inputs, other = torch.randn(2, 32, requires_grad=True), torch.randn(2, 32, requires_grad=True)
    made = [multiply(part, weight, latest) for part in (inputs, other) for weight in weights]
    assert len(rounded) == 2
    for out, (part, weight) in zip(
        made, ((part, weight) for part in (inputs, other) for weight in weights), strict=True
    ):
        assert torch.equal(out, multiply(part, weight))
        assert torch.equal(*(torch.autograd.grad(one.sum(), part)[0] for one in (out, multiply(part, weight))))
    del inputs, made, out, part
    assert torch.equal(multiply(torch.ones(2, 32), weights[0], latest), multiply(torch.ones(2, 32), weights[0]))
