"""One problem, several contenders: right first, then timed against PyTorch, then (below a goal)
timed again for longer before anybody believes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from bench.ceilings import floor_ms
from bench.goals import GOALS, Goal
from bench.problem import Problem
from bench.providers import COPY, PYTORCH, Call, NotApplicable, Provider
from bench.timing import Timing, interleaved

AGAIN = 4  # a ratio below its goal is measured again with this many times the budget


def check(provider: Provider, problem: Problem) -> tuple[dict, Call | None]:
    """Runs a contender once. Returns its row without times and, if it was right, its call."""
    row = problem.facts() | {"contender": provider.name, "ours": provider.ours}
    row["ran"] = provider.name
    try:
        row["ran"] = provider.ran(problem)
        run = provider.prepare(problem)
    except (NotApplicable, RuntimeError) as reason:
        return row | {"status": "not applicable", "reason": _first_line(reason)}, None
    except Exception as error:
        return row | {"status": "error", "reason": _named(error)}, None
    try:
        result = run()
        row["ran"] = provider.ran(problem)  # asked again: autotuning may have changed it
        if provider.name == COPY:
            return row | {"status": "ok"}, run
        if hasattr(result, "is_mkldnn") and result.is_mkldnn:
            result = result.to_dense()
        verdict = problem.judge(result, row["ran"])
    except Exception as error:  # a crash of one contender is a result, not the end of the run
        refused = isinstance(error, NotApplicable) or "does not apply" in str(error)
        status = "not applicable" if refused else "error"
        return row | {"status": status, "reason": _named(error)}, None
    row |= {"error": verdict.error, "tolerance": verdict.tolerance}
    if not verdict.ok:
        return row | {"status": "wrong", "reason": verdict.reason}, None
    return row | {"status": "ok"}, run


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:300]


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


Timer = Callable[[Mapping[str, Call], float, int], Mapping[str, Timing]]


def host_timer(calls: Mapping[str, Call], seconds: float, least: int) -> Mapping[str, Timing]:
    return interleaved(calls, seconds, least)


def measure(
    problem: Problem,
    contenders: Sequence[Provider],
    seconds: float,
    *,
    goals: Sequence[Goal] = GOALS,
    ceilings: Mapping[str, float] | None = None,
    timer: Timer = host_timer,
) -> list[dict]:
    """Rows of all contenders on one problem, in their order. Only right answers have a time, and a
    ratio to PyTorch's where PyTorch is among them and right.

    A ratio below one of the goals is measured again, longer; the second measurement is the result
    and the first is kept in `first_ratio`. With `ceilings` rows have the time that the machine's
    own limits leave (`floor_ms`), and the fraction of it that was reached (`of_limit`).
    """
    rows, calls = {}, {}
    for provider in contenders:
        rows[provider.name], run = check(provider, problem)
        if run is not None:
            calls[provider.name] = run
    if not calls:
        return list(rows.values())
    if timer is host_timer and problem.x.is_cuda:
        calls = {name: _synchronised(run) for name, run in calls.items()}
    _record(rows, timer(calls, seconds, 0))
    doubtful = [
        name
        for name in calls
        if any(goal.covers(rows[name]) and not goal.met(rows[name]) for goal in goals)
    ]
    if doubtful and PYTORCH in calls:
        first = {name: rows[name].get("ratio") for name in doubtful}
        again = {n: calls[n] for n in calls if n in (PYTORCH, COPY) or n in doubtful}
        _record(rows, timer(again, AGAIN * seconds, 9), keep=(PYTORCH,))
        for name in doubtful:
            rows[name]["first_ratio"] = first[name]
    if ceilings:
        for name in calls:
            floor = floor_ms(problem, ceilings)
            rows[name] |= {"floor_ms": floor, "of_limit": floor / rows[name]["ms"]["median"]}
    return list(rows.values())


def _synchronised(run: Call) -> Call:
    def call() -> None:
        run()
        torch.cuda.synchronize()

    return call


def _record(rows: dict[str, dict], timings: Mapping[str, Timing], keep: Sequence[str] = ()) -> None:
    yardstick, copy = timings.get(PYTORCH), timings.get(COPY)
    for name, timing in timings.items():
        if name in keep:
            continue
        row = rows[name]
        row["ms"] = timing.as_dict()
        if yardstick is not None:
            row["pytorch_ms"] = yardstick.as_dict()
            row["ratio"] = yardstick.median / timing.median
        if copy is not None:
            row["of_copy"] = copy.median / timing.median
