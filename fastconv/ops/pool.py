"""Pooling on tensors: chooses the way to differentiate, as `fastconv.ops.conv` does.

Two linear pairs carry every derivative: (take at the kept places, send back to them) of a maximum,
and (sum of windows, spread over windows). Lp pooling has a kernel for its value and its gradient;
all that goes further is composed of the second pair.

Lists have one entry per spatial axis. `index` is 0 (keep nothing), 1 (a byte per output, at most
255 taps) or 2 (int64 places in the input's plane, as PyTorch counts).
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

    @property
    def taps(self) -> int:
        taps = 1
        for k in self.kernel:
            taps *= k
        return taps

    def out_extents(self, extents: Sequence[Any]) -> list[Any]:
        """(O, P, Q) by PyTorch's rule: a window of ceil_mode starts in the input or before it."""
        out = []
        for i, n in enumerate(extents):
            k, s, p, d = self.kernel[i], self.stride[i], self.padding[i], self.dilation[i]
            count = (n + 2 * p - d * (k - 1) - 1 + (s - 1 if self.ceil_mode else 0)) // s + 1
            if self.ceil_mode and (count - 1) * s >= n + p:
                count -= 1
            out.append(count)
        return out


def _wants_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _route(name: str, tensors: tuple[Tensor, ...], args: tuple[Any, ...]) -> Any:
    """Calls one op the cheapest way that still records what is wanted of it."""
    if transforming() and not torch.compiler.is_compiling():
        return pool_autograd.FUNCTIONS[name].apply(*tensors, *args)
    if tracing():
        return getattr(torch.ops.fastconv, name)(*tensors, *args)
    if _wants_grad(*tensors):
        return pool_autograd.FUNCTIONS[name].apply(*tensors, *args)
    return BARE[name](*tensors, *args)


def max_pool(x: Tensor, windows: Windows, index: int) -> tuple[Tensor, Tensor]:
    """(y, kept index) of x (N, C, *in); y is differentiable if an index is kept."""
    return _route("max_pool", (x,), (*windows, index))


def max_pool_dx(
    dy: Tensor,
    index: Tensor,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
) -> Tensor:
    """dx (N, C, *in): each dy is sent to the place its index names; linear in dy."""
    args = (input_size, kernel, stride, padding, dilation, channels_last)
    return _route("max_pool_dx", (dy, index), args)


def max_pool_take(
    x: Tensor,
    index: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """x at the places that the index names, (N, C, *out); linear in x."""
    return _route("max_pool_take", (x, index), (kernel, stride, padding, dilation))


def sum_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    include_pad: bool,
    divisor: int,
) -> Tensor:
    """Sums of windows over `divisor`, or, where that is 0, over their sizes; linear in x."""
    args = (kernel, stride, padding, ceil_mode, include_pad, divisor)
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
) -> Tensor:
    """The gradient of `sum_pool` in x; linear in dy."""
    args = (input_size, kernel, stride, padding, ceil_mode, include_pad, divisor, channels_last)
    return _route("sum_pool_dx", (dy,), args)


def lp_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    power: float,
    rescale: bool,
) -> Tensor:
    """(sum of x^power)^(1/power) over windows; `rescale`: partial windows count as whole ones."""
    if transforming() and not torch.compiler.is_compiling():
        return lp_composed(x, kernel, stride, padding, ceil_mode, power, rescale)
    return _route("lp_pool", (x,), (kernel, stride, padding, ceil_mode, power, rescale))


def lp_composed(x, kernel, stride, padding, ceil_mode, power, rescale) -> Tensor:
    """`lp_pool` of differentiable operations, with PyTorch's gradient 0 where the sum is 0."""
    sums = _sums(x, kernel, stride, padding, ceil_mode, power, rescale)
    return (torch.sign(sums) * torch.relu(torch.abs(sums))).pow(1 / power)


def _sums(x, kernel, stride, padding, ceil_mode, power, rescale) -> Tensor:
    powers = x.pow(power)
    sums = sum_pool(powers, kernel, stride, padding, ceil_mode, True, 0 if rescale else 1)
    return sums * Windows(kernel, stride, padding, (), ceil_mode).taps if rescale else sums


def lp_pool_dx(dy, x, y, kernel, stride, padding, ceil_mode, power, rescale) -> Tensor:
    """The gradient of `lp_pool` in x."""
    args = (kernel, stride, padding, ceil_mode, power, rescale)
    if not tracing() and (transforming() or _wants_grad(dy, x)):
        return lp_dx_composed(dy, x, *args)
    return _route("lp_pool_dx", (dy, x, y), args)


def lp_dx_composed(dy, x, kernel, stride, padding, ceil_mode, power, rescale) -> Tensor:
    """`lp_pool_dx` of differentiable operations."""
    sums = _sums(x, kernel, stride, padding, ceil_mode, power, rescale)
    some = sums != 0
    slope = torch.where(some, torch.where(some, sums, 1).pow(1 / power - 1), 0)
    if rescale:
        slope = slope * Windows(kernel, stride, padding, (), ceil_mode).taps
    windows = (kernel, stride, padding, ceil_mode)
    divisor = 0 if rescale else 1
    spread = sum_pool_dx(dy * slope, x.shape, *windows, True, divisor, False)
    return spread if power == 1 else x.pow(power - 1) * spread


# At the end: the Functions differentiate into the functions above.
from fastconv.ops import pool_autograd, pool_library  # noqa: E402,F401
