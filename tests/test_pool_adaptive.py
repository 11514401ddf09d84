"""Adaptive pooling and unpooling against PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

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


def output_sizes(rank: int) -> Iterator[int | tuple[int | None, ...]]:
    """One, fewer, as many and more outputs than elements, which divide evenly or not."""
    yield 1
    yield 4
    if rank == 1:
        yield from range(2, 24)
        yield (6,)
        return
    per_axis = {2: ((1, 3, 7, 9), (1, 5, 13, None)), 3: ((2, 7), (1, 4, None), (3, 7))}[rank]
    yield from itertools.product(*per_axis)


@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_maxima_are_exactly_pytorchs(rank: int, channels_last: bool, isa: str) -> None:
    ours, torchs = pair("adaptive_max_pool", rank)
    x = torch.randn(SHAPES[rank])
    x[torch.rand_like(x) < 0.03] = float("nan")
    x[torch.rand_like(x) < 0.1] = -float("inf")
    x[torch.rand_like(x) < 0.2] = 1.0  # ties
    laid = laid_out(x, channels_last)
    for size in output_sizes(rank):
        y, index = torchs(x, size, return_indices=True)
        z, places = ours(laid, size, return_indices=True)
        assert same_bits(z, y) and torch.equal(places, index), size
        assert same_bits(ours(laid, size), y), size
        assert z.stride() == laid_out(y, channels_last).stride(), size
        dy = torch.randn_like(y)
        want = gradient(lambda t, s=size: torchs(t, s), x, dy)
        torch.testing.assert_close(gradient(lambda t, s=size: ours(t, s), laid, dy), want)
        kept_place = gradient(lambda t, s=size: ours(t, s, True)[0], laid, dy)
        torch.testing.assert_close(kept_place, want)


@pytest.mark.parametrize("rank, channels_last", LAYOUTS)
def test_averages_match_pytorch(rank: int, channels_last: bool, isa: str) -> None:
    ours, torchs = pair("adaptive_avg_pool", rank)
    x = laid_out(torch.randn(SHAPES[rank]), channels_last)
    for size in output_sizes(rank):
        y = torchs(x, size)
        z = ours(x, size)
        torch.testing.assert_close(z, y, msg=str(size))
        assert z.stride() == laid_out(y, channels_last).stride(), size
        dy = torch.randn_like(y)
        torch.testing.assert_close(
            gradient(lambda t, s=size: ours(t, s), x, dy),
            gradient(lambda t, s=size: torchs(t, s), x, dy),
            msg=str(size),
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_dtypes(dtype: torch.dtype, isa: str) -> None:
    x = torch.randn(2, 21, 9, 35).to(dtype)
    last = laid_out(x, True)
    eps = torch.finfo(dtype).eps
    near = {"rtol": eps if dtype.itemsize == 2 else 8 * eps, "atol": 0.01 * eps}
    for size in (1, (4, 6), (9, 5)):
        y, index = fastconv.adaptive_max_pool2d(x, size, True)
        z, places = fastconv.adaptive_max_pool2d(last, size, True)
        assert torch.equal(as_integers(y), as_integers(z)) and torch.equal(index, places)
        want = F.adaptive_avg_pool2d(x.double().abs(), size)
        for t in (x, last):
            got = fastconv.adaptive_avg_pool2d(t.abs(), size)
            assert got.dtype == dtype
            torch.testing.assert_close(got.double(), want, **near)


def test_global_pooling_is_one_ordinary_window(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = fastconv.ops.pool.sum_pool
    monkeypatch.setattr(
        fastconv.ops.pool, "sum_pool", lambda x, *a: seen.append(a[:3]) or real(x, *a)
    )
    x = torch.randn(2, 3, 6, 9)
    fastconv.adaptive_avg_pool2d(x, 1)
    fastconv.adaptive_avg_pool2d(x, (4, 3))
    assert seen == [((6, 9), (6, 9), (0, 0)), ((4, 3), (0, 3), (0, 0))]


def test_strided_unbatched_and_empty() -> None:
    base = torch.randn(3, 8, 20, 22)
    for x in (base[:, ::2, 1::2, ::3], base.transpose(2, 3), base[:1].expand(4, -1, -1, -1)):
        for name in ("adaptive_max_pool", "adaptive_avg_pool"):
            ours, torchs = pair(name, 2)
            torch.testing.assert_close(ours(x, (3, 5)), torchs(x, (3, 5)))
    for rank in RANKS:
        x = torch.randn(SHAPES[rank])[0]
        for name in ("adaptive_max_pool", "adaptive_avg_pool"):
            ours, torchs = pair(name, rank)
            torch.testing.assert_close(ours(x, 3), torchs(x, 3))
            for shape, size in (((0, *x.shape), 3), (x.shape, 0)):
                empty = torch.empty(shape)
                assert ours(empty, size).shape == torchs(empty, size).shape


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rank", RANKS)
def test_unpooling_is_exactly_pytorchs(rank: int, channels_last: bool) -> None:
    ours, torchs = pair("max_unpool", rank)
    pool = pair("max_pool", rank)[1]
    x = torch.randn(SHAPES[rank])
    channels_last = channels_last and rank > 1
    for k, s, p in ((2, None, 0), (3, 2, 1), (2, 1, 0), (3, 3, 1)):
        y, index = pool(x, k, s, p, return_indices=True)
        y, places = laid_out(y, channels_last), laid_out(index, channels_last)
        for size in (None, x.shape, list(x.shape[2:])):
            args = (k, s, p, size)
            try:
                want = torchs(y, index, *args)
            except (RuntimeError, ValueError) as error:  # without a size, places may lie outside
                with pytest.raises(type(error)):
                    ours(y, places, *args)
                continue
            got = ours(y, places, *args)
            assert torch.equal(got, want), args
            assert got.is_contiguous() != channels_last
            dx = torch.randn_like(want)
            torch.testing.assert_close(
                gradient(lambda t, i=places, a=args: ours(t, i, *a), y, dx),
                gradient(lambda t, i=index, a=args: torchs(t, i, *a), y, dx),
            )


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpooling_moves_bits(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 6, 8).to(dtype)
    y, index = fastconv.max_pool2d(x, 2, return_indices=True)
    z = fastconv.max_unpool2d(y, index, 2)
    assert z.dtype == dtype and torch.equal(z, torch.where(z != 0, x, 0))
    assert torch.equal(fastconv.max_unpool2d(y[0], index[0], 2), z[0])
    assert fastconv.max_unpool2d(y[:0], index[:0], 2).shape == (0, 5, 6, 8)


def test_a_place_named_twice() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0]]], requires_grad=True)
    index = torch.tensor([[[4, 0, 4]]])
    y = fastconv.max_unpool1d(x, index, 2)
    assert y.flatten().tolist() == [2, 0, 0, 0, 3, 0]
    dy = torch.tensor([[[1.0, 0, 0, 0, 5, 0]]], requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    assert dx.flatten().tolist() == [5, 1, 5]
    (ddy,) = torch.autograd.grad(dx, dy, torch.tensor([[[1.0, 10.0, 100.0]]]))
    assert ddy.flatten().tolist() == [10, 0, 0, 0, 101, 0]


X = torch.randn(2, 4, 8, 8)
Y, INDEX = F.max_pool2d(X, 2, return_indices=True)
BAD = [
    *(
        (f"adaptive_{kind}_pool2d", args)
        for kind in ("max", "avg")
        for args in (
            (X, None),
            (X, -1),
            (X, (1,)),
            (X, (3, 3, 3)),
            (X, 2.0),
            (X, True),
            (X, "a"),
            (X, (2.0, 2)),
            (X[0, 0], 3),
            (X[None], 3),
            (X[:, :, :0], 3),
            (X.int(), 3),
            (X.bool(), 3),
            ([1.0], 3),
        )
    ),
    ("adaptive_max_pool2d", (X[:, :0], 3)),
    ("adaptive_avg_pool1d", (X[0], None)),
    ("adaptive_max_pool1d", (X[0], (None,))),
    ("adaptive_avg_pool1d", (X[0], (2, 2))),
    ("adaptive_avg_pool3d", (X[None], (2, 2))),
    ("max_unpool2d", (Y, INDEX, 2, None, 0, (12, 9))),
    ("max_unpool2d", (Y, INDEX, 2, None, 0, (8,))),
    ("max_unpool2d", (Y, INDEX.int(), 2)),
    ("max_unpool2d", (Y, INDEX[:1], 2)),
    ("max_unpool2d", (Y, torch.full_like(INDEX, 64), 2)),
    ("max_unpool2d", (Y, torch.full_like(INDEX, -1), 2)),
    ("max_unpool2d", (Y, INDEX, 2, -1)),
    ("max_unpool2d", (Y.int(), INDEX, 2)),
    ("max_unpool2d", (Y[0, 0], INDEX[0, 0], 2)),
    ("max_unpool1d", (Y[0], torch.full_like(INDEX[0], 8), 2)),
    ("max_unpool3d", (Y[None], torch.full_like(INDEX[None], 1 << 40), 2)),
    ("max_unpool2d", (Y, None, 2)),
    ("max_unpool2d", (Y, INDEX, "a")),
]


@pytest.mark.parametrize("name, args", BAD)
def test_error_texts_are_pytorchs(name: str, args: tuple) -> None:
    errors_alike(lambda: getattr(F, name)(*args), lambda: getattr(fastconv, name)(*args))


def test_values_and_indices_in_different_layouts() -> None:
    """Indices in another layout than the values are followed, not their order in memory."""
    got = fastconv.max_unpool2d(laid_out(Y, True), INDEX, 2)
    assert torch.equal(got, F.max_unpool2d(Y, INDEX, 2))
    assert torch.equal(fastconv.max_unpool2d(Y, laid_out(INDEX, True), 2), got)


def test_meta_tensors_have_shapes() -> None:
    x: Tensor = X.to("meta")
    assert fastconv.adaptive_avg_pool2d(x, (3, None)).shape == (2, 4, 3, 8)
    assert fastconv.max_unpool2d(Y.to("meta"), INDEX.to("meta"), 2).shape == X.shape
