"""One problem, several contenders: right first, then timed against PyTorch, then (below a goal)
timed again for longer before anybody believes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from bench import correctness, providers
from bench.goals import GOALS
from bench.problems import ConvLayer
from bench.providers import PYTORCH, Problem
from bench.timing import interleaved

AGAIN = 4  # a ratio below its goal is measured again with this many times the budget


def check(name: str, problem: Problem, ref: correctness.Reference) -> tuple[dict, Callable | None]:
    """Runs a contender once. Returns its row without times and, if it was right, its call."""
    row = _row(problem, name)
    try:
        row["ran"] = providers.what_runs(name, problem)
    except RuntimeError as reason:  # the registry's word that the algorithm does not apply
        return row | {"status": "not applicable", "reason": str(reason)}, None
    run = providers.provider(name)(problem)
    try:
        result = run()
    except Exception as error:  # a crash of one contender is a result, not the end of the run
        return row | {"status": "error", "reason": f"{type(error).__name__}: {error}"}, None
    row["ran"] = providers.what_runs(name, problem)  # asked again: autotuning may have changed it
    terms = correctness.gemm_k(problem.layer, problem.direction, problem.batch)
    verdict = correctness.judge(result, ref, row["ran"], terms)
    row |= {"error": verdict.error, "tolerance": verdict.tolerance}
    if not verdict.ok:
        return row | {"status": "wrong", "reason": verdict.reason}, None
    return row | {"status": "ok"}, _synchronised(run) if problem.x.is_cuda else run


def _synchronised(run: Callable) -> Callable:
    def call() -> None:
        run()
        torch.cuda.synchronize()

    return call


def measure(
    problem: Problem,
    names: Sequence[str],
    ref: correctness.Reference,
    seconds: float,
    confirm: bool = True,
) -> list[dict]:
    """Rows of all contenders on one problem, PyTorch's first. Only right answers have a time.

    `confirm`: a ratio below one of the GOALS is measured again, longer; the second measurement is
    the result and the first is kept in `first_ratio`.
    """
    rows, calls = {}, {}
    for name in (PYTORCH, *names):
        rows[name], run = check(name, problem, ref)
        if run is not None:
            calls[name] = run
    if PYTORCH not in calls:
        raise RuntimeError(f"PyTorch itself fails on {problem.layer.label}: {rows[PYTORCH]}")
    _record(rows, interleaved(calls, seconds))
    doubtful = [
        name
        for name in calls
        if confirm and any(goal.covers(rows[name]) and not goal.met(rows[name]) for goal in GOALS)
    ]
    if doubtful:
        first = {name: rows[name]["ratio"] for name in doubtful}
        again = {name: calls[name] for name in (PYTORCH, *doubtful)}
        _record(rows, interleaved(again, AGAIN * seconds, min_rounds=9), keep_pytorch=True)
        for name in doubtful:
            rows[name]["first_ratio"] = first[name]
    return list(rows.values())


def problems_of(
    layer: ConvLayer,
    batch: int,
    directions: Sequence[str],
    layouts: Sequence[str],
    dtype: torch.dtype,
    device: str = "cpu",
):
    """Yields (problem, reference); the reference is shared by the layouts of a direction."""
    x, w, dy = providers.make_tensors(layer, batch, dtype, device)
    for direction in directions:
        ref = correctness.reference(layer, direction, x, w, dy)
        for layout in layouts:
            if layout == "channels_last" and layer.rank == 1 and "nchw" in layouts:
                continue  # a 1-D problem has one layout
            tensors = (providers.with_layout(t, layout) for t in (x, w, dy))
            yield Problem(layer, batch, direction, layout, *tensors), ref


def _record(rows: dict[str, dict], timings: dict, keep_pytorch: bool = False) -> None:
    yardstick = timings[PYTORCH]
    for name, timing in timings.items():
        if name == PYTORCH and keep_pytorch:
            continue
        rows[name]["ms"] = timing.as_dict()
        rows[name]["pytorch_ms"] = yardstick.as_dict()
        rows[name]["ratio"] = yardstick.median / timing.median


def _row(problem: Problem, name: str) -> dict:
    layer = problem.layer
    return {
        "net": layer.net,
        "layer": layer.label,
        "count": layer.count,
        "C": layer.C,
        "K": layer.K,
        "dense_3x3_stride_1": layer.is_dense_3x3_stride_1,
        "macs": layer.macs(problem.batch),
        "batch": problem.batch,
        "direction": problem.direction,
        "layout": problem.layout,
        "dtype": str(problem.x.dtype).removeprefix("torch."),
        "contender": name,
        "ran": name,
    }
