"""The activations of csrc/common/epilogue.h, by its numbers, and their gradients."""

import triton
import triton.language as tl


@triton.jit
def activate(v, slope, ACTIVATION: tl.constexpr):
    """Comparisons are written so that NaN stays NaN, as in PyTorch."""
    if ACTIVATION == 1:
        return tl.where(v < 0, 0.0, v)
    elif ACTIVATION == 2:
        return tl.where(v > 0, v, v * slope)
    elif ACTIVATION == 3:
        return tl.where(v < 0, 0.0, tl.where(v > 6, 6.0, v))
    elif ACTIVATION == 4:
        return v / (1 + tl.exp(-v))
    else:
        tl.static_assert(ACTIVATION == 0)
        return v


@triton.jit
def activate_backward(dz, v, slope, ACTIVATION: tl.constexpr):
    """dz * act'(v); at the corners PyTorch's choice."""
    if ACTIVATION == 1:
        return tl.where(v <= 0, 0.0, dz)
    elif ACTIVATION == 2:
        return tl.where(v > 0, dz, dz * slope)
    elif ACTIVATION == 3:
        return tl.where((v <= 0) | (v >= 6), 0.0, dz)
    elif ACTIVATION == 4:
        s = 1 / (1 + tl.exp(-v))
        return dz * s * (1 + v * (1 - s))
    else:
        tl.static_assert(ACTIVATION == 0)
        return dz
