"""Forward pooling: one program per tile of outputs, which reads every tap of its windows.

  max_pool_fprop_kernel          y = max over the window, and where it was
  sum_pool_fprop_kernel          y = sum over a divisor, or over what a window counts
  lp_pool_fprop_kernel           y = (sum of x^p)^(1/p)
  sample_pool_fprop_kernel       y = one element, drawn with probability max(x, 0) / sum
  expectation_pool_fprop_kernel  y = sum of max(x, 0)^2 over sum of max(x, 0)
  max_pool_at_kernel             y = x at the places of an index

Layouts: NCHW and NHWC, ranks 1 to 3 (pool_window.py). float32, float64; bfloat16 and float16 in
float32. Taps in row-major order, one accumulator per output: the same input gives the same bits.
Bytes: x and y once from memory, taps of overlapping windows again from the L1 cache (which is what
bounds 3x3 at stride 1: 9 reads per output); sampling walks its window twice.
FLOPs: one operation per tap, two compares for maxima. Not measured on a GPU.
Source of the sampling: Zeiler and Fergus, "Stochastic Pooling for Regularization of Deep
Convolutional Neural Networks" (ICLR 2013), section 3; to the bit as csrc/common/pool_sample.h says.
"""

import triton
import triton.language as tl

from .philox import uniform
from .pool_window import (
    UNROLLED_TAPS,
    counted,
    divide,
    first_tap,
    load_tap,
    offsets,
    power,
    split,
    tap_position,
    tile_of,
    windows,
)

# Which are divisible by 16 says nothing about an address, so it must not cost a compilation.
EXTENTS = ["rows", "D", "H", "W", "O", "P", "Q", "divisor"]


@triton.jit
def first_kept(
    starts, ins, none, KERNEL: tl.constexpr, DILATION: tl.constexpr, INDEX: tl.constexpr
):
    """What index a window starts with: its first tap in the input, or that one's place; of as many
    bits as places have. none: zeros [BLOCK_M, BLOCK_C]."""
    t = first_tap(starts[0], DILATION[0])
    r = first_tap(starts[1], DILATION[1])
    s = first_tap(starts[2], DILATION[2])
    if INDEX == 1:
        return (t * KERNEL[1] + r) * KERNEL[2] + s + none
    else:
        d, h = starts[0] + t * DILATION[0], starts[1] + r * DILATION[1]
        return (d * ins[1] + h) * ins[2] + (starts[2] + s * DILATION[2]) + none


@triton.jit
def keep(over, tap, place, kept, INDEX: tl.constexpr):
    if INDEX == 1:
        kept = tl.where(over, tap, kept)
    elif INDEX == 2:
        kept = tl.where(over, place, kept)
    return kept


# No maximum of Triton's: of ties the first stays, of several NaNs the last.
@triton.jit
def max_step(
    tap, best, kept, x, plane, starts, ends, ins, inner, c, inside,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, INDEX: tl.constexpr, BORDER: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    v, _, place = load_tap(
        x, tap, plane, starts, ends, ins, inner, c, inside,
        KERNEL, DILATION, BORDER, float("-inf"), ACC,
    )  # fmt: skip
    over = (v > best) | (v != v)
    return tl.where(over, v, best), keep(over, tap, place, kept, INDEX)


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def max_pool_fprop_kernel(
    x, y, index, rows, inner, D, H, W, O, P, Q,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    INDEX: tl.constexpr, BORDER: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [planes, D, H, W, inner] -> y, index [planes, O, P, Q, inner]. INDEX: 0 none, 1 taps as
    uint8, 2 places in the plane as int64."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, out = split(m, O, P, Q)
    at = offsets(m, c, plane, out, (O, P, Q), inner, BLOCK_C)
    ins = (D, H, W)
    starts, ends = windows(out, ins, (O, P, Q), STRIDE, PADDING)
    best = tl.full([BLOCK_M, BLOCK_C], float("-inf"), ACC)
    kept = tl.full([BLOCK_M, BLOCK_C], 0, tl.int32)
    if INDEX != 0:
        kept = first_kept(starts, ins, kept, KERNEL, DILATION, INDEX)
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    if TAPS <= UNROLLED_TAPS:
        for tap in tl.static_range(TAPS):
            best, kept = max_step(
                tap, best, kept, x, plane, starts, ends, ins, inner, c, inside,
                KERNEL, DILATION, INDEX, BORDER, ACC,
            )  # fmt: skip
    else:
        for tap in range(TAPS):
            best, kept = max_step(
                tap, best, kept, x, plane, starts, ends, ins, inner, c, inside,
                KERNEL, DILATION, INDEX, BORDER, ACC,
            )  # fmt: skip
    tl.store(y + at, best, inside)
    if INDEX != 0:
        tl.store(index + at, kept, inside)


@triton.jit
def sum_step(
    tap, total, x, plane, starts, ends, ins, inner, c, inside,
    KERNEL: tl.constexpr, POWER: tl.constexpr, BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    v, _, _ = load_tap(
        x, tap, plane, starts, ends, ins, inner, c, inside, KERNEL, (1, 1, 1), BORDER, 0.0, ACC
    )
    return total + power(v, POWER, ACC)


@triton.jit
def sum_of_powers(
    x, plane, starts, ends, ins, inner, c, inside,
    KERNEL: tl.constexpr, POWER: tl.constexpr, BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    total = tl.full(inside.shape, 0, ACC)
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    if TAPS <= UNROLLED_TAPS:
        for tap in tl.static_range(TAPS):
            total = sum_step(
                tap, total, x, plane, starts, ends, ins, inner, c, inside,
                KERNEL, POWER, BORDER, ACC,
            )  # fmt: skip
    else:
        for tap in range(TAPS):
            total = sum_step(
                tap, total, x, plane, starts, ends, ins, inner, c, inside,
                KERNEL, POWER, BORDER, ACC,
            )  # fmt: skip
    return total


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def sum_pool_fprop_kernel(
    x, y, rows, inner, D, H, W, O, P, Q, divisor,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    COUNTED: tl.constexpr, INCLUDE_PAD: tl.constexpr, BORDER: tl.constexpr, WIDE: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [planes, D, H, W, inner] -> y [planes, O, P, Q, inner]. COUNTED: over what the window
    counts, else over `divisor`."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, out = split(m, O, P, Q)
    at = offsets(m, c, plane, out, (O, P, Q), inner, BLOCK_C)
    ins = (D, H, W)
    starts, ends = windows(out, ins, (O, P, Q), STRIDE, PADDING)
    total = sum_of_powers(x, plane, starts, ends, ins, inner, c, inside, KERNEL, 1, BORDER, ACC)
    if COUNTED:
        n = counted(starts, ends, ins, KERNEL, STRIDE, PADDING, INCLUDE_PAD, ACC)
    else:
        n = tl.full([BLOCK_M, 1], divisor, ACC)
    tl.store(y + at, divide(total, n, ACC), inside)


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def lp_pool_fprop_kernel(
    x, y, rows, inner, D, H, W, O, P, Q,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    POWER: tl.constexpr, RESCALE: tl.constexpr, BORDER: tl.constexpr, WIDE: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [planes, D, H, W, inner] -> y [planes, O, P, Q, inner]. RESCALE: partial windows are scaled
    as if they were whole."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, out = split(m, O, P, Q)
    at = offsets(m, c, plane, out, (O, P, Q), inner, BLOCK_C)
    ins = (D, H, W)
    starts, ends = windows(out, ins, (O, P, Q), STRIDE, PADDING)
    total = sum_of_powers(x, plane, starts, ends, ins, inner, c, inside, KERNEL, POWER, BORDER, ACC)
    if RESCALE:
        n = counted(starts, ends, ins, KERNEL, STRIDE, PADDING, True, ACC)
        total = divide(total, n, ACC) * (KERNEL[0] * KERNEL[1] * KERNEL[2])
    tl.store(y + at, power(total, 1 / POWER, ACC), inside)


@triton.jit
def weight_step(
    tap, total, squares, x, plane, starts, ends, ins, inner, c, inside,
    KERNEL: tl.constexpr, SQUARES: tl.constexpr, BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    v, _, _ = load_tap(
        x, tap, plane, starts, ends, ins, inner, c, inside, KERNEL, (1, 1, 1), BORDER, 0.0, ACC
    )
    weight = tl.where(v < 0, 0.0, v)  # a NaN stays one
    if SQUARES:
        squares += weight * weight
    return total + weight, squares


@triton.jit
def sum_of_weights(
    x, plane, starts, ends, ins, inner, c, inside,
    KERNEL: tl.constexpr, SQUARES: tl.constexpr, BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sums of max(x, 0) and, with SQUARES, of its square, over every window."""
    total = tl.full(inside.shape, 0, ACC)
    squares = tl.full(inside.shape, 0, ACC)
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    if TAPS <= UNROLLED_TAPS:
        for tap in tl.static_range(TAPS):
            total, squares = weight_step(
                tap, total, squares, x, plane, starts, ends, ins, inner, c, inside,
                KERNEL, SQUARES, BORDER, ACC,
            )  # fmt: skip
    else:
        for tap in range(TAPS):
            total, squares = weight_step(
                tap, total, squares, x, plane, starts, ends, ins, inner, c, inside,
                KERNEL, SQUARES, BORDER, ACC,
            )  # fmt: skip
    return total, squares


@triton.jit
def sample_step(
    tap, best, kept, running, taken, total, threshold,
    x, plane, starts, ends, ins, inner, c, inside,
    KERNEL: tl.constexpr, INDEX: tl.constexpr, BORDER: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One tap of the second walk; `pool_takes` of csrc/common/pool_sample.h. `taken`: 0 before any
    real element, 1 once there is one to keep, 2 when the choice is final."""
    v, here, place = load_tap(
        x, tap, plane, starts, ends, ins, inner, c, inside, KERNEL, (1, 1, 1), BORDER, 0.0, ACC
    )
    weight = tl.where(v < 0, 0.0, v)
    running += weight
    lost = total != total
    better = tl.where(lost, v != v, (weight > 0) & (taken < 2))
    over = here & (better | (taken == 0))
    enough = better & ((running > threshold) | (running == float("inf"))) & (~lost)
    taken = tl.where(here & enough, 2, tl.where(here & (taken == 0), 1, taken))
    return tl.where(over, v, best), keep(over, tap, place, kept, INDEX), running, taken


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def sample_pool_fprop_kernel(
    x, seed, y, index, rows, inner, D, H, W, O, P, Q,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    INDEX: tl.constexpr, BORDER: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [planes, D, H, W, inner], seed [1] int64 -> y, index [planes, O, P, Q, inner]; INDEX as for
    a maximum."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, out = split(m, O, P, Q)
    at = offsets(m, c, plane, out, (O, P, Q), inner, BLOCK_C)
    ins = (D, H, W)
    starts, ends = windows(out, ins, (O, P, Q), STRIDE, PADDING)
    total, _ = sum_of_weights(
        x, plane, starts, ends, ins, inner, c, inside, KERNEL, False, BORDER, ACC
    )
    # Outputs count as in a contiguous tensor, so that both layouts draw alike.
    output = (plane * inner + c) * (O * P * Q) + ((out[0] * P + out[1]) * Q + out[2])
    threshold = uniform(tl.load(seed), output, ACC) * total
    best = tl.full([BLOCK_M, BLOCK_C], float("-inf"), ACC)
    kept = tl.full([BLOCK_M, BLOCK_C], 0, tl.int32)
    if INDEX != 0:
        kept = first_kept(starts, ins, kept, KERNEL, (1, 1, 1), INDEX)
    running = tl.full([BLOCK_M, BLOCK_C], 0, ACC)
    taken = tl.full([BLOCK_M, BLOCK_C], 0, tl.int32)
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    if TAPS <= UNROLLED_TAPS:
        for tap in tl.static_range(TAPS):
            best, kept, running, taken = sample_step(
                tap, best, kept, running, taken, total, threshold,
                x, plane, starts, ends, ins, inner, c, inside, KERNEL, INDEX, BORDER, ACC,
            )  # fmt: skip
    else:
        for tap in range(TAPS):
            best, kept, running, taken = sample_step(
                tap, best, kept, running, taken, total, threshold,
                x, plane, starts, ends, ins, inner, c, inside, KERNEL, INDEX, BORDER, ACC,
            )  # fmt: skip
    tl.store(y + at, best, inside)
    if INDEX != 0:
        tl.store(index + at, kept, inside)


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def expectation_pool_fprop_kernel(
    x, y, rows, inner, D, H, W, O, P, Q,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    BORDER: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [planes, D, H, W, inner] -> y [planes, O, P, Q, inner]; 0 where no weight is positive."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, out = split(m, O, P, Q)
    at = offsets(m, c, plane, out, (O, P, Q), inner, BLOCK_C)
    ins = (D, H, W)
    starts, ends = windows(out, ins, (O, P, Q), STRIDE, PADDING)
    total, squares = sum_of_weights(
        x, plane, starts, ends, ins, inner, c, inside, KERNEL, True, BORDER, ACC
    )
    some = total != 0
    mean = divide(squares, tl.where(some, total, 1.0), ACC)
    tl.store(y + at, tl.where(some, mean, 0.0), inside)


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def max_pool_at_kernel(
    x, index, y, rows, inner, D, H, W, O, P, Q,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    INDEX: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [planes, D, H, W, inner] at index [planes, O, P, Q, inner] -> y; 0 outside the plane."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, out = split(m, O, P, Q)
    at = offsets(m, c, plane, out, (O, P, Q), inner, BLOCK_C)
    if INDEX == 1:
        starts, _ = windows(out, (D, H, W), (O, P, Q), STRIDE, PADDING)
        tap = tl.load(index + at, inside, 0).to(tl.int32)
        d, h, w = tap_position(tap, starts, KERNEL, DILATION)
        place = (d * H + h) * W + w
    else:
        place = tl.load(index + at, inside, 0)
    size = D * H * W
    inside_x = inside & (place >= 0) & (place < size)
    v = tl.load(x + ((plane * size + place) * inner + c), inside_x, 0.0)
    tl.store(y + at, v, inside)
