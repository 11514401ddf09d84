"""Launchers of the convolution kernels in Triton: fprop, dgrad, wgrad, and fprop with statistics.

Tensors of any strides; filters are copied to [K, taps, C/groups] where they are not stored so, and
operands whose gather would load single elements to a layout with vectors (conv_reads.py). Ask
`refusal` first. No autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import INTERPRETED
from .conv_geometry import Config, Ints, geometry_refusal, make_geometry
from .conv_layout import filters
from .conv_plan import (
    DTYPES,
    Copy,
    Request,
    pixel_ranges,
    plan_dgrad,
    plan_fprop,
    plan_merges,
    plan_wgrad,
)
from .launching import Launch, facts, run

__all__ = ["DTYPES", "Config", "pixel_ranges"]
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
    from . import conv_epilogue, conv_implicit_gemm, conv_repack, conv_wgrad_implicit_gemm

    return {
        name: getattr(module, name)
        for module in (conv_epilogue, conv_implicit_gemm, conv_repack, conv_wgrad_implicit_gemm)
        for name in vars(module)
        if name.endswith("_kernel")
    }


def launch(step: Launch, tensors: Sequence[Tensor | None]) -> None:
    """Runs the step's kernel on the device of the first tensor."""
    run(kernels()[step.kernel], step, tensors)


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


def _request(
    lists: tuple[Ints, Ints, Ints, int],
    config: Config,
    precision: str,
    channels_last: bool | None,
    like: Tensor,
) -> Request:
    stride, padding, dilation, groups = lists
    moves = (tuple(stride), tuple(padding), tuple(dilation), groups)
    return Request(moves, config, precision, channels_last, like.device, INTERPRETED)


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
    asked = _request((stride, padding, dilation, groups), config, precision, channels_last, x)
    y, _ = _fprop("conv_fprop", x, w, bias, Epilogue(*(epilogue or ())), out, asked)
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
    asked = _request((stride, padding, dilation, groups), config, precision, channels_last, x)
    y, found = _fprop("conv_stats", x, w, bias, Epilogue(), None, asked)
    return (y, *found)


def _fprop(
    op: str,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    epilogue: Epilogue,
    out: Tensor | None,
    asked: Request,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    activation, slope, residual, after, scale, shift = epilogue
    stats = op == "conv_stats"
    plan = plan_fprop(
        op, facts(x), facts(w), (facts(bias), facts(scale), facts(shift)), facts(residual),
        facts(out), (activation, slope, after), stats, asked,
    )  # fmt: skip
    y = x.new_empty_strided(plan.size, plan.strides) if out is None else out
    mean = m2 = None
    if stats:
        size = (plan.parts, plan.size[1])
        mean, m2 = (x.new_empty(size, dtype=torch.float32) for _ in range(2))
    if plan.step is not None:
        x = _read(x, plan.copies[0])
        w = w if plan.as_stored else filters(w, plan.depth)
        bias, scale, shift = _dense(bias), _dense(scale), _dense(shift)
        launch(plan.step, (x, w, bias, scale, shift, residual, y, mean, m2))
    if mean is None or m2 is None:
        return y, ()
    return y, merged_moments(mean, m2, plan.each, plan.pixels)


def _read(t: Tensor, copy: Copy | None) -> Tensor:
    """The operand, or a copy with its channels side by side."""
    if copy is None:
        return t
    packed = t.new_empty(copy.elements)
    launch(copy.step, (t, packed))
    return packed


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


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
    asked = _request((stride, padding, dilation, groups), config, precision, channels_last, dy)
    plan = plan_dgrad(facts(dy), facts(w), tuple(input_size), asked)
    dx = dy.new_empty_strided(plan.size, plan.strides)
    if plan.step is None:
        return dx.zero_()
    dy = _read(dy, plan.copies[0])
    launch(plan.step, (dy, w if plan.as_stored else filters(w, plan.depth), dx))
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
    asked = _request((stride, padding, dilation, groups), config, precision, channels_last, dy)
    plan = plan_wgrad(facts(dy), facts(x), tuple(weight_size), asked)
    dw = dy.new_empty_strided(plan.size, plan.strides)
    if plan.step is None:
        return dw.zero_()
    dy, x = _read(dy, plan.copies[0]), _read(x, plan.copies[1])
    if plan.total is None:
        launch(plan.step, (dy, x, dw))
        return dw
    partial = dy.new_empty(plan.ranges * dw.numel(), dtype=torch.float32)
    launch(plan.step, (dy, x, partial))
    launch(plan.total, (partial, dw))
    return dw


def merged_moments(mean: Tensor, m2: Tensor, each: int, count: int) -> tuple[Tensor, Tensor]:
    """[parts, K] of `each` values (the last one of what is left of `count`) -> [K]."""
    parts, channels = mean.shape
    for step in plan_merges(parts, _MERGED_PARTS, each, count, channels):
        rows = -(-mean.shape[0] // _MERGED_PARTS)
        mean_out, m2_out = (mean.new_empty((rows, channels)) for _ in range(2))
        launch(step, (mean, m2, mean_out, m2_out))
        mean, m2 = mean_out, m2_out
    return mean[0], m2[0]
