"""Convolutions with an epilogue, into slices and with statistics, on the CPU: every algorithm
against composed float64 references."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from cases import CONV_CASES, ConvCase, conv_case
from conv_runner import ALGORITHMS, random_operands, reference_conv, refusal
from fused_reference import (
    ACTIVATIONS,
    FORMATS,
    NUMBER,
    RESIDUALS,
    SLOPE,
    STEEPEST,
    accumulator,
    by_dtype,
    by_format,
    check,
    check_statistics,
    epilogue,
    laid_out,
    random,
    rounding,
    stored,
)
from test_determinism import THREADED_CASES
from tolerances import UNIT_ROUNDOFF, conv_tolerance
from torch import Tensor

ops = torch.ops.fastconv
by_algo = pytest.mark.parametrize("algo", ALGORITHMS)

# --- convolutions -------------------------------------------------------------------------------


def conv_epilogue_reference(
    algo: str,
    case: ConvCase,
    operands: tuple[Tensor, Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    where: str,
) -> tuple[Tensor, Tensor]:
    """(expected, bound): the epilogue works on the accumulator, so there is one rounding to
    storage."""
    dtype = operands[0].dtype
    pre, magnitude = reference_conv(case, "fprop", operands, bias)
    acc = accumulator(dtype)
    bound = conv_tolerance(algo, "fprop", acc, pre, magnitude, case.gemm_k("fprop"))
    if dtype.itemsize == 2 and not algo.startswith("winograd"):
        bound = bound + UNIT_ROUNDOFF[acc] * case.gemm_k("fprop") ** 0.5 * magnitude
    wide = None if residual is None else residual.double()
    expected = epilogue(pre, wide, activation, where)
    size = pre.abs() + expected.abs() + (0 if wide is None else wide.abs())
    return expected, stored(dtype, expected, STEEPEST * bound + 8 * rounding(dtype) * size)


def combinations(index: int) -> Iterator[tuple[str, str, bool]]:
    """A few of (activation, residual, bias), other ones for every index."""
    names = list(ACTIVATIONS)
    for i in range(3):
        yield names[(index + 2 * i) % len(names)], RESIDUALS[(index + i) % 3], (index + i) % 2 == 0


@by_dtype
@by_format
@by_algo
def test_conv_epilogue(algo: str, name: str, dtype: torch.dtype, poisoned_empty: None) -> None:
    for index, case in enumerate(CONV_CASES):
        if refusal(algo, case, "fprop", dtype):
            continue
        x, w, bias = random_operands(case, "fprop", dtype)
        x, w = laid_out(x, name), laid_out(w, name)
        for activation, where, with_bias in combinations(index):
            residual = laid_out(random(case.output_size, dtype), name)
            b, r = bias if with_bias else None, residual if where != "none" else None
            act = NUMBER[activation], SLOPE, where == "after"
            y = ops.conv_epilogue_fprop(x, w, b, r, *case.params, *act, algo)
            plain = ops.conv_fprop(x, w, b, *case.params, algo)
            assert y.stride() == plain.stride()
            if not y.numel():
                continue
            expected, bound = conv_epilogue_reference(algo, case, (x, w), b, r, activation, where)
            check(y, expected, bound, f"{case.id} {activation} {where}")
            if case.output_size[1] == 1:
                continue
            outer = (y.shape[0], y.shape[1] + 3, *y.shape[2:])
            form = FORMATS["contiguous" if y.is_contiguous() else "channels_last"]
            store = form(torch.full(outer, 7.0, dtype=dtype))
            out = store[:, 1 : 1 + y.shape[1]]
            ops.conv_epilogue_into(x, w, b, r, out, *case.params, *act, algo)
            assert torch.equal(out, y), f"{case.id} {activation} {where}: into a slice"
            assert (store[:, :1] == 7).all() and (store[:, 1 + y.shape[1] :] == 7).all()


@by_dtype
@by_format
@by_algo
def test_conv_stats(algo: str, name: str, dtype: torch.dtype, poisoned_empty: None) -> None:
    for index, case in enumerate(CONV_CASES):
        if refusal(algo, case, "fprop", dtype):
            continue
        x, w, bias = random_operands(case, "fprop", dtype)
        x, w, b = laid_out(x, name), laid_out(w, name), bias if index % 2 else None
        y, mean, m2 = ops.conv_stats_fprop(x, w, b, *case.params, algo)
        assert torch.equal(y, ops.conv_fprop(x, w, b, *case.params, algo))
        assert mean.shape == m2.shape == y.shape[1:2]
        if y.numel():
            check_statistics(y, (mean, m2), case.id)
        else:
            assert not mean.any() and not m2.any()


# Of several blocks of pixels, in every algorithm and layout, and a last one that is shorter.
BLOCKS = (
    *THREADED_CASES,
    conv_case("many_small_images", (33, 12, 7, 5), (20, 12, 3, 3), padding=1),
    conv_case("one_pixel_images", (150, 9, 1, 1), (21, 9, 1, 1)),
    conv_case("one_row_images", (2, 6, 1, 700), (7, 6, 3, 3), padding=1),
    conv_case("few_channels", (3, 3, 41, 37), (5, 3, 3, 3), padding=1),
    conv_case("wide_3x3", (1, 17, 33, 150), (35, 17, 3, 3), padding=1),
    conv_case("depthwise_deep", (2, 150, 21, 19), (150, 1, 3, 3), padding=1, groups=150),
    conv_case("groups_1d", (3, 10, 501), (15, 2, 4), stride=2, groups=5),
)


@by_dtype
@by_format
@by_algo
def test_conv_stats_of_several_blocks(
    algo: str, name: str, dtype: torch.dtype, poisoned_empty: None
) -> None:
    """Images that lie far apart, and all of them far from zero: what blocks have in common, and
    what they do not, are no rounding errors."""
    for case in BLOCKS:
        if refusal(algo, case, "fprop", dtype):
            continue
        x, w, bias = random_operands(case, "fprop", dtype)
        x = x + torch.arange(x.shape[0]).reshape(-1, *[1] * (x.dim() - 1)).to(dtype)
        x, w = laid_out(x, name), laid_out(w, name)
        # Blocks' means are float64, whose digits float64 itself could miss far from zero.
        far_off = 30.0 if dtype == torch.float64 else 3000.0
        for b in (bias, torch.full_like(bias, far_off)):
            y, mean, m2 = ops.conv_stats_fprop(x, w, b, *case.params, algo)
            check_statistics(y, (mean, m2), case.id)
            again_mean, again_m2 = ops.norm_act_stats(y)
            unit, count = 2 * rounding(dtype), y.numel() // y.shape[1]
            spread = (again_m2 / count).sqrt()
            off = unit * (64 * spread + 2 * again_mean.abs())
            assert ((mean - again_mean).abs() <= off).all(), case.id
            # Means of blocks are rounded to float64.
            far = 2**-51 * again_mean.abs().double() * spread.double() * count
            assert ((m2 - again_m2).abs() <= 512 * unit * again_m2 + far).all(), case.id


@by_dtype
@by_format
def test_residual_of_a_slice_from_an_images_last_pixel_on(name: str, dtype: torch.dtype) -> None:
    """A chunk of im2col that begins with an image's last pixel: with the next image's first it is a
    run of two, whose step in the slice is none of its residual's lattice."""
    for images in range(11, 33):
        case = conv_case("3x3_images", (images, 4, 3, 3), (6, 4, 3, 3), padding=1)
        x, w, bias = random_operands(case, "fprop", dtype)
        x, w = laid_out(x, name), laid_out(w, name)
        residual = laid_out(random(case.output_size, dtype), name)
        act = NUMBER["leaky_relu"], SLOPE, images % 2 == 0
        y = ops.conv_epilogue_fprop(x, w, bias, residual, *case.params, *act, "im2col")
        store = FORMATS[name](torch.full((images, 9, 3, 3), 7.0, dtype=dtype))
        ops.conv_epilogue_into(x, w, bias, residual, store[:, 2:8], *case.params, *act, "im2col")
        assert torch.equal(store[:, 2:8], y), images
        assert (store[:, :2] == 7).all() and (store[:, 8:] == 7).all()


@by_format
@by_algo
def test_bits_do_not_depend_on_run_or_threads(
    algo: str, name: str, set_threads: Callable[[int], None]
) -> None:
    for index, case in enumerate(THREADED_CASES):
        for dtype in (torch.float32, torch.bfloat16):
            if refusal(algo, case, "fprop", dtype):
                continue
            x, w, bias = random_operands(case, "fprop", dtype)
            x, w = laid_out(x, name), laid_out(w, name)
            residual = laid_out(random(case.output_size, dtype), name)
            first: list[Tensor] = []
            for threads in (1, 2, 3, 2):
                set_threads(threads)
                results = [
                    ops.conv_epilogue_fprop(
                        x, w, bias, residual, *case.params, index % 5, SLOPE, index % 2 == 0, algo
                    ),
                    *ops.conv_stats_fprop(x, w, bias, *case.params, algo),
                ]
                first = first or results
                assert all(map(torch.equal, first, results)), f"{case.id} {dtype} {threads}"
