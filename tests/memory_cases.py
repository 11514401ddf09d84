"""Run in a process with `malloc_probe.c` preloaded: measures what each CPU algorithm takes from
the allocator and prints one JSON object a line. `python memory_cases.py THREADS`"""

from __future__ import annotations

import ctypes
import json
import sys

import torch
from cases import CONV_CASES, DIRECTIONS, DTYPES, ConvCase, conv_case
from conv_runner import (
    ALGORITHMS,
    native_dtype,
    native_problem,
    operand_sizes,
    refusal,
    run_conv,
)

from fastconv import _C

# Large enough that scratch which grows with the problem stands out against the call's small change.
LARGE_CASES = (
    conv_case("3x3", (4, 48, 40, 40), (64, 48, 3, 3), padding=1),
    conv_case("3x3_channels", (1, 192, 14, 14), (256, 192, 3, 3), padding=1),
    conv_case("3x3_strided", (2, 64, 33, 35), (96, 64, 3, 3), stride=2, padding=1),
    conv_case("pointwise", (4, 128, 28, 28), (96, 128, 1, 1)),
    conv_case("depthwise", (4, 96, 40, 40), (96, 1, 3, 3), padding=1, groups=96),
    conv_case("stem", (2, 3, 112, 112), (32, 3, 7, 7), stride=2, padding=3),
    conv_case("1d", (4, 32, 2000), (48, 32, 9), padding=4),
    conv_case("3d", (1, 16, 12, 20, 20), (24, 16, 3, 3, 3), padding=1),
)


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    probe = ctypes.CDLL(None)
    for name in ("probe_current", "probe_peak", "probe_overruns"):
        getattr(probe, name).restype = ctypes.c_int64
    warm = conv_case("warm", (2, 16, 24, 24), (16, 16, 3, 3), padding=1)
    small = tuple((case, torch.float32) for case in CONV_CASES if "empty" not in case.tags)
    for algo in ALGORITHMS:
        for direction in DIRECTIONS:
            for case, dtype in (
                *((warm, dtype) for dtype in DTYPES),
                *((case, dtype) for case in LARGE_CASES for dtype in DTYPES),
                *small,
            ):
                if refusal(algo, case, direction, dtype):
                    continue
                measure(probe, algo, case, direction, dtype, case is not warm, threads)


def measure(
    probe: ctypes.CDLL,
    algo: str,
    case: ConvCase,
    direction: str,
    dtype: torch.dtype,
    report: bool,
    threads: int,
) -> None:
    a, b = (torch.ones(size, dtype=dtype) for size in operand_sizes(case, direction))
    probe.probe_reset()
    before = probe.probe_current()
    y = run_conv(algo, case, direction, (a, b))
    taken = probe.probe_peak() - before
    kept = probe.probe_current() - before
    y_bytes = y.numel() * y.element_size()
    del y
    if not report:
        return
    row = {
        "algo": algo,
        "direction": direction,
        "case": case.id,
        "dtype": str(dtype),
        "extra": taken - y_bytes,
        "kept": kept - y_bytes,
        "overruns": probe.probe_overruns(),
        "declared": _C.cpu_workspace(
            algo,
            native_problem(case),
            native_dtype(dtype),
            getattr(_C.Direction, direction),
            threads,
        ),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(int(sys.argv[1]))
