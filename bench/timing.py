"""Times several callables against each other, in one interleaved run.

Why interleaved: a shared machine changes speed over seconds (other tenants, frequency, page cache).
Contenders that take turns within each round see the same machine, so their ratio survives what
their absolute times do not. The order rotates from round to round, so that nobody always runs in
the cache state that one particular rival leaves behind.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

SAMPLE_SECONDS = (
    0.004  # short calls are repeated until a sample lasts this long: the clock is noise
)
WARM_UP_SECONDS = 0.02
MIN_ROUNDS = 5
MAX_ROUNDS = 61


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call: median, 20th and 80th percentile over `samples` rounds."""

    median: float
    p20: float
    p80: float
    samples: int

    def as_dict(self) -> dict:
        return asdict(self)


def quantile(values: list[float], q: float) -> float:
    """The linearly interpolated quantile; `values` need not be sorted."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def rate_samples(run: Callable[[], object], count: int) -> list[float]:
    """Milliseconds per call over five batches of `count` calls back to back, after one more."""
    run()
    return [_sample(run, count) for _ in range(5)]


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float = 0.25,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, Timing]:
    """Times every contender; about `seconds` for each of them, but at least `min_rounds` rounds
    (0: the default).

    Returns: a Timing per contender, in the order given.
    """
    if not contenders:
        return {}
    calls = {name: _calls_per_sample(run) for name, run in contenders.items()}
    round_seconds = sum(count * per_call for count, per_call in calls.values())
    rounds = int(seconds * len(contenders) / max(round_seconds, 1e-9))
    rounds = max(min_rounds or MIN_ROUNDS, min(rounds, MAX_ROUNDS))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                samples[name].append(_sample(contenders[name], calls[name][0]))
    finally:
        if collecting:
            gc.enable()
    return {
        name: Timing(quantile(ms, 0.5), quantile(ms, 0.2), quantile(ms, 0.8), len(ms))
        for name, ms in samples.items()
    }


def _sample(run: Callable[[], object], count: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(count):
        run()
    return (time.perf_counter_ns() - start) / count * 1e-6


def _calls_per_sample(run: Callable[[], object]) -> tuple[int, float]:
    """Warms up and returns (calls per sample, estimated seconds per call).

    The fastest warm-up call is the estimate: the first ones also pay for one-time set-up.
    """
    spent, best, calls = 0.0, float("inf"), 0
    while spent < WARM_UP_SECONDS or calls < 2:
        elapsed = _sample(run, 1) * 1e-3
        spent, best, calls = spent + elapsed, min(best, elapsed), calls + 1
    return max(1, round(SAMPLE_SECONDS / best)), best
