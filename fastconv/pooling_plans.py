"""Plans of pooling calls on the CPU, remembered by everything that they rest on.

Only a miss validates and chooses in full. What is remembered here is that our own kernels run: all
else, and every way of calling but the plainest, goes the long way each time.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_not
from typing import Any

import torch
from torch import Tensor

from fastconv import gpu, select
from fastconv.ops import pool
from fastconv.ops.pool import Windows
from fastconv.ops.pool_eager import LpPlan, MaxPlan, Plan, SumPlan, ordinary
from fastconv.plans import NO_KEY, Plans
from fastconv.pooling_call import batched, plain
from fastconv.problem import suggests_channels_last
from fastconv.select_pool import DIRECT

_plans: Plans = select.forget_with(Plans())  # (plan, numbers and flags as given)
_grad_enabled = torch.is_grad_enabled


def _key(
    function: str, rank: int, input: Tensor, numbers: tuple[Any, ...], flags: tuple[Any, ...],
    algo: Any,
) -> tuple[Any, ...]:  # fmt: skip
    cls, size, steps = input.__class__, input.shape, input.stride()
    return (function, rank, cls, size, steps, input.dtype, numbers, flags, algo)


def recalled(
    function: str,
    rank: int,
    input: Any,
    numbers: tuple[Any, ...],
    flags: tuple[Any, ...],
    algo: Any,
) -> Plan | None:
    """The plan that `remember` was given for these arguments.

    numbers: arguments that are integers or tuples of them or None. flags: True or False.
    """
    try:
        if gpu.device_key(input.device) != "cpu" or not ordinary():
            return None
        key = _key(function, rank, input, numbers, flags, algo)
        plan, known_numbers, known_flags = _plans[key]
    except (KeyError, *NO_KEY):  # KeyError: not remembered
        return None
    # 1 equals True and 1.0, which are errors where it is not, and the other way round.
    if any(map(is_not, flags, known_flags)):
        return None
    if any(map(is_not, numbers, known_numbers)) and not all(map(plain, numbers)):
        return None
    return plan


def remember(
    function: str,
    rank: int,
    input: Any,
    numbers: tuple[Any, ...],
    flags: tuple[Any, ...],
    algo: Any,
    name: str,
    make: Callable[[Tensor, int], Plan],
) -> None:
    """Keeps what `make` makes of input and rank, for a call that `name` was found right for."""
    if name != DIRECT or input.__class__ not in (Tensor, torch.nn.Parameter) or not ordinary():
        return
    if gpu.device_key(input.device) != "cpu" or not all(map(plain, numbers)):
        return
    plan = make(input, rank)
    if not plan.fits:
        return
    _plans.remember(_key(function, rank, input, numbers, flags, algo), (plan, numbers, flags))


def run(plan: Plan, input: Tensor, rank: int) -> Tensor:
    """The pooling of (N, C, *in) or (C, *in)."""
    unbatched = input.dim() != rank + 2
    x = input.unsqueeze(0) if unbatched else input
    y = plan.recorded(x) if x.requires_grad and _grad_enabled() else plan.value(x)
    return y.squeeze(0) if unbatched else y


def _shape(input: Tensor, rank: int) -> tuple[torch.Size, bool]:
    x = batched(input, rank)
    return x.shape, suggests_channels_last(x)


def max_plan(input: Tensor, rank: int, windows: Windows) -> Plan:
    """y, and in training the gradient, of a maximum."""
    size, last = _shape(input, rank)
    few = windows.taps(size[2:]) <= pool.MAX_BYTE_TAPS
    return MaxPlan(size, windows, last, (), pool.KEEP_BYTE if few else pool.KEEP_PLACE)


def sum_plan(input: Tensor, rank: int, windows: Windows, include_pad: bool, divisor: int) -> Plan:
    """Likewise of a sum."""
    size, last = _shape(input, rank)
    return SumPlan(size, windows, last, (windows.ceil_mode, include_pad, divisor))


def lp_plan(input: Tensor, rank: int, windows: Windows, power: float, rescale: bool) -> Plan:
    """Likewise of a power average."""
    size, last = _shape(input, rank)
    return LpPlan(size, windows, last, (windows.ceil_mode, power, rescale))
