"""What the device tests of pooling share: the kernel instances, the problems on which an op chooses
each of them, operands on the device. Rehearsals are as in gpu_runner.py."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from conv_runner import hash_of
from gpu_runner import (
    DEVICE,
    ON_CPU_KERNELS,
    REHEARSAL,
    REHEARSED_CASES,
    REHEARSED_DTYPES,
    device_ops,
)
from pool_cases import checks
from torch import Tensor

from fastconv import selftest_pool
from fastconv.pool_checks import OPTIONS, PoolCheck, expected, placed, run_op
from fastconv.problem import strides_channels_last
from fastconv.selftest_pool import PoolInstance, choice

# What the format of a result follows from where nobody says it, by pass and kind.
_FOLLOWED = {("backward", "lp"): "x", ("gather", "max"): "x", ("unpool", "max"): "x"}


@cache
def pool_instances() -> tuple[PoolInstance, ...]:
    """Every CUDA pooling kernel instance of this build; empty where it has none. In the rehearsal
    on CPU kernels one of every pass, kind, dtype and layout."""
    if not ON_CPU_KERNELS:
        return selftest_pool.instances()

    def named(*what: Any) -> PoolInstance:
        return PoolInstance("_".join(map(str, what)), *what)

    return tuple(
        named(pass_, kind, dtype, last)
        for pass_, kind in OPTIONS
        for dtype, last in zip(REHEARSED_DTYPES, (False, True), strict=True)
    )


@cache
def one_of_each_pool() -> tuple[PoolInstance, ...]:
    """One instance per pass, kind, dtype and layout."""
    found: dict[Any, PoolInstance] = {}
    for i in pool_instances():
        found.setdefault((i.pass_, i.kind, i.dtype, i.channels_last), i)
    return tuple(found.values())


def reaches_layout(check: PoolCheck, channels_last: bool) -> bool:
    """Whether the op can be brought to this layout: 1-D tensors have one, and where the format
    follows from strides, extents of 1 tell nothing apart."""
    if check.case.rank == 1:
        return not channels_last
    followed = "x" if check.pass_ == "forward" else _FOLLOWED.get((check.pass_, check.kind))
    if followed is None:
        return True
    size = check.case.output_size if check.pass_ == "unpool" else check.case.input_size
    t = placed(torch.empty(size, device="meta"), channels_last, "meta")
    return strides_channels_last(t.shape, t.stride()) == channels_last


@cache
def pool_checks(instance: PoolInstance) -> list[PoolCheck]:
    """The problems, each in one of the ways to call, for which an op runs this instance."""

    def takes(check: PoolCheck) -> bool:
        if not reaches_layout(check, instance.channels_last):
            return False
        return ON_CPU_KERNELS or choice(check, instance.channels_last) == instance.kernel

    turn = hash_of(instance.kernel) % 60
    found = checks(instance.pass_, instance.kind, instance.dtype, turn, takes)
    if not REHEARSAL:
        return [*found, *instance.checks()]
    return found[:: max(1, len(found) // REHEARSED_CASES)][:REHEARSED_CASES]


def few_checks(instance: PoolInstance, count: int) -> list[PoolCheck]:
    """Some of them, spread over the list."""
    found = pool_checks(instance)
    return found[:: max(1, len(found) // count)][:count]


def ordinary_check(instance: PoolInstance) -> PoolCheck:
    """The largest without NaN or infinities, whose results can be compared as numbers."""
    found = [check for check in pool_checks(instance) if check.case.values != "special"]
    return max(found or pool_checks(instance), key=lambda c: torch.Size(c.case.input_size).numel())


def operands_of(instance: PoolInstance, check: PoolCheck) -> dict[str, Tensor]:
    """On the device, in the instance's layout."""
    return {
        name: placed(t, instance.channels_last, DEVICE)
        for name, t in expected(check).operands.items()
    }


def run_pool_op(
    instance: PoolInstance, check: PoolCheck, operands: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """(result, index that was written or None)."""
    return run_op(device_ops(), check, operands, instance.channels_last)
