"""The registered pooling ops that stand in traced graphs, with fake kernels, autograd and vmap.

`fastconv::max_pool_fprop`, `max_pool_dgrad`, `max_pool_at`, … are the bare kernels below them, the
same but for `algo` and for `ceil_mode`, which a backward kernel has no use for.
"""

from __future__ import annotations

import torch

from fastconv.ops import pool, pool_autograd
from fastconv.ops.pool_kernels import BARE
from fastconv.ops.pool_vmap import batched
from fastconv.problem import dense_strides, unpacked_moves, unpacked_sizes
from fastconv.problem import suggests_channels_last as _channels_last

_ops = torch.ops.fastconv
_lib = torch.library.Library("fastconv", "FRAGMENT")
_LISTS = "SymInt[] kernel, SymInt[] stride, SymInt[] padding"
_SCHEMAS = {
    "max_pool": f"(Tensor x, {_LISTS}, SymInt[] dilation, bool ceil_mode, int index, str algo)"
    " -> (Tensor, Tensor)",
    "max_pool_dx": f"(Tensor dy, Tensor index, SymInt[] input_size, {_LISTS}, SymInt[] dilation,"
    " bool channels_last, str algo) -> Tensor",
    "max_pool_take": f"(Tensor x, Tensor index, {_LISTS}, SymInt[] dilation, str algo) -> Tensor",
    "max_unpool": "(Tensor x, Tensor index, SymInt[] output_size, str algo) -> Tensor",
    "max_unpool_dx": "(Tensor dy, Tensor index, str algo) -> Tensor",
    "sum_pool": f"(Tensor x, {_LISTS}, bool ceil_mode, bool include_pad, SymInt divisor, str algo)"
    " -> Tensor",
    "sum_pool_dx": f"(Tensor dy, SymInt[] input_size, {_LISTS}, bool ceil_mode, bool include_pad,"
    " SymInt divisor, bool channels_last, str algo) -> Tensor",
    "lp_pool": f"(Tensor x, {_LISTS}, bool ceil_mode, float power, bool rescale, str algo)"
    " -> Tensor",
    "lp_pool_dx": f"(Tensor dy, Tensor x, Tensor y, {_LISTS}, bool ceil_mode, float power,"
    " bool rescale, str algo) -> Tensor",
    "sample_pool": f"(Tensor x, Tensor seed, {_LISTS}, bool ceil_mode, int index, str algo)"
    " -> (Tensor, Tensor)",
    "expectation_pool": f"(Tensor x, {_LISTS}, bool ceil_mode, str algo) -> Tensor",
}


def _fake(x, size, channels_last=None):
    last = _channels_last(x) if channels_last is None else channels_last and len(size) > 3
    return x.new_empty_strided(size, dense_strides(size, last))


def _fake_out(x, kernel, stride, padding, dilation, ceil_mode):
    windows = pool.Windows(kernel, stride, padding, dilation, ceil_mode)
    return _fake(x, [*x.shape[:2], *windows.out_extents(x.shape[2:])])


def _fake_choice(y, index):
    if index == pool.KEEP_NOTHING:
        return y, y.new_empty([0], dtype=torch.uint8)
    dtype = torch.int64 if index == pool.KEEP_PLACE else torch.uint8
    return y, torch.empty_like(y, dtype=dtype)


def _fake_max(x, kernel, stride, padding, dilation, ceil_mode, index, *_):
    return _fake_choice(_fake_out(x, kernel, stride, padding, dilation, ceil_mode), index)


def _fake_sample(x, seed, kernel, stride, padding, ceil_mode, index, *_):
    dilation = [1] * len(kernel)
    return _fake_choice(_fake_out(x, kernel, stride, padding, dilation, ceil_mode), index)


def _fake_max_dgrad(dy, index, size, kernel, stride, padding, dilation, channels_last, *_):
    return _fake(dy, size, channels_last)


def _fake_at(x, index, *_):
    return _fake(x, index.shape)


def _fake_unpool(x, index, size, *_):
    return _fake(x, size)


def _fake_sum(x, kernel, stride, padding, ceil_mode, *_):
    return _fake_out(x, kernel, stride, padding, [1] * len(kernel), ceil_mode)


def _fake_sum_dx(dy, size, *rest):
    return _fake(dy, size, rest[-2])


def _fake_sum_dgrad(dy, size, *rest):
    return _fake(dy, size, rest[-1])


def _fake_lp_dgrad(dy, x, *_):
    return _fake(x, x.shape)


def _lists(x, kernel, moves):
    rank = x.dim() - 2
    return (unpacked_sizes(kernel, rank), *unpacked_moves(moves, rank))


def _fake_packed(x, kernel, moves, ceil_mode, *_):
    return _fake_out(x, *_lists(x, kernel, moves), ceil_mode)


def _fake_max_packed(x, kernel, moves, ceil_mode, index):
    return _fake_choice(_fake_packed(x, kernel, moves, ceil_mode), index)


def _fake_max_dgrad_packed(dy, index, input, *rest):
    return _fake_dgrad_packed(dy, input, *rest)


def _fake_dgrad_packed(dy, input, *rest):
    size = [*dy.shape[:2], *unpacked_sizes(input, dy.dim() - 2)]
    return _fake(dy, size, rest[-1])


_FAKES = {
    "max_pool": _fake_max,
    "max_pool_dx": _fake_max_dgrad,
    "max_pool_take": _fake_at,
    "max_unpool": _fake_unpool,
    "max_unpool_dx": _fake_at,
    "sum_pool": _fake_sum,
    "sum_pool_dx": _fake_sum_dx,
    "lp_pool": _fake_sum,
    "lp_pool_dx": _fake_lp_dgrad,
    "sample_pool": _fake_sample,
    "expectation_pool": _fake_sum,
    "max_pool_fprop": _fake_max,
    "max_pool_dgrad": _fake_max_dgrad,
    "max_pool_at": _fake_at,
    "max_unpool_fprop": _fake_unpool,
    "sum_pool_fprop": _fake_sum,
    "sum_pool_dgrad": _fake_sum_dgrad,
    "lp_pool_fprop": _fake_sum,
    "lp_pool_dgrad": _fake_lp_dgrad,
    "sample_pool_fprop": _fake_sample,
    "expectation_pool_fprop": _fake_sum,
    "max_pool_fprop.value": _fake_packed,
    "max_pool_fprop.packed": _fake_max_packed,
    "max_pool_dgrad.packed": _fake_max_dgrad_packed,
    "sum_pool_fprop.packed": _fake_packed,
    "sum_pool_dgrad.packed": _fake_dgrad_packed,
    "lp_pool_fprop.packed": _fake_packed,
    "lp_pool_dgrad.packed": _fake_lp_dgrad,
}


def _register(name: str) -> None:
    _lib.define(name + _SCHEMAS[name])
    _lib.impl(name, lambda *args: BARE[name](*args), "CompositeExplicitAutograd")
    setup, backward = pool_autograd.FORMULAS[name]
    torch.library.register_autograd(f"fastconv::{name}", backward, setup_context=setup, lib=_lib)
    op = getattr(_ops, name)
    torch.library.register_vmap(f"fastconv::{name}", batched(name, op), lib=_lib)


for _name in _SCHEMAS:
    _register(_name)
for _name, _function in _FAKES.items():
    torch.library.register_fake(f"fastconv::{_name}", _function, lib=_lib)
