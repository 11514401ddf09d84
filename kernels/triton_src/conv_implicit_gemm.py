"""Convolution as a matrix product whose left operand is gathered while it is multiplied.

  conv_fprop_implicit_gemm_kernel
      y[n, k, o] = end(sum over c, t of x[n, c, o stride - pad + t dil] w[k, c, t])
  conv_dgrad_implicit_gemm_kernel
      dx[n, c, i] = sum over k, t of dy[n, k, (i + pad - t dil) / stride] w[k, c, t]

fprop: gemm_m = N O P Q pixels, gemm_n = K/groups, gemm_k = C/groups T R S, channels innermost; the
groups lie side by side along gemm_n. dgrad: inputs of one residue modulo the stride take the same
taps t, every stride/gcd(stride, dil)-th, and their outputs are neighbours, so each residue class is
a convolution of stride 1 with fewer taps: no zeros are inserted, none is multiplied. All classes
are one launch. A convolution of one tap and stride 1 comes here with its axes merged into one
(RANK 0 in NHWC): a matrix product.

Layouts: activations of any strides; in NHWC a thread loads 16 bytes of neighbouring channels.
Filters [K, T, R, S, C/groups], dense. bfloat16, float16; float32 with products in float32
("ieee"), TF32, or three of TF32. Sums in float32. Padding is not read, a masked element is zero.
Deterministic: a program adds up its results alone, in one order.

Bytes: per tile and step (BLOCK_M + BLOCK_N) BLOCK_K elements from L2, so a FLOP costs
(1/BLOCK_M + 1/BLOCK_N) itemsize/2 bytes of it: 0.0156 at 128 x 128 in 16 bits, 0.0117 at 128 x 256;
an H200's L2 feeds its tensor cores (some 0.0055 bytes per FLOP at 5.5 TB/s and 990 TFLOP/s) only
with what L1 and neighbouring tiles in time (GROUP_M) leave over. From memory x, y and w once, if a
wave's rows of x stay in L2. Bounded by the tensor cores from about C, K >= 128 on, by memory
bandwidth for 1x1 and narrow layers. Not measured on a GPU.
Source: Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning" (2014), section 3.
"""

import triton
import triton.language as tl

from .conv_epilogue import ending, moments
from .conv_mainloop import gather_sums
from .conv_tiles import place, split_pixel, tile_of

# Alignment is what VEC tells; a compilation for each value that is 1 or divisible is not wanted.
SIZES = [
    "pixels", "slope", "tiles", "class_tiles",
    "I_mul", "I_shift", "J_mul", "J_shift", "L_mul", "L_shift",
    "Q_mul", "Q_shift", "P_mul", "P_shift", "O_mul", "O_shift",
]  # fmt: skip
STRIDES = [
    "C", "K", "D", "H", "W", "O", "P", "Q", "I", "J", "L", "x_n", "x_c", "x_d", "x_h", "x_w",
    "y_n", "y_c", "y_d", "y_h", "y_w", "r_n", "r_c", "r_d", "r_h", "r_w",
]  # fmt: skip


@triton.jit
def fprop_tile(
    tile, x, w, bias, scale, shift, residual, y, mean, m2, slope, pixels, C, K, D, H, W,
    o_split, p_split, q_split, x_n, x_c, x_d, x_h, x_w, y_n, y_c, y_d, y_h, y_w,
    r_n, r_c, r_d, r_h, r_w,
    RANK: tl.constexpr, GROUPS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, DILATION: tl.constexpr, BORDER: tl.constexpr,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    PACKED: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr, RUNS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    tiles_k = (K + BLOCK_N - 1) // BLOCK_N
    tiles_m = (pixels + BLOCK_M - 1) // BLOCK_M
    tile_m, tile_n = tile_of(tile, tiles_m, GROUPS * tiles_k, GROUP_M)
    group = tile_n // tiles_k
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k_start = tile_n % tiles_k * BLOCK_N
    k = k_start + tl.arange(0, BLOCK_N)
    inside = m < pixels
    n, o, p, q = split_pixel(m, o_split, p_split, q_split, RANK)
    d = o * STRIDE[0] - PADDING[0]
    h = p * STRIDE[1] - PADDING[1]
    v = q * STRIDE[2] - PADDING[2]
    first_c = group * C
    if WIDE:
        first_c = first_c.to(tl.int64)
    if DESCRIPTORS < 2:
        x += first_c * x_c
    rows = place(n, d, h, v, x_n, x_d, x_h, x_w, RANK, WIDE, RUNS[0])
    sums = gather_sums(
        x, w, rows, (tile_m * BLOCK_M, group * C), (d, h, v), inside, (D, H, W), (x_d, x_h, x_w),
        x_c, C, C, group * K, k_start, k < K, KERNEL, DILATION, (0, 0, 0), (1, 1, 1), KERNEL, False,
        BORDER, PACKED, WHOLE, PRECISION, WIDE, DESCRIPTORS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip

    k_inside = k < K
    k += group * K
    both = inside[:, None] & k_inside[None, :]
    far_k = k
    if WIDE:
        far_k = k.to(tl.int64)
    from_residual = 0
    if RESIDUAL != 0:
        pixel = place(n, o, p, q, r_n, r_d, r_h, r_w, RANK, WIDE, RUNS[2])
        from_residual = pixel[:, None] + (far_k * r_c)[None, :]
    sums = ending(
        sums, k, k_inside, from_residual, both, bias, scale, shift, residual, slope, ACTIVATION,
        RESIDUAL,
    )  # fmt: skip
    pixel = place(n, o, p, q, y_n, y_d, y_h, y_w, RANK, WIDE, RUNS[1])
    stored = sums.to(y.dtype.element_ty)
    tl.store(y + (pixel[:, None] + (far_k * y_c)[None, :]), stored, both)
    if mean is not None:
        count = tl.minimum(pixels - tile_m * BLOCK_M, BLOCK_M).to(tl.float32)
        average, squares = moments(stored.to(tl.float32), both, count)
        part = tile_m.to(tl.int64) * (GROUPS * K) + k
        tl.store(mean + part, average, k_inside)
        tl.store(m2 + part, squares, k_inside)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def conv_fprop_implicit_gemm_kernel(
    x, w, bias, scale, shift, residual, y, mean, m2, slope, tiles, pixels, C, K, D, H, W,
    O, O_mul, O_shift, P, P_mul, P_shift, Q, Q_mul, Q_shift,
    x_n, x_c, x_d, x_h, x_w, y_n, y_c, y_d, y_h, y_w, r_n, r_c, r_d, r_h, r_w,
    RANK: tl.constexpr, GROUPS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, DILATION: tl.constexpr, BORDER: tl.constexpr,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    PACKED: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr, RUNS: tl.constexpr,
    DESCRIPTORS: tl.constexpr, VEC: tl.constexpr, PERSISTENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """x [N, GROUPS C, D, H, W], w [GROUPS K, T, R, S, C] -> y [N, GROUPS K, O, P, Q]; bias, scale,
    shift [GROUPS K] or None. mean, m2 [tiles of pixels, GROUPS K]: of the results as stored.

    C, K, the strides of x, those of y and the residual (but of channels), and pixels count VEC
    elements. RUNS: so many pixels lie side by side, of x, y and the residual; where more than one,
    strides of images and channels count such runs.
    DESCRIPTORS: w, or w and x, are tensor descriptors (conv_mainloop.py).
    """
    C *= VEC[0]
    K *= VEC[1]
    pixels *= VEC[4]
    x_n, x_d, x_h, x_w = x_n * VEC[2], x_d * VEC[2], x_h * VEC[2], x_w * VEC[2]
    y_n, y_d, y_h, y_w = y_n * VEC[3], y_d * VEC[3], y_h * VEC[3], y_w * VEC[3]
    r_n, r_d, r_h, r_w = r_n * VEC[3], r_d * VEC[3], r_h * VEC[3], r_w * VEC[3]
    x_n, x_c = x_n * RUNS[0], x_c * RUNS[0]
    y_n, y_c = y_n * RUNS[1], y_c * RUNS[1]
    r_n, r_c = r_n * RUNS[2], r_c * RUNS[2]
    if PERSISTENT:
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            fprop_tile(
                tile, x, w, bias, scale, shift, residual, y, mean, m2, slope, pixels, C, K, D, H, W,
                (O, O_mul, O_shift), (P, P_mul, P_shift), (Q, Q_mul, Q_shift),
                x_n, x_c, x_d, x_h, x_w, y_n, y_c, y_d, y_h, y_w, r_n, r_c, r_d, r_h, r_w,
                RANK, GROUPS, KERNEL, STRIDE, PADDING, DILATION, BORDER, ACTIVATION, RESIDUAL,
                PRECISION, PACKED, WHOLE, WIDE, RUNS, DESCRIPTORS, BLOCK_M, BLOCK_N, BLOCK_K,
                GROUP_M,
            )  # fmt: skip
    else:
        fprop_tile(
            tl.program_id(0), x, w, bias, scale, shift, residual, y, mean, m2, slope, pixels, C, K,
            D, H, W, (O, O_mul, O_shift), (P, P_mul, P_shift), (Q, Q_mul, Q_shift),
            x_n, x_c, x_d, x_h, x_w, y_n, y_c, y_d, y_h, y_w, r_n, r_c, r_d, r_h, r_w,
            RANK, GROUPS, KERNEL, STRIDE, PADDING, DILATION, BORDER, ACTIVATION, RESIDUAL,
            PRECISION, PACKED, WHOLE, WIDE, RUNS, DESCRIPTORS, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
        )  # fmt: skip


@triton.jit
def class_of_axis(residue, CLASSES: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr):
    """Of the inputs i with (i + padding) % stride == residue, along one axis: (the first one, its
    first tap, the number of taps, the output that this tap reached it from)."""
    STRIDE: tl.constexpr = CLASSES[0]
    first = (residue + (STRIDE - PADDING % STRIDE)) % STRIDE
    tap = residue // CLASSES[2] * CLASSES[3] % CLASSES[4]
    taps = (KERNEL - tap + (CLASSES[4] - 1)) // CLASSES[4]
    taps = tl.where(residue % CLASSES[2] == 0, tl.maximum(taps, 0), 0)
    # Exact where there is a tap, and unused where there is none.
    return first, tap, taps, (first + PADDING - tap * CLASSES[1]) // STRIDE


@triton.jit
def dgrad_tile(
    tile, dy, w, dx, class_tiles, pixels, C, K, D, H, W, O, P, Q, d_split, h_split, w_split,
    y_n, y_c, y_d, y_h, y_w, x_n, x_c, x_d, x_h, x_w,
    RANK: tl.constexpr, GROUPS: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr,
    CLASSES_D: tl.constexpr, CLASSES_H: tl.constexpr, CLASSES_W: tl.constexpr,
    HOP: tl.constexpr, STEP: tl.constexpr,
    BORDER: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr, WHOLE: tl.constexpr,
    WIDE: tl.constexpr, RUNS: tl.constexpr, DESCRIPTORS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    number = tile // class_tiles
    d_first, t_tap, t_taps, o_start = class_of_axis(
        number // (CLASSES_H[0] * CLASSES_W[0]), CLASSES_D, KERNEL[0], PADDING[0]
    )
    h_first, r_tap, r_taps, p_start = class_of_axis(
        number // CLASSES_W[0] % CLASSES_H[0], CLASSES_H, KERNEL[1], PADDING[1]
    )
    w_first, s_tap, s_taps, q_start = class_of_axis(
        number % CLASSES_W[0], CLASSES_W, KERNEL[2], PADDING[2]
    )

    tiles_c = (C + BLOCK_N - 1) // BLOCK_N
    tiles_m = (pixels + BLOCK_M - 1) // BLOCK_M
    tile_m, tile_n = tile_of(tile % class_tiles, tiles_m, GROUPS * tiles_c, GROUP_M)
    group = tile_n // tiles_c
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    c_start = tile_n % tiles_c * BLOCK_N
    c = c_start + tl.arange(0, BLOCK_N)
    n, i, j, k = split_pixel(m, d_split, h_split, w_split, RANK)
    d = d_first + i * CLASSES_D[0]
    h = h_first + j * CLASSES_H[0]
    v = w_first + k * CLASSES_W[0]
    inside = m < pixels
    if CLASSES_D[0] * CLASSES_H[0] * CLASSES_W[0] > 1:
        # Classes are as large as the largest one.
        inside = inside & (d < D) & (h < H) & (v < W)
    i, j, k = i + o_start, j + p_start, k + q_start
    first_k = group * K
    if WIDE:
        first_k = first_k.to(tl.int64)
    if DESCRIPTORS < 2:
        dy += first_k * y_c
    rows = place(n, i, j, k, y_n, y_d, y_h, y_w, RANK, WIDE, RUNS[0])
    sums = gather_sums(
        dy, w, rows, (tile_m * BLOCK_M, group * K), (i, j, k), inside, (O, P, Q), (y_d, y_h, y_w),
        y_c, K, C, group * K, c_start, c < C, (t_taps, r_taps, s_taps),
        STEP, (t_tap, r_tap, s_tap), HOP, KERNEL, True, BORDER, PACKED, WHOLE, PRECISION,
        WIDE, DESCRIPTORS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    both = inside[:, None] & (c < C)[None, :]
    c += group * C
    if WIDE:
        c = c.to(tl.int64)
    pixel = place(n, d, h, v, x_n, x_d, x_h, x_w, RANK, WIDE, RUNS[1])
    tl.store(dx + (pixel[:, None] + (c * x_c)[None, :]), sums.to(dx.dtype.element_ty), both)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def conv_dgrad_implicit_gemm_kernel(
    dy, w, dx, tiles, class_tiles, pixels, C, K, D, H, W, O, P, Q,
    I, I_mul, I_shift, J, J_mul, J_shift, L, L_mul, L_shift,
    y_n, y_c, y_d, y_h, y_w, x_n, x_c, x_d, x_h, x_w,
    RANK: tl.constexpr, GROUPS: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr,
    CLASSES_D: tl.constexpr, CLASSES_H: tl.constexpr, CLASSES_W: tl.constexpr,
    HOP: tl.constexpr, STEP: tl.constexpr,
    BORDER: tl.constexpr, PRECISION: tl.constexpr, PACKED: tl.constexpr, WHOLE: tl.constexpr,
    WIDE: tl.constexpr, RUNS: tl.constexpr, DESCRIPTORS: tl.constexpr, VEC: tl.constexpr,
    PERSISTENT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dy [N, GROUPS K, O, P, Q], w [GROUPS K, T, R, S, C] -> dx [N, GROUPS C, D, H, W].

    pixels: N times (I, J, L), the inputs per axis of the largest class; class_tiles: tiles of one.
    CLASSES_D, _H, _W: (stride, dilation, their gcd, the inverse of dilation / gcd modulo stride /
    gcd, the distance of a class's taps). HOP: that of each axis; STEP: between the outputs which
    they lead to.
    C, K, the strides of dy, those of dx (but of channels), and pixels count VEC elements; RUNS as
    in fprop, of dy and dx.
    """
    C *= VEC[0]
    K *= VEC[1]
    pixels *= VEC[4]
    y_n, y_d, y_h, y_w = y_n * VEC[2], y_d * VEC[2], y_h * VEC[2], y_w * VEC[2]
    x_n, x_d, x_h, x_w = x_n * VEC[3], x_d * VEC[3], x_h * VEC[3], x_w * VEC[3]
    y_n, y_c = y_n * RUNS[0], y_c * RUNS[0]
    x_n, x_c = x_n * RUNS[1], x_c * RUNS[1]
    if PERSISTENT:
        for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
            dgrad_tile(
                tile, dy, w, dx, class_tiles, pixels, C, K, D, H, W, O, P, Q,
                (I, I_mul, I_shift), (J, J_mul, J_shift), (L, L_mul, L_shift),
                y_n, y_c, y_d, y_h, y_w, x_n, x_c, x_d, x_h, x_w, RANK, GROUPS, KERNEL, PADDING,
                CLASSES_D, CLASSES_H, CLASSES_W, HOP, STEP, BORDER, PRECISION, PACKED, WHOLE, WIDE,
                RUNS, DESCRIPTORS, BLOCK_M, BLOCK_N, BLOCK_K,
                GROUP_M,
            )  # fmt: skip
    else:
        dgrad_tile(
            tl.program_id(0), dy, w, dx, class_tiles, pixels, C, K, D, H, W, O, P, Q,
            (I, I_mul, I_shift), (J, J_mul, J_shift), (L, L_mul, L_shift),
            y_n, y_c, y_d, y_h, y_w, x_n, x_c, x_d, x_h, x_w, RANK, GROUPS, KERNEL, PADDING,
            CLASSES_D, CLASSES_H, CLASSES_W, HOP, STEP, BORDER, PRECISION, PACKED, WHOLE, WIDE,
            RUNS, DESCRIPTORS, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
        )  # fmt: skip
