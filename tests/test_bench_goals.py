"""The goals on a GPU, their problems and contenders, on the CPU: each goal is of a problem that is
run and can be missed; whole networks and the other contenders give right answers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import (
    ceilings,
    conv_problem,
    fused_problem,
    goals,
    gpu_layers,
    gpu_report,
    lists,
    measure,
    providers,
    run,
)
from bench.network_problem import NetworkLayer, extents, networks
from bench.problem import Once
from bench.problems import ConvLayer

ON_GPU = [goal for goal in goals.GOALS if "on a GPU" in goal.name]
NETWORKS = (
    (NetworkLayer("resnet50", 32, 4), "channels_last"),
    (NetworkLayer("vgg16", 32, 4), "nchw"),
)


def facts_of(item: gpu_layers.Listed) -> dict:
    """What a row says of a listed problem in channels_last, without its tensors."""
    layer, batch = item.layer, item.layer.batch
    dtype = torch.float32 if item.arithmetic.startswith("tf32") else getattr(torch, item.arithmetic)
    size = (layer.input_size(batch), layer.weight_size, layer.output_size(batch))
    x, w, dy = (torch.empty(s, device="meta", dtype=dtype) for s in size)
    shared = (layer, batch, item.direction, "channels_last", x, Once(tuple), w, dy)
    if isinstance(layer, fused_problem.FusedLayer):
        problem = fused_problem.FusedProblem(*shared, (x, x, x, x))
    else:
        precision = item.arithmetic if item.arithmetic.startswith("tf32") else "ieee"
        problem = conv_problem.ConvProblem(*shared, x, item.epilogue, precision)
    return problem.facts() | {"device": "cuda", "status": "ok"}


def rows_of_the_run() -> list[dict]:
    listed = [facts_of(item) for item in gpu_layers.goal_work()]
    whole = {"op": "network", "net": "networks", "batch": 32, "direction": "inference"}
    whole |= {"layout": "channels_last", "device": "cuda", "dtype": "bfloat16", "status": "ok"}
    return [*listed, *(whole | {"layer": layer.label} for layer in networks())]


def test_every_goal_has_problems_and_every_problem_a_goal() -> None:
    rows = rows_of_the_run()
    assert len(ON_GPU) == 7
    for goal in ON_GPU:
        assert sum(goal.where(row) for row in rows) >= 2, goal.name
    for row in rows:
        assert any(goal.where(row) for goal in ON_GPU), row


@pytest.mark.parametrize("goal", ON_GPU, ids=lambda g: g.name)
def test_goals_are_met_and_missed(goal: goals.Goal) -> None:
    fitting = [row | {"contender": goal.contender, "ran": "x"} for row in rows_of_the_run()]
    fitting = [row for row in fitting if goal.where(row)]
    for value, passed in ((goal.at_least, True), (0.99 * goal.at_least, False)):
        fitting[0] |= {goal.of: value}
        for row in fitting[1:]:
            row |= {goal.of: 2 * goal.at_least}
        (found,) = goals.assess(fitting, [goal])
        assert found["passed"] == passed and found["rows"] == len(fitting)
        assert found["worst_ratio"] == value
    other = {"device": "cpu"}, {"batch": 1}, {"layout": "nchw"}, {"dtype": "float16"}
    for change in (*other, {"contender": "pytorch"}, {"direction": "training"}):
        assert not goal.covers(fitting[0] | change), change


def test_goals_by_their_limits() -> None:
    """What each is held against."""
    held = {(goal.contender, goal.of): goal.at_least for goal in ON_GPU}
    assert held[("tma", "of_gemm")] == 0.85 and held[("tma", "of_limit")] == 0.9
    assert held[("halo", "ratio")] == 4 and held[("auto", "of_compile")] == 1.1
    assert sorted(goal.at_least for goal in ON_GPU if goal.of == "ratio") == [1.2, 1.5, 2.5, 4]


def test_the_run_takes_epilogue_and_arithmetic_from_the_list() -> None:
    work = list(run._by_value(gpu_layers.GOALS))
    assert {item.epilogue for item in work} == {"none", "bias+relu"}
    assert {item.arithmetic for item in work} == {"bfloat16", "tf32x3"}
    assert all(item.batch == 32 for item in work)
    first = {lists.family_of(item.layer) for item in work[:4]}
    assert first == {"conv", "fused"}
    assert len(lists.layers(gpu_layers.GOALS)) == len(set(lists.layers(gpu_layers.GOALS)))
    assert gpu_layers.GOALS in lists.names() and "networks" in lists.names()


@pytest.mark.parametrize("layer, layout", NETWORKS, ids=["resnet50", "vgg16"])
def test_networks(layer: NetworkLayer, layout: str) -> None:
    (problem,) = lists.problems_of(layer, 2, None, [layout], torch.float32)
    contenders = [providers.provider(name) for name in ("pytorch", "auto", "copy", "direct")]
    with torch.no_grad():
        rows = {r["contender"]: r for r in measure.measure(problem, contenders, 0.001, goals=())}
    for name in ("pytorch", "auto"):
        assert rows[name]["status"] == "ok" and rows[name]["ms"]["median"] > 0, rows[name]
    assert rows["auto"]["ratio"] > 0 and rows["auto"]["of_copy"] > 0
    assert rows["direct"]["status"] == "not applicable"
    y = problem.answer.value
    assert problem.judge(y.float(), "x").ok
    assert not problem.judge(1.001 * y.float(), "x").ok
    assert not problem.judge(y.float()[:, 1:], "x").ok
    assert problem.judge(torch.full_like(y, float("nan")), "x").error == float("inf")


def test_networks_are_those_of_the_papers() -> None:
    """Multiply-adds of an image, and weights, as they are commonly given."""
    for layer, macs, weights in zip(networks(), (4.1e9, 15.5e9), (25.6e6, 138.4e6), strict=True):
        assert extents(layer) == (pytest.approx(macs, rel=0.01), pytest.approx(weights, rel=0.01))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_bias_and_relu_in_one_call(layout: str) -> None:
    layer = ConvLayer("tiny", 8, (9, 7), 16, (3, 3), (1, 1), (1, 1), (1, 1))
    (problem,) = conv_problem.problems_of(
        layer, 2, ["fprop"], [layout], torch.float32, epilogue="bias+relu"
    )
    for name in ("auto", "direct", "im2col", "winograd"):
        row, call = measure.check(providers.provider(name), problem)
        assert row["status"] == "ok" and row["epilogue"] == "bias+relu", row
        assert call is not None and float(call().min()) == 0


def test_the_product_of_equal_extents() -> None:
    layer = ConvLayer("tiny", 8, (9, 7), 16, (3, 3), (2, 1), (1, 1), (1, 1))
    (problem,) = conv_problem.problems_of(layer, 2, ["fprop"], ["nchw"], torch.float32)
    product = providers.provider("gemm").prepare(problem)()
    assert product.shape == (2 * 5 * 7, 16)
    rows = measure.measure(
        problem, [providers.provider(n) for n in ("pytorch", "gemm", "direct")], 0.001, goals=()
    )
    assert rows[1]["status"] == "ok" and not rows[1]["ours"]
    assert rows[2]["of_gemm"] == rows[1]["ms"]["median"] / rows[2]["ms"]["median"]
    grouped = replace(layer, groups=2)
    (problem,) = conv_problem.problems_of(grouped, 2, ["fprop"], ["nchw"], torch.float32)
    row, call = measure.check(providers.provider("gemm"), problem)
    assert row["status"] == "not applicable" and call is None


def test_the_gpu_run_reports_goals_and_the_model() -> None:
    row = rows_of_the_run()[0] | {"contender": "tma", "ran": "tma/x", "ours": True, "ratio": 1.3}
    row |= {"of_gemm": 0.8, "ms": {"median": 1.0}, "error": 1.0}
    part = gpu_report.benchmark({"rows": [row], "goals": goals.assess([row])})
    doc = gpu_report.document(False, {}, [], [part], None)
    doc["model"] = {"text": ["12 problems. So it went."]}
    page, table = gpu_report.markdown(doc), gpu_report.table(doc)
    assert "### The cost model" in page and "So it went." in page and "So it went." in table
    assert "| tma >= 1.2 on dense 3x3" in page and "| yes | 1 | 0 | 1.30 |" in page
    assert "| no | 1 | 1 | 0.80 |" in page and "goal missed by 1 of 1, worst 0.80: tma" in table


def test_the_gpu_run_starts_where_nothing_is_built() -> None:
    """It builds what it runs: until then neither fastconv nor, on its way there, PyTorch."""
    code = "import sys; sys.modules.update(fastconv=None, torch=None); import bench.gpu_run"
    root = Path(gpu_report.__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_floor_of_a_pointwise_layer_is_triad() -> None:
    """The share of triad is what `of_limit` says of it."""
    rates = {"triad_bytes_per_s": 4e12, "gemm_bfloat16_flops": 8e14}
    for item in gpu_layers.goal_work():
        if item.direction == "inference":
            row = facts_of(item)
            floor = ceilings.floor_of(row["flops"], row["bytes"], "bfloat16", rates)
            assert floor == pytest.approx(1e3 * row["bytes"] / rates["triad_bytes_per_s"])
