"""Pooling on tensors: chooses the way to differentiate, as `fastconv.ops.conv` does.

Three linear pairs carry every derivative: (take at the kept places, send back to them) of a
maximum or a sample, (sum of windows, spread over windows), and (unpool, take) of unpooling. Lp
pooling has a kernel for its value and its gradient, stochastic pooling in evaluation one for its
value; all that goes further is composed of the second pair (ops/pool_composed.py).

Lists have one entry per spatial axis; where the stride is 0 the axis is adaptive and its kernel is
the number of outputs. `index` is 0 (keep nothing), 1 (a byte per output, at most 255 taps) or 2
(int64 places in the input's plane, as PyTorch counts). `algo` is "direct" or "triton".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv.ops.conv import tracing, transforming
from fastconv.ops.pool_kernels import BARE

KEEP_NOTHING, KEEP_BYTE, KEEP_PLACE = 0, 1, 2
MAX_BYTE_TAPS = 255


class Windows(NamedTuple):
    """Where the windows of a pooling lie; one entry per spatial axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    def taps(self, extents: Sequence[Any]) -> Any:
        """The taps of the longest window over an input of these extents."""
        taps = 1
        for k, s, n in zip(self.kernel, self.stride, extents, strict=True):
            taps *= k if s else adaptive_kernel(n, k)
        return taps

    def out_extents(self, extents: Sequence[Any]) -> list[Any]:
        """(O, P, Q) by PyTorch's rule: a window of ceil_mode starts in the input or before it."""
        out = []
        for i, n in enumerate(extents):
            k, s, p, d = self.kernel[i], self.stride[i], self.padding[i], self.dilation[i]
            if s == 0:
                out.append(k)
                continue
            count = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if self.ceil_mode else 0)) // s + 1
            if self.ceil_mode and (count - 1) * s >= n + p:
                count -= 1
            out.append(count)
        return out


def adaptive_kernel(extent: Any, outputs: Any) -> Any:
    """The longest window of an adaptive axis; the twin of pool_adaptive_kernel in C++."""
    if extent % outputs == 0:
        return extent // outputs
    return min(extent, -(-extent // outputs) + 1)


def _wants_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _route(name: str, tensors: tuple[Tensor, ...], args: tuple[Any, ...]) -> Any:
    """Calls one op the cheapest way that still records what is wanted of it."""
    if transforming() and not torch.compiler.is_compiling():
        return pool_autograd.FUNCTIONS[name].apply(*tensors, *args)
    if tracing():
        return getattr(torch.ops.fastconv, name)(*tensors, *args)
    if _wants_grad(*tensors):
        return pool_autograd.EAGER[name](*tensors, *args)
    return BARE[name](*tensors, *args)


def max_pool(x: Tensor, windows: Windows, index: int, algo: str) -> tuple[Tensor, Tensor]:
    """(y, kept index) of x (N, C, *in); y is differentiable if an index is kept."""
    return _route("max_pool", (x,), (*windows, index, algo))


def max_pool_dx(
    dy: Tensor,
    index: Tensor,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
    algo: str,
) -> Tensor:
    """dx (N, C, *in): each dy is sent to the place its index names; linear in dy."""
    args = (input_size, kernel, stride, padding, dilation, channels_last, algo)
    return _route("max_pool_dx", (dy, index), args)


def max_pool_take(
    x: Tensor,
    index: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    algo: str,
) -> Tensor:
    """x at the places that the index names, (N, C, *out); linear in x."""
    return _route("max_pool_take", (x, index), (kernel, stride, padding, dilation, algo))


def max_unpool(x: Tensor, index: Tensor, output_size: Sequence[int], algo: str) -> Tensor:
    """x (N, C, *out) sent to its int64 places in zeros of output_size (N, C, *in); linear in x.

    Of several elements sent to one place the last of the plane stays.
    """
    return _route("max_unpool", (x, index), (output_size, algo))


def max_unpool_dx(dy: Tensor, index: Tensor, algo: str) -> Tensor:
    """The gradient of `max_unpool` in x: dy at its places; linear in dy."""
    return _route("max_unpool_dx", (dy, index), (algo,))


def sum_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    include_pad: bool,
    divisor: int,
    algo: str,
) -> Tensor:
    """Sums of windows over `divisor`, or, where that is 0, over their sizes; linear in x."""
    args = (kernel, stride, padding, ceil_mode, include_pad, divisor, algo)
    return _route("sum_pool", (x,), args)


def sum_pool_dx(
    dy: Tensor,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    include_pad: bool,
    divisor: int,
    channels_last: bool,
    algo: str,
) -> Tensor:
    """The gradient of `sum_pool` in x; linear in dy."""
    rest = (ceil_mode, include_pad, divisor, channels_last, algo)
    return _route("sum_pool_dx", (dy,), (input_size, kernel, stride, padding, *rest))


def lp_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    power: float,
    rescale: bool,
    algo: str,
) -> Tensor:
    """(sum of x^power)^(1/power) over windows; `rescale`: partial windows count as whole ones."""
    args = (kernel, stride, padding, ceil_mode, power, rescale, algo)
    if transforming() and not torch.compiler.is_compiling():
        return pool_composed.lp(x, *args)
    return _route("lp_pool", (x,), args)


def lp_pool_dx(dy, x, y, kernel, stride, padding, ceil_mode, power, rescale, algo) -> Tensor:
    """The gradient of `lp_pool` in x."""
    args = (kernel, stride, padding, ceil_mode, power, rescale, algo)
    if not tracing() and (transforming() or _wants_grad(dy, x)):
        return pool_composed.lp_dx(dy, x, *args)
    return _route("lp_pool_dx", (dy, x, y), args)


def sample_pool(
    x: Tensor, seed: Tensor, windows: Windows, index: int, algo: str
) -> tuple[Tensor, Tensor]:
    """(y, kept index): one element of each window, drawn under the seed (one int64 element).

    An element's probability is its share in the window's sum, negative ones counting as 0
    (csrc/common/pool_sample.h). y is differentiable in x if an index is kept.
    """
    kernel, stride, padding, _, ceil_mode = windows
    return _route("sample_pool", (x, seed), (kernel, stride, padding, ceil_mode, index, algo))


def expectation_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    algo: str,
) -> Tensor:
    """What `sample_pool` yields on average: the windows' sums of squares over their sums."""
    args = (kernel, stride, padding, ceil_mode, algo)
    if transforming() and not torch.compiler.is_compiling():
        return pool_composed.expectation(x, *args)
    return _route("expectation_pool", (x,), args)


# At the end: the Functions differentiate into the functions above.
from fastconv.ops import pool_autograd, pool_composed, pool_library  # noqa: E402,F401
