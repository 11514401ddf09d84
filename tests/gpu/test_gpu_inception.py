"""Inception modules on the device: every instance of their kernels against float64, the module
against PyTorch's, and in a graph."""

from __future__ import annotations

import pytest
import torch
from gpu_runner import DEVICE, EMULATED, ON_CPU_KERNELS, device_ops, embedded, marks
from torch import Tensor, nn
from torch.nn import functional

import fastconv
from fastconv import select_inception, selftest_inception
from fastconv.select_inception import InceptionFamily

pytestmark = marks()
FAMILIES = select_inception.families()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}
GOOGLENET = {"3a": (28, 192, 64, 96, 128, 16, 32, 32), "5b": (7, 832, 384, 192, 384, 48, 128, 128)}
# Of a rehearsal, as selftest_inception.SIZES: vectors on every axis of channels.
SMALL = (1, 16, 5, 6, 16, 8, 8, 8, 16, 8, 3, 5)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_every_instance(family: InceptionFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-test of all sizes, within larger allocations of NaN."""
    if ON_CPU_KERNELS:
        # The op is of CUDA alone: CPU calls go branch by branch.
        pytest.skip("rehearsal: the CPU has no such op")
    ops = device_ops()

    class Embedded:
        def inception_fprop(self, *args):
            held = [embedded(t, 64) if isinstance(t, Tensor) else t for t in args]
            return ops.inception_fprop(*held)

    monkeypatch.setattr(selftest_inception, "OPS", Embedded())
    if EMULATED:
        monkeypatch.setattr(selftest_inception, "SIZES", (SMALL,))
    count, error, _, _ = selftest_inception.check(family, DEVICE, len(selftest_inception.SIZES))
    assert not error and count >= len(family.instances())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_maximum_of_special_values(family: InceptionFamily) -> None:
    """NaN wins in its windows and shows nowhere else; a window of -inf is -inf. Operands that are
    split have no infinity: it comes out as NaN."""
    if ON_CPU_KERNELS:
        # The op is of CUDA alone: CPU calls go branch by branch.
        pytest.skip("rehearsal: the CPU has no such op")
    sizes = (2, 8, 6, 5, 4, 8, 4, 8, 4, 1, 3, 5)
    operands = [torch.zeros_like(t) for t in selftest_inception._operands(sizes, family.dtype)]
    x = operands[0].fill_(-1)
    x[0, 0, 0, 0], x[0, 0, 5, 4], x[1, 0, :3] = float("nan"), float("inf"), float("-inf")
    operands[7][0, 0] = 1
    placed = [selftest_inception._placed(t, family.channels_last, DEVICE) for t in operands]
    expected = functional.max_pool2d(x.float(), 3, 1, 1)[:, 0]
    if family.products == "tf32x3":
        expected = expected.where(expected.isfinite(), float("nan"))
    for name in family.instances():
        y, _ = device_ops().inception_fprop(*placed, 0, 0.0, name)
        got = y[:, -1].float().cpu()
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=0, equal_nan=True)


def made(
    name: str, batch: int, dtype: torch.dtype, channels_last: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    extent, C, one, red3, three, red5, five, projection = GOOGLENET[name]
    if ON_CPU_KERNELS or EMULATED:
        extent, C, batch = 5, 16, min(batch, 2)
        one, red3, three, red5, five, projection = (
            max(n // 16, 2) for n in (one, red3, three, red5, five, projection)
        )
    generator = torch.Generator().manual_seed(3)
    shapes = ((one, C, 1), (red3, C, 1), (three, red3, 3), (red5, C, 1), (five, red5, 5),
              (projection, C, 1))  # fmt: skip
    weights = [
        (torch.randn(k, c, r, r, generator=generator) / (c * r * r) ** 0.5).to(DEVICE, dtype)
        for k, c, r in shapes
    ]
    biases = [torch.randn(k, generator=generator).to(DEVICE, dtype) for k, *_ in shapes]
    x = torch.randn(batch, C, extent, extent, generator=generator).to(DEVICE, dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, weights, biases


def separate(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    def run(i: int, source: Tensor) -> Tensor:
        w = weights[i]
        return functional.conv2d(source, w, biases[i], padding=w.shape[2] // 2).relu()

    pooled = functional.max_pool2d(x, 3, 1, 1)
    return torch.cat([run(0, x), run(2, run(1, x)), run(4, run(3, x)), run(5, pooled)], 1)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name, batch", [("3a", 1), ("5b", 1), ("3a", 5)])
def test_module(name: str, batch: int, dtype: torch.dtype, channels_last: bool) -> None:
    """Forward and backward against PyTorch's branches in float64; the second time the same bits."""
    x, weights, biases = made(name, batch, dtype, channels_last)
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
    y = fastconv.inception(x, weights, biases, algo="im2col")
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(DEVICE, dtype)
    grads = torch.autograd.grad(y, leaves, dy)
    wide = [t.detach().cpu().double().requires_grad_() for t in leaves]
    expected = separate(wide[0], wide[1:7], wide[7:])
    wanted = torch.autograd.grad(expected, wide, dy.cpu().double())
    # ReLU's corner: where rounding moves a value across 0 its gradient is another.
    for got, want in zip((y, *grads), (expected, *wanted), strict=True):
        error = (got.detach().double().cpu() - want.detach()).norm() / want.detach().norm()
        assert error < 4 * TOLERANCE[dtype], f"relative error {error:.2g}"
    assert torch.equal(fastconv.inception(x, weights, biases, algo="im2col"), y)


# A graph is captured by the driver: there is nothing of it to rehearse.
@pytest.mark.skipif(ON_CPU_KERNELS or EMULATED, reason="rehearsal: no graphs")
@pytest.mark.gpu
def test_two_kernels_and_a_graph() -> None:
    """At one image, nothing but the two launches runs; a graph of it follows its input."""
    x, weights, biases = made("3a", 1, torch.bfloat16, True)
    torch.use_deterministic_algorithms(False)  # poison would be kernels of its own
    with torch.no_grad():
        for _ in range(3):
            fastconv.inception(x, weights, biases, algo="im2col")
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            fastconv.inception(x, weights, biases, algo="im2col")
            torch.cuda.synchronize()
        kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        assert len(kernels) == 2, [e.name for e in kernels]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = fastconv.inception(x, weights, biases, algo="im2col")
        x.copy_(torch.randn(x.shape).to(x))
        graph.replay()
        assert torch.equal(y, fastconv.inception(x, weights, biases, algo="im2col"))


def test_layer_in_evaluation() -> None:
    """nn.Inception with normalisation, by `auto`."""
    torch.manual_seed(1)
    layer = fastconv.nn.Inception(24, 16, 8, 16, 8, 8, 8, batch_norm=True).to(DEVICE).eval()
    for norm in (m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.weight)
    x = torch.randn(1, 24, 14, 14).to(DEVICE)
    branches = (layer.branch1, layer.branch2, layer.branch3, layer.branch4)
    with torch.no_grad():
        y, expected = layer(x), torch.cat([branch(x) for branch in branches], 1)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
