"""Convolution in its three directions: chooses the algorithm and the way to differentiate it.

Routing, cheapest first: no gradient wanted -> the kernel; eager training -> a plain
`autograd.Function`; functorch or forward-mode AD active -> Functions with jvp and vmap rules (an op
with a registered backward alone would drop forward tangents silently); a graph being traced -> the
registered ops `fastconv::conv`, `conv_dx`, `conv_dw`, which choose when the graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from fastconv.ops.conv_call import call_for
from fastconv.ops.conv_run import run_fprop
from fastconv.problem import is_channels_last

_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def transforming() -> bool:
    """Whether functorch transforms (grad, vmap, jvp, ...) or forward-mode AD are active."""
    return _transforms_active() or forward_ad._current_level >= 0


def tracing() -> bool:
    """Whether operations are being recorded rather than run."""
    return torch.compiler.is_compiling() or _dispatch_modes() > 0


def is_fake(t: object) -> bool:
    """Whether this is a FakeTensor: shapes without data."""
    return isinstance(t, FakeTensor)


def _tuples(*lists: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    # Hashable, and safe to keep for the backward pass.
    return tuple(tuple(values) for values in lists)


def conv_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    algo: str = "auto",
) -> Tensor:
    """y (N, K, *out), differentiable in x, w and bias to any order.

    Args:
        x: (N, C, *in), 1 to 3 spatial axes, any strides; float32, float64, bfloat16 or float16;
            on the CPU or a CUDA device.
        w: (K, C/groups, *kernel), x's dtype.
        bias: (K,) or None.
        stride, padding, dilation: one entry per spatial axis.
        algo: a name of `fastconv.select.names()` or "auto", also with a precision
            (`fastconv.select.with_precision`).

    y is channels_last if x or w is. Bitwise repeatable for our algorithms.

    Raises:
        RuntimeError: the shapes do not fit together, or `algo` does not apply (with the reason).
        ValueError: `algo` is unknown.
    """
    if transforming() and not torch.compiler.is_compiling():
        return conv_autograd.TransformedFprop.apply(
            x, w, bias, *_tuples(stride, padding, dilation), groups, algo
        )
    if tracing():
        return torch.ops.fastconv.conv(x, w, bias, stride, padding, dilation, groups, algo)
    geometry, channels_last = (stride, padding, dilation, groups), is_channels_last(x, w)
    tensors = (x, w, bias)
    call = call_for("fprop", x, x.shape, w.shape, *geometry, channels_last, algo, tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, w, bias)):
        return conv_autograd.Fprop.apply(x, w, bias, call)
    return run_fprop(x, w, bias, *call.geometry, call.name, call.packed)


def conv_dgrad(
    dy: Tensor,
    w: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    algo: str = "auto",
) -> Tensor:
    """dx (N, C, *in): the gradient of `conv_fprop` in x, linear and differentiable in dy and w.

    Args as in `conv_fprop`; dy is (N, K, *out), input_size the shape of x, channels_last the memory
    format of the result. Raises as `conv_fprop`.
    """
    if transforming() and not torch.compiler.is_compiling():
        return conv_autograd.TransformedDgrad.apply(
            dy, w, *_tuples(input_size, stride, padding, dilation), groups, channels_last, algo
        )
    if tracing():
        return torch.ops.fastconv.conv_dx(
            dy, w, input_size, stride, padding, dilation, groups, channels_last, algo
        )
    geometry = (stride, padding, dilation, groups)
    call = call_for("dgrad", dy, input_size, w.shape, *geometry, channels_last, algo, (dy, w))
    return conv_autograd.dgrad(call, dy, w)


def conv_wgrad(
    dy: Tensor,
    x: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    algo: str = "auto",
) -> Tensor:
    """dw (K, C/groups, *kernel): the gradient of `conv_fprop` in w, linear in dy and x.

    Args as in `conv_fprop`; dy is (N, K, *out), weight_size the shape of w, channels_last the
    memory format of the result. Sums in a fixed order. Raises as `conv_fprop`.
    """
    if transforming() and not torch.compiler.is_compiling():
        return conv_autograd.TransformedWgrad.apply(
            dy, x, *_tuples(weight_size, stride, padding, dilation), groups, channels_last, algo
        )
    if tracing():
        return torch.ops.fastconv.conv_dw(
            dy, x, weight_size, stride, padding, dilation, groups, channels_last, algo
        )
    geometry = (stride, padding, dilation, groups)
    call = call_for("wgrad", x, x.shape, weight_size, *geometry, channels_last, algo, (dy, x))
    return conv_autograd.wgrad(call, dy, x)


# At the end: the Functions differentiate into the three functions above.
from fastconv.ops import conv_autograd, conv_library  # noqa: E402,F401
