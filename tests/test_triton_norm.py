"""The passes of batch normalisation in Triton, run by Triton's interpreter, against float64; tiles
are small, so that every loop runs more than once. tests/test_triton_fused.py has the functions that
they are part of."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import interpreted_triton
from cases import DTYPES, sliced
from fused_reference import (
    ACTIVATIONS,
    FORMATS,
    Norm,
    accumulator,
    by_dtype,
    by_format,
    check,
    check_statistics,
    laid_out,
    random,
    stored,
)
from tolerances import UNIT_ROUNDOFF

import fastconv
from fastconv._triton import norm as compiled_norm

NATIVE: Any = torch.ops.fastconv
PASSES = ("norm_act_stats", "norm_act_fprop", "norm_act_sums", "norm_act_dgrad", "epilogue_into")
# Tails of rows and columns; a plane of several tiles; one value per plane; rank 1 and 3.
SIZES = ((3, 5, 4, 3), (2, 3, 1, 23), (4, 6), (2, 3, 9), (1, 9, 2, 1, 3))
WHERE = ("before", "none", "after")
# No two of the cycles in step.
_turn = (
    (SIZES[i % 5], WHERE[i % 3], list(ACTIVATIONS)[(i + i // 5) % 5]) for i in itertools.count()
)


@pytest.fixture
def norm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The launchers, interpreted, with small tiles."""
    module = interpreted_triton.load("norm")
    small = {"_TILE": 16, "_ROW_BYTES": 16, "_RANGES": 12, "_LEAST": 2, "_MERGED": 4, "_THREADS": 2}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    forget(module)
    yield module
    forget(module)


def forget(module: Any) -> None:
    module._plan_elementwise.cache_clear()
    module._plan_reduction.cache_clear()


def run(function: Any, *args: Any) -> Any:
    return interpreted_triton.quietly(function, *args)


def operands(
    size: tuple[int, ...], dtype: torch.dtype, name: str, activation: str, where: str, affine: bool
) -> Norm:
    torch.manual_seed(len(size) + size[0])
    y, dz, residual = (laid_out(random(size, dtype), name) for _ in range(3))
    kind = accumulator(dtype)
    mean, weight, bias = (0.5 * random(size[1:2], kind) for _ in range(3))
    rstd = 0.5 + random(size[1:2], kind).abs()
    kept = None if where == "none" else residual
    pair = (weight + 1, bias) if affine else (None, None)
    return Norm(y, dz, kept, mean, rstd, *pair, activation, where)


@by_dtype
@by_format
def test_against_the_reference(norm: Any, dtype: torch.dtype, name: str) -> None:
    for _ in range(2):
        size, where, activation = next(_turn)
        n = operands(size, dtype, name, activation, where, affine=activation != "relu6")
        note = f"{size} {activation} {where}"
        # The interpreter cuts bfloat16 off where what is compiled rounds it to nearest.
        more = UNIT_ROUNDOFF[dtype] if dtype == torch.bfloat16 else 0

        def near(found: Tensor, expected: Tensor, bound: Tensor, what: str, more=more, note=note):
            check(found, expected, bound + more * expected.abs(), f"{what} {note}")

        check_statistics(n.y, run(norm.norm_act_stats, n.y), note)
        z = run(norm.norm_act_fprop, n.y, *n.operands, *n.act)
        near(z, *n.fprop(), "z")
        assert z.stride() == n.y.stride()
        sums = run(norm.norm_act_sums, n.dz, n.y, *n.operands, *n.act)
        for found, expected, bound in zip(sums, *n.sums(), strict=True):
            near(found, expected, bound, "sums", more=0)
        count = n.y.numel() / size[1]
        want = n.residual is not None
        for given in (sums, (None, None)):
            args = (n.dz, n.y, *n.operands, *given, count, *n.act, want)
            dy, dresidual = run(norm.norm_act_dgrad, *args)
            near(dy, *n.dgrad(*given, count), "dy")
            if where == "before":
                g, bound = n.gradient()
                near(dresidual, g, stored(dtype, g, bound), "dresidual")
            elif want:
                assert torch.equal(dresidual, n.dz)


@by_format
@pytest.mark.parametrize("size", [(4, 2, 5, 7), (20, 2, 2, 2)], ids=str)
def test_statistics_far_from_zero(norm: Any, size: tuple[int, ...], name: str) -> None:
    """Mean 1e4 and deviation 1, and one value far off."""
    torch.manual_seed(1)
    for first in (None, 0.0):
        y = laid_out((random(size, torch.float64) + 1e4).float(), name)
        if first is not None:
            y[0, :, 0, 0] = first
        mean, m2 = run(norm.norm_act_stats, y)
        exact = y.double().transpose(0, 1).flatten(1)
        squares = (exact - exact.mean(1, keepdim=True)).square().sum(1)
        assert ((mean.double() - exact.mean(1)).abs() < 2e-3).all()
        assert ((m2.double() / squares - 1).abs() < 1e-3).all()


def test_loops_and_merges_run_more_than_once(norm: Any) -> None:
    """What the tests above rest on."""
    for size, name in itertools.product(SIZES[:2], FORMATS):
        last = name == "channels_last"
        plan = norm._plan_reduction("", size, torch.float32, last, (), None)
        chunks, units, per = plan.step.numbers[3:6]
        assert plan.merge is not None and per > 1 and units > per and units % chunks == 0
        assert plan.parts > plan.merge.constants["BLOCK_P"] or not last or size == SIZES[1]
        assert chunks > 1 or size == SIZES[0] or last


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_corners_are_those_of_the_other_kernels(norm: Any, activation: str) -> None:
    inf, nan = float("inf"), float("nan")
    above = float(torch.nextafter(torch.tensor(6.0), torch.tensor(7.0)))
    values = [nan, inf, -inf, 0.0, -0.0, 6.0, above, -1.0, 7.0, 1e-40, 3.0, -0.25]
    y = torch.tensor(values).view(1, 1, 3, 4)
    dz = torch.tensor([2.0, -3.0, 0.0]).view(1, 1, 3, 1).expand(1, 1, 3, 4)
    one, zero = torch.ones(1), torch.zeros(1)
    act = (list(ACTIVATIONS).index(activation), 0.1, False)
    exact = {"rtol": 2e-6 if activation == "silu" else 0, "atol": 0, "equal_nan": True}
    z, theirs = torch.empty_like(y), torch.empty_like(y)
    run(norm.epilogue_into, y, None, z, *act)
    NATIVE.epilogue_into(y, None, theirs, *act)
    torch.testing.assert_close(z, theirs, **exact)
    args = (dz, y, zero, one, None, None, None, None, None, 12.0, *act, True)
    for found, expected in zip(
        run(norm.norm_act_dgrad, *args), NATIVE.norm_act_dgrad(*args), strict=True
    ):
        torch.testing.assert_close(found, expected, **exact)


@by_format
def test_into_a_slice(norm: Any, name: str) -> None:
    """Of any place in a larger tensor, and y itself; what lies beside it is left alone."""
    y, residual = (laid_out(random((2, 4, 3, 5), torch.float32), name) for _ in range(2))
    leaky = torch.nn.functional.leaky_relu
    for first, channels, after in ((0, 4, False), (4, 12, True), (1, 7, False)):
        whole = laid_out(torch.full((2, channels, 3, 5), 7.0), name)
        out = whole[:, first : first + 4]
        run(norm.epilogue_into, y, residual, out, 2, 0.25, after)
        expected = leaky(y, 0.25) + residual if after else leaky(y + residual, 0.25)
        torch.testing.assert_close(out, expected)
        assert (whole[:, :first] == 7).all() and (whole[:, first + 4 :] == 7).all()
    run(norm.epilogue_into, y, None, y, 1, 0.0, False)
    assert y.min() == 0
    with pytest.raises(ValueError, match="no channel slice"):
        norm.epilogue_into(y, None, torch.empty(2, 4, 3, 10)[..., ::2], 1, 0.0, False)


def test_slices_are_told_from_other_strides(norm: Any) -> None:
    whole = torch.empty(2, 7, 3, 5)
    last = whole.to(memory_format=torch.channels_last)
    assert norm.sliced_channels(whole[:, 1:4], False) == 7
    assert norm.sliced_channels(last[:, 1:4], True) == 7
    assert norm.sliced_channels(last, True) == norm.sliced_channels(whole, False) == 7
    assert norm.sliced_channels(whole[:1, 1:4], False) == 3  # one image: dense as it is
    assert norm.sliced_channels(last[:, 1:4], False) is None
    assert norm.sliced_channels(whole[:, ::2], False) is None
    assert norm.sliced_channels(whole[..., 1:], False) is None


def every_pass(norm: Any, n: Norm) -> list[Tensor]:
    sums = run(norm.norm_act_sums, n.dz, n.y, *n.operands, *n.act)
    return [
        *run(norm.norm_act_stats, n.y),
        run(norm.norm_act_fprop, n.y, *n.operands, *n.act),
        *sums,
        *run(norm.norm_act_dgrad, n.dz, n.y, *n.operands, *sums, 24.0, *n.act, True),
    ]


@by_format
def test_offsets_of_64_bits_and_odd_strides(
    norm: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The same bits, whatever integers address the memory and wherever an operand lies in it."""
    n = operands((2, 3, 4, 3), torch.float32, name, "silu", "before", True)
    expected = every_pass(norm, n)
    n.dz, n.residual = sliced(n.dz), sliced(n.residual)
    assert all(map(torch.equal, every_pass(norm, n), expected))
    monkeypatch.setattr(norm, "_INT32", 0)
    forget(norm)
    steps, launch = [], norm.launch
    monkeypatch.setattr(norm, "launch", lambda step, t: (steps.append(step), launch(step, t)))
    assert all(map(torch.equal, every_pass(norm, n), expected))
    wide = [s.constants["WIDE"] for s in steps if s.kernel != "norm_merge_kernel"]
    assert wide == [True] * 4


def test_numbers_of_float64_are_exact(norm: Any) -> None:
    """A kernel's own are float32."""
    y = torch.full((1, 1, 2, 2), -1.0, dtype=torch.float64)
    one, zero = y.new_ones(1), y.new_zeros(1)
    z = run(norm.norm_act_fprop, y, zero, one, None, None, None, 2, 0.1, False)
    assert (z == -0.1).all()
    args = (one, zero, 3.0, 0, 0.0, False, False)
    dy, _ = run(norm.norm_act_dgrad, y, y, zero, one, None, None, None, *args)
    assert (dy == -1 - 1 / 3).all()


def test_nothing_at_all(norm: Any) -> None:
    y, v = torch.empty(0, 3, 4, 4), torch.ones(3)
    for found in (
        norm.norm_act_stats(y),
        norm.norm_act_sums(y, y, v, v, v, v, None, 1, 0.0, False),
    ):
        assert all(torch.equal(t, torch.zeros(3)) for t in found)
    assert norm.norm_act_fprop(y, v, v, v, v, None, 1, 0.0, False).shape == y.shape
    dy, dresidual = norm.norm_act_dgrad(y, y, v, v, v, v, None, v, v, 0.0, 1, 0.0, False, False)
    assert dy.shape == y.shape and dresidual.shape == (0,)


def test_refusals(norm: Any) -> None:
    y, v = torch.zeros(2, 3, 4, 4), torch.ones(3)
    act = (1, 0.0, False)
    for text, function, args in (
        ("2 to 5 dimensions, got 1", "norm_act_stats", (v,)),
        (r"residual is \[2, 3, 4\]", "norm_act_fprop", (y, v, v, v, v, y[..., 0], *act)),
        ("dz is .* of torch.float16", "norm_act_sums", (y.half(), y, v, v, v, v, None, *act)),
        (r"not \[3\] of torch.float32", "norm_act_fprop", (y, v, v.double(), v, v, None, *act)),
        (
            "one sum without the other",
            "norm_act_dgrad",
            (y, y, v, v, v, v, None, v, None, 1.0, *act, False),
        ),
    ):
        with pytest.raises(ValueError, match=text):
            getattr(norm, function)(*args)


def test_arguments_are_those_of_the_bare_ops() -> None:
    for name in PASSES:
        parameters = list(inspect.signature(getattr(compiled_norm, name)).parameters)
        schema = getattr(NATIVE, name).default._schema
        assert parameters == [a.name for a in schema.arguments], name
    assert set(fastconv.ops.norm_run.NATIVE) == set(PASSES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reductions_cover_everything_whatever_the_size(dtype: torch.dtype) -> None:
    """And have as many programs as there is work for, up to a constant."""
    item = dtype.itemsize
    for images, K, places, last in itertools.product(
        (1, 7, 64), (1, 3, 64, 600), (1, 49, 12544), (False, True)
    ):
        shape = compiled_norm._layout((images, K, places), False)._replace(last=last)
        r = compiled_norm.reduction(shape, item)
        columns = r.chunks * r.block_c
        assert -(-r.rows // r.block_r) * r.chunks == r.units
        assert r.rows == (images * places if last else images)
        assert columns >= places or last
        assert (r.parts - 1) * r.per < r.units <= r.parts * r.per
        groups = r.grid // r.parts
        assert groups == (-(-K // r.block_c) if last else K)
        assert r.grid <= max(2 * compiled_norm._RANGES, groups)
        assert r.block_r * r.block_c <= compiled_norm._TILE
        block_r, block_c, warps = compiled_norm.elementwise_tile(shape.rows, shape.inner, item)
        assert block_r * block_c * item % (32 * warps * 16) == 0 and block_r > 0
