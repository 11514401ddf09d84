"""The registered ops that stand in traced graphs, and the fake kernels of all convolution ops.

`fastconv::conv`, `conv_dx`, `conv_dw` take any `algo`, also "auto", and choose when they run, from
the real shapes: dynamic shapes, autotuning and `aten` work inside a compiled graph. They carry
autograd, autocast and vmap rules. `fastconv::conv_fprop`, `conv_dgrad`, `conv_wgrad` are the bare
kernels below them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastconv.ops import conv_vmap
from fastconv.ops.conv_autograd import sum_to_bias
from fastconv.ops.conv_call import call_for, inherited
from fastconv.ops.conv_run import dgrad_by, run_fprop, wgrad_by
from fastconv.problem import dense_strides, is_channels_last, unpacked_moves, unpacked_sizes

_lib = torch.library.Library("fastconv", "FRAGMENT")
_LISTS = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
_lib.define(f"conv(Tensor x, Tensor w, Tensor? bias, {_LISTS}, str algo) -> Tensor")
_lib.define(
    f"conv_dx(Tensor dy, Tensor w, SymInt[] input_size, {_LISTS}, bool channels_last, str algo)"
    " -> Tensor"
)
_lib.define(
    f"conv_dw(Tensor dy, Tensor x, SymInt[] weight_size, {_LISTS}, bool channels_last, str algo)"
    " -> Tensor"
)


def promised(t: Tensor, channels_last: bool) -> Tensor:
    # `aten` may pick another memory format than the fake kernel said; rare: 5-D loops, no batch.
    strides = tuple(dense_strides(t.shape, channels_last))
    if t.stride() == strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def _conv(x, w, bias, stride, padding, dilation, groups, algo):
    channels_last = is_channels_last(x, w)
    geometry = (stride, padding, dilation, groups)
    tensors = (x, w, bias)
    call = call_for("fprop", x, x.shape, w.shape, *geometry, channels_last, algo, tensors)
    return promised(run_fprop(x, w, bias, *call.geometry, call.name, call.packed), channels_last)


def _conv_dx(dy, w, input_size, stride, padding, dilation, groups, channels_last, algo):
    geometry = (stride, padding, dilation, groups)
    call = call_for("dgrad", dy, input_size, w.shape, *geometry, channels_last, algo, (dy, w))
    return promised(dgrad_by(call, dy, w), channels_last)


def _conv_dw(dy, x, weight_size, stride, padding, dilation, groups, channels_last, algo):
    geometry = (stride, padding, dilation, groups)
    call = call_for("wgrad", x, x.shape, weight_size, *geometry, channels_last, algo, (dy, x))
    return promised(wgrad_by(call, dy, x), channels_last)


for _name, _function in (("conv", _conv), ("conv_dx", _conv_dx), ("conv_dw", _conv_dw)):
    _lib.impl(_name, _function, "CompositeExplicitAutograd")


def _fake_conv(x, w, bias, stride, padding, dilation, groups, algo):
    # PyTorch's own fake convolution checks the shapes, with its texts.
    y = torch.ops.aten.convolution(
        x, w, bias, stride, padding, dilation, False, [0] * len(stride), groups
    )
    return x.new_empty_strided(y.shape, dense_strides(y.shape, is_channels_last(x, w)))


def _fake_packed(x, w, bias, moves, groups, algo):
    return _fake_conv(x, w, bias, *unpacked_moves(moves, x.dim() - 2), groups, algo)


def _fake_packed_dx(dy, w, moves, input, groups, channels_last, algo):
    size = [dy.shape[0], w.shape[1] * groups, *unpacked_sizes(input, dy.dim() - 2)]
    return dy.new_empty_strided(size, dense_strides(size, channels_last))


def _fake_packed_dw(dy, x, moves, filter, groups, channels_last, algo):
    size = [dy.shape[1], x.shape[1] // groups, *unpacked_sizes(filter, dy.dim() - 2)]
    return dy.new_empty_strided(size, dense_strides(size, channels_last))


def _fake_gradient(t: Tensor, partner: Tensor, size: Sequence[Any], *rest: Any) -> Tensor:
    channels_last = rest[4]
    return t.new_empty_strided(size, dense_strides(size, channels_last))


for _name, _fake in (
    ("conv", _fake_conv),
    ("conv_dx", _fake_gradient),
    ("conv_dw", _fake_gradient),
    ("conv_fprop", _fake_conv),
    ("conv_fprop.packed", _fake_packed),
    ("conv_dgrad", _fake_gradient),
    ("conv_dgrad.packed", _fake_packed_dx),
    ("conv_wgrad", _fake_gradient),
    ("conv_wgrad.packed", _fake_packed_dw),
):
    torch.library.register_fake(f"fastconv::{_name}", _fake, lib=_lib)


def _conv_setup(ctx, inputs, output):
    x, w, _, *geometry, algo = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(x if needs[1] else None, w if needs[0] else None)
    ctx.sizes = (list(x.shape), list(w.shape))
    ctx.rest = (*geometry, is_channels_last(x, w), inherited(algo))


def _conv_backward(ctx, dy):
    x, w = ctx.saved_tensors
    needs, ops = ctx.needs_input_grad, torch.ops.fastconv
    dx = ops.conv_dx(dy, w, ctx.sizes[0], *ctx.rest) if needs[0] else None
    dw = ops.conv_dw(dy, x, ctx.sizes[1], *ctx.rest) if needs[1] else None
    return (dx, dw, sum_to_bias(dy) if needs[2] else None, *(None,) * 5)


def _dx_setup(ctx, inputs, output):
    dy, w, _, *rest = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(dy if needs[1] else None, w if needs[0] else None)
    ctx.weight_size = list(w.shape)
    *ctx.geometry, ctx.channels_last, algo = rest
    ctx.algo = inherited(algo)


def _dx_backward(ctx, g):
    dy, w = ctx.saved_tensors
    needs, ops, geometry = ctx.needs_input_grad, torch.ops.fastconv, ctx.geometry
    ddy = ops.conv(g, w, None, *geometry, ctx.algo) if needs[0] else None
    dw = None
    if needs[1]:
        dw = ops.conv_dw(dy, g, ctx.weight_size, *geometry, ctx.channels_last, ctx.algo)
    return (ddy, dw, *(None,) * 7)


def _dw_setup(ctx, inputs, output):
    dy, x, _, *rest = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(dy if needs[1] else None, x if needs[0] else None)
    ctx.input_size = list(x.shape)
    *ctx.geometry, ctx.channels_last, algo = rest
    ctx.algo = inherited(algo)


def _dw_backward(ctx, g):
    dy, x = ctx.saved_tensors
    needs, ops, geometry = ctx.needs_input_grad, torch.ops.fastconv, ctx.geometry
    ddy = ops.conv(x, g, None, *geometry, ctx.algo) if needs[0] else None
    dx = None
    if needs[1]:
        dx = ops.conv_dx(dy, g, ctx.input_size, *geometry, ctx.channels_last, ctx.algo)
    return (ddy, dx, *(None,) * 7)


for _name, _backward, _setup in (
    ("conv", _conv_backward, _conv_setup),
    ("conv_dx", _dx_backward, _dx_setup),
    ("conv_dw", _dw_backward, _dw_setup),
):
    torch.library.register_autograd(f"fastconv::{_name}", _backward, setup_context=_setup, lib=_lib)


def _vmap_conv(info, in_dims, x, w, bias, stride, padding, dilation, groups, algo):
    geometry = (stride, padding, dilation, groups)
    return conv_vmap.fprop(
        torch.ops.fastconv.conv, info.batch_size, in_dims[:3], x, w, bias, geometry, algo
    )


def _vmap_dx(info, in_dims, dy, w, *rest):
    return conv_vmap.dgrad(torch.ops.fastconv.conv_dx, info.batch_size, in_dims[:2], dy, w, *rest)


def _vmap_dw(info, in_dims, dy, x, *rest):
    return conv_vmap.wgrad(torch.ops.fastconv.conv_dw, info.batch_size, in_dims[:2], dy, x, *rest)


for _name, _vmap in (("conv", _vmap_conv), ("conv_dx", _vmap_dx), ("conv_dw", _vmap_dw)):
    torch.library.register_vmap(f"fastconv::{_name}", _vmap, lib=_lib)


def cast_for_autocast(t: Tensor | None, device: str, dtype: torch.dtype) -> Tensor | None:
    """What autocast does to an operand of a convolution: float64 and other devices stay."""
    if t is None or not t.is_floating_point() or t.dtype == torch.float64:
        return t
    return t.to(dtype) if t.device.type == device else t


def _register_autocast(device: str, key: str) -> None:
    # torch.library.register_autocast fixes the dtype at registration; a convolution follows the
    # dtype that the autocast context was entered with.
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(x, w, bias, *rest):
        dtype = torch.get_autocast_dtype(device)
        operands = [cast_for_autocast(t, device, dtype) for t in (x, w, bias)]
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return torch.ops.fastconv.conv(*operands, *rest)

    _lib.impl("conv", kernel, key)


_register_autocast("cpu", "AutocastCPU")
_register_autocast("cuda", "AutocastCUDA")
