"""How the tensors of a convolution lie in memory, as its kernels are told."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor

from .conv_geometry import INT32, ConvGeometry, Five, Ints, five, span, vector
from .launching import Box, Facts

_BOX = 256  # elements per axis that one load by descriptor may have


def far(*tensors: Facts) -> bool:
    """Whether an offset into one of them needs 64 bits."""
    return max(span(t.strides, t.shape) for t in tensors) > INT32


def filters(w: Tensor, depth: int) -> Tensor:
    """w [K, C/groups, taps] as a dense [K, taps, depth], which are C/groups or, with zeros behind
    them, more; a copy unless it lies so already."""
    if depth == w.shape[1]:
        return w.movedim(1, -1).contiguous()
    filled = w.new_zeros((w.shape[0], *w.shape[2:], depth))
    filled[..., : w.shape[1]] = w.movedim(1, -1)
    return filled


def lies_as_filters(w: Facts) -> bool:
    """Whether `filters` would be w's own memory."""
    dense = 1
    for axis in (1, *range(len(w.shape) - 1, 1, -1), 0):
        if w.shape[axis] != 1 and w.strides[axis] != dense:
            return False
        dense *= w.shape[axis]
    return True


def merge(strides: Five, extents: Ints) -> Five | None:
    """The spatial axes as one, if they lie in memory as one."""
    n, c, *spatial = strides
    merged, size = 0, 1
    for s, extent in zip(reversed(spatial), reversed(list(extents)), strict=True):
        if extent == 1:
            continue
        if size == 1:
            merged, size = s, extent
        elif s == merged * size:
            size *= extent
        else:
            return None
    return n, c, 0, 0, merged


def pixel_stride(strides: Five, images: int, extents: Ints) -> int | None:
    """The distance of neighbouring pixels, over all images, if it is the same everywhere."""
    merged, count = merge(strides, extents), prod(extents)
    if merged is None:
        return None
    if images == 1 or count == 1:
        return merged[4] if images == 1 else merged[0]
    return merged[4] if merged[0] == merged[4] * count else None


class Places(NamedTuple):
    """How pixels map to memory: axes, their extents, and strides of each tensor."""

    rank: int
    ins: Ints
    outs: Ints
    strides: list[Five]


def places_of(g: ConvGeometry, strides: list[Five]) -> Places:
    """Of a pointwise problem the axes are merged into as few as they are in every tensor."""
    if g.pointwise:
        count = prod(g.outs)
        flat = [pixel_stride(s, g.N, g.outs) for s in strides]
        if None not in flat:
            single = (1, 1, g.N * count)
            rows = [(0, s[1], 0, 0, v) for s, v in zip(strides, flat, strict=True)]
            return Places(0, single, single, rows)  # type: ignore[arg-type]
        merged = [merge(s, g.outs) for s in strides]
        if None not in merged:
            return Places(1, (1, 1, count), (1, 1, count), merged)  # type: ignore[arg-type]
    return Places(g.rank, g.ins, g.outs, strides)


def vector_of(*tensors: Five) -> int:
    """The unit that strides can be counted in, but those of channels."""
    if any(s[1] != 1 for s in tensors):
        return 1
    return vector(*(v for s in tensors for v in (s[0], *s[2:])))


def units(s: Five, by: int, run: int = 1) -> Five:
    """Strides as a kernel is given them: by vectors of channels, or by runs of pixels."""
    return s[0] // by // run, s[1] // run, s[2] // by, s[3] // by, s[4] // by


def run_of(t: Facts, images: int, extents: Ints) -> int:
    """How many pixels lie side by side, each run at a multiple of 16 bytes as far as strides tell,
    wherever a multiple of that many pixels of all images begins; 1 where vectors of channels do."""
    s = five(t.strides, t.shape)
    merged, count = merge(s, extents), prod(extents)
    if merged is None or s[1] == 1 or merged[4] != 1 or count == 1:
        return 1
    most = 16 // t.dtype.itemsize
    return min(most, vector(count, s[1], s[0] if images > 1 else 0))


def box(t: Facts, shape: Ints, strides: Ints, block: Ints) -> Box | None:
    """A descriptor of t's memory from its first element on, last axis dense; None where the
    hardware asks for more alignment than there is."""
    size = t.dtype.itemsize
    aligned = t.aligned and all(s * size % 16 == 0 for s in strides[:-1])
    if not aligned or strides[-1] != 1 or max(block) > _BOX:
        return None
    # An axis of one element has no stride of its own, but 0 is none.
    strides = [s or strides[-2] or 16 for s in strides]
    return Box(tuple(shape), tuple(strides), tuple(block))
