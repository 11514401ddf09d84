"""Launchers of the convolution kernels in Triton: fprop, dgrad, wgrad, and fprop with statistics.

Tensors of any strides; filters are copied to [K, taps, C/groups] where they are not stored so. Ask
`refusal` first. No autograd.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv.problem import dense_strides, is_channels_last

from . import INTERPRETED
from .conv_geometry import (
    INT32,
    PRECISIONS,
    Config,
    ConvGeometry,
    Five,
    Ints,
    five,
    geometry_refusal,
    magic,
    make_geometry,
    shares_taps,
    vector,
)
from .conv_layout import descriptor, far, filters, pixel_stride, places_of, units, vector_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MERGED_PARTS = 128


class Epilogue(NamedTuple):
    """activation and slope: as csrc/common/epilogue.h numbers them. residual: of y's shape, added
    before the activation or after it. scale, shift: [K], applied to the sum and the bias."""

    activation: int = 0
    slope: float = 0.0
    residual: Tensor | None = None
    residual_after: bool = False
    scale: Tensor | None = None
    shift: Tensor | None = None


@cache
def kernels() -> dict[str, Any]:
    """Every Triton kernel of the convolutions by name; imports Triton."""
    from . import conv_epilogue, conv_implicit_gemm, conv_wgrad_implicit_gemm

    return {
        name: getattr(module, name)
        for module in (conv_epilogue, conv_implicit_gemm, conv_wgrad_implicit_gemm)
        for name in vars(module)
        if name.endswith("_kernel")
    }


def launch(name: str, grid: int, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Runs kernel `name` on the device of its first argument."""
    kernel = kernels()[name][(grid,)]
    device = getattr(args[0], "base", args[0]).device  # of a tensor, or of a descriptor's
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel(*args, **constants)
        return
    with torch.cuda.device(device):
        kernel(*args, **constants)


def refusal(
    direction: str,
    input_size: Ints,
    weight_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    dtype: torch.dtype,
    config: Config,
) -> str | None:
    """None if the kernels of this direction take this problem with this configuration, else the
    reason, with the values."""
    if dtype not in DTYPES:
        return f"the Triton convolutions have no {str(dtype).removeprefix('torch.')}"
    g = make_geometry(direction, input_size, weight_size, stride, padding, dilation, groups)
    return geometry_refusal(direction, g, config, dtype.itemsize)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many programs a persistent launch has."""
    if device.type != "cuda":
        return 3  # interpreted: fewer than tiles, so that a program has several
    return torch.cuda.get_device_properties(device).multi_processor_count


def _check(op: str, direction: str, g: ConvGeometry, config: Config, precision: str, *given: Any):
    """given: (name, tensor, its expected size)."""
    dtype = given[0][1].dtype
    reason = None
    if dtype not in DTYPES:
        reason = f"the Triton convolutions have no {str(dtype).removeprefix('torch.')}"
    elif precision not in PRECISIONS:
        reason = f"precision {precision!r} is none of {', '.join(map(repr, PRECISIONS))}"
    else:
        reason = geometry_refusal(direction, g, config, dtype.itemsize)
    for name, t, size in given:
        if reason is None and list(t.shape) != list(size):
            reason = f"{name} is {list(t.shape)}, not {list(size)}"
        if reason is None and t.dtype != dtype:
            reason = f"{name} is {t.dtype}, not {dtype}"
    if reason is not None:
        raise ValueError(f"{op}: {reason}")


def _empty(like: Tensor, size: Ints, channels_last: bool) -> Tensor:
    return like.new_empty_strided(list(size), dense_strides(size, channels_last))


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


def _precision(dtype: torch.dtype, asked: str) -> str:
    if dtype == torch.float32:
        return asked
    # Triton's interpreter multiplies bfloat16's bit patterns as integers.
    return "widened" if INTERPRETED and dtype == torch.bfloat16 else "ieee"


def _matrix(t: Tensor, s: Five, pixels: int, channels: int, box: Ints) -> Any | None:
    """t as a descriptor [pixels, channels], if it lies so; s of merged axes."""
    return descriptor(t, (pixels, channels), (s[4], s[1]), box)


def _grid(op: str, tiles: int, config: Config, device: torch.device) -> int:
    if tiles > INT32:
        raise ValueError(f"{op}: {tiles} tiles are over {INT32}")
    return min(tiles, multiprocessors(device)) if config.persistent else tiles


def _divisors(extents: Ints) -> tuple[int, ...]:
    return tuple(v for extent in extents for v in magic(extent))


def conv_fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    *,
    config: Config,
    precision: str = "ieee",
    epilogue: Epilogue | tuple[Any, ...] | None = None,
    out: Tensor | None = None,
    channels_last: bool | None = None,
) -> Tensor:
    """y = the convolution of x [N, C, *in] with w [K, C/groups, *kernel], and what follows it.

    Args:
        precision: of float32 products; no matter for 16 bits.
        out: where y goes, of its size and any strides; a channel slice of a larger tensor, say.
        channels_last: the memory format of a new y; x and w suggest it by default.
    """
    y, _ = _fprop(
        x, w, bias, (stride, padding, dilation, groups), config, precision, epilogue, out,
        channels_last, False,
    )  # fmt: skip
    return y


def conv_stats(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    *,
    config: Config,
    precision: str = "ieee",
    channels_last: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, m2): each channel's mean and sum of squared distances from it, float32, of y as it
    is stored."""
    y, (mean, m2) = _fprop(
        x, w, bias, (stride, padding, dilation, groups), config, precision, None, None,
        channels_last, True,
    )  # fmt: skip
    return y, mean, m2


def _fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    lists: tuple[Ints, Ints, Ints, int],
    config: Config,
    precision: str,
    epilogue: Epilogue | tuple[Any, ...] | None,
    out: Tensor | None,
    channels_last: bool | None,
    stats: bool,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    op = "conv_stats" if stats else "conv_fprop"
    end = Epilogue(*(epilogue or ()))
    g = make_geometry(op, x.shape, w.shape, *lists)
    size = g.output_size()
    if channels_last is None:
        channels_last = is_channels_last(x, w)
    y = _empty(x, size, channels_last and g.rank > 1) if out is None else out
    given = [("x", x, g.input_size()), ("w", w, w.shape), ("out", y, size)]
    if end.residual is not None:
        given.append(("residual", end.residual, size))
    _check(op, "fprop", g, config, precision, *given)
    for name, t in (("bias", bias), ("scale", end.scale), ("shift", end.shift)):
        if t is not None and list(t.shape) != [size[1]]:
            raise ValueError(f"{op}: {name} is {list(t.shape)}, not [K] = [{size[1]}]")
    mean = m2 = None
    tiles_m = -(-g.pixels // config.block_m)
    if stats:
        mean, m2 = (x.new_empty((tiles_m, size[1]), dtype=torch.float32) for _ in range(2))
    if y.numel() > 0:
        _launch_fprop(op, x, filters(w), bias, end, y, mean, m2, g, config, precision)
    if mean is None or m2 is None:
        return y, (y, y)
    return y, _merged(mean, m2, config.block_m, g.pixels)


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _filter_boxes(w: Tensor, g: ConvGeometry, box: Ints) -> tuple[Any, int]:
    """w [K, taps, C/groups] as a descriptor, and 1; or itself, and 0."""
    boxes = descriptor(w, (w.shape[0], g.taps, g.C), (g.taps * g.C, g.C, 1), box)
    return (w, 0) if boxes is None else (boxes, 1)


def _launch_fprop(
    op: str,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    end: Epilogue,
    y: Tensor,
    mean: Tensor | None,
    m2: Tensor | None,
    g: ConvGeometry,
    config: Config,
    precision: str,
) -> None:
    x_s, y_s = five(x.stride(), x.shape), five(y.stride(), y.shape)
    r_s = (0, 0, 0, 0, 0)
    if end.residual is not None:
        r_s = five(end.residual.stride(), end.residual.shape)
    places = places_of(g, [x_s, y_s, r_s])
    x_s, y_s, r_s = places.strides
    tensors = [t for t in (x, y, end.residual) if t is not None]
    wide = far(w, *tensors)
    vec_x = vector_of(x_s)
    vec_y = vector_of(y_s, *([r_s] if end.residual is not None else []))
    vec = (vector(g.C), vector(g.K), vec_x, vec_y)
    tiles = -(-g.pixels // config.block_m) * g.groups * -(-g.K // config.block_n)
    source, taken, descriptors = x, w, 0
    constants = _shape(config, g.C, g.taps)
    if config.descriptor:
        box = (config.block_n, 1, config.block_k)
        taken, descriptors = _filter_boxes(w, g, box)
        whole = g.groups == 1 or constants["WHOLE"]  # else a block has another group's channels
        if descriptors and places.rank == 0 and whole:
            box = (config.block_m, config.block_k)
            matrix = _matrix(x, x_s, g.pixels, x.shape[1], box)
            source, descriptors = (x, 1) if matrix is None else (matrix, 2)
    args = (
        source, taken, _contiguous(bias), _contiguous(end.scale), _contiguous(end.shift),
        end.residual, y, mean, m2, float(end.slope), tiles, g.pixels, g.C // vec[0],
        g.K // vec[1], *places.ins, *_divisors(places.outs), *units(x_s, vec_x),
        *units(y_s, vec_y), *units(r_s, vec_y),
    )  # fmt: skip
    residual = 0 if end.residual is None else 1 + bool(end.residual_after)
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, STRIDE=g.stride)
    constants.update(PADDING=g.padding, DILATION=g.dilation, VEC=vec, WIDE=wide)
    constants.update(BORDER=tuple(p > 0 for p in g.padding), ACTIVATION=int(end.activation))
    constants.update(RESIDUAL=residual, PRECISION=_precision(x.dtype, precision))
    constants.update(DESCRIPTORS=descriptors)
    name = "conv_fprop_implicit_gemm_kernel"
    launch(name, _grid(op, tiles, config, x.device), args, constants)


def conv_dgrad(
    dy: Tensor,
    w: Tensor,
    input_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    *,
    config: Config,
    precision: str = "ieee",
    channels_last: bool = False,
) -> Tensor:
    """dx [N, C, *in] of dy [N, K, *out] and w [K, C/groups, *kernel]; arguments as `conv_fprop`."""
    op = "conv_dgrad"
    g = make_geometry(op, input_size, w.shape, stride, padding, dilation, groups)
    given = (("dy", dy, g.output_size()), ("w", w, w.shape))
    _check(op, "dgrad", g, config, precision, *given)
    dx = _empty(dy, input_size, channels_last and g.rank > 1)
    if dx.numel() == 0:
        return dx
    if dy.numel() == 0:
        return dx.zero_()
    w = filters(w)
    places = places_of(g, [five(dx.stride(), dx.shape), five(dy.stride(), dy.shape)])
    x_s, y_s = places.strides
    wide = far(w, dx, dy)
    vec = (vector(g.C), vector(g.K), vector_of(y_s), vector_of(x_s))
    extents = [-(-n // s) for n, s in zip(places.ins, g.stride, strict=True)]
    pixels = g.N * prod(g.class_extents)
    class_tiles = -(-pixels // config.block_m) * g.groups * -(-g.C // config.block_n)
    tiles = g.classes * class_tiles
    constants = _shape(config, g.K, g.class_taps)
    source, taken, descriptors = dy, w, 0
    if config.descriptor:
        taken, descriptors = _filter_boxes(w, g, (config.block_k, 1, config.block_n))
        if descriptors and places.rank == 0:
            box = (config.block_m, config.block_k)
            matrix = _matrix(dy, y_s, g.pixels, dy.shape[1], box)
            source, descriptors = (dy, 1) if matrix is None else (matrix, 2)
    args = (
        source, taken, dx, tiles, class_tiles, pixels, g.C // vec[0], g.K // vec[1], *places.ins,
        *places.outs, *_divisors(extents), *units(y_s, vec[2]), *units(x_s, vec[3]),
    )  # fmt: skip
    constants.update(DESCRIPTORS=descriptors)
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, PADDING=g.padding)
    classes = g.axis_classes
    constants.update(zip(("CLASSES_D", "CLASSES_H", "CLASSES_W"), classes, strict=True))
    constants.update(HOP=tuple(c[4] for c in classes))
    # Of its taps, the next one reached from the output before it.
    constants.update(STEP=tuple(-d // c[2] for d, c in zip(g.dilation, classes, strict=True)))
    border = tuple(r > 1 or p > 0 for r, p in zip(g.kernel, g.padding, strict=True))
    constants.update(BORDER=border, PRECISION=_precision(dy.dtype, precision), WIDE=wide, VEC=vec)
    name = "conv_dgrad_implicit_gemm_kernel"
    launch(name, _grid(op, tiles, config, dy.device), args, constants)
    return dx


def conv_wgrad(
    dy: Tensor,
    x: Tensor,
    weight_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    *,
    config: Config,
    precision: str = "ieee",
    channels_last: bool = False,
) -> Tensor:
    """dw [K, C/groups, *kernel] of dy [N, K, *out] and x [N, C, *in]; arguments as `conv_fprop`."""
    op = "conv_wgrad"
    g = make_geometry(op, x.shape, weight_size, stride, padding, dilation, groups)
    _check(op, "wgrad", g, config, precision, ("dy", dy, g.output_size()), ("x", x, x.shape))
    dw = _empty(dy, weight_size, channels_last and g.rank > 1)
    if dw.numel() == 0:
        return dw
    if dy.numel() == 0:
        return dw.zero_()
    split, chunk = pixel_ranges(g.pixels, config)
    result = dw
    if split > 1:
        result = dw.new_empty(split * dw.numel(), dtype=torch.float32)
    places = places_of(g, [five(x.stride(), x.shape), five(dy.stride(), dy.shape)])
    x_s, y_s = places.strides
    pixel = pixel_stride(y_s, 1 if places.rank == 0 else g.N, places.outs)
    if pixel is not None:
        y_s = (0, y_s[1], 0, 0, pixel)
    wide = far(dy, x, dw)
    w_s = five(dw.stride(), dw.shape)
    vec = (vector(g.C), vector(g.K), vector_of(x_s), vector_of(y_s))
    vec = (*vec, vector(vector_of(w_s), dw.numel()))
    columns = shares_taps(g.C, g.taps, config.block_n)
    tiles_c = -(-g.taps * g.C // config.block_n) if columns else g.taps * -(-g.C // config.block_n)
    tiles = g.groups * -(-g.K // config.block_m) * tiles_c
    source, sent, descriptors = x, dy, 0
    if config.descriptor and pixel is not None:
        matrix = _matrix(dy, y_s, g.pixels, dy.shape[1], (config.block_k, config.block_m))
        sent, descriptors = (dy, 0) if matrix is None else (matrix, 1)
        if descriptors and places.rank == 0:
            matrix = _matrix(x, x_s, g.pixels, x.shape[1], (config.block_k, config.block_n))
            source, descriptors = (x, 1) if matrix is None else (matrix, 2)
    args = (
        sent, source, result, dw.numel() // vec[4], chunk, g.pixels, g.C // vec[0], g.K // vec[1],
        *places.ins, *_divisors(places.outs), *units(y_s, vec[3]), *units(x_s, vec[2]),
        *units(w_s, vec[4]),
    )  # fmt: skip
    constants = _shape(config, g.C, g.taps)
    del constants["WHOLE"], constants["PERSISTENT"]
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, STRIDE=g.stride)
    constants.update(
        PADDING=g.padding, DILATION=g.dilation, VEC=vec, WIDE=wide, LINEAR=pixel is not None
    )
    constants.update(BORDER=tuple(p > 0 for p in g.padding), PACKED=columns)
    constants.update(PRECISION=_precision(dy.dtype, precision), DESCRIPTORS=descriptors)
    name = "conv_wgrad_implicit_gemm_kernel"
    launch(name, _grid(op, split * tiles, config, dy.device), args, constants)
    if split > 1:
        constants = {"BLOCK": 512, "num_warps": 4, "enable_fp_fusion": True}
        args = (result, dw, dw.numel(), split)
        launch("conv_wgrad_sum_kernel", -(-dw.numel() // 512), args, constants)
    return dw


def pixel_ranges(pixels: int, config: Config) -> tuple[int, int]:
    """(how many ranges, pixels of each but the last): about config.split of equal whole blocks."""
    blocks = -(-pixels // config.block_k)
    chunk = -(-blocks // min(config.split, blocks)) * config.block_k
    return -(-pixels // chunk), chunk


def _merged(mean: Tensor, m2: Tensor, each: int, count: int) -> tuple[Tensor, Tensor]:
    """[parts, K] of `each` values (the last one of what is left of `count`) -> [K]."""
    channels = mean.shape[1]
    block_c = 32
    while mean.shape[0] > 1:
        parts = mean.shape[0]
        rows = -(-parts // _MERGED_PARTS)
        mean_out, m2_out = (mean.new_empty((rows, channels)) for _ in range(2))
        args = (mean, m2, mean_out, m2_out, parts, each, count - (parts - 1) * each, channels)
        constants = {"BLOCK_PARTS": _MERGED_PARTS, "BLOCK_C": block_c, "num_warps": 4}
        constants["enable_fp_fusion"] = True
        launch("conv_stats_merge_kernel", rows * -(-channels // block_c), args, constants)
        mean, m2, each = mean_out, m2_out, each * _MERGED_PARTS
    return mean[0], m2[0]
