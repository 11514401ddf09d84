"""How far a kernel may be from the float64 reference. One home for the numbers.

float32 and float64, one multiply-add per product (`direct`, `im2col`): each sum of products is off
by at most 8 units of roundoff of sum|x||w|; observed at most 3.2 for sums of 9 to 18,432 products,
so the bound neither hides a lost term nor grows with the problem. bfloat16 and float16 accumulate
in float32 and round once. Winograd mixes the inputs of a whole tile, so its bound is not
elementwise: `ERROR_CONSTANT` has its measured constants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Half the distance from 1 to the next number.
UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
# Half the smallest subnormal: what rounding an underflowing result may cost.
UNDERFLOW = {
    torch.float64: 2.0**-1075,
    torch.float32: 2.0**-150,
    torch.float16: 2.0**-25,
    torch.bfloat16: 2.0**-134,
}
ROUNDOFFS_PER_SUM = 8.0
TF32_ROUNDOFF = 2.0**-11
# What a product is off by, in units of itself. "tf32": both factors are rounded to TF32's 11
# significant bits, to nearest. "tf32x3": each is the sum of two such numbers but for the roundoff's
# square, and the product of the smaller two, as little again, is left out.
PER_PRODUCT = {"tf32": 2 * TF32_ROUNDOFF + TF32_ROUNDOFF**2, "tf32x3": 3 * TF32_ROUNDOFF**2}


def accumulate_tolerance(
    dtype: torch.dtype, expected: Tensor, magnitude: Tensor, gemm_k: int
) -> Tensor:
    """Elementwise bound on abs(y - expected) for kernels that add up plain products.

    Args:
        expected: the float64 reference.
        magnitude: sum|x||w| per element (plus abs(bias)), float64.
        gemm_k: how many products an element sums.
    """
    if dtype in (torch.float32, torch.float64):
        # The float64 reference is itself off by as much as a float64 kernel may be.
        references = 2.0 if dtype == torch.float64 else 1.0
        bound = references * ROUNDOFFS_PER_SUM * UNIT_ROUNDOFF[dtype] * magnitude
    else:
        accumulated = math.sqrt(gemm_k) * UNIT_ROUNDOFF[torch.float32] * magnitude
        bound = UNIT_ROUNDOFF[dtype] * expected.abs() + accumulated
    return bound + UNDERFLOW[dtype]


# How far a Winograd convolution may be from the float64 reference.
#
# The transforms mix the inputs of a whole tile, so an output next to large ones inherits their
# rounding errors: the bound is one number per tensor, `constant * u * max(sum|x||w|)` with u the
# unit roundoff of the accumulator. Largest values of |error| / (u * max(sum|x||w|)) seen for 17
# shapes from 1x1 to 100x100 pixels and 1 to 2048 channels, the maximum taken per plane (n, k):
#
#                               fprop   dgrad   wgrad
#     F(2x2,3x3)  normal          3.6     2.9     5.3
#                 uniform 0..1   11.4    10.2    11.0
#     F(4x4,3x3)  normal         20.9     9.8    18.8
#                 uniform 0..1   16.6    16.1    14.6
#
# (direct summation: at most 3.2 for normal operands). Operands whose own magnitudes spread over
# several powers of two can exceed these on images of a few pixels, where a term that no output
# contains is large and cancels.
#
# The CUDA kernels, measured by emulation on 10 shapes from 3x3 to 64x64 pixels and 1 to 1024
# channels, the larger of fused and non-fused; fp32 in the same units, bf16 and fp16 in units of
# TF32's roundoff, 2^-11, to which the operands of their products are rounded (the error beyond
# rounding the result):
#
#                               fp32: fprop   dgrad   wgrad   TF32: fprop   dgrad   wgrad
#     F(2x2,3x3)  normal              3.1     3.3     5.6           1.5     1.4     3.2
#                 uniform 0..1       19.9    13.3    21.6           1.3     1.4     1.6
#     F(4x4,3x3)  normal             17.3    18.6    23.6          10.1     8.3    10.2
#                 uniform 0..1       26.5    22.9    15.3           4.6     6.6     6.7
#
# fp32 tensors whose products are TF32 (the `_tf32` instances of fp32) stay within the same: on 9
# shapes at most 1.9 for F(2x2,3x3) and 5.6 for F(4x4,3x3), of any direction and operands.
#
# They add up channels (wgrad: tiles) one after the other, where the CPU adds up blocks of 64: for
# positive operands, whose partial sums grow, the error grows with the root of their number.
#
# About twice the largest value above.
ERROR_CONSTANT = {"winograd_f2x2_3x3": 24.0, "winograd_f4x4_3x3": 48.0}
# As above in units of TF32's roundoff, for the CUDA kernels that round transformed operands to it.
TF32_ERROR_CONSTANT = {"winograd_f2x2_3x3": 6.0, "winograd_f4x4_3x3": 20.0}


def winograd_tolerance(
    algo: str,
    direction: str,
    dtype: torch.dtype,
    expected: Tensor,
    magnitude: Tensor,
    gemm_k: int,
) -> Tensor:
    """Elementwise bound on abs(result - expected); arguments as `conv_tolerance`, where `algo` may
    end in ``_tf32``."""
    del direction, gemm_k
    if not expected.numel():
        return expected
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    # The float64 reference is itself off by as much as direct summation.
    references = 2.0 if dtype == torch.float64 else 1.0
    tile = algo.removesuffix("_tf32")
    relative = references * ERROR_CONSTANT[tile] * UNIT_ROUNDOFF[accumulator]
    if algo != tile:
        relative += TF32_ERROR_CONSTANT[tile] * TF32_ROUNDOFF
    bound = relative * magnitude.amax()
    if dtype != accumulator:
        bound = bound + UNIT_ROUNDOFF[dtype] * (expected.abs() + bound)
    return (bound + UNDERFLOW[dtype]).expand(expected.shape)


def conv_tolerance(
    algo: str,
    direction: str,
    dtype: torch.dtype,
    expected: Tensor,
    magnitude: Tensor,
    gemm_k: int,
) -> Tensor:
    """Bound on abs(result - expected) of one algorithm, elementwise or of shape []; ``"tf32"``
    and ``"tf32x3"`` stand for kernels that multiply so."""
    if algo.startswith("winograd") and expected.numel():
        return winograd_tolerance(algo, direction, dtype, expected, magnitude, gemm_k)
    bound = accumulate_tolerance(dtype, expected, magnitude, gemm_k)
    return bound + PER_PRODUCT.get(algo, 0.0) * magnitude


# Pooling. Sums of windows round as a convolution's sums of products. A power is off by up to 8
# units of roundoff on a GPU (4 ulp, the CUDA C++ Programming Guide's bound for powf), and so is a
# quotient of two sums: 16 for what is made of one such term and one sum.
POOL_ROUNDOFFS = {"max": 8.0, "sum": 8.0, "lp": 16.0, "expectation": 16.0}


def _accumulators(dtype: torch.dtype) -> float:
    """A unit roundoff of what sums are in; two where the reference is as far off itself."""
    return 2 * UNIT_ROUNDOFF[dtype] if dtype == torch.float64 else UNIT_ROUNDOFF[torch.float32]


def pool_tolerance(kind: str, dtype: torch.dtype, expected: Tensor, magnitude: Tensor) -> Tensor:
    """Elementwise bound on abs(result - expected) of a pooling or its gradient.

    Args:
        expected: the float64 reference.
        magnitude: the sum of its terms' absolute values, float64.
    """
    bound = POOL_ROUNDOFFS[kind] * _accumulators(dtype) * magnitude
    if dtype.itemsize == 2:
        bound = bound + UNIT_ROUNDOFF[dtype] * (expected.abs() + bound)
    return bound + UNDERFLOW[dtype]


def lp_pool_tolerance(dtype: torch.dtype, sums: Tensor, magnitude: Tensor, power: float) -> Tensor:
    """Of (the sum of x^p)^(1/p): as far as the root moves when the sum is off by its own bound."""
    off = POOL_ROUNDOFFS["lp"] * _accumulators(dtype) * magnitude

    def root(t: Tensor) -> Tensor:
        return t.abs() if power == 1 else t.clamp(min=0).pow(1 / power)

    y = root(sums)
    moved = torch.maximum((root(sums + off) - y).abs(), (y - root(sums - off)).abs())
    bound = moved + POOL_ROUNDOFFS["lp"] * _accumulators(dtype) * y
    if dtype.itemsize == 2:
        bound = bound + UNIT_ROUNDOFF[dtype] * (y + bound)
    return bound + UNDERFLOW[dtype]
