"""Derivatives of pooling: gradcheck, forward mode, vmap, opcheck, torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastconv

CASES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "max1d": (
        (2, 3, 9),
        lambda x: fastconv.max_pool1d(x, 3, 2, 1),
        lambda x: F.max_pool1d(x, 3, 2, 1),
    ),
    "max2d": (
        (2, 3, 5, 6),
        lambda x: fastconv.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    ),
    "max2d indices": (
        (2, 3, 5, 6),
        lambda x: fastconv.max_pool2d(x, 2, 1, dilation=2, return_indices=True)[0],
        lambda x: F.max_pool2d(x, 2, 1, dilation=2, return_indices=True)[0],
    ),
    "max3d": (
        (1, 2, 3, 4, 5),
        lambda x: fastconv.max_pool3d(x, 2, 1, 1),
        lambda x: F.max_pool3d(x, 2, 1, 1),
    ),
    "avg2d": (
        (2, 3, 5, 6),
        lambda x: fastconv.avg_pool2d(x, 3, 2, 1, True, False),
        lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    ),
    "avg3d": (
        (1, 2, 3, 4, 5),
        lambda x: fastconv.avg_pool3d(x, 2, 1, 1, divisor_override=-3),
        lambda x: F.avg_pool3d(x, 2, 1, 1, divisor_override=-3),
    ),
    "lp2": (
        (2, 3, 5, 6),
        lambda x: fastconv.lp_pool2d(x, 2, 3, 2, True),
        lambda x: F.lp_pool2d(x, 2, 3, 2, True),
    ),
    "lp3": (
        (2, 3, 7),
        lambda x: fastconv.lp_pool1d(x.abs() + 0.5, 3, 3, 2),
        lambda x: F.lp_pool1d(x.abs() + 0.5, 3, 3, 2),
    ),
    "l2": (
        (2, 3, 5, 6),
        lambda x: fastconv.l2_pool2d(x, 3, 2, 1),
        lambda x: F.avg_pool2d(x * x, 3, 2, 1, divisor_override=1).sqrt(),
    ),
}


def sample(shape: tuple[int, ...], channels_last: bool = False) -> Tensor:
    """Distinct values, further apart than finite differences step."""
    count = torch.Size(shape).numel()
    x = ((torch.randperm(count) + 1.5) * (1 - 2 * (torch.rand(count) < 0.5).double())) / count
    x = x.double().reshape(shape)
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    return x.requires_grad_()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest):
    return CASES[request.param]


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_numerically(case, channels_last: bool) -> None:
    shape, ours, _ = case
    x = sample(shape, channels_last)
    assert gradcheck(
        ours,
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_undefined_grad=False,
    )
    assert gradgradcheck(ours, x)


def test_functorch(case) -> None:
    shape, ours, torchs = case
    x, t = sample(shape).detach(), torch.randn(shape, dtype=torch.float64)
    for got, want in zip(
        torch.func.jvp(ours, (x,), (t,)), torch.func.jvp(torchs, (x,), (t,)), strict=True
    ):
        torch.testing.assert_close(got, want)
    many = torch.stack([x, x.flip(-1), -x], 1)
    for transform in (
        lambda f: torch.func.vmap(f, in_dims=1),
        lambda f: torch.func.vmap(torch.func.grad(lambda v: f(v).square().sum()), in_dims=1),
    ):
        torch.testing.assert_close(transform(ours)(many), transform(torchs)(many))
    small = torch.func.hessian(lambda v: ours(v).square().sum())(x)
    torch.testing.assert_close(small, torch.func.hessian(lambda v: torchs(v).square().sum())(x))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_breaks(case, dynamic: bool, channels_last: bool) -> None:
    shape, ours, torchs = case
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x = sample(shape, channels_last)
    y = compiled(x)
    assert y.stride() == ours(x).stride()
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    (want,) = torch.autograd.grad(torchs(x).square().sum(), x)
    torch.testing.assert_close(y, torchs(x))
    torch.testing.assert_close(dx, want)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), torchs(x))


def test_opcheck() -> None:
    ops = torch.ops.fastconv
    lists = ([3, 3], [2, 2], [1, 1])
    for channels_last in (False, True):
        x = sample((2, 3, 7, 6), channels_last).detach().requires_grad_()
        y, index = ops.max_pool(x.detach(), *lists, [1, 1], False, 1, "direct")
        positive = x.detach().abs().requires_grad_()
        dy = torch.randn_like(y).requires_grad_()
        p = ops.lp_pool(x.detach(), *lists, False, 2.0, True, "direct")
        size = list(x.shape)
        for op, args in (
            (ops.max_pool, (x, *lists, [1, 1], False, 1)),
            (ops.max_pool, (x.detach(), *lists, [1, 1], True, 2)),
            (ops.max_pool, (x.detach(), *lists, [1, 1], True, 0)),
            (ops.max_pool_dx, (dy, index, size, *lists, [1, 1], channels_last)),
            (ops.max_pool_take, (x, index, *lists, [1, 1])),
            (ops.sum_pool, (x, *lists, True, False, 0)),
            (ops.sum_pool_dx, (dy, size, *lists, False, True, 0, channels_last)),
            (ops.lp_pool, (positive, *lists, False, 3.0, True)),
            (ops.lp_pool_dx, (dy, x, p, *lists, False, 2.0, True)),
        ):
            torch.library.opcheck(op.default, (*args, "direct"))


def test_training_keeps_a_byte_per_output() -> None:
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = fastconv.max_pool2d(x, 3, 2, 1)
    assert [t.dtype for t in kept] == [torch.uint8]
    assert kept[0].shape == y.shape
