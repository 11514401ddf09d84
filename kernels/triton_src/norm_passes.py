"""Batch normalisation with activation, behind a convolution and before its gradients:

  norm_fprop_kernel   z = act((y - mean) rstd weight + bias (+ residual)) (+ residual)
  norm_dgrad_kernel   dy = weight rstd (g - sum_g / n - (y - mean) rstd^2 sum_gy / n)
  norm_stats_kernel   mean and sum of squares about it of every channel of y, in parts
  norm_sums_kernel    sum_g = sum of g, sum_gy = sum of g (y - mean), in parts
  norm_merge_kernel   parts of either -> [K]
with g = dz act'(.), whose argument is worked out anew from y; csrc/common/norm_call.h has it all.

Mapping   tensors are dense: [pixels, K] (LAST) or [images, K, size]. The elementwise passes have a
          tile [BLOCK_R, BLOCK_C] of pixels x channels, or of planes x places; what belongs to a
          channel is loaded once per column or row. The reductions have a group of channels (LAST)
          or one channel, and a range of tiles, of pixels or of images x places; a second launch
          merges the ranges.
Layouts   either, and with `skip` a channel slice of a larger z. VEC divides the extent along
          memory, so that a thread's elements come in one access of up to 16 bytes.
Dtypes    float32, bfloat16, float16 in float32; float64 in float64. Rounded once.
Bytes     |y| + |z| (+ |residual|); |y|; |y| + |dz|; |y| + |dz| + |dy|: each once, and bound by
          memory. Not measured on a GPU.
Determinism   no atomics. How a reduction is cut follows from the problem, never from the device;
          every merge is a tree of fixed shape.
Source    Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1 and section 3. Moments are
          merged as Chan, Golub and LeVeque (1979) do; no square of a sum is taken from a sum of
          squares, so that a mean of 1e4 leaves a deviation of 1 its digits.
"""

import triton
import triton.language as tl

from .activation import activate, activate_backward

# Which are divisible by 16 says nothing that VEC does not.
SIZES = ["rows", "K", "inner", "skip", "chunks", "units", "per", "slope", "inverse_count"]


@triton.jit
def number(v, ACC: tl.constexpr):
    """An argument that is no integer. Triton's are float32; float64's come as their bits."""
    if ACC == tl.float64:
        return v.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        return v


@triton.jit
def channels_of(mean, rstd, weight, bias, k, some, ACC: tl.constexpr):
    """(mean, scale, shift) of channels k, of which there are `some`."""
    centre, scale, shift = 0.0, 1.0, 0.0
    if mean is not None:
        centre = tl.load(mean + k, some, 0.0).to(ACC)
    if rstd is not None:
        scale = tl.load(rstd + k, some, 0.0).to(ACC)
    if weight is not None:
        scale *= tl.load(weight + k, some, 0.0).to(ACC)
    if bias is not None:
        shift = tl.load(bias + k, some, 0.0).to(ACC)
    return centre, scale, shift


@triton.jit
def gradients(
    dz, y, residual, at, inside, centre, scale, shift, slope,
    ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(y less its mean, dz, g) of a tile."""
    centred = tl.load(y + at, inside, 0.0).to(ACC) - centre
    given = tl.load(dz + at, inside, 0.0).to(ACC)
    pre = centred * scale + shift
    if RESIDUAL == 1:
        pre += tl.load(residual + at, inside, 0.0).to(ACC)
    return centred, given, activate_backward(given, pre, slope, ACTIVATION)


@triton.jit
def tile_of(
    rows, K, inner, LAST: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """An elementwise pass' rows [BLOCK_R, 1], columns [1, BLOCK_C], and the channels of either."""
    tiles_c = (inner + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    r = tile // tiles_c * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    c = tile % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    if LAST:
        return r, c, c, c < inner
    else:
        return r, c, r % K, r < rows


@triton.jit(do_not_specialize=SIZES)
def norm_fprop_kernel(
    y, mean, rstd, weight, bias, residual, z, rows, K, inner, skip, slope,
    LAST: tl.constexpr, VEC: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y, residual [rows, inner VEC] -> z, whose images (LAST: pixels) lie skip VEC elements further
    apart. mean, rstd, weight, bias [K] or None: 0, 1, 1, 0. RESIDUAL: 0 none, 1 before the
    activation, 2 after it."""
    inner *= VEC
    slope = number(slope, ACC)
    r, c, k, some = tile_of(rows, K, inner, LAST, WIDE, BLOCK_R, BLOCK_C)
    inside = (r < rows) & (c < inner)
    at = r * inner + c
    centre, scale, shift = channels_of(mean, rstd, weight, bias, k, some, ACC)
    v = (tl.load(y + at, inside, 0.0).to(ACC) - centre) * scale + shift
    if RESIDUAL == 1:
        v += tl.load(residual + at, inside, 0.0).to(ACC)
    v = activate(v, slope, ACTIVATION)
    if RESIDUAL == 2:
        v += tl.load(residual + at, inside, 0.0).to(ACC)
    if LAST:
        at += r * (skip * VEC)
    else:
        at += r // K * (skip * VEC)
    tl.store(z + at, v.to(z.dtype.element_ty), inside)


@triton.jit(do_not_specialize=SIZES)
def norm_dgrad_kernel(
    dz, y, mean, rstd, weight, bias, residual, sum_g, sum_gy, dy, dresidual,
    rows, K, inner, slope, inverse_count,
    LAST: tl.constexpr, VEC: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dz, y, residual [rows, inner VEC] -> dy, and dresidual unless it is None: g, or dz where the
    residual follows the activation. sum_g, sum_gy [K], or None: mean and rstd are constants."""
    inner *= VEC
    slope = number(slope, ACC)
    r, c, k, some = tile_of(rows, K, inner, LAST, WIDE, BLOCK_R, BLOCK_C)
    inside = (r < rows) & (c < inner)
    at = r * inner + c
    centre, scale, shift = channels_of(mean, rstd, weight, bias, k, some, ACC)
    centred, given, g = gradients(
        dz, y, residual, at, inside, centre, scale, shift, slope, ACTIVATION, RESIDUAL, ACC
    )
    if dresidual is not None:
        share = given if RESIDUAL == 2 else g
        tl.store(dresidual + at, share.to(dresidual.dtype.element_ty), inside)
    if sum_g is not None:
        part = number(inverse_count, ACC)
        spread = tl.load(rstd + k, some, 0.0).to(ACC)
        steep = tl.load(sum_gy + k, some, 0.0).to(ACC) * part * spread * spread
        g -= tl.load(sum_g + k, some, 0.0).to(ACC) * part
        g -= centred * steep
    tl.store(dy + at, (g * scale).to(dy.dtype.element_ty), inside)


@triton.jit
def add_up(v, LAST: tl.constexpr):
    """[BLOCK_R, BLOCK_C] -> [BLOCK_C], or (not LAST) one sum."""
    if LAST:
        return tl.reduce(v, 0, tl.standard._sum_combine)
    else:
        return tl.reduce(tl.reduce(v, 1, tl.standard._sum_combine), 0, tl.standard._sum_combine)


@triton.jit
def merged(count, mean, m2, more, mean_of_more, m2_of_more):
    """(count, mean, m2) of two sets of values; `more` is not empty."""
    total = count + more
    apart = mean_of_more - mean
    share = more / total
    return total, mean + apart * share, m2 + m2_of_more + apart * apart * (count * share)


@triton.jit
def range_of(K, units, per, LAST: tl.constexpr, WIDE: tl.constexpr, BLOCK_C: tl.constexpr):
    """(part, its first tile, its end, first channel) of a reduction's program; channels change
    fastest."""
    groups = (K + BLOCK_C - 1) // BLOCK_C if LAST else K
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    part, k = program // groups, program % groups
    if LAST:
        k *= BLOCK_C
    return part, part * per, tl.minimum(part * per + per, units), k


@triton.jit
def reduced_tile(
    unit, k, rows, K, inner, chunks,
    LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """(offsets, which exist, how many values per result) of tile `unit`: BLOCK_R pixels (LAST), or
    BLOCK_R images by BLOCK_C places, in `chunks` columns."""
    first = unit // chunks * BLOCK_R
    r = first + tl.arange(0, BLOCK_R)[:, None]
    count = tl.minimum(rows - first, BLOCK_R)
    if LAST:
        # inner is K, of which VEC is known.
        return r * inner + k, (r < rows) & (k < inner), count
    else:
        start = unit % chunks * BLOCK_C
        c = start + tl.arange(0, BLOCK_C)[None, :]
        inside = (r < rows) & (c < inner)
        return (r * K + k) * inner + c, inside, count * tl.minimum(inner - start, BLOCK_C)


@triton.jit
def results_of(part, k, K, LAST: tl.constexpr, BLOCK_C: tl.constexpr):
    """Where a part's results go in [parts, K], and which exist."""
    if LAST:
        k += tl.arange(0, BLOCK_C)
        return part * K + k, k < K
    else:
        return part * K + k, k < K


@triton.jit(do_not_specialize=SIZES)
def norm_stats_kernel(
    y, counts, mean, m2, rows, K, inner, chunks, units, per,
    LAST: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y -> counts [parts], mean and m2 [parts, K]. A tile's mean is corrected by the mean of what
    is left of it."""
    inner *= VEC
    part, unit, end, start_k = range_of(K, units, per, LAST, WIDE, BLOCK_C)
    k = start_k
    if LAST:
        k = start_k + tl.arange(0, BLOCK_C)[None, :]
        average = tl.full([BLOCK_C], 0, ACC)
        squares = tl.full([BLOCK_C], 0, ACC)
    else:
        average = tl.full([], 0, ACC)
        squares = tl.full([], 0, ACC)
    count = tl.full([], 0, ACC)
    for tile in range(unit, end):
        at, inside, values = reduced_tile(tile, k, rows, K, inner, chunks, LAST, BLOCK_R, BLOCK_C)
        values = values.to(ACC)
        v = tl.load(y + at, inside, 0.0).to(ACC)
        near = add_up(v, LAST) / values
        d = tl.where(inside, v - near, 0.0)
        left = add_up(d, LAST) / values
        spread = add_up(d * d, LAST) - left * (left * values)
        count, average, squares = merged(count, average, squares, values, near + left, spread)
    at, some = results_of(part, start_k, K, LAST, BLOCK_C)
    tl.store(mean + at, average, some)
    tl.store(m2 + at, squares, some)
    tl.store(counts + part, count, start_k == 0)


@triton.jit(do_not_specialize=SIZES)
def norm_sums_kernel(
    dz, y, mean, rstd, weight, bias, residual, sum_g, sum_gy, rows, K, inner, chunks, units, per,
    slope,
    LAST: tl.constexpr, VEC: tl.constexpr, ACTIVATION: tl.constexpr, RESIDUAL: tl.constexpr,
    WIDE: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dz, y -> sum_g, sum_gy [parts, K]: plain sums, of which nothing cancels."""
    inner *= VEC
    slope = number(slope, ACC)
    part, unit, end, start_k = range_of(K, units, per, LAST, WIDE, BLOCK_C)
    k = start_k
    some = k < K
    if LAST:
        k = start_k + tl.arange(0, BLOCK_C)[None, :]
        some = k < inner
    centre, scale, shift = channels_of(mean, rstd, weight, bias, k, some, ACC)
    total = tl.full([BLOCK_R, BLOCK_C], 0, ACC)
    product = tl.full([BLOCK_R, BLOCK_C], 0, ACC)
    for tile in range(unit, end):
        at, inside, _ = reduced_tile(tile, k, rows, K, inner, chunks, LAST, BLOCK_R, BLOCK_C)
        centred, _, g = gradients(
            dz, y, residual, at, inside, centre, scale, shift, slope, ACTIVATION, RESIDUAL, ACC
        )
        total = tl.where(inside, total + g, total)
        product = tl.where(inside, product + g * centred, product)
    at, some = results_of(part, start_k, K, LAST, BLOCK_C)
    tl.store(sum_g + at, add_up(total, LAST), some)
    tl.store(sum_gy + at, add_up(product, LAST), some)


@triton.jit(do_not_specialize=["parts", "K"])
def norm_merge_kernel(
    counts, first, second, first_out, second_out, parts, K,
    STATS: tl.constexpr, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """first, second [parts, K] -> [K]: means and sums of squares about them of counts [parts]
    values each, or (not STATS) plain sums."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    count = tl.full([], 0, ACC)
    total = tl.full([BLOCK_C], 0, ACC)
    other = tl.full([BLOCK_C], 0, ACC)
    for start in range(0, parts, BLOCK_P):
        part = start + tl.arange(0, BLOCK_P)
        inside = (part < parts)[:, None] & (c < K)[None, :]
        at = part.to(tl.int64)[:, None] * K + c[None, :]
        a = tl.load(first + at, inside, 0.0)
        b = tl.load(second + at, inside, 0.0)
        if STATS:
            weights = tl.load(counts + part, part < parts, 0.0)
            values = tl.reduce(weights, 0, tl.standard._sum_combine)
            # Counted from a plain mean of the means, which is about as large as they are.
            near = add_up(a, True) / tl.minimum(parts - start, BLOCK_P).to(ACC)
            d = tl.where(inside, a - near[None, :], 0.0)
            offset = add_up(d * weights[:, None], True) / values
            d = tl.where(inside, d - offset[None, :], 0.0)
            spread = add_up(b + d * d * weights[:, None], True)
            count, total, other = merged(count, total, other, values, near + offset, spread)
        else:
            total += add_up(a, True)
            other += add_up(b, True)
    tl.store(first_out + c, total, c < K)
    tl.store(second_out + c, other, c < K)
