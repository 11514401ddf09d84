"""The CPU kernels of the fused operations against composed float64 references: the passes of batch
normalisation with activation, and an epilogue alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from fused_reference import (
    ACTIVATIONS,
    NUMBER,
    RESIDUALS,
    SLOPE,
    Norm,
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
from tolerances import UNIT_ROUNDOFF
from torch import Tensor

from fastconv import _C

ops = torch.ops.fastconv
by_activation = pytest.mark.parametrize("activation", ACTIVATIONS)

# Channels and pixels around the lengths of vectors, of chunks and of blocks.
SHAPES = (
    (1, 1, 1), (3, 1, 5), (2, 3, 7), (2, 8, 9), (1, 15, 2, 4), (2, 16, 4, 4), (3, 17, 3, 5),
    (2, 31, 1, 1), (2, 33, 31, 1), (5, 9), (1, 1, 65, 67), (1, 2, 70, 60), (130, 2, 6, 6),
    (40, 70, 3, 5), (1, 520, 2, 33), (2, 5, 3, 4, 5),
)  # fmt: skip


@pytest.fixture(params=_C.cpu_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.cpu_isa()
    _C.set_cpu_isa(request.param)
    yield request.param
    _C.set_cpu_isa(before)


def make_norm(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    name: str,
    activation: str,
    where: str,
    affine: bool = True,
) -> Norm:
    acc, K = accumulator(dtype), shape[1]
    y, dz, residual = (laid_out(random(shape, dtype, 2.0), name) for _ in range(3))
    norm = Norm(
        y,
        dz,
        residual if where != "none" else None,
        random((K,), acc),
        torch.rand(K, dtype=acc) + 0.5,
        random((K,), acc) if affine else None,
        random((K,), acc) if affine else None,
        activation,
        where,
    )
    # Arguments near a corner of the activation could fall on either side of it.
    pre = norm.pre()
    if where == "before":
        pre = pre + residual.double()
    near = (pre.abs() < 1e-3) | ((pre - 6).abs() < 1e-3)
    y[near] = (y + 0.25)[near]
    dz[near] = 0.0
    return norm


# --- normalisation ------------------------------------------------------------------------------


@by_dtype
@by_format
@by_activation
def test_norm_fprop_and_backward(
    activation: str, name: str, dtype: torch.dtype, poisoned_empty: None
) -> None:
    for index, shape in enumerate(SHAPES):
        for where in RESIDUALS:
            norm = make_norm(shape, dtype, name, activation, where, affine=index % 3 != 0)
            note = f"{shape} {where}"
            z = ops.norm_act_fprop(norm.y, *norm.operands, *norm.act)
            assert z.stride() == norm.y.stride()
            check(z, *norm.fprop(), f"fprop {note}")
            sums = ops.norm_act_sums(norm.dz, norm.y, *norm.operands, *norm.act)
            expected, bounds = norm.sums()
            for got, want, bound in zip(sums, expected, bounds, strict=True):
                assert got.dtype == accumulator(dtype)
                check(got, want, bound + 1e-300, f"sums {note}")
            count = norm.y.numel() / shape[1]
            for sum_g, sum_gy in ((None, None), sums):
                dy, dresidual = ops.norm_act_dgrad(
                    norm.dz, norm.y, *norm.operands, sum_g, sum_gy, count, *norm.act, True
                )
                check(dy, *norm.dgrad(sum_g, sum_gy, count), f"dgrad {note}")
                g, error = norm.gradient()
                want = norm.dz.double() if where == "after" else g
                check(dresidual, want, stored(dtype, want, error), f"dresidual {note}")
                alone = ops.norm_act_dgrad(
                    norm.dz, norm.y, *norm.operands, sum_g, sum_gy, count, *norm.act, False
                )
                assert torch.equal(alone[0], dy) and alone[1].numel() == 0


@by_dtype
@by_format
def test_statistics(name: str, dtype: torch.dtype, poisoned_empty: None) -> None:
    for shape in SHAPES:
        y = laid_out(random(shape, dtype) + 3, name)
        check_statistics(y, ops.norm_act_stats(y), f"{shape}")


@by_format
@pytest.mark.parametrize("shape", [(8, 20, 30, 30), (2, 3, 130, 131), (200, 130, 3, 3)], ids=str)
def test_statistics_of_large_means(shape: tuple[int, ...], name: str) -> None:
    """Mean 1e4, deviation 1: sums of squares would leave no digit of it in float32."""
    y = laid_out((torch.randn(shape, dtype=torch.float64) + 1e4).float(), name)
    check_statistics(y, ops.norm_act_stats(y), "mean 1e4")
    _, m2 = ops.norm_act_stats(y)
    assert ((m2 * shape[1] / y.numel() - 1).abs() < 0.2).all()
    # The first element of a channel says nothing of the others.
    y[0, :, 0, 0] = -1e6
    check_statistics(y, ops.norm_act_stats(y), "outlier")
    constant = laid_out(torch.full(shape, 1234.5678), name)
    mean, m2 = ops.norm_act_stats(constant)
    assert (mean == constant.flatten()[0]).all() and (m2 == 0).all()


@by_dtype
@by_format
def test_bits_do_not_depend_on_run_or_threads(
    name: str, dtype: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    for shape in ((5, 37, 41, 43), (3, 260, 13, 17), (70, 500, 3, 3)):
        norm = make_norm(shape, dtype, name, "silu", "before")
        count = norm.y.numel() / shape[1]
        first: list[Tensor] = []
        for threads in (1, 2, 3, 4, 2):
            set_threads(threads)
            sums = ops.norm_act_sums(norm.dz, norm.y, *norm.operands, *norm.act)
            results = [
                ops.norm_act_fprop(norm.y, *norm.operands, *norm.act),
                *ops.norm_act_stats(norm.y),
                *sums,
                *ops.norm_act_dgrad(norm.dz, norm.y, *norm.operands, *sums, count, *norm.act, True),
            ]
            first = first or results
            assert all(map(torch.equal, first, results)), f"{shape}, {threads} threads"


@by_dtype
@by_format
@by_activation
def test_epilogue_in_place_and_into_a_slice(activation: str, name: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for where in RESIDUALS:
            y = laid_out(random(shape, dtype, 3.0), name)
            residual = laid_out(random(shape, dtype), name) if where != "none" else None
            wide = None if residual is None else residual.double()
            expected = epilogue(y.double(), wide, activation, where)
            size = y.double().abs() + (0 if wide is None else wide.abs())
            bound = stored(dtype, expected, 8 * rounding(dtype) * size)
            act = NUMBER[activation], SLOPE, where == "after"
            # Channels 2 to 2 + K of a larger tensor, whose others are to stay.
            outer = (shape[0], shape[1] + 5, *shape[2:])
            store = laid_out(torch.full(outer, 7.0, dtype=dtype), name)
            out = store[:, 2 : 2 + shape[1]]
            if shape[1] > 1 and shape[0] > 1:  # else one that PyTorch calls contiguous
                ops.epilogue_into(y, residual, out, *act)
                check(out, expected, bound, f"slice {shape} {where}")
                assert (store[:, :2] == 7).all() and (store[:, 2 + shape[1] :] == 7).all()
            ops.epilogue_into(y, residual, y, *act)
            check(y, expected, bound, f"in place {shape} {where}")


# --- values -------------------------------------------------------------------------------------

SPECIAL = (
    float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 6.0, -6.0, 5.999, 6.001, 1e-30, -1e-30,
    30000.0, -30000.0, 85.9, -85.9, 86.1, -86.1, 88.6, -88.6, 88.8, -88.8, 100.0, -100.0,
)  # fmt: skip


def same(a: Tensor, b: Tensor, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


def slope(activation: str, value: Tensor) -> Tensor:
    """PyTorch's, at one value."""
    at = value.clone().requires_grad_()
    return torch.autograd.grad(ACTIVATIONS[activation](at), at)[0]


@by_dtype
@by_activation
def test_special_values_as_pytorch(activation: str, dtype: torch.dtype, isa: str) -> None:
    """Through vectors and through a line's tail; forward and backward."""
    rtol, atol = 4 * UNIT_ROUNDOFF[dtype], 0.0
    if activation == "silu":
        # Below -86 (fp64: -700) exp stays where it is, for want of a result that would show it; the
        # product with it underflows instead.
        atol = 1e-34 if dtype != torch.float16 else 1e-6
    for values in (SPECIAL, SPECIAL[::-1][:1] + SPECIAL):
        y = torch.tensor(values, dtype=dtype).reshape(1, 1, -1)
        out = torch.empty_like(y)
        ops.epilogue_into(y, None, out, NUMBER[activation], SLOPE, False)
        same(out, ACTIVATIONS[activation](y), rtol, atol)
        one, zero = (torch.full((1,), v, dtype=accumulator(dtype)) for v in (1.0, 0.0))
        dz = torch.linspace(-3, 3, y.numel(), dtype=torch.float64).to(dtype).reshape(y.shape)
        wide = y.to(accumulator(dtype))
        # One by one: of ReLU6 at NaN PyTorch's vectors say 0, its scalars (the tail of a tensor,
        # and CUDA) dz.
        want = torch.stack([slope(activation, v) for v in wide.flatten()]).view_as(y) * dz
        act = NUMBER[activation], SLOPE, False
        got, _ = ops.norm_act_dgrad(
            dz, y, zero, one, None, None, None, None, None, 1.0, *act, False
        )
        same(got, want.to(dtype), 2 * rtol, 10 * atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_silu_is_exact_to_a_few_units(dtype: torch.dtype, isa: str) -> None:
    v = torch.linspace(-85, 95, 200_003, dtype=torch.float64).to(dtype).reshape(1, 1, -1)
    got = torch.empty_like(v)
    ops.epilogue_into(v, None, got, NUMBER["silu"], 0.0, False)
    want = v.double() * torch.sigmoid(v.double())
    error = (got.double() - want).abs() / want.abs()
    assert error.nan_to_num().max() <= 6 * UNIT_ROUNDOFF[dtype]


def test_empty_tensors() -> None:
    for shape in ((0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)):
        y = torch.empty(shape)
        one = torch.ones(shape[1])
        act = 1, 0.0, False
        assert ops.norm_act_fprop(y, one, one, None, None, None, *act).shape == shape
        mean, m2 = ops.norm_act_stats(y)
        assert mean.shape == m2.shape == shape[1:2] and not mean.any() and not m2.any()
        sums = ops.norm_act_sums(y, y, one, one, None, None, None, *act)
        assert not sums[0].any() and not sums[1].any()
        dy, _ = ops.norm_act_dgrad(y, y, one, one, None, None, None, *sums, 1.0, *act, True)
        assert dy.shape == shape
        ops.epilogue_into(y, None, y, *act)
