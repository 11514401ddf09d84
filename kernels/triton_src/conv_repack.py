"""An operand with its channels side by side, for kernels that load vectors of them.

  conv_repack_kernel    x [N, C, P] of any strides -> [N, P, depth], zero from channel C on

Where channels lie apart, a pixel that a tap has moved is at no multiple of 16 bytes, so a gather in
NCHW loads element by element: once per tap and tile of output channels, without asynchronous copies
in 16 bits. This reads and writes the tensor once instead (2 |x| bytes, bounded by memory), in
vectors of pixels and of channels; the compiler turns a tile in shared memory. depth > C fills few
channels (a first layer's three) up to a vector: they add products of zeros.
Any dtype: bits are moved. Deterministic. Not measured on a GPU. Source: the definition.
"""

import triton
import triton.language as tl

from .conv_tiles import place, quotient

SIZES = ["pixels", "C", "image_mul", "image_shift"]
STRIDES = ["image", "depth", "x_n", "x_c", "x_p"]


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=STRIDES)
def conv_repack_kernel(
    x, packed, pixels, C, depth, image, image_mul, image_shift, x_n, x_c, x_p,
    RUN: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """image: the pixels of one. pixels, x_n and x_c count RUN pixels that lie side by side; depth
    counts VEC channels."""
    pixels, x_n, x_c = pixels * RUN, x_n * RUN, x_c * RUN
    depth *= VEC
    tiles_c = (depth + BLOCK_C - 1) // BLOCK_C
    m = tl.program_id(0) // tiles_c * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(0) % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    n = quotient(m, (image, image_mul, image_shift))
    zero = n * 0
    start = place(n, zero, zero, m - n * image, x_n, 0, 0, x_p, 1, WIDE, RUN)
    to = m
    if WIDE:
        c, to = c.to(tl.int64), m.to(tl.int64)
    inside = (m < pixels)[:, None]
    v = tl.load(x + (start[:, None] + (c * x_c)[None, :]), inside & (c < C)[None, :], other=0.0)
    tl.store(packed + ((to * depth)[:, None] + c[None, :]), v, inside & (c < depth)[None, :])
