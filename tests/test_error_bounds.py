"""The counts of `error_bounds` against float32 itself, one operation at a time."""

from __future__ import annotations

import pytest
import torch

from error_bounds import ONE, Float32Errors, chain_variance, depth, fewest

GENERATOR = torch.Generator().manual_seed(0)


def numbers(*shape):
    return torch.randn(shape, generator=GENERATOR)


def in_roundings(errors):
    return float(errors.double().square().mean().sqrt()) / ONE


def test_one_product_is_one_rounding():
    x, y = numbers(100_000), numbers(100_000)
    exact = x.double() * y.double()
    assert in_roundings((x * y - exact) / exact) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("count", [16, 128, 1024])
def test_a_chain_has_the_variance_of_its_partial_sums(count):
    x, weight = numbers(200, count), numbers(count, 50)
    total = torch.zeros(200, 50)
    for column, row in zip(x.T, weight, strict=True):  # in float64, then rounded: a fused add
        total = (total.double() + column.double()[:, None] * row.double()).float()
    errors = total - x.double() @ weight.double()
    derived = chain_variance(x.double(), weight.double()).sqrt()
    assert in_roundings(errors / derived) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("count", [16, 128, 1024])
def test_a_sum_of_squares_errs_by_no_more_than_its_depth(count):
    squares = numbers(2000, count).square()
    lanes = torch.zeros(2000, 16)
    for part in squares.split(16, dim=1):
        lanes = lanes + part
    while lanes.shape[1] > 1:
        lanes = lanes[:, ::2] + lanes[:, 1::2]
    exact = squares.double().sum(dim=1)
    assert in_roundings((lanes[:, 0] - exact) / exact) <= depth(count) ** 0.5


@pytest.mark.parametrize("name", ["gelu", "softmax"])
def test_functions_err_by_no_more_than_their_roundings(name):
    """PyTorch's own float32 functions, which take about as many operations."""
    x = 4 * numbers(1000, 64)
    function = {
        "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "softmax": lambda x: torch.softmax(x, dim=-1),
    }[name]
    exact = function(x.double())
    drawn = Float32Errors(0).of(name, (x.double(),), exact)
    assert in_roundings(function(x) - exact) <= 1.5 * in_roundings(drawn)


def test_fewest_is_fishers_bound():
    assert fewest(0, 10) == 0
    assert 0 < fewest(20, 20) < 20
    assert fewest(20, 100) < fewest(60, 100) < 60
