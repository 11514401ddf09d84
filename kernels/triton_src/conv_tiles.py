"""What every convolution kernel shares: the order of tiles, places of pixels, products.

A pixel is numbered row-major over (n, o, p, q). Divisions by extents are multiplications by the
numbers of `conv_geometry.magic`: a loop of wgrad takes pixels apart at every step.
Only builtins of Triton are called here and in the kernels, none of its library written in Triton.
"""

import triton
import triton.language as tl


@triton.jit
def tile_of(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Tile number -> (tile_m, tile_n): GROUP_M rows of tiles at a time, down each column of them,
    so that the programs that run at one time read few different operands, which stay in L2."""
    width = GROUP_M * tiles_n
    first = tile // width * GROUP_M
    rows = tl.minimum(tiles_m - first, GROUP_M)
    within = tile % width
    return first + within % rows, within // rows


@triton.jit
def quotient(m, divisor):
    """m // divisor[0], for 0 <= m < 2^31."""
    high = tl.umulhi(m.to(tl.uint32), divisor[1].to(tl.uint32)).to(tl.int32)
    return tl.where(divisor[2] < 0, m, high >> tl.maximum(divisor[2], 0))


@triton.jit
def split_pixel(m, depth, height, width, RANK: tl.constexpr):
    """Pixel number -> n, o, p, q; the arguments are (extent, multiplier, shift)."""
    if RANK == 0:
        zero = m * 0
        return zero, zero, zero, m
    else:
        rest = quotient(m, width)
        q = m - rest * width[0]
        p = rest * 0
        o = rest * 0
        if RANK >= 2:
            above = quotient(rest, height)
            p = rest - above * height[0]
            rest = above
        if RANK == 3:
            above = quotient(rest, depth)
            o = rest - above * depth[0]
            rest = above
        return rest, o, p, q


@triton.jit
def place(
    n, d, h, w, s_n, s_d, s_h, s_w, RANK: tl.constexpr, WIDE: tl.constexpr, RUN: tl.constexpr = 1
):  # fmt: skip
    """The offset of an element of channel 0. RUN: so many neighbouring pixels lie side by side from
    a multiple of that many on, which vectors need and the arithmetic of quotients does not show."""
    if WIDE:
        n, d, h, w = n.to(tl.int64), d.to(tl.int64), h.to(tl.int64), w.to(tl.int64)
    at = w * s_w
    if RANK >= 1:
        at += n * s_n
    if RANK >= 2:
        at += h * s_h
    if RANK == 3:
        at += d * s_d
    if RUN > 1:
        # On this sum, not on a caller's argument: what is said of those is lost when it is inlined.
        at = tl.max_contiguous(tl.multiple_of(at, RUN), RUN)
    return at


@triton.jit
def rounded(v):
    """float32 rounded to TF32's 11 bits, to nearest, ties away from zero; not for NaN.

    The tensor cores would cut the other bits off, which is twice the error and always inwards.
    """
    bits = (v.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def to_tf32(v):
    """`rounded`, and NaN stays NaN (its bits may be all ones, which rounding would carry over)."""
    return tl.where(v == v, rounded(v), v)


@triton.jit
def multiply(a, b, sums, rests, PRECISION: tl.constexpr):
    """sums += a b; PRECISION "tf32x3": in three products of TF32 numbers, the two smaller ones in
    `rests`; "widened": for 16-bit operands where there is no product of such."""
    if PRECISION == "ieee":
        return tl.dot(a, b, sums, input_precision="ieee"), rests
    elif PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee"), rests
    elif PRECISION == "tf32":
        return tl.dot(to_tf32(a), to_tf32(b), sums, input_precision="tf32"), rests
    else:
        tl.static_assert(PRECISION == "tf32x3")
        big_a = to_tf32(a)
        big_b = to_tf32(b)
        rests = tl.dot(rounded(a - big_a), big_b, rests, input_precision="tf32")
        rests = tl.dot(big_a, rounded(b - big_b), rests, input_precision="tf32")
        return tl.dot(big_a, big_b, sums, input_precision="tf32"), rests


@triton.jit
def total(sums, rests, PRECISION: tl.constexpr):
    """What `multiply` added up. An operand that is not finite has no rest, or a NaN; infinities
    would meet there where a's and b's own do not, and say nothing that `sums` does not."""
    if PRECISION == "tf32x3":
        return sums + tl.where(tl.abs(rests) < float("inf"), rests, 0.0)
    else:
        return sums
