"""The speed goals of pooling on the CPU: on the stem's activations, 3x3 windows of stride 2."""

from __future__ import annotations

from bench.goals import Goal
from bench.pool_problems import FAMILY

# (kind, layout, direction) -> PyTorch's time over ours.
_AT_LEAST = {
    ("max", "nchw", "forward"): 10.0,
    ("avg", "nchw", "forward"): 4.0,
    ("lp", "nchw", "forward"): 6.0,
    ("max", "channels_last", "forward"): 1.3,
    ("avg", "channels_last", "forward"): 1.0,
    ("lp", "channels_last", "forward"): 3.0,
    ("max", "nchw", "forward+backward"): 4.0,
    ("lp", "nchw", "forward+backward"): 5.0,
    ("stochastic", "nchw", "forward"): 30.0,
}


def _stem(row: dict) -> bool:
    wide = row["batch"] == 8 and row["dtype"] == "float32"
    return wide and row["net"] == FAMILY and "3x3/2" in row["layer"]


def _goal(key: tuple[str, str, str], least: float) -> Goal:
    kind, layout, direction = key

    def where(row: dict) -> bool:
        return _stem(row) and (row["kind"], row["layout"], row["direction"]) == key

    return Goal(f"auto >= {least:g} on {kind} 3x3/2, {layout}, {direction}", "auto", least, where)


def _deterministic(row: dict) -> bool:
    return _stem(row) and row["kind"] != "stochastic" and row["direction"] == "forward"


GOALS = (
    *(_goal(key, least) for key, least in _AT_LEAST.items()),
    Goal("auto >= 0.5 of a copy's speed on 3x3/2, forward", "auto", 0.5, _deterministic, "of_copy"),
    Goal("auto >= 0.95 on every pool", "auto", 0.95),
)
