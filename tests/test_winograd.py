"""Winograd on the CPU beyond the common sweep: tile edges, cropping, several chunks, threads,
measured error constants, refusals and workspace bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import DIRECTIONS, DTYPES, LAYOUTS, ConvCase
from conv_runner import (
    assert_close,
    native_dtype,
    native_problem,
    random_operands,
    random_reference,
    reference_conv,
    refusal,
    run_conv,
)
from winograd_tolerance import ERROR_CONSTANT

from fastconv import _C

TILES = {"winograd_f2x2_3x3": 2, "winograd_f4x4_3x3": 4}
by_algo = pytest.mark.parametrize("algo", TILES)
by_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def case_3x3(
    batch: int,
    channels: int,
    size: tuple[int, int],
    filters: int,
    padding: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> ConvCase:
    name = f"{batch}x{channels}x{size[0]}x{size[1]}_{filters}_p{padding[0]}{padding[1]}_g{groups}"
    return ConvCase(
        name,
        (batch, channels, *size),
        (filters, channels // groups, 3, 3),
        stride=(1, 1),
        padding=padding,
        dilation=(1, 1),
        groups=groups,
    )


def check(algo: str, case: ConvCase, direction: str, dtype: torch.dtype, layout: str) -> None:
    a, b, bias = random_operands(case, direction, dtype)
    expected, magnitude = random_reference(case, direction, dtype)
    operands = LAYOUTS[layout](a), LAYOUTS[layout](b)
    y = run_conv(algo, case, direction, operands, bias, layout == "channels_last")
    assert_close(y, expected, magnitude, algo, case, direction, layout)


@by_direction
@by_algo
def test_every_remainder_of_the_tile(algo: str, direction: str, poisoned_empty: None) -> None:
    """Output extents 1 to 2 tiles + 1 on each axis, by padding that leaves, fills and crops."""
    for padding in (0, 1, 2, 3, 5):
        for out in range(1, 2 * TILES[algo] + 2):
            size = out + 2 - 2 * padding
            if size < 1:
                continue
            case = case_3x3(1, 9, (size, size + 2), 9, (padding, padding))
            for layout in ("contiguous", "channels_last"):
                check(algo, case, direction, torch.float32, layout)


@pytest.mark.parametrize("isa", _C.cpu_isas())
@by_direction
@by_algo
def test_block_remainders(algo: str, direction: str, isa: str, poisoned_empty: None) -> None:
    """Channel counts around the vector, panel and block sizes of each instruction set."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(isa)
    try:
        for channels, filters in ((64, 32), (65, 33), (63, 31), (7, 130), (129, 3)):
            case = case_3x3(1, channels, (5, 9), filters)
            for dtype in DTYPES:
                check(algo, case, direction, dtype, "contiguous")
                check(algo, case, direction, dtype, "channels_last")
    finally:
        _C.set_cpu_isa(before)


SEVERAL_CHUNKS = [
    case_3x3(2, 20, (150, 78), 18, (4, 0)),  # strips of 10 tiles; a chunk ends inside a row
    case_3x3(40, 24, (14, 14), 17),
    case_3x3(3, 8, (90, 90), 12, groups=2),
]


@pytest.mark.parametrize("case", SEVERAL_CHUNKS, ids=lambda c: c.id)
@by_direction
@by_algo
def test_several_chunks(algo: str, direction: str, case: ConvCase, poisoned_empty: None) -> None:
    for layout in ("contiguous", "channels_last", "reversed_axes"):
        check(algo, case, direction, torch.float32, layout)
    check(algo, case, direction, torch.float64, "contiguous")


@by_direction
@by_algo
def test_bits_do_not_depend_on_threads(
    algo: str, direction: str, set_threads: Callable[[int], None]
) -> None:
    """Also where the groups go to threads whole (groups >= threads) at some counts only."""
    cases = [
        *SEVERAL_CHUNKS,
        case_3x3(2, 48, (20, 20), 48),
        case_3x3(2, 48, (20, 20), 36, groups=3),
    ]
    for case in cases:
        a, b, bias = random_operands(case, direction, torch.float32)
        results = []
        for threads in (1, 2, 3, 5):
            set_threads(threads)
            results.append(run_conv(algo, case, direction, (a, b), bias))
        for result in results[1:]:
            assert torch.equal(results[0], result), case.id


@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
@by_algo
def test_filters_in_any_memory_order(algo: str, direction: str) -> None:
    """k, c, r, s permuted in memory, around the vectorised loads."""
    case = case_3x3(1, 16, (6, 6), 16)
    a, w, bias = random_operands(case, direction, torch.float32)
    expected, magnitude = random_reference(case, direction, torch.float32)
    for order in (
        (1, 0, 2, 3),
        (0, 1, 3, 2),
        (2, 3, 1, 0),
        (2, 3, 0, 1),
        (0, 2, 3, 1),
        (3, 2, 1, 0),
    ):
        back = [order.index(axis) for axis in range(4)]
        permuted = w.permute(order).contiguous().permute(back)
        y = run_conv(algo, case, direction, (a, permuted), bias)
        assert_close(y, expected, magnitude, algo, case, direction, str(order))


def error_ratio(algo: str, case: ConvCase, direction: str, dtype: torch.dtype) -> float:
    a, b, _ = random_operands(case, direction, dtype)
    # No bias: its term is exact and would only enlarge the magnitude.
    expected, magnitude = reference_conv(case, direction, (a, b))
    error = (run_conv(algo, case, direction, (a, b)).double() - expected).abs().max()
    return float(error / magnitude.max()) / 2.0**-24


@by_direction
@by_algo
def test_error_constants(algo: str, direction: str) -> None:
    """The documented constants hold with a factor of about two, and say something: the largest
    error is within a factor of 24 of them."""
    cases = [
        case_3x3(1, 1, (3, 3), 1),
        case_3x3(2, 1, (40, 40), 2),
        case_3x3(2, 64, (14, 14), 32),
        case_3x3(1, 512, (7, 7), 16),
        case_3x3(4, 16, (28, 28), 16),
    ]
    ratios = [error_ratio(algo, case, direction, torch.float32) for case in cases]
    assert max(ratios) <= ERROR_CONSTANT[algo] * 0.6, ratios
    assert max(ratios) >= ERROR_CONSTANT[algo] / 24, ratios


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stride": (2, 1)}, "Winograd needs stride 1, got 2x1"),
        ({"dilation": (1, 2)}, "Winograd needs dilation 1, got 1x2"),
        ({"weight_size": (4, 4, 3, 5)}, "Winograd needs a 3x3 filter, got 3x5"),
    ],
)
@by_algo
def test_refusals_name_the_value(algo: str, change: dict, reason: str) -> None:
    fields = {
        "id": "refused",
        "input_size": (1, 4, 9, 9),
        "weight_size": (4, 4, 3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "groups": 1,
    }
    case = ConvCase(**(fields | change))
    for direction in DIRECTIONS:
        assert refusal(algo, case, direction, torch.float32) == reason


@by_algo
def test_refuses_other_ranks(algo: str) -> None:
    problem = _C.ConvProblem([1, 4, 9], [4, 4, 3], [1], [1], [1], 1)
    reason = _C.cpu_applicable(algo, problem, _C.DType.float32, _C.Direction.fprop)
    assert reason == "Winograd needs rank 2, got rank 1"


@by_direction
@by_algo
def test_workspace_is_bounded(algo: str, direction: str) -> None:
    """Tens of MB beyond buffers of the weight's size, whatever the batch."""
    for channels, size, batch in ((64, 224, 8), (256, 56, 64), (512, 28, 64), (512, 7, 256)):
        case = case_3x3(batch, channels, (size, size), channels)
        bytes_used = _C.cpu_workspace(
            algo,
            native_problem(case),
            native_dtype(torch.float32),
            getattr(_C.Direction, direction),
            2,
        )
        weights = 4 * 9 * channels * channels
        assert 0 < bytes_used <= 32 * 2**20 + weights, (case.id, bytes_used)
