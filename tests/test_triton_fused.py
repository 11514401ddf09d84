"""What trains and what is fused, in Triton alone: which kernels run, who chooses them, and that the
results are those of other algorithms. Kernels are run by Triton's interpreter, on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import interpreted_triton
from fused_reference import check_statistics

import fastconv
from fastconv import (
    functional,
    gpu,
    select,
    select_fused,
    select_triton,
    selftest,
    selftest_fused,
    trust,
)
from fastconv._triton import conv, depthwise, norm, pool
from fastconv.ops.fused_recipe import Recipe
from fastconv.ops.norm_run import DIRECT, TRITON, norm_pass

GEMM, DEPTHWISE = select_triton.ALGORITHMS


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with interpreted_triton.everywhere(monkeypatch):
        yield


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that are launched from here on, those of the C++ library included."""
    names: list[str] = []
    for module in (conv, depthwise, norm):
        launch = module.launch

        def spied(step: Any, tensors: Any, launch=launch) -> None:
            names.append(step.kernel)
            launch(step, tensors)

        monkeypatch.setattr(module, "launch", spied)
    of_pools = pool.launch
    monkeypatch.setattr(pool, "launch", lambda *a: (names.append(a[0]), of_pools(*a)))
    return names


def computing(names: list[str]) -> list[str]:
    """Those that do not only copy."""
    return [n for n in names if "repack" not in n]


def library_ops(function: Any) -> list[str]:
    """The ops of the C++ library that a call runs, however it comes to them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return [e.name for e in profile.events() if e.name.startswith("fastconv::")]


def layer(algo: str, groups: int, **rest: Any) -> nn.Module:
    torch.manual_seed(3)
    return fastconv.nn.ConvBNReLU2d(4, 4, 3, padding=1, groups=groups, algo=algo, **rest)


def step(module: nn.Module, x: Tensor, residual: Tensor | None = None) -> list[Tensor]:
    leaves = [x, *module.parameters()] + ([] if residual is None else [residual])
    z = module(x) if residual is None else module(x, residual)
    return [z, *torch.autograd.grad(z.square().sum(), leaves)]


def near(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.detach().abs().max()))


@pytest.mark.parametrize("algo, groups", [(GEMM, 1), (DEPTHWISE, 4)])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_training_runs_in_triton_alone(ran: list[str], algo: str, groups: int, last: bool) -> None:
    x, residual = torch.randn(2, 4, 5, 4), torch.randn(2, 4, 5, 4).requires_grad_()
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    x.requires_grad_()
    found: list[Tensor] = []
    assert library_ops(lambda: found.extend(step(layer(algo, groups), x, residual))) == []
    kinds = [n.removesuffix("_kernel") for n in ran if "merge" not in n]
    # The statistics came with y.
    passes = [n for n in kinds if n.startswith("norm")]
    assert passes == ["norm_fprop", "norm_sums", "norm_dgrad"]
    for direction in ("fprop", "dgrad", "wgrad"):
        of = "implicit_gemm" if algo == GEMM else "depthwise"
        assert f"conv_{direction}_{of}" in kinds
    expected: list[Tensor] = []
    assert library_ops(lambda: expected.extend(step(layer("direct", groups), x, residual)))
    near(found, expected)


def test_a_chain_makes_its_inputs_anew_in_triton(ran: list[str]) -> None:
    x = torch.randn(2, 4, 4, 3, requires_grad=True)
    chains = [nn.Sequential(layer(algo, 1), layer(algo, 1)) for algo in (GEMM, "direct")]
    z = chains[0](x)
    recipe = z.grad_fn._raw_saved_tensors[0].data
    assert isinstance(recipe, Recipe) and recipe.passes == TRITON
    ran.clear()
    leaves = [x, *chains[0].parameters()]
    found: list[Tensor] = []
    backward = lambda: found.extend(torch.autograd.grad(z.square().sum(), leaves))  # noqa: E731
    assert library_ops(backward) == []
    assert ran.count("norm_fprop_kernel") == 1 and ran.count("norm_dgrad_kernel") == 2
    near([z, *found], step(chains[1], x))


def test_recomputed_results_and_evaluation(ran: list[str]) -> None:
    x = torch.randn(2, 4, 4, 3, requires_grad=True)
    found: list[Tensor] = []
    assert library_ops(lambda: found.extend(step(layer(GEMM, 1, recompute=True), x))) == []
    assert ran.count("conv_fprop_implicit_gemm_kernel") == 2
    near(found, step(layer("direct", 1), x))
    ran.clear()
    plain, ours = layer("direct", 1).eval(), layer(GEMM, 1).eval()
    with torch.no_grad():
        assert library_ops(lambda: found.append(ours(x))) == []
        near(found[-1:], [plain(x)])
    assert computing(ran) == ["conv_fprop_implicit_gemm_kernel"]


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_statistics_along_with_a_depthwise_convolution(ran: list[str], last: bool) -> None:
    """Of y as it is stored, far from zero, in more tiles than one."""
    torch.manual_seed(2)
    x, w = torch.randn(2, 3, 5, 7), torch.randn(6, 1, 3, 2)
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    tiles = depthwise.Config(16, 4, 1) if last else depthwise.Config(16, 1, 1)
    for dtype in (torch.float32, torch.float16):
        args = (x.to(dtype), w.to(dtype), torch.full((6,), 300.0, dtype=dtype))
        moves = ([2, 1], [1, 0], [1, 2], 3)
        y, mean, m2 = depthwise.conv_stats(*args, *moves, config=tiles)
        assert torch.equal(y, depthwise.conv_fprop(*args, *moves, config=tiles))
        check_statistics(y, (mean, m2), str(dtype))
    assert set(ran) >= {"conv_fprop_depthwise_kernel", "conv_stats_merge_kernel"}


def module_of(algo: str, batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(4)
    return fastconv.nn.Inception(4, 3, 2, 3, 2, 2, 2, batch_norm, kernel5=3, algo=algo)


def test_inception_runs_in_triton_alone(ran: list[str]) -> None:
    x = torch.randn(1, 4, 4, 5, requires_grad=True)
    found: list[Tensor] = []
    assert library_ops(lambda: found.extend(step(module_of(GEMM), x))) == []
    # Both reductions are one convolution; backward all three 1x1 of x are.
    for kernel, count in (
        ("conv_fprop_implicit_gemm_kernel", 5),
        ("conv_dgrad_implicit_gemm_kernel", 4),
        ("conv_wgrad_implicit_gemm_kernel", 4),
        ("max_pool_fprop_kernel", 1),
        ("max_pool_dgrad_kernel", 1),
    ):
        assert ran.count(kernel) == count, (kernel, ran)
    near(found, step(module_of("direct"), x))
    ran.clear()
    ours, plain = module_of(GEMM), module_of("direct")
    with torch.no_grad():
        for _ in range(2):  # the second time by the plan of the first
            assert library_ops(lambda: found.append(ours(x))) == []
            near(found[-1:], [plain(x)])
    ran = computing(ran)
    assert ran == ran[:6] * 2 and ran.count("max_pool_fprop_kernel") == 2


def test_inception_with_normalisation_runs_in_triton_alone(ran: list[str]) -> None:
    x = torch.randn(2, 4, 3, 3)
    found: list[Tensor] = []
    assert library_ops(lambda: found.append(module_of(GEMM, True)(x).detach())) == []
    assert ran.count("norm_fprop_kernel") == 6 and ran.count("max_pool_fprop_kernel") == 1
    near(found, [module_of("direct", True)(x)])


def test_graphs(ran: list[str]) -> None:
    ours, plain = layer(GEMM, 1).eval(), layer("direct", 1).eval()
    x = torch.randn(1, 4, 4, 3)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(ours, backend="aot_eager", fullgraph=True)(x)
        near([found], [plain(x)])
    assert computing(ran) == ["conv_fprop_implicit_gemm_kernel"]
    w, moves = torch.randn(4, 4, 3, 3), ([1, 1], [1, 1], [1, 1], 1)
    args = (x, w, torch.randn(4), None, *moves, 1, 0.0, False, GEMM)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.fastconv.conv_act.default, args, test_utils=checks)


# Who runs the passes.


@pytest.fixture
def bare_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """CPU tensors are on a GPU that the C++ library has no code for; the errors of its checks."""
    errors: dict[str, str] = {}
    described = gpu.Gpu("Pretend H200", 90, 132, 13000)
    monkeypatch.setattr(gpu, "device_key", lambda d: "cuda:0")
    monkeypatch.setattr(gpu, "describe", lambda key: described)
    monkeypatch.setattr(gpu, "refusal", lambda key: "no kernels in this build")
    monkeypatch.setattr(select_triton, "machine_refusal", lambda *_: None)
    monkeypatch.setattr("fastconv.select_cuda.free_bytes", lambda key: 1 << 37)
    monkeypatch.setattr(trust, "error_of", lambda device, name: errors.get(name, ""))
    monkeypatch.setattr(trust, "admit", lambda device, name: name not in errors)
    monkeypatch.setattr(trust, "capturing", lambda: False)
    select.forget()
    return errors


@pytest.mark.parametrize("algo", ["auto", "aten"])
def test_without_cuda_code_auto_has_triton(bare_gpu: Any, ran: list[str], algo: str) -> None:
    x = torch.randn(2, 4, 4, 3, requires_grad=True)
    found: list[Tensor] = []
    assert library_ops(lambda: found.extend(step(layer(algo, 1), x))) == []
    assert {"norm_fprop_kernel", "norm_sums_kernel", "norm_dgrad_kernel"} <= set(ran)
    if algo == "aten":  # which takes a pass for what follows it
        assert "norm_stats_kernel" in ran
        ran.clear()
        with torch.no_grad():
            z = layer(algo, 1).eval()(x)
        assert ran == ["norm_fprop_kernel"] and z.min() == 0


def test_who_runs_the_passes(bare_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 4, 4, 3)

    def passes(algo: str) -> str | None:
        return select_fused.passes_for(x, False, algo)

    ours, theirs = (
        selftest_fused.NormInstance(torch.float32, False, p).name for p in (TRITON, DIRECT)
    )
    assert ours == "norm/triton_float32_nchw" and theirs == "norm/float32_nchw"
    assert [passes(a) for a in ("auto", "im2col", GEMM, f"{GEMM}+tf32")] == [TRITON] * 4
    assert select_fused.refusal(DIRECT, x, False, True) == "no kernels in this build"
    monkeypatch.setattr(gpu, "refusal", lambda key: None)
    assert [passes(a) for a in ("auto", "im2col", GEMM, f"{GEMM}+tf32")] == [DIRECT] * 2 + [
        TRITON
    ] * 2
    bare_gpu[theirs] = "wrong"
    assert passes("auto") == passes("im2col") == TRITON
    reason = select_fused.refusal(DIRECT, x, False, True)
    assert reason == f"{theirs} failed its check on this device: wrong"
    bare_gpu[ours] = "wrong as well"
    assert passes("auto") is None and passes(GEMM) is None
    del bare_gpu[theirs]
    assert passes("auto") == passes(GEMM) == DIRECT
    monkeypatch.setattr(select_triton, "machine_refusal", lambda *_: "Triton is not installed")
    assert select_fused.refusal(TRITON, x, False, False) == "Triton is not installed"


def test_where_neither_runs_it_is_composed(bare_gpu: Any, ran: list[str]) -> None:
    for p in (TRITON, DIRECT):
        bare_gpu[selftest_fused.NormInstance(torch.float32, False, p).name] = "wrong"
    x, w, b = torch.randn(2, 4, 4, 3), torch.randn(4, 4, 1, 1), torch.randn(4)
    y = functional.conv2d(x, w, b, algo="aten")
    r = torch.randn_like(y)
    for after in (False, True):
        found = torch.ops.fastconv.conv_act(
            x, w, b, r, [1, 1], [0, 0], [1, 1], 1, 1, 0.0, after, "aten"
        )
        assert torch.equal(found, y.relu() + r if after else (y + r).relu())
    step(layer("aten", 1), x.requires_grad_())
    assert ran == []


def test_selftest_of_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_fused, "_SIZES", ((2, 5, 3, 2),))
    instance = selftest_fused.NormInstance(torch.float16, True, TRITON)
    assert selftest.instance_named(instance.name) == instance
    cpu = torch.device("cpu")
    outcome = selftest.check(instance, cpu, 1)
    assert outcome.passed and outcome.problems == 1, outcome
    real = norm.norm_act_sums
    monkeypatch.setattr(norm, "norm_act_sums", lambda *a: [t + 1 for t in real(*a)])
    assert "sum: off by" in selftest.check(instance, cpu, 1).error

    class OutOfResources(Exception):
        """As Triton's, which is no RuntimeError."""

    def fails(*_: Any) -> None:
        raise OutOfResources("shared memory")

    monkeypatch.setattr(norm, "norm_act_stats", fails)
    assert selftest.check(instance, cpu, 1).error == "(2, 5, 3, 2): OutOfResources: shared memory"
    monkeypatch.setattr(gpu, "describe", lambda key: gpu.Gpu("Pretend H200", 90, 132, 13000))
    listed = [i.name for i in selftest.chosen("triton", "cpu")]
    assert instance.name in listed and any(n.startswith(GEMM) for n in listed)
    assert norm_pass("norm_act_stats", None) is norm_pass("norm_act_stats", DIRECT)
