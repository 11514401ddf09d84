"""The loop that fprop and dgrad share: a tile of sums over taps and channels.

    sums[m, n] = sum over taps (t, r, s), c of
                 source[pixel m's start + (t, r, s) step, c] filter[n, first + (t, r, s) hop, c]

fprop reads x, steps by the dilation and takes every tap; dgrad reads dy, steps backwards and takes
the taps of one residue. Steps of the loop run over blocks of channels first, then over taps, as
counters that the compiler's pipeline can run ahead of: no division, no nested loop to drain at.
"""

import triton
import triton.language as tl

from .conv_tiles import multiply, total


@triton.jit
def reaches(start, offset, extent, BORDER: tl.constexpr, PACKED: tl.constexpr):
    """Whether start [BLOCK_M] + offset (a number, or [BLOCK_K]) is in 0..extent-1; without a border
    it always is."""
    if not BORDER:
        return tl.full([1, 1], 1, tl.int1)
    elif PACKED:
        return (start[:, None] + offset[None, :]).to(tl.uint32) < extent.to(tl.uint32)
    else:
        return ((start + offset).to(tl.uint32) < extent.to(tl.uint32))[:, None]


@triton.jit
def gather_sums(
    source, filters, rows, corner, starts, inside, extents, strides, s_c, depth, channels, first_k,
    n_start, n_inside, counts, step, first, HOP: tl.constexpr, KERNEL: tl.constexpr,
    FILTER_BY_DEPTH: tl.constexpr, BORDER: tl.constexpr, PACKED: tl.constexpr,
    WHOLE: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] float32.

    rows: offsets of the pixels' starts; starts: their positions (d, h, w); extents, strides: of
    the source's axes. filters [k, taps, channels]: from row first_k on; the sum runs over its last
    axis or, FILTER_BY_DEPTH, over its first, `depth` elements in any case. counts: taps per axis;
    step: between their positions; first, HOP: the first tap and the distance of taps in the filter.
    PACKED: a block of products may hold several taps, for few channels. WHOLE: every block is full.
    DESCRIPTORS: at 1 and 2 filters is a tensor descriptor, with boxes of BLOCK_N or BLOCK_K rows,
    one tap, BLOCK_K or BLOCK_N channels; at 2 so is source [pixels, channels], of a product of
    matrices, read from `corner` on. What is beyond the end of either reads as zero.
    """
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    pitch = TAPS * channels
    sums = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32)
    rests = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32) if PRECISION == "tf32x3" else 0
    lane = tl.arange(0, BLOCK_K)
    blocks = (depth + BLOCK_K - 1) // BLOCK_K
    all_products = counts[0] * counts[1] * counts[2] * depth
    steps = counts[0] * counts[1] * counts[2] * blocks
    if PACKED:
        steps = (all_products + BLOCK_K - 1) // BLOCK_K
    zero = tl.program_id(0) * 0
    block, t, r, s = zero, zero, zero, zero
    n = n_start + tl.arange(0, BLOCK_N)
    if WIDE:
        n = n.to(tl.int64)
    for i in range(steps):
        if PACKED:
            flat = i * BLOCK_K + lane
            tap = flat // depth
            c = flat % depth
            exists = flat < all_products
            tap_s = tap % counts[2]
            tap_r = tap // counts[2] % counts[1]
            tap_t = tap // (counts[2] * counts[1])
        else:
            c = block * BLOCK_K + lane
            exists = c < depth
            tap_t, tap_r, tap_s = t, r, s
        d, h, w, k = tap_t * step[0], tap_r * step[1], tap_s * step[2], c
        seen = (
            inside[:, None]
            & reaches(starts[0], d, extents[0], BORDER[0], PACKED)
            & reaches(starts[1], h, extents[1], BORDER[1], PACKED)
            & reaches(starts[2], w, extents[2], BORDER[2], PACKED)
        )
        if WIDE:
            d, h, w, k = d.to(tl.int64), h.to(tl.int64), w.to(tl.int64), c.to(tl.int64)
        # All of [BLOCK_K] and rows of [BLOCK_M]: sums of two axes are left to the addresses.
        if TAPS == 1:
            columns = k * s_c  # the one tap moves nothing, which the counters do not show
        else:
            columns = k * s_c + (d * strides[0] + h * strides[1] + w * strides[2])
        tap_t, tap_r, tap_s = (
            first[0] + tap_t * HOP[0], first[1] + tap_r * HOP[1], first[2] + tap_s * HOP[2]
        )  # fmt: skip
        tap = (tap_t * KERNEL[1] + tap_r) * KERNEL[2] + tap_s
        if DESCRIPTORS == 2:
            a = source.load([corner[0], corner[1] + block * BLOCK_K])
        else:
            if not WHOLE:
                seen = seen & exists[None, :]
            a = tl.load(source + (rows[:, None] + columns[None, :]), seen, other=0.0)
        if DESCRIPTORS >= 1:
            if FILTER_BY_DEPTH:
                b = filters.load([first_k + block * BLOCK_K, tap, n_start])
                b = tl.reshape(b, [BLOCK_K, BLOCK_N])
            else:
                b = filters.load([first_k + n_start, tap, block * BLOCK_K])
                b = tl.trans(tl.reshape(b, [BLOCK_N, BLOCK_K]))
        else:
            if FILTER_BY_DEPTH:
                where = ((first_k + k) * pitch + tap * channels)[:, None] + n[None, :]
            else:
                where = (k + tap * channels)[:, None] + ((first_k + n) * pitch)[None, :]
            taken = n_inside[None, :]
            if not WHOLE:
                taken = taken & exists[:, None]
            b = tl.load(filters + where, taken, other=0.0)
        sums, rests = multiply(a, b, sums, rests, PRECISION)
        # The next block, and after the last block of channels the next tap.
        block += 1
        carry = (block == blocks).to(tl.int32)
        block = tl.where(carry != 0, 0, block)
        s += carry
        carry = (s == counts[2]).to(tl.int32)
        s = tl.where(carry != 0, 0, s)
        r += carry
        carry = (r == counts[1]).to(tl.int32)
        r = tl.where(carry != 0, 0, r)
        t += carry
    return total(sums, rests, PRECISION)
