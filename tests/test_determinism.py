"""Same input, same bits: from run to run, on any number of threads; and offsets beyond 32 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import DIRECTIONS, DTYPES, LAYOUTS, ConvCase, conv_case
from conv_runner import (
    ALGORITHMS,
    assert_close,
    random_operands,
    reference_conv,
    refusal,
    run_conv,
)
from torch import Tensor

from fastconv import reference

by_algo = pytest.mark.parametrize("algo", ALGORITHMS)
by_direction = pytest.mark.parametrize("direction", DIRECTIONS)

# Each above the size from which kernels start threads (a few hundred thousand multiply-adds).
THREADED_CASES = (
    conv_case("3x3", (2, 24, 26, 27), (40, 24, 3, 3), padding=1),
    conv_case("3x3_long_sum", (9, 4, 40, 41), (5, 4, 3, 3), padding=1),
    conv_case("3x3_deep", (1, 200, 9, 7), (72, 200, 3, 3), padding=1),
    conv_case("strided", (3, 20, 31, 30), (33, 20, 3, 3), stride=2, padding=1),
    conv_case("pointwise", (2, 96, 17, 19), (50, 96, 1, 1)),
    conv_case("one_filter", (1, 64, 40, 40), (1, 64, 3, 3), padding=1),
    conv_case("groups", (2, 32, 24, 24), (48, 8, 3, 3), padding=1, groups=4),
    conv_case("depthwise", (4, 37, 40, 39), (37, 1, 3, 3), padding=1, groups=37),
    conv_case("dilated", (1, 24, 34, 33), (24, 24, 3, 3), padding=3, dilation=3),
    conv_case("1d", (2, 24, 1500), (32, 24, 5), padding=2),
    conv_case("3d", (1, 8, 9, 14, 15), (16, 8, 3, 3, 3), padding=1),
)
by_case = pytest.mark.parametrize("case", THREADED_CASES, ids=lambda c: c.id)


@by_direction
@by_case
@by_algo
def test_bits_do_not_depend_on_run_or_threads(
    algo: str, case: ConvCase, direction: str, set_threads: Callable[[int], None]
) -> None:
    for dtype in DTYPES:
        if refusal(algo, case, direction, dtype):
            continue
        a, b, bias = random_operands(case, direction, dtype)
        for name in ("contiguous", "channels_last"):
            operands = LAYOUTS[name](a), LAYOUTS[name](b)
            set_threads(1)
            first = run_conv(algo, case, direction, operands, bias)
            for threads in (1, 2, 3, 4):
                set_threads(threads)
                again = run_conv(algo, case, direction, operands, bias)
                wrong = int((first != again).sum())
                assert not wrong, (
                    f"{dtype} {name}: {wrong} of {first.numel()} elements differ between 1 and"
                    f" {threads} threads"
                )


@by_direction
@by_case
@by_algo
def test_threaded_against_reference(
    algo: str,
    case: ConvCase,
    direction: str,
    set_threads: Callable[[int], None],
    poisoned_empty: None,
) -> None:
    """The problems of the other sweeps are too small to be shared out."""
    if refusal(algo, case, direction, torch.float32):
        return
    a, b, bias = random_operands(case, direction, torch.float32)
    expected, magnitude = reference_conv(case, direction, (a, b), bias)
    for threads in (2, 3):
        set_threads(threads)
        y = run_conv(algo, case, direction, (a, b), bias)
        assert_close(y, expected, magnitude, algo, case, direction, f"{threads} threads")


# --- offsets beyond 32 bits, without the memory: strides over a sparse file ----------------------

FAR = 2**31 + 5  # elements
FAR_CASE = conv_case("far", (2, 2, 4, 5), (2, 2, 3, 3), padding=1)


def far_apart(t: Tensor, axis: int, path: Path) -> Tensor:
    """A copy of `t` with stride FAR on one axis, in a mapped file whose untouched pages take no
    space."""
    inner = [n for i, n in enumerate(t.shape) if i != axis]
    dense = iter(torch.empty(inner).stride())
    strides = [FAR if i == axis else next(dense) for i in range(t.dim())]
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True))
    store = torch.from_file(str(path), shared=True, size=span, dtype=t.dtype)
    return torch.as_strided(store, t.shape, strides).copy_(t)


@pytest.mark.parametrize("axis", range(4), ids=["axis0", "axis1", "axis2", "axis3"])
@by_direction
@by_algo
def test_strides_beyond_32_bits(algo: str, direction: str, axis: int, tmp_path: Path) -> None:
    a, b, _ = random_operands(FAR_CASE, direction, torch.float32)
    if refusal(algo, FAR_CASE, direction, torch.float32):
        return
    expected, magnitude = reference_conv(FAR_CASE, direction, (a, b))
    for which in range(2):
        operands = [a, b]
        operands[which] = far_apart(operands[which], axis, tmp_path / "far")
        y = run_conv(algo, FAR_CASE, direction, tuple(operands))
        assert_close(y, expected, magnitude, algo, FAR_CASE, direction, f"operand {which}")
        del operands
        (tmp_path / "far").unlink()


HUGE = 2**32 + 50
HUGE_CASES = (
    conv_case("huge_stride", (1, 2, HUGE), (3, 2, 3), stride=2**30 + 1, padding=1),
    conv_case("huge_dilation", (1, 2, HUGE), (3, 2, 2), stride=7, dilation=HUGE - 40),
    conv_case("huge_padding", (1, 2, 5), (2, 2, 3), stride=2**29, padding=2**31 + 7),
    conv_case("huge_rows", (1, 1, HUGE, 3), (2, 1, 2, 2), stride=(2**31 + 3, 1)),
)


@pytest.mark.parametrize("case", HUGE_CASES, ids=lambda c: c.id)
@pytest.mark.parametrize("direction", ["fprop", "wgrad"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_extents_beyond_32_bits(algo: str, direction: str, case: ConvCase, tmp_path: Path) -> None:
    """An input of billions of elements in a sparse file, and few outputs."""
    if refusal(algo, case, direction, torch.float32):
        return
    size = torch.Size(case.input_size)
    store = torch.from_file(str(tmp_path / "huge"), shared=True, size=size.numel())
    x = store.view(size)
    for p in range(case.output_size[2]):
        for r in range(case.weight_size[2]):
            h = p * case.stride[0] - case.padding[0] + r * case.dilation[0]
            if 0 <= h < size[2]:
                x[:, :, h] = torch.randint(1, 5, x[:, :, h].shape).float()
    other = case.weight_size if direction == "fprop" else case.output_size
    other = torch.randint(1, 5, other).float()
    if direction == "fprop":
        operands, last = (x, other), None
    else:
        operands, last = (other, x), case.weight_size
    reference_of = {"fprop": reference.conv_fprop, "wgrad": reference.conv_wgrad}[direction]
    expected = reference_of(*operands, last, *case.params)
    assert case.id == "huge_padding" or expected.count_nonzero() == expected.numel()
    assert torch.equal(run_conv(algo, case, direction, operands), expected.float())
