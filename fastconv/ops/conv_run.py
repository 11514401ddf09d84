"""One direction of a convolution by one named algorithm: no autograd, no choice, real tensors.

`aten` is PyTorch's own convolution ("aten+<precision>" sets its TF32 switch), names in `triton_`
are Triton's (`triton_run`); every other is a kernel behind `torch.ops.fastconv`.
Weights are (K, C/groups, *kernel), lists have one entry per spatial axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastconv import gpu
from fastconv.ops import triton_run
from fastconv.ops.conv_call import Call
from fastconv.problem import dense_strides
from fastconv.select import ATEN, split_precision
from fastconv.select_triton import PREFIX as _TRITON

_fprop = torch.ops.fastconv.conv_fprop.default
_dgrad = torch.ops.fastconv.conv_dgrad.default
_wgrad = torch.ops.fastconv.conv_wgrad.default
# Without the Python frame of OpOverload.__call__, which adds nothing to the operator.
_fprop_packed = torch.ops.fastconv.conv_fprop.packed._op
_dgrad_packed = torch.ops.fastconv.conv_dgrad.packed._op
_wgrad_packed = torch.ops.fastconv.conv_wgrad.packed._op


_ATEN_AT = f"{ATEN}+"


@contextmanager
def _tf32(algo: str) -> Iterator[None]:
    """PyTorch's own switch as the precision in "aten+<precision>" asks for."""
    wanted = split_precision(algo)[1] == "tf32"
    if wanted == gpu.tf32_allowed():
        yield
        return
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32 = wanted
    try:
        yield
    finally:
        cudnn.allow_tf32 = not wanted


def _memory_error(error: RuntimeError) -> RuntimeError:
    """Through the stable ABI an out-of-memory arrives as a plain RuntimeError; it keeps its type
    here, so that callers who catch it go on working."""
    if isinstance(error, torch.OutOfMemoryError) or not gpu.out_of_memory(error):
        return error
    return torch.OutOfMemoryError(str(error))


def _format(size: Sequence[int], channels_last: bool) -> torch.memory_format:
    if not channels_last or len(size) < 4:
        return torch.contiguous_format
    return torch.channels_last if len(size) == 4 else torch.channels_last_3d


_blank = torch.empty(0, dtype=torch.uint8)
_blank_views: dict[Any, Tensor] = {}
_BLANK_VIEWS = 1024


def _shape_only(like: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """A tensor of which PyTorch's gradient reads the shape and the memory format alone.

    On the CPU it is a view of one buffer that is kept and never touched, so it takes no memory: a
    new one each time would make the allocator return and fault in the result's pages on every call
    (28 ms instead of 15 for 8x256x56x56). The views are kept too: making one takes 8 us.
    """
    if like.device.type != "cpu":
        format_ = _format(size, channels_last)
        return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=format_)
    key = (like.dtype, tuple(size), channels_last)
    view = _blank_views.get(key)
    if view is None:
        view = _blank_view(*key)
        if len(_blank_views) >= _BLANK_VIEWS:
            _blank_views.clear()
        _blank_views[key] = view
    return view


def _blank_view(dtype: torch.dtype, size: tuple[int, ...], channels_last: bool) -> Tensor:
    global _blank
    with torch.inference_mode(False), torch.no_grad():
        count = prod(size) * dtype.itemsize
        if _blank.numel() < count:
            _blank_views.clear()  # they keep the smaller buffer alive
            _blank = torch.empty(count, dtype=torch.uint8)
        blank = _blank[:count].view(dtype)
        return blank.as_strided(size, dense_strides(size, channels_last))


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
    packed: tuple[int, ...] | None = None,
) -> Tensor:
    """y (N, K, *out) of x (N, C, *in). packed: as in `conv_call.Call`."""
    if algo == ATEN:
        return torch.convolution(
            x, w, bias, stride, padding, dilation, False, [0] * len(stride), groups
        )
    if algo.startswith(_ATEN_AT):
        with _tf32(algo):
            return run_fprop(x, w, bias, stride, padding, dilation, groups, ATEN)
    if algo.startswith(_TRITON):
        return triton_run.fprop(x, w, bias, stride, padding, dilation, groups, algo)
    try:
        if packed is not None:
            return _fprop_packed(x, w, bias, *packed, groups, algo)
        return _fprop(x, w, bias, stride, padding, dilation, groups, algo)
    except RuntimeError as error:
        raise _memory_error(error) from None


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
    packed: tuple[int, ...] | None = None,
) -> Tensor:
    """dx (N, C, *in) of dy (N, K, *out). packed: as in `conv_call.Call`."""
    if algo == ATEN:
        x = _shape_only(dy, input_size, channels_last)
        dx, _ = aten_gradients(dy, x, w, stride, padding, dilation, groups, (True, False))
        assert dx is not None
        return dx
    if algo.startswith(_ATEN_AT):
        with _tf32(algo):
            return run_dgrad(
                dy, w, input_size, stride, padding, dilation, groups, channels_last, ATEN
            )
    if algo.startswith(_TRITON):
        geometry = (stride, padding, dilation, groups)
        return triton_run.dgrad(dy, w, input_size, *geometry, channels_last, algo)
    try:
        if packed is not None:
            return _dgrad_packed(dy, w, *packed, groups, channels_last, algo)
        return _dgrad(dy, w, input_size, stride, padding, dilation, groups, channels_last, algo)
    except RuntimeError as error:
        raise _memory_error(error) from None


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
    packed: tuple[int, ...] | None = None,
) -> Tensor:
    """dw (K, C/groups, *kernel) of dy (N, K, *out) and x (N, C, *in). packed: as in
    `conv_call.Call`."""
    if algo == ATEN:
        w = _shape_only(dy, weight_size, channels_last)
        _, dw = aten_gradients(dy, x, w, stride, padding, dilation, groups, (False, True))
        assert dw is not None
        return dw
    if algo.startswith(_ATEN_AT):
        with _tf32(algo):
            return run_wgrad(
                dy, x, weight_size, stride, padding, dilation, groups, channels_last, ATEN
            )
    if algo.startswith(_TRITON):
        geometry = (stride, padding, dilation, groups)
        return triton_run.wgrad(dy, x, weight_size, *geometry, channels_last, algo)
    try:
        if packed is not None:
            return _wgrad_packed(dy, x, *packed, groups, channels_last, algo)
        return _wgrad(dy, x, weight_size, stride, padding, dilation, groups, channels_last, algo)
    except RuntimeError as error:
        raise _memory_error(error) from None


def dgrad_by(call: Call, dy: Tensor, w: Tensor) -> Tensor:
    """`run_dgrad` as `call` says."""
    return run_dgrad(
        dy, w, call.input_size, *call.geometry, call.channels_last, call.name, call.packed
    )


def wgrad_by(call: Call, dy: Tensor, x: Tensor) -> Tensor:
    """`run_wgrad` as `call` says."""
    return run_wgrad(
        dy, x, call.weight_size, *call.geometry, call.channels_last, call.name, call.packed
    )
