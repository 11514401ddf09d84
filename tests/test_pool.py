"""Pooling against PyTorch: every combination of arguments on odd sizes, dtypes, layouts, errors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from pool_check import (
    DTYPES,
    LAYOUTS,
    RANKS,
    SHAPES,
    as_integers,
    errors_alike,
    gradient,
    laid_out,
    pair,
    same_bits,
)
from torch import Tensor

import fastconv


def windows() -> Iterator[tuple[int, int, int, bool]]:
    for k, s, ceil in itertools.product((1, 2, 3, 5), (1, 2, 3, 4), (False, True)):
        for p in range(k // 2 + 1):
            yield k, s, p, ceil


@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_max_is_exactly_pytorchs(rank: int, channels_last: bool, isa: str) -> None:
    ours, torchs = pair("max_pool", rank)
    x = torch.randn(SHAPES[rank])
    x[torch.rand_like(x) < 0.03] = float("nan")
    x[torch.rand_like(x) < 0.1] = -float("inf")
    x[torch.rand_like(x) < 0.2] = 1.0  # ties
    # PyTorch's channels_last_3d maximum gives a window of -inf alone a place outside of it; its
    # contiguous one is the reference.
    plain, x = x, laid_out(x, channels_last)
    compared = 0
    for (k, s, p, ceil), d in itertools.product(windows(), (1, 2)):
        try:
            y, index = torchs(plain, k, s, p, d, ceil, True)
        except RuntimeError:  # too small
            continue
        compared += 1
        case = f"kernel={k} stride={s} padding={p} dilation={d} ceil={ceil}"
        z, places = ours(x, k, s, p, d, ceil, True)
        assert same_bits(z, y), case
        assert torch.equal(places, index), case
        assert z.stride() == laid_out(y, channels_last).stride(), case
        assert same_bits(ours(x, k, s, p, d, ceil), y), case
        dy = torch.randn_like(y)
        want = gradient(lambda t, a=(k, s, p, d, ceil): torchs(t, *a), plain, dy)
        kept_byte = gradient(lambda t, a=(k, s, p, d, ceil): ours(t, *a), x, dy)
        kept_place = gradient(lambda t, a=(k, s, p, d, ceil): ours(t, *a, True)[0], x, dy)
        torch.testing.assert_close(kept_byte, want, msg=case)
        torch.testing.assert_close(kept_place, want, msg=case)
    assert compared > 30


@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_average_matches_pytorch(rank: int, channels_last: bool, isa: str) -> None:
    ours, torchs = pair("avg_pool", rank)
    x = laid_out(torch.randn(SHAPES[rank]), channels_last)
    for (k, s, p, ceil), include in itertools.product(windows(), (False, True)):
        for divisor in ((), (-3,), (7,)) if rank > 1 else ((),):
            args = (k, s, p, ceil, include, *divisor)
            try:
                y = torchs(x, *args)
            except RuntimeError:
                continue
            z = ours(x, *args)
            torch.testing.assert_close(z, y, msg=str(args))
            assert z.stride() == laid_out(y.contiguous(), channels_last).stride()
            dy = torch.randn_like(y)
            torch.testing.assert_close(
                gradient(lambda t, a=args: ours(t, *a), x, dy),
                gradient(lambda t, a=args: torchs(t, *a), x, dy),
                msg=str(args),
            )


@pytest.mark.parametrize("power", [1, 2, 3, 2.5, 0.7])
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_lp_matches_pytorch(rank: int, channels_last: bool, power: float, isa: str) -> None:
    ours, torchs = pair("lp_pool", rank)
    x = torch.randn(SHAPES[rank], dtype=torch.float64)
    if power not in (1, 2):
        x = x.abs() + 0.1
    x = laid_out(x, channels_last)
    for k, s, ceil in itertools.product((1, 2, 3, 5), (None, 1, 2, 3), (False, True)):
        args = (power, k, s, ceil)
        try:
            y = torchs(x, *args)
        except RuntimeError:
            continue
        z = ours(x, *args)
        torch.testing.assert_close(z, y, msg=str(args))
        assert z.stride() == laid_out(y.contiguous(), channels_last).stride()
        dy = torch.randn_like(y)
        torch.testing.assert_close(
            gradient(lambda t, a=args: ours(t, *a), x, dy),
            gradient(lambda t, a=args: torchs(t, *a), x, dy),
            msg=str(args),
        )


LP = (fastconv.lp_pool2d, F.lp_pool2d)


def test_lp_of_negative_and_zero_sums() -> None:
    x = torch.tensor([[[[-1.0, -2.0], [0.5, 0.25]]]])
    assert fastconv.lp_pool2d(x, 3, 2).isnan().all()
    assert fastconv.lp_pool2d(x, 1, 2).item() == -2.25
    for p in (1, 2, 3):
        zero = torch.zeros(1, 1, 4, 4)
        dx = gradient(lambda t, p=p: fastconv.lp_pool2d(t, p, 2), zero, torch.ones(1, 1, 2, 2))
        assert torch.equal(dx, zero)
    nan = torch.tensor([[[[float("nan"), 1.0, 2.0, 3.0]] * 2]])
    for p in (1, 2):  # PyTorch's derivative of |sum| is 0 where that is NaN
        dx = [gradient(lambda t, f=f, p=p: f(t, p, 2), nan, torch.ones(1, 1, 1, 2)) for f in LP]
        assert same_bits(*dx)
    inf = float("inf")
    assert same_bits(*(f(torch.full((1, 1, 2, 2), -inf), 0.5, 2) for f in LP))
    assert fastconv.lp_pool2d(x, inf, 2).item() == F.lp_pool2d(x, inf, 2).item() == 2


def test_sum_and_l2_of_padded_windows() -> None:
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    for ceil in (False, True):
        ones = F.avg_pool2d(x, 3, 2, 1, ceil, True, 1)
        torch.testing.assert_close(fastconv.sum_pool2d(x, 3, 2, 1, ceil), ones)
        squares = F.avg_pool2d(x * x, 3, 2, 1, ceil, True, 1)
        torch.testing.assert_close(fastconv.l2_pool2d(x, 3, 2, 1, ceil), squares.sqrt())
    half = torch.full((1, 1, 4, 4), 300.0, dtype=torch.float16)
    assert fastconv.l2_pool2d(half, 2).flatten().tolist() == [600.0] * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_dtypes_against_float64(dtype: torch.dtype, channels_last: bool, isa: str) -> None:
    x = laid_out(torch.randn(2, 21, 9, 35).to(dtype), channels_last)
    exact = x.double()
    # Nine products and sums in the dtype; 16-bit ones are in float32, so that one rounding shows.
    eps = torch.finfo(dtype).eps
    near = {"rtol": eps if dtype.itemsize == 2 else 8 * eps, "atol": 0.01 * eps}
    y, index = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    want, places = F.max_pool2d(exact, 3, 2, 1, return_indices=True)
    assert y.dtype == dtype and torch.equal(y.double(), want) and torch.equal(index, places)
    for ours, theirs in (
        (fastconv.avg_pool2d(x.abs(), 3, 2, 1), F.avg_pool2d(exact.abs(), 3, 2, 1)),
        (fastconv.lp_pool2d(x, 2, 3, 2), F.lp_pool2d(exact, 2, 3, 2)),
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), theirs, **near)
    dy = torch.randn(2, 21, 5, 18).to(dtype).abs()
    for f, g in ((fastconv.max_pool2d, F.max_pool2d), (fastconv.avg_pool2d, F.avg_pool2d)):
        ours = gradient(lambda t, f=f: f(t, 3, 2, 1), x, dy)
        torch.testing.assert_close(
            ours.double(), gradient(lambda t, g=g: g(t, 3, 2, 1), exact, dy.double()), **near
        )


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_integer_maxima(rank: int, channels_last: bool, dtype: torch.dtype) -> None:
    ours, torchs = pair("max_pool", rank)
    limits = torch.iinfo(dtype)
    x = torch.randint(limits.min, limits.max, SHAPES[rank]).to(dtype)
    plain, x = x, laid_out(x, channels_last)  # PyTorch's channels_last_3d refuses small integers
    for args in ((2,), (3, 2, 1), (3, 1, 1, 2, True)):
        y, index = torchs(plain, *args, return_indices=True)
        z, places = ours(x, *args, return_indices=True)
        assert z.dtype == dtype and torch.equal(z, y) and torch.equal(places, index)
        if rank > 1:
            assert torch.equal(ours(x, *args), y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_give_the_same_maxima_bit_for_bit(dtype: torch.dtype, isa: str) -> None:
    x = torch.randn(2, 21, 13, 35)
    x[torch.rand_like(x) < 0.5] = 0.0
    x[torch.rand_like(x) < 0.3] *= -1.0  # ties of 0 and -0
    x = x.to(dtype)
    last = laid_out(x, True)
    for args in ((3, 2, 1), (2, 2), (3, 1, 1), (5, 3, 2, 2)):
        a = fastconv.max_pool2d(x, *args)
        b = fastconv.max_pool2d(last, *args)
        assert a.is_contiguous() and b.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(as_integers(a), as_integers(b))


def test_strided_expanded_unbatched_and_empty() -> None:
    base = torch.randn(3, 8, 20, 22)
    for x in (base[:, ::2, 1::2, ::3], base.transpose(2, 3), base[:1].expand(4, -1, -1, -1)):
        for name, args in (("max_pool", (3, 2, 1)), ("avg_pool", (2,)), ("lp_pool", (2.0, 3))):
            ours, torchs = pair(name, 2)
            torch.testing.assert_close(ours(x, *args), torchs(x, *args))
    for rank in RANKS:
        x = torch.randn(SHAPES[rank])[0]
        empty = torch.empty(0, *x.shape)
        for name, args in (("max_pool", (2,)), ("avg_pool", (2,)), ("lp_pool", (2.0, 2))):
            ours, torchs = pair(name, rank)
            torch.testing.assert_close(ours(x, *args), torchs(x, *args))
            assert ours(empty, *args).shape == torchs(empty, *args).shape


def test_windows_beyond_a_byte() -> None:
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    dy = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    args = (20, 3)
    assert torch.equal(fastconv.max_pool2d(x, *args), F.max_pool2d(x, *args))
    torch.testing.assert_close(
        gradient(lambda t: fastconv.max_pool2d(t, *args), x, dy),
        gradient(lambda t: F.max_pool2d(t, *args), x, dy),
    )


def test_threads_change_no_bit(set_threads: Callable[[int], None]) -> None:
    for shape in ((1, 1, 200, 300), (3, 40, 33, 35)):
        for x in (torch.randn(shape), laid_out(torch.randn(shape), True)):
            results = []
            for threads in (1, 2, 5):
                set_threads(threads)
                leaf = x.clone().requires_grad_()
                outs = (
                    fastconv.max_pool2d(leaf, 3, 2, 1),
                    fastconv.avg_pool2d(leaf, 3, 1, 1),
                    fastconv.lp_pool2d(leaf, 2, 3, 2),
                )
                sum(y.square().sum() for y in outs).backward()
                results.append((*outs, leaf.grad))
            for other in results[1:]:
                assert all(map(torch.equal, results[0], other))


BAD = [
    ("max_pool2d", torch.randn(2, 4, 8, 8), (3,), {"padding": 2}),
    ("max_pool2d", torch.randn(2, 4, 8, 8), (3,), {"padding": -1}),
    ("max_pool2d", torch.randn(2, 4, 8, 8), (0,), {}),
    ("max_pool2d", torch.randn(2, 4, 8, 8), (3, 0), {}),
    ("max_pool2d", torch.randn(2, 4, 8, 8), (3,), {"dilation": 0}),
    ("max_pool2d", torch.randn(2, 4, 8, 8), (9,), {}),
    # Padding beyond half the kernel that the dilated window would allow.
    ("max_pool1d", torch.randn(2, 4, 8), (2,), {"padding": 2, "dilation": 3}),
    ("max_pool2d", torch.randn(2, 4, 8, 8), (3,), {"padding": 2, "dilation": 2}),
    ("max_pool3d", torch.randn(2, 4, 8, 8, 8), (3,), {"padding": 2, "dilation": 2}),
    ("max_pool2d", torch.randn(8, 8), (2,), {}),
    ("max_pool2d", torch.randn(1, 2, 4, 8, 8), (2,), {}),
    ("max_pool2d", torch.randn(2, 0, 8, 8), (2,), {}),
    ("max_pool2d", torch.ones(2, 4, 8, 8, dtype=torch.bool), (2,), {}),
    ("max_pool1d", torch.ones(2, 4, 8, dtype=torch.int32), (2,), {}),
    ("max_pool2d", torch.randn(2, 4, 8, 8), ("a",), {}),
    ("max_pool2d", torch.randn(2, 4, 8, 8), ((2, 2, 2),), {}),
    ("avg_pool2d", torch.randn(2, 4, 8, 8), (3,), {"padding": 2}),
    ("avg_pool2d", torch.randn(2, 4, 8, 8), (3,), {"divisor_override": 0}),
    ("avg_pool2d", torch.randn(2, 4, 8, 8), (3, 0), {}),
    ("avg_pool3d", torch.randn(2, 4, 8, 8, 8), (9,), {}),
    # Padding would make it large enough.
    ("avg_pool3d", torch.randn(2, 4, 3, 8, 8), (4,), {"padding": 1}),
    ("lp_pool3d", torch.randn(2, 4, 3, 8, 8), (2, 4, 4), {"ceil_mode": True}),
    ("lp_pool2d", torch.randn(2, 4, 8, 8), (0, 2), {}),
    ("lp_pool1d", torch.randn(2, 4, 8), (2, 9), {}),
]


@pytest.mark.parametrize("name, x, args, options", BAD)
def test_error_texts_are_pytorchs(name: str, x: Tensor, args: tuple, options: dict) -> None:
    errors_alike(
        lambda: getattr(F, name)(x, *args, **options),
        lambda: getattr(fastconv, name)(x, *args, **options),
    )
