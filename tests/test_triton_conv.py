"""Convolution in Triton, run by Triton's interpreter, against the float64 reference.

Blocks are small, so that every loop runs more than once on small problems.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import interpreted_triton
from cases import CONV_CASES, LAYOUTS, ConvCase, conv_case
from tolerances import UNIT_ROUNDOFF, conv_tolerance

from fastconv import reference
from fastconv.problem import dense_strides, is_channels_last
from fastconv.testing import assert_conv_close

# Of several taps on every axis, and whole blocks of channels: the loop's counters all carry. Along
# the last axis stride and dilation have a factor in common: of its classes one has no tap.
WHOLE_BLOCKS = conv_case("3d_whole_blocks", (1, 16, 3, 3, 3), (16, 16, 2, 2, 2), 2, 1, (1, 1, 2))
CASES = {case.id: case for case in (*CONV_CASES, WHOLE_BLOCKS)}
# Of every kind of problem, those that take the interpreter the least time.
CHOSEN = {
    "fprop": [
        "scalar", "image1_only_padding_taps", "fully_connected", "pointwise", "pointwise_stride2",
        "pointwise_pad1", "3x3_valid", "3x3_large_pad", "3x3_row", "stride_exceeds_kernel",
        "stride_exceeds_kernel_padded", "stride_exceeds_image", "unread_border",
        "dilation_over_padding", "stride3_dilation2", "groups3_stride2", "groups_pointwise", "1d",
        "1d_long_kernel", "1d_dilated_causal", "1d_stride_exceeds_kernel", "3d_flat", "3d_temporal",
        "3d_whole_blocks",
    ],
    "dgrad": [
        "scalar", "pointwise", "pointwise_stride2", "pointwise_pad1", "3x3_valid", "unread_border",
        "dilation_over_padding", "stride3_dilation2", "groups_pointwise", "1d", "1d_long_kernel",
        "1d_stride_exceeds_kernel", "3d_flat", "3d_whole_blocks",
    ],
    "wgrad": [
        "scalar", "fully_connected", "pointwise", "pointwise_stride2", "pointwise_pad1",
        "3x3_valid", "stride_exceeds_kernel", "dilation_over_padding", "all_asymmetric",
        "groups_pointwise", "1d", "1d_long_kernel", "1d_dilated_causal", "3d_flat",
    ],
}  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


def rotated(direction: str) -> list[Any]:
    """(case, layout, dtype): every case once, the layouts and dtypes in turn."""
    return [
        pytest.param(CASES[name], layout, dtype, id=f"{name}-{layout}-{dtype}")
        for i, name in enumerate(CHOSEN[direction])
        for layout, dtype in [(("contiguous", "channels_last")[i % 2], DTYPES[i % 3])]
    ]


def operands(case: ConvCase, layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, w, dy"""
    sizes = (case.input_size, case.weight_size, case.output_size)
    x, w, dy = (LAYOUTS[layout](random(size, dtype)) for size in sizes)
    return x, w, dy


@pytest.mark.parametrize(("case", "layout", "dtype"), rotated("fprop"))
def test_fprop(conv: Any, case: ConvCase, layout: str, dtype: torch.dtype) -> None:
    x, w, _ = operands(case, layout, dtype)
    bias = random((case.weight_size[0],), dtype)
    y = interpreted_triton.quietly(
        lambda: conv.conv_fprop(x, w, bias, *case.params, config=config(conv))
    )
    expected = reference.conv_fprop(x, w, bias, *case.params)
    magnitude = reference.conv_fprop(x, w, bias, *case.params, magnitude=True)
    bound = tolerance("im2col", "fprop", dtype, expected, magnitude, case.gemm_k("fprop"))
    assert y.dtype == dtype
    assert list(y.stride()) == dense_strides(y.shape, is_channels_last(x, w))
    assert_conv_close(y, expected, bound, str(case))


@pytest.mark.parametrize(("case", "layout", "dtype"), rotated("dgrad"))
def test_dgrad(conv: Any, case: ConvCase, layout: str, dtype: torch.dtype) -> None:
    _, w, dy = operands(case, layout, dtype)
    last = layout == "channels_last" and case.rank > 1
    dx = interpreted_triton.quietly(
        lambda: conv.conv_dgrad(
            dy, w, case.input_size, *case.params, config=config(conv), channels_last=last
        )
    )
    expected = reference.conv_dgrad(dy, w, case.input_size, *case.params)
    magnitude = reference.conv_dgrad(dy, w, case.input_size, *case.params, magnitude=True)
    bound = tolerance("im2col", "dgrad", dtype, expected, magnitude, case.gemm_k("dgrad"))
    assert dx.dtype == dtype
    assert list(dx.stride()) == dense_strides(dx.shape, last)
    assert_conv_close(dx, expected, bound, str(case))


@pytest.mark.parametrize(("case", "layout", "dtype"), rotated("wgrad"))
def test_wgrad(conv: Any, case: ConvCase, layout: str, dtype: torch.dtype) -> None:
    x, _, dy = operands(case, layout, dtype)
    last = layout == "channels_last" and case.rank > 1
    for split in (1, 3):
        named = {"config": config(conv, split=split), "channels_last": last}
        dw = interpreted_triton.quietly(
            partial(conv.conv_wgrad, dy, x, case.weight_size, *case.params, **named)
        )
        expected = reference.conv_wgrad(dy, x, case.weight_size, *case.params)
        magnitude = reference.conv_wgrad(dy, x, case.weight_size, *case.params, magnitude=True)
        bound = tolerance("im2col", "wgrad", dtype, expected, magnitude, case.gemm_k("wgrad"))
        assert dw.dtype == dtype
        assert list(dw.stride()) == dense_strides(dw.shape, last)
        assert_conv_close(dw, expected, bound, f"{case} split {split}")
