"""Every CPU algorithm x problem x direction x dtype x memory layout against the float64
reference."""

from __future__ import annotations

import re

import pytest
import torch
from cases import CONV_CASES, DIRECTIONS, DTYPES, LAYOUT_PAIRS, LAYOUTS, ConvCase
from conv_runner import (
    ALGORITHMS,
    EXPANDED,
    assert_close,
    assert_dense_as,
    expanded_problem,
    integer_operands,
    integer_reference,
    random_operands,
    random_reference,
    reference_conv,
    refusal,
    run_conv,
)

from fastconv import _C

by_algo = pytest.mark.parametrize("algo", ALGORITHMS)
by_case = pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.id)
by_direction = pytest.mark.parametrize("direction", DIRECTIONS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

# Of the Winograd tiles only F(2x2,3x3) has transforms that are exact in binary (halves).
EXACT = tuple(
    a for a in ALGORITHMS if not a.startswith("winograd") or a.startswith("winograd_f2x2")
)


def applies(algo: str, case: ConvCase, direction: str, dtype: torch.dtype) -> bool:
    """False after checking that a refusal is a proper one: raised by the op, in the words of the
    registry, and with a value of the problem in it."""
    reason = refusal(algo, case, direction, dtype)
    if not reason:
        return True
    known = {*case.input_size, *case.weight_size, *case.output_size, case.groups, case.rank}
    known |= {*case.stride, *case.padding, *case.dilation}
    assert known & {int(n) for n in re.findall(r"\d+", reason)}, f"no value in: {reason}"
    if "empty" not in case.tags:
        with pytest.raises(RuntimeError, match=re.escape(reason)):
            run_conv(algo, case, direction, random_operands(case, direction, dtype)[:2])
    return False


@by_direction
@by_dtype
@by_case
@by_algo
def test_against_reference(
    algo: str, case: ConvCase, dtype: torch.dtype, direction: str, poisoned_empty: None
) -> None:
    if not applies(algo, case, direction, dtype):
        return
    a, b, bias = random_operands(case, direction, dtype)
    expected, magnitude = random_reference(case, direction, dtype)
    for left, right in LAYOUT_PAIRS:
        operands = LAYOUTS[left](a), LAYOUTS[right](b)
        want_channels_last = left == "channels_last"
        y = run_conv(algo, case, direction, operands, bias, want_channels_last)
        note = f"{left}, {right}"
        assert y.dtype == dtype
        assert_close(y, expected, magnitude, algo, case, direction, note)
        if direction == "fprop":
            either = any(
                t.dim() > 3
                and torch._prims_common.suggest_memory_format(t) != torch.contiguous_format
                for t in operands
            )
            assert_dense_as(y, either, note)
        else:
            assert_dense_as(y, want_channels_last, note)
    if direction == "fprop":
        expected, magnitude = reference_conv(case, direction, (a, b))
        y = run_conv(algo, case, direction, (a, b))
        assert_close(y, expected, magnitude, algo, case, direction, "no bias")


@by_direction
@by_case
@by_algo
def test_expanded(algo: str, case: ConvCase, direction: str, poisoned_empty: None) -> None:
    """Stride 0 on any axis of either operand.

    Integers, because a sum of equal terms rounds the same way at each step, which the tolerance
    for random terms does not cover."""
    if not applies(algo, case, direction, torch.float32):
        return
    for name, which in EXPANDED:
        operands, expected, magnitude = expanded_problem(case, direction, name, which)
        y = run_conv(algo, case, direction, operands)
        if algo in EXACT:
            assert torch.equal(y, expected.float()), f"{name} {which}: {(y - expected).abs().max()}"
        else:
            assert_close(y, expected, magnitude, algo, case, direction, f"{name} {which}")


@by_direction
@by_case
@pytest.mark.parametrize("algo", EXACT)
def test_small_integers_are_exact(algo: str, case: ConvCase, direction: str) -> None:
    """Sums of small integers are exact in float32, so nothing but a wrong term can differ."""
    a, b, bias = integer_operands(case, direction)
    expected = integer_reference(case, direction)
    for dtype in DTYPES:
        if not applies(algo, case, direction, dtype):
            continue
        typed_bias = None if bias is None else bias.to(dtype)
        for name in ("contiguous", "channels_last"):
            layout = LAYOUTS[name]
            y = run_conv(
                algo, case, direction, (layout(a.to(dtype)), layout(b.to(dtype))), typed_bias
            )
            wrong = (y != expected.to(dtype)).sum()
            assert not wrong, f"{dtype} {name}: {wrong} of {y.numel()} elements differ"


@pytest.mark.parametrize("isa", [i for i in _C.cpu_isas() if i != _C.cpu_isa()])
@by_direction
@by_dtype
@by_algo
def test_other_instruction_sets(
    algo: str, dtype: torch.dtype, direction: str, isa: str, poisoned_empty: None
) -> None:
    """The sets that this machine has but would not choose."""
    before = _C.cpu_isa()
    _C.set_cpu_isa(isa)
    try:
        for case in CONV_CASES:
            if refusal(algo, case, direction, dtype):
                continue
            a, b, bias = random_operands(case, direction, dtype)
            expected, magnitude = random_reference(case, direction, dtype)
            for name in ("contiguous", "channels_last"):
                y = run_conv(algo, case, direction, (LAYOUTS[name](a), LAYOUTS[name](b)), bias)
                assert_close(y, expected, magnitude, algo, case, direction, f"{isa} {name}")
    finally:
        _C.set_cpu_isa(before)


def test_unknown_algorithm_is_refused() -> None:
    case = next(c for c in CONV_CASES if c.id == "3x3")
    with pytest.raises(RuntimeError, match="unknown CPU algorithm 'winogrod'"):
        run_conv("winogrod", case, "fprop", random_operands(case, "fprop", torch.float32)[:2])
