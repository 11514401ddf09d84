"""Pooling from the definition, in float64: what every kernel and test is measured against.

A window is the list of its elements: `Windows.place` says, for every output and tap, where in the
input's plane the tap lies, or -1 where there is no element. Everything else is a reduction over
taps, written out; PyTorch's own pooling is not used, so it can serve as a second, independent
reference. Values are compared as the kernels' are: of dtypes narrower than float64, exactly.

Pass ``magnitude=True`` where it is offered for the sum of the same terms' absolute values, which
error bounds are proportional to.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor


class Windows:
    """The windows of one pooling over a plane; lists have one entry per spatial axis.

    Attributes:
        place: [outputs, taps], row-major over both.
        out: extents of the output.
        taps: of a window, those without an element included.
    """

    def __init__(
        self,
        extents: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
    ) -> None:
        spans, counted = [], []
        for n, k, s, p, d in zip(extents, kernel, stride, padding, dilation, strict=True):
            starts = []
            while True:
                start = len(starts) * s - p
                whole = start + d * (k - 1) < n + p
                # With ceil_mode a last window may reach beyond the padding, if it starts before.
                partial = ceil_mode and start < n and self._short(start - s, d, k, n, p)
                if not whole and not partial:
                    break
                starts.append(start)
            spans.append([[start + d * t for t in range(k)] for start in starts])
            counted.append([(start, min(start + k, n + p)) for start in starts])
        self._build(extents, spans)
        self._counted = counted

    @staticmethod
    def _short(start: int, dilation: int, kernel: int, n: int, padding: int) -> bool:
        """Whether the window that starts there leaves elements (or padding) behind it."""
        return start + dilation * (kernel - 1) + 1 < n + padding

    @classmethod
    def adaptive(cls, extents: Sequence[int], out: Sequence[int]) -> Windows:
        """Output i of an axis takes the elements from floor(i n / out) to ceil((i + 1) n / out)."""
        self = cls.__new__(cls)
        ranges = [
            [(i * n // o, -(-(i + 1) * n // o)) for i in range(o)]
            for n, o in zip(extents, out, strict=True)
        ]
        # As many taps as the kernels count with: one more than the longest window may need.
        longest = [
            n // o if n % o == 0 else min(-(-n // o) + 1, n)
            for n, o in zip(extents, out, strict=True)
        ]
        spans = [
            [[begin + t if begin + t < end else -1 for t in range(k)] for begin, end in axis]
            for axis, k in zip(ranges, longest, strict=True)
        ]
        self._build(extents, spans)
        self._counted = ranges
        return self

    def _build(self, extents: Sequence[int], spans: list[list[list[int]]]) -> None:
        self.extents = tuple(extents)
        self.out = tuple(len(axis) for axis in spans)
        rows = []
        for window in product(*spans):
            row = []
            for position in product(*window):
                inside = all(0 <= i < n for i, n in zip(position, extents, strict=True))
                place = 0
                for i, n in zip(position, extents, strict=True):
                    place = place * n + i
                row.append(place if inside else -1)
            rows.append(row)
        self.place = torch.tensor(rows, dtype=torch.int64)
        self.taps = self.place.shape[1]

    @property
    def real(self) -> Tensor:
        """[outputs, taps], whether there is an element."""
        return self.place >= 0

    def elements(self, x: Tensor) -> Tensor:
        """[N, C, outputs, taps] of x [N, C, spatial]; 0 where there is none."""
        taken = x.flatten(2)[:, :, self.place.clamp(min=0)]
        return torch.where(self.real, taken, torch.zeros_like(taken))

    def sizes(self, include_pad: bool) -> Tensor:
        """[outputs], how many elements an average counts: with `include_pad` those in the padding
        as well, but none beyond it."""
        if not include_pad:
            return self.real.sum(1).double()
        spans = ([end - begin for begin, end in axis] for axis in self._counted)
        return torch.tensor([prod(lengths) for lengths in product(*spans)], dtype=torch.float64)

    def shaped(self, values: Tensor) -> Tensor:
        """[N, C, outputs] as [N, C, out]."""
        return values.unflatten(2, self.out)

    def spread(self, terms: Tensor) -> Tensor:
        """[N, C, in]: the sum over all windows of terms [N, C, outputs, taps] at their places."""
        n, c = terms.shape[:2]
        dx = terms.new_zeros(n, c, prod(self.extents) + 1)
        places = torch.where(self.real, self.place, prod(self.extents)).flatten()
        terms = torch.where(self.real, terms, torch.zeros_like(terms))
        dx.index_add_(2, places, terms.flatten(2))
        return dx[:, :, :-1].unflatten(2, self.extents)

    def divisors(self, include_pad: bool, divisor: int) -> Tensor:
        return self.sizes(include_pad) if divisor == 0 else self.place.new_tensor(divisor).double()


def _chosen(w: Windows, elements: Tensor, tap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(y, place, tap) of the chosen taps [N, C, outputs]."""
    y = elements.gather(3, tap.unsqueeze(3)).squeeze(3)
    place = w.place.expand(*elements.shape).gather(3, tap.unsqueeze(3)).squeeze(3)
    return w.shaped(y), w.shaped(place), w.shaped(tap)


def max_pool(x: Tensor, w: Windows) -> tuple[Tensor, Tensor, Tensor]:
    """(y in x's dtype, place in the plane, tap in the window): a NaN wins, the last of several;
    else the largest, the first of equals."""
    v = w.elements(x)
    taps = torch.arange(w.taps)
    nan = v.isnan() & w.real
    largest = torch.where(w.real & ~nan, v, -torch.inf).amax(3, keepdim=True)
    first = torch.where(w.real & (v == largest), taps, w.taps).amin(3)
    last_nan = torch.where(nan, taps, -1).amax(3)
    return _chosen(w, v, torch.where(last_nan >= 0, last_nan, first))


def sum_pool(
    x: Tensor, w: Windows, include_pad: bool, divisor: int, *, magnitude: bool = False
) -> Tensor:
    """Sums of windows over `divisor`, or, where that is 0, over their sizes."""
    v = w.elements(x).double()
    by = w.divisors(include_pad, divisor)
    return w.shaped(v.abs().sum(3) / by.abs() if magnitude else v.sum(3) / by)


def sum_pool_dgrad(
    dy: Tensor, w: Windows, include_pad: bool, divisor: int, *, magnitude: bool = False
) -> Tensor:
    terms = dy.double().flatten(2) / w.divisors(include_pad, divisor)
    terms = terms.abs() if magnitude else terms
    return w.spread(terms.unsqueeze(3).expand(-1, -1, -1, w.taps))


def _scales(w: Windows, rescale: bool) -> Tensor:
    return w.taps / w.sizes(True) if rescale else torch.ones(1, dtype=torch.float64)


def lp_sum(
    x: Tensor, w: Windows, power: float, rescale: bool, *, magnitude: bool = False
) -> Tensor:
    """The sum of x^power over each window; with `rescale`, as if partial windows were whole."""
    v = w.elements(x).double()
    terms = torch.where(w.real, (v.abs() if magnitude else v).pow(power), 0.0)
    return w.shaped(terms.sum(3) * _scales(w, rescale))


def lp_root(sums: Tensor, power: float) -> Tensor:
    """NaN of a negative sum, unless the power is 1."""
    return sums if power == 1 else sums.pow(1 / power)


def lp_pool_dgrad(
    dy: Tensor, x: Tensor, y: Tensor, w: Windows, power: float, rescale: bool, *,
    magnitude: bool = False,
) -> Tensor:  # fmt: skip
    """From y as the kernel gets it, rounded to its dtype; 0 where y is and, for power 1 alone,
    where y is NaN: PyTorch's derivative of |sum|."""
    y = y.double().flatten(2)
    flat = (y == 0) | (y.isnan() if power == 1 else False)
    slope = torch.where(flat, 0.0, torch.where(flat, 1.0, y).pow(1 - power))
    slope = dy.double().flatten(2) * slope * _scales(w, rescale)
    terms = slope.unsqueeze(3) * w.elements(x).double().pow(power - 1)
    return w.spread(terms.abs() if magnitude else terms)


def expectation_pool(x: Tensor, w: Windows) -> Tensor:
    """What `sample_pool` yields on average: sum of weight^2 over sum of weight; 0 where that is."""
    v = w.elements(x).double()
    weight = torch.where(v < 0, 0.0, v)
    total = weight.sum(3)
    some = torch.where(total == 0, 1.0, total)
    return w.shaped(torch.where(total == 0, 0.0, weight.square().sum(3) / some))


def philox(key: int, counter: np.ndarray) -> np.ndarray:
    """[..., 4] words of Philox 4x32-10 as uint64, one draw per counter."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    c = [counter & low, counter >> shift, np.zeros_like(counter), np.zeros_like(counter)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (b >> shift) ^ c[1] ^ np.uint64(k0), b & low,
            (a >> shift) ^ c[3] ^ np.uint64(k1), a & low,
        ]  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, -1)


def uniform(seed: int, count: int, dtype: torch.dtype) -> Tensor:
    """[count]: 24 random bits in float32, 53 in float64, drawn by outputs 0, 1, ..."""
    words = philox(seed % 2**64, np.arange(count, dtype=np.uint64))
    if dtype == torch.float32:
        bits, scale = words[:, 0] >> np.uint64(8), 2.0**-24
    else:
        bits, scale = (words[:, 1] << np.uint64(32) | words[:, 0]) >> np.uint64(11), 2.0**-53
    return torch.from_numpy(bits.astype(np.float64) * scale).to(dtype)


def sample_pool(x: Tensor, w: Windows, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(y, place, tap): the first element whose running sum of max(x, 0) exceeds u times the whole,
    to the bit: every addition in the order of the taps, 16-bit tensors in float32.

    A NaN wins, the last of several; the first +inf wins over everything finite; of windows without
    a positive element the first is taken.
    """
    v = w.elements(x)
    acc = v if v.dtype == torch.float64 else v.float()
    weight = torch.where(acc < 0, torch.zeros_like(acc), acc)
    total = torch.zeros_like(acc[..., 0])
    for t in range(w.taps):
        total = torch.where(w.real[:, t], total + weight[..., t], total)
    u = uniform(seed, total.numel(), total.dtype).view_as(total)
    threshold = u * total
    running, found = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.bool)
    tap = torch.where(w.real, torch.arange(w.taps), w.taps).amin(1).expand(total.shape).clone()
    for t in range(w.taps):
        here = weight[..., t]
        running = torch.where(w.real[:, t], running + here, running)
        candidate = w.real[:, t] & ~found & (here > 0)
        tap[candidate] = t
        found |= candidate & ((running > threshold) | (running == torch.inf))
    nan = acc.isnan() & w.real
    last_nan = torch.where(nan, torch.arange(w.taps), -1).amax(3)
    return _chosen(w, v, torch.where(last_nan >= 0, last_nan, tap))


def send_back(
    dy: Tensor, place: Tensor, extents: Sequence[int], *, magnitude: bool = False
) -> Tensor:
    """dx [N, C, extents]: each dy added to the place its output took."""
    terms = dy.double().flatten(2)
    dx = terms.new_zeros(*terms.shape[:2], prod(extents))
    dx.scatter_add_(2, place.flatten(2), terms.abs() if magnitude else terms)
    return dx.unflatten(2, tuple(extents))


def take(x: Tensor, place: Tensor) -> Tensor:
    """x at the places; 0 where they lie outside of the plane."""
    flat = x.flatten(2)
    inside = (place >= 0) & (place < flat.shape[2])
    taken = flat.gather(2, torch.where(inside, place, 0).flatten(2)).view(place.shape)
    return torch.where(inside, taken, torch.zeros_like(taken))


def unpool(x: Tensor, place: Tensor, extents: Sequence[int]) -> Tensor:
    """x [N, C, out] sent to the places of [N, C, extents], 0 elsewhere; of several elements that
    are sent to one place the last stays."""
    result = x.new_zeros(*x.shape[:2], prod(extents))
    for n, c, i in product(*map(range, (*x.shape[:2], prod(x.shape[2:])))):
        result[n, c, place[n, c].flatten()[i]] = x[n, c].flatten()[i]
    return result.unflatten(2, tuple(extents))
