"""Launchers of the depthwise convolutions in Triton, in the three directions.

Tensors of any strides; results are dense in the memory format asked for, or a given channel slice.
No autograd. Imports Triton at the first launch.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv.problem import conv_output_size, dense_strides, is_channels_last

from .pool_geometry import Ints, Triple

_INT32 = 2**31 - 2**20  # leaves room for places beyond the last tile's end
_ROW = 8  # taps of a filter row that a program of wgrad has at most
_SUM_BLOCK = 256
# Slices of the places in wgrad: two programs for each multiprocessor of a large GPU. A constant, so
# that the order of a sum is the problem's alone.
_PROGRAMS = 528
_LEAST_STEPS = 8  # tiles that a slice of wgrad has at least


class Config(NamedTuple):
    """A tile: places, channels (1 in the contiguous layout), warps."""

    block_m: int
    block_c: int
    warps: int

    @property
    def name(self) -> str:
        return f"m{self.block_m}_c{self.block_c}_w{self.warps}"


def refusal(
    input_size: Ints, weight_size: Ints, groups: int, channels_last: bool, config: Config
) -> str | None:
    """Why the kernels do not take this problem in tiles of this kind; None if they do."""
    if weight_size[1] != 1 or groups != input_size[1]:
        return (
            f"takes depthwise problems only, got {input_size[1]} channels in {groups} groups of"
            f" {weight_size[1]}"
        )
    channels_last = channels_last and len(input_size) > 3
    if channels_last != (config.block_c > 1):
        layout = "channels_last" if channels_last else "contiguous"
        return f"tiles of {config.block_c} channels are not for the {layout} format"
    return None


@cache
def kernels() -> dict[str, Any]:
    """Every kernel of the depthwise convolutions by name; imports Triton."""
    from . import conv_depthwise

    return {n: k for n, k in vars(conv_depthwise).items() if n.endswith("_kernel")}


def launch(name: str, grid: int, args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Runs kernel `name` on the device of its first argument."""
    constants = {**constants, "enable_fp_fusion": True}
    kernel = kernels()[name][(grid,)]
    if args[0].device.type != "cuda" or args[0].device.index == torch.cuda.current_device():
        kernel(*args, **constants)
        return
    with torch.cuda.device(args[0].device):
        kernel(*args, **constants)


def _triple(values: Ints, fill: int) -> Triple:
    return (fill,) * (3 - len(values)) + tuple(int(v) for v in values)  # type: ignore[return-value]


class _Moves(NamedTuple):
    """What the kernels know at compile time of how the filter moves."""

    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple

    def constants(self) -> dict[str, Any]:
        return {
            "KERNEL": self.kernel,
            "STRIDE": self.stride,
            "PADDING": self.padding,
            "DILATION": self.dilation,
        }

    def border(self, ins: Triple, outs: Triple) -> bool:
        """Whether a tap may lie outside the input."""
        return any(
            p > 0 or (o - 1) * s + d * (k - 1) >= n
            for n, o, k, s, p, d in zip(ins, outs, *self, strict=True)
        )


def _moves(weight_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> _Moves:
    return _Moves(
        _triple(weight_size[2:], 1), _triple(stride, 1), _triple(padding, 0), _triple(dilation, 1)
    )


def _empty(like: Tensor, size: Ints, channels_last: bool) -> Tensor:
    strides = dense_strides(size, channels_last)
    return torch.empty_strided(size, strides, dtype=like.dtype, device=like.device)


def _place_stride(t: Tensor) -> int | None:
    """Between neighbouring places; None where they are not equally far apart throughout."""
    step = run = 1  # axes of one entry have strides without a meaning
    for axis in range(t.dim() - 1, 1, -1):
        if t.shape[axis] == 1:
            continue
        if run == 1:
            step = t.stride(axis)
        elif t.stride(axis) != step * run:
            return None
        run *= t.shape[axis]
    return step


def _strides(t: Tensor) -> tuple[int, int, int]:
    """Of image, channel and place."""
    step = _place_stride(t)
    if step is None:
        raise ValueError(f"strides {t.stride()} of a tensor of size {list(t.shape)} are not dense")
    return t.stride(0), t.stride(1), step


def _readable(t: Tensor, channels_last: bool) -> Tensor:
    """t, or a dense copy where what a warp reads together would lie apart."""
    step = _place_stride(t)
    close = t.stride(1) == 1 or t.shape[1] == 1 if channels_last else step == 1
    if step is not None and close:
        return t
    return _empty(t, t.shape, channels_last).copy_(t)


def _wide(*tensors: Tensor) -> bool:
    """Whether an offset needs 64 bits."""
    return any(
        sum((n - 1) * abs(s) for n, s in zip(t.shape, t.stride(), strict=True)) >= _INT32
        or t.numel() >= _INT32
        for t in tensors
    )


def _filter(w: Tensor, transposed: bool) -> tuple[Tensor, int, int]:
    """w as rows of taps, or of channels, and its strides of channel and tap."""
    K, taps = w.shape[0], prod(w.shape[2:])
    flat = w.reshape(K, taps)  # the channel axis has one entry: either dense format is this
    if not flat.is_contiguous():
        flat = flat.contiguous()
    if not transposed or taps == 1:
        return flat, taps, 1
    turned = torch.empty(taps, K, dtype=w.dtype, device=w.device)
    constants = {"TAPS": taps, "BLOCK": _SUM_BLOCK, "num_warps": 4}
    launch("conv_depthwise_filter_kernel", -(-K * taps // _SUM_BLOCK), (flat, turned, K), constants)
    return turned, 1, K


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
    epilogue: tuple[Any, ...] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """y (N, K, *out) of x (N, C, *in) and w (K, 1, *kernel), which is `out` where that is given.

    epilogue: (activation's number, slope, residual, residual_after, scale, shift). precision: any;
    sums are IEEE.
    """
    channels_last = is_channels_last(x, w)
    size = conv_output_size(x.shape, w.shape, stride, padding, dilation)
    y = _empty(x, size, channels_last) if out is None else out
    code, slope, residual, after, scale, shift = epilogue or (0, 0.0, None, False, None, None)
    x = _readable(x, channels_last)
    f, w_k, w_t = _filter(w, config.block_c > 1)
    moves = _moves(w.shape, stride, padding, dilation)
    ins, outs = _triple(x.shape[2:], 1), _triple(size[2:], 1)
    if residual is not None:
        residual = _readable(residual, channels_last)
    rows, K = size[0] * prod(outs), size[1]
    # What is not there is never read; x stands in for its address.
    small = [x if t is None else t.contiguous() for t in (bias, scale, shift)]
    others = () if residual is None else (residual,)
    args = (
        x, f, *small, x if residual is None else residual, y, rows, K, *ins, *outs,
        *_strides(x), w_k, w_t, *_strides(y), *_strides(y if residual is None else residual),
        float(slope),
    )  # fmt: skip
    constants = {
        **moves.constants(),
        "MULTIPLIER": K // x.shape[1],
        "BIAS": bias is not None,
        "SCALE": scale is not None,
        "RESIDUAL": 0 if residual is None else 2 if after else 1,
        "ACTIVATION": int(code),
        "BORDER": moves.border(ins, outs),
        "WIDE": _wide(x, y, *others),
        "BLOCK_M": config.block_m,
        "BLOCK_C": config.block_c,
        "num_warps": config.warps,
    }
    grid = -(-rows // config.block_m) * -(-K // config.block_c)
    launch("conv_fprop_depthwise_kernel", grid, args, constants)
    return y


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
    """dx (N, C, *in) of dy (N, K, *out)."""
    channels_last = channels_last and dy.dim() > 3
    dx = _empty(dy, input_size, channels_last)
    dy = _readable(dy, channels_last)
    f, w_k, w_t = _filter(w, config.block_c > 1)
    moves = _moves(w.shape, stride, padding, dilation)
    ins, outs = _triple(input_size[2:], 1), _triple(dy.shape[2:], 1)
    C = input_size[1]
    rows = input_size[0] * prod(-(-n // s) for n, s in zip(ins, moves.stride, strict=True))
    args = (
        dy, f, dx, rows, C, *ins, *outs, *_strides(dy), w_k, w_t, *_strides(dx),
    )  # fmt: skip
    constants = {
        **moves.constants(),
        "MULTIPLIER": w.shape[0] // C,
        "WIDE": _wide(dx, dy),
        "BLOCK_M": config.block_m,
        "BLOCK_C": config.block_c,
        "num_warps": config.warps,
    }
    tiles = -(-rows // config.block_m) * -(-C // config.block_c)
    launch("conv_dgrad_depthwise_kernel", tiles * prod(moves.stride), args, constants)
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
    """dw (K, 1, *kernel) of dy (N, K, *out) and x (N, C, *in)."""
    channels_last = channels_last and dy.dim() > 3
    dw = _empty(dy, weight_size, channels_last)
    dy = _readable(dy, channels_last)
    x = _readable(x, channels_last)
    moves = _moves(weight_size, stride, padding, dilation)
    ins, outs = _triple(x.shape[2:], 1), _triple(dy.shape[2:], 1)
    rows, K, taps = dy.shape[0] * prod(outs), dy.shape[1], prod(moves.kernel)
    row_taps = min(1 << (moves.kernel[2] - 1).bit_length(), _ROW)
    block_m = max(config.block_m // row_taps, 1)
    programs = moves.kernel[0] * moves.kernel[1] * -(-moves.kernel[2] // row_taps)
    programs *= -(-K // config.block_c)
    steps = -(-rows // block_m)
    per_split = -(-steps // wgrad_splits(programs, steps)) * block_m
    splits = -(-rows // per_split)
    partial = torch.empty(splits, K, taps, dtype=torch.float32, device=dy.device)
    args = (
        dy, x, partial, rows, K, *ins, *outs, *_strides(dy), *_strides(x), per_split, splits,
    )  # fmt: skip
    constants = {
        **moves.constants(),
        "MULTIPLIER": K // x.shape[1],
        "WIDE": _wide(x, dy),
        "TAPS": row_taps,
        "BLOCK_M": block_m,
        "BLOCK_C": config.block_c,
        "num_warps": config.warps,
    }
    launch("conv_wgrad_depthwise_kernel", programs * splits, args, constants)
    constants = {"BLOCK": _SUM_BLOCK, "num_warps": 4}
    args = (partial, dw, K * taps, splits)
    launch("conv_wgrad_depthwise_sum_kernel", -(-K * taps // _SUM_BLOCK), args, constants)
    return dw


def wgrad_splits(programs: int, steps: int) -> int:
    """How many slices the places are cut into; programs: of one slice."""
    return max(1, min(-(-_PROGRAMS // programs), steps // _LEAST_STEPS))


def wgrad_workspace(weight_size: Ints, splits: int) -> int:
    """Bytes of the partial sums."""
    return 4 * splits * weight_size[0] * prod(weight_size[2:])
