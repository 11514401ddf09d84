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
def place(n, d, h, w, s_n, s_d, s_h, s_w, RANK: tl.constexpr, WIDE: tl.constexpr):
    """The offset of an element of channel 0."""
    if WIDE:
        n, d, h, w = n.to(tl.int64), d.to(tl.int64), h.to(tl.int64), w.to(tl.int64)
    at = w * s_w
    if RANK >= 1:
        at += n * s_n
    if RANK >= 2:
        at += h * s_h
    if RANK == 3:
        at += d * s_d
    return at


@triton.jit
def to_tf32(v):
    """float32 rounded to TF32's 11 bits, to nearest, ties away from zero; NaN stays NaN.

    The tensor cores would cut the other bits off, which is twice the error and always inwards.
    """
    bits = (v.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(v == v, bits.to(tl.float32, bitcast=True), v)


@triton.jit
def below_tf32(v, big):
    """What v has beyond `big`, rounded to TF32; nothing where v is not finite."""
    rest = to_tf32(v - big)
    return tl.where(tl.abs(rest) < float("inf"), rest, 0.0)


@triton.jit
def multiply(a, b, sums, rests, PRECISION: tl.constexpr):
    """sums += a b; PRECISION "tf32x3": in three products of TF32 numbers, the two smaller ones in
    `rests` (their infinities would meet to NaNs where a's and b's own do not); "widened": for
    16-bit operands where there is no product of such."""
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
        rests = tl.dot(below_tf32(a, big_a), big_b, rests, input_precision="tf32")
        rests = tl.dot(big_a, below_tf32(b, big_b), rests, input_precision="tf32")
        return tl.dot(big_a, big_b, sums, input_precision="tf32"), rests


@triton.jit
def total(sums, rests, PRECISION: tl.constexpr):
    """What `multiply` added up."""
    if PRECISION == "tf32x3":
        return sums + tl.where(tl.abs(rests) < float("inf"), rests, 0.0)
    else:
        return sums
