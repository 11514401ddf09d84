"""What the benchmark does on a GPU, on CPU tensors: its reference, its timer, its lists, its
report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import (
    ceilings,
    conv_problem,
    gpu_check,
    gpu_layers,
    gpu_report,
    gpu_stages,
    gpu_timing,
    lists,
    measure,
    providers,
    run,
)
from bench.conv_problem import ConvProblem
from bench.gpu_layers import timed_layers
from bench.gpu_stages import PASSED
from bench.providers import PYTORCH
from bench.timing import rate_samples
from fastconv import _C, gpu, select, select_triton, trust
from fastconv.problem import ConvSpec


def row(contender: str, ms: float | None, ran: str = "", status: str = "ok", problem: str = "p"):
    times = {"ms": {"median": ms, "p20": ms, "p80": ms, "samples": 9}, "floor_ms": 0.5}
    return {
        "problem": problem,
        "direction": "fprop",
        "arithmetic": "bfloat16",
        "contender": contender,
        "ran": ran or contender.rpartition("@")[0],
        "status": status,
        "excess": 0.5,
        **(times if ms else {}),
    }


def test_report_of_a_benchmark() -> None:
    rows = [
        row("eager@nchw", 8.0),
        row("eager@channels_last", 4.0),
        row("auto@nchw", 3.0, ran="aten"),
        row("auto@channels_last", 2.0, ran="im2col/a"),
        row("im2col@channels_last", 1.0, ran="im2col/b"),
        row("direct@nchw", None, status="wrong"),
        row("direct_plain@nchw", None, status="not applicable"),
    ]
    compiled = [row("compile@channels_last", 3.0)]
    rates = {"triad_bytes_per_s": 4e12, "gemm_bfloat16_flops": 7e14, "gemm_float32_flops": 5e13,
                "gemm_tf32_flops": 3e14, "empty_call_ms": 0.003}  # fmt: skip
    parts = [{"ceilings": rates, "rows": rows}, {"rows": compiled}]
    outcomes = [{"instance": "im2col/a", "error": ""}, {"instance": "direct/b", "error": "off"}]
    stage = gpu_stages.Result("selftest", PASSED, True).as_dict()
    doc = gpu_report.document(False, {"device": "d"}, [stage], parts, {"outcomes": outcomes})
    (p,) = doc["problems"]
    assert (p["eager_nchw"], p["eager_channels_last"], p["compile"]) == (8.0, 4.0, 3.0)
    assert (p["ours"], p["ours_ran"]) == (1.0, "im2col/b@channels_last")
    assert (p["auto"], p["auto_ran"], p["ratio"], p["auto_ratio"]) == (2.0, "im2col/a", 3.0, 1.5)
    assert p["of_floor"] == 0.5 and p["wrong"] == 1
    assert doc["overall"][0]["ratio"] == pytest.approx(3.0)
    assert doc["selftest"]["failed"] == ["direct/b: off"]
    page = gpu_report.markdown(doc)
    assert "The self-test was ended after 2 instances." in page
    whole = {"outcomes": outcomes, "complete": True}
    doc = gpu_report.document(False, {"device": "d"}, [stage], parts, whole)
    assert "The self-test was ended" not in gpu_report.markdown(doc)
    assert "im2col/b@channels_last" in page and "direct@nchw: wrong" in page
    assert "direct/b: off" in page and "triad 4 TB/s" in page
    assert "ratio 3.00, auto 1.50" in gpu_report.table(doc)


def test_json_has_no_infinities(tmp_path: Path) -> None:
    doc = {"rows": [{"excess": float("inf")}], "machine": {"x": float("nan")}, "none": []}
    gpu_report.write_json(doc, tmp_path / "doc.json")
    assert json.loads((tmp_path / "doc.json").read_text()) == {
        "rows": [{"excess": None}],
        "machine": {"x": None},
        "none": [],
    }


def test_the_list_of_layers() -> None:
    layers = timed_layers()
    assert len(layers) >= 25 and len(set(layers)) == len(layers)
    assert {"resnet50", "vgg16", "googlenet", "mobilenet_v2", "c3d"} <= {
        t.layer.net for t in layers
    }
    assert sum(t.gradients for t in layers) >= 8 and sum(t.compiled for t in layers) >= 8
    for item in layers:
        assert min(item.layer.output_size(item.batch)) >= 1


def test_lists_go_by_value() -> None:
    """16-bit fprop of all layers first; TF32, once and in three products, of the layers whose
    gradients are timed, last."""
    work = list(gpu_layers.work("gpu"))
    count = len(timed_layers())
    assert [w[1:3] for w in work[: 2 * count : count]] == [
        ("fprop", "bfloat16"),
        ("fprop", "float32"),
    ]
    some = {each.layer for each in work if each.direction == "dgrad"}
    for rounded in ("tf32", "tf32x3"):
        assert {each.layer for each in work if each.arithmetic == rounded} == some
    assert len(work) == len(set(work)) == 2 * count + 4 * len(some) + 2 * len(some)
    compiled = set(gpu_layers.work("gpu_compiled"))
    assert compiled < set(work) and all(not each.arithmetic.startswith("tf32") for each in compiled)
    assert len(lists.layers("gpu")) == count and not lists.layers("gpu", ["pool"])
    assert {layer.batch for layer in lists.layers("gpu")} == {1, 8, 32}


def test_rows_of_the_suite_become_the_reports() -> None:
    common = {"net": "n", "layer": "l", "batch": 32, "direction": "fprop", "precision": "tf32"}
    common |= {"layout": "channels_last", "dtype": "float32", "status": "ok", "error": 0.5}
    common |= {"ms": {"median": 2.0}, "floor_ms": 1.0}
    rows = [
        common | {"contender": "pytorch", "ran": "pytorch"},
        common | {"contender": "copy", "ran": "copy"},
        common | {"contender": "auto", "ran": "aten+tf32"},
        common
        | {"contender": "im2col", "ran": "im2col/a", "layout": "nchw", "ms": {"median": 1.0}},
    ]
    rates = {"triad_bytes_per_s": 4e12, "empty_call_ms": 0.003}
    part = gpu_report.benchmark({"rows": rows, "settings": {"ceilings": rates}})
    assert [r["contender"] for r in part["rows"]] == [
        "eager@channels_last",
        "auto@channels_last",
        "im2col@nchw",
    ]
    assert part["ceilings"] == rates
    (p,) = gpu_report.document(False, {}, [], [part], None)["problems"]
    assert p["problem"] == "n l N=32 fprop tf32" and p["arithmetic"] == "tf32"
    assert (p["eager_channels_last"], p["auto_ran"], p["ours_ran"]) == (
        2.0,
        "aten",
        "im2col/a@nchw",
    )
    assert (p["ratio"], p["of_floor"]) == (2.0, 1.0)


def problems_by_definition(layer, direction: str, dtype: torch.dtype = torch.float32):
    return conv_problem.problems_of(
        layer, layer.batch, [direction], ["nchw"], dtype, reference="definition"
    )


@pytest.mark.parametrize("direction", [*conv_problem.PARTS, "forward+backward"])
@pytest.mark.parametrize("layer", lists.layers("gpu_rehearsal"), ids=lambda layer: layer.label)
def test_the_definition_as_the_reference(layer, direction: str) -> None:
    """Right answers are within the tests' tolerances, and each of them sees damage."""
    (problem,) = problems_by_definition(layer, direction)
    contenders = [providers.provider(name) for name in (PYTORCH, "direct", "im2col")]
    rows = measure.measure(problem, contenders, 0.001)
    assert [r["status"] for r in rows] == ["ok"] * 3
    assert all(0 <= r["error"] <= 1 == r["tolerance"] for r in rows[1:])
    right = contenders[1].prepare(problem)()
    for damage in (
        lambda y: y * 1.001,
        lambda y: torch.where(y == y.max(), y + 1, y),
        lambda y: torch.where(y == y.max(), torch.nan, y),
        lambda y: y[:-1],
    ):
        wrong = (*right[:-1], damage(right[-1])) if isinstance(right, tuple) else damage(right)
        assert not problem.judge(wrong, "direct").ok
    # PyTorch may round as it likes, but a NaN is none of a result.
    off = (*right[:-1], right[-1] * 1.001) if isinstance(right, tuple) else right * 1.001
    assert problem.judge(off, PYTORCH).ok and not problem.judge(off, "mine").ok
    lost = (*right[:-1], right[-1] * torch.nan) if isinstance(right, tuple) else right * torch.nan
    assert not problem.judge(lost, PYTORCH).ok


@pytest.mark.parametrize("epilogue", ["bias", "bias+relu"])
def test_the_definition_with_an_epilogue(epilogue: str) -> None:
    layer = lists.layers("gpu_rehearsal")[0]
    where = (layer, layer.batch, ["fprop"], ["nchw"], torch.float32, "cpu", epilogue)
    (problem,) = conv_problem.problems_of(*where, reference="definition")
    direct = providers.provider("direct")
    assert problem.judge(direct.prepare(problem)(), "direct").ok
    plain = replace(problem, bias=None, epilogue="none")
    assert not problem.judge(direct.prepare(plain)(), "direct").ok


class PretendedCuda:
    """The calls of torch.cuda that the timer makes, in a log; time passes by one per replay."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.clock = 0.0
        self.refuses_capture = False

    @contextmanager
    def graph(self, graph) -> Iterator[None]:
        if self.refuses_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.log.append("capture")
        yield
        self.log.append("captured")

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = cuda.clock
                cuda.log.append("record")

            def elapsed_time(self, other: Event) -> float:
                return other.at - self.at

        class Graph:
            def replay(self) -> None:
                cuda.clock += 1.0
                cuda.log.append("replay")

        stream = SimpleNamespace(wait_stream=lambda other: None)
        for name, value in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": self.graph,
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda s: nullcontext(),
            "synchronize": lambda: self.log.append("wait"),
            "_sleep": lambda cycles: self.log.append("pause"),
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(gpu_timing.CudaTimer, "device", "cpu")
        patch.setattr(gpu_timing, "FLUSH_BYTES", 64)


@pytest.mark.parametrize("capturable", [True, False])
def test_cuda_timer(capturable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Warmed up outside the capture; a sample has nothing but the call between its events."""
    cuda = PretendedCuda()
    cuda.refuses_capture = not capturable
    cuda.patch(monkeypatch)

    def run() -> None:
        cuda.clock += 3.0
        cuda.log.append("run")

    timer = gpu_timing.CudaTimer()
    ready = {"a": timer.prepare("a", run), "slow": timer.once("slow", run)}
    if capturable:
        assert cuda.log == ["run", "run", "wait", "capture", "run", "captured"]
        assert timer.how == {"a": "graph", "slow": "launches (slow)"}
    else:
        assert cuda.log == ["run", "run", "wait", "wait"]
        assert timer.how["a"].startswith("launches (operation not permitted")
    cuda.log.clear()
    timer.flush.fill_(1)
    assert timer.samples({"a": ready["a"]}, 1) == {"a": [1.0 if capturable else 3.0]}
    call = ["record", "replay", "record"] if capturable else ["pause", "record", "run", "record"]
    assert cuda.log == [*call, "wait"] and not timer.flush.any()
    found = gpu_timing.timings(timer, ready, seconds=0.1)
    assert found["slow"].median == 3.0 and found["slow"].samples >= gpu_timing.MIN_SAMPLES
    # What takes longer than all of its time is sampled once.
    assert gpu_timing.timings(timer, ready, seconds=0.002)["slow"].samples == 1
    assert timer.rate_samples(run, 4) == [3.0] * gpu_timing.BATCHES


def test_ceilings_and_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every arithmetic that is run, and on a GPU what an empty call takes."""
    items = [
        run.Work(layer, layer.batch, ["fprop"], "float32", precision)
        for layer in lists.layers("gpu_rehearsal")
        for precision in ("ieee", "tf32")
    ]
    options = SimpleNamespace(work=items, device="cpu")
    found = run.measured_rates(options, rate_samples)
    names = {"triad_bytes_per_s", "gemm_float32_flops", "gemm_tf32_flops"}
    assert set(found) == names and all(value > 0 for value in found.values())
    cuda = PretendedCuda()
    cuda.patch(monkeypatch)
    monkeypatch.setattr(ceilings, "measured", lambda samples, device, kinds, small: {"kinds": 1.0})
    monkeypatch.setattr(run.torch, "zeros", lambda n, device: torch.ones(n))
    options.device = "cuda"
    assert run.measured_rates(options, rate_samples) == {"kinds": 1.0, "empty_call_ms": 1.0}
    rates = {"triad_bytes_per_s": 4e12, "gemm_bfloat16_flops": 8e14}
    assert ceilings.floor_of(8e11, 4e9, "bfloat16", rates) == pytest.approx(1.0)
    assert ceilings.floor_of(8e12, 4e9, "bfloat16", rates) == pytest.approx(10.0)
    assert ceilings.floor_of(8e12, 4e9, "float64", rates) == pytest.approx(1.0)


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["quick", "slow"])
def test_slow_calls_are_not_captured(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = PretendedCuda()
    cuda.patch(monkeypatch)
    monkeypatch.setattr(run.time, "monotonic", iter([0.0, seconds]).__next__)
    timer, _ = run._clock("cuda")
    found = timer({"a": lambda: cuda.log.append("run")}, 0.001, 0)
    assert ("capture" in cuda.log) == (seconds == 0.0) and set(found) == {"a"}


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_the_compiled_contender_traces_whole(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the search would see it, with the graph run as it is."""
    whole = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(providers.torch, "compile", lambda f, mode: whole(f))
    for layer in lists.layers("gpu_rehearsal"):
        (problem,) = problems_by_definition(layer, direction)
        result = providers.provider("compile").prepare(problem)()
        assert problem.judge(result, "im2col").ok  # as right as one of ours


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An H200 as far as cost models ask."""
    if not _C.cuda_instances():
        pytest.skip("this build has no CUDA kernels")
    monkeypatch.setattr(gpu, "describe", lambda key: gpu.Gpu("NVIDIA H200", 90, 132, 13000))
    monkeypatch.setattr(gpu, "refusal", lambda key: None)
    monkeypatch.setattr(select_triton, "machine_refusal", lambda device, dtype: "pretended")
    monkeypatch.setattr(trust, "error_of", lambda device, name: None)
    select.forget()
    yield
    select.forget()


def test_a_named_algorithm_runs_its_cheapest_instance(pretended, monkeypatch) -> None:
    """What the benchmark's contenders are called by; whether it is trusted is not asked."""

    def spec(products: str, **other) -> ConvSpec:
        values = {"direction": "fprop", "dtype": torch.float32, "channels_last": False, **other}
        return ConvSpec(
            device="cuda:0",
            input_size=(8, 64, 28, 28),
            weight_size=(64, 64, 3, 3),
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            groups=1,
            products=products,
            **values,
        )

    names = {f"{row[0]}/{row[1]}" for row in _C.cuda_instances()}
    for algorithm in ("direct", "direct_plain", "im2col"):
        name = select.resolve(spec("ieee"), algorithm)
        assert name in names and name.startswith(algorithm + "/")
        assert gpu_check.products_of(name) == "ieee"
    # Where tensor cores are far ahead of FMA.
    monkeypatch.setattr(gpu, "describe", lambda key: gpu.Gpu("NVIDIA A100", 80, 108, 13000))
    for products in ("tf32x3", "tf32"):
        name = select.resolve(spec(products, channels_last=True), "im2col")
        assert gpu_check.products_of(name) == products
    with pytest.raises(RuntimeError, match="does not apply"):
        select.resolve(spec("ieee", dtype=torch.float64), "im2col")


def test_every_instance_of_a_problem() -> None:
    """Those of its direction, dtype, layout and arithmetic."""
    layer = lists.layers("gpu_rehearsal")[0]
    found: dict[tuple, list[str]] = {}
    for direction in conv_problem.PARTS:
        for layout in ("nchw", "channels_last"):
            (problem,) = conv_problem.problems_of(layer, 2, [direction], [layout], torch.float32)
            for products in ("ieee", "tf32x3", "tf32"):
                found[direction, layout, products] = providers.instances_of(problem, products)
    names = [name for some in found.values() for name in some]
    float32 = [f"{r[0]}/{r[1]}" for r in _C.cuda_instances() if r[3].name == "float32"]
    assert sorted(names) == sorted(float32)
    assert all(
        gpu_check.products_of(name) == key[2] for key, some in found.items() for name in some
    )
    assert isinstance(problem, ConvProblem) and all(
        len(set(some)) == len(some) for some in found.values()
    )
