"""The Triton convolutions behind fastconv's functions: names, reasons, derivatives, fused
operations, graphs. Their kernels are run by Triton's interpreter, on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

import interpreted_triton

import fastconv
from fastconv import _triton, cost_triton, gpu, select, select_cuda, select_triton, selftest_triton
from fastconv._triton import conv, depthwise
from fastconv.problem import ConvSpec
from fastconv.selftest import check

GEMM, DEPTHWISE = select_triton.ALGORITHMS
H200 = gpu.Gpu("Pretend H200", 90, 132, 13000)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with interpreted_triton.everywhere(monkeypatch):
        yield


def spec(
    direction: str = "fprop", device: str = "cpu", dtype: torch.dtype = torch.float32,
    x: tuple[int, ...] = (2, 8, 6, 5), w: tuple[int, ...] = (6, 8, 3, 3), groups: int = 1,
    last: bool = False, products: str = "ieee",
) -> ConvSpec:  # fmt: skip
    rank = len(x) - 2
    lists = ((1,) * rank, (1,) * rank, (1,) * rank)
    return ConvSpec(direction, device, dtype, x, w, *lists, groups, last, products)


def test_names_and_reasons() -> None:
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
    for name in (*select_triton.ALGORITHMS, *select_triton.NAMES):
        with pytest.raises(RuntimeError, match=r"run on CUDA, not on cpu .*TRITON_INTERPRET"):
            fastconv.conv2d(x, w, algo=name)
    with pytest.raises(ValueError, match="unknown algorithm"):
        fastconv.conv2d(x, w, algo=f"{GEMM}/1x1x1")
    assert set(select_triton.ALGORITHMS) <= set(select.names("cuda"))
    assert not set(select_triton.ALGORITHMS) & set(select.names("cpu"))
    assert not any(c.backend == "triton" for c in select.candidates(spec()))


def test_reasons_carry_values(interpreted) -> None:
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3)
    with pytest.raises(RuntimeError, match="sum in float32 and have no float64"):
        fastconv.conv2d(x.double(), w.double(), algo=GEMM)
    with pytest.raises(RuntimeError, match="got 4 channels in 1 groups of 4"):
        fastconv.conv2d(x, w, algo=DEPTHWISE)
    with pytest.raises(RuntimeError, match="steps of 64 float32 elements"):
        fastconv.conv2d(x, w, algo=f"{GEMM}/128x256x64_w8_s3")
    with pytest.raises(RuntimeError, match="64 channels are not for the contiguous"):
        fastconv.conv2d(x, torch.randn(4, 1, 3, 3), groups=4, algo=f"{DEPTHWISE}/m64_c64_w4")
    config = cost_triton.IMPLICIT_GEMM["128x128x64_w8_s3"]
    assert cost_triton.resources_refusal(config, torch.bfloat16, 90) is None
    reason = cost_triton.resources_refusal(config._replace(stages=8), torch.bfloat16, 90)
    assert reason == "its tiles take 262144 bytes of shared memory, sm_90 has 232448"


def test_without_triton_or_with_an_old_device(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "describe", lambda key: H200)
    monkeypatch.setattr(gpu, "refusal", lambda key: "no kernels in this build")
    on_gpu = spec(device="cuda:0")
    for reason in ("Triton is not installed", "the device's capability 7.5 is below 8.0"):
        monkeypatch.setattr(_triton, "applicable", lambda *_, reason=reason: reason)
        entries = [c for c in select_cuda.candidates(on_gpu) if c.backend == "triton"]
        assert [(c.name, c.reason) for c in entries] == [(GEMM, reason), (DEPTHWISE, reason)]


def leaves(*sizes: tuple[int, ...], last: bool = False) -> list[Tensor]:
    torch.manual_seed(3)
    made = [torch.randn(size) for size in sizes]
    if last:
        made = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]
    return [t.requires_grad_() for t in made]


def second_order(algo: str, tensors: list[Tensor], **moves: Any) -> list[Tensor]:
    y = fastconv.conv2d(*tensors, algo=algo, **moves)
    first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
    total = sum(g.square().sum() for g in first)
    return [y, *first, *torch.autograd.grad(total, tensors)]


@pytest.mark.parametrize(
    "algo, sizes, moves",
    [
        (GEMM, ((1, 6, 5, 4), (4, 3, 3, 3), (4,)), {"stride": 2, "padding": 1, "groups": 2}),
        (DEPTHWISE, ((1, 2, 3, 3), (2, 1, 2, 3), (2,)), {"padding": 1, "groups": 2}),
    ],
)
@pytest.mark.parametrize("last", (False, True), ids=("nchw", "nhwc"))
def test_derivatives_of_two_orders(interpreted, monkeypatch, algo, sizes, moves, last) -> None:
    tensors = leaves(*sizes, last=last)
    ran = []
    for module in (conv, depthwise):
        launch = module.launch
        monkeypatch.setattr(
            module, "launch", lambda *a, launch=launch: (ran.append(a[0].kernel), launch(*a))
        )
    found = second_order(algo, tensors, **moves)
    for direction in ("fprop", "dgrad", "wgrad"):
        assert [n for n in ran if n.startswith(f"conv_{direction}_")], (direction, ran)
    expected = second_order("direct", tensors, **moves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5 * float(b.detach().abs().max()))


@pytest.mark.parametrize("name", select_triton.NAMES)
def test_every_configuration_can_be_forced(interpreted, name: str) -> None:
    """In the dtype and layout that it is for, each direction that it has."""
    last = not name.endswith(("c1_w4", "c1_w2"))
    C = 64 if name.endswith("descriptor") else 8 if last else 2
    groups = C if name.startswith(DEPTHWISE) else 1
    sizes = ((1, C, 4, 3), (C, C // groups, 3, 3), (1, C, 4, 3))
    dtype = torch.float32 if "x16_" in name else torch.bfloat16
    x, w, dy = (
        t.detach().to(dtype).contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
        for t in leaves(*sizes)
    )  # fmt: skip
    geometry = ([1, 1], [1, 1], [1, 1], groups)
    expected = torch.ops.aten.convolution_backward(
        dy.float(), x.float(), w.float(), None, *geometry[:3], False, [0, 0], groups, [True] * 3
    )
    results = {"fprop": (fastconv.ops.conv_fprop(x, w, None, *geometry, name), None)}
    config = select_triton.config_of(name)
    results["dgrad"] = fastconv.ops.conv_dgrad(dy, w, x.shape, *geometry, last, name), expected[0]
    if not getattr(config, "persistent", False):
        dw = fastconv.ops.conv_wgrad(dy, x, w.shape, *geometry, last, name)
        results["wgrad"] = dw, expected[1]
    y = F.conv2d(x.float(), w.float(), None, *geometry)
    for found, exact in results.values():
        exact = y if exact is None else exact
        # Of the largest, since the interpreter cuts bfloat16 off instead of rounding it.
        worst = float(exact.abs().max())
        torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=2e-2 * worst)


def bn(K: int) -> list[Tensor]:
    torch.manual_seed(5)
    return [torch.rand(K) + 0.5, torch.randn(K), torch.randn(K), torch.rand(K) + 0.5]


@pytest.mark.parametrize("algo", (GEMM, DEPTHWISE))
def test_conv_bn_relu(interpreted, algo: str) -> None:
    groups = 4 if algo == DEPTHWISE else 1
    (x, w) = leaves((2, 4, 4, 5), (4, 4 // groups, 3, 3), last=True)
    gamma, beta, mean, var = bn(4)
    residual = torch.randn(2, 4, 4, 5)
    moves = {"padding": 1, "groups": groups}
    with torch.no_grad():
        z = fastconv.conv_bn_relu(
            x, w, None, gamma, beta, mean, var, residual=residual, algo=algo, **moves
        )
    y = F.batch_norm(F.conv2d(x, w, None, **moves), mean, var, gamma, beta)
    torch.testing.assert_close(z, F.relu(y + residual), rtol=1e-4, atol=1e-4)
    gamma.requires_grad_()
    beta.requires_grad_()
    stats = [mean.clone(), var.clone()]
    z = fastconv.conv_bn_relu(x, w, None, gamma, beta, *stats, training=True, algo=algo, **moves)
    found = torch.autograd.grad(z.square().sum(), (x, w, gamma, beta))
    theirs = [mean.clone(), var.clone()]
    y = F.relu(F.batch_norm(F.conv2d(x, w, None, **moves), *theirs, gamma, beta, training=True))
    expected = torch.autograd.grad(y.square().sum(), (x, w, gamma, beta))
    torch.testing.assert_close(z, y, rtol=1e-4, atol=1e-4)
    for a, b in zip((*found, *stats), (*expected, *theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_inception(interpreted) -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 4, 5, 5)
    sizes = ((3, 4, 1, 1), (2, 4, 1, 1), (4, 2, 3, 3), (2, 4, 1, 1), (2, 2, 5, 5), (3, 4, 1, 1))
    weights = [torch.randn(size) for size in sizes]
    biases = [torch.randn(size[0]) for size in sizes]
    found = fastconv.inception(x, weights, biases, algo=GEMM)
    expected = fastconv.inception(x, weights, biases, algo="direct")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_compiled_graphs(interpreted) -> None:
    """The recorded op chooses when the graph runs, and calls the launcher."""
    x, w, b = leaves((1, 4, 4, 4), (4, 4, 3, 3), (4,))

    def step(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return fastconv.conv2d(x, w, b, padding=1, algo=GEMM).sin()

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    found = compiled(x, w, b)
    grads = torch.autograd.grad(found.sum(), (x, w, b))
    y = F.conv2d(x, w, b, padding=1).sin()
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-4)
    for a, e in zip(grads, torch.autograd.grad(y.sum(), (x, w, b)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_precision_reaches_the_kernel(interpreted, monkeypatch) -> None:
    seen = []
    launch = conv.launch

    def spy(step: Any, tensors: Any) -> None:
        seen.append(step.constants.get("PRECISION"))
        launch(step, tensors)

    monkeypatch.setattr(conv, "launch", spy)
    x, w = torch.randn(1, 4, 4, 4), torch.randn(4, 4, 1, 1)
    for precision in ("ieee", "tf32", "tf32x3", None):
        fastconv.conv2d(x, w, algo=GEMM, precision=precision)
    assert seen == ["ieee", "tf32", "tf32x3", "ieee"]
    for products in ("tf32", "tf32x3"):
        name = select_triton.at_precision(spec(products=products), f"{GEMM}/a", None)
        assert name == f"{GEMM}/a+{products}"
    half = spec(dtype=torch.bfloat16)
    assert select_triton.at_precision(half, f"{GEMM}/a", "tf32") == f"{GEMM}/a"


# The choice among configurations.


def chosen(**facts: Any) -> str:
    asked = spec(device="cuda:0", **facts)
    entries = [c for c in select_triton.candidates(asked) if c.reason is None]
    return min(entries, key=lambda c: c.cost).name


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "describe", lambda key: H200)
    monkeypatch.setattr(select_triton, "machine_refusal", lambda *_: None)
    monkeypatch.setattr("fastconv.trust.error_of", lambda *_: "")


def test_the_model_fits_tiles_to_problems(h200) -> None:
    wide = {"dtype": torch.bfloat16, "x": (32, 256, 28, 28), "w": (256, 256, 3, 3), "last": True}
    assert chosen(**wide).startswith(f"{GEMM}/128x")
    narrow = chosen(**{**wide, "x": (1, 64, 14, 14), "w": (32, 64, 3, 3)})
    assert narrow.partition("/")[2].partition("x")[0] == "64"
    depthwise_ = chosen(
        dtype=torch.bfloat16, x=(32, 256, 28, 28), w=(256, 1, 3, 3), groups=256, last=True
    )
    assert depthwise_.startswith(DEPTHWISE)
    exact = chosen(x=(8, 64, 28, 28), w=(64, 64, 3, 3))
    assert "64_w8_s3" not in exact  # of float32 such tiles do not fit


def test_the_model_is_quick_and_splits_what_is_long(h200) -> None:
    import time

    long = spec("wgrad", "cuda:0", torch.bfloat16, (64, 64, 56, 56), (64, 64, 3, 3), last=True)
    start = time.perf_counter()
    for batch in range(1, 21):
        asked = spec("wgrad", "cuda:0", torch.bfloat16, (batch, 64, 56, 56), (64, 64, 3, 3))
        select_triton.candidates(asked)
    assert (time.perf_counter() - start) / 20 < 20e-3  # 1 ms on an idle machine
    config = cost_triton.IMPLICIT_GEMM["64x64x64_w4_s4"]
    split = cost_triton.splits(long, config)
    assert 9 * split >= 200 and cost_triton.workspace(long, config) < 1 << 28
    assert cost_triton.splits(spec("wgrad", x=(1, 8, 4, 4), w=(8, 8, 3, 3)), config) == 1


def test_the_model_knows_copies_and_full_blocks() -> None:
    """Of a first layer's 147 products, 49 blocks of one tap's three channels would be full to a
    tenth; flattened, with a fourth channel, two thirds are of use."""
    first = {"dtype": torch.bfloat16, "x": (8, 3, 56, 56), "w": (64, 3, 7, 7)}
    config = cost_triton.IMPLICIT_GEMM["64x64x32_w4_s4"]
    for last in (False, True):
        asked = spec(**first, last=last)
        assert cost_triton.useful_fraction(asked, config) == 147 / 224
        scratch = (8 * 56 * 56 * 4 + 64 * 49 * 4) * 2
        assert cost_triton.workspace(asked, config) == scratch
    nchw, nhwc = (
        spec(dtype=torch.bfloat16, x=(32, 256, 28, 28), w=(256, 256, 3, 3), last=last)
        for last in (False, True)
    )
    costs = [cost_triton.implicit_gemm_seconds(s, config, "ieee", 90, 132) for s in (nchw, nhwc)]
    moved = 2 * 2 * 32 * 256 * 28 * 28
    assert costs[0] - costs[1] > moved / 4e12
    assert cost_triton.workspace(nchw, config) - cost_triton.workspace(nhwc, config) == moved // 2
    # Without a copy, each load of one element costs: 15 x 15 pixels are no whole vectors.
    even, odd = (
        replace(spec(dtype=torch.bfloat16, x=(64, 256, n, n), w=(64, 256, 1, 1)), padding=(0, 0))
        for n in (16, 15)
    )
    even, odd = (cost_triton.implicit_gemm_seconds(s, config, "ieee", 90, 132) for s in (even, odd))
    assert odd > even


@pytest.mark.cuda_kernels
def test_auto_takes_one_only_after_its_check(h200, monkeypatch) -> None:
    """And those of C++ before it."""
    monkeypatch.setattr(gpu, "refusal", lambda key: None)
    monkeypatch.setattr(select_cuda, "free_bytes", lambda key: 1 << 37)
    asked = spec(device="cuda:0", dtype=torch.bfloat16, last=True)
    entries = select_cuda.candidates(asked)
    costs = {"cuda": 2e-6, "triton": 1e-6, select.ATEN: 1.0}
    entries = [select.Candidate(c.name, c.backend, c.reason, costs[c.backend], 0) for c in entries]
    tried: list[str] = []

    def only(kind: str) -> str:
        tried.clear()

        def admit(device: str, name: str) -> bool:
            tried.append(name)
            return name.startswith(kind)

        monkeypatch.setattr("fastconv.trust.admit", admit)
        return select_cuda.cheapest(asked, entries)

    assert only("triton").startswith(GEMM)
    assert not tried[0].startswith("triton") and tried[-1].endswith(" fprop bfloat16 nhwc")
    assert only("nothing") == select.ATEN
    assert not only("").startswith("triton")


def test_selftest_of_a_configuration(interpreted, monkeypatch) -> None:
    from fastconv import selftest, selftest_problems

    small = [selftest_problems._problem("3x3", (1, 5, 4, 3), (4, 5, 3, 3), padding=1)]
    monkeypatch.setattr(selftest_triton, "PROBLEMS", small)
    for name in (
        f"{GEMM}/64x64x32_w4_s4 fprop float32 nhwc tf32",
        f"{GEMM}/64x64x32_w4_s4 wgrad float16 nchw",
    ):
        instance = selftest_triton.parsed(name)
        assert instance is not None and instance.name == name
        outcome = check(instance, torch.device("cpu"), 1)
        assert outcome.passed and outcome.problems == 1, outcome
    launch = selftest.launch
    monkeypatch.setattr(selftest, "launch", lambda *a: launch(*a) + 0.1)
    assert not check(instance, torch.device("cpu"), 1).passed
    monkeypatch.setattr(selftest, "launch", launch)
    fprop = selftest_triton.parsed(f"{GEMM}/64x64x32_w4_s4 fprop float32 nchw")
    stats = selftest_triton.TritonInstance.launch_stats
    with monkeypatch.context() as patch:
        patch.setattr(
            selftest_triton.TritonInstance,
            "launch_stats",
            lambda *a: [t + 0.1 for t in stats(*a)],
        )
        assert "statistics" in check(fprop, torch.device("cpu"), 1).error

    class OutOfResources(Exception):
        """As Triton's, which is no RuntimeError."""

    def fails(*_: Any) -> None:
        raise OutOfResources("shared memory")

    monkeypatch.setattr(conv, "launch", fails)
    outcome = check(instance, torch.device("cpu"), 1)
    assert outcome.error == "3x3: OutOfResources: shared memory" and not outcome.passed
    assert selftest_triton.parsed("im2col/x") is None
    assert {i.direction for i in selftest_triton.instances("cpu")} == {"fprop", "dgrad", "wgrad"}
