"""One direction of a convolution by one named algorithm: no autograd, no choice, real tensors.

`aten` is PyTorch's own convolution; every other name is a kernel behind `torch.ops.fastconv`.
Weights are (K, C/groups, *kernel), lists have one entry per spatial axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv.select import ATEN

_fprop = torch.ops.fastconv.conv_fprop.default
_dgrad = torch.ops.fastconv.conv_dgrad.default
_wgrad = torch.ops.fastconv.conv_wgrad.default


def _format(size: Sequence[int], channels_last: bool) -> torch.memory_format:
    if not channels_last or len(size) < 4:
        return torch.contiguous_format
    return torch.channels_last if len(size) == 4 else torch.channels_last_3d


def aten_gradients(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """PyTorch's dx and dw in one call; an operand whose partner is not wanted is only a shape."""
    dx, dw, _ = torch.ops.aten.convolution_backward.default(
        dy,
        x,
        w,
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        groups,
        [*wanted, False],
    )
    return dx, dw


def run_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algo: str,
) -> Tensor:
    """y (N, K, *out) of x (N, C, *in)."""
    if algo == ATEN:
        return torch.convolution(
            x, w, bias, stride, padding, dilation, False, [0] * len(stride), groups
        )
    return _fprop(x, w, bias, stride, padding, dilation, groups, algo)


def run_dgrad(
    dy: Tensor,
    w: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    algo: str,
) -> Tensor:
    """dx (N, C, *in) of dy (N, K, *out)."""
    if algo == ATEN:
        # Only its shape and memory format are read.
        x = torch.empty(
            input_size,
            dtype=dy.dtype,
            device=dy.device,
            memory_format=_format(input_size, channels_last),
        )
        dx, _ = aten_gradients(dy, x, w, stride, padding, dilation, groups, (True, False))
        assert dx is not None
        return dx
    return _dgrad(dy, w, input_size, stride, padding, dilation, groups, channels_last, algo)


def run_wgrad(
    dy: Tensor,
    x: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    algo: str,
) -> Tensor:
    """dw (K, C/groups, *kernel) of dy (N, K, *out) and x (N, C, *in)."""
    if algo == ATEN:
        w = torch.empty(
            weight_size,
            dtype=dy.dtype,
            device=dy.device,
            memory_format=_format(weight_size, channels_last),
        )
        _, dw = aten_gradients(dy, x, w, stride, padding, dilation, groups, (False, True))
        assert dw is not None
        return dw
    return _wgrad(dy, x, weight_size, stride, padding, dilation, groups, channels_last, algo)
