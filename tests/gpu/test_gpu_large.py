"""Tensors of more than 2^31 elements: offsets that do not fit 32 bits.

Only the far ends hold anything but zeros, so that a reference over a few rows is the whole answer.
An offset that wrapped would read zeros, or write into the wrong end.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import reference_conv, refusal
from gpu_runner import DEVICE, ON_CPU_KERNELS, REHEARSAL, instances, marks, run_algo
from torch import Tensor

from fastconv.testing import assert_conv_close
from fastconv.tolerances import conv_tolerance

pytestmark = marks()
DTYPE = torch.float32 if REHEARSAL else torch.bfloat16
SIDE = 32 if REHEARSAL else 4096
BATCH, CHANNELS, EDGE = 2, 64, 12  # EDGE: rows at each end that are not zero
ALGORITHMS = sorted({i.algorithm for i in instances() if i.dtype == DTYPE})
LAYOUTS = ("NCHW", "NHWC")


def large(kernel: int, groups: int) -> ConvCase:
    """x has 2 * 64 * 4097 * 4096 = 2^31 + 2^19 elements."""
    weight = (CHANNELS if groups > 1 else 2, CHANNELS // groups, kernel, kernel)
    size = (BATCH, CHANNELS, SIDE + 1, SIDE)
    return conv_case(f"large_{kernel}x{kernel}_g{groups}", size, weight, 1, kernel // 2, 1, groups)


LARGE = (large(3, 1), large(1, 1), large(3, CHANNELS))


def end_of(case: ConvCase) -> ConvCase:
    """The problem of one image's first or last EDGE rows alone."""
    size = (1, case.input_size[1], EDGE, case.input_size[3])
    return conv_case(
        f"{case.id}_end", size, case.weight_size, case.stride, case.padding, 1, case.groups
    )


def spread(size: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """Zeros but for the first EDGE rows of the first image and the last EDGE of the last."""
    last = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    t = torch.empty(size, dtype=dtype, device=DEVICE, memory_format=last).zero_()
    for part in (t[:1, :, :EDGE], t[-1:, :, -EDGE:]):
        part.copy_(torch.randn(part.shape, device=DEVICE))
    return t


@cache
def weight(case: ConvCase) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(case.weight_size, generator=generator).to(DEVICE, DTYPE)


def compare(
    result: Tensor,
    operands: tuple[Tensor, Tensor],
    case: ConvCase,
    direction: str,
    algorithm: str,
    rows: slice,
) -> None:
    """The rows of the result against the reference over the same end of the operands."""
    expected, magnitude = (t[:, :, rows] for t in reference_conv(case, direction, operands))
    bound = conv_tolerance(
        algorithm, direction, result.dtype, expected, magnitude, case.gemm_k(direction)
    )
    note = f"{algorithm} {direction} {case.id}"
    assert_conv_close(result[:, :, rows].cpu(), expected.cpu(), bound.cpu(), note)


def forced(algorithm: str, case: ConvCase, direction: str, operands, layout: str) -> Tensor | None:
    """The result, or None where the algorithm says that it does not apply or asks for a workspace
    that is not there."""
    if ON_CPU_KERNELS and refusal(algorithm, case, direction, DTYPE):
        return None
    try:
        return run_algo(algorithm, case, direction, operands, None, layout == "NHWC")
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        assert "does not apply" in str(error) or "out of memory" in str(error), error
        return None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
@pytest.mark.parametrize("direction", ["fprop", "dgrad"])
def test_both_ends(direction: str, case: ConvCase, layout: str) -> None:
    """fprop reads beyond 2^31 elements, dgrad (and depthwise fprop) writes there."""
    w = weight(case)
    if layout == "NHWC":
        w = w.contiguous(memory_format=torch.channels_last)
    size = case.input_size if direction == "fprop" else case.output_size
    a = spread(size, DTYPE, layout)
    ran = []
    for algorithm in ALGORITHMS:
        result = forced(algorithm, case, direction, (a, w), layout)
        if result is None:
            continue
        ran.append(algorithm)
        # Of each end's rows the outermost: the others have neighbours that the end lacks.
        head, tail = slice(0, EDGE - 2), slice(2, EDGE)
        for image, cut, rows in ((0, slice(0, EDGE), head), (1, slice(-EDGE, None), tail)):
            part = slice(image, image + 1), slice(None), cut
            compare(result[part], (a[part], w), end_of(case), direction, algorithm, rows)
        between = result[0, :, EDGE + 2 :], result[1, :, : -EDGE - 2]
        note = f"{algorithm} {direction} {case.id}: not zero between the ends"
        assert not any(bool(part.any()) for part in between), note
    assert ran, f"{direction} {case.id} {layout}: no algorithm ran"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.id)
def test_wgrad_of_both_ends(case: ConvCase, layout: str) -> None:
    """dw sums over all of x; all but the ends is zero."""
    x = spread(case.input_size, DTYPE, layout)
    dy = spread(case.output_size, DTYPE, layout)
    expected, magnitude = wgrad_of_ends(x, dy, case)
    ran = []
    for algorithm in ALGORITHMS:
        result = forced(algorithm, case, "wgrad", (dy, x), layout)
        if result is None:
            continue
        ran.append(algorithm)
        bound = conv_tolerance(algorithm, "wgrad", DTYPE, expected, magnitude, case.gemm_k("wgrad"))
        assert_conv_close(result.cpu(), expected.cpu(), bound.cpu(), f"{algorithm} {case.id}")
    assert ran, f"wgrad {case.id} {layout}: no algorithm ran"


def wgrad_of_ends(x: Tensor, dy: Tensor, case: ConvCase) -> tuple[Tensor, Tensor]:
    """(expected, magnitude), float64. Beyond an end's rows there are zeros, which add what the
    padding of the end alone adds: nothing."""
    parts = (
        reference_conv(end_of(case), "wgrad", (dy[image][:, :, cut], x[image][:, :, cut]))
        for image, cut in ((slice(0, 1), slice(0, EDGE)), (slice(1, 2), slice(-EDGE, None)))
    )
    return tuple(sum(terms) for terms in zip(*parts, strict=True))
