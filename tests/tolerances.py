"""How far a kernel may be from the float64 reference. One home for the numbers.

float32 and float64, one multiply-add per product (`direct`, `im2col`): each sum of products is off
by at most 8 units of roundoff of sum|x||w|; observed at most 3.2 for sums of 9 to 18,432 products,
so the bound neither hides a lost term nor grows with the problem. bfloat16 and float16 accumulate
in float32 and round once. Winograd mixes the inputs of a whole tile, so its bound is not
elementwise: `tests/winograd_tolerance.py` has its measured constants.
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
# Both factors of a product are rounded to TF32's 11 significant bits, to nearest.
TF32_PER_PRODUCT = 2 * 2.0**-11 + 2.0**-22


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


def conv_tolerance(
    algo: str,
    direction: str,
    dtype: torch.dtype,
    expected: Tensor,
    magnitude: Tensor,
    gemm_k: int,
) -> Tensor:
    """Bound on abs(result - expected) of one algorithm, elementwise or of shape []; ``"tf32"``
    stands for the instances that multiply in TF32."""
    if algo.startswith("winograd") and expected.numel():
        from winograd_tolerance import winograd_tolerance

        return winograd_tolerance(algo, direction, dtype, expected, magnitude, gemm_k)
    bound = accumulate_tolerance(dtype, expected, magnitude, gemm_k)
    return bound + TF32_PER_PRODUCT * magnitude if algo == "tf32" else bound
