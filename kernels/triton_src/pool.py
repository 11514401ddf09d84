"""Launchers of the pooling kernels in Triton: one function per bare pooling op.

Names, arguments and results are those of `torch.ops.fastconv.<name>` (csrc/common/pool_ops.h); the
memory format of a result is, too. Tensors of any strides; ask `fastconv._triton.applicable` first.
No autograd.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastconv.problem import dense_strides, suggests_channels_last

from .pool_geometry import Ints, PoolGeometry, make_geometry, tile

MAX_BYTE_TAPS = 255
_NONE, _BYTE, _PLACE = 0, 1, 2


@cache
def kernels() -> dict[str, Any]:
    """Every Triton kernel of the poolings by name; imports Triton."""
    from . import pool_backward, pool_forward

    return {
        name: getattr(module, name)
        for module in (pool_forward, pool_backward)
        for name in vars(module)
        if name.endswith("_kernel")
    }


def launch(name: str, grid: int, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Runs kernel `name` on the device of its first argument."""
    kernel = kernels()[name][(grid,)]
    if args[0].device.type != "cuda" or args[0].device.index == torch.cuda.current_device():
        kernel(*args, **constants)
        return
    with torch.cuda.device(args[0].device):
        kernel(*args, **constants)


def _launch(
    name: str,
    g: PoolGeometry,
    tensors: tuple[Any, ...],
    result: Tensor,
    *more: int,
    **constants: Any,
) -> None:
    """Launches over the elements of `result`, with what all kernels are told."""
    rows = result.numel() // g.inner
    block_m, block_c, warps = tile(rows, g.inner, result.element_size())
    args = (*tensors, rows, g.inner, *g.ins, *g.outs, *more)
    constants.update(KERNEL=g.kernel, STRIDE=g.stride, PADDING=g.padding, WIDE=g.wide)
    constants.update(BLOCK_M=block_m, BLOCK_C=block_c, num_warps=warps)
    # A multiply and an add may become one: no sum that is compared to the bit has a product in it.
    constants["enable_fp_fusion"] = True
    if name != "max_pool_at_kernel":  # which computes nothing
        constants["ACC"] = _acc(result.dtype)
    launch(name, -(-rows // block_m) * -(-g.inner // block_c), args, constants)


def _acc(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def _dense(t: Tensor, channels_last: bool) -> Tensor:
    strides = dense_strides(t.shape, channels_last)
    have = t.stride()
    if all(n <= 1 or have[i] == strides[i] for i, n in enumerate(t.shape)):
        return t
    return _empty(t, t.shape, channels_last, t.dtype).copy_(t)


def _empty(like: Tensor, size: Ints, channels_last: bool, dtype: torch.dtype) -> Tensor:
    strides = dense_strides(size, channels_last)
    return torch.empty_strided(size, strides, dtype=dtype, device=like.device)


def _index_kind(op: str, index: Tensor) -> int:
    if index.dtype not in (torch.uint8, torch.int64):
        raise ValueError(f"{op}: index must be uint8 or int64, got {index.dtype}")
    return _BYTE if index.dtype == torch.uint8 else _PLACE


def _ones(like: Ints) -> list[int]:
    return [1] * len(like)


def _choosing(
    op: str,
    x: Tensor,
    seed: Tensor | None,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    index: int,
) -> tuple[Tensor, Tensor]:
    last = suggests_channels_last(x)
    lists = (kernel, stride, padding, dilation)
    g = make_geometry(op, x.shape, *lists, last, ceil_mode=ceil_mode)
    if index == _BYTE and g.kernel[0] * g.kernel[1] * g.kernel[2] > MAX_BYTE_TAPS:
        raise ValueError(f"{op}: a byte cannot tell the taps of a window of {g.kernel} apart")
    size = g.size(g.outs)
    y = _empty(x, size, last, x.dtype)
    dtype = torch.int64 if index == _PLACE else torch.uint8
    kept = x.new_empty(0, dtype=dtype) if index == _NONE else _empty(x, size, last, dtype)
    if y.numel() == 0:
        return y, kept
    tensors = (_dense(x, last), *(() if seed is None else (seed,)), y, kept)
    known = {"DILATION": g.dilation} if seed is None else {}
    _launch(op + "_kernel", g, tensors, y, INDEX=index, BORDER=g.border, **known)
    return y, kept


def max_pool_fprop(
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    ceil_mode: bool,
    index: int,
) -> tuple[Tensor, Tensor]:
    lists = (kernel, stride, padding, dilation)
    return _choosing("max_pool_fprop", x, None, *lists, ceil_mode, index)


def sample_pool_fprop(
    x: Tensor,
    seed: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    index: int,
) -> tuple[Tensor, Tensor]:
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise ValueError("sample_pool_fprop: the seed must be one int64")
    lists = (kernel, stride, padding, _ones(kernel))
    return _choosing("sample_pool_fprop", x, seed, *lists, ceil_mode, index)


def max_pool_dgrad(
    dy: Tensor,
    index: Tensor,
    input_size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    channels_last: bool,
) -> Tensor:
    op = "max_pool_dgrad"
    last = channels_last and len(kernel) > 1
    lists = (kernel, stride, padding, dilation)
    g = make_geometry(op, input_size, *lists, last, output_size=dy.shape)
    kind = _index_kind(op, index)
    if index.shape != dy.shape:
        raise ValueError(f"{op}: dy and index differ in shape")
    dx = _empty(dy, input_size, last, dy.dtype)
    if dx.numel() == 0:
        return dx
    tensors = (_dense(dy, last), _dense(index, last), dx)
    _launch(op + "_kernel", g, tensors, dx, DILATION=g.dilation, REACH=g.reach, INDEX=kind)
    return dx


def max_pool_at(
    x: Tensor, index: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    op = "max_pool_at"
    last = suggests_channels_last(x)
    lists = (kernel, stride, padding, dilation)
    g = make_geometry(op, x.shape, *lists, last, output_size=index.shape)
    kind = _index_kind(op, index)
    y = _empty(x, index.shape, last, x.dtype)
    if y.numel() == 0:
        return y
    tensors = (_dense(x, last), _dense(index, last), y)
    _launch(op + "_kernel", g, tensors, y, DILATION=g.dilation, INDEX=kind)
    return y


def _divisor(g: PoolGeometry, divisor: int) -> tuple[int, bool]:
    """What to divide by, and whether windows are counted; without a border all count the same."""
    if divisor == 0 and not g.border:
        return g.kernel[0] * g.kernel[1] * g.kernel[2], False
    return divisor, divisor == 0


def sum_pool_fprop(
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    include_pad: bool,
    divisor: int,
) -> Tensor:
    op = "sum_pool_fprop"
    last = suggests_channels_last(x)
    lists = (kernel, stride, padding, _ones(kernel))
    g = make_geometry(op, x.shape, *lists, last, ceil_mode=ceil_mode)
    y = _empty(x, g.size(g.outs), last, x.dtype)
    if y.numel() == 0:
        return y
    over, counted = _divisor(g, divisor)
    known = {"COUNTED": counted, "INCLUDE_PAD": counted and include_pad, "BORDER": g.border}
    _launch(op + "_kernel", g, (_dense(x, last), y), y, over, **known)
    return y


def sum_pool_dgrad(
    dy: Tensor,
    input_size: Ints,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    include_pad: bool,
    divisor: int,
    channels_last: bool,
) -> Tensor:
    op = "sum_pool_dgrad"
    last = channels_last and len(kernel) > 1
    lists = (kernel, stride, padding, _ones(kernel))
    g = make_geometry(op, input_size, *lists, last, output_size=dy.shape)
    dx = _empty(dy, input_size, last, dy.dtype)
    if dx.numel() == 0:
        return dx
    over, counted = _divisor(g, divisor)
    known = {"COUNTED": counted, "INCLUDE_PAD": counted and include_pad, "REACH": g.reach}
    _launch(op + "_kernel", g, (_dense(dy, last), dx), dx, over, **known)
    return dx


def lp_pool_fprop(
    x: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    ceil_mode: bool,
    power: float,
    rescale: bool,
) -> Tensor:
    op = "lp_pool_fprop"
    last = suggests_channels_last(x)
    lists = (kernel, stride, padding, _ones(kernel))
    g = make_geometry(op, x.shape, *lists, last, ceil_mode=ceil_mode)
    y = _empty(x, g.size(g.outs), last, x.dtype)
    if y.numel() == 0:
        return y
    known = {"POWER": _exponent(op, power), "RESCALE": rescale and g.border, "BORDER": g.border}
    _launch(op + "_kernel", g, (_dense(x, last), y), y, **known)
    return y


def lp_pool_dgrad(
    dy: Tensor,
    x: Tensor,
    y: Tensor,
    kernel: Ints,
    stride: Ints,
    padding: Ints,
    power: float,
    rescale: bool,
) -> Tensor:
    op = "lp_pool_dgrad"
    last = suggests_channels_last(x)
    lists = (kernel, stride, padding, _ones(kernel))
    g = make_geometry(op, x.shape, *lists, last, output_size=dy.shape)
    if y.shape != dy.shape or x.dtype != dy.dtype or y.dtype != dy.dtype:
        raise ValueError(f"{op}: dy, x and y differ in dtype, or dy and y in shape")
    dx = _empty(x, x.shape, last, x.dtype)
    if dx.numel() == 0:
        return dx
    tensors = (_dense(dy, last), _dense(x, last), _dense(y, last), dx)
    known = {"POWER": _exponent(op, power), "RESCALE": rescale and g.border, "REACH": g.reach}
    _launch(op + "_kernel", g, tensors, dx, **known)
    return dx


def expectation_pool_fprop(
    x: Tensor, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool
) -> Tensor:
    op = "expectation_pool_fprop"
    last = suggests_channels_last(x)
    lists = (kernel, stride, padding, _ones(kernel))
    g = make_geometry(op, x.shape, *lists, last, ceil_mode=ceil_mode)
    y = _empty(x, g.size(g.outs), last, x.dtype)
    if y.numel() > 0:
        _launch(op + "_kernel", g, (_dense(x, last), y), y, BORDER=g.border)
    return y


def _exponent(op: str, power: float) -> float | int:
    """Whole ones as integers, which the compiler tells apart from others."""
    if not power > 0:
        raise ValueError(f"{op}: the power must be positive, got {power}")
    return int(power) if float(power).is_integer() else float(power)
