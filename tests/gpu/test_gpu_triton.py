"""The Triton convolutions on the device, compiled: every configuration of its architecture against
the float64 reference, the same bits again, the fused functions, graphs and streams.

Few problems: each configuration, dtype and kind of filter is a compilation of a second or more.
Where there is no GPU, FASTCONV_GPU_REHEARSAL=cpu with TRITON_INTERPRET=1 runs the same bodies on
small problems, in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import ConvCase, conv_case
from conv_runner import assert_close, assert_dense_as, random_operands, random_reference
from gpu_runner import DEVICE, REHEARSAL, laid_out, marks
from stream_checks import check_graph, check_returns_at_once, check_side_stream
from torch import Tensor
from torch.nn import functional as F

import fastconv
from fastconv import _triton, select_triton, selftest, selftest_fused, selftest_triton
from fastconv._triton import norm
from fastconv.ops import conv_dgrad, conv_fprop, conv_wgrad, triton_run
from fastconv.ops.norm_run import TRITON
from fastconv.problem import ConvSpec
from fastconv.selftest_fused import NormInstance
from fastconv.selftest_triton import TritonInstance

pytestmark = marks()
# Compiled kernels need a device; and the interpreter knows neither graphs nor streams.
if REHEARSAL and not _triton.INTERPRETED:
    pytest.skip("rehearsal: Triton needs TRITON_INTERPRET=1", allow_module_level=True)
on_the_device = pytest.mark.skipif(bool(REHEARSAL), reason="rehearsal: no graphs, no streams")
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
if REHEARSAL:
    DENSE = (conv_case("tails", (1, 5, 4, 5), (6, 5, 3, 3), stride=2, padding=1),)
    VECTORS = (conv_case("pointwise", (1, 8, 4, 4), (8, 8, 1, 1)),)
    DEPTHWISE = (conv_case("depthwise", (1, 6, 5, 4), (6, 1, 3, 3), 2, 1, groups=6),)
LAYOUT = {False: "NCHW", True: "NHWC"}


def instances() -> tuple[TritonInstance, ...]:
    if REHEARSAL:  # whose interpreter cuts bfloat16 off instead of rounding it
        found = one_of_each(selftest_triton.instances("cpu"))
        half = {torch.bfloat16: torch.float16}
        return tuple(replace(i, dtype=half.get(i.dtype, i.dtype)) for i in found)
    if not torch.cuda.is_available():
        return ()
    return selftest_triton.instances(f"cuda:{torch.cuda.current_device()}")


def one_of_each(among: tuple[TritonInstance, ...]) -> tuple[TritonInstance, ...]:
    return tuple({(i.algorithm, i.direction, i.channels_last): i for i in among}.values())


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


@on_the_device
@pytest.mark.parametrize("instance", one_of_each(INSTANCES), ids=lambda i: i.name.replace(" ", "-"))
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
    N, C, K, extent = (2, 4, 6, 5) if REHEARSAL else (4, 64, 96, 14)
    x, w = torch.randn(N, C, extent, extent), torch.randn(K, C, 3, 3) / (9 * C) ** 0.5
    residual = torch.randn(N, K, extent, extent)
    norm = [torch.rand(K) + 0.5, torch.randn(K), torch.randn(K), torch.rand(K) + 0.5]
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
    C = 4 if REHEARSAL else 32
    x = torch.randn(2, C, 9, 9, device=DEVICE, requires_grad=True)
    w = torch.randn(C, C, 3, 3, device=DEVICE)

    def step(x: Tensor) -> Tensor:
        return fastconv.conv2d(x, w, algo=select_triton.IMPLICIT_GEMM, precision="ieee").sin()

    backend = "aot_eager" if REHEARSAL else "inductor"
    y, exact = torch.compile(step, fullgraph=True, backend=backend)(x), F.conv2d(x, w).sin()
    torch.testing.assert_close(y, exact, rtol=1e-3, atol=1e-3)
    (dx,), (expected,) = (torch.autograd.grad(t.sum(), x) for t in (y, exact))
    torch.testing.assert_close(dx, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("instance", selftest_fused.instances(TRITON), ids=lambda i: i.name)
def test_passes_of_normalisation(instance: NormInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each against float64, in the self-test's sizes."""
    if REHEARSAL:
        monkeypatch.setattr(selftest_fused, "_SIZES", ((2, 5, 3, 2),))
        # Of bfloat16 that is cut off.
        monkeypatch.setattr(selftest_fused, "_TOLERANCE", 128.0)
    outcome = selftest.check(instance, DEVICE, selftest.FULL)
    assert outcome.passed, outcome


@on_the_device
@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
def test_passes_in_graphs_and_streams(channels_last: bool) -> None:
    """Those that merge parts; and the same bits the second time."""
    y, dz = (laid_out(torch.randn(16, 72, 19, 23), LAYOUT[channels_last]) for _ in range(2))
    vectors = [torch.rand(72, device=DEVICE) + 0.5 for _ in range(4)]
    operands = (y.to(DEVICE), dz.to(DEVICE))

    def call(y: Tensor, dz: Tensor) -> tuple[Tensor, ...]:
        sums = norm.norm_act_sums(dz, y, *vectors, None, 4, 0.0, False)
        return (*norm.norm_act_stats(y), *sums)

    first = call(*operands)
    assert all(map(torch.equal, first, call(*operands)))
    check_graph(call, operands, tuple(t.flip(0) * 2 for t in operands), "passes")
    check_side_stream(call, operands, "passes")
    check_returns_at_once(call, operands, "passes")


@pytest.mark.parametrize("algo", select_triton.ALGORITHMS)
def test_training_step_of_a_layer(algo: str) -> None:
    """Convolution, statistics and passes, forward and backward, against separate layers."""
    torch.manual_seed(2)
    K, extent = (4, 5) if REHEARSAL else (64, 19)
    groups = K if algo == select_triton.DEPTHWISE else 1
    layer = fastconv.nn.ConvBNReLU2d(K, K, 3, padding=1, groups=groups, algo=algo).to(DEVICE)
    x = torch.randn(3, K, extent, extent).to(DEVICE, memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), *layer.parameters()]
    conv, bn, _ = layer
    y = F.conv2d(x, conv.weight, conv.bias, padding=1, groups=groups)
    exact = F.relu(F.batch_norm(y, None, None, bn.weight, bn.bias, training=True))
    z = layer(x)
    torch.testing.assert_close(z, exact, rtol=1e-3, atol=1e-3)
    found, expected = (torch.autograd.grad(t.square().sum(), leaves) for t in (z, exact))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3 * float(e.abs().max()))


def test_inception_module() -> None:
    """Forward and backward against PyTorch's branches."""
    torch.manual_seed(3)
    sizes = (4, 3, 2, 3, 2, 2, 2) if REHEARSAL else (64, 32, 24, 48, 16, 24, 24)
    module = fastconv.nn.Inception(*sizes, algo=select_triton.IMPLICIT_GEMM).to(DEVICE)
    x = torch.randn(2, sizes[0], 6, 5).to(DEVICE, memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), *module.parameters()]

    def run(unit: Any, source: Tensor) -> Tensor:
        c = unit.conv
        return F.relu(F.conv2d(source, c.weight, c.bias, padding=c.padding))

    three, five = module.branch2, module.branch3
    exact = torch.cat(
        [
            run(module.branch1, x),
            run(three[1], run(three[0], x)),
            run(five[1], run(five[0], x)),
            run(module.branch4[1], F.max_pool2d(x, 3, 1, 1)),
        ],
        1,
    )
    y = module(x)
    torch.testing.assert_close(y, exact, rtol=1e-3, atol=1e-3)
    found, expected = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, exact))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3 * float(e.abs().max()))
