"""Small windows along rows of NCHW planes: every width around a vector's lanes, what stands at the
edges, and numbers that a comparison alone puts in the wrong order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from pool_check import DTYPES, as_integers, gradient, same_bits
from torch import Tensor

import fastconv

# Narrower than a vector, of its lanes (4, 8, 16), of twice as many, and one less or more.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 18, 31, 32, 33, 34, 35, 36, 65, 67)
NAN, INF = float("nan"), float("inf")


def windows() -> Iterator[tuple[int, int, int, bool]]:
    for k, s, ceil in itertools.product((2, 3), (1, 2), (False, True)):
        for p in (0, 1):
            yield k, s, p, ceil


def odd_numbers(shape: tuple[int, ...], nan: float) -> Tensor:
    x = torch.randn(shape).round()  # ties
    rare = torch.rand(shape)
    x[rare < 0.2] = -0.0
    x[(rare > 0.2) & (rare < 0.3)] = 0.0
    x[(rare > 0.3) & (rare < 0.4)] = -INF
    x[(rare > 0.4) & (rare < 0.45)] = INF
    x[rare > 1 - nan] = NAN
    x[:, 1] = -INF
    return x


@pytest.mark.parametrize("nan", [0.0, 0.02])
@pytest.mark.parametrize("dtype", DTYPES)
def test_maxima_of_every_width(dtype: torch.dtype, nan: float, isa: str) -> None:
    for width in WIDTHS:
        x = odd_numbers((2, 3, 5, width), nan).to(dtype)
        last = x.contiguous(memory_format=torch.channels_last)
        for k, s, p, ceil in windows():
            args = (k, s, p, 1, ceil)
            try:
                want, places = F.max_pool2d(x, *args, return_indices=True)
            except RuntimeError:  # too small
                continue
            case = f"width={width} {args}"
            y, index = fastconv.max_pool2d(x, *args, return_indices=True)
            assert same_bits(y, want) and torch.equal(index, places), case
            plain = fastconv.max_pool2d(x, *args)
            assert torch.equal(as_integers(plain), as_integers(y)), case
            # Other code, which orders zeros by where they lie too.
            if nan == 0:
                other = fastconv.max_pool2d(last, *args)
                assert torch.equal(as_integers(plain), as_integers(other)), case
            if width > 40:
                continue
            dy = torch.arange(1.0, want.numel() + 1).reshape(want.shape).fmod(31).to(dtype)
            got, expected = (
                gradient(lambda t, f=f, a=args: f(t, *a), x, dy)
                for f in (fastconv.max_pool2d, F.max_pool2d)
            )
            torch.testing.assert_close(got, expected, msg=case)


@pytest.mark.parametrize("width", [9, 20, 67])
def test_a_nan_anywhere_is_seen(width: int, isa: str) -> None:
    """Wherever it lies: in a vector, behind the last one, at an edge, in a row that two share."""
    x = torch.randn(1, 1, 5, width)
    for args in ((3, 2, 1), (3, 1, 1), (2, 2), (2, 1, 1), (3, 2, 0, 1, True)):
        for h, w in itertools.product(range(5), range(width)):
            one = x.clone()
            one[0, 0, h, w] = NAN
            want, places = F.max_pool2d(one, *args, return_indices=True)
            y, index = fastconv.max_pool2d(one, *args, return_indices=True)
            assert same_bits(y, want) and torch.equal(index, places), (args, h, w)
            assert same_bits(fastconv.max_pool2d(one, *args), want), (args, h, w)


def test_a_nan_in_any_pixel_is_seen(isa: str) -> None:
    """Of channels that fill vectors, side by side or alone, and of some that do not."""
    for channels in (16, 67):
        x = torch.randn(1, channels, 5, 6).contiguous(memory_format=torch.channels_last)
        for args in ((3, 2, 1), (3, 1, 1), (2, 2), (3, 2, 0, 1, True)):
            for h, w in itertools.product(range(5), range(6)):
                one = x.clone()
                one[0, (7 * h + 11 * w) % channels, h, w] = NAN
                one[0, channels - 1, h, w] = NAN
                want = F.max_pool2d(one.contiguous(), *args)
                assert same_bits(fastconv.max_pool2d(one, *args), want), (channels, args, h, w)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_many_rows_and_channels(layout: torch.memory_format, isa: str) -> None:
    """More rows than are made at a time, begun by several threads; more channels than vectors."""
    x = torch.randn(2, 37, 71, 23)
    x[0, 0] = -0.0
    x[1, 1, :, 3], x[1, 2, 50] = -INF, INF
    for args in ((2, 2), (3, 2, 1), (3, 1, 1), (3, 1), (3, 2, 0, 1, True)):
        want = F.max_pool2d(x, *args)
        y = fastconv.max_pool2d(x.contiguous(memory_format=layout), *args)
        assert torch.equal(as_integers(y.contiguous()), as_integers(want)), args
    x[1] = torch.rand(37, 71, 23)
    exact, x = x.double(), x.contiguous(memory_format=layout)
    for k, s, p in ((2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 2, 0)):
        y = fastconv.avg_pool2d(x, k, s, p)
        assert not (y == 0).logical_and(y.signbit()).any()
        torch.testing.assert_close(y.double(), F.avg_pool2d(exact, k, s, p), rtol=1e-5, atol=1e-6)
        for power in (1, 2) if p == 0 else ():
            y, want = (
                fastconv.lp_pool2d(x, power, k, s, True),
                F.lp_pool2d(exact, power, k, s, True),
            )
            torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_every_width(dtype: torch.dtype, isa: str) -> None:
    near = {torch.float32: 1e-6, torch.float64: 1e-14}.get(dtype, torch.finfo(dtype).eps)
    for width in WIDTHS:
        x = torch.rand(2, 3, 5, width).to(dtype) + 0.1
        exact = x.double()
        for k, s, p, ceil in windows():
            for include, divisor in ((False, None), (True, None), (True, -7)):
                args = (k, s, p, ceil, include, divisor)
                try:
                    want = F.avg_pool2d(exact, *args)
                except RuntimeError:
                    continue
                y = fastconv.avg_pool2d(x, *args)
                torch.testing.assert_close(y.double(), want, rtol=near, atol=0, msg=str(args))
            if p == 1 or width < k:
                continue
            for power in (1, 2):
                y = fastconv.lp_pool2d(x, power, k, s, ceil)
                want = F.lp_pool2d(exact, power, k, s, ceil)
                torch.testing.assert_close(y.double(), want, rtol=near, atol=0)
            want = F.avg_pool2d(exact.square(), k, s, p, ceil, True, 1).sqrt()
            y = fastconv.l2_pool2d(x, k, s, p, ceil)
            torch.testing.assert_close(y.double(), want, rtol=near, atol=0)


def test_infinities_and_zeros_of_sums(isa: str) -> None:
    x = torch.full((1, 1, 4, 40), -0.0)
    assert not fastconv.avg_pool2d(x, 2).signbit().any()  # as PyTorch, whose sums begin with 0
    x[0, 0, 1, 20], x[0, 0, 3, 3] = INF, -INF
    for args in ((2,), (3, 2, 1), (3, 1, 1)):
        assert same_bits(fastconv.avg_pool2d(x, *args), F.avg_pool2d(x, *args))


def test_planes_of_volumes_keep_their_places(isa: str) -> None:
    x = odd_numbers((2, 3, 4, 5, 37), 0.02)
    for args in (((1, 3, 3), (1, 2, 2), (0, 1, 1)), ((1, 2, 2), (1, 2, 2)), ((1, 3, 2), 1)):
        want, places = F.max_pool3d(x, *args, return_indices=True)
        y, index = fastconv.max_pool3d(x, *args, return_indices=True)
        assert same_bits(y, want) and torch.equal(index, places), args


def test_a_read_ends_with_the_tensor(isa: str) -> None:
    """Nothing beyond the last element counts, or before the first."""
    cases = itertools.product(
        (1, 4), (8, 16, 17, 33), ((3, 2, 1), (2, 2), (3, 1, 1), (3, 2, 1, 1, True))
    )
    for height, width, args in cases:
        if height < args[0] and len(args) == 2:
            continue
        around = torch.full((3, 1, height, width), NAN)
        around[1] = torch.randn(1, height, width)
        want = F.max_pool2d(around[1:2].clone(), *args)
        assert torch.equal(fastconv.max_pool2d(around[1:2], *args), want)
        args = args[:3]
        want = F.avg_pool2d(around[1:2].clone(), *args)
        torch.testing.assert_close(fastconv.avg_pool2d(around[1:2], *args), want)
