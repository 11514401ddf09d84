"""What follows a convolution's sum before it is stored: csrc/common/epilogue.h, and a batch
normalisation's scale and shift for those who do not fold it into the weights:

    pre = (sum + bias[k]) scale[k] + shift[k] (+ residual)
    y   = act(pre)                            (+ residual)
"""

import triton
import triton.language as tl

from .activation import activate


@triton.jit
def ending(
    v, k, k_inside, at, inside, bias, scale, shift, residual, slope,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """v [BLOCK_M, BLOCK_N] float32, k [BLOCK_N] channels, at: offsets into the residual.
    RESIDUAL: 0 none, 1 before the activation, 2 after it."""
    if bias is not None:
        v += tl.load(bias + k, k_inside, other=0.0).to(tl.float32)[None, :]
    if scale is not None:
        v = v * tl.load(scale + k, k_inside, other=0.0).to(tl.float32)[None, :]
    if shift is not None:
        v += tl.load(shift + k, k_inside, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL == 1:
        v += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    v = activate(v, slope, ACTIVATION)
    if RESIDUAL == 2:
        v += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    return v


@triton.jit
def column_sums(v):
    return tl.reduce(v, 0, tl.standard._sum_combine)


@triton.jit
def moments(v, inside, count):
    """Mean and sum of squared distances from it of each column's `count` elements inside: the mean
    is corrected by the mean of what is left, so that no digits of the values' size are lost."""
    first = column_sums(tl.where(inside, v, 0.0)) / count
    d = tl.where(inside, v - first[None, :], 0.0)
    left = column_sums(d)
    return first + left / count, column_sums(d * d) - left * (left / count)


@triton.jit(do_not_specialize=["parts", "each", "last", "channels"])
def conv_stats_merge_kernel(
    mean, m2, mean_out, m2_out, parts, each, last, channels,
    BLOCK_PARTS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """mean, m2 [parts, channels] -> [ceil(parts / BLOCK_PARTS), channels]: each part stands for
    `each` values, the last one for `last`. One tree of fixed shape per channel.

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances" (1979), for many parts at a time.
    """
    blocks = (channels + BLOCK_C - 1) // BLOCK_C
    row = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    part = row * BLOCK_PARTS + tl.arange(0, BLOCK_PARTS)
    inside = (part < parts)[:, None] & (c < channels)[None, :]
    at = part.to(tl.int64)[:, None] * channels + c[None, :]
    means = tl.load(mean + at, inside, other=0.0)
    squares = tl.load(m2 + at, inside, other=0.0)
    count = tl.where(part < parts - 1, each, tl.where(part < parts, last, 0)).to(tl.float32)
    weights = count[:, None] + tl.full([BLOCK_PARTS, BLOCK_C], 0, tl.float32)
    # The mean of all, counted from a plain mean of theirs, which is about as large as they are.
    some = tl.minimum(parts - row * BLOCK_PARTS, BLOCK_PARTS).to(tl.float32)
    near = column_sums(means) / some
    d = tl.where(inside, means - near[None, :], 0.0)
    offset = column_sums(d * weights) / column_sums(weights)
    d = tl.where(inside, d - offset[None, :], 0.0)
    result = row.to(tl.int64) * channels + c
    tl.store(mean_out + result, near + offset, c < channels)
    tl.store(m2_out + result, column_sums(squares + d * d * weights), c < channels)
