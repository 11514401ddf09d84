"""Pooling over neighbouring channels, against its definition."""

from __future__ import annotations

import pytest
import torch
from pool_check import DTYPES, gradient, laid_out
from torch import Tensor

import fastconv

SHAPES = ((4, 12), (2, 12, 7), (3, 12, 5, 7), (2, 12, 3, 4, 5), (2, 6, 2, 3, 2, 2))


def channels(x: Tensor, size: int, stride: int) -> Tensor:
    """[N, out, ..., size]: the windows of channels."""
    return x.unfold(1, size, stride)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_maxout(shape: tuple[int, ...], channels_last: bool) -> None:
    x = torch.randn(shape)
    x[torch.rand_like(x) < 0.3] = 1.0
    laid = laid_out(x, channels_last) if len(shape) in (4, 5) else x
    for groups in (1, 2, 3, 6):
        y = fastconv.maxout(laid, groups)
        want = channels(x, groups, groups).amax(-1)
        assert torch.equal(y, want)
        dy = torch.randn_like(want)
        first = channels(x, groups, groups).argmax(-1)  # of ties the first
        start = torch.arange(first.shape[1]).reshape(-1, *[1] * (x.dim() - 2)) * groups
        expected = torch.zeros_like(x).scatter(1, first + start, dy)
        assert torch.equal(gradient(lambda t, g=groups: fastconv.maxout(t, g), laid, dy), expected)
        if channels_last and len(shape) in (4, 5) and groups < 6:
            assert y.stride() == laid_out(want, True).stride()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_l2_pool_features(shape: tuple[int, ...], channels_last: bool) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    laid = laid_out(x, channels_last) if len(shape) in (4, 5) else x
    for size, stride in ((1, None), (3, None), (3, 1), (2, 3), (5, 2)):
        y = fastconv.l2_pool_features(laid, size, stride)
        want = channels(x, size, stride or size).square().sum(-1).sqrt()
        torch.testing.assert_close(y, want)
        dy = torch.randn_like(want)
        torch.testing.assert_close(
            gradient(lambda t, s=size, d=stride: fastconv.l2_pool_features(t, s, d), laid, dy),
            gradient(
                lambda t, s=size, d=stride: channels(t, s, d or s).square().sum(-1).sqrt(), x, dy
            ),
        )


def test_dtypes() -> None:
    for dtype in (*DTYPES, torch.int8, torch.int64):
        x = torch.randint(-5, 5, (2, 6, 4)).to(dtype)
        y = fastconv.maxout(x, 2)
        assert y.dtype == dtype and torch.equal(y, channels(x, 2, 2).amax(-1))
    half = torch.full((1, 4, 3, 3), 300.0, dtype=torch.float16)
    assert (fastconv.l2_pool_features(half, 4) == 600).all()
    assert fastconv.maxout(half[:0], 2).shape == (0, 2, 3, 3)
    assert fastconv.l2_pool_features(half[:0], 2).shape == (0, 2, 3, 3)


def test_gradient_at_zero_is_zero() -> None:
    x = torch.zeros(1, 4, 2)
    dx = gradient(lambda t: fastconv.l2_pool_features(t, 2), x, torch.ones(1, 2, 2))
    assert torch.equal(dx, x)


def test_strided_inputs() -> None:
    base = torch.randn(3, 24, 9, 10)
    for x in (base[:, ::2], base.transpose(2, 3), base[..., ::3], base[:1].expand(4, -1, -1, -1)):
        assert torch.equal(fastconv.maxout(x, 3), channels(x, 3, 3).amax(-1))


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "2", None])
def test_sizes_must_be_positive_integers(bad: object) -> None:
    x = torch.randn(2, 6, 4)
    with pytest.raises(ValueError, match="maxout: groups must be a positive integer"):
        fastconv.maxout(x, bad)
    with pytest.raises(ValueError, match="l2_pool_features: size must be a positive integer"):
        fastconv.l2_pool_features(x, bad)


def test_what_does_not_fit_is_told_with_its_values() -> None:
    x = torch.randn(2, 6, 4)
    with pytest.raises(ValueError, match=r"groups=4 does not divide C=6"):
        fastconv.maxout(x, 4)
    with pytest.raises(ValueError, match=r"size=7 exceeds C=6"):
        fastconv.l2_pool_features(x, 7)
    for function in (fastconv.maxout, fastconv.l2_pool_features):
        with pytest.raises(RuntimeError, match=r"non-empty input \(N, C, ...\), got size \[6\]"):
            function(x[0, :, 0], 2)
        with pytest.raises(RuntimeError, match=r"got size \[2, 6, 0\]"):
            function(x[..., :0], 2)
