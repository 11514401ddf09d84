"""Derivatives of the three directions, each made of the three directions.

With F(x, w) = y, D(dy, w) = dx and W(dy, x) = dw, all bilinear in their tensors:
    F: dx = D(dy, w)      dw = W(dy, x)      db = sum of dy over all axes but the channels
    D: d(dy) = F(g, w)    dw = W(dy, g)      for a cotangent g shaped like x
    W: d(dy) = F(x, g)    dx = D(dy, g)      for a cotangent g shaped like w
so that a derivative of any order is again built from kernels of this package.

`Fprop`, `Dgrad`, `Wgrad` serve eager training: they save only what a wanted gradient needs.
`Transformed*` serve functorch and forward-mode AD, with jvp and vmap rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv.ops import conv, conv_vmap
from fastconv.ops.conv_run import aten_gradients, run_dgrad, run_fprop, run_wgrad
from fastconv.problem import is_channels_last
from fastconv.select import ATEN


def sum_to_bias(dy: Tensor) -> Tensor:
    """(K,) from dy (N, K, *out)."""
    return dy.sum([0, *range(2, dy.dim())])


def _fprop_gradients(
    dy: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    input_size: Any,
    weight_size: Any,
    geometry: Any,
    channels_last: bool,
    algo: str,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    algo = conv.inherited(algo)
    dx = dw = None
    if wanted[0] and wanted[1] and not conv.transforming() and not conv.tracing():
        shapes = (input_size, weight_size, geometry, channels_last, algo)
        if (
            conv.resolve("dgrad", dy, *shapes, (dy, w)) == ATEN
            and conv.resolve("wgrad", dy, *shapes, (dy, x)) == ATEN
        ):
            dx, dw = aten_gradients(dy, x, w, *geometry, (True, True))
    if wanted[0] and dx is None:
        dx = conv.conv_dgrad(dy, w, input_size, *geometry, channels_last, algo)
    if wanted[1] and dw is None:
        dw = conv.conv_wgrad(dy, x, weight_size, *geometry, channels_last, algo)
    return dx, dw, sum_to_bias(dy) if wanted[2] else None


class FpropCall(NamedTuple):
    """What `Fprop` does with its tensors, in one argument: `name` runs, the gradients choose their
    own from `algo`. moves: as `run_fprop` takes it."""

    geometry: conv.Geometry
    algo: str
    name: str
    channels_last: bool
    input_size: Sequence[int]
    weight_size: Sequence[int]
    moves: int | None


class Fprop(Function):
    """y = conv(x, w) + bias."""

    @staticmethod
    def forward(ctx, x, w, bias, call):
        x_needs, w_needs = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if w_needs else None, w if x_needs else None)
        ctx.call = call
        return run_fprop(x, w, bias, *call.geometry, call.name, call.moves)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        call = ctx.call
        problem = (call.input_size, call.weight_size, call.geometry, call.channels_last, call.algo)
        return (*_fprop_gradients(dy, x, w, *problem, ctx.needs_input_grad), None)


class Dgrad(Function):
    """dx of (dy, w) by the algorithm `name`."""

    @staticmethod
    def forward(ctx, dy, w, input_size, geometry, channels_last, algo, name):
        needs = ctx.needs_input_grad
        ctx.save_for_backward(dy if needs[1] else None, w if needs[0] else None)
        ctx.problem = (w.shape, geometry, channels_last, conv.inherited(algo))
        return run_dgrad(dy, w, input_size, *geometry, channels_last, name)

    @staticmethod
    def backward(ctx, g):
        dy, w = ctx.saved_tensors
        weight_size, geometry, channels_last, algo = ctx.problem
        needs = ctx.needs_input_grad
        ddy = conv.conv_fprop(g, w, None, *geometry, algo) if needs[0] else None
        dw = None
        if needs[1]:
            dw = conv.conv_wgrad(dy, g, weight_size, *geometry, channels_last, algo)
        return ddy, dw, None, None, None, None, None


class Wgrad(Function):
    """dw of (dy, x) by the algorithm `name`."""

    @staticmethod
    def forward(ctx, dy, x, weight_size, geometry, channels_last, algo, name):
        needs = ctx.needs_input_grad
        ctx.save_for_backward(dy if needs[1] else None, x if needs[0] else None)
        ctx.problem = (x.shape, geometry, channels_last, conv.inherited(algo))
        return run_wgrad(dy, x, weight_size, *geometry, channels_last, name)

    @staticmethod
    def backward(ctx, g):
        dy, x = ctx.saved_tensors
        input_size, geometry, channels_last, algo = ctx.problem
        needs = ctx.needs_input_grad
        ddy = conv.conv_fprop(x, g, None, *geometry, algo) if needs[0] else None
        dx = None
        if needs[1]:
            dx = conv.conv_dgrad(dy, g, input_size, *geometry, channels_last, algo)
        return ddy, dx, None, None, None, None, None


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _save(ctx: Any, a: Tensor, b: Tensor) -> None:
    ctx.save_for_backward(a, b)
    ctx.save_for_forward(a, b)
    ctx.set_materialize_grads(False)


class TransformedFprop(Function):
    """`Fprop` under functorch transforms and forward-mode AD."""

    @staticmethod
    def forward(x, w, bias, stride, padding, dilation, groups, algo):
        if conv.tracing():
            return torch.ops.fastconv.conv(x, w, bias, stride, padding, dilation, groups, algo)
        geometry = conv.Geometry(stride, padding, dilation, groups)
        channels_last = is_channels_last(x, w)
        name = conv.resolve(
            "fprop", x, x.shape, w.shape, geometry, channels_last, algo, (x, w, bias)
        )
        return run_fprop(x, w, bias, *geometry, name)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, _, stride, padding, dilation, groups, algo = inputs
        _save(ctx, x, w)
        ctx.geometry = conv.Geometry(stride, padding, dilation, groups)
        ctx.rest = (x.shape, w.shape, ctx.geometry, is_channels_last(x, w), algo)

    @staticmethod
    def backward(ctx, dy):
        nothing = (None,) * 5
        if dy is None:
            return (None, None, None, *nothing)
        x, w = ctx.saved_tensors
        return (*_fprop_gradients(dy, x, w, *ctx.rest, ctx.needs_input_grad), *nothing)

    @staticmethod
    def jvp(ctx, x_t, w_t, bias_t, *_):
        x, w = ctx.saved_tensors
        algo = conv.inherited(ctx.rest[-1])
        y_t = None
        if x_t is not None:
            y_t = conv.conv_fprop(x_t, w, None, *ctx.geometry, algo)
        if w_t is not None:
            y_t = _added(y_t, conv.conv_fprop(x, w_t, None, *ctx.geometry, algo))
        if bias_t is not None:
            shape = (1, -1, *[1] * (x.dim() - 2))
            if y_t is None:
                size = conv_vmap.output_size(x.shape, w.shape, ctx.geometry)
                return bias_t.reshape(shape).expand(size).clone()
            y_t = y_t + bias_t.reshape(shape)
        return y_t

    @staticmethod
    def vmap(info, in_dims, x, w, bias, stride, padding, dilation, groups, algo):
        geometry = (stride, padding, dilation, groups)
        return conv_vmap.fprop(
            conv.conv_fprop, info.batch_size, in_dims[:3], x, w, bias, geometry, algo
        )


class TransformedDgrad(Function):
    """`Dgrad` under functorch transforms and forward-mode AD."""

    @staticmethod
    def forward(dy, w, input_size, stride, padding, dilation, groups, channels_last, algo):
        if conv.tracing():
            return torch.ops.fastconv.conv_dx(
                dy, w, input_size, stride, padding, dilation, groups, channels_last, algo
            )
        geometry = conv.Geometry(stride, padding, dilation, groups)
        name = conv.resolve(
            "dgrad", dy, input_size, w.shape, geometry, channels_last, algo, (dy, w)
        )
        return run_dgrad(dy, w, input_size, *geometry, channels_last, name)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, w, ctx.input_size, stride, padding, dilation, groups, ctx.channels_last, algo = inputs
        _save(ctx, dy, w)
        ctx.geometry = conv.Geometry(stride, padding, dilation, groups)
        ctx.weight_size, ctx.algo = w.shape, conv.inherited(algo)

    @staticmethod
    def backward(ctx, g):
        ddy = dw = None
        dy, w = ctx.saved_tensors
        if g is not None and ctx.needs_input_grad[0]:
            ddy = conv.conv_fprop(g, w, None, *ctx.geometry, ctx.algo)
        if g is not None and ctx.needs_input_grad[1]:
            dw = conv.conv_wgrad(dy, g, ctx.weight_size, *ctx.geometry, ctx.channels_last, ctx.algo)
        return (ddy, dw, *(None,) * 7)

    @staticmethod
    def jvp(ctx, dy_t, w_t, *_):
        dy, w = ctx.saved_tensors
        rest = (ctx.input_size, *ctx.geometry, ctx.channels_last, ctx.algo)
        return _added(
            None if dy_t is None else conv.conv_dgrad(dy_t, w, *rest),
            None if w_t is None else conv.conv_dgrad(dy, w_t, *rest),
        )

    @staticmethod
    def vmap(info, in_dims, dy, w, input_size, *rest):
        return conv_vmap.dgrad(
            conv.conv_dgrad, info.batch_size, in_dims[:2], dy, w, input_size, *rest
        )


class TransformedWgrad(Function):
    """`Wgrad` under functorch transforms and forward-mode AD."""

    @staticmethod
    def forward(dy, x, weight_size, stride, padding, dilation, groups, channels_last, algo):
        if conv.tracing():
            return torch.ops.fastconv.conv_dw(
                dy, x, weight_size, stride, padding, dilation, groups, channels_last, algo
            )
        geometry = conv.Geometry(stride, padding, dilation, groups)
        name = conv.resolve(
            "wgrad", x, x.shape, weight_size, geometry, channels_last, algo, (dy, x)
        )
        return run_wgrad(dy, x, weight_size, *geometry, channels_last, name)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, ctx.weight_size, stride, padding, dilation, groups, ctx.channels_last, algo = inputs
        _save(ctx, dy, x)
        ctx.geometry = conv.Geometry(stride, padding, dilation, groups)
        ctx.input_size, ctx.algo = x.shape, conv.inherited(algo)

    @staticmethod
    def backward(ctx, g):
        ddy = dx = None
        dy, x = ctx.saved_tensors
        if g is not None and ctx.needs_input_grad[0]:
            ddy = conv.conv_fprop(x, g, None, *ctx.geometry, ctx.algo)
        if g is not None and ctx.needs_input_grad[1]:
            dx = conv.conv_dgrad(dy, g, ctx.input_size, *ctx.geometry, ctx.channels_last, ctx.algo)
        return (ddy, dx, *(None,) * 7)

    @staticmethod
    def jvp(ctx, dy_t, x_t, *_):
        dy, x = ctx.saved_tensors
        rest = (ctx.weight_size, *ctx.geometry, ctx.channels_last, ctx.algo)
        return _added(
            None if dy_t is None else conv.conv_wgrad(dy_t, x, *rest),
            None if x_t is None else conv.conv_wgrad(dy, x_t, *rest),
        )

    @staticmethod
    def vmap(info, in_dims, dy, x, weight_size, *rest):
        return conv_vmap.wgrad(
            conv.conv_wgrad, info.batch_size, in_dims[:2], dy, x, weight_size, *rest
        )
