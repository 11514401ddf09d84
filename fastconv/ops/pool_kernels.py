"""The pooling kernels by the names of the recorded ops: no autograd, real tensors.

DIRECT holds the bare C++ ops, which dispatch on the tensors' device. The Triton launchers have the
same names, arguments and results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.fastconv
DIRECT: dict[str, Callable[..., Any]] = {
    # Without the Python frame of OpOverload.__call__, which adds nothing to the operator.
    name: getattr(_ops, name).default._op
    for name in (
        "max_pool_fprop",
        "max_pool_dgrad",
        "max_pool_at",
        "max_unpool_fprop",
        "sum_pool_fprop",
        "sum_pool_dgrad",
        "lp_pool_fprop",
        "lp_pool_dgrad",
        "sample_pool_fprop",
        "expectation_pool_fprop",
    )
}


def _kernel(name: str, algo: str) -> Callable[..., Any]:
    if algo == "direct":
        return DIRECT[name]
    from fastconv._triton import pool

    # What only derivatives of an odd kind need has no launcher of its own.
    return getattr(pool, name, None) or DIRECT[name]


def _same(name: str) -> Callable[..., Any]:
    """The recorded op's arguments are the bare op's and `algo`."""

    def run(*args: Any) -> Any:
        return _kernel(name, args[-1])(*args[:-1])

    return run


def _sum_dx(dy, size, kernel, stride, padding, ceil_mode, include_pad, divisor, last, algo):
    run = _kernel("sum_pool_dgrad", algo)
    return run(dy, size, kernel, stride, padding, include_pad, divisor, last)


def _lp_dx(dy, x, y, kernel, stride, padding, ceil_mode, power, rescale, algo):
    return _kernel("lp_pool_dgrad", algo)(dy, x, y, kernel, stride, padding, power, rescale)


def _max_unpool(x: Tensor, index: Tensor, size: Any, algo: str) -> Tensor:
    try:
        return _kernel("max_unpool_fprop", algo)(x, index, size)
    except RuntimeError as error:
        if "Found an invalid max index" in str(error):  # with the place in our sources before it
            _raise_as_pytorch(x, index, size[2:])
        raise


def _raise_as_pytorch(x: Tensor, index: Tensor, extents: Any) -> Any:
    if len(extents) == 1:
        return _raise_as_pytorch(x.unsqueeze(-1), index.unsqueeze(-1), (*extents, 1))
    if len(extents) == 2:
        return torch.ops.aten.max_unpool2d(x, index, extents)
    return torch.ops.aten.max_unpool3d(x, index, extents, [1] * 3, [0] * 3)


def _max_unpool_dx(dy: Tensor, index: Tensor, algo: str) -> Tensor:
    # Every place of the plane counts, so any windows do that yield the index's shape.
    kernel, rank = index.shape[2:], index.dim() - 2
    run = _kernel("max_pool_at", algo)
    return run(dy, index, kernel, [0] * rank, [0] * rank, [1] * rank)


BARE: dict[str, Callable[..., Any]] = {
    "max_pool": _same("max_pool_fprop"),
    "max_pool_dx": _same("max_pool_dgrad"),
    "max_pool_take": _same("max_pool_at"),
    "max_unpool": _max_unpool,
    "max_unpool_dx": _max_unpool_dx,
    "sum_pool": _same("sum_pool_fprop"),
    "sum_pool_dx": _sum_dx,
    "lp_pool": _same("lp_pool_fprop"),
    "lp_pool_dx": _lp_dx,
    "sample_pool": _same("sample_pool_fprop"),
    "expectation_pool": _same("expectation_pool_fprop"),
}
