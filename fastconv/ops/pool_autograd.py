"""Derivatives of the pooling ops, once for eager Functions and once more for the registered ops.

Each entry of FORMULAS is (setup_context, backward): torch.library.register_autograd and
autograd.Function take the same two. The Functions add jvp and vmap rules; a pooling of a batch of
batches is one pooling of the joined batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastconv.ops import pool
from fastconv.ops.pool_kernels import BARE
from fastconv.problem import suggests_channels_last as _channels_last


def _keep(ctx: Any, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _max_setup(ctx, inputs, output):
    x, *lists, _, index_kind = inputs
    _, index = output
    ctx.mark_non_differentiable(index)
    _keep(ctx, index)
    ctx.size, ctx.lists, ctx.channels_last = x.shape, lists, _channels_last(x)
    ctx.kept = index_kind != pool.KEEP_NOTHING


def _max_backward(ctx, dy, _):
    if not ctx.kept:
        raise RuntimeError("max_pool: the gradient needs an index, and none was kept")
    (index,) = ctx.saved_tensors
    dx = pool.max_pool_dx(dy, index, ctx.size, *ctx.lists, ctx.channels_last)
    return (dx, *(None,) * 6)


def _max_jvp(ctx, x_t, *_):
    (index,) = ctx.saved_tensors
    return pool.max_pool_take(x_t, index, *ctx.lists), None


def _max_dx_setup(ctx, inputs, output):
    _, index, size, *lists, channels_last = inputs
    _keep(ctx, index)
    ctx.size, ctx.lists, ctx.channels_last = size, lists, channels_last


def _max_dx_backward(ctx, g):
    (index,) = ctx.saved_tensors
    return (pool.max_pool_take(g, index, *ctx.lists), *(None,) * 7)


def _max_dx_jvp(ctx, dy_t, *_):
    (index,) = ctx.saved_tensors
    return pool.max_pool_dx(dy_t, index, ctx.size, *ctx.lists, ctx.channels_last)


def _take_setup(ctx, inputs, output):
    x, index, *lists = inputs
    _keep(ctx, index)
    ctx.size, ctx.lists, ctx.channels_last = x.shape, lists, _channels_last(x)


def _take_backward(ctx, g):
    (index,) = ctx.saved_tensors
    dx = pool.max_pool_dx(g, index, ctx.size, *ctx.lists, ctx.channels_last)
    return (dx, *(None,) * 5)


def _take_jvp(ctx, x_t, *_):
    (index,) = ctx.saved_tensors
    return pool.max_pool_take(x_t, index, *ctx.lists)


def _sum_setup(ctx, inputs, output):
    x, *ctx.rest = inputs
    ctx.size, ctx.channels_last = x.shape, _channels_last(x)


def _sum_backward(ctx, dy):
    return (pool.sum_pool_dx(dy, ctx.size, *ctx.rest, ctx.channels_last), *(None,) * 6)


def _sum_jvp(ctx, x_t, *_):
    return pool.sum_pool(x_t, *ctx.rest)


def _sum_dx_setup(ctx, inputs, output):
    _, ctx.size, *ctx.rest, ctx.channels_last = inputs


def _sum_dx_backward(ctx, g):
    return (pool.sum_pool(g, *ctx.rest), *(None,) * 8)


def _sum_dx_jvp(ctx, dy_t, *_):
    return pool.sum_pool_dx(dy_t, ctx.size, *ctx.rest, ctx.channels_last)


def _lp_setup(ctx, inputs, output):
    x, *ctx.rest = inputs
    ctx.save_for_backward(x, output)


def _lp_backward(ctx, dy):
    x, y = ctx.saved_tensors
    return (pool.lp_pool_dx(dy, x, y, *ctx.rest), *(None,) * 6)


def _lp_dx_setup(ctx, inputs, output):
    dy, x, _, *ctx.rest = inputs
    ctx.save_for_backward(dy, x)


def _lp_dx_backward(ctx, g):
    with torch.enable_grad():
        dy, x = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        dx = pool.lp_dx_composed(dy, x, *ctx.rest)
        ddy, ddx = torch.autograd.grad(dx, (dy, x), g)
    return (ddy, ddx, *(None,) * 7)


FORMULAS: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {
    "max_pool": (_max_setup, _max_backward),
    "max_pool_dx": (_max_dx_setup, _max_dx_backward),
    "max_pool_take": (_take_setup, _take_backward),
    "sum_pool": (_sum_setup, _sum_backward),
    "sum_pool_dx": (_sum_dx_setup, _sum_dx_backward),
    "lp_pool": (_lp_setup, _lp_backward),
    "lp_pool_dx": (_lp_dx_setup, _lp_dx_backward),
}
_JVPS = {
    "max_pool": _max_jvp,
    "max_pool_dx": _max_dx_jvp,
    "max_pool_take": _take_jvp,
    "sum_pool": _sum_jvp,
    "sum_pool_dx": _sum_dx_jvp,
}
_TENSORS = {"max_pool_dx": 2, "max_pool_take": 2, "lp_pool_dx": 3}


def _join(t: Tensor, dim: int | None, batch: int) -> Tensor:
    """(B, N, ...) -> (B N, ...), B expanded where the tensor has none."""
    t = t.unsqueeze(0).expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.reshape(batch * t.shape[1], *t.shape[2:])


def batched(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule of an op; `run` computes the joined batch."""
    count = _TENSORS.get(name, 1)

    def rule(info, in_dims, *args):
        batch = info.batch_size
        tensors = [_join(t, d, batch) for t, d in zip(args[:count], in_dims, strict=False)]
        rest = list(args[count:])
        if name.endswith("_dx") and name != "lp_pool_dx":
            rest[0] = (batch * rest[0][0], *rest[0][1:])
        out = run(*tensors, *rest)
        if not isinstance(out, tuple):
            return out.reshape(batch, out.shape[0] // batch, *out.shape[1:]), 0
        y, index = out
        y = y.reshape(batch, y.shape[0] // batch, *y.shape[1:])
        if index.dim() == 1:  # nothing was kept
            return (y, index), (0, None)
        return (y, index.reshape(y.shape)), (0, 0)

    return rule


def _function(name: str) -> type[Function]:
    setup, backward = FORMULAS[name]

    def routed(*args):
        if name == "max_pool":
            return pool.max_pool(args[0], pool.Windows(*args[1:-1]), args[-1])
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
