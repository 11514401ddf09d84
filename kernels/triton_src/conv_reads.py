"""In which vectors a convolution's gathered operands are read, and which are copied for it first.

One rule for the launchers and for the model of their costs.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from .conv_geometry import (
    INT32,
    Config,
    ConvGeometry,
    five,
    magic,
    shares_taps,
    triple,
    vector,
)
from .conv_layout import far, merge, run_of
from .launching import Facts, Launch

# So often must each element be gathered for a copy to be worth it: that reads an element twice and
# writes it once, in vectors, while a gather has some eight instructions for it each time.
_WORTH = 4
_LEAST_BYTES = 8  # of a vector: asynchronous copies are of 4, 8 or 16
_BLOCK = 4096  # elements of a program that copies


class Read(NamedTuple):
    """copy: what is read instead. vector: elements per load."""

    copy: Facts | None
    vector: int


def filled_up(channels: int, itemsize: int) -> int:
    """Channels in whole vectors, where that is a third more at most."""
    most = 16 // itemsize
    whole = -(-channels // most) * most
    if channels < most:
        whole = 1 << (channels - 1).bit_length()
    return whole if 3 * whole <= 4 * channels else channels


def _read(t: Facts, g: ConvGeometry, run: int, gathered: float, fill: bool) -> Read:
    """run: of pixels that a load may have. gathered: how often each element is, on average. fill:
    whether more channels, of zeros, may follow."""
    if run > 1:
        return Read(None, run)
    size, s = t.dtype.itemsize, five(t.strides, t.shape)
    depth = filled_up(t.shape[1], size) if fill else t.shape[1]
    spatial = t.shape[2:]
    copy = None
    if (
        gathered >= _WORTH
        and (s[1] != 1 or depth != t.shape[1])
        and depth // g.groups * size % _LEAST_BYTES == 0
        and t.shape[0] * prod(spatial) <= INT32
        and merge(s, triple(spatial, 1)) is not None
    ):
        rows = tuple(depth * prod(spatial[axis + 1 :]) for axis in range(len(spatial)))
        strides = (depth * prod(spatial), 1, *rows)
        copy = Facts((t.shape[0], depth, *spatial), strides, t.dtype, True)
    if (copy or t).strides[1] != 1:
        return Read(copy, 1)
    return Read(copy, min(16 // size, vector((copy or t).shape[1] // g.groups)))


def fprop_read(g: ConvGeometry, x: Facts, config: Config) -> Read:
    gathered = g.taps * -(-g.K // config.block_n) / prod(g.stride)
    run = run_of(x, g.N, g.outs) if g.pointwise else 1
    return _read(x, g, run, gathered, g.groups == 1)


def dgrad_read(g: ConvGeometry, dy: Facts, config: Config) -> Read:
    run = run_of(dy, g.N, g.outs) if g.pointwise else 1
    return _read(dy, g, run, g.taps * -(-g.C // config.block_n), False)


def wgrad_reads(g: ConvGeometry, dy: Facts, x: Facts, config: Config) -> tuple[Read, Read]:
    """Of dy and of x."""
    columns = g.taps * -(-g.C // config.block_n)
    if shares_taps(g.C, g.taps, config.block_n):
        columns = -(-g.taps * g.C // config.block_n)
    of_dy = _read(dy, g, run_of(dy, g.N, g.outs), columns, False)
    gathered = g.taps * -(-g.K // config.block_m) / prod(g.stride)
    run = run_of(x, g.N, g.outs) if g.pointwise else 1
    return of_dy, _read(x, g, run, gathered, False)


def repack(t: Facts, copy: Facts) -> Launch:
    """Fills the copy."""
    n, c, *spatial = t.shape
    s = merge(five(t.strides, t.shape), triple(spatial, 1))
    assert s is not None
    image, depth = prod(spatial), copy.shape[1]
    run = run_of(t, n, triple(spatial, 1))
    vec = vector(depth)
    block_c = max(16, min(64, 1 << (depth - 1).bit_length()))
    numbers = (
        n * image // run, c, depth // vec, *magic(image), s[0] // run, s[1] // run, s[4],
    )  # fmt: skip
    constants = {
        "RUN": run,
        "VEC": vec,
        "WIDE": far(t, copy),
        "BLOCK_P": _BLOCK // block_c,
        "BLOCK_C": block_c,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    grid = -(-n * image // (_BLOCK // block_c)) * -(-depth // block_c)
    return Launch("conv_repack_kernel", grid, numbers, constants)
