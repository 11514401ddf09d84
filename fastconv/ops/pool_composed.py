"""What no kernel computes of Lp pooling and of stochastic pooling in evaluation, made of sums of
windows and elementwise operations, so that it differentiates to any order and in every mode.

16-bit tensors are widened to float32 first: squares and powers must not overflow in them.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from fastconv.ops import pool
from fastconv.problem import suggests_channels_last as _channels_last


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


class _Windows:
    """Sums over windows and their transpose, by one divisor rule."""

    def __init__(self, kernel, stride, padding, ceil_mode, divisor, algo):
        self.lists, self.rest = (kernel, stride, padding, ceil_mode, True, divisor), (algo,)

    def sums(self, x: Tensor) -> Tensor:
        return pool.sum_pool(x, *self.lists, *self.rest)

    def spread(self, dy: Tensor, size: torch.Size, channels_last: bool) -> Tensor:
        return pool.sum_pool_dx(dy, size, *self.lists, channels_last, *self.rest)


def _power_windows(kernel, stride, padding, ceil_mode, rescale, algo) -> tuple[_Windows, int]:
    # A rescaled sum is the window's mean times the taps of a whole one.
    windows = _Windows(kernel, stride, padding, ceil_mode, 0 if rescale else 1, algo)
    return windows, prod(kernel) if rescale else 1


def lp(x: Tensor, kernel, stride, padding, ceil_mode, power, rescale, algo) -> Tensor:
    """`pool.lp_pool`, with PyTorch's gradient 0 where the sum is 0."""
    windows, scale = _power_windows(kernel, stride, padding, ceil_mode, rescale, algo)
    sums = windows.sums(_wide(x).pow(power)) * scale
    return (torch.sign(sums) * torch.relu(torch.abs(sums))).pow(1 / power).to(x.dtype)


def _slope(sums: Tensor, power: float) -> Tensor:
    """d y / d sum over power: sum^(1/power - 1), and 0 where the sum is."""
    some = sums != 0
    return torch.where(some, torch.where(some, sums, 1).pow(1 / power - 1), 0)


def lp_dx(dy: Tensor, x: Tensor, kernel, stride, padding, ceil_mode, power, rescale, algo):
    """`pool.lp_pool_dx`."""
    windows, scale = _power_windows(kernel, stride, padding, ceil_mode, rescale, algo)
    wide = _wide(x)
    slope = _slope(windows.sums(wide.pow(power)) * scale, power) * scale
    dx = windows.spread(_wide(dy) * slope, x.shape, _channels_last(x))
    return (dx if power == 1 else wide.pow(power - 1) * dx).to(x.dtype)


def lp_dx_backward(
    g: Tensor, dy: Tensor, x: Tensor, kernel, stride, padding, ceil_mode, power, rescale, algo
) -> tuple[Tensor, Tensor | None]:
    """The gradients of `lp_dx` in dy and x for a cotangent g; None where it does not depend on x.

    With s the sums, c = x^(p-1) and S the sum over windows (times `scale`): dx = c S'(dy slope(s)),
    hence ddy = slope(s) S(c g) and, through c and s, ddx.
    """
    windows, scale = _power_windows(kernel, stride, padding, ceil_mode, rescale, algo)
    wide, g = _wide(x), _wide(g)
    if power == 1:  # linear, but for the slope 0 at a sum of 0
        slope = _slope(windows.sums(wide) * scale, power)
        return (slope * windows.sums(g) * scale).to(dy.dtype), None
    last = _channels_last(x)
    sums, c, wide_dy = windows.sums(wide.pow(power)) * scale, wide.pow(power - 1), _wide(dy)
    slope, along = _slope(sums, power), windows.sums(c * g) * scale
    some = sums != 0
    curve = torch.where(some, torch.where(some, sums, 1).pow(1 / power - 2), 0)
    toward = windows.spread(wide_dy * slope, x.shape, last) * scale
    bent = windows.spread(wide_dy * along * curve, x.shape, last) * scale
    through_c = g * toward if power == 2 else g * toward * wide.pow(power - 2)
    ddx = (power - 1) * (through_c - c * bent)
    return (slope * along).to(dy.dtype), ddx.to(x.dtype)


class _Shares:
    """The weights of x (its positive part), their sums over windows, and the expectation y."""

    def __init__(self, x: Tensor, windows: _Windows):
        self.weight = torch.relu(x)
        sums = windows.sums(self.weight)
        self.some = sums != 0
        self.sums = torch.where(self.some, sums, 1)
        self.y = self.of_sums(windows.sums(self.weight * self.weight))

    def of_sums(self, t: Tensor) -> Tensor:
        """t over the sums, and 0 where a sum is."""
        return torch.where(self.some, t / self.sums, 0)


def expectation(x: Tensor, kernel, stride, padding, ceil_mode, algo) -> Tensor:
    """`pool.expectation_pool`."""
    return _Shares(_wide(x), _Windows(kernel, stride, padding, ceil_mode, 1, algo)).y.to(x.dtype)


def expectation_dx(dy: Tensor, x: Tensor, kernel, stride, padding, ceil_mode, algo) -> Tensor:
    """The gradient of `pool.expectation_pool` in x: (2 w - y) dy / sum of the windows on an element
    of weight w, and 0 for one that is not positive."""
    windows = _Windows(kernel, stride, padding, ceil_mode, 1, algo)
    wide, last = _wide(x), _channels_last(x)
    shares = _Shares(wide, windows)
    dy = shares.of_sums(_wide(dy))
    to_square = windows.spread(dy, x.shape, last)
    to_sum = windows.spread(dy * shares.y, x.shape, last)
    return torch.where(wide > 0, 2 * shares.weight * to_square - to_sum, 0).to(x.dtype)
