"""What a call of the implicit-GEMM convolutions launches, as far as sizes, strides and dtypes tell.

Plans are remembered: a layer's next call only makes its result and launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import torch

from fastconv.problem import dense_strides, strides_channels_last

from .conv_geometry import (
    INT32,
    PRECISIONS,
    Config,
    ConvGeometry,
    Five,
    Ints,
    Moves,
    five,
    geometry_refusal,
    magic,
    make_geometry,
    shares_taps,
    vector,
)
from .conv_layout import (
    box,
    far,
    lies_as_filters,
    pixel_stride,
    places_of,
    run_of,
    units,
    vector_of,
)
from .conv_reads import dgrad_read, fprop_read, repack, wgrad_reads
from .launching import Box, Facts, Launch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_KEPT = 4096  # plans of each direction


class Request(NamedTuple):
    """How a convolution is asked for, besides its tensors.

    interpreted: whether Triton's interpreter runs it. channels_last: the memory format of a new
    result; None where the operands suggest it.
    """

    moves: Moves
    config: Config
    precision: str
    channels_last: bool | None
    device: torch.device
    interpreted: bool


class Copy(NamedTuple):
    elements: int
    step: Launch


@dataclass(eq=False)
class Plan:
    """A result's size and strides, and the launch that fills it; without one, of elements that no
    product adds to, or of none. as_stored: whether the filters need no copy; otherwise one has
    `depth` channels. copies: of the first two operands, those that are read from a copy."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    step: Launch | None
    as_stored: bool = True
    depth: int = 0
    copies: tuple[Copy | None, Copy | None] = (None, None)


@dataclass(eq=False)
class FpropPlan(Plan):
    """Statistics come as `parts` of `each` of the `pixels`."""

    parts: int = 0
    each: int = 0
    pixels: int = 0


@dataclass(eq=False)
class WgradPlan(Plan):
    """Of more than one range of pixels, `step` writes partial sums and `total` adds them."""

    ranges: int = 1
    total: Launch | None = None


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs a persistent launch has."""
    if device.type != "cuda":
        return 3  # interpreted: fewer than tiles, so that a program has several
    return torch.cuda.get_device_properties(device).multi_processor_count


def _check(
    op: str, direction: str, g: ConvGeometry, asked: Request, *given: tuple[str, Facts, Ints]
) -> None:
    """given: (name, tensor, its expected size)."""
    dtype = given[0][1].dtype
    reason = None
    if dtype not in DTYPES:
        reason = f"the Triton convolutions have no {str(dtype).removeprefix('torch.')}"
    elif asked.precision not in PRECISIONS:
        reason = f"precision {asked.precision!r} is none of {', '.join(map(repr, PRECISIONS))}"
    else:
        reason = geometry_refusal(direction, g, asked.config, dtype.itemsize)
    for name, t, size in given:
        if reason is None and list(t.shape) != list(size):
            reason = f"{name} is {list(t.shape)}, not {list(size)}"
        if reason is None and t.dtype != dtype:
            reason = f"{name} is {t.dtype}, not {dtype}"
    if reason is not None:
        raise ValueError(f"{op}: {reason}")


def _shape(config: Config, depth: int, taps: int) -> dict[str, Any]:
    """The constants of a configuration, for a sum over `depth` channels and up to `taps`."""
    packed = shares_taps(depth, taps, config.block_k)
    return {
        "PACKED": packed,
        "WHOLE": not packed and depth % config.block_k == 0,
        "PERSISTENT": config.persistent,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": config.group_m,
        "num_warps": config.warps,
        "num_stages": config.stages,
        "enable_fp_fusion": True,
    }


def _precision(dtype: torch.dtype, asked: Request) -> str:
    if dtype == torch.float32:
        return asked.precision
    # Triton's interpreter multiplies bfloat16's bit patterns as integers.
    return "widened" if asked.interpreted and dtype == torch.bfloat16 else "ieee"


def _matrix(t: Facts, s: Five, pixels: int, block: Ints) -> Box | None:
    """t as a descriptor [pixels, channels], if it lies so; s of merged axes."""
    return box(t, (pixels, t.shape[1]), (s[4], s[1]), block)


def _filter_boxes(w: Facts, as_stored: bool, g: ConvGeometry, block: Ints) -> Box | None:
    """w as a descriptor [K, taps, C/groups]; a copy is aligned."""
    shape = (w.shape[0], g.taps, g.C)
    lies = w if as_stored else w._replace(aligned=True)
    return box(lies, shape, (g.taps * g.C, g.C, 1), block)


def _grid(op: str, tiles: int, asked: Request) -> int:
    if tiles > INT32:
        raise ValueError(f"{op}: {tiles} tiles are over {INT32}")
    return min(tiles, multiprocessors(asked.device)) if asked.config.persistent else tiles


def _divisors(extents: Ints) -> tuple[int, ...]:
    return tuple(v for extent in extents for v in magic(extent))


def _strides(size: Ints, channels_last: bool) -> tuple[int, ...]:
    return tuple(dense_strides(size, channels_last and len(size) > 3))


@lru_cache(_KEPT)
def plan_fprop(
    op: str,
    x: Facts,
    w: Facts,
    vectors: tuple[Facts | None, Facts | None, Facts | None],
    residual: Facts | None,
    out: Facts | None,
    ending: tuple[int, float, bool],
    stats: bool,
    asked: Request,
) -> FpropPlan:
    """vectors: bias, scale and shift. ending: the activation's number, its slope, whether
    the residual comes after it."""
    g = make_geometry(op, x.shape, w.shape, *asked.moves)
    size = g.output_size()
    last = asked.channels_last
    if last is None:
        last = strides_channels_last(x.shape, x.strides) or strides_channels_last(
            w.shape, w.strides
        )
    y = Facts(tuple(size), _strides(size, last), x.dtype, True) if out is None else out
    given = [("x", x, g.input_size()), ("w", w, w.shape), ("out", y, size)]
    if residual is not None:
        given.append(("residual", residual, size))
    _check(op, "fprop", g, asked, *given)
    for name, t in zip(("bias", "scale", "shift"), vectors, strict=True):
        if t is not None and list(t.shape) != [size[1]]:
            raise ValueError(f"{op}: {name} is {list(t.shape)}, not [K] = [{size[1]}]")
    step, as_stored, copies = None, True, (None, None)
    if prod(size) > 0:
        copy = fprop_read(g, x, asked.config).copy
        if copy is not None:
            copies = (_copy(x, copy), None)
            if copy.shape[1] > x.shape[1]:  # of one group
                w_size = (w.shape[0], copy.shape[1], *w.shape[2:])
                w = w._replace(shape=w_size, strides=_strides(w_size, False))
                g = make_geometry(op, copy.shape, w_size, *asked.moves)
                as_stored = False
            x = copy
        as_stored = as_stored and lies_as_filters(w)
        step = _fprop_step(op, x, w, as_stored, residual, y, ending, g, asked)
    block = asked.config.block_m
    parts = -(-g.pixels // block) if stats else 0
    return FpropPlan(y.shape, y.strides, step, as_stored, g.C, copies, parts, block, g.pixels)


def _copy(t: Facts, copy: Facts) -> Copy:
    return Copy(prod(copy.shape), repack(t, copy))


def _fprop_step(
    op: str,
    x: Facts,
    w: Facts,
    as_stored: bool,
    residual: Facts | None,
    y: Facts,
    ending: tuple[int, float, bool],
    g: ConvGeometry,
    asked: Request,
) -> Launch:
    config = asked.config
    x_s, y_s = five(x.strides, x.shape), five(y.strides, y.shape)
    r_s = (0, 0, 0, 0, 0)
    if residual is not None:
        r_s = five(residual.strides, residual.shape)
    places = places_of(g, [x_s, y_s, r_s])
    x_s, y_s, r_s = places.strides
    wide = far(w, *(t for t in (x, y, residual) if t is not None))
    vec_x = vector_of(x_s)
    vec_y = vector_of(y_s, *([r_s] if residual is not None else []))
    runs = (
        run_of(x, g.N, g.outs) if g.pointwise else 1,
        run_of(y, g.N, g.outs),
        1 if residual is None else run_of(residual, g.N, g.outs),
    )
    vec = (vector(g.C), vector(g.K), vec_x, vec_y, max(runs))
    tiles = -(-g.pixels // config.block_m) * g.groups * -(-g.K // config.block_n)
    constants = _shape(config, g.C, g.taps)
    boxes: dict[int, Box] = {}
    if config.descriptor:
        block = (config.block_n, 1, config.block_k)
        _put(boxes, 1, _filter_boxes(w, as_stored, g, block))
        whole = g.groups == 1 or constants["WHOLE"]  # else a block has another group's channels
        if boxes and places.rank == 0 and whole:
            _put(boxes, 0, _matrix(x, x_s, g.pixels, (config.block_m, config.block_k)))
    activation, slope, after = ending
    numbers = (
        float(slope), tiles, g.pixels // vec[4], g.C // vec[0], g.K // vec[1], *places.ins,
        *_divisors(places.outs), *units(x_s, vec_x, runs[0]), *units(y_s, vec_y, runs[1]),
        *units(r_s, vec_y, runs[2]),
    )  # fmt: skip
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, STRIDE=g.stride)
    constants.update(PADDING=g.padding, DILATION=g.dilation, VEC=vec, WIDE=wide)
    constants.update(RUNS=runs)
    constants.update(BORDER=tuple(p > 0 for p in g.padding), ACTIVATION=int(activation))
    constants.update(RESIDUAL=0 if residual is None else 1 + bool(after))
    constants.update(PRECISION=_precision(x.dtype, asked), DESCRIPTORS=len(boxes))
    name = "conv_fprop_implicit_gemm_kernel"
    return Launch(name, _grid(op, tiles, asked), numbers, constants, boxes)


def _put(boxes: dict[int, Box], at: int, found: Box | None) -> None:
    if found is not None:
        boxes[at] = found


@lru_cache(_KEPT)
def plan_dgrad(dy: Facts, w: Facts, input_size: tuple[int, ...], asked: Request) -> Plan:
    op, config = "conv_dgrad", asked.config
    g = make_geometry(op, input_size, w.shape, *asked.moves)
    _check(op, "dgrad", g, asked, ("dy", dy, g.output_size()), ("w", w, w.shape))
    dx = Facts(input_size, _strides(input_size, bool(asked.channels_last)), dy.dtype, True)
    as_stored = lies_as_filters(w)
    if prod(dx.shape) == 0 or prod(dy.shape) == 0:
        return Plan(dx.shape, dx.strides, None)
    copy = dgrad_read(g, dy, config).copy
    copies = (None if copy is None else _copy(dy, copy), None)
    dy = copy or dy
    places = places_of(g, [five(dx.strides, dx.shape), five(dy.strides, dy.shape)])
    x_s, y_s = places.strides
    runs = (
        run_of(dy, g.N, g.outs) if g.pointwise else 1,
        run_of(dx, g.N, g.ins) if g.classes == 1 else 1,
    )
    vec = (vector(g.C), vector(g.K), vector_of(y_s), vector_of(x_s), max(runs))
    extents = [-(-n // s) for n, s in zip(places.ins, g.stride, strict=True)]
    pixels = g.N * prod(g.class_extents)
    class_tiles = -(-pixels // config.block_m) * g.groups * -(-g.C // config.block_n)
    tiles = g.classes * class_tiles
    constants = _shape(config, g.K, g.class_taps)
    boxes: dict[int, Box] = {}
    if config.descriptor:
        _put(boxes, 1, _filter_boxes(w, as_stored, g, (config.block_k, 1, config.block_n)))
        if boxes and places.rank == 0:
            _put(boxes, 0, _matrix(dy, y_s, g.pixels, (config.block_m, config.block_k)))
    numbers = (
        tiles, class_tiles, pixels // vec[4], g.C // vec[0], g.K // vec[1], *places.ins,
        *places.outs, *_divisors(extents), *units(y_s, vec[2], runs[0]),
        *units(x_s, vec[3], runs[1]),
    )  # fmt: skip
    constants.update(DESCRIPTORS=len(boxes), WIDE=far(w, dx, dy), VEC=vec)
    constants.update(RUNS=runs)
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, PADDING=g.padding)
    classes = g.axis_classes
    constants.update(zip(("CLASSES_D", "CLASSES_H", "CLASSES_W"), classes, strict=True))
    constants.update(HOP=tuple(c[4] for c in classes))
    # Of its taps, the next one reached from the output before it.
    constants.update(STEP=tuple(-d // c[2] for d, c in zip(g.dilation, classes, strict=True)))
    border = tuple(r > 1 or p > 0 for r, p in zip(g.kernel, g.padding, strict=True))
    constants.update(BORDER=border, PRECISION=_precision(dy.dtype, asked))
    name = "conv_dgrad_implicit_gemm_kernel"
    step = Launch(name, _grid(op, tiles, asked), numbers, constants, boxes)
    return Plan(dx.shape, dx.strides, step, as_stored, g.C, copies)


@lru_cache(_KEPT)
def plan_wgrad(dy: Facts, x: Facts, weight_size: tuple[int, ...], asked: Request) -> WgradPlan:
    op, config = "conv_wgrad", asked.config
    g = make_geometry(op, x.shape, weight_size, *asked.moves)
    _check(op, "wgrad", g, asked, ("dy", dy, g.output_size()), ("x", x, x.shape))
    dw = Facts(weight_size, _strides(weight_size, bool(asked.channels_last)), dy.dtype, True)
    elements = prod(weight_size)
    if elements == 0 or prod(dy.shape) == 0:
        return WgradPlan(dw.shape, dw.strides, None)
    of_dy, of_x = wgrad_reads(g, dy, x, config)
    copies = tuple(
        None if read.copy is None else _copy(t, read.copy) for t, read in ((dy, of_dy), (x, of_x))
    )
    dy, x = of_dy.copy or dy, of_x.copy or x
    split, chunk = pixel_ranges(g.pixels, config)
    places = places_of(g, [five(x.strides, x.shape), five(dy.strides, dy.shape)])
    x_s, y_s = places.strides
    pixel = pixel_stride(y_s, 1 if places.rank == 0 else g.N, places.outs)
    if pixel is not None:
        y_s = (0, y_s[1], 0, 0, pixel)
    w_s = five(dw.strides, dw.shape)
    runs = run_of(dy, g.N, g.outs), run_of(x, g.N, g.outs) if g.pointwise else 1
    vec = (vector(g.C), vector(g.K), vector_of(x_s), vector_of(y_s))
    vec = (*vec, vector(vector_of(w_s), elements), max(runs))
    columns = shares_taps(g.C, g.taps, config.block_n)
    tiles_c = -(-g.taps * g.C // config.block_n) if columns else g.taps * -(-g.C // config.block_n)
    tiles = g.groups * -(-g.K // config.block_m) * tiles_c
    boxes: dict[int, Box] = {}
    if config.descriptor and pixel is not None:
        _put(boxes, 0, _matrix(dy, y_s, g.pixels, (config.block_k, config.block_m)))
        if boxes and places.rank == 0:
            _put(boxes, 1, _matrix(x, x_s, g.pixels, (config.block_k, config.block_n)))
    numbers = (
        elements // vec[4], chunk // vec[5], g.pixels // vec[5], g.C // vec[0], g.K // vec[1],
        *places.ins, *_divisors(places.outs), *units(y_s, vec[3], runs[0]),
        *units(x_s, vec[2], runs[1]), *units(w_s, vec[4]),
    )  # fmt: skip
    constants = _shape(config, g.C, g.taps)
    del constants["WHOLE"], constants["PERSISTENT"]
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, STRIDE=g.stride)
    constants.update(PADDING=g.padding, DILATION=g.dilation, VEC=vec, WIDE=far(dy, x, dw))
    constants.update(BORDER=tuple(p > 0 for p in g.padding), PACKED=columns)
    constants.update(PRECISION=_precision(dy.dtype, asked), DESCRIPTORS=len(boxes))
    constants.update(LINEAR=pixel is not None, RUNS=runs)
    name = "conv_wgrad_implicit_gemm_kernel"
    step = Launch(name, _grid(op, split * tiles, asked), numbers, constants, boxes)
    total = None
    if split > 1:
        constants = {"BLOCK": 512, "num_warps": 4, "enable_fp_fusion": True}
        total = Launch("conv_wgrad_sum_kernel", -(-elements // 512), (elements, split), constants)
    return WgradPlan(dw.shape, dw.strides, step, True, g.C, copies, split, total)


def pixel_ranges(pixels: int, config: Config) -> tuple[int, int]:
    """(how many ranges, pixels of each but the last): about config.split of equal whole blocks."""
    blocks = -(-pixels // config.block_k)
    chunk = -(-blocks // min(config.split, blocks)) * config.block_k
    return -(-pixels // chunk), chunk


@lru_cache(_KEPT)
def plan_merges(parts: int, most: int, each: int, count: int, channels: int) -> Sequence[Launch]:
    """Launches that merge statistics of `parts` tiles, `most` at a time, until one is left; of a
    tile's `each` pixels, in all `count`."""
    block_c, steps = 32, []
    while parts > 1:
        rows = -(-parts // most)
        numbers = (parts, each, count - (parts - 1) * each, channels)
        constants = {"BLOCK_PARTS": most, "BLOCK_C": block_c, "num_warps": 4}
        constants["enable_fp_fusion"] = True
        grid = rows * -(-channels // block_c)
        steps.append(Launch("conv_stats_merge_kernel", grid, numbers, constants))
        parts, each = rows, each * most
    return tuple(steps)


def forget() -> None:
    """Drops every plan."""
    for kept in (plan_fprop, plan_dgrad, plan_wgrad, plan_merges):
        kept.cache_clear()
