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
    span,
    vector,
)

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
    device = args[0].device
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
    return geometry_refusal(direction, g, config)


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
        reason = geometry_refusal(direction, g, config)
    for name, t, size in given:
        if reason is None and list(t.shape) != list(size):
            reason = f"{name} is {list(t.shape)}, not {list(size)}"
        if reason is None and t.dtype != dtype:
            reason = f"{name} is {t.dtype}, not {dtype}"
    if reason is not None:
        raise ValueError(f"{op}: {reason}")


def _empty(like: Tensor, size: Ints, channels_last: bool) -> Tensor:
    return like.new_empty_strided(list(size), dense_strides(size, channels_last))


def filters(w: Tensor) -> Tensor:
    """w [K, C/groups, taps] as a dense [K, taps, C/groups]; a copy unless it lies so already."""
    return w.movedim(1, -1).contiguous()


def _merge(strides: Five, extents: Ints) -> Five | None:
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


def _pixel_stride(strides: Five, images: int, extents: Ints) -> int | None:
    """The distance of neighbouring pixels, over all images, if it is the same everywhere."""
    merged, count = _merge(strides, extents), prod(extents)
    if merged is None:
        return None
    if images == 1 or count == 1:
        return merged[4] if images == 1 else merged[0]
    return merged[4] if merged[0] == merged[4] * count else None


class _Places(NamedTuple):
    """How pixels map to memory: axes, their extents, and strides of each tensor."""

    rank: int
    ins: Ints
    outs: Ints
    strides: list[Five]


def _places(g: ConvGeometry, strides: list[Five]) -> _Places:
    """Of a pointwise problem the axes are merged into as few as they are in every tensor."""
    if g.pointwise:
        count = prod(g.outs)
        flat = [_pixel_stride(s, g.N, g.outs) for s in strides]
        if None not in flat:
            single = (1, 1, g.N * count)
            rows = [(0, s[1], 0, 0, v) for s, v in zip(strides, flat, strict=True)]
            return _Places(0, single, single, rows)  # type: ignore[arg-type]
        merged = [_merge(s, g.outs) for s in strides]
        if None not in merged:
            return _Places(1, (1, 1, count), (1, 1, count), merged)  # type: ignore[arg-type]
    return _Places(g.rank, g.ins, g.outs, strides)


def _vector_of(*tensors: Five) -> int:
    """The unit that strides can be counted in, but those of channels."""
    if any(s[1] != 1 for s in tensors):
        return 1
    return vector(*(v for s in tensors for v in (s[0], *s[2:])))


def _units(s: Five, by: int) -> Five:
    return s[0] // by, s[1], s[2] // by, s[3] // by, s[4] // by


def _packed(depth: int, taps: int, block_k: int) -> bool:
    """Whether several taps share a block: where blocks of one tap's channels would be part empty,
    a quarter of the steps at least is worth the arithmetic that finds each product's tap."""
    apart = taps * -(-depth // block_k)
    return taps > 1 and 4 * -(-depth * taps // block_k) <= 3 * apart


def _shape(config: Config, depth: int, taps: int) -> dict[str, Any]:
    """The constants of a configuration, for a sum over `depth` channels and up to `taps`."""
    packed = _packed(depth, taps, config.block_k)
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
    places = _places(g, [x_s, y_s, r_s])
    x_s, y_s, r_s = places.strides
    tensors = [t for t in (x, y, end.residual) if t is not None]
    wide = max(w.numel(), *(span(t.stride(), t.shape) for t in tensors)) > INT32
    vec_x = _vector_of(x_s)
    vec_y = _vector_of(y_s, *([r_s] if end.residual is not None else []))
    vec = (vector(g.C), vector(g.K), vec_x, vec_y)
    tiles = -(-g.pixels // config.block_m) * g.groups * -(-g.K // config.block_n)
    args = (
        x, w, _contiguous(bias), _contiguous(end.scale), _contiguous(end.shift), end.residual, y,
        mean, m2, float(end.slope), tiles, g.pixels, g.C // vec[0], g.K // vec[1], *places.ins,
        *_divisors(places.outs), *_units(x_s, vec_x), *_units(y_s, vec_y), *_units(r_s, vec_y),
    )  # fmt: skip
    constants = _shape(config, g.C, g.taps)
    residual = 0 if end.residual is None else 1 + bool(end.residual_after)
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, STRIDE=g.stride)
    constants.update(PADDING=g.padding, DILATION=g.dilation, VEC=vec, WIDE=wide)
    constants.update(BORDER=tuple(p > 0 for p in g.padding), ACTIVATION=int(end.activation))
    constants.update(RESIDUAL=residual, PRECISION=_precision(x.dtype, precision))
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
    places = _places(g, [five(dx.stride(), dx.shape), five(dy.stride(), dy.shape)])
    x_s, y_s = places.strides
    wide = max(w.numel(), *(span(t.stride(), t.shape) for t in (dx, dy))) > INT32
    vec = (vector(g.C), vector(g.K), _vector_of(y_s), _vector_of(x_s))
    extents = [-(-n // s) for n, s in zip(places.ins, g.stride, strict=True)]
    pixels = g.N * prod(g.class_extents)
    class_tiles = -(-pixels // config.block_m) * g.groups * -(-g.C // config.block_n)
    tiles = g.classes * class_tiles
    args = (
        dy, w, dx, tiles, class_tiles, pixels, g.C // vec[0], g.K // vec[1], *places.ins,
        *places.outs, *_divisors(extents), *_units(y_s, vec[2]), *_units(x_s, vec[3]),
    )  # fmt: skip
    constants = _shape(config, g.K, g.class_taps)
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, PADDING=g.padding)
    constants.update(zip(("CLASSES_D", "CLASSES_H", "CLASSES_W"), g.axis_classes, strict=True))
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
    places = _places(g, [five(x.stride(), x.shape), five(dy.stride(), dy.shape)])
    x_s, y_s = places.strides
    pixel = _pixel_stride(y_s, 1 if places.rank == 0 else g.N, places.outs)
    if pixel is not None:
        y_s = (0, y_s[1], 0, 0, pixel)
    wide = max(span(t.stride(), t.shape) for t in (dy, x)) > INT32
    w_s = five(dw.stride(), dw.shape)
    vec = (vector(g.C), vector(g.K), _vector_of(x_s), _vector_of(y_s), _vector_of(w_s))
    columns = _packed(g.C, g.taps, config.block_n)
    tiles_c = -(-g.taps * g.C // config.block_n) if columns else g.taps * -(-g.C // config.block_n)
    tiles = g.groups * -(-g.K // config.block_m) * tiles_c
    args = (
        dy, x, result, dw.numel(), chunk, g.pixels, g.C // vec[0], g.K // vec[1], *places.ins,
        *_divisors(places.outs), *_units(y_s, vec[3]), *_units(x_s, vec[2]),
        *_units(w_s, vec[4]),
    )  # fmt: skip
    constants = _shape(config, g.C, g.taps)
    del constants["WHOLE"], constants["PERSISTENT"]
    constants.update(RANK=places.rank, GROUPS=g.groups, KERNEL=g.kernel, STRIDE=g.stride)
    constants.update(
        PADDING=g.padding, DILATION=g.dilation, VEC=vec, WIDE=wide, LINEAR=pixel is not None
    )
    constants.update(BORDER=tuple(p > 0 for p in g.padding), PACKED=columns)
    constants.update(PRECISION=_precision(dy.dtype, precision))
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
