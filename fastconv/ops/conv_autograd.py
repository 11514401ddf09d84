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

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv.ops import conv, conv_vmap
from fastconv.ops.conv_call import Call, Geometry, call_for, inherited
from fastconv.ops.conv_run import aten_gradients, dgrad_by, run_fprop, wgrad_by
from fastconv.problem import is_channels_last
from fastconv.select import ATEN


def sum_to_bias(dy: Tensor) -> Tensor:
    """(K,) from dy (N, K, *out)."""
    return dy.sum([0, *range(2, dy.dim())])


class Fprop(Function):
    """y = conv(x, w) + bias."""

    @staticmethod
    def forward(ctx, x, w, bias, call):
        x_needs, w_needs = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if w_needs else None, w if x_needs else None)
        ctx.call = call
        return run_fprop(x, w, bias, *call.geometry, call.name, call.packed)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        call, (x_needs, w_needs, bias_needs, _) = ctx.call, ctx.needs_input_grad
        dx = dw = None
        if conv.transforming() or conv.tracing():
            rest = (*call.geometry, call.channels_last, inherited(call.algo))
            dx = conv.conv_dgrad(dy, w, call.input_size, *rest) if x_needs else None
            dw = conv.conv_wgrad(dy, x, call.weight_size, *rest) if w_needs else None
        else:
            toward_x = call.gradient("dgrad", dy, w) if x_needs else None
            toward_w = call.gradient("wgrad", dy, x) if w_needs else None
            if x_needs and w_needs and toward_x.name == toward_w.name == ATEN:
                dx, dw = aten_gradients(dy, x, w, *call.geometry, (True, True))
            else:
                dx = dgrad(toward_x, dy, w) if x_needs else None
                dw = wgrad(toward_w, dy, x) if w_needs else None
        return dx, dw, sum_to_bias(dy) if bias_needs else None, None


def dgrad(call: Call, dy: Tensor, w: Tensor) -> Tensor:
    """`dgrad_by`, recorded where a gradient is wanted."""
    if torch.is_grad_enabled() and (dy.requires_grad or w.requires_grad):
        return Dgrad.apply(dy, w, call)
    return dgrad_by(call, dy, w)


def wgrad(call: Call, dy: Tensor, x: Tensor) -> Tensor:
    """`wgrad_by`, recorded where a gradient is wanted."""
    if torch.is_grad_enabled() and (dy.requires_grad or x.requires_grad):
        return Wgrad.apply(dy, x, call)
    return wgrad_by(call, dy, x)


class Dgrad(Function):
    """dx of (dy, w)."""

    @staticmethod
    def forward(ctx, dy, w, call):
        dy_needs, w_needs = ctx.needs_input_grad[:2]
        ctx.save_for_backward(dy if w_needs else None, w if dy_needs else None)
        ctx.call = call
        return dgrad_by(call, dy, w)

    @staticmethod
    def backward(ctx, g):
        dy, w = ctx.saved_tensors
        call, algo = ctx.call, inherited(ctx.call.algo)
        needs = ctx.needs_input_grad
        ddy = conv.conv_fprop(g, w, None, *call.geometry, algo) if needs[0] else None
        dw = None
        if needs[1]:
            dw = conv.conv_wgrad(dy, g, call.weight_size, *call.geometry, call.channels_last, algo)
        return ddy, dw, None


class Wgrad(Function):
    """dw of (dy, x)."""

    @staticmethod
    def forward(ctx, dy, x, call):
        dy_needs, x_needs = ctx.needs_input_grad[:2]
        ctx.save_for_backward(dy if x_needs else None, x if dy_needs else None)
        ctx.call = call
        return wgrad_by(call, dy, x)

    @staticmethod
    def backward(ctx, g):
        dy, x = ctx.saved_tensors
        call, algo = ctx.call, inherited(ctx.call.algo)
        needs = ctx.needs_input_grad
        ddy = conv.conv_fprop(x, g, None, *call.geometry, algo) if needs[0] else None
        dx = None
        if needs[1]:
            dx = conv.conv_dgrad(dy, g, call.input_size, *call.geometry, call.channels_last, algo)
        return ddy, dx, None


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
        geometry, tensors = (stride, padding, dilation, groups), (x, w, bias)
        last = is_channels_last(x, w)
        call = call_for("fprop", x, x.shape, w.shape, *geometry, last, algo, tensors)
        return run_fprop(x, w, bias, *call.geometry, call.name, call.packed)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, w, _, stride, padding, dilation, groups, algo = inputs
        _save(ctx, x, w)
        ctx.geometry = Geometry(stride, padding, dilation, groups)
        ctx.sizes = (x.shape, w.shape)
        ctx.channels_last, ctx.algo = is_channels_last(x, w), inherited(algo)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return (None,) * 8
        x, w = ctx.saved_tensors
        needs, rest = ctx.needs_input_grad, (*ctx.geometry, ctx.channels_last, ctx.algo)
        dx = conv.conv_dgrad(dy, w, ctx.sizes[0], *rest) if needs[0] else None
        dw = conv.conv_wgrad(dy, x, ctx.sizes[1], *rest) if needs[1] else None
        return (dx, dw, sum_to_bias(dy) if needs[2] else None, *(None,) * 5)

    @staticmethod
    def jvp(ctx, x_t, w_t, bias_t, *_):
        x, w = ctx.saved_tensors
        algo = ctx.algo
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
        rest = (stride, padding, dilation, groups, channels_last, algo)
        call = call_for("dgrad", dy, input_size, w.shape, *rest, (dy, w))
        return dgrad_by(call, dy, w)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, w, ctx.input_size, stride, padding, dilation, groups, ctx.channels_last, algo = inputs
        _save(ctx, dy, w)
        ctx.geometry = Geometry(stride, padding, dilation, groups)
        ctx.weight_size, ctx.algo = w.shape, inherited(algo)

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
        rest = (stride, padding, dilation, groups, channels_last, algo)
        call = call_for("wgrad", x, x.shape, weight_size, *rest, (dy, x))
        return wgrad_by(call, dy, x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, ctx.weight_size, stride, padding, dilation, groups, ctx.channels_last, algo = inputs
        _save(ctx, dy, x)
        ctx.geometry = Geometry(stride, padding, dilation, groups)
        ctx.input_size, ctx.algo = x.shape, inherited(algo)

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
