"""How far a Winograd convolution may be from the float64 reference.

The transforms mix the inputs of a whole tile, so an output next to large ones inherits their
rounding errors: the bound is one number per tensor, `constant * u * max(sum|x||w|)` with u the
unit roundoff of the accumulator. Largest values of |error| / (u * max(sum|x||w|)) seen for 17
shapes from 1x1 to 100x100 pixels and 1 to 2048 channels, the maximum taken per plane (n, k):

                              fprop   dgrad   wgrad
    F(2x2,3x3)  normal          3.6     2.9     5.3
                uniform 0..1   11.4    10.2    11.0
    F(4x4,3x3)  normal         20.9     9.8    18.8
                uniform 0..1   16.6    16.1    14.6

(direct summation: at most 3.2 for normal operands). Operands whose own magnitudes spread over
several powers of two can exceed these on images of a few pixels, where a term that no output
contains is large and cancels.
"""

from __future__ import annotations

import torch
from tolerances import UNDERFLOW, UNIT_ROUNDOFF
from torch import Tensor

# About twice the largest value above.
ERROR_CONSTANT = {"winograd_f2x2_3x3": 24.0, "winograd_f4x4_3x3": 48.0}
# As above in units of TF32's roundoff, for the CUDA kernels that round transformed operands to it.
TF32_ROUNDOFF = 2.0**-11
TF32_ERROR_CONSTANT = {"winograd_f2x2_3x3": 2.5, "winograd_f4x4_3x3": 12.0}


def winograd_tolerance(
    algo: str,
    direction: str,
    dtype: torch.dtype,
    expected: Tensor,
    magnitude: Tensor,
    gemm_k: int,
) -> Tensor:
    """Elementwise bound on abs(result - expected); arguments as `tolerances.conv_tolerance`, where
    `algo` may end in ``_tf32``."""
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
