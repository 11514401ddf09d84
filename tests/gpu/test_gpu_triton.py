"""The Triton convolutions on the device, compiled: every configuration of its architecture against
the float64 reference, the same bits again, the fused functions, graphs and streams.

Few problems: each configuration, dtype and kind of filter is a compilation of a second or more.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import assert_close, assert_dense_as, random_operands, random_reference
from gpu_runner import DEVICE, laid_out
from stream_checks import check_graph, check_returns_at_once, check_side_stream
from torch import Tensor
from torch.nn import functional as F

import fastconv
from fastconv import select_triton, selftest_triton
from fastconv.ops import conv_dgrad, conv_fprop, conv_wgrad, triton_run
from fastconv.problem import ConvSpec
from fastconv.selftest_triton import TritonInstance

pytestmark = pytest.mark.gpu
# Tails on every axis, several tiles, and a stride; whole blocks, as most layers have them.
DENSE = (
    conv_case("tails", (3, 70, 19, 23), (83, 70, 3, 3), stride=2, padding=1),
    conv_case("whole", (4, 128, 16, 16), (256, 128, 3, 3), padding=1),
)
# What is read in vectors of pixels, and what is copied first; of one configuration.
VECTORS = (
    conv_case("pointwise", (3, 72, 14, 16), (96, 72, 1, 1)),
    conv_case("few_channels", (2, 3, 37, 41), (40, 3, 7, 7), stride=2, padding=3),
)
DEPTHWISE = (
    conv_case("depthwise", (2, 72, 19, 23), (72, 1, 3, 3), stride=2, padding=1, groups=72),
)
LAYOUT = {False: "NCHW", True: "NHWC"}


def instances() -> tuple[TritonInstance, ...]:
    if not torch.cuda.is_available():
        return ()
    return selftest_triton.instances(f"cuda:{torch.cuda.current_device()}")


INSTANCES = instances()


def cases_of(instance: TritonInstance) -> list[ConvCase]:
    known = DEPTHWISE if instance.algorithm == select_triton.DEPTHWISE else DENSE
    if instance.kernel == "64x64x32_w4_s4":
        known += VECTORS
    config = select_triton.CONFIGS[instance.algorithm][instance.kernel]
    return [
        case
        for case in known
        if select_triton.config_refusal(
            instance.algorithm,
            config,
            ConvSpec(
                instance.direction, "cuda:0", instance.dtype, case.input_size, case.weight_size,
                case.stride, case.padding, case.dilation, case.groups, instance.channels_last,
            ),
        )
        is None
    ]  # fmt: skip


def run(instance: TritonInstance, case: ConvCase, a: Tensor, b: Tensor, bias: Any = None) -> Tensor:
    if instance.direction == "fprop":
        return conv_fprop(a, b, bias, *case.params, instance.algo)
    rest = (*case.params, instance.channels_last, instance.algo)
    if instance.direction == "dgrad":
        return conv_dgrad(a, b, case.input_size, *rest)
    return conv_wgrad(a, b, case.weight_size, *rest)


def operands_of(instance: TritonInstance, case: ConvCase) -> list[Tensor | None]:
    operands = random_operands(case, instance.direction, instance.dtype)
    layout = LAYOUT[instance.channels_last]
    return [
        None if t is None else (laid_out(t, layout) if t.dim() > 2 else t).to(DEVICE)
        for t in operands
    ]


def test_there_are_instances() -> None:
    """An empty list would make the others pass; where Triton does not run, this says why."""
    reason = select_triton.machine_refusal("cuda:0", torch.bfloat16)
    assert INSTANCES, reason


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda i: i.name.replace(" ", "-"))
def test_against_the_reference(instance: TritonInstance) -> None:
    cases = cases_of(instance)
    assert cases
    for case in cases:
        operands = operands_of(instance, case)
        found = run(instance, case, *operands)
        assert_dense_as(found, instance.channels_last, instance.name)
        expected, magnitude = random_reference(case, instance.direction, instance.dtype)
        assert_close(
            found.cpu(), expected, magnitude, instance.tolerance, case, instance.direction,
            instance.name,
        )  # fmt: skip
        assert torch.equal(found, run(instance, case, *operands)), instance.name


def one_of_each() -> list[TritonInstance]:
    found = {(i.algorithm, i.direction, i.channels_last): i for i in INSTANCES}
    return list(found.values())


@pytest.mark.parametrize("instance", one_of_each(), ids=lambda i: i.name.replace(" ", "-"))
def test_graphs_and_streams(instance: TritonInstance) -> None:
    """The first call, outside of the capture, compiles. Statistics of training, too, and what is
    copied before it is gathered."""
    case = cases_of(instance)[0]
    a, b, bias = operands_of(instance, case)
    assert a is not None and b is not None

    def call(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return run(instance, case, a, b, bias)

    def statistics(a: Tensor, b: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        return triton_run.stats(a, b, bias, case.params, instance.algo)

    others = (a.flip(0) * 2, b.flip(0) * 2, bias)
    check_graph(call, (a, b, bias), others, instance.name)
    check_side_stream(call, (a, b, bias), instance.name)
    check_returns_at_once(call, (a, b, bias), instance.name)
    if instance.direction == "fprop":
        check_graph(statistics, (a, b, bias), others, instance.name)


def test_fused_functions() -> None:
    """conv_bn_relu with a residual, of evaluation and training, against separate layers."""
    torch.manual_seed(1)
    x, w = torch.randn(4, 64, 14, 14), torch.randn(96, 64, 3, 3) / 24
    residual = torch.randn(4, 96, 14, 14)
    norm = [torch.rand(96) + 0.5, torch.randn(96), torch.randn(96), torch.rand(96) + 0.5]
    x, w, residual = (
        t.to(DEVICE, memory_format=torch.channels_last).requires_grad_() for t in (x, w, residual)
    )
    norm = [t.to(DEVICE) for t in norm]
    for training in (False, True):
        stats, theirs = ([t.clone() for t in norm[2:]] for _ in range(2))
        z = fastconv.conv_bn_relu(
            x, w, None, *norm[:2], *stats, training=training, padding=1, residual=residual,
            algo=select_triton.IMPLICIT_GEMM, precision="ieee",
        )  # fmt: skip
        y = F.batch_norm(F.conv2d(x, w, padding=1), *theirs, *norm[:2], training)
        y = F.relu(y + residual)
        torch.testing.assert_close(z, y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stats, theirs, rtol=1e-4, atol=1e-5)
        found, expected = (
            torch.autograd.grad(t.square().sum(), (x, w, residual), retain_graph=True)
            for t in (z, y)
        )
        for a, e in zip(found, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4 * float(e.abs().max()))


def test_compiled_function() -> None:
    x = torch.randn(2, 32, 9, 9, device=DEVICE, requires_grad=True)
    w = torch.randn(32, 32, 3, 3, device=DEVICE)

    def step(x: Tensor) -> Tensor:
        return fastconv.conv2d(x, w, algo=select_triton.IMPLICIT_GEMM, precision="ieee").sin()

    y, exact = torch.compile(step, fullgraph=True)(x), F.conv2d(x, w).sin()
    torch.testing.assert_close(y, exact, rtol=1e-3, atol=1e-3)
    (dx,), (expected,) = (torch.autograd.grad(t.sum(), x) for t in (y, exact))
    torch.testing.assert_close(dx, expected, rtol=1e-3, atol=1e-3)
