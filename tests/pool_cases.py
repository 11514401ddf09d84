"""The pooling problems that every sweep runs over, kept small: a few hundred outputs each, so that
kernel instances x dtypes x layouts stay within half a minute of emulation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastconv.pool_checks import (
    PoolCase,
    PoolCheck,
    adaptive_case,
    pool_case,
    ways_of,
)

# Extents of usual kernels first: what is compiled for one kernel and stride takes these only. Then
# what is left for kernels that take everything.
POOL_CASES: tuple[PoolCase, ...] = (
    pool_case("2s2", (1, 16, 8, 16), 2),
    pool_case("2s2_odd", (2, 5, 7, 11), 2),
    pool_case("2s2_special", (1, 24, 5, 8), 2, values="special"),
    pool_case("2s2_ceil", (1, 8, 7, 9), 2, ceil=True),
    pool_case("3s2", (1, 16, 9, 16), 3, 2, 1),
    pool_case("3s2_ceil", (1, 5, 8, 10), 3, 2, ceil=True),
    pool_case("3s2_special", (2, 3, 10, 7), 3, 2, 1, values="special"),
    pool_case("3s2_vector", (1, 32, 6, 5), 3, 2, 1, values="special"),
    pool_case("3s1", (1, 16, 5, 16), 3, 1, 1),
    pool_case("3s1_odd", (2, 3, 6, 7), 3, 1, 1, values="ties"),
    pool_case("3s1_special", (1, 8, 5, 6), 3, 1, 1, values="special"),
    pool_case("7s1", (2, 8, 7, 8), 7, 1),
    pool_case("7s1_padded", (1, 8, 9, 10), 7, 1, 3, values="special"),
    pool_case("7s1_odd", (1, 3, 8, 17), 7, 1, values="ties"),
    pool_case("7s2", (1, 16, 8, 9), 7, 2, 3, ceil=True, values="ties"),
    adaptive_case("global", (2, 24, 5, 7), (1, 1)),
    adaptive_case("global_special", (3, 3, 7, 6), (1, 1), values="special"),
    adaptive_case("global_channels", (2, 16, 6, 7), (1, 1), values="special"),
    adaptive_case("global_ties", (3, 8, 4, 5), (1, 1), values="ties"),
    adaptive_case("global_3d", (1, 8, 3, 4, 5), (1, 1, 1)),
    adaptive_case("adaptive", (1, 16, 10, 7), (3, 5)),
    adaptive_case("adaptive_wider", (2, 3, 3, 4), (5, 7), values="ties"),
    pool_case("ties", (1, 8, 9, 8), 3, 2, 1, values="ties"),
    pool_case("dilated", (1, 5, 11, 9), 3, (1, 2), 2, (2, 3), values="special"),
    pool_case("asymmetric", (2, 3, 9, 11), (3, 2), (2, 3), (1, 0), ceil=True, values="ties"),
    pool_case("stride_beyond_kernel", (1, 16, 9, 11), 2, 4, 1),
    pool_case("one_pixel", (3, 7, 1, 1), 1),
    pool_case("one_channel", (2, 1, 13, 9), 3, 2, 1, ceil=True, values="special"),
    pool_case("many_taps", (1, 2, 17, 18), (16, 17), 1),
    pool_case("1d", (2, 3, 37), 4, 3, 2, values="special"),
    pool_case("1d_channels", (2, 16, 13), 3, 2, 1),
    adaptive_case("1d_adaptive", (1, 5, 19), (4,), values="special"),
    pool_case("3d", (1, 3, 5, 6, 7), 3, 2, 1, ceil=True),
    pool_case("3d_channels", (1, 16, 3, 4, 4), 2, values="special"),
    adaptive_case("3d_adaptive", (1, 4, 5, 4, 3), (2, 3, 2)),
)
# Dilation is max pooling's alone.
UNDILATED = tuple(case for case in POOL_CASES if set(case.dilation) == {1})


def checks(
    pass_: str,
    kind: str,
    dtype: torch.dtype,
    turn: int,
    takes: Callable[[PoolCheck], bool] = lambda check: True,
) -> list[PoolCheck]:
    """Every case, in one of the ways to call that `takes` says yes to; which, goes round with the
    case and with `turn`."""
    found = []
    for number, case in enumerate(POOL_CASES if kind == "max" else UNDILATED):
        ways = ways_of(pass_, kind, case)
        start = (number + turn) % len(ways)
        for options in (*ways[start:], *ways[:start]):
            check = PoolCheck(pass_, kind, dtype, case, options)
            if takes(check):
                found.append(check)
                break
    return found
