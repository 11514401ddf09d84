"""The float64 reference against loops over single elements and against PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import CONV_CASES, ConvCase, conv_case
from conv_runner import one_thread, random_operands
from torch import Tensor

from fastconv import reference

by_case = pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.id)

TINY = (
    conv_case("2d", (2, 4, 5, 4), (6, 2, 3, 2), (2, 1), (1, 2), (1, 2), groups=2),
    conv_case("2d_sparse", (1, 1, 7, 6), (2, 1, 2, 2), stride=3, padding=1),
    conv_case("1d", (2, 3, 9), (2, 3, 4), stride=2, padding=3, dilation=2),
    conv_case("3d", (1, 2, 3, 4, 3), (2, 1, 2, 3, 1), (1, 2, 1), (1, 1, 0), (2, 1, 1), groups=2),
)


def loop_terms(case: ConvCase):
    """(output index, weight index, input index) of every product in the forward definition."""
    k_per_group = case.weight_size[0] // case.groups
    c_per_group = case.weight_size[1]
    for out in itertools.product(*map(range, case.output_size)):
        for c_local, *tap in itertools.product(*map(range, case.weight_size[1:])):
            spatial = [
                o * s - p + r * d
                for o, r, s, p, d in zip(
                    out[2:], tap, case.stride, case.padding, case.dilation, strict=True
                )
            ]
            if all(0 <= i < h for i, h in zip(spatial, case.input_size[2:], strict=True)):
                c = out[1] // k_per_group * c_per_group + c_local
                yield out, (out[1], c_local, *tap), (out[0], c, *spatial)


@pytest.mark.parametrize("case", TINY, ids=lambda c: c.id)
def test_against_loops(case: ConvCase) -> None:
    x, w, bias = random_operands(case, "fprop", torch.float64)
    dy = random_operands(case, "dgrad", torch.float64)[0]
    y = bias.view(-1, *(1,) * case.rank).expand(case.output_size).clone()
    y_magnitude, dx, dw = y.abs(), torch.zeros_like(x), torch.zeros_like(w)
    for out, tap, inp in loop_terms(case):
        y[out] += x[inp] * w[tap]
        y_magnitude[out] += (x[inp] * w[tap]).abs()
        dx[inp] += dy[out] * w[tap]
        dw[tap] += dy[out] * x[inp]
    close = {"rtol": 1e-13, "atol": 1e-13}
    torch.testing.assert_close(reference.conv_fprop(x, w, bias, *case.params), y, **close)
    torch.testing.assert_close(
        reference.conv_fprop(x, w, bias, *case.params, magnitude=True), y_magnitude, **close
    )
    torch.testing.assert_close(
        reference.conv_dgrad(dy, w, case.input_size, *case.params), dx, **close
    )
    torch.testing.assert_close(
        reference.conv_wgrad(dy, x, case.weight_size, *case.params), dw, **close
    )


def torch_conv(
    case: ConvCase, x: Tensor, w: Tensor, bias: Tensor | None, padding: object = None
) -> Tensor:
    function = (F.conv1d, F.conv2d, F.conv3d)[case.rank - 1]
    padding = case.padding if padding is None else padding
    return function(x, w, bias, case.stride, padding, case.dilation, case.groups)


@by_case
@one_thread()
def test_against_torch(case: ConvCase) -> None:
    x, w, bias = (t.clone().requires_grad_() for t in random_operands(case, "fprop", torch.float64))
    y = torch_conv(case, x, w, bias)
    dy = random_operands(case, "dgrad", torch.float64)[0]
    dx, dw, db = torch.autograd.grad(y, (x, w, bias), dy)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(reference.conv_fprop(x, w, bias, *case.params), y.detach(), **close)
    torch.testing.assert_close(
        reference.conv_dgrad(dy, w, case.input_size, *case.params), dx, **close
    )
    torch.testing.assert_close(
        reference.conv_wgrad(dy, x, case.weight_size, *case.params), dw, **close
    )
    torch.testing.assert_close(reference.conv_bias_grad(dy), db, **close)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (1, 5)])
def test_padding_by_name(padding: str, kernel: tuple[int, int]) -> None:
    case = conv_case("named", (2, 4, 9, 8), (6, 2, *kernel), dilation=(2, 1), groups=2)
    x = torch.randn(case.input_size, dtype=torch.float64, requires_grad=True)
    w = torch.randn(case.weight_size, dtype=torch.float64, requires_grad=True)
    y = torch_conv(case, x, w, None, padding)
    dy = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    args = (1, padding, (2, 1), 2)
    torch.testing.assert_close(reference.conv_fprop(x, w, None, *args), y.detach())
    torch.testing.assert_close(reference.conv_dgrad(dy, w, case.input_size, *args), dx)
    torch.testing.assert_close(reference.conv_wgrad(dy, x, case.weight_size, *args), dw)


def test_padding_contributes_nothing() -> None:
    """Infinite weights over padding make no NaN."""
    w = torch.full((1, 1, 3, 3), torch.inf)
    assert (reference.conv_fprop(torch.ones(1, 1, 4, 4), w, padding=1) == torch.inf).all()


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (((2, 3, 8, 8), (4, 2, 3, 3)), r"\[2, 3, 8, 8\].*\[4, 2, 3, 3\].*groups=1"),
        (((2, 4, 8, 8), (5, 2, 3, 3), 1, 0, 1, 2), "groups=2"),
        (((2, 3, 2, 8), (4, 3, 3, 3)), "kernel of 3 .* padded input 2"),
        (((2, 3, 8, 8), (4, 3, 3, 3), 0), r"stride \[0, 0\]"),
        (((2, 3, 8, 8), (4, 3, 3, 3), 1, -1), r"padding \[-1, -1\]"),
        (((2, 3, 8, 8), (4, 3, 3, 3), (1, 1, 1)), r"stride needs 2 values, got \[1, 1, 1\]"),
        (((2, 3, 8, 8), (4, 3, 3, 3), 2, "same"), r"stride 1, got \[2, 2\]"),
        (((8, 8), (3, 3)), r"\[8, 8\]"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, values: str) -> None:
    x_size, w_size, *rest = arguments
    with pytest.raises(ValueError, match=values):
        reference.conv_fprop(torch.zeros(x_size), torch.zeros(w_size), None, *rest)


def test_wrong_dy_is_named() -> None:
    with pytest.raises(ValueError, match=r"\[1, 4, 7, 7\].*\[1, 4, 6, 6\]"):
        reference.conv_dgrad(torch.zeros(1, 4, 7, 7), torch.zeros(4, 3, 3, 3), (1, 3, 8, 8))
