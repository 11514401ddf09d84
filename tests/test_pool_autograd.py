"""Derivatives of pooling: gradcheck, forward mode, vmap, opcheck, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fastconv
from fastconv.ops import pool_composed

UNPOOLED = torch.tensor([0, 3, 9, 11, 14, 23]).reshape(1, 1, 2, 3)  # places in a plane of 4 x 6


def _unpool_of(module: Any, x: Tensor) -> Tensor:
    return module.max_unpool2d(x, UNPOOLED.expand(x.shape), 2)


def _evaluated(x: Tensor) -> Tensor:
    """Stochastic pooling's average, 3 x 3 with padding, from its definition."""
    weight = x.clamp(min=0)
    sums = F.avg_pool2d(weight, 3, 2, 1)
    some = sums > 0
    return torch.where(some, F.avg_pool2d(weight * weight, 3, 2, 1) / torch.where(some, sums, 1), 0)


def _neighbours(x: Tensor) -> Tensor:
    """(N, 2, ..., 3): windows of three channels, two apart."""
    return x.unfold(1, 3, 2)


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
    "adaptive max": (
        (2, 3, 5, 7),
        lambda x: fastconv.adaptive_max_pool2d(x, (2, 4)),
        lambda x: F.adaptive_max_pool2d(x, (2, 4)),
    ),
    "adaptive avg": (
        (2, 3, 5, 7),
        lambda x: fastconv.adaptive_avg_pool2d(x, (3, None)),
        lambda x: F.adaptive_avg_pool2d(x, (3, None)),
    ),
    "unpool": (
        (2, 3, 2, 3),
        lambda x: _unpool_of(fastconv, x),
        lambda x: _unpool_of(F, x),
    ),
    "stochastic, evaluated": (
        (2, 3, 5, 6),
        lambda x: fastconv.stochastic_pool2d(x, 3, 2, 1, training=False),
        _evaluated,
    ),
    "maxout": (
        (2, 6, 4, 3),
        lambda x: fastconv.maxout(x, 3),
        lambda x: x.unflatten(1, (2, 3)).amax(2),
    ),
    "l2 features": (
        (2, 5, 4, 3),
        lambda x: fastconv.l2_pool_features(x, 3, 2),
        lambda x: _neighbours(x).square().sum(-1).sqrt(),
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
        fast_mode=channels_last,
    )
    assert gradgradcheck(ours, x, fast_mode=True)


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


@pytest.mark.parametrize(
    "name, dynamic",
    [*((name, True) for name in CASES), ("max2d", False), ("lp2", False), ("adaptive avg", False)],
)
def test_compile_without_breaks(name: str, dynamic: bool) -> None:
    shape, ours, torchs = CASES[name]
    channels_last = dynamic
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


OPS = (
    "max_pool, byte",
    "max_pool, places",
    "max_pool, nothing",
    "max_pool_dx",
    "max_pool_take",
    "max_unpool",
    "max_unpool_dx",
    "sum_pool",
    "sum_pool, adaptive",
    "sum_pool_dx",
    "lp_pool",
    "lp_pool_dx",
    "sample_pool",
    "expectation_pool",
)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    ops, lists, ones = torch.ops.fastconv, ([3, 3], [2, 2], [1, 1]), [1, 1]
    adaptive = ([3, 4], [0, 0], [0, 0])
    for channels_last in (False, True):
        x = sample((2, 3, 7, 6), channels_last).detach().requires_grad_()
        y, index = ops.max_pool(x.detach(), *lists, ones, False, 1, "direct")
        places = ops.max_pool(x.detach(), *lists, ones, False, 2, "direct")[1]
        positive = x.detach().abs().requires_grad_()
        dy = torch.randn_like(y).requires_grad_()
        p = ops.lp_pool(x.detach(), *lists, False, 2.0, True, "direct")
        size, seed = list(x.shape), torch.tensor([3])
        args = {
            "max_pool, byte": (x, *lists, ones, False, 1),
            "max_pool, places": (x.detach(), *lists, ones, True, 2),
            "max_pool, nothing": (x.detach(), *lists, ones, True, 0),
            "max_pool_dx": (dy, index, size, *lists, ones, channels_last),
            "max_pool_take": (x, index, *lists, ones),
            "max_unpool": (dy, places, size),
            "max_unpool_dx": (x, places),
            "sum_pool": (x, *lists, True, False, 0),
            "sum_pool, adaptive": (x, *adaptive, False, True, 0),
            "sum_pool_dx": (dy, size, *lists, False, True, 0, channels_last),
            "lp_pool": (positive, *lists, False, 3.0, True),
            "lp_pool_dx": (dy, x, p, *lists, False, 2.0, True),
            "sample_pool": (x, seed, *lists, False, 1),
            "expectation_pool": (x, *lists, False),
        }[name]
        op = getattr(ops, name.split(",")[0]).default
        # What is traced does not depend on the layout, and takes most of the time.
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        more = () if channels_last else ("test_aot_dispatch_dynamic",)
        torch.library.opcheck(op, (*args, "direct"), test_utils=(*tests, *more))


def test_third_order() -> None:
    """Also of the recorded ops, whose gradient of a gradient is a formula of its own."""
    ops, lists = torch.ops.fastconv, ([3], [2], [1])
    for power in (1.0, 2.0, 3.0):
        x = sample((1, 2, 7)).detach().abs().requires_grad_()
        dy = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)

        def recorded(dy: Tensor, x: Tensor, power: float = power) -> Tensor:
            y = ops.lp_pool(x.detach(), *lists, True, power, True, "direct")
            return ops.lp_pool_dx(dy, x, y, *lists, True, power, True, "direct")

        def composed(dy: Tensor, x: Tensor, power: float = power) -> Tensor:
            return pool_composed.lp_dx(dy, x, *lists, True, power, True, "direct")

        assert gradcheck(recorded, (dy, x))
        assert gradgradcheck(recorded, (dy, x))
        if power == 1:  # linear: there is no derivative in x
            continue
        both = [_third(f, dy, x) for f in (recorded, composed)]
        for got, want in zip(*both, strict=True):
            torch.testing.assert_close(got, want)
    x = sample((1, 2, 5, 4)).detach().requires_grad_()
    ours = _third(
        lambda a, b: fastconv.stochastic_pool2d(b, 2, training=False) * a, x.new_ones(1), x
    )
    theirs = _third(lambda a, b: _evaluated_2(b) * a, x.new_ones(1), x)
    torch.testing.assert_close(ours, theirs)


def _evaluated_2(x: Tensor) -> Tensor:
    weight = x.clamp(min=0)
    sums = F.avg_pool2d(weight, 2)
    some = sums > 0
    return torch.where(some, F.avg_pool2d(weight * weight, 2) / torch.where(some, sums, 1), 0)


def _third(f: Callable[[Tensor, Tensor], Tensor], a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a scalar of f and its first three derivatives in x."""
    total = f(a, x).sin().sum()
    results = []
    for _ in range(3):
        (total_dx,) = torch.autograd.grad(total, x, create_graph=True)
        results.append(total_dx)
        total = total_dx.sin().sum()
    return tuple(t.detach() for t in results)


def test_training_keeps_a_byte_per_output() -> None:
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = fastconv.max_pool2d(x, 3, 2, 1)
    assert [t.dtype for t in kept] == [torch.uint8]
    assert kept[0].shape == y.shape
