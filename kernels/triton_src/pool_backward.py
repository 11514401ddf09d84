"""Backward pooling: one program per tile of inputs, which gathers from the outputs that reach it.

  max_pool_dgrad_kernel  dx = sum of the dy whose index names this input; also of sampling
  sum_pool_dgrad_kernel  dx = sum of dy over the divisor of each window
  lp_pool_dgrad_kernel   dx = x^(p-1) times the sum of dy y^(1-p), 0 where y is (p = 1: or NaN)

A gather needs no atomics: the outputs that reach an input are added in row-major order, in ACC, so
the same input gives the same bits. REACH is the most outputs that reach an input, per axis; it is 1
where windows do not overlap, 2 for 3-wide windows at stride 2.
Layouts, dtypes: as forward (pool_forward.py). Bytes: dy (and index, x, y) and dx once from memory,
outputs that reach several inputs again from the L1 cache. FLOPs: a few per output that reaches an
input. Bound by memory. Not measured on a GPU.
"""

import triton
import triton.language as tl

from .pool_forward import EXTENTS
from .pool_window import (
    UNROLLED_TAPS,
    counted,
    divide,
    offsets,
    output_reaching,
    outputs_reaching,
    power,
    split,
    tile_of,
    windows,
)


@triton.jit
def axis_tap(position, start, here, DILATION: tl.constexpr):
    """The tap of a window that lies on this input, and whether one does."""
    distance = position - start
    if DILATION == 1:
        return distance, here
    else:
        return distance // DILATION, here & (distance % DILATION == 0)


@triton.jit
def max_step(
    j, total, dy, index, plane, position, firsts, lasts, ins, outs, inner, c, inside,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    REACH: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    out, at, here = output_reaching(j, plane, firsts, lasts, outs, inner, c, inside, REACH)
    if INDEX == 1:
        starts, _ = windows(out, ins, outs, STRIDE, PADDING)
        t, here = axis_tap(position[0], starts[0], here, DILATION[0])
        r, here = axis_tap(position[1], starts[1], here, DILATION[1])
        s, here = axis_tap(position[2], starts[2], here, DILATION[2])
        mine = (t * KERNEL[1] + r) * KERNEL[2] + s
        kept = tl.load(index + at, here, 255).to(tl.int32)
    else:
        mine = (position[0] * ins[1] + position[1]) * ins[2] + position[2]
        kept = tl.load(index + at, here, -1)
    # Both loads at once: waiting for the index to know whether dy is needed would cost more.
    sent = tl.load(dy + at, here, 0.0).to(ACC)
    return total + tl.where(here & (kept == mine), sent, 0.0)


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def max_pool_dgrad_kernel(
    dy, index, dx, rows, inner, D, H, W, O, P, Q,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    REACH: tl.constexpr, INDEX: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy, index [planes, O, P, Q, inner] -> dx [planes, D, H, W, inner]."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, position = split(m, D, H, W)
    at = offsets(m, c, plane, position, (D, H, W), inner, BLOCK_C)
    ins, outs = (D, H, W), (O, P, Q)
    firsts, lasts = outputs_reaching(position, ins, outs, KERNEL, STRIDE, PADDING, DILATION)
    total = tl.full([BLOCK_M, BLOCK_C], 0, ACC)
    MOST: tl.constexpr = REACH[0] * REACH[1] * REACH[2]
    if MOST <= UNROLLED_TAPS:
        for j in tl.static_range(MOST):
            total = max_step(
                j, total, dy, index, plane, position, firsts, lasts, ins, outs, inner, c, inside,
                KERNEL, STRIDE, PADDING, DILATION, REACH, INDEX, ACC,
            )  # fmt: skip
    else:
        for j in range(MOST):
            total = max_step(
                j, total, dy, index, plane, position, firsts, lasts, ins, outs, inner, c, inside,
                KERNEL, STRIDE, PADDING, DILATION, REACH, INDEX, ACC,
            )  # fmt: skip
    tl.store(dx + at, total, inside)


@triton.jit
def sum_step(
    j, total, dy, divisor, plane, firsts, lasts, ins, outs, inner, c, inside,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, REACH: tl.constexpr,
    COUNTED: tl.constexpr, INCLUDE_PAD: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    out, at, here = output_reaching(j, plane, firsts, lasts, outs, inner, c, inside, REACH)
    sent = tl.load(dy + at, here, 0.0).to(ACC)
    if COUNTED:
        starts, ends = windows(out, ins, outs, STRIDE, PADDING)
        n = counted(starts, ends, ins, KERNEL, STRIDE, PADDING, INCLUDE_PAD, ACC)
        # Where there is no output its window may count nothing.
        sent = tl.where(here, divide(sent, n, ACC), 0.0)
    return total + sent


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def sum_pool_dgrad_kernel(
    dy, dx, rows, inner, D, H, W, O, P, Q, divisor,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, REACH: tl.constexpr,
    COUNTED: tl.constexpr, INCLUDE_PAD: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy [planes, O, P, Q, inner] -> dx [planes, D, H, W, inner]."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, position = split(m, D, H, W)
    at = offsets(m, c, plane, position, (D, H, W), inner, BLOCK_C)
    ins, outs = (D, H, W), (O, P, Q)
    firsts, lasts = outputs_reaching(position, ins, outs, KERNEL, STRIDE, PADDING, (1, 1, 1))
    total = tl.full([BLOCK_M, BLOCK_C], 0, ACC)
    MOST: tl.constexpr = REACH[0] * REACH[1] * REACH[2]
    if MOST <= UNROLLED_TAPS:
        for j in tl.static_range(MOST):
            total = sum_step(
                j, total, dy, divisor, plane, firsts, lasts, ins, outs, inner, c, inside,
                KERNEL, STRIDE, PADDING, REACH, COUNTED, INCLUDE_PAD, ACC,
            )  # fmt: skip
    else:
        for j in range(MOST):
            total = sum_step(
                j, total, dy, divisor, plane, firsts, lasts, ins, outs, inner, c, inside,
                KERNEL, STRIDE, PADDING, REACH, COUNTED, INCLUDE_PAD, ACC,
            )  # fmt: skip
    if not COUNTED:
        total = divide(total, tl.full([BLOCK_M, 1], divisor, ACC), ACC)
    tl.store(dx + at, total, inside)


@triton.jit
def lp_step(
    j, total, dy, y, plane, firsts, lasts, ins, outs, inner, c, inside,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, REACH: tl.constexpr,
    POWER: tl.constexpr, RESCALE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    out, at, here = output_reaching(j, plane, firsts, lasts, outs, inner, c, inside, REACH)
    sent = tl.load(dy + at, here, 0.0).to(ACC)
    size = tl.load(y + at, here, 0.0).to(ACC)
    if POWER == 2:
        slope = divide(sent, size, ACC)
    else:
        slope = sent * power(size, 1 - POWER, ACC)
    if RESCALE:
        starts, ends = windows(out, ins, outs, STRIDE, PADDING)
        n = counted(starts, ends, ins, KERNEL, STRIDE, PADDING, True, ACC)
        slope = divide(slope * (KERNEL[0] * KERNEL[1] * KERNEL[2]), n, ACC)
    if POWER == 1:  # 0 of a NaN as well: PyTorch's derivative of |sum|
        some = (size < 0) | (size > 0)
    else:
        some = size != 0
    return total + tl.where(some, slope, 0.0)


@triton.jit(do_not_specialize_on_alignment=EXTENTS)
def lp_pool_dgrad_kernel(
    dy, x, y, dx, rows, inner, D, H, W, O, P, Q,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, REACH: tl.constexpr,
    POWER: tl.constexpr, RESCALE: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy, y [planes, O, P, Q, inner], x [planes, D, H, W, inner] -> dx like x."""
    m, c, inside = tile_of(rows, inner, BLOCK_M, BLOCK_C, WIDE)
    plane, position = split(m, D, H, W)
    at = offsets(m, c, plane, position, (D, H, W), inner, BLOCK_C)
    ins, outs = (D, H, W), (O, P, Q)
    firsts, lasts = outputs_reaching(position, ins, outs, KERNEL, STRIDE, PADDING, (1, 1, 1))
    total = tl.full([BLOCK_M, BLOCK_C], 0, ACC)
    MOST: tl.constexpr = REACH[0] * REACH[1] * REACH[2]
    if MOST <= UNROLLED_TAPS:
        for j in tl.static_range(MOST):
            total = lp_step(
                j, total, dy, y, plane, firsts, lasts, ins, outs, inner, c, inside,
                KERNEL, STRIDE, PADDING, REACH, POWER, RESCALE, ACC,
            )  # fmt: skip
    else:
        for j in range(MOST):
            total = lp_step(
                j, total, dy, y, plane, firsts, lasts, ins, outs, inner, c, inside,
                KERNEL, STRIDE, PADDING, REACH, POWER, RESCALE, ACC,
            )  # fmt: skip
    if POWER != 1:
        v = tl.load(x + at, inside, 1.0).to(ACC)
        total = total * power(v, POWER - 1, ACC)
    tl.store(dx + at, total, inside)
