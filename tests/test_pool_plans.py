"""Remembered calls of poolings: the same answers and errors as the first time, in every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pool_check import gradient, laid_out
from torch import Tensor
from torch.autograd import forward_ad

import fastconv
from fastconv import pooling_plans, select
from fastconv.ops import pool_eager
from fastconv.problem import packed_moves, packed_sizes

ops = torch.ops.fastconv

CALLS: dict[str, tuple[Any, ...]] = {
    "max_pool2d": ((3, 2, 1), {}),
    "avg_pool2d": ((3, 2, 1), {"count_include_pad": False}),
    "lp_pool2d": ((2.0, 3, 2), {}),
    "adaptive_avg_pool2d": ((1,), {}),
    "adaptive_max_pool2d": (((3, 5),), {}),
}


def both(name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    args, options = CALLS[name]
    return tuple(lambda x, m=m: getattr(m, name)(x, *args, **options) for m in (fastconv, F))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs by a plan."""
    select.forget()
    found: list[str] = []
    for cls in (pool_eager.MaxPlan, pool_eager.SumPlan, pool_eager.LpPlan):
        for way in ("value", "recorded"):
            run = getattr(cls, way)
            patched = lambda self, x, run=run, way=way: found.append(way) or run(self, x)  # noqa: E731
            monkeypatch.setattr(cls, way, patched)
    return found


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_the_second_call_goes_by_a_plan(name: str, channels_last: bool, seen: list[str]) -> None:
    ours, torchs = both(name)
    x = laid_out(torch.randn(2, 5, 9, 11, dtype=torch.float64), channels_last)
    for expected in ([], ["value"]):
        seen.clear()
        y = ours(x)
        torch.testing.assert_close(y, torchs(x))
        assert y.stride() == laid_out(torchs(x).contiguous(), channels_last).stride()
        assert seen == expected
    dy = torch.randn_like(y)
    seen.clear()
    dx = gradient(ours, x, dy)
    torch.testing.assert_close(dx, gradient(torchs, x, dy))
    assert dx.stride() == x.stride() and seen == ["recorded"]
    torch.testing.assert_close(ours(x[0]), torchs(x[0]))
    torch.testing.assert_close(ours(x[0]), torchs(x[0]))
    # Everything else leaves it.
    leaf = laid_out(x[:1, :1, :5, :5].contiguous(), channels_last).requires_grad_()
    seen.clear()
    torch.autograd.gradcheck(ours, leaf, check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(ours, leaf, check_fwd_over_rev=True, fast_mode=True)
    assert "recorded" in seen
    seen.clear()
    torch.testing.assert_close(torch.func.vmap(ours)(x[None])[0], torchs(x))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, x))).tangent
    torch.testing.assert_close(tangent, torchs(x))  # of degree 1 in x, all of them
    assert not seen


def test_what_equals_a_remembered_argument_is_still_refused(seen: list[str]) -> None:
    x = torch.randn(1, 2, 6, 6)
    fastconv.max_pool2d(x, 1, 1)
    fastconv.max_pool2d(x, (1, 2), 1)
    fastconv.avg_pool2d(x, 2, 1, 0, True, True, 1)
    for name, args in (
        ("max_pool2d", (True, 1)),
        ("max_pool2d", (1.0, 1)),
        ("max_pool2d", ((True, 2), 1)),
        ("max_pool2d", (1, 1, 0, 1, 0)),
        ("avg_pool2d", (2, 1, 0, 1)),
        ("avg_pool2d", (2, 1, 0, True, 1)),
        ("avg_pool2d", (2, 1, 0, True, True, True)),
    ):
        for module in (F, fastconv):
            with pytest.raises(TypeError):
                getattr(module, name)(x, *args)
    assert not seen


def test_plans_are_of_their_tensors(seen: list[str]) -> None:
    x = torch.randn(1, 2, 6, 6)
    fastconv.max_pool2d(x, 2)
    fastconv.max_pool2d(torch.nn.Parameter(x), 2)
    fastconv.max_pool2d(torch.nn.Parameter(x), 2)
    assert seen == ["recorded"]
    seen.clear()
    assert fastconv.max_pool2d(x.to("meta"), 2).shape == (1, 2, 3, 3)
    assert fastconv.max_pool2d(x.double(), 2).dtype == torch.float64
    assert fastconv.max_pool2d(x.transpose(2, 3), 2).shape == (1, 2, 3, 3)
    index = fastconv.max_pool2d(x, 2, return_indices=True)[1]
    assert torch.equal(index, F.max_pool2d(x, 2, return_indices=True)[1])
    with pytest.raises(RuntimeError), torch.no_grad():
        fastconv.max_pool2d(x.to_sparse(), 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = x.bfloat16()
        fastconv.max_pool3d(half[:, None], 2), fastconv.max_pool3d(half[:, None], 2)
        assert fastconv.max_pool3d(half[:, None], 2).dtype == torch.float32
    assert not seen
    select.forget()
    assert not pooling_plans._plans
    # Numbers that do not fit into what the packed ops take.
    wide = torch.randn(1, 1, 1, 300)
    for _ in range(2):
        torch.testing.assert_close(
            fastconv.avg_pool2d(wide, (1, 2), (1, 130)), F.avg_pool2d(wide, (1, 2), (1, 130))
        )
    assert not pooling_plans._plans and not seen


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_packed_ops(rank: int, channels_last: bool) -> None:
    if rank == 1 and channels_last:
        return
    x = laid_out(torch.randn(2, 3, *(7, 8, 9)[:rank]), channels_last)
    kernel, stride, padding, one = (
        (3, 2, 3)[:rank],
        (2, 1, 2)[:rank],
        (1, 0, 1)[:rank],
        (1,) * rank,
    )
    packed = packed_sizes(kernel), packed_moves(stride, padding, one)
    lists, size = (kernel, stride, padding), packed_sizes(x.shape[2:])
    y, index = ops.max_pool_fprop(x, *lists, one, True, 1)
    total = ops.sum_pool_fprop(x, *lists, True, False, 0)
    root = ops.lp_pool_fprop(x, *lists, True, 2.0, True)
    dy = torch.randn_like(y)
    last = channels_last
    pairs = {
        "max_pool_fprop.value": ((x, *packed, True), y),
        "max_pool_fprop.packed": ((x, *packed, True, 1), (y, index)),
        "max_pool_dgrad.packed": (
            (dy, index, size, *packed, last),
            ops.max_pool_dgrad(dy, index, x.shape, *lists, one, last),
        ),
        "sum_pool_fprop.packed": ((x, *packed, True, False, 0), total),
        "sum_pool_dgrad.packed": (
            (dy, size, *packed, False, 0, last),
            ops.sum_pool_dgrad(dy, x.shape, *lists, False, 0, last),
        ),
        "lp_pool_fprop.packed": ((x, *packed, True, 2.0, True), root),
        "lp_pool_dgrad.packed": (
            (dy, x, root, *packed, 2.0, True),
            ops.lp_pool_dgrad(dy, x, root, *lists, 2.0, True),
        ),
    }
    for name, (args, want) in pairs.items():
        op = getattr(getattr(ops, name.split(".")[0]), name.split(".")[1])
        torch.testing.assert_close(op(*args), want, rtol=0, atol=0, equal_nan=True)
        torch.library.opcheck(op, args)
    with pytest.raises(RuntimeError, match="3 to 5 dimensions"):
        ops.max_pool_fprop.value(x.flatten(0, -2), *packed, True)
