"""The registered pooling ops that stand in traced graphs, with fake kernels, autograd and vmap.

`fastconv::max_pool_fprop`, `max_pool_dgrad`, `max_pool_at`, `sum_pool_*`, `lp_pool_*` are the bare
kernels below them, the same but for `ceil_mode`, which a backward kernel has no use for.
"""

from __future__ import annotations

import torch

from fastconv.ops import pool, pool_autograd
from fastconv.ops.pool_kernels import BARE
from fastconv.problem import dense_strides
from fastconv.problem import suggests_channels_last as _channels_last

_ops = torch.ops.fastconv
_lib = torch.library.Library("fastconv", "FRAGMENT")
_LISTS = "SymInt[] kernel, SymInt[] stride, SymInt[] padding"
_SCHEMAS = {
    "max_pool": f"(Tensor x, {_LISTS}, SymInt[] dilation, bool ceil_mode, int index)"
    " -> (Tensor, Tensor)",
    "max_pool_dx": f"(Tensor dy, Tensor index, SymInt[] input_size, {_LISTS}, SymInt[] dilation,"
    " bool channels_last) -> Tensor",
    "max_pool_take": f"(Tensor x, Tensor index, {_LISTS}, SymInt[] dilation) -> Tensor",
    "sum_pool": f"(Tensor x, {_LISTS}, bool ceil_mode, bool include_pad, SymInt divisor) -> Tensor",
    "sum_pool_dx": f"(Tensor dy, SymInt[] input_size, {_LISTS}, bool ceil_mode, bool include_pad,"
    " SymInt divisor, bool channels_last) -> Tensor",
    "lp_pool": f"(Tensor x, {_LISTS}, bool ceil_mode, float power, bool rescale) -> Tensor",
    "lp_pool_dx": f"(Tensor dy, Tensor x, Tensor y, {_LISTS}, bool ceil_mode, float power,"
    " bool rescale) -> Tensor",
}


def _fake(x, size, channels_last=None):
    last = _channels_last(x) if channels_last is None else channels_last and len(size) > 3
    return x.new_empty_strided(size, dense_strides(size, last))


def _fake_out(x, kernel, stride, padding, dilation, ceil_mode):
    windows = pool.Windows(kernel, stride, padding, dilation, ceil_mode)
    return _fake(x, [*x.shape[:2], *windows.out_extents(x.shape[2:])])


def _fake_max(x, kernel, stride, padding, dilation, ceil_mode, index):
    y = _fake_out(x, kernel, stride, padding, dilation, ceil_mode)
    if index == pool.KEEP_NOTHING:
        return y, x.new_empty([0], dtype=torch.uint8)
    dtype = torch.int64 if index == pool.KEEP_PLACE else torch.uint8
    return y, torch.empty_like(y, dtype=dtype)


def _fake_max_dx(dy, index, size, kernel, stride, padding, dilation, channels_last):
    return _fake(dy, size, channels_last)


def _fake_take(x, index, *_):
    return _fake(x, index.shape)


def _fake_sum(x, kernel, stride, padding, ceil_mode, *_):
    return _fake_out(x, kernel, stride, padding, [1] * len(kernel), ceil_mode)


def _fake_sum_dx(dy, size, *rest):
    return _fake(dy, size, rest[-1])


def _fake_lp_dx(dy, x, *_):
    return _fake(x, x.shape)


_FAKES = {
    "max_pool": (_fake_max, "max_pool_fprop"),
    "max_pool_dx": (_fake_max_dx, "max_pool_dgrad"),
    "max_pool_take": (_fake_take, "max_pool_at"),
    "sum_pool": (_fake_sum, "sum_pool_fprop"),
    "sum_pool_dx": (_fake_sum_dx, "sum_pool_dgrad"),
    "lp_pool": (_fake_sum, "lp_pool_fprop"),
    "lp_pool_dx": (_fake_lp_dx, "lp_pool_dgrad"),
}


def _register(name: str) -> None:
    _lib.define(name + _SCHEMAS[name])
    _lib.impl(name, lambda *args: BARE[name](*args), "CompositeExplicitAutograd")
    fake, bare = _FAKES[name]
    torch.library.register_fake(f"fastconv::{name}", fake, lib=_lib)
    torch.library.register_fake(f"fastconv::{bare}", fake, lib=_lib)
    setup, backward = pool_autograd.FORMULAS[name]
    torch.library.register_autograd(f"fastconv::{name}", backward, setup_context=setup, lib=_lib)
    op = getattr(_ops, name)
    torch.library.register_vmap(f"fastconv::{name}", pool_autograd.batched(name, op), lib=_lib)


for _name in _SCHEMAS:
    _register(_name)
