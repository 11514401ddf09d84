"""The GPU benchmark on CPU tensors: right before timed, resumed after a crash, and its report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import (
    ceilings,
    gpu_bench,
    gpu_check,
    gpu_contenders,
    gpu_report,
    gpu_stages,
    gpu_timing,
)
from bench.gpu_layers import rehearsed_layers, timed_layers
from bench.gpu_stages import PASSED
from fastconv import _C, gpu
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


def bench(tmp_path: Path) -> gpu_bench.Bench:
    state = gpu_bench.State(tmp_path / "b.json", "cpu")
    state.data["ceilings"] = {"triad_bytes_per_s": 1e9, "gemm_float32_flops": 1e9}
    return gpu_bench.Bench(state, gpu_bench.HostTimer(), time.monotonic() + 100)


def test_a_wrong_answer_is_reported_and_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = gpu_contenders.call

    def wrong(name, problem):
        run, ran = call(name, problem)
        return ((lambda: run() * 1.001) if name == "im2col@nchw" else run), ran

    monkeypatch.setattr(gpu_contenders, "call", wrong)
    b = bench(tmp_path)
    names = ["eager@nchw", "im2col@nchw", "direct@nchw", "no_such@nchw"]
    b.measure(rehearsed_layers()[0], "fprop", "float32", names)
    rows = {r["contender"]: r for r in b.state.data["rows"]}
    assert rows["im2col@nchw"]["status"] == "wrong" and "ms" not in rows["im2col@nchw"]
    assert rows["direct@nchw"]["status"] == "ok" and rows["direct@nchw"]["ms"]["median"] > 0
    assert rows["no_such@nchw"]["status"] == "error" and "no_such" in rows["no_such@nchw"]["reason"]
    assert [r["contender"] for r in gpu_bench.wrong(b.state.data["rows"])] == [
        "im2col@nchw",
        "no_such@nchw",
    ]


def test_a_lost_device_restarts_without_the_culprit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows so far stay, the culprit is left out, and other errors are no reason to restart."""
    b = bench(tmp_path)
    layer = rehearsed_layers()[0]
    b.measure(layer, "fprop", "float32", ["eager@nchw"])
    call = gpu_contenders.call

    def lost(name, problem):
        if name == "direct@nchw":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return call(name, problem)

    monkeypatch.setattr(gpu_contenders, "call", lost)
    again = []
    monkeypatch.setattr(gpu_bench.os, "execv", lambda *args: again.append(args))
    with pytest.raises(RuntimeError, match="illegal") as error:
        b.measure(layer, "dgrad", "float32", ["eager@nchw", "direct@nchw"])
    gpu_bench.restarted(b.state, error.value)
    assert len(again) == 1
    resumed = gpu_bench.State(tmp_path / "b.json", "cpu")
    key = gpu_bench.key_of(layer, "dgrad", "float32")
    assert resumed.data["banned"] == [[key, "direct@nchw"]] and len(resumed.data["rows"]) == 1
    b = gpu_bench.Bench(resumed, gpu_bench.HostTimer(), time.monotonic() + 100)
    b.measure(layer, "dgrad", "float32", ["eager@nchw", "direct@nchw"])
    assert [r["status"] for r in resumed.data["rows"]] == ["ok", "ok", "error"]
    with pytest.raises(RuntimeError, match="no device was lost"):
        gpu_bench.restarted(resumed, RuntimeError("no device was lost"))
    assert len(again) == 1


def test_time_that_is_up_is_reported(tmp_path: Path) -> None:
    b = bench(tmp_path)
    b.deadline = time.monotonic() - 1
    assert b.run(rehearsed_layers(), compiled=False) == len(
        list(gpu_bench.work(rehearsed_layers()))
    )
    assert b.state.data["rows"] == []


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


def test_ceilings_and_floor() -> None:
    found = gpu_bench.measured_ceilings(gpu_timing.HostTimer())
    assert all(value > 0 for value in found.values())
    rates = {"triad_bytes_per_s": 4e12, "gemm_bfloat16_flops": 8e14}
    assert ceilings.floor_of(8e11, 4e9, "bfloat16", rates) == pytest.approx(1.0)
    assert ceilings.floor_of(8e12, 4e9, "bfloat16", rates) == pytest.approx(10.0)
    assert ceilings.floor_of(8e12, 4e9, "float64", rates) == pytest.approx(1.0)


@pytest.mark.parametrize("direction", ["fprop", "dgrad", "wgrad"])
def test_the_compiled_contender_traces_whole(
    direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the search would see it, with the graph run as it is."""
    whole = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(gpu_contenders.torch, "compile", lambda f, mode: whole(f))
    for item in rehearsed_layers():
        problem = gpu_bench.make_problem(item, direction, "float32", "cpu")
        with torch.inference_mode():
            run, ran = gpu_contenders.call(gpu_contenders.COMPILED, problem)
            answer = gpu_check.exact(problem)
            assert gpu_check.excess(run(), answer, ran, problem, False) <= 1.0


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 as far as cost models ask."""
    if not _C.cuda_instances():
        pytest.skip("this build has no CUDA kernels")
    monkeypatch.setattr(gpu, "describe", lambda key: gpu.Gpu("NVIDIA H200", 90, 132, 13000))


def test_the_cheapest_instance_of_an_algorithm(pretended) -> None:
    def spec(tf32: bool, **other) -> ConvSpec:
        values = {"direction": "fprop", "dtype": torch.float32, "channels_last": False, **other}
        return ConvSpec(
            device="cuda:0",
            input_size=(8, 64, 28, 28),
            weight_size=(64, 64, 3, 3),
            stride=(1, 1),
            padding=(1, 1),
            dilation=(1, 1),
            groups=1,
            tf32=tf32,
            **values,
        )

    names = {f"{row[0]}/{row[1]}" for row in _C.cuda_instances()}
    for algorithm in ("direct", "direct_plain", "im2col"):
        name = gpu_contenders.cheapest_instance(algorithm, spec(False))
        assert name in names and name.startswith(algorithm + "/")
        assert name not in gpu_contenders.tf32_kernels()
    rounded = gpu_contenders.cheapest_instance("im2col", spec(True))
    assert rounded in gpu_contenders.tf32_kernels()
    with pytest.raises(RuntimeError, match="does not apply"):
        gpu_contenders.cheapest_instance("im2col", spec(False, dtype=torch.float64))
