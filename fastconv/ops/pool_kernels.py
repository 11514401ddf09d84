"""The bare pooling kernels by the names of the registered ops: no autograd, real tensors."""

from __future__ import annotations

import torch

_ops = torch.ops.fastconv
# Without the Python frame of OpOverload.__call__, which adds nothing to the operator.
_sum_dgrad, _lp_dgrad = _ops.sum_pool_dgrad.default._op, _ops.lp_pool_dgrad.default._op


def _sum_dx(dy, size, kernel, stride, padding, ceil_mode, include_pad, divisor, channels_last):
    return _sum_dgrad(dy, size, kernel, stride, padding, include_pad, divisor, channels_last)


def _lp_dx(dy, x, y, kernel, stride, padding, ceil_mode, power, rescale):
    return _lp_dgrad(dy, x, y, kernel, stride, padding, power, rescale)


BARE = {
    "max_pool": _ops.max_pool_fprop.default._op,
    "max_pool_dx": _ops.max_pool_dgrad.default._op,
    "max_pool_take": _ops.max_pool_at.default._op,
    "sum_pool": _ops.sum_pool_fprop.default._op,
    "sum_pool_dx": _sum_dx,
    "lp_pool": _ops.lp_pool_fprop.default._op,
    "lp_pool_dx": _lp_dx,
}
