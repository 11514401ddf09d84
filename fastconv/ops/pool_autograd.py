"""Derivatives of the pooling ops, once for eager Functions and once more for the registered ops.

Each entry of FORMULAS is (setup_context, backward): torch.library.register_autograd and
autograd.Function take the same two. The Functions add jvp and vmap rules (ops/pool_vmap.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv.ops import pool, pool_composed
from fastconv.ops.pool_kernels import BARE
from fastconv.ops.pool_vmap import batched
from fastconv.problem import suggests_channels_last as _channels_last


def _keep(ctx: Any, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _choice_setup(ctx, x, lists, index, index_kind, algo):
    ctx.mark_non_differentiable(index)
    _keep(ctx, index)
    ctx.size, ctx.lists, ctx.channels_last = x.shape, lists, _channels_last(x)
    ctx.kept, ctx.algo = index_kind != pool.KEEP_NOTHING, algo


def _max_setup(ctx, inputs, output):
    x, *lists, _, index_kind, algo = inputs
    _choice_setup(ctx, x, lists, output[1], index_kind, algo)


def _sample_setup(ctx, inputs, output):
    x, _, *lists, _, index_kind, algo = inputs
    _choice_setup(ctx, x, [*lists, [1] * len(lists[0])], output[1], index_kind, algo)


def _choice_dx(ctx, dy):
    if not ctx.kept:
        raise RuntimeError("max_pool: the gradient needs an index, and none was kept")
    (index,) = ctx.saved_tensors
    return pool.max_pool_dx(dy, index, ctx.size, *ctx.lists, ctx.channels_last, ctx.algo)


def _max_backward(ctx, dy, _):
    return (_choice_dx(ctx, dy), *(None,) * 7)


def _sample_backward(ctx, dy, _):
    return (_choice_dx(ctx, dy), *(None,) * 7)


def _choice_jvp(ctx, x_t, *_):
    (index,) = ctx.saved_tensors
    return pool.max_pool_take(x_t, index, *ctx.lists, ctx.algo), None


def _max_dx_setup(ctx, inputs, output):
    _, index, size, *lists, channels_last, algo = inputs
    _keep(ctx, index)
    ctx.size, ctx.lists, ctx.channels_last, ctx.algo = size, lists, channels_last, algo


def _max_dx_backward(ctx, g):
    (index,) = ctx.saved_tensors
    return (pool.max_pool_take(g, index, *ctx.lists, ctx.algo), *(None,) * 8)


def _max_dx_jvp(ctx, dy_t, *_):
    (index,) = ctx.saved_tensors
    return pool.max_pool_dx(dy_t, index, ctx.size, *ctx.lists, ctx.channels_last, ctx.algo)


def _take_setup(ctx, inputs, output):
    x, index, *lists, algo = inputs
    _keep(ctx, index)
    ctx.size, ctx.lists, ctx.channels_last, ctx.algo = x.shape, lists, _channels_last(x), algo


def _take_backward(ctx, g):
    (index,) = ctx.saved_tensors
    dx = pool.max_pool_dx(g, index, ctx.size, *ctx.lists, ctx.channels_last, ctx.algo)
    return (dx, *(None,) * 6)


def _take_jvp(ctx, x_t, *_):
    (index,) = ctx.saved_tensors
    return pool.max_pool_take(x_t, index, *ctx.lists, ctx.algo)


def _unpool_setup(ctx, inputs, output):
    _, index, ctx.size, ctx.algo = inputs
    _keep(ctx, index)


def _unpool_backward(ctx, dy):
    (index,) = ctx.saved_tensors
    return pool.max_unpool_dx(dy, index, ctx.algo), None, None, None


def _unpool_jvp(ctx, x_t, *_):
    (index,) = ctx.saved_tensors
    return pool.max_unpool(x_t, index, ctx.size, ctx.algo)


def _unpool_dx_setup(ctx, inputs, output):
    dy, index, ctx.algo = inputs
    _keep(ctx, index)
    ctx.size = dy.shape


def _unpool_dx_backward(ctx, g):
    # Places may be named twice: `max_unpool` keeps one of the elements, the transpose adds them.
    (index,) = ctx.saved_tensors
    zeros = g.new_zeros(ctx.size).flatten(2)
    ddy = zeros.scatter_add(2, index.flatten(2), g.flatten(2))
    return ddy.reshape(ctx.size), None, None


def _unpool_dx_jvp(ctx, dy_t, *_):
    (index,) = ctx.saved_tensors
    return pool.max_unpool_dx(dy_t, index, ctx.algo)


def _sum_setup(ctx, inputs, output):
    x, *ctx.rest, ctx.algo = inputs
    ctx.size, ctx.channels_last = x.shape, _channels_last(x)


def _sum_backward(ctx, dy):
    dx = pool.sum_pool_dx(dy, ctx.size, *ctx.rest, ctx.channels_last, ctx.algo)
    return (dx, *(None,) * 7)


def _sum_jvp(ctx, x_t, *_):
    return pool.sum_pool(x_t, *ctx.rest, ctx.algo)


def _sum_dx_setup(ctx, inputs, output):
    _, ctx.size, *ctx.rest, ctx.channels_last, ctx.algo = inputs


def _sum_dx_backward(ctx, g):
    return (pool.sum_pool(g, *ctx.rest, ctx.algo), *(None,) * 9)


def _sum_dx_jvp(ctx, dy_t, *_):
    return pool.sum_pool_dx(dy_t, ctx.size, *ctx.rest, ctx.channels_last, ctx.algo)


def _lp_setup(ctx, inputs, output):
    x, *ctx.rest = inputs
    ctx.save_for_backward(x, output)


def _lp_backward(ctx, dy):
    x, y = ctx.saved_tensors
    return (pool.lp_pool_dx(dy, x, y, *ctx.rest), *(None,) * 7)


def _lp_dx_setup(ctx, inputs, output):
    dy, x, _, *ctx.rest = inputs
    ctx.save_for_backward(dy, x)


def _lp_dx_backward(ctx, g):
    dy, x = ctx.saved_tensors
    return (*pool_composed.lp_dx_backward(g, dy, x, *ctx.rest), *(None,) * 8)


def _expectation_setup(ctx, inputs, output):
    x, *ctx.rest = inputs
    ctx.save_for_backward(x)


def _expectation_backward(ctx, dy):
    (x,) = ctx.saved_tensors
    return (pool_composed.expectation_dx(dy, x, *ctx.rest), *(None,) * 5)


FORMULAS: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {
    "max_pool": (_max_setup, _max_backward),
    "max_pool_dx": (_max_dx_setup, _max_dx_backward),
    "max_pool_take": (_take_setup, _take_backward),
    "max_unpool": (_unpool_setup, _unpool_backward),
    "max_unpool_dx": (_unpool_dx_setup, _unpool_dx_backward),
    "sum_pool": (_sum_setup, _sum_backward),
    "sum_pool_dx": (_sum_dx_setup, _sum_dx_backward),
    "lp_pool": (_lp_setup, _lp_backward),
    "lp_pool_dx": (_lp_dx_setup, _lp_dx_backward),
    "sample_pool": (_sample_setup, _sample_backward),
    "expectation_pool": (_expectation_setup, _expectation_backward),
}
_JVPS = {
    "max_pool": _choice_jvp,
    "max_pool_dx": _max_dx_jvp,
    "max_pool_take": _take_jvp,
    "max_unpool": _unpool_jvp,
    "max_unpool_dx": _unpool_dx_jvp,
    "sum_pool": _sum_jvp,
    "sum_pool_dx": _sum_dx_jvp,
    "sample_pool": _choice_jvp,
}


def _function(name: str) -> type[Function]:
    setup, backward = FORMULAS[name]

    def routed(*args):
        if name == "max_pool":
            return pool.max_pool(args[0], pool.Windows(*args[1:6]), *args[6:])
        if name == "sample_pool":
            x, seed, kernel, stride, padding, ceil_mode, *rest = args
            windows = pool.Windows(kernel, stride, padding, [1] * len(kernel), ceil_mode)
            return pool.sample_pool(x, seed, windows, *rest)
        return getattr(pool, name)(*args)

    def forward(*args):
        if pool.tracing():  # inside a transform that is itself being recorded
            return getattr(torch.ops.fastconv, name)(*args)
        return BARE[name](*args)

    body = {"forward": forward, "setup_context": setup, "backward": backward}
    body["vmap"] = batched(name, routed)
    if name in _JVPS:
        body["jvp"] = _JVPS[name]
    methods = {key: staticmethod(value) for key, value in body.items()}
    return type(f"_{name}", (Function,), {"__module__": __name__, **methods})


FUNCTIONS = {name: _function(name) for name in FORMULAS}
# Function.apply without its Python part, which inspects signatures and looks for functorch.
EAGER = {name: super(Function, function).apply for name, function in FUNCTIONS.items()}
