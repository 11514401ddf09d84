"""Stochastic pooling made of PyTorch's operators, for what our kernels do not take.

Draws as csrc/common/pool_sample.h says, to the bit: the same seed gives the same elements. Needs
several times the windows' elements in memory. Dimensions: T taps of a window, row-major.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv.ops.pool import Windows

_MASK = 0xFFFFFFFF


def _high(factor: int, word: Tensor) -> Tensor:
    """The upper half of a product of two 32-bit numbers, in int64."""
    return (factor * (word >> 16) + (factor * (word & 0xFFFF) >> 16)) >> 16


def philox(seed: Tensor, counter: Tensor) -> tuple[Tensor, Tensor]:
    """The first two words of Philox 4x32-10 at (key, counter); int64 tensors."""
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    c0, c1 = counter & _MASK, counter >> 32 & _MASK
    c2 = c3 = torch.zeros_like(counter)
    for _ in range(10):
        n0 = _high(0xCD9E8D57, c2) ^ c1 ^ k0
        n2 = _high(0xD2511F53, c0) ^ c3 ^ k1
        c0, c1, c2, c3 = n0, 0xCD9E8D57 * c2 & _MASK, n2, 0xD2511F53 * c0 & _MASK
        k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
    return c0, c1


def _uniform(seed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One number in [0, 1) per output, by its index in a contiguous tensor of this shape."""
    counter = torch.arange(torch.Size(shape).numel(), device=seed.device).reshape(shape)
    low, high = philox(seed, counter)
    if dtype == torch.float64:
        return ((high << 32 | low) >> 11 & (1 << 53) - 1).to(dtype) * 2.0**-53
    return (low >> 8).to(dtype) * 2.0**-24


def taps_of(t: Tensor, windows: Windows, fill: int) -> Tensor:
    """(N, C, *in) -> (N, C, *out, T), with `fill` in the padding and beyond it."""
    extents = t.shape[2:]
    outs = windows.out_extents(extents)
    kernel, stride, padding, *_ = windows
    pad: list[int] = []
    for n, out, k, s, p in zip(extents, outs, kernel, stride, padding, strict=True):
        pad = [p, max(0, (out - 1) * s + k - n - p), *pad]  # the last axis comes first
    t = F.pad(t, pad, value=fill)
    for axis, (out, k, s) in enumerate(zip(outs, kernel, stride, strict=True)):
        t = t.unfold(2 + axis, k, s).narrow(2 + axis, 0, out)
    return t.flatten(-len(kernel))


def _places(x: Tensor, windows: Windows) -> Tensor:
    """(1, 1, *out, T): where each tap lies in the plane, -1 outside of it."""
    size = x.shape[2:]
    plane = torch.arange(size.numel(), device=x.device).reshape(1, 1, *size)
    return taps_of(plane, windows, -1)


def _drawn(taps: Tensor, real: Tensor, seed: Tensor) -> Tensor:
    """(N, C, *out): the tap that each window draws; real: (1, 1, *out, T), not in the padding."""
    weights = torch.where(real & ~(taps < 0), taps, 0)
    total = torch.zeros_like(taps[..., 0])
    for weight in weights.unbind(-1):  # one addition after the other: the order is part of it
        total = total + weight
    threshold = _uniform(seed, total.shape, total.dtype) * total
    unordered = total.isnan()
    running, taken = torch.zeros_like(total), torch.zeros_like(unordered)
    kept = real.to(torch.int64).argmax(-1).expand(total.shape)
    for tap, weight in enumerate(weights.unbind(-1)):
        running = running + weight
        positive = ~taken & (weight > 0)
        takes = torch.where(unordered, weight.isnan(), positive)
        kept = torch.where(takes, tap, kept)
        # Infinite sums have no difference: the first +inf wins.
        taken = taken | (positive & ((running > threshold) | ~running.isfinite()))
    return kept


def sample(x: Tensor, seed: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """(y, places) of x (N, C, *in): the drawn elements, and where they lie in the plane.

    Differentiable in x. seed: one int64 element.
    """
    wide = x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    places = _places(x, windows)
    taps = taps_of(wide, windows, 0)
    kept = _drawn(taps, places >= 0, seed)
    index = places.expand(taps.shape).gather(-1, kept.unsqueeze(-1)).squeeze(-1)
    y = x.flatten(2).gather(2, index.flatten(2)).reshape(index.shape)
    return y, index


def expectation(x: Tensor, windows: Windows) -> Tensor:
    """The windows' sums of squares over their sums, negative elements counting as 0."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    weights = torch.relu(taps_of(wide, windows, 0))
    sums = weights.sum(-1)
    some = sums != 0
    squares = (weights * weights).sum(-1)
    return torch.where(some, squares / torch.where(some, sums, 1), 0).to(x.dtype)
