"""The pooling benchmark: its lists, and that a wrong answer can never have a time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench import pool_correctness, pool_cpu, pool_goals, pool_problems, pool_providers
from bench.__main__ import main
from bench.goals import assess
from bench.pool_problems import FAMILY, KINDS, PoolLayer, pool_layers
from bench.problems import networks
from bench.providers import PYTORCH

TINY = {
    kind: PoolLayer("tiny", kind, 3, (9, 8), (3, 3), (2, 2), (0 if kind == "lp" else 1,) * 2)
    for kind in KINDS
}
TINY["adaptive_avg"] = PoolLayer("tiny", "adaptive_avg", 3, (9, 8), (2, 3))
DIRECTIONS = pool_providers.DIRECTIONS


def problem_of(kind: str, direction: str, dtype: str = "float32") -> pool_providers.PoolProblem:
    args = argparse.Namespace(dtype=dtype, directions=[direction], layout=["channels_last"])
    return next(pool_cpu.problems(TINY[kind], 2, args))


@pytest.mark.parametrize("net", (FAMILY, *networks()))
def test_every_list_loads_and_has_pytorchs_shapes(net: str) -> None:
    for layer in pool_layers(net):
        if layer.kind == "stochastic":
            continue
        with torch.device("meta"):
            y = pool_providers.pool_of(PYTORCH, layer)(torch.empty(layer.input_size(1)))
        assert tuple(y.shape) == layer.output_size(1), layer
    assert pool_problems.source(net)


def test_unknown_list_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown list of layers 'lenet'.*resnet50"):
        pool_layers("lenet")


def test_minimal_traffic() -> None:
    layer = TINY["max"]
    x, y = 2 * 3 * 9 * 8, 2 * 3 * 5 * 4
    assert layer.elements(2, "forward") == x + y
    assert layer.elements(2, "forward+backward") == 2 * (x + y)
    assert TINY["lp"].elements(2, "forward+backward") == 3 * (x + 2 * 3 * 4 * 3)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("name", [PYTORCH, "auto"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_right_answers_pass(name: str, kind: str, direction: str, dtype: str) -> None:
    if name == PYTORCH and dtype == "bfloat16":
        return  # PyTorch rounds norms and gradients in between
    torch.manual_seed(1)
    verdict = pool_correctness.judge(name, problem_of(kind, direction, dtype))
    assert verdict.ok, verdict


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", TINY)
def test_wrong_answers_fail(kind: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    right = pool_providers.pool_of(PYTORCH, TINY[kind])
    damages = {
        "one element": lambda y: torch.cat([y.flatten()[:-1], y.flatten()[-1:] * 1.001]).view_as(y),
        "shape": lambda y: y[..., :-1],
        "NaN": lambda y: y * float("nan"),
    }
    if direction != "forward":
        damages["gradient"] = lambda y: y + 1e-3 * (y - y.detach())
    for damage, apply in damages.items():

        def pool_of(name: str, layer: PoolLayer, apply=apply) -> pool_providers.Pool:
            return right if name == PYTORCH else lambda x: apply(right(x))

        monkeypatch.setattr(pool_providers, "pool_of", pool_of)
        problem = problem_of(kind, direction)
        try:
            verdict = pool_correctness.judge("auto", problem)
        except RuntimeError:  # another shape has no gradient with this dy
            assert damage == "shape"
            continue
        assert not verdict.ok, damage


def test_a_biased_draw_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PoolLayer("t", "stochastic", 8, (24, 24), (2, 2), (2, 2), (0, 0))
    args = argparse.Namespace(dtype="float32", directions=["forward"], layout=["nchw"])
    problem = next(pool_cpu.problems(layer, 2, args))
    monkeypatch.setattr(pool_providers, "pool_of", lambda *_: lambda x: F.max_pool2d(x, 2))
    verdict = pool_correctness.judge("auto", problem)
    assert not verdict.ok and not verdict.reason


def test_goals_cover_what_they_name() -> None:
    rows = []
    for layer in pool_layers(FAMILY):
        for direction in DIRECTIONS:
            for layout in ("nchw", "channels_last"):
                args = argparse.Namespace(dtype="float32", directions=[direction], layout=[layout])
                problem = next(pool_cpu.problems(layer, 8, args))
                row = pool_cpu._row(problem, "auto")
                rows.append(row | {"status": "ok", "ratio": 2.0, "of_copy": 0.4})
    found = {goal["goal"]: goal for goal in assess(rows, pool_goals.GOALS)}
    assert len(found) == len(pool_goals.GOALS)
    assert found["auto >= 10 on max 3x3/2, nchw, forward"]["missed"] == 1
    assert found["auto >= 1.3 on max 3x3/2, channels_last, forward"]["passed"]
    assert found["auto >= 0.5 of a copy's speed on 3x3/2, forward"]["missed"] == 6


def test_run_writes_rows_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_cpu, "pool_layers", lambda net: [TINY["max"], TINY["stochastic"]])
    monkeypatch.setattr(pool_cpu, "source", lambda net: "made up")
    files = [f"--json={tmp_path / 'p.json'}", f"--markdown={tmp_path / 'p.md'}"]
    threads = torch.get_num_threads()
    try:
        command = ["pool", "--nets=tiny", "--batch=2", "--seconds=0.001", "--threads=1", *files]
        assert main(command) == 0
    finally:
        torch.set_num_threads(threads)
    doc = json.loads((tmp_path / "p.json").read_text())
    assert len(doc["rows"]) == 2 * 2 * 2 * 2
    assert all(row["status"] == "ok" and row["of_copy"] > 0 for row in doc["rows"])
    page = (tmp_path / "p.md").read_text()
    assert page.startswith("# Pooling on the CPU") and "of copy" in page
