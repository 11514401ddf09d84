"""The speed goals, each a limit on a number of a row, and how a run meets them. Those on a GPU have
not been measured on one; `python -m bench run --device cuda --lists gpu_goals,networks` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.gpu_layers import REHEARSAL
from bench.pool_problems import FAMILY


@dataclass(frozen=True)
class Goal:
    """Every row of `contender` that `where` selects has `of` >= `at_least`.

    A ratio is PyTorch's median time over the contender's, same run, same layout.
    """

    name: str
    contender: str
    at_least: float
    where: Callable[[dict], bool] = lambda row: True
    of: str = "ratio"

    def covers(self, row: dict) -> bool:
        return row["contender"] == self.contender and self.where(row)

    def met(self, row: dict) -> bool:
        return row.get("status") == "ok" and row.get(self.of, 0.0) >= self.at_least


def _conv(row: dict) -> bool:
    rehearsed = row["net"] == REHEARSAL
    alone = row["op"] in ("conv1d", "conv2d", "conv3d")
    return alone and row["device"] == "cpu" and not rehearsed


def _wide_3x3(row: dict) -> bool:
    return (
        _conv(row)
        and row["dense_3x3_stride_1"]
        and min(row["C"], row["K"]) >= 128
        and row["dtype"] == "float32"
    )


def _fused(op: str) -> Callable[[dict], bool]:
    def where(row: dict) -> bool:
        forward = row["direction"] in ("inference", "forward")
        return row["op"] == op and forward and row["device"] == "cpu"

    return where


def _pool(row: dict) -> bool:
    return row["op"].endswith("pool2d") and row["device"] == "cpu"


def _stem(row: dict) -> bool:
    wide = row["batch"] == 8 and row["dtype"] == "float32"
    return _pool(row) and wide and row["net"] == FAMILY and "3x3/2" in row["layer"]


def _deterministic(row: dict) -> bool:
    return _stem(row) and row["kind"] != "stochastic" and row["direction"] == "forward"


# (kind, layout, direction) of 8x64x112x112, 3x3/2 -> PyTorch's time over ours.
_POOLS = {
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


def _on_gpu(op: str, arithmetic: str, **facts: object) -> Callable[[dict], bool]:
    """Of 32 images in channels_last; what more is asked of a convolution is in `facts`."""

    def where(row: dict) -> bool:
        dtype, precision = (
            ("float32", arithmetic) if arithmetic.startswith("tf32") else (arithmetic, "ieee")
        )
        return (
            (row["op"], row["device"], row["layout"]) == (op, "cuda", "channels_last")
            and (row["dtype"], row.get("precision", "ieee")) == (dtype, precision)
            and row["batch"] >= 32
            and row["net"] != REHEARSAL
            and all(row.get(name) == value for name, value in facts.items())
        )

    return where


def _dense_on_gpu(arithmetic: str) -> Callable[[dict], bool]:
    facts = {"direction": "fprop", "epilogue": "none", "dense_3x3_stride_1": True}
    able = _on_gpu("conv2d", arithmetic, **facts)
    return lambda row: able(row) and min(row["C"], row["K"]) >= 256


def _narrow_on_gpu(row: dict) -> bool:
    facts = {"direction": "fprop", "epilogue": "bias+relu", "dense_3x3_stride_1": True}
    able = _on_gpu("conv2d", "bfloat16", **facts)
    return able(row) and max(row["C"], row["K"]) <= 128


_FEW_FLOPS = 100.0  # per byte: with fewer, memory is what bounds an H200


def _pointwise_on_gpu(row: dict) -> bool:
    able = _on_gpu("conv_bn_relu", "bfloat16", direction="inference")
    return able(row) and " 1x1" in row["layer"] and row["flops"] <= _FEW_FLOPS * row["bytes"]


_NETWORK = _on_gpu("network", "bfloat16", direction="inference")
_DENSE = "dense 3x3, C, K >= 256, N >= 32, on a GPU"


def _pool_goal(key: tuple[str, str, str], least: float) -> Goal:
    kind, layout, direction = key

    def where(row: dict) -> bool:
        return _stem(row) and (row["kind"], row["layout"], row["direction"]) == key

    return Goal(f"auto >= {least:g} on {kind} 3x3/2, {layout}, {direction}", "auto", least, where)


GOALS = (
    Goal("auto >= 0.95 on every convolution", "auto", 0.95, _conv),
    Goal("im2col >= 0.5 on 3x3 stride 1, C, K >= 128", "im2col", 0.5, _wide_3x3),
    Goal("winograd >= 1.0 on 3x3 stride 1, C, K >= 128", "winograd", 1.0, _wide_3x3),
    Goal("direct >= 0.2 on every convolution", "direct", 0.2, _conv),
    *(_pool_goal(key, least) for key, least in _POOLS.items()),
    Goal("auto >= 0.5 of a copy's speed on 3x3/2, forward", "auto", 0.5, _deterministic, "of_copy"),
    Goal("auto >= 0.95 on every pooling", "auto", 0.95, _pool),
    Goal("auto >= 1.2 on convolution + normalisation + ReLU", "auto", 1.2, _fused("conv_bn_relu")),
    Goal("auto >= 1.2 on inception modules", "auto", 1.2, _fused("inception")),
    Goal(f"tma >= 1.2 on {_DENSE}, bf16", "tma", 1.2, _dense_on_gpu("bfloat16")),
    Goal(
        f"tma >= 0.85 of cuBLAS on equal extents, {_DENSE}, bf16",
        *("tma", 0.85, _dense_on_gpu("bfloat16"), "of_gemm"),
    ),
    Goal(f"tma >= 2.5 on {_DENSE}, tf32x3 against fp32", "tma", 2.5, _dense_on_gpu("tf32x3")),
    Goal("halo >= 4 on narrow 3x3 + bias + ReLU, on a GPU, bf16", "halo", 4.0, _narrow_on_gpu),
    Goal(
        "tma >= 0.9 of triad on 1x1 + normalisation + ReLU, on a GPU, bf16",
        *("tma", 0.9, _pointwise_on_gpu, "of_limit"),
    ),
    Goal("auto >= 1.5 on whole networks, on a GPU, bf16", "auto", 1.5, _NETWORK),
    Goal(
        "auto >= 1.1 of torch.compile on whole networks, on a GPU, bf16",
        *("auto", 1.1, _NETWORK, "of_compile"),
    ),
)


def assess(rows: Iterable[dict], goals: Sequence[Goal] = GOALS) -> list[dict]:
    """Per goal: how many rows it covers, which of them miss it, and the worst ratio."""
    rows = list(rows)
    results = []
    for goal in goals:
        covered = [row for row in rows if goal.covers(row)]
        if not covered:
            continue
        missed = [row for row in covered if not goal.met(row)]
        ratios = [row[goal.of] for row in covered if row.get("status") == "ok" and goal.of in row]
        results.append(
            {
                "goal": goal.name,
                "passed": not missed,
                "rows": len(covered),
                "missed": len(missed),
                "worst_ratio": min(ratios) if ratios else None,
                "missed_rows": [describe(row, goal.of) for row in missed],
            }
        )
    return results


def describe(row: dict, of: str = "ratio") -> str:
    """A row in a line, e.g. 'resnet50 64x56x56>64 3x3 N=8 fprop nchw im2col 0.47 (first 0.45)'."""
    text = (
        f"{row['net']} {row['layer']} N={row['batch']} {row['direction']} {row['layout']} "
        f"{row['ran']} "
    )
    if row.get("status") != "ok":
        return text + f"{row.get('status')}: {row.get('reason') or row.get('error')}"
    first = f" (first {row['first_ratio']:.2f})" if of == "ratio" and "first_ratio" in row else ""
    return text + f"{row[of]:.2f}{first}" if of in row else text + "no PyTorch to compare with"
