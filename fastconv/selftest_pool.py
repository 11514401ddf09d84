"""The self-test's part for pooling kernels: `fastconv.selftest` and `fastconv.trust` use it.

An instance is run through the ops, on problems for which they choose it: a problem of every kind
of window, larger than a block of threads, with ties, NaN and infinities among the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastconv import _C, gpu
from fastconv.pool_checks import (
    BITS,
    OPTIONS,
    PoolCase,
    PoolCheck,
    adaptive_case,
    difference,
    expected,
    placed,
    pool_case,
    run_op,
    ways_of,
)
from fastconv.problem import NATIVE_DTYPES
from fastconv.select_pool_cuda import PREFIX

OPS: Any = torch.ops.fastconv

# The first that an instance takes are its quick check.
PROBLEMS: tuple[PoolCase, ...] = (
    pool_case("3s2_special", (2, 32, 21, 32), 3, 2, 1, values="special"),
    pool_case("3s2", (3, 8, 22, 19), 3, 2, 1, ceil=True),
    pool_case("2s2_special", (2, 32, 16, 24), 2, values="special"),
    pool_case("2s2", (2, 16, 19, 21), 2),
    pool_case("3s1_special", (2, 32, 13, 32), 3, 1, 1, values="special"),
    pool_case("3s1", (2, 8, 15, 19), 3, 1, 1),
    pool_case("7s1_special", (2, 16, 13, 24), 7, 1, 3, values="special"),
    pool_case("7s1", (2, 8, 15, 17), 7, 1),
    adaptive_case("global_special", (4, 48, 9, 11), (1, 1), values="special"),
    adaptive_case("global", (3, 40, 14, 14), (1, 1)),
    pool_case("odd_special", (2, 5, 23, 17), 3, (1, 2), 1, values="special"),
    pool_case("odd", (2, 3, 19, 23), (3, 2), (2, 3), (1, 0), ceil=True),
    adaptive_case("adaptive", (2, 16, 19, 14), (4, 5), values="ties"),
    pool_case("dilated", (2, 5, 21, 17), 3, (1, 2), 2, (2, 3), values="special"),
    pool_case("many_taps", (1, 8, 34, 35), (16, 17), 5),
    pool_case("1d", (2, 6, 131), 4, 3, 2, values="special"),
    pool_case("3d", (1, 16, 7, 9, 11), 3, 2, 1, values="ties"),
)


@dataclass(frozen=True)
class PoolInstance:
    """One pooling kernel instance of this build."""

    kernel: str
    pass_: str
    kind: str
    dtype: torch.dtype
    channels_last: bool

    @property
    def name(self) -> str:
        return PREFIX + self.kernel

    def checks(self) -> Iterator[PoolCheck]:
        """What the ops run on it, each problem in the first of the ways to call that they do."""
        turns = len(OPTIONS[self.pass_, self.kind])
        for number, case in enumerate(PROBLEMS):
            if self.channels_last and case.rank == 1:
                continue  # PyTorch has no name for that memory format
            ways = ways_of(self.pass_, self.kind, case)
            turn = number % turns
            for options in (*ways[turn:], *ways[:turn]):
                check = PoolCheck(self.pass_, self.kind, self.dtype, case, options)
                if choice(check, self.channels_last) == self.kernel:
                    yield check
                    break


@cache
def instances() -> tuple[PoolInstance, ...]:
    """Every CUDA pooling kernel instance of this build."""
    dtypes = {native: dtype for dtype, native in NATIVE_DTYPES.items()}
    return tuple(
        PoolInstance(name, pass_.name, kind.name, dtypes[dtype], layout == _C.Layout.NHWC)
        for name, pass_, kind, dtype, layout in _C.cuda_pool_instances()
    )


def native_problem(case: PoolCase, module: Any = _C) -> Any:
    _, stride, padding, dilation = case.lists
    lists = (list(case.extents), list(case.windows.out), list(case.longest))
    return module.PoolProblem(*case.input_size[:2], *lists, stride, padding, dilation)


def choice(check: PoolCheck, channels_last: bool) -> str:
    """The instance that the op runs on tensors that are aligned as allocations are."""
    o = check.options
    return _C.cuda_pool_choice(
        getattr(_C.PoolPass, check.pass_),
        getattr(_C.PoolKind, check.kind),
        NATIVE_DTYPES[check.dtype],
        _C.Layout.NHWC if channels_last else _C.Layout.NCHW,
        native_problem(check.case),
        *(o.index, o.include_pad, o.divisor, o.power, o.rescale),
    )


def launch(
    instance: PoolInstance, check: PoolCheck, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """(result, index that was written or None) of the op, on the CPU."""
    operands = {
        name: placed(t, instance.channels_last, device)
        for name, t in expected(check).operands.items()
    }
    result, index = run_op(OPS, check, operands, instance.channels_last)
    return result.cpu(), None if index is None else index.cpu()


def _same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    as_int = BITS.get(a.dtype.itemsize, a.dtype)
    return torch.equal(a.contiguous().view(as_int), b.contiguous().view(as_int))


def check(instance: PoolInstance, device: torch.device, limit: int) -> tuple[int, str, float, bool]:
    """Runs the instance on its first `limit` problems: (how many were right, error, the largest
    error in units of the bound, whether the error says nothing of the instance)."""
    count, worst = 0, 0.0
    for problem in instance.checks():
        if count == limit:
            break
        try:
            first = launch(instance, problem, device)
            again = launch(instance, problem, device)
        except RuntimeError as error:
            inconclusive = gpu.out_of_memory(error)
            return count, f"{problem.case.id}: {error}", float("inf"), inconclusive
        count += 1
        wrong, ratio = difference(*first, expected(problem))
        worst = max(worst, ratio)
        if wrong:
            return count, f"{problem.case.id} {problem.options}: {wrong}", worst, False
        if not all(map(_same_bits, first, again)):
            return count, f"{problem.case.id}: two runs differ in their bits", worst, False
    return count, "" if count else "no problem of the self-test fits this instance", worst, False
