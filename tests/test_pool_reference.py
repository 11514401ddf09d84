"""The float64 reference of pooling against PyTorch, and its sampling against the definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv import pool_reference as reference
from fastconv.pool_reference import Windows

SHAPES = {1: (2, 3, 19), 2: (1, 2, 7, 13), 3: (1, 2, 5, 6, 7)}
RANKS = (1, 2, 3)


def windows(rank: int) -> Iterator[tuple[int, int, int, int, bool]]:
    """(kernel, stride, padding, dilation, ceil) that PyTorch takes for the shape."""
    for k, s, d, ceil in itertools.product((1, 2, 3, 5), (1, 2, 4), (1, 2), (False, True)):
        for p in range(k // 2 + 1):
            if all(n + 2 * p > d * (k - 1) for n in SHAPES[rank][2:]):
                yield k, s, p, d, ceil


def made(rank: int, k: int, s: int, p: int, d: int, ceil: bool) -> Windows:
    return Windows(SHAPES[rank][2:], *([v] * rank for v in (k, s, p, d)), ceil)


def gradient(y: Tensor, x: Tensor, dy: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, dy)[0]


@pytest.mark.parametrize("rank", RANKS)
def test_maxima(rank: int) -> None:
    x = torch.randn(SHAPES[rank], dtype=torch.float64)
    x[torch.rand_like(x) < 0.03] = torch.nan
    x[torch.rand_like(x) < 0.1] = -torch.inf
    x[torch.rand_like(x) < 0.2] = 1.0
    for case in windows(rank):
        w = made(rank, *case)
        y, index = getattr(F, f"max_pool{rank}d")(x, *case, return_indices=True)
        z, place, tap = reference.max_pool(x, w)
        assert torch.equal(place, index) and torch.equal(z.nan_to_num(9), y.nan_to_num(9)), case
        taken = w.place.expand(*tap.shape[:2], -1, -1).gather(3, tap.flatten(2).unsqueeze(3))
        assert torch.equal(taken.view(place.shape), place)
        assert torch.equal(reference.take(x, place).nan_to_num(9), z.nan_to_num(9))


@pytest.mark.parametrize("rank", RANKS)
def test_sums_and_powers_with_gradients(rank: int) -> None:
    x = torch.randn(SHAPES[rank], dtype=torch.float64)
    average, power = getattr(F, f"avg_pool{rank}d"), getattr(F, f"lp_pool{rank}d")
    for k, s, p, d, ceil in windows(rank):
        if d > 1:
            continue
        w = made(rank, k, s, p, d, ceil)
        leaf = x.clone().requires_grad_()
        for include in (False, True):
            y = average(leaf, k, s, p, ceil, include)
            dy = torch.randn_like(y)
            torch.testing.assert_close(reference.sum_pool(x, w, include, 0), y.detach())
            dx = reference.sum_pool_dgrad(dy, w, include, 0)
            torch.testing.assert_close(dx, gradient(y, leaf, dy))
        for norm in (1, 2, 2.5) if p == 0 else ():
            leaf = (x.abs() + 0.1).requires_grad_()
            y = power(leaf, norm, k, s, ceil)
            dy, base = torch.randn_like(y), leaf.detach()
            ours = reference.lp_root(reference.lp_sum(base, w, norm, True), norm)
            torch.testing.assert_close(ours, y.detach())
            dx = reference.lp_pool_dgrad(dy, base, ours, w, norm, True)
            torch.testing.assert_close(dx, gradient(y, leaf, dy))


@pytest.mark.parametrize("norm", [1, 2, 3])
def test_lp_gradient_of_a_sum_of_nan(norm: float) -> None:
    x = torch.rand(1, 2, 5, 6, dtype=torch.float64)
    x[0, 0, 1, 1] = torch.nan
    w = Windows(x.shape[2:], (3, 3), (2, 2), (0, 0), (1, 1), False)
    leaf = x.clone().requires_grad_()
    y = F.lp_pool2d(leaf, norm, 3, 2)
    dy = torch.randn_like(y)
    dx = reference.lp_pool_dgrad(dy, x, y.detach(), w, norm, True)
    torch.testing.assert_close(dx, gradient(y, leaf, dy), equal_nan=True)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("out", [1, 2, 3, 5])
def test_adaptive_windows(rank: int, out: int) -> None:
    x = torch.randn(SHAPES[rank], dtype=torch.float64)
    w = Windows.adaptive(SHAPES[rank][2:], [out] * rank)
    average = getattr(F, f"adaptive_avg_pool{rank}d")(x, out)
    torch.testing.assert_close(reference.sum_pool(x, w, True, 0), average)
    y, index = getattr(F, f"adaptive_max_pool{rank}d")(x, out, return_indices=True)
    z, place, _ = reference.max_pool(x, w)
    assert torch.equal(z, y) and torch.equal(place, index)
    unpooled = reference.unpool(y, index, SHAPES[rank][2:])
    assert torch.equal(reference.take(unpooled, index), y)


def test_unpooling_keeps_the_last() -> None:
    x, place = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[4, 0, 4]]])
    assert reference.unpool(x, place, (5,)).flatten().tolist() == [2, 0, 0, 0, 3]


def test_philox_is_the_published_generator() -> None:
    """Random123's known answers of philox4x32-10 that a 64-bit counter can reach: all zero; the
    other two need counter words that are always 0 here."""
    (words,) = reference.philox(0, np.zeros(1, np.uint64)).tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers(dtype: torch.dtype) -> None:
    u = reference.uniform(7, 20000, dtype).double()
    assert u.min() >= 0 and u.max() < 1 and len(u.unique()) > 19900
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    assert abs((u[1:] * u[:-1]).mean() - 0.25) < 0.01  # neighbours are independent


def test_sampling_follows_the_weights() -> None:
    w = Windows((4,), (4,), (4,), (0,), (1,), False)
    x = torch.tensor([1.0, 0.0, 3.0, -2.0]).expand(20000, 1, 4)
    y, place, tap = reference.sample_pool(x, w, 5)
    share = torch.bincount(tap.flatten(), minlength=4) / 20000
    assert share[1] == share[3] == 0 and abs(share[2] - 0.75) < 0.01
    assert torch.equal(place, tap) and torch.equal(y, x.gather(2, place))
    inf, nan, least = torch.inf, torch.nan, 5e-324
    rows = [[1, nan, nan, 9], [1, inf, 2, inf], [-1, -inf, -3, -0.0], [0, 0, least, 0]]
    odd = torch.tensor(rows, dtype=torch.float64).unsqueeze(1)
    _, _, tap = reference.sample_pool(odd, w, 5)
    assert tap.flatten().tolist() == [2, 1, 0, 2]


def test_expectation() -> None:
    w = Windows((4,), (4,), (4,), (0,), (1,), False)
    x = torch.tensor([[[1.0, 2.0, -5.0, 0.0]], [[-1.0, -2.0, 0.0, -3.0]]])
    torch.testing.assert_close(
        reference.expectation_pool(x, w).flatten(), torch.tensor([5 / 3, 0.0]).double()
    )
