"""Random problems, layouts and thread counts: what the list of cases did not think of."""

from __future__ import annotations

import pytest
import torch
from cases import DIRECTIONS, DTYPES, LAYOUTS, ConvCase, conv_case
from conv_runner import (
    ALGORITHMS,
    assert_close,
    operand_sizes,
    reference_conv,
    refusal,
    run_conv,
)
from hypothesis import assume, given
from hypothesis import strategies as st

MAX_MACS = 300_000


@st.composite
def problems(draw: st.DrawFn, winograd: bool = False) -> ConvCase:
    """A small problem; with `winograd`, of the kind that the tiles apply to."""
    rank = 2 if winograd else draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 5]))
    per_group = st.integers(1, 20) if rank < 3 else st.integers(1, 6)
    channels, filters = groups * draw(per_group), groups * draw(per_group)
    axes = []
    for _ in range(rank):
        kernel = 3 if winograd else draw(st.integers(1, 5))
        dilation = 1 if winograd else draw(st.integers(1, 3))
        stride = 1 if winograd else draw(st.integers(1, 4))
        padding = draw(st.integers(0, 4))
        least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
        extent = draw(st.integers(least, least + (24 // rank)))
        axes.append((extent, kernel, stride, padding, dilation))
    extent, kernel, stride, padding, dilation = zip(*axes, strict=True)
    case = conv_case(
        "random",
        (draw(st.integers(1, 4)), channels, *extent),
        (filters, channels // groups, *kernel),
        stride,
        padding,
        dilation,
        groups,
    )
    macs = torch.Size(case.output_size).numel() * case.gemm_k("fprop")
    assume(macs <= MAX_MACS)
    return case


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("algo", ALGORITHMS)
@given(data=st.data())
def test_random_problem(algo: str, direction: str, data: st.DataObject) -> None:
    case = data.draw(problems(winograd=algo.startswith("winograd")))
    dtype = data.draw(st.sampled_from(DTYPES))
    left, right = (data.draw(st.sampled_from(sorted(LAYOUTS))) for _ in range(2))
    channels_last = data.draw(st.booleans())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    assume(not refusal(algo, case, direction, dtype))
    a, b = (
        torch.randn(size, generator=generator).to(dtype) for size in operand_sizes(case, direction)
    )
    bias = None
    if direction == "fprop" and data.draw(st.booleans()):
        bias = torch.randn(case.weight_size[0], generator=generator).to(dtype)
    expected, magnitude = reference_conv(case, direction, (a, b), bias)
    operands = LAYOUTS[left](a), LAYOUTS[right](b)
    y = run_conv(algo, case, direction, operands, bias, channels_last)
    assert_close(y, expected, magnitude, algo, case, direction, f"{case} {left} {right}")
