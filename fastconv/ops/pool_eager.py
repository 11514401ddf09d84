"""Pooling on the CPU by remembered plans: a small problem takes less time than its call.

A plan holds all that a call is to know but the tensor: the geometry in integers, as the `.packed`
overloads take it, and how the gradient goes. Derivatives of derivatives, transforms and recording
leave by the functions of ops/pool.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from fastconv.ops import pool
from fastconv.ops.pool import Windows
from fastconv.problem import packed_moves, packed_sizes

_ops = torch.ops.fastconv
# Without the Python frame of OpOverload.__call__, which adds nothing to the operator.
_max_value = _ops.max_pool_fprop.value._op
_max = _ops.max_pool_fprop.packed._op
_max_dx = _ops.max_pool_dgrad.packed._op
_sum = _ops.sum_pool_fprop.packed._op
_sum_dx = _ops.sum_pool_dgrad.packed._op
_lp = _ops.lp_pool_fprop.packed._op
_lp_dx = _ops.lp_pool_dgrad.packed._op

_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_autocast = torch._C._is_any_autocast_enabled
_jit_tracing = torch._C._get_tracing_state


def ordinary() -> bool:
    """Whether operations are merely run: not recorded, transformed or cast."""
    return not (
        _is_compiling()
        or _transforms_active()
        or forward_ad._current_level >= 0
        or _dispatch_modes()
        or _any_autocast()
        or _jit_tracing() is not None
    )


class Plan:
    """One pooling of tensors (N, C, *in) of one shape and layout.

    windows: kernel and moves, packed. channels_last: the layout of x, and so of dx.
    """

    __slots__ = ("channels_last", "index", "lists", "packed", "rest", "size", "size_packed")

    def __init__(
        self,
        size: Sequence[int],
        windows: Windows,
        channels_last: bool,
        rest: tuple[Any, ...],
        index: int = pool.KEEP_NOTHING,
    ) -> None:
        self.size, self.channels_last = torch.Size(size), channels_last
        self.lists, self.rest, self.index = windows, rest, index
        kernel = packed_sizes(windows.kernel)
        self.packed = (kernel, packed_moves(*windows[1:4]))
        self.size_packed = packed_sizes(size[2:])

    @property
    def fits(self) -> bool:
        """Whether every number is small enough to be packed."""
        return None not in (*self.packed, self.size_packed)


class MaxPlan(Plan):
    """index: what training keeps."""

    __slots__ = ()

    def value(self, x: Tensor) -> Tensor:
        return _max_value(x, *self.packed, self.lists.ceil_mode)

    def recorded(self, x: Tensor) -> Tensor:
        return _apply_max(x, self)


class SumPlan(Plan):
    """rest: ceil_mode, include_pad, divisor."""

    __slots__ = ()

    def value(self, x: Tensor) -> Tensor:
        return _sum(x, *self.packed, *self.rest)

    def recorded(self, x: Tensor) -> Tensor:
        return _apply_sum(x, self)


class LpPlan(Plan):
    """rest: ceil_mode, power, rescale."""

    __slots__ = ()

    def value(self, x: Tensor) -> Tensor:
        return _lp(x, *self.packed, *self.rest)

    def recorded(self, x: Tensor) -> Tensor:
        return _apply_lp(x, self)


def _differentiated() -> bool:
    """In a backward pass: whether it has to be recorded or transformed itself."""
    return _grad_enabled() or pool.transforming() or pool.tracing()


class MaxOf(Function):
    """y of x; keeps the taps."""

    @staticmethod
    def forward(ctx, x, plan):
        y, index = _max(x, *plan.packed, plan.lists.ceil_mode, plan.index)
        ctx.save_for_backward(index)
        ctx.plan = plan
        return y

    @staticmethod
    def backward(ctx, dy):
        plan = ctx.plan
        (index,) = ctx.saved_tensors
        if _differentiated():
            lists = plan.lists[:4]
            return pool.max_pool_dx(
                dy, index, plan.size, *lists, plan.channels_last, "direct"
            ), None
        return _max_dx(dy, index, plan.size_packed, *plan.packed, plan.channels_last), None


class SumOf(Function):
    """y of x; keeps nothing."""

    @staticmethod
    def forward(ctx, x, plan):
        ctx.plan = plan
        return _sum(x, *plan.packed, *plan.rest)

    @staticmethod
    def backward(ctx, dy):
        plan, last = ctx.plan, ctx.plan.channels_last
        if _differentiated():
            args = (*plan.lists[:3], *plan.rest, last, "direct")
            return pool.sum_pool_dx(dy, plan.size, *args), None
        return _sum_dx(dy, plan.size_packed, *plan.packed, *plan.rest[1:], last), None


class LpOf(Function):
    """y of x; keeps both."""

    @staticmethod
    def forward(ctx, x, plan):
        y = _lp(x, *plan.packed, *plan.rest)
        ctx.save_for_backward(x, y)
        ctx.plan = plan
        return y

    @staticmethod
    def backward(ctx, dy):
        plan = ctx.plan
        x, y = ctx.saved_tensors
        if _differentiated():
            return pool.lp_pool_dx(dy, x, y, *plan.lists[:3], *plan.rest, "direct"), None
        return _lp_dx(dy, x, y, *plan.packed, *plan.rest[1:]), None


# Function.apply without its Python part, which looks for functorch; that is ruled out before.
_apply_max, _apply_sum, _apply_lp = (super(Function, f).apply for f in (MaxOf, SumOf, LpOf))
