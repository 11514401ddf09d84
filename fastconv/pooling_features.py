"""Pooling across feature maps: over neighbouring channels of one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastconv import pooling
from fastconv.problem import suggests_channels_last


def _over_channels(
    pool2d: Callable[..., Tensor], input: Tensor, size: Any, stride: Any, algo: str
) -> Tensor:
    """`pool2d` with windows of `size` channels, on a view of the input that has them as an axis."""
    n, c, *extents = input.shape
    if suggests_channels_last(input):
        inner = input.movedim(1, -1)  # (N, *extents, C), contiguous
        rows = inner.reshape(n, 1, -1, c) if n else inner.reshape(0, 1, 1, c)
        y = pool2d(rows, (1, size), (1, stride), algo=algo)
        return y.reshape(n, *extents, y.shape[-1]).movedim(-1, 1)
    planes = input.reshape(n, 1, c, -1) if n else input.reshape(0, 1, c, 1)
    y = pool2d(planes, (size, 1), (stride, 1), algo=algo)
    return y.reshape(n, y.shape[2], *extents)


def _positive(function: str, **values: Any) -> None:
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{function}: {name} must be a positive integer, got {value!r}")


def _has_channels(function: str, input: Tensor) -> None:
    if input.dim() < 2 or 0 in input.shape[1:]:
        raise RuntimeError(
            f"{function}: expected a non-empty input (N, C, ...), got size {list(input.shape)}"
        )


def maxout(input: Tensor, groups: int, *, algo: str = "auto") -> Tensor:
    """The largest of every `groups` neighbouring channels.

    Args:
        input: (N, C, ...), any number of further axes, any strides; the dtypes of `max_pool2d`.
        groups: how many channels make one output; divides C.
        algo: as in `max_pool2d`.

    Returns:
        (N, C/groups, ...), channels_last if the input is. Output channel c is the largest of
        channels c*groups to c*groups + groups - 1: paddle.nn.functional.maxout on axis 1. NaN,
        ties, derivatives and determinism are those of `max_pool2d`.

    Raises:
        ValueError: groups is not a positive integer or does not divide C.
        RuntimeError: the input has fewer than two axes, or no elements besides an empty batch.

    Source: Goodfellow, Warde-Farley, Mirza, Courville and Bengio, "Maxout Networks" (ICML 2013),
    section 3.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(maxout, (input,), input, groups, algo=algo)
    _positive("maxout", groups=groups)
    _has_channels("maxout", input)
    if input.shape[1] % groups:
        raise ValueError(f"maxout: groups={groups} does not divide C={input.shape[1]}")
    return _over_channels(pooling.max_pool2d, input, groups, groups, algo)


def l2_pool_features(
    input: Tensor, size: int, stride: int | None = None, *, algo: str = "auto"
) -> Tensor:
    """The square root of the sum of squares over `size` neighbouring channels.

    Args:
        input: (N, C, ...), any number of further axes, any strides; the dtypes of `l2_pool2d`.
        size: how many channels make one output.
        stride: from one window's first channel to the next one's; default `size`.
        algo: as in `max_pool2d`.

    Returns:
        (N, (C - size) // stride + 1, ...), channels_last if the input is. 16-bit inputs are squared
        and summed in float32. The gradient is 0 where the sum is; derivatives, determinism and
        autocast are those of `l2_pool2d`.

    Raises:
        ValueError: size or stride is not a positive integer, or size exceeds C.
        RuntimeError: the input has fewer than two axes, or no elements besides an empty batch.

    Source: Le, Ranzato, Monga, Devin, Chen, Corrado, Dean and Ng, "Building High-level Features
    Using Large Scale Unsupervised Learning" (ICML 2012), section 3.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(l2_pool_features, (input,), input, size, stride, algo=algo)
    stride = size if stride is None else stride
    _positive("l2_pool_features", size=size, stride=stride)
    _has_channels("l2_pool_features", input)
    if input.shape[1] < size:
        raise ValueError(f"l2_pool_features: size={size} exceeds C={input.shape[1]}")
    return _over_channels(pooling.l2_pool2d, input, size, stride, algo)
