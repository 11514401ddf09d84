"""Launchers of the passes of batch normalisation with activation in Triton.

Names, arguments and results are those of `torch.ops.fastconv.<name>` (csrc/common/fused_ops.h); the
memory format of a result is, too. What a problem launches is worked out once and remembered. Ask
`fastconv._triton.applicable` first. No autograd. Imports Triton at the first launch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv.problem import dense_strides, strides_channels_last

from .conv_geometry import vector
from .launching import Launch, run

_INT32 = 2**31 - 2**20  # leaves room for places beyond the last tile's end
_GRID = 2**31 - 1
_THREADS = 32  # of a warp
# An elementwise pass: two programs for each multiprocessor of a large GPU, where there is work for
# as many, and accesses of 16 bytes by a thread to each tensor.
_PROGRAMS, _ACCESSES = 264, 2
# A reduction: programs, where there is work for as many; tiles that each has at least; elements of
# a tile, half as many of float64. Constants, so that the order of a sum is the problem's alone.
_RANGES, _LEAST, _TILE = 1056, 2, 2048
_ROW_BYTES = 128  # of a tile's row of channels
_MERGED = 64  # parts, by a quarter as many channels
_KEPT = 4096  # plans of each kind

Size = tuple[int, ...]


@cache
def kernels() -> dict[str, Any]:
    """Every kernel of the passes by name; imports Triton."""
    from . import norm_passes

    return {n: k for n, k in vars(norm_passes).items() if n.endswith("_kernel")}


def launch(step: Launch, tensors: Sequence[Tensor | None]) -> None:
    """Runs the step's kernel on the device of the first tensor."""
    run(kernels()[step.kernel], step, tensors)


class _Layout(NamedTuple):
    """A dense tensor of N images, K channels and places: [rows, inner] in memory, pixels by
    channels (last) or planes by places. It is whatever both formats are, where they are the same
    memory."""

    images: int
    K: int
    places: int
    last: bool

    @property
    def rows(self) -> int:
        return self.images * (self.places if self.last else self.K)

    @property
    def inner(self) -> int:
        return self.K if self.last else self.places

    @property
    def wide(self) -> bool:
        return self.images * self.K * self.places > _INT32


def _layout(size: Size, channels_last: bool) -> _Layout:
    places = prod(size[2:])
    return _Layout(size[0], size[1], places, (channels_last and size[1] > 1) or places == 1)


def statistics_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _number(value: float, dtype: torch.dtype) -> float | int:
    """As the kernels' `number` takes it."""
    if dtype != torch.float64:
        return float(value)
    return struct.unpack("<q", struct.pack("<d", value))[0]


# What a size and strides amount to, which takes longer to find out than to look up.
_strides = lru_cache(_KEPT)(dense_strides)
_is_channels_last = lru_cache(_KEPT)(strides_channels_last)


@lru_cache(_KEPT)
def _is_dense(size: Size, strides: Size, channels_last: bool) -> bool:
    want = dense_strides(size, channels_last)
    return all(n <= 1 or strides[i] == want[i] for i, n in enumerate(size))


def _empty(like: Tensor, channels_last: bool) -> Tensor:
    return like.new_empty_strided(like.shape, _strides(like.shape, channels_last))


def _dense(t: Tensor, channels_last: bool) -> Tensor:
    if _is_dense(t.shape, t.stride(), channels_last):
        return t
    return _empty(t, channels_last).copy_(t)


def _features(op: str, y: Tensor, *others: tuple[str, Tensor | None]) -> bool:
    """Whether y is channels_last; raises ValueError for operands that do not fit to it."""
    if not 2 <= y.dim() <= 5:
        raise ValueError(f"{op}: expected 2 to 5 dimensions, got {y.dim()}")
    for name, t in others:
        if t is not None and (t.shape != y.shape or t.dtype != y.dtype):
            raise ValueError(
                f"{op}: {name} is {list(t.shape)} of {t.dtype}, y {list(y.shape)} of {y.dtype}"
            )
    return _is_channels_last(y.shape, y.stride())


def _vectors(op: str, y: Tensor, *given: Tensor | None) -> list[Tensor | None]:
    kind, size = statistics_type(y.dtype), y.shape[1:2]
    for t in given:
        if t is not None and (t.dtype != kind or t.shape != size):
            raise ValueError(
                f"{op}: statistics are {list(t.shape)} of {t.dtype}, not [{y.shape[1]}] of {kind}"
            )
    return [None if t is None else t.contiguous() for t in given]


def _present(tensors: Sequence[Tensor | None]) -> tuple[bool, ...]:
    """What a launch's kernel is compiled for besides its constants."""
    return tuple(t is not None for t in tensors)


def _constants(dtype: torch.dtype, shape: _Layout, warps: int, *also: int) -> dict[str, Any]:
    """Those of every pass. also: what the accesses' width has to divide besides."""
    import triton.language as tl

    return {
        "LAST": shape.last,
        "VEC": vector(shape.inner, *also),
        "WIDE": shape.wide,
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "num_warps": warps,
        "enable_fp_fusion": True,
    }


def _power_of_two(n: int) -> int:
    """The smallest one that is not below n."""
    return 1 << (n - 1).bit_length()


def elementwise_tile(rows: int, inner: int, itemsize: int) -> tuple[int, int, int]:
    """(BLOCK_R, BLOCK_C, warps); smaller ones for small problems, so that more multiprocessors have
    a program."""
    vector_ = 16 // itemsize
    for warps, accesses in ((4, _ACCESSES), (4, 1), (2, 1), (1, 1)):
        row = _THREADS * warps * vector_
        block_c = min(_power_of_two(inner), row)
        block_r = row * accesses // block_c
        if -(-rows // block_r) * -(-inner // block_c) >= _PROGRAMS:
            break
    return block_r, block_c, warps


def _grid(op: str, programs: int) -> int:
    if programs > _GRID:
        raise ValueError(f"{op}: {programs} programs are over {_GRID}")
    return programs


class _End(NamedTuple):
    """activation: its number in csrc/common/epilogue.h. residual: 0 none, 1 before the activation,
    2 behind it."""

    activation: int
    slope: float
    residual: int


@lru_cache(_KEPT)
def _plan_elementwise(
    op: str,
    kernel: str,
    size: Size,
    dtype: torch.dtype,
    channels_last: bool,
    present: tuple[bool, ...],
    end: _End,
    count: float,
    pitch: int,
) -> Launch:
    """pitch: the channels of the tensor that the result is a slice of."""
    shape = _layout(size, channels_last)
    more = pitch - shape.K
    if more:  # then the formats are not the same memory
        shape = shape._replace(last=channels_last)
    skip = more if shape.last else more * shape.places
    block_r, block_c, warps = elementwise_tile(shape.rows, shape.inner, dtype.itemsize)
    programs = -(-shape.rows // block_r) * -(-shape.inner // block_c)
    constants = _constants(dtype, shape, warps, skip)
    constants.update(ACTIVATION=end.activation, RESIDUAL=end.residual)
    constants.update(BLOCK_R=block_r, BLOCK_C=block_c)
    constants["WIDE"] = shape.wide or shape.images * shape.places * pitch > _INT32
    vec = constants["VEC"]
    numbers: tuple[Any, ...] = (shape.rows, shape.K, shape.inner // vec)
    if kernel == "norm_fprop_kernel":
        numbers = (*numbers, skip // vec, _number(end.slope, dtype))
    else:
        part = 1 / count if count > 0 else 0.0
        numbers = (*numbers, _number(end.slope, dtype), _number(part, dtype))
    return Launch(kernel, _grid(op, programs), numbers, constants)


def _fprop(
    op: str, y: Tensor, vectors: Sequence[Tensor | None], residual: Tensor | None, z: Tensor,
    pitch: int, channels_last: bool, activation: int, slope: float, after: bool,
) -> None:  # fmt: skip
    residual = None if residual is None else _dense(residual, channels_last)
    tensors = (_dense(y, channels_last), *vectors, residual, z)
    end = _End(int(activation), float(slope), 0 if residual is None else 2 if after else 1)
    step = _plan_elementwise(
        op, "norm_fprop_kernel", tuple(y.shape), y.dtype, channels_last, _present(tensors), end,
        0.0, pitch,
    )  # fmt: skip
    launch(step, tensors)


def norm_act_fprop(
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    slope: float,
    residual_after: bool,
) -> Tensor:
    op = "norm_act_fprop"
    last = _features(op, y, ("residual", residual))
    z = _empty(y, last)
    if z.numel() > 0:
        vectors = _vectors(op, y, mean, rstd, weight, bias)
        end = (activation, slope, residual_after)
        _fprop(op, y, vectors, residual, z, y.shape[1], last, *end)
    return z


def epilogue_into(
    y: Tensor,
    residual: Tensor | None,
    out: Tensor,
    activation: int,
    slope: float,
    residual_after: bool,
) -> None:
    op = "epilogue_into"
    last = _features(op, y, ("residual", residual), ("out", out))
    if y.numel() == 0:
        return
    pitch = sliced_channels(out, last)
    if pitch is None:
        raise ValueError(
            f"{op}: out, of strides {out.stride()}, is no channel slice of a dense tensor in y's"
            " layout"
        )
    end = (activation, slope, residual_after)
    _fprop(op, y, (None,) * 4, residual, out, pitch, last, *end)


def sliced_channels(t: Tensor, channels_last: bool) -> int | None:
    """The channels of the dense tensor in this format that t is a channel slice of, its own where
    it is dense; None where there is no such tensor."""
    size, have = list(t.shape), t.stride()

    def fits(channels: int) -> bool:
        want = dense_strides([size[0], channels, *size[2:]], channels_last)
        return all(n <= 1 or have[i] == want[i] for i, n in enumerate(size))

    if fits(size[1]):
        return size[1]
    last = channels_last and t.dim() > 3
    spatial = [i for i in range(t.dim() - 1, 1, -1) if size[i] > 1] if last else []
    # What one more pixel (last) or one more image adds.
    axis, unit = (spatial[0], 1) if spatial else (0, prod(size[2:]))
    channels = have[axis] // unit
    return channels if size[axis] > 1 and channels >= size[1] and fits(channels) else None


class _Reduction(NamedTuple):
    """How a reduction is cut: rows (pixels or images) in tiles of BLOCK_R, columns (places) in
    `chunks` of BLOCK_C, `per` tiles to a part."""

    rows: int
    chunks: int
    units: int
    per: int
    parts: int
    grid: int
    block_r: int
    block_c: int


def reduction(shape: _Layout, itemsize: int) -> _Reduction:
    """Of the problem alone."""
    tile = _TILE // 2 if itemsize == 8 else _TILE
    if shape.last:
        rows = shape.rows
        block_c = min(_power_of_two(shape.K), _ROW_BYTES // itemsize, tile)
        groups, chunks = -(-shape.K // block_c), 1
    else:
        rows = shape.images
        block_c = min(_power_of_two(shape.places), tile)
        groups, chunks = shape.K, -(-shape.places // block_c)
    block_r = min(_power_of_two(rows), tile // block_c)
    units = -(-rows // block_r) * chunks
    per = min(max(-(-units // -(-_RANGES // groups)), _LEAST), units)
    parts = -(-units // per)
    return _Reduction(rows, chunks, units, per, parts, parts * groups, block_r, block_c)


class _Plan(NamedTuple):
    """The launch into parts, and that which merges them."""

    step: Launch
    parts: int
    merge: Launch | None


@lru_cache(_KEPT)
def _plan_reduction(
    op: str,
    size: Size,
    dtype: torch.dtype,
    channels_last: bool,
    present: tuple[bool, ...],
    end: _End | None,
) -> _Plan:
    """end: None where it is statistics that are wanted."""
    shape = _layout(size, channels_last)
    r = reduction(shape, dtype.itemsize)
    kind = statistics_type(dtype)
    warps = max(1, min(4, r.block_r * r.block_c * kind.itemsize // 2048))
    constants = _constants(dtype, shape, warps)
    constants.update(BLOCK_R=r.block_r, BLOCK_C=r.block_c)
    numbers: tuple[Any, ...] = (r.rows, shape.K, shape.inner // constants["VEC"])
    numbers = (*numbers, r.chunks, r.units, r.per)
    kernel = "norm_stats_kernel"
    if end is not None:
        kernel, numbers = "norm_sums_kernel", (*numbers, _number(end.slope, dtype))
        constants.update(ACTIVATION=end.activation, RESIDUAL=end.residual)
    step = Launch(kernel, _grid(op, r.grid), numbers, constants)
    if r.parts == 1:
        return _Plan(step, 1, None)
    block_c = min(_power_of_two(shape.K), _MERGED // 4)
    merging = {
        "STATS": end is None,
        "ACC": constants["ACC"],
        "BLOCK_P": min(_power_of_two(r.parts), _MERGED),
        "BLOCK_C": block_c,
        "num_warps": 4,
        "enable_fp_fusion": True,
    }
    merge = Launch("norm_merge_kernel", -(-shape.K // block_c), (r.parts, shape.K), merging)
    return _Plan(step, r.parts, merge)


def _reduce(
    op: str, y: Tensor, tensors: Sequence[Tensor | None], channels_last: bool, end: _End | None
) -> tuple[Tensor, Tensor]:
    """tensors: what is read, y among them."""
    plan = _plan_reduction(op, tuple(y.shape), y.dtype, channels_last, _present(tensors), end)
    K, kind = y.shape[1], statistics_type(y.dtype)
    results = y.new_empty(K, dtype=kind), y.new_empty(K, dtype=kind)
    first, second = results if plan.merge is None else y.new_empty((2, plan.parts, K), dtype=kind)
    # How many values a part's mean is of.
    counts = (y.new_empty(plan.parts, dtype=kind),) if end is None else ()
    launch(plan.step, (*tensors, *counts, first, second))
    if plan.merge is not None:
        launch(plan.merge, (counts[0] if counts else first, first, second, *results))
    return results


def _nothing(y: Tensor) -> tuple[Tensor, Tensor]:
    kind = statistics_type(y.dtype)
    return y.new_zeros(y.shape[1], dtype=kind), y.new_zeros(y.shape[1], dtype=kind)


def norm_act_stats(y: Tensor) -> tuple[Tensor, Tensor]:
    op = "norm_act_stats"
    last = _features(op, y)
    return _nothing(y) if y.numel() == 0 else _reduce(op, y, (_dense(y, last),), last, None)


def norm_act_sums(
    dz: Tensor,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: int,
    slope: float,
    residual_after: bool,
) -> tuple[Tensor, Tensor]:
    op = "norm_act_sums"
    last = _features(op, y, ("dz", dz), ("residual", residual))
    if y.numel() == 0:
        return _nothing(y)
    if residual_after:
        residual = None  # the sums do not depend on it
    vectors = _vectors(op, y, mean, rstd, weight, bias)
    dz, d, residual = (None if t is None else _dense(t, last) for t in (dz, y, residual))
    end = _End(int(activation), float(slope), int(residual is not None))
    return _reduce(op, y, (dz, d, *vectors, residual), last, end)


def norm_act_dgrad(
    dz: Tensor,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    sum_g: Tensor | None,
    sum_gy: Tensor | None,
    count: float,
    activation: int,
    slope: float,
    residual_after: bool,
    want_residual: bool,
) -> tuple[Tensor, Tensor]:
    op = "norm_act_dgrad"
    last = _features(op, y, ("dz", dz), ("residual", residual))
    if (sum_g is None) != (sum_gy is None):
        raise ValueError(f"{op}: one sum without the other")
    dy = _empty(y, last)
    dresidual = _empty(y, last) if want_residual else y.new_empty(0)
    if dy.numel() == 0:
        return dy, dresidual
    if residual_after:
        residual = None  # its value decides nothing
    vectors = _vectors(op, y, mean, rstd, weight, bias)
    sums = _vectors(op, y, sum_g, sum_gy)
    dz, d, residual = (None if t is None else _dense(t, last) for t in (dz, y, residual))
    tensors = (
        dz, d, *vectors, residual, *sums, dy, dresidual if want_residual else None
    )  # fmt: skip
    code = 2 if residual_after else int(residual is not None)
    step = _plan_elementwise(
        op, "norm_dgrad_kernel", tuple(y.shape), y.dtype, last, _present(tensors),
        _End(int(activation), float(slope), code), float(count), y.shape[1],
    )  # fmt: skip
    launch(step, tensors)
    return dy, dresidual
