"""Launchers of the depthwise convolutions in Triton, in the three directions.

Tensors of any strides; results are dense in the memory format asked for, or a given channel slice.
What a problem launches is worked out once and remembered. No autograd. Imports Triton at the first
launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastconv.problem import conv_output_size, dense_strides, strides_channels_last

from .conv import merged_moments
from .launching import Facts, Launch, facts, run
from .pool_geometry import Ints, Triple

_INT32 = 2**31 - 2**20  # leaves room for places beyond the last tile's end
_ROW = 8  # taps of a filter row that a program of wgrad has at most
_SUM_BLOCK = 256
# Slices of the places in wgrad: two programs for each multiprocessor of a large GPU. A constant, so
# that the order of a sum is the problem's alone.
_PROGRAMS = 528
_LEAST_STEPS = 8  # tiles that a slice of wgrad has at least
_KEPT = 4096  # plans of each direction


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


def launch(step: Launch, tensors: Sequence[Tensor | None]) -> None:
    """Runs the step's kernel on the device of the first tensor."""
    run(kernels()[step.kernel], step, tensors)


def _step(kernel: str, grid: int, numbers: tuple[Any, ...], warps: int, **constants: Any) -> Launch:
    constants.update(num_warps=warps, enable_fp_fusion=True)
    return Launch(kernel, grid, numbers, constants)


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


class _Lists(NamedTuple):
    """Stride, padding and dilation as an op is given them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def moves(self, weight_size: Ints) -> _Moves:
        return _Moves(
            _triple(weight_size[2:], 1), _triple(self.stride, 1), _triple(self.padding, 0),
            _triple(self.dilation, 1),
        )  # fmt: skip


def _lists(stride: Ints, padding: Ints, dilation: Ints) -> _Lists:
    return _Lists(tuple(stride), tuple(padding), tuple(dilation))


class _Lie(NamedTuple):
    """How a kernel reads a tensor: as it is, or from a dense copy; strides of image, channel and
    place."""

    copied: bool
    strides: Triple
    wide: bool

    def of(self, t: Tensor, channels_last: bool) -> Tensor:
        if not self.copied:
            return t
        return t.new_empty_strided(t.shape, dense_strides(t.shape, channels_last)).copy_(t)


def _place_stride(shape: Ints, strides: Ints) -> int | None:
    """Between neighbouring places; None where they are not equally far apart throughout."""
    step = run_ = 1  # axes of one entry have strides without a meaning
    for axis in range(len(shape) - 1, 1, -1):
        if shape[axis] == 1:
            continue
        if run_ == 1:
            step = strides[axis]
        elif strides[axis] != step * run_:
            return None
        run_ *= shape[axis]
    return step


def _strides(shape: Ints, strides: Ints) -> Triple:
    """Of image, channel and place."""
    step = _place_stride(shape, strides)
    if step is None:
        raise ValueError(f"strides {strides} of a tensor of size {list(shape)} are not dense")
    return strides[0], strides[1], step


def _wide(shape: Ints, strides: Ints) -> bool:
    """Whether an offset needs 64 bits."""
    span = sum((n - 1) * abs(s) for n, s in zip(shape, strides, strict=True))
    return span >= _INT32 or prod(shape) >= _INT32


def _lie(t: Facts, channels_last: bool) -> _Lie:
    """Of an operand: copied where what a warp reads together would lie apart."""
    step = _place_stride(t.shape, t.strides)
    close = t.strides[1] == 1 or t.shape[1] == 1 if channels_last else step == 1
    copied = step is None or not close
    strides = dense_strides(t.shape, channels_last) if copied else t.strides
    return _Lie(copied, _strides(t.shape, strides), _wide(t.shape, strides))


def _result(shape: Ints, strides: Ints) -> _Lie:
    return _Lie(False, _strides(shape, strides), _wide(shape, strides))


class _Filter(NamedTuple):
    """The filter as rows of taps or, where `turn` is a launch, of channels; its strides of channel
    and tap."""

    shape: tuple[int, int]
    turn: Launch | None
    strides: tuple[int, int]

    def of(self, w: Tensor) -> Tensor:
        # The channel axis has one entry: either dense format is this.
        flat = w.reshape(self.shape).contiguous()
        if self.turn is None:
            return flat
        turned = w.new_empty(self.shape[::-1])
        launch(self.turn, (flat, turned))
        return turned


def _filter(w: Facts, transposed: bool) -> _Filter:
    K, taps = w.shape[0], prod(w.shape[2:])
    if not transposed or taps == 1:
        return _Filter((K, taps), None, (taps, 1))
    grid = -(-K * taps // _SUM_BLOCK)
    step = _step("conv_depthwise_filter_kernel", grid, (K,), 4, TAPS=taps, BLOCK=_SUM_BLOCK)
    return _Filter((K, taps), step, (1, K))


@dataclass(eq=False)
class _Plan:
    """A new result's size and strides, how operands are read, and the launch. total: of wgrad's
    partial sums, which are of size `partial`."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    lies: tuple[_Lie | None, ...]
    channels_last: bool
    step: Launch
    filter: _Filter | None = None
    partial: tuple[int, ...] = ()
    total: Launch | None = None


@lru_cache(_KEPT)
def _plan_fprop(
    x: Facts,
    w: Facts,
    vectors: tuple[Facts | None, Facts | None, Facts | None],
    residual: Facts | None,
    out: Facts | None,
    ending: tuple[int, float, bool],
    moments: bool,
    lists: _Lists,
    config: Config,
) -> _Plan:
    """vectors: bias, scale, shift. ending: the activation's number, its slope, whether the residual
    comes after it. moments: whether the launch has those, which is another kernel."""
    channels_last = strides_channels_last(x.shape, x.strides) or strides_channels_last(
        w.shape, w.strides
    )
    size = tuple(conv_output_size(x.shape, w.shape, *lists))
    strides = tuple(dense_strides(size, channels_last)) if out is None else out.strides
    from_x, from_residual = _lie(x, channels_last), None
    if residual is not None:
        from_residual = _lie(residual, channels_last)
    to_y = _result(size, strides)
    rows_of = to_y if from_residual is None else from_residual
    filter_ = _filter(w, config.block_c > 1)
    moves, (activation, slope, after) = lists.moves(w.shape), ending
    ins, outs = _triple(x.shape[2:], 1), _triple(size[2:], 1)
    rows, K = size[0] * prod(outs), size[1]
    numbers = (
        rows, K, *ins, *outs, *from_x.strides, *filter_.strides, *to_y.strides, *rows_of.strides,
        float(slope),
    )  # fmt: skip
    step = _step(
        "conv_fprop_depthwise_kernel",
        -(-rows // config.block_m) * -(-K // config.block_c),
        numbers,
        config.warps,
        **moves.constants(),
        MULTIPLIER=K // x.shape[1],
        BIAS=vectors[0] is not None,
        SCALE=vectors[1] is not None,
        RESIDUAL=0 if residual is None else 2 if after else 1,
        ACTIVATION=int(activation),
        BORDER=moves.border(ins, outs),
        WIDE=from_x.wide or rows_of.wide or to_y.wide,
        BLOCK_M=config.block_m,
        BLOCK_C=config.block_c,
    )
    return _Plan(size, strides, (from_x, from_residual), channels_last, step, filter_)


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
    return _fprop(x, w, bias, _lists(stride, padding, dilation), config, epilogue, out, None)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, m2): each channel's mean and sum of squared distances from it, float32, of y as it
    is stored."""
    size = conv_output_size(x.shape, w.shape, stride, padding, dilation)
    rows = size[0] * prod(size[2:])
    mean, m2 = x.new_empty((2, -(-rows // config.block_m), size[1]), dtype=torch.float32)
    lists = _lists(stride, padding, dilation)
    y = _fprop(x, w, bias, lists, config, None, None, (mean, m2))
    return y, *merged_moments(mean, m2, config.block_m, rows)


def _fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    lists: _Lists,
    config: Config,
    epilogue: tuple[Any, ...] | None,
    out: Tensor | None,
    moments: tuple[Tensor, Tensor] | None,
) -> Tensor:
    code, slope, residual, after, scale, shift = epilogue or (0, 0.0, None, False, None, None)
    plan = _plan_fprop(
        facts(x), facts(w), (facts(bias), facts(scale), facts(shift)), facts(residual),
        facts(out), (code, slope, after), moments is not None, lists, config,
    )  # fmt: skip
    from_x, from_residual = plan.lies
    y = x.new_empty_strided(plan.size, plan.strides) if out is None else out
    x = from_x.of(x, plan.channels_last)
    residual = residual if residual is None else from_residual.of(residual, plan.channels_last)
    # What is not there is never read; x stands in for its address.
    small = [x if t is None else t.contiguous() for t in (bias, scale, shift)]
    tensors = (x, plan.filter.of(w), *small, x if residual is None else residual, y)
    launch(plan.step, (*tensors, *(moments or (None, None))))
    return y


@lru_cache(_KEPT)
def _plan_dgrad(
    dy: Facts,
    w: Facts,
    input_size: tuple[int, ...],
    lists: _Lists,
    channels_last: bool,
    config: Config,
) -> _Plan:
    channels_last = channels_last and len(dy.shape) > 3
    strides = tuple(dense_strides(input_size, channels_last))
    from_dy, to_dx = _lie(dy, channels_last), _result(input_size, strides)
    filter_, moves = _filter(w, config.block_c > 1), lists.moves(w.shape)
    ins, outs, C = _triple(input_size[2:], 1), _triple(dy.shape[2:], 1), input_size[1]
    rows = input_size[0] * prod(-(-n // s) for n, s in zip(ins, moves.stride, strict=True))
    tiles = -(-rows // config.block_m) * -(-C // config.block_c)
    step = _step(
        "conv_dgrad_depthwise_kernel",
        tiles * prod(moves.stride),
        (rows, C, *ins, *outs, *from_dy.strides, *filter_.strides, *to_dx.strides),
        config.warps,
        **moves.constants(),
        MULTIPLIER=w.shape[0] // C,
        WIDE=from_dy.wide or to_dx.wide,
        BLOCK_M=config.block_m,
        BLOCK_C=config.block_c,
    )
    return _Plan(input_size, strides, (from_dy,), channels_last, step, filter_)


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
    lists = _lists(stride, padding, dilation)
    plan = _plan_dgrad(facts(dy), facts(w), tuple(input_size), lists, channels_last, config)
    dx = dy.new_empty_strided(plan.size, plan.strides)
    launch(plan.step, (plan.lies[0].of(dy, plan.channels_last), plan.filter.of(w), dx))
    return dx


@lru_cache(_KEPT)
def _plan_wgrad(
    dy: Facts,
    x: Facts,
    weight_size: tuple[int, ...],
    lists: _Lists,
    channels_last: bool,
    config: Config,
    sliced: tuple[int, int],
) -> _Plan:
    """sliced: `_PROGRAMS` and `_LEAST_STEPS`."""
    channels_last = channels_last and len(dy.shape) > 3
    strides = tuple(dense_strides(weight_size, channels_last))
    from_dy, from_x = _lie(dy, channels_last), _lie(x, channels_last)
    moves = lists.moves(weight_size)
    ins, outs = _triple(x.shape[2:], 1), _triple(dy.shape[2:], 1)
    rows, K, taps = dy.shape[0] * prod(outs), dy.shape[1], prod(moves.kernel)
    row_taps = min(1 << (moves.kernel[2] - 1).bit_length(), _ROW)
    block_m = max(config.block_m // row_taps, 1)
    programs = moves.kernel[0] * moves.kernel[1] * -(-moves.kernel[2] // row_taps)
    programs *= -(-K // config.block_c)
    steps = -(-rows // block_m)
    per_split = -(-steps // wgrad_splits(programs, steps, *sliced)) * block_m
    splits = -(-rows // per_split)
    step = _step(
        "conv_wgrad_depthwise_kernel",
        programs * splits,
        (rows, K, *ins, *outs, *from_dy.strides, *from_x.strides, per_split, splits),
        config.warps,
        **moves.constants(),
        MULTIPLIER=K // x.shape[1],
        WIDE=from_dy.wide or from_x.wide,
        TAPS=row_taps,
        BLOCK_M=block_m,
        BLOCK_C=config.block_c,
    )
    count, name = K * taps, "conv_wgrad_depthwise_sum_kernel"
    total = _step(name, -(-count // _SUM_BLOCK), (count, splits), 4, BLOCK=_SUM_BLOCK)
    lies, size = (from_dy, from_x), (splits, K, taps)
    return _Plan(weight_size, strides, lies, channels_last, step, None, size, total)


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
    plan = _plan_wgrad(
        facts(dy), facts(x), tuple(weight_size), _lists(stride, padding, dilation), channels_last,
        config, (_PROGRAMS, _LEAST_STEPS),
    )  # fmt: skip
    from_dy, from_x = plan.lies
    dw = dy.new_empty_strided(plan.size, plan.strides)
    partial = dy.new_empty(plan.partial, dtype=torch.float32)
    dy, x = from_dy.of(dy, plan.channels_last), from_x.of(x, plan.channels_last)
    launch(plan.step, (dy, x, partial))
    launch(plan.total, (partial, dw))
    return dw


def wgrad_splits(programs: int, steps: int, most: int, least_steps: int) -> int:
    """How many slices the places are cut into; programs: of one slice, `most` of all."""
    return max(1, min(-(-most // programs), steps // least_steps))


def forget() -> None:
    """Drops every plan."""
    for kept in (_plan_fprop, _plan_dgrad, _plan_wgrad):
        kept.cache_clear()
