"""What every pooling kernel shares: tiles, windows and loads.

One geometry serves both layouts and all ranks. A tensor is [planes, D, H, W, inner]: NHWC has
N planes and C inner elements, NCHW has N*C planes and one; unused axes have extent 1, which Triton
knows at compile time. A program owns a tile [BLOCK_M, BLOCK_C] of BLOCK_M places (over planes, D, H
and W together) and BLOCK_C inner elements, so index arithmetic is done once per place, on
[BLOCK_M, 1], and along the inner axis addresses are consecutive (128-bit accesses where C allows).

KERNEL, STRIDE, PADDING, DILATION are compile-time triples; a STRIDE of 0 marks an adaptive axis, as
in csrc/common/pool_problem.h. WIDE: places and offsets are 64-bit. BORDER: windows may reach beyond
the input. ACC: the dtype of the arithmetic.
Only builtins of Triton are called here and in the kernels, none of its library written in Triton.
"""

import triton
import triton.language as tl

# Windows of more taps are walked by a loop at run time: code grows with the taps, and so does the
# time to compile it.
UNROLLED_TAPS = tl.constexpr(32)


@triton.jit
def tile_of(rows, inner, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr):
    """This program's places [BLOCK_M, 1], inner elements [1, BLOCK_C], and which of them exist."""
    tiles_c = (inner + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0)
    tile_m = tile // tiles_c
    if WIDE:
        tile_m = tile_m.to(tl.int64)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    c = tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return m, c, (m < rows) & (c < inner)


@triton.jit
def offsets(m, c, plane, i, extents, inner, BLOCK_C: tl.constexpr):
    """Where the tile's results lie, [BLOCK_M, BLOCK_C].

    It is m * inner + c. Without inner elements Triton would see that four threads' worth lie side
    by side, and exchange results between threads for stores of 16 bytes, which it then cannot use
    where the number of results is odd. Spelled out, each thread stores what it computed, and a warp
    still writes consecutive elements.
    """
    if BLOCK_C > 1:
        return m * inner + c
    else:
        place = ((plane * extents[0] + i[0]) * extents[1] + i[1]) * extents[2] + i[2]
        return place * inner + c


@triton.jit
def split(m, D, H, W):
    """Place m -> plane and (d, h, w)."""
    w = m % W
    m = m // W
    h = m % H
    m = m // H
    return m // D, (m % D, h, w)


@triton.jit
def axis_start(i, extent, outputs, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    """Where the window of output i starts; negative in the padding."""
    if STRIDE == 0:
        return i * extent // outputs
    else:
        return i * STRIDE - PADDING


@triton.jit
def axis_end(i, extent, outputs, STRIDE: tl.constexpr):
    """Where the window of output i has to end, whatever its taps."""
    if STRIDE == 0:
        return ((i + 1) * extent + outputs - 1) // outputs
    else:
        return extent


@triton.jit
def windows(i, ins, outs, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    """Starts and ends of the windows of outputs i = (o, p, q)."""
    starts = (
        axis_start(i[0], ins[0], outs[0], STRIDE[0], PADDING[0]),
        axis_start(i[1], ins[1], outs[1], STRIDE[1], PADDING[1]),
        axis_start(i[2], ins[2], outs[2], STRIDE[2], PADDING[2]),
    )
    ends = (
        axis_end(i[0], ins[0], outs[0], STRIDE[0]),
        axis_end(i[1], ins[1], outs[1], STRIDE[1]),
        axis_end(i[2], ins[2], outs[2], STRIDE[2]),
    )
    return starts, ends


@triton.jit
def first_tap(start, DILATION: tl.constexpr):
    """The first tap of an axis that lies in the input."""
    return (tl.maximum(-start, 0) + (DILATION - 1)) // DILATION


@triton.jit
def tap_position(tap, starts, KERNEL: tl.constexpr, DILATION: tl.constexpr):
    """(d, h, w) of a tap, which counts row-major over KERNEL."""
    d = starts[0] + tap // (KERNEL[1] * KERNEL[2]) * DILATION[0]
    h = starts[1] + tap // KERNEL[2] % KERNEL[1] * DILATION[1]
    w = starts[2] + tap % KERNEL[2] * DILATION[2]
    return d, h, w


@triton.jit
def load_tap(
    x,
    tap,
    plane,
    starts,
    ends,
    ins,
    inner,
    c,
    inside,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    BORDER: tl.constexpr,
    OTHER: tl.constexpr,
    ACC: tl.constexpr,
):
    """One tap of every window of the tile: the elements [BLOCK_M, BLOCK_C], OTHER where the tap
    lies outside; which lie inside; and their places in the plane [BLOCK_M, 1]."""
    d, h, w = tap_position(tap, starts, KERNEL, DILATION)
    if BORDER:
        inside = inside & ((d >= 0) & (d < ends[0]) & (h >= 0) & (h < ends[1]))
        inside = inside & ((w >= 0) & (w < ends[2]))
    place = (d * ins[1] + h) * ins[2] + w
    v = tl.load(x + ((plane * ins[0] * ins[1] * ins[2] + place) * inner + c), inside, OTHER)
    return v.to(ACC), inside, place


@triton.jit
def axis_counted(
    start,
    end,
    extent,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
):
    """How many elements of a window an average counts along one axis; `pool_window_size`."""
    if STRIDE == 0:
        return end - start
    elif INCLUDE_PAD:
        return tl.minimum(start + KERNEL, extent + PADDING) - start
    else:
        return tl.minimum(start + KERNEL, extent) - tl.maximum(start, 0)


@triton.jit
def counted(
    starts,
    ends,
    ins,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    INCLUDE_PAD: tl.constexpr,
    ACC: tl.constexpr,
):
    """The same of whole windows."""
    d = axis_counted(starts[0], ends[0], ins[0], KERNEL[0], STRIDE[0], PADDING[0], INCLUDE_PAD)
    h = axis_counted(starts[1], ends[1], ins[1], KERNEL[1], STRIDE[1], PADDING[1], INCLUDE_PAD)
    w = axis_counted(starts[2], ends[2], ins[2], KERNEL[2], STRIDE[2], PADDING[2], INCLUDE_PAD)
    return d.to(ACC) * h.to(ACC) * w.to(ACC)


@triton.jit
def first_output(
    i,
    extent,
    outputs,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
):
    """The first output of an axis whose window reaches input i; `pool_outputs`."""
    if STRIDE == 0:
        return i * outputs // extent
    else:
        return (tl.maximum(i + (PADDING - DILATION * (KERNEL - 1)), 0) + (STRIDE - 1)) // STRIDE


@triton.jit
def end_output(i, extent, outputs, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    """One past the last of them."""
    if STRIDE == 0:
        return ((i + 1) * outputs + extent - 1) // extent
    else:
        return tl.minimum((i + PADDING) // STRIDE + 1, outputs)


@triton.jit
def outputs_reaching(
    i,
    ins,
    outs,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
):
    """First and end of the outputs whose windows reach inputs i = (d, h, w)."""
    firsts = (
        first_output(i[0], ins[0], outs[0], KERNEL[0], STRIDE[0], PADDING[0], DILATION[0]),
        first_output(i[1], ins[1], outs[1], KERNEL[1], STRIDE[1], PADDING[1], DILATION[1]),
        first_output(i[2], ins[2], outs[2], KERNEL[2], STRIDE[2], PADDING[2], DILATION[2]),
    )
    ends = (
        end_output(i[0], ins[0], outs[0], STRIDE[0], PADDING[0]),
        end_output(i[1], ins[1], outs[1], STRIDE[1], PADDING[1]),
        end_output(i[2], ins[2], outs[2], STRIDE[2], PADDING[2]),
    )
    return firsts, ends


@triton.jit
def output_reaching(j, plane, firsts, ends, outs, inner, c, inside, REACH: tl.constexpr):
    """The j-th of them, row-major over REACH: (o, p, q), its offset, and whether it exists."""
    o = firsts[0] + j // (REACH[1] * REACH[2])
    p = firsts[1] + j // REACH[2] % REACH[1]
    q = firsts[2] + j % REACH[2]
    inside = inside & ((o < ends[0]) & (p < ends[1]) & (q < ends[2]))
    at = (((plane * outs[0] + o) * outs[1] + p) * outs[2] + q) * inner + c
    return (o, p, q), at, inside


@triton.jit
def divide(a, b, ACC: tl.constexpr):
    """Rounded to nearest; the plain float32 division of Triton is not."""
    if ACC == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def power(v, P: tl.constexpr, ACC: tl.constexpr):
    """v^P: products, roots and quotients rounded to nearest for P of 0, 1, 2, 3, 1/2 and -1.

    Else 2^(P log2 |v|) in float64, which leaves float32 an error of 1 ulp and float64 one of some
    |P log2 v| ulp. A negative v gives NaN but for whole P, as pow does.
    """
    if P == 0:
        return tl.full(v.shape, 1, ACC)
    elif P == 1:
        return v
    elif P == 2:
        return v * v
    elif P == 3:
        return v * v * v
    elif P == -1:
        return divide(tl.full(v.shape, 1, ACC), v, ACC)
    elif P == 0.5:
        if ACC == tl.float32:
            return tl.sqrt_rn(v)
        else:
            return tl.sqrt(v)
    else:
        if ACC == tl.float64:
            logarithm = tl.log2(tl.abs(v))
        else:
            # Of the square: the compiler would take |v| in float32, where it may flush subnormals.
            wide = v.to(tl.float64)
            logarithm = tl.log2(wide * wide) * 0.5
        raised = tl.exp2(logarithm * P)
        if P % 2 == 0:
            return raised.to(ACC)
        elif P % 1 == 0:
            return tl.where(v < 0, -raised, raised).to(ACC)
        else:
            below = (v < 0) & (logarithm != float("inf"))
            return tl.where(below, float("nan"), raised).to(ACC)
