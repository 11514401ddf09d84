"""Gradient of the filter as a matrix product over pixels, split among programs in two stages.

  conv_wgrad_implicit_gemm_kernel
      dw[k, c, t] = sum over n, o of dy[n, k, o] x[n, c, o stride - pad + t dil], of a range of
      pixels: partial sums, or all of them
  conv_wgrad_sum_kernel  adds the partial sums of the ranges, first to last

gemm_m = K/groups, gemm_n = C/groups T R S, gemm_k = N O P Q pixels. A program has BLOCK_M output
channels and BLOCK_N input channels of one tap, or, for few channels (PACKED), of several taps.
Pixels are taken apart into (n, o, p, q) at every step, by multiplications, unless the filter has
one tap and both tensors lie in memory as matrices.

Layouts: any strides; in NHWC a thread loads 16 bytes of neighbouring channels, of both operands.
dtypes and precisions as conv_implicit_gemm.py; partial sums in float32, in dw's own memory order.
Deterministic: the ranges depend on the problem and the configuration, and are added in order.
Bytes: dy once per tile of C and tap, x once per tile of K and tap, mostly from L2, since programs
of one range of pixels follow each other; of partial sums 8 SPLIT K C taps. Bounded by the tensor
cores at C, K >= 128. Not measured on a GPU.
Source: Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning" (2014), section 3, with
gemm_k split among programs as in any product whose results are few.
"""

import triton
import triton.language as tl

from .conv_mainloop import reaches
from .conv_tiles import multiply, place, split_pixel, tile_of, total

SIZES = [
    "pixels", "chunk", "size", "split", "Q_mul", "Q_shift", "P_mul", "P_shift", "O_mul", "O_shift",
]  # fmt: skip
STRIDES = [
    "C", "K", "D", "H", "W", "O", "P", "Q", "x_n", "x_c", "x_d", "x_h", "x_w",
    "y_n", "y_c", "y_d", "y_h", "y_w", "w_k", "w_c", "w_t", "w_r", "w_s",
]  # fmt: skip


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def conv_wgrad_implicit_gemm_kernel(
    dy, x, dw, size, chunk, pixels, C, K, D, H, W,
    O, O_mul, O_shift, P, P_mul, P_shift, Q, Q_mul, Q_shift,
    y_n, y_c, y_d, y_h, y_w, x_n, x_c, x_d, x_h, x_w, w_k, w_c, w_t, w_r, w_s,
    RANK: tl.constexpr, GROUPS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, DILATION: tl.constexpr, BORDER: tl.constexpr, LINEAR: tl.constexpr,
    PRECISION: tl.constexpr, PACKED: tl.constexpr, WIDE: tl.constexpr, VEC: tl.constexpr,
    RUNS: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dy [N, GROUPS K, O, P, Q], x [N, GROUPS C, D, H, W] -> dw [ranges, GROUPS K, C, T, R, S],
    `size` elements of each range of `chunk` pixels.

    LINEAR: dy's pixels lie y_w apart. DESCRIPTORS: at 1 and 2 dy is a tensor descriptor [pixels,
    GROUPS K], with boxes of BLOCK_K, BLOCK_M; at 2 so is x, BLOCK_K, BLOCK_N. C, K, size and
    the strides of x, dy and dw (but of channels), chunk and pixels count VEC elements. RUNS: so
    many pixels lie side by side, of dy and x; where more than one, strides of images and channels
    count such runs.
    """
    C *= VEC[0]
    K *= VEC[1]
    x_n, x_d, x_h, x_w = x_n * VEC[2], x_d * VEC[2], x_h * VEC[2], x_w * VEC[2]
    y_n, y_d, y_h, y_w = y_n * VEC[3], y_d * VEC[3], y_h * VEC[3], y_w * VEC[3]
    w_k, w_t, w_r, w_s = w_k * VEC[4], w_t * VEC[4], w_r * VEC[4], w_s * VEC[4]
    size *= VEC[4]
    y_n, y_c = y_n * RUNS[0], y_c * RUNS[0]
    x_n, x_c = x_n * RUNS[1], x_c * RUNS[1]
    TAPS: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2]
    tiles_k = (K + BLOCK_M - 1) // BLOCK_M
    if PACKED:
        tiles_c = (TAPS * C + BLOCK_N - 1) // BLOCK_N
    else:
        tiles_c = (C + BLOCK_N - 1) // BLOCK_N * TAPS
    tiles = GROUPS * tiles_k * tiles_c
    part = tl.program_id(0) // tiles
    # Groups are rows of tiles: a tile has output channels of one.
    tile_m, tile_n = tile_of(tl.program_id(0) % tiles, GROUPS * tiles_k, tiles_c, GROUP_M)
    group = tile_m // tiles_k
    k_start = tile_m % tiles_k * BLOCK_M
    k = k_start + tl.arange(0, BLOCK_M)
    if PACKED:
        flat = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        tap = flat // C
        c = flat % C
        c_inside = flat < TAPS * C
    else:
        tap = tile_n % TAPS
        c = tile_n // TAPS * BLOCK_N + tl.arange(0, BLOCK_N)
        c_inside = c < C
    k_inside = k < K
    s = tap % KERNEL[2]
    r = tap // KERNEL[2] % KERNEL[1]
    t = tap // (KERNEL[1] * KERNEL[2])

    far_k, far_c = group * K + k, group * C + c
    d, h, v = t * DILATION[0], r * DILATION[1], s * DILATION[2]
    if WIDE:
        far_k, far_c = far_k.to(tl.int64), far_c.to(tl.int64)
        columns = far_c * x_c + (d.to(tl.int64) * x_d + h.to(tl.int64) * x_h + v.to(tl.int64) * x_w)
    else:
        columns = far_c * x_c + (d * x_d + h * x_h + v * x_w)
    if DESCRIPTORS == 0:
        from_dy = dy + far_k * y_c
    sums = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32)
    rests = tl.full([BLOCK_M, BLOCK_N], 0, tl.float32) if PRECISION == "tf32x3" else 0
    o_split, p_split, q_split = (O, O_mul, O_shift), (P, P_mul, P_shift), (Q, Q_mul, Q_shift)
    start = part * chunk * VEC[5]
    end = tl.minimum((part + 1) * chunk, pixels) * VEC[5]
    for at in range(start, end, BLOCK_K):
        m = at + tl.arange(0, BLOCK_K)
        inside = m < end
        n, o, p, q = split_pixel(m, o_split, p_split, q_split, RANK)
        if DESCRIPTORS >= 1:
            a = tl.trans(dy.load([at, group * K + k_start]))
        else:
            if LINEAR:
                pixel = place(n, o, p, m, 0, 0, 0, y_w, 0, WIDE)
            else:
                pixel = place(n, o, p, q, y_n, y_d, y_h, y_w, RANK, WIDE, RUNS[0])
            a = tl.load(
                from_dy[:, None] + pixel[None, :], k_inside[:, None] & inside[None, :], other=0.0
            )
        o = o * STRIDE[0] - PADDING[0]
        p = p * STRIDE[1] - PADDING[1]
        q = q * STRIDE[2] - PADDING[2]
        rows = place(n, o, p, q, x_n, x_d, x_h, x_w, RANK, WIDE, RUNS[1])
        seen = (
            inside[:, None]
            & c_inside[None, :]
            & reaches(o, d, D, BORDER[0], PACKED)
            & reaches(p, h, H, BORDER[1], PACKED)
            & reaches(q, v, W, BORDER[2], PACKED)
        )
        if DESCRIPTORS == 2:
            b = x.load([at, group * C + tile_n * BLOCK_N])
        else:
            b = tl.load(x + (rows[:, None] + columns[None, :]), seen, other=0.0)
        sums, rests = multiply(a, b, sums, rests, PRECISION)
    sums = total(sums, rests, PRECISION)

    # dw has c channels per group, and rows of every group.
    k += group * K
    if WIDE:
        k, c = k.to(tl.int64), c.to(tl.int64)
    to = (k * w_k)[:, None] + (c * w_c + (t * w_t + r * w_r + s * w_s))[None, :]
    to = to + part.to(tl.int64) * size
    tl.store(dw + to, sums.to(dw.dtype.element_ty), k_inside[:, None] & c_inside[None, :])


@triton.jit(do_not_specialize=SIZES)
def conv_wgrad_sum_kernel(partial, dw, size, split, BLOCK: tl.constexpr):
    """partial [split, size] float32 -> dw [size]. Four loads are under way at a time."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    partial += at
    sums = tl.full([BLOCK], 0, tl.float32)
    for part in range(0, split, 4):
        left = tl.where(inside, split - part, 0)
        for i in tl.static_range(4):
            sums += tl.load(partial, left > i, other=0.0)
            partial += size
    tl.store(dw + at, sums.to(dw.dtype.element_ty), inside)
