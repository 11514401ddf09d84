"""Convolution in Triton, run by Triton's interpreter, against the float64 reference.

Blocks are small, so that every loop runs more than once on small problems.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import interpreted_triton
from cases import CONV_CASES, LAYOUTS, ConvCase
from tolerances import UNIT_ROUNDOFF, conv_tolerance

from fastconv import reference
from fastconv.testing import assert_conv_close

CASES = {case.id: case for case in CONV_CASES}
# Of every kind of problem, those that take the interpreter the least time.
CHOSEN = [
    "scalar", "image1_only_padding_taps", "fully_connected", "pointwise", "pointwise_stride2",
    "pointwise_pad1", "3x3_valid", "3x3_large_pad", "3x3_row", "stride_exceeds_kernel",
    "stride_exceeds_kernel_padded", "stride_exceeds_image", "unread_border",
    "dilation_over_padding", "stride3_dilation2", "groups3_stride2", "groups_pointwise", "1d",
    "1d_long_kernel", "1d_dilated_causal", "1d_stride_exceeds_kernel", "3d_flat", "3d_temporal",
]  # fmt: skip
PRECISIONS = {torch.float32: "ieee", torch.bfloat16: "ieee", torch.float16: "ieee"}


@pytest.fixture(scope="module")
def conv() -> Any:
    return interpreted_triton.load("conv")


def config(conv: Any, **different: Any) -> Any:
    return conv.Config(16, 16, 16, 4, 2, 2)._replace(**different)


def random(size: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(len(size))).to(dtype)


def tolerance(
    algo: str, direction: str, dtype: torch.dtype, expected: Tensor, magnitude: Tensor, gemm_k: int
) -> Tensor:
    bound = conv_tolerance(algo, direction, dtype, expected, magnitude, gemm_k)
    # The interpreter cuts float32 off where what is compiled rounds it to nearest.
    return bound + (UNIT_ROUNDOFF[dtype] * expected.abs() if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", [CASES[name] for name in CHOSEN], ids=lambda c: c.id)
def test_fprop(conv: Any, case: ConvCase, layout: str) -> None:
    dtype = list(PRECISIONS)[len(case.id) % 3]
    x = LAYOUTS[layout](random(case.input_size, dtype))
    w = LAYOUTS[layout](random(case.weight_size, dtype))
    bias = random((case.weight_size[0],), dtype)
    y = interpreted_triton.quietly(
        lambda: conv.conv_fprop(x, w, bias, *case.params, config=config(conv))
    )
    expected = reference.conv_fprop(x, w, bias, *case.params)
    magnitude = reference.conv_fprop(x, w, bias, *case.params, magnitude=True)
    bound = tolerance("im2col", "fprop", dtype, expected, magnitude, case.gemm_k("fprop"))
    assert y.dtype == dtype
    assert_conv_close(y, expected, bound, str(case))
