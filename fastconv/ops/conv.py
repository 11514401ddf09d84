"""Convolution in its three directions: chooses the algorithm and the way to differentiate it.

Routing, cheapest first: no gradient wanted -> the kernel; eager training -> a plain
`autograd.Function`; functorch or forward-mode AD active -> Functions with jvp and vmap rules (an op
with a registered backward alone would drop forward tangents silently); a graph being traced -> the
registered ops `fastconv::conv`, `conv_dx`, `conv_dw`, which choose when the graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from fastconv import gpu, select
from fastconv.ops.conv_run import run_dgrad, run_fprop, run_wgrad
from fastconv.problem import ConvSpec, is_channels_last


class Geometry(NamedTuple):
    """How the filter moves; one entry per spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


_NO_FALLBACK = (select.AUTO, select.ATEN)
_names: dict[Any, str] = select.forget_with({})
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


def inherited(algo: str) -> str:
    """The algorithm for the gradients of a call with `algo`: it where it applies, else auto."""
    if algo.endswith(select.OR_AUTO) or select.split_precision(algo)[0] in _NO_FALLBACK:
        return algo
    return algo + select.OR_AUTO


def resolve(
    direction: str,
    like: Tensor,
    input_size: Sequence[int],
    weight_size: Sequence[int],
    geometry: Geometry,
    channels_last: bool,
    algo: str,
    tensors: tuple[Any, ...] | None,
) -> str:
    """The concrete algorithm for a direction of this problem, remembered."""
    device = gpu.device_key(like.device)
    tf32 = select.allows_tf32(device, like.dtype, algo)
    key = (
        direction,
        like.dtype,
        like.device,
        input_size,
        weight_size,
        geometry,
        channels_last,
        algo,
        tf32,
        torch.get_num_threads(),
    )
    name = _names.get(key)
    if name is None:
        spec = ConvSpec(
            direction,
            device,
            like.dtype,
            tuple(input_size),
            tuple(weight_size),
            *map(tuple, geometry[:3]),
            geometry[3],
            channels_last,
            tf32,
        )
        name = select.resolve(spec, algo, tensors)
        _names[key] = name
    return name


def _wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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
        return _autograd().TransformedFprop.apply(
            x, w, bias, *_tuples(stride, padding, dilation), groups, algo
        )
    if tracing():
        return torch.ops.fastconv.conv(x, w, bias, stride, padding, dilation, groups, algo)
    geometry = Geometry(*_tuples(stride, padding, dilation), groups)
    channels_last = is_channels_last(x, w)
    name = resolve("fprop", x, x.shape, w.shape, geometry, channels_last, algo, (x, w, bias))
    if _wants_grad(x, w, bias):
        call = _autograd().FpropCall(geometry, algo, name, channels_last, x.shape, w.shape, None)
        return _autograd().Fprop.apply(x, w, bias, call)
    return run_fprop(x, w, bias, *geometry, name)


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
        return _autograd().TransformedDgrad.apply(
            dy, w, *_tuples(input_size, stride, padding, dilation), groups, channels_last, algo
        )
    if tracing():
        return torch.ops.fastconv.conv_dx(
            dy, w, input_size, stride, padding, dilation, groups, channels_last, algo
        )
    geometry = Geometry(*_tuples(stride, padding, dilation), groups)
    size = tuple(input_size)
    name = resolve("dgrad", dy, size, w.shape, geometry, channels_last, algo, (dy, w))
    if _wants_grad(dy, w):
        return _autograd().Dgrad.apply(dy, w, size, geometry, channels_last, algo, name)
    return run_dgrad(dy, w, size, *geometry, channels_last, name)


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
        return _autograd().TransformedWgrad.apply(
            dy, x, *_tuples(weight_size, stride, padding, dilation), groups, channels_last, algo
        )
    if tracing():
        return torch.ops.fastconv.conv_dw(
            dy, x, weight_size, stride, padding, dilation, groups, channels_last, algo
        )
    geometry = Geometry(*_tuples(stride, padding, dilation), groups)
    size = tuple(weight_size)
    name = resolve("wgrad", x, x.shape, size, geometry, channels_last, algo, (dy, x))
    if _wants_grad(dy, x):
        return _autograd().Wgrad.apply(dy, x, size, geometry, channels_last, algo, name)
    return run_wgrad(dy, x, size, *geometry, channels_last, name)


def _autograd() -> Any:
    return conv_autograd


# At the end: the Functions differentiate into the three functions above.
from fastconv.ops import conv_autograd, conv_library  # noqa: E402,F401
