"""One problem, several contenders: right first, then timed against PyTorch, then (below a goal)
timed again for longer before anybody believes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from bench.ceilings import floor_ms
from bench.contenders import COMPILED, COPY, GEMM, LIMITS, PYTORCH
from bench.goals import GOALS, Goal
from bench.problem import Problem
from bench.providers import Call, NotApplicable, Provider
from bench.stretches import DeviceLost
from bench.timing import Timing, interleaved
from fastconv import gpu

AGAIN = 4  # a ratio below its goal is measured again with this many times the budget


def check(provider: Provider, problem: Problem) -> tuple[dict, Call | None]:
    """Runs a contender once. Returns its row without times and, if it was right, its call."""
    row = problem.facts() | {"contender": provider.name, "ours": provider.ours}
    row["ran"] = provider.name
    try:
        row["ran"] = provider.ran(problem)
        run = provider.prepare(problem)
    except (NotApplicable, RuntimeError) as reason:
        raise_if_lost(problem, reason)
        return row | {"status": "not applicable", "reason": _first_line(reason)}, None
    except Exception as error:
        return row | {"status": "error", "reason": _named(error)}, None
    try:
        result = run()
        row["ran"] = provider.ran(problem)  # asked again: autotuning may have changed it
        if provider.name in LIMITS:
            return row | {"status": "ok"}, run
        if hasattr(result, "is_mkldnn") and result.is_mkldnn:
            result = result.to_dense()
        verdict = problem.judge(result, row["ran"])
    except Exception as error:  # a crash of one contender is a result, not the end of the run
        raise_if_lost(problem, error)
        refused = isinstance(error, NotApplicable) or "does not apply" in str(error)
        status = "not applicable" if refused else "error"
        return row | {"status": status, "reason": _named(error)}, None
    row |= {"error": verdict.error, "tolerance": verdict.tolerance}
    if not verdict.ok:
        return row | {"status": "wrong", "reason": verdict.reason}, None
    return row | {"status": "ok"}, run


def raise_if_lost(problem: Problem, error: Exception) -> None:
    """Raises DeviceLost if nothing runs on the problem's device any more. Room for what follows is
    made where it was missing."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
    lost = gpu.loss(problem.x.device) if isinstance(error, RuntimeError) else ""
    if lost:
        raise DeviceLost(lost) from error


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
    enter: Callable[[str], None] = lambda name: None,
    banned: Mapping[str, str] = MappingProxyType({}),
) -> list[dict]:
    """Rows of all contenders on one problem, in their order. Only right answers have a time, and a
    ratio to PyTorch's where PyTorch is among them and right.

    A ratio below one of the goals is measured again, longer; the second measurement is the result
    and the first is kept in `first_ratio`. With `ceilings` rows have the time that the machine's
    own limits leave (`floor_ms`), and the fraction of it that was reached (`of_limit`).

    `enter` is told who is run next, "" when all are timed; `banned`: who is not run, and why.

    Raises:
        DeviceLost: nothing runs on the device any more.
    """
    rows, calls = {}, {}
    for provider in contenders:
        if provider.name in banned:
            rows[provider.name] = _banned(problem, provider, banned[provider.name])
            continue
        enter(provider.name)
        rows[provider.name], run = check(provider, problem)
        if run is not None:
            calls[provider.name] = run
    if not calls:
        return list(rows.values())
    if timer is host_timer and problem.x.is_cuda:
        calls = {name: _synchronised(run) for name, run in calls.items()}
    enter("")
    try:
        _time(problem, rows, calls, seconds, goals, timer)
    except RuntimeError as error:
        raise_if_lost(problem, error)
        raise
    for name in [name for name in calls if "ms" not in rows[name]]:
        rows[name] |= {"status": "error", "reason": "there was no room to time it"}
        del calls[name]
    if ceilings:
        for name in calls:
            floor = floor_ms(problem, ceilings)
            rows[name] |= {"floor_ms": floor, "of_limit": floor / rows[name]["ms"]["median"]}
    return list(rows.values())


def _banned(problem: Problem, provider: Provider, reason: str) -> dict:
    who = {"contender": provider.name, "ours": provider.ours, "ran": provider.name}
    return problem.facts() | who | {"status": "error", "reason": reason}


def _time(
    problem: Problem,
    rows: dict[str, dict],
    calls: dict[str, Call],
    seconds: float,
    goals: Sequence[Goal],
    timer: Timer,
) -> None:
    """Puts the times into the rows."""
    _record(rows, timer(calls, seconds, 0))
    doubtful = [
        name
        for name in calls
        if "ms" in rows[name]
        and any(goal.covers(rows[name]) and not goal.met(rows[name]) for goal in goals)
    ]
    if doubtful and "ms" in rows.get(PYTORCH, ()):
        first = {name: rows[name].get("ratio") for name in doubtful}
        held = (PYTORCH, COMPILED, *LIMITS)
        again = {n: calls[n] for n in calls if n in held or n in doubtful}
        _record(rows, timer(again, AGAIN * seconds, 9), keep=(PYTORCH,))
        for name in doubtful:
            rows[name]["first_ratio"] = first[name]


def _synchronised(run: Call) -> Call:
    def call() -> None:
        run()
        torch.cuda.synchronize()

    return call


def _record(rows: dict[str, dict], timings: Mapping[str, Timing], keep: Sequence[str] = ()) -> None:
    yardstick = timings.get(PYTORCH)
    held = {of: timings[of] for of in (COPY, GEMM, COMPILED) if of in timings}
    for name, timing in timings.items():
        if name in keep:
            continue
        row = rows[name]
        row["ms"] = timing.as_dict()
        if yardstick is not None:
            row["pytorch_ms"] = yardstick.as_dict()
            row["ratio"] = yardstick.median / timing.median
        for of, other in held.items():
            row[f"of_{of}"] = other.median / timing.median
