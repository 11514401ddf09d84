"""Which algorithm a pooling takes: names, reasons, explain, and the other ways into a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from layers_check import fastconv_operators
from pool_check import DTYPES, SHAPES
from torch import Tensor

import fastconv
from fastconv import catalogue, gpu, select_pool, select_pool_cuda, trust
from fastconv.select_pool import FUNCTIONS

H200 = gpu.Gpu("Pretend H200", 90, 132, 13000)


def unpoolable(rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    x = torch.rand(2, 3, *(4, 6, 8)[:rank]).to(dtype)
    return *getattr(F, f"max_pool{rank}d")(x, 2, return_indices=True), 2


def arguments(function: str) -> tuple[Any, ...]:
    """A small input and what the function needs besides."""
    rank = int(function[-2]) if function[-1] == "d" else 2
    x = torch.rand(SHAPES[rank])[:, :4] if function == "maxout" else torch.rand(SHAPES[rank])
    if function.startswith("max_unpool"):
        return unpoolable(rank, torch.float32)
    return (x, 2, 2) if function.startswith("lp_pool") else (x, 2)


def kernels(function: str, algo: str) -> set[str]:
    """The ops of ours that a call runs."""
    return fastconv_operators(lambda: getattr(fastconv, function)(*arguments(function), algo=algo))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_takes_a_name(function: str) -> None:
    call, args = getattr(fastconv, function), arguments(function)
    assert kernels(function, "auto") and kernels(function, "direct")
    assert not kernels(function, "aten")
    results = []
    for algo in ("auto", "direct", "aten"):
        torch.manual_seed(1)
        results.append(call(*args, algo=algo))
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
    with pytest.raises(ValueError, match=r"unknown pooling algorithm 'fastest'.*direct, triton"):
        call(*args, algo="fastest")
    with pytest.raises(ValueError, match="must be a string"):
        call(*args, algo=3)
    with pytest.raises(RuntimeError, match=r"algorithm 'triton' does not apply: .*Triton"):
        call(*args, algo="triton")
    assert function in fastconv.__all__


def test_a_named_algorithm_gives_the_reason_and_pytorchs_errors_come_first() -> None:
    x = torch.randn(2, 3, 8, 8)
    refused = [
        (lambda: fastconv.avg_pool2d(x.long(), 2, algo="direct"), "dtype must be"),
        (lambda: fastconv.max_pool2d(x.to("meta"), 2, algo="direct"), "a tensor is on meta"),
        (lambda: fastconv.lp_pool2d(x, float("inf"), 2, algo="direct"), "the arguments"),
        (lambda: fastconv.adaptive_avg_pool2d(x, 0, algo="direct"), "the arguments"),
        (lambda: fastconv.max_pool2d(x.to_sparse(), 2, algo="direct"), None),
        (lambda: fastconv.max_pool2d(x, 2, padding=3, algo="direct"), None),
    ]
    for call, reason in refused:
        with pytest.raises((RuntimeError, NotImplementedError)) as caught:
            call()
        told = "does not apply: " in str(caught.value)
        assert told == (reason is not None), caught.value
        assert reason is None or reason in str(caught.value)
    with pytest.raises(RuntimeError, match="functorch transforms inside a compiled"):
        torch._dynamo.reset()
        torch.compile(
            torch.func.grad(lambda t: fastconv.max_pool2d(t, 2, algo="direct").sum()),
            backend="eager",
            fullgraph=True,
        )(x)


def test_explain() -> None:
    x = torch.randn(2, 3, 9, 8).to(memory_format=torch.channels_last)
    e = fastconv.explain("max_pool2d", x, 3, 2, 1)
    assert e.problem == "max_pool2d float32 cpu x 2x3x9x8 (3, 2, 1) channels_last"
    assert [c.direction for c in e.choices] == ["fprop", "dgrad"]
    choice = e["fprop"]
    assert (choice.chosen, choice.why) == ("direct", "ours applies")
    assert [row.name for row in choice.rows] == ["direct", "triton", "aten"]
    assert choice.rows[0].backend == "cpu" and "Triton" in choice.rows[1].reason
    assert "> direct  applies" in str(e)
    for function in FUNCTIONS:
        assert fastconv.explain(function, *arguments(function))["dgrad"].chosen == "direct"
    infinite = fastconv.explain("lp_pool2d", x, float("inf"), 3)["fprop"]
    assert (infinite.chosen, infinite.why) == ("aten", "none of ours applies")
    assert "not ones that our kernels take" in infinite.rows[0].reason
    assert len(fastconv.explain("max_pool2d", x.int(), 2).choices) == 1
    assert "asked for" in fastconv.explain("max_pool2d", x, 2, algo="aten")["fprop"].why
    with pytest.raises(ValueError, match=r"unknown pooling 'pool'; expected one of: max_pool1d"):
        fastconv.explain("pool", x, 2)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        fastconv.explain("max_pool2d", x, 3, 2, 7)
    with pytest.raises(RuntimeError, match="does not apply"):
        fastconv.explain("max_pool2d", x, 3, algo="triton")


def test_tables_name_every_function() -> None:
    rows = catalogue.operations_table().splitlines()
    for function in FUNCTIONS:
        assert sum(f"`{function}`" in row for row in rows) == 2
    assert any("`max_unpool2d`" in row and "| — | `aten` |" in row for row in rows)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | None]], None]:
    """CPU tensors pass for a GPU's, whose max pooling kernels have these outcomes of a check: empty
    for passed, None for unknown."""

    def install(outcomes: dict[str, str | None]) -> None:
        keys = [(op, torch.float32) for op in ("max_pool_fprop", "max_pool_dgrad")]
        monkeypatch.setattr(select_pool_cuda, "_refusals", {})
        monkeypatch.setattr(
            select_pool_cuda, "instances", lambda: {key: tuple(outcomes) for key in keys}
        )
        monkeypatch.setattr(gpu, "device_key", lambda d: "cuda:0")
        monkeypatch.setattr(gpu, "describe", lambda key: H200)
        monkeypatch.setattr(gpu, "refusal", lambda key: None)
        monkeypatch.setattr(trust, "capturing", lambda: False)
        monkeypatch.setattr(trust, "error_of", lambda device, name: outcomes[name])
        monkeypatch.setattr(trust, "admit", lambda device, name: outcomes[name] == "")

    return install


def test_on_cuda_trusted_kernels_run(pretend: Any) -> None:
    x = torch.randn(1, 2, 6, 6)
    pretend({"pool/a": "", "pool/b": ""})
    assert fastconv.explain("max_pool2d", x, 2)["fprop"].chosen == "direct"
    why = fastconv.explain("avg_pool2d", x, 2)["fprop"].rows[0].reason
    assert why == "this build has no CUDA kernel for sum_pool_fprop in float32"
    assert fastconv.explain("max_pool2d", x.int(), 2)["fprop"].chosen == "aten"
    compiled = torch.compile(lambda t: fastconv.max_pool2d(t, 2), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), F.max_pool2d(x, 2))


def test_on_cuda_a_failed_kernel_is_not_used(pretend: Any) -> None:
    x = torch.randn(1, 2, 6, 6)
    pretend({"pool/a": "", "pool/b": "wrong by 3"})
    assert fastconv.explain("max_pool2d", x, 2)["fprop"].chosen == "aten"
    with pytest.raises(RuntimeError, match=r"CUDA kernel pool/b failed its check.*wrong by 3"):
        fastconv.max_pool2d(x, 2, algo="direct")
    pretend({"pool/a": "", "pool/b": None})  # unknown, and could not be checked
    assert fastconv.explain("max_pool2d", x, 2)["fprop"].chosen == "aten"
    assert fastconv.explain("max_pool2d", x, 2, algo="direct")["fprop"].chosen == "direct"


def test_without_cuda_kernels_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device_key", lambda d: "cuda:0")
    monkeypatch.setattr(gpu, "refusal", lambda key: "built without CUDA kernels")
    for function in FUNCTIONS:
        assert not kernels(function, "auto")
        with pytest.raises(RuntimeError, match="built without CUDA kernels"):
            getattr(fastconv, function)(*arguments(function), algo="direct")


AUTOCAST = [
    *((f"{kind}_pool{rank}d", (2,)) for kind in ("max", "avg") for rank in (1, 2, 3)),
    *((f"lp_pool{rank}d", (2, 2)) for rank in (1, 2, 3)),
    *((f"adaptive_{kind}_pool{rank}d", (2,)) for kind in ("max", "avg") for rank in (1, 2, 3)),
    *((f"{kind}_pool{rank}d", (2, True)) for kind in ("adaptive_max",) for rank in (2, 3)),
    *((f"max_pool{rank}d", (2, None, 0, 1, False, True)) for rank in (1, 2, 3)),
    *((f"max_unpool{rank}d", None) for rank in (1, 2, 3)),
]


@pytest.mark.parametrize("function, args", AUTOCAST)
def test_autocast_gives_pytorchs_dtype_and_runs_ours(function: str, args: Any) -> None:
    rank = int(function[-2])
    for dtype in DTYPES:
        x = torch.rand(SHAPES[rank]).to(dtype)
        given = unpoolable(rank, dtype) if args is None else (x, *args)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            want = getattr(F, function)(*given)
            got = getattr(fastconv, function)(*given, algo="direct")
        if not isinstance(want, tuple):
            want, got = (want,), (got,)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


class Logged(Tensor):
    """A subclass that notes which functions are called on it."""

    calls: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_tensor_subclasses_see_the_public_function(function: str) -> None:
    x, *rest = arguments(function)
    Logged.calls.clear()
    torch.manual_seed(1)
    y = getattr(fastconv, function)(x.as_subclass(Logged), *rest, algo="direct")
    assert getattr(fastconv, function) in Logged.calls
    torch.manual_seed(1)
    assert torch.equal(y.as_subclass(Tensor), getattr(fastconv, function)(x, *rest))


def test_jit_trace_records_pytorchs_function() -> None:
    x = torch.rand(2, 4, 8, 8)
    for function in FUNCTIONS:
        if not function.endswith("2d") or function.startswith("max_unpool"):
            continue
        args = arguments(function)[1:]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.jit.trace(
                lambda t, f=function, a=args: getattr(fastconv, f)(t, *a), x, check_trace=False
            )
        assert "fastconv::" not in str(graph.graph)
        torch.manual_seed(1)
        want = getattr(fastconv, function)(x, *args)
        torch.manual_seed(1)
        torch.testing.assert_close(graph(x), want)


def test_names_are_checked_by_the_registry() -> None:
    assert select_pool.names() == ("direct", "triton", "aten")
    for name in (*select_pool.names(), "auto"):
        select_pool.check_name(name)
