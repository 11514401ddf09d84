"""Depthwise convolution: every output channel reads one input channel.

  conv_fprop_depthwise_kernel      y[n,k,o] = sum_t x[n, k/m, o*st - pad + t*dil] w[k,t]
  conv_dgrad_depthwise_kernel      dx[n,c,i] = sum_t,k/m=c dy[n, k, (i + pad - t*dil)/st] w[k,t]
  conv_wgrad_depthwise_kernel      dw[k,t] = sum_n,o dy[n,k,o] x[n, k/m, o*st - pad + t*dil]
  conv_wgrad_depthwise_sum_kernel  adds wgrad's partial sums in order
  conv_depthwise_filter_kernel     w [K, taps] -> [taps, K]
with o, i, t standing for one to three axes and m = K/C.

Mapping   a program owns a tile [BLOCK_M, BLOCK_C] of BLOCK_M places (over images and all spatial
          axes together) and BLOCK_C channels, which it sums tap by tap in registers. In NHWC a
          thread has 16 bytes of channels and the filter lies as [taps, K], so that x and w come in
          16-byte loads; in NCHW BLOCK_C is 1, the filter's taps are scalars, and neighbouring
          threads have neighbouring places, of several small planes if need be. Tensors come with
          their element strides, so one kernel serves both layouts.
          dgrad of stride > 1: places whose distance is a multiple of the stride meet the same taps.
          A program has one such class, and skips the taps that never meet it: no product with an
          inserted zero, no divergence.
          wgrad: a program has one row of taps (a slice of S), a block of channels and a slice of
          the places: dy is read once per row of taps, x once per tap, both from L1 and L2 but for
          the first time. [TAPS, BLOCK_M, BLOCK_C] products are kept apart until the end.
Dtypes    float32, bfloat16, float16; sums in float32 by the FMA pipe, so float32 is IEEE.
Padding   is never read, and a tap on it adds nothing, whatever the weight.
Bytes     |x| + |y| + |w| once from memory, taps of overlapping windows from L1 and L2; 2 FLOPs per
          tap and output: at 3x3, 4.5 FLOP per byte in 16 bits against a balance of 17 (H200, FMA
          pipe): bound by memory, at 7x7 in 16 bits by the arithmetic. Not measured on a GPU.
Determinism   no atomics, every sum in one order that depends on the problem alone.
Source    the definition.
"""

import triton
import triton.language as tl

from .activation import activate
from .conv_epilogue import moments
from .pool_window import split

# Filters of more taps are walked by a loop at run time: code grows with the taps.
UNROLLED_TAPS = tl.constexpr(32)
# Which are divisible by 16 says nothing about an address.
_EXTENTS = ["rows", "O", "P", "Q", "D", "H", "W"]


@triton.jit
def tile_numbers(
    tile, rows, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr
):
    """Of a tile along the places and along the channels. Neighbouring programs share what they
    read: channels of the same places in NHWC, rows of the same plane in NCHW."""
    if BLOCK_C > 1:
        tiles_c = (channels + BLOCK_C - 1) // BLOCK_C
        tile_m, tile_c = tile // tiles_c, tile % tiles_c
    else:
        tiles_m = (rows + BLOCK_M - 1) // BLOCK_M
        tile_m, tile_c = tile % tiles_m, tile // tiles_m
    if WIDE:
        tile_m = tile_m.to(tl.int64)
        tile_c = tile_c.to(tl.int64)
    return tile_m, tile_c


@triton.jit
def tile_of(tile, rows, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr):
    """Places [BLOCK_M, 1] and channels [1, BLOCK_C] of a tile."""
    tile_m, tile_c = tile_numbers(tile, rows, channels, BLOCK_M, BLOCK_C, WIDE)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return m, c


@triton.jit
def fprop_step(
    tap, total, x, w, n, starts, ins, c, k, inside, x_n, x_c, x_p, w_k, w_t, K,
    KERNEL: tl.constexpr, DILATION: tl.constexpr, BORDER: tl.constexpr,
):  # fmt: skip
    d = starts[0] + tap // (KERNEL[1] * KERNEL[2]) * DILATION[0]
    h = starts[1] + tap // KERNEL[2] % KERNEL[1] * DILATION[1]
    q = starts[2] + tap % KERNEL[2] * DILATION[2]
    place = (d * ins[1] + h) * ins[2] + q
    if BORDER:
        inside = inside & ((d >= 0) & (d < ins[0]) & (h >= 0) & (h < ins[1]))
        inside = inside & ((q >= 0) & (q < ins[2]))
    v = tl.load(x + (n * x_n + place * x_p + c * x_c), inside, 0.0).to(tl.float32)
    f = tl.load(w + (k * w_k + tap * w_t), k < K, 0.0).to(tl.float32)
    if BORDER:
        return tl.where(inside, total + v * f, total)
    else:
        return total + v * f


@triton.jit(do_not_specialize_on_alignment=_EXTENTS)
def conv_fprop_depthwise_kernel(
    x, w, bias, scale, shift, residual, y, mean, m2,
    rows, K, D, H, W, O, P, Q, x_n, x_c, x_p, w_k, w_t, y_n, y_c, y_p, r_n, r_c, r_p, slope,
    MULTIPLIER: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, BORDER: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [N, C, D, H, W], w [K, taps], residual and y [N, K, O, P, Q] by their strides of image,
    channel and place; bias, scale, shift [K]. RESIDUAL: 0 none, 1 before the activation, 2 after.
    mean, m2 [tiles of places, K] or None: each tile's moments, of the results as stored.
    """
    m, k = tile_of(tl.program_id(0), rows, K, BLOCK_M, BLOCK_C, WIDE)
    inside = (m < rows) & (k < K)
    n, out = split(m, O, P, Q)
    starts = (
        out[0] * STRIDE[0] - PADDING[0],
        out[1] * STRIDE[1] - PADDING[1],
        out[2] * STRIDE[2] - PADDING[2],
    )
    c = k // MULTIPLIER
    total = tl.full([BLOCK_M, BLOCK_C], 0, tl.float32)
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    if TAPS <= UNROLLED_TAPS:
        for tap in tl.static_range(TAPS):
            total = fprop_step(
                tap, total, x, w, n, starts, (D, H, W), c, k, inside, x_n, x_c, x_p, w_k, w_t, K,
                KERNEL, DILATION, BORDER,
            )  # fmt: skip
    else:
        for tap in range(TAPS):
            total = fprop_step(
                tap, total, x, w, n, starts, (D, H, W), c, k, inside, x_n, x_c, x_p, w_k, w_t, K,
                KERNEL, DILATION, BORDER,
            )  # fmt: skip
    if BIAS:
        total += tl.load(bias + k, k < K, 0.0).to(tl.float32)
    if SCALE:
        total *= tl.load(scale + k, k < K, 0.0).to(tl.float32)
        total += tl.load(shift + k, k < K, 0.0).to(tl.float32)
    place = (out[0] * P + out[1]) * Q + out[2]
    if RESIDUAL == 1:
        r = tl.load(residual + (n * r_n + place * r_p + k * r_c), inside, 0.0)
        total += r.to(tl.float32)
    total = activate(total, slope, ACTIVATION)
    if RESIDUAL == 2:
        r = tl.load(residual + (n * r_n + place * r_p + k * r_c), inside, 0.0)
        total += r.to(tl.float32)
    stored = total.to(y.dtype.element_ty)
    tl.store(y + (n * y_n + place * y_p + k * y_c), stored, inside)
    if mean is not None:
        tile_m, tile_c = tile_numbers(tl.program_id(0), rows, K, BLOCK_M, BLOCK_C, WIDE)
        count = tl.minimum(rows - tile_m * BLOCK_M, BLOCK_M).to(tl.float32)
        average, squares = moments(stored.to(tl.float32), inside, count)
        channel = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
        part = tile_m.to(tl.int64) * K + channel
        tl.store(mean + part, average, channel < K)
        tl.store(m2 + part, squares, channel < K)


@triton.jit
def class_of(number, STRIDE: tl.constexpr):
    """The rest of each axis' places in class `number`."""
    return (
        number // (STRIDE[1] * STRIDE[2]),
        number // STRIDE[2] % STRIDE[1],
        number % STRIDE[2],
    )


@triton.jit
def meets(
    rest, tap, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr,
):  # fmt: skip
    """Of an axis: how far an output lies behind its place's number within the class, if the tap
    joins them; and whether it does."""
    # Divisions round towards zero, so the dividend is kept positive.
    SPARE: tl.constexpr = (KERNEL - 1) * DILATION
    ahead = rest + (PADDING + SPARE * STRIDE) - tap * DILATION
    return ahead // STRIDE - SPARE, ahead % STRIDE == 0


@triton.jit
def dgrad_step(
    tap, total, dy, w, n, i, rest, outs, c, inside, dy_n, dy_c, dy_p, w_k, w_t, C,
    MULTIPLIER: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr,
):  # fmt: skip
    t, r, s = tap // (KERNEL[1] * KERNEL[2]), tap // KERNEL[2] % KERNEL[1], tap % KERNEL[2]
    ahead_d, met_d = meets(rest[0], t, KERNEL[0], STRIDE[0], PADDING[0], DILATION[0])
    ahead_h, met_h = meets(rest[1], r, KERNEL[1], STRIDE[1], PADDING[1], DILATION[1])
    ahead_w, met_w = meets(rest[2], s, KERNEL[2], STRIDE[2], PADDING[2], DILATION[2])
    if met_d & met_h & met_w:
        o, p, q = i[0] + ahead_d, i[1] + ahead_h, i[2] + ahead_w
        read = inside & ((o >= 0) & (o < outs[0]) & (p >= 0) & (p < outs[1]))
        read = read & ((q >= 0) & (q < outs[2]))
        place = (o * outs[1] + p) * outs[2] + q
        for j in range(MULTIPLIER):
            k = c * MULTIPLIER + j
            v = tl.load(dy + (n * dy_n + place * dy_p + k * dy_c), read, 0.0).to(tl.float32)
            f = tl.load(w + (k * w_k + tap * w_t), c < C, 0.0).to(tl.float32)
            total = tl.where(read, total + v * f, total)
    return total


@triton.jit(do_not_specialize_on_alignment=_EXTENTS)
def conv_dgrad_depthwise_kernel(
    dy, w, dx,
    rows, C, D, H, W, O, P, Q, dy_n, dy_c, dy_p, w_k, w_t, dx_n, dx_c, dx_p,
    MULTIPLIER: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy [N, K, O, P, Q], w [K, taps] -> dx [N, C, D, H, W], by their strides. rows: places of the
    largest class."""
    tiles = tl.num_programs(0) // (STRIDE[0] * STRIDE[1] * STRIDE[2])
    m, c = tile_of(tl.program_id(0) % tiles, rows, C, BLOCK_M, BLOCK_C, WIDE)
    rest = class_of(tl.program_id(0) // tiles, STRIDE)
    n, i = split(
        m,
        (D + (STRIDE[0] - 1)) // STRIDE[0],
        (H + (STRIDE[1] - 1)) // STRIDE[1],
        (W + (STRIDE[2] - 1)) // STRIDE[2],
    )
    d, h, q = i[0] * STRIDE[0] + rest[0], i[1] * STRIDE[1] + rest[1], i[2] * STRIDE[2] + rest[2]
    inside = (m < rows) & (c < C) & ((d < D) & (h < H) & (q < W))
    total = tl.full([BLOCK_M, BLOCK_C], 0, tl.float32)
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    if TAPS <= UNROLLED_TAPS:
        for tap in tl.static_range(TAPS):
            total = dgrad_step(
                tap, total, dy, w, n, i, rest, (O, P, Q), c, inside, dy_n, dy_c, dy_p, w_k, w_t, C,
                MULTIPLIER, KERNEL, STRIDE, PADDING, DILATION,
            )  # fmt: skip
    else:
        for tap in range(TAPS):
            total = dgrad_step(
                tap, total, dy, w, n, i, rest, (O, P, Q), c, inside, dy_n, dy_c, dy_p, w_k, w_t, C,
                MULTIPLIER, KERNEL, STRIDE, PADDING, DILATION,
            )  # fmt: skip
    tl.store(dx + (n * dx_n + ((d * H + h) * W + q) * dx_p + c * dx_c), total, inside)


@triton.jit(do_not_specialize_on_alignment=_EXTENTS)
def conv_wgrad_depthwise_kernel(
    dy, x, partial,
    rows, K, D, H, W, O, P, Q, dy_n, dy_c, dy_p, x_n, x_c, x_p, per_split, splits,
    MULTIPLIER: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, WIDE: tl.constexpr,
    TAPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy [N, K, O, P, Q], x [N, C, D, H, W] by their strides -> partial [splits, K, taps], float32.
    per_split: places of a slice, a multiple of BLOCK_M. TAPS: of a row, that a program has."""
    PARTS: tl.constexpr = (KERNEL[2] + TAPS - 1) // TAPS
    ROWS: tl.constexpr = KERNEL[0] * KERNEL[1]
    tiles_c = (K + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0)
    part, tile = tile % PARTS, tile // PARTS
    row, tile = tile % ROWS, tile // ROWS
    k = tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, None, :]
    slice_ = tile // tiles_c
    s = part * TAPS + tl.arange(0, TAPS)[:, None, None]
    start = slice_ * per_split
    if WIDE:
        k = k.to(tl.int64)
        start = slice_.to(tl.int64) * per_split
    c = k // MULTIPLIER
    total = tl.full([TAPS, BLOCK_M, BLOCK_C], 0, tl.float32)
    for first in range(0, per_split, BLOCK_M):
        m = start + first + tl.arange(0, BLOCK_M)[None, :, None]
        n, out = split(m, O, P, Q)
        some = (m < rows) & (k < K)
        place = (out[0] * P + out[1]) * Q + out[2]
        g = tl.load(dy + (n * dy_n + place * dy_p + k * dy_c), some, 0.0).to(tl.float32)
        d = out[0] * STRIDE[0] - PADDING[0] + row // KERNEL[1] * DILATION[0]
        h = out[1] * STRIDE[1] - PADDING[1] + row % KERNEL[1] * DILATION[1]
        q = out[2] * STRIDE[2] - PADDING[2] + s * DILATION[2]
        some = some & ((d >= 0) & (d < D) & (h >= 0) & (h < H)) & (s < KERNEL[2])
        some = some & ((q >= 0) & (q < W))
        at = n * x_n + ((d * H + h) * W + q) * x_p + c * x_c
        v = tl.load(x + at, some, 0.0).to(tl.float32)
        total = tl.where(some, total + g * v, total)
    sums = tl.reduce(total, 1, tl.standard._sum_combine)
    s = part * TAPS + tl.arange(0, TAPS)[:, None]
    k = tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    at = (slice_ * K + k).to(tl.int64) * (ROWS * KERNEL[2]) + row * KERNEL[2] + s
    tl.store(partial + at, sums, (s < KERNEL[2]) & (k < K))


@triton.jit
def conv_wgrad_depthwise_sum_kernel(partial, dw, count, splits, BLOCK: tl.constexpr):
    """partial [splits, count] float32 -> dw [count]."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full([BLOCK], 0, tl.float32)
    for _ in range(splits):
        total += tl.load(partial + at, at < count, 0.0)
        partial += count
    tl.store(dw + at, total, at < count)


@triton.jit
def conv_depthwise_filter_kernel(w, wt, K, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """w [K, TAPS] -> wt [TAPS, K]."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v = tl.load(w + (at % K * TAPS + at // K), at < K * TAPS)
    tl.store(wt + at, v, at < K * TAPS)
