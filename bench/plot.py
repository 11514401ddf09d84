"""`python -m bench plot result.json`: roofline, speed-up per network, error against time."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import report
from bench.contenders import LIMITS, PYTORCH

HINT = "python -m bench plot needs matplotlib: pip install matplotlib"
MOST_GROUPS = 24  # of bars in one picture; a run with more gets several
# Distinct also in print and for colour-blind readers (Okabe and Ito's palette).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<P"
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("json", type=Path)
    parser.add_argument("--out", type=Path, help="folder; default: beside the JSON")


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 2 where the file is no result or matplotlib is missing."""
    try:
        doc = json.loads(args.json.read_text())
        rows = [
            row for row in doc["rows"] if row["status"] == "ok" and row["contender"] not in LIMITS
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{args.json} is no result of `python -m bench run`: {error}", file=sys.stderr)
        return 2
    try:
        import matplotlib

        matplotlib.use("Agg")
    except ImportError:
        print(HINT, file=sys.stderr)
        return 2
    folder = args.out or args.json.parent
    folder.mkdir(parents=True, exist_ok=True)
    stem = args.json.stem
    for name, draw in (("roofline", roofline), ("speedup", speedup), ("error", error_and_time)):
        figures = draw(doc, rows)
        if not figures:
            print(f"{name}: nothing to draw")
        for number, figure in enumerate(figures, 1):
            path = folder / f"{stem}_{name}{'' if number == 1 else f'_{number}'}.png"
            figure.savefig(path, dpi=120)
            print(f"written: {path}")
    return 0


def _styles(rows: list[dict]) -> dict[str, dict[str, Any]]:
    names = sorted({r["contender"] for r in rows}, key=lambda n: (n != PYTORCH, n != "auto", n))
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }


def _arithmetic(doc: dict) -> str:
    """The dtype, or "tf32" or "tf32x3" where float32 was multiplied so."""
    return report.arithmetic(doc["settings"])


def _caption(doc: dict) -> str:
    machine = doc["machine"]
    device = (
        machine.get("gpu", {}).get("device") or f"{machine['cpu']}, {machine['threads']} threads"
    )
    return f"{device}, {_arithmetic(doc)}, revision {machine['revision'][:10]}"


def _figure(doc: dict, title: str, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, fontsize=12)
    axes.set_title(_caption(doc), fontsize=8, color="0.35")
    axes.grid(True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _points(axes: Any, rows: list[dict], place: Callable[[dict], tuple[float, float]]) -> None:
    """A point a row, each contender in its colour and shape."""
    for name, style in _styles(rows).items():
        points = [place(row) for row in rows if row["contender"] == name]
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=18, alpha=0.7, linewidths=0, label=name, **style)


def _plain_numbers(axes: Any) -> None:
    """1, 2, 5, 10, … on logarithmic axes instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def roofline(doc: dict, rows: list[dict]) -> list[Any]:
    """FLOP/s against FLOP per byte, under this run's own ceilings."""
    rows = [row for row in rows if row["flops"] > 0]
    rates = doc["settings"].get("ceilings", {})
    peak = rates.get(f"gemm_{_arithmetic(doc)}_flops")
    if not rows or not peak:
        return []
    figure, axes = _figure(doc, "Roofline", 8, 5.5)
    intensity = [row["flops"] / row["bytes"] for row in rows]
    bandwidth = rates["triad_bytes_per_s"]
    knee = peak / bandwidth
    low, high = min(*intensity, knee) / 2, max(*intensity, knee) * 2
    axes.plot(
        [low, knee, high],
        [low * bandwidth / 1e9, peak / 1e9, peak / 1e9],
        color="0.4",
        linewidth=1.5,
        label=f"triad {bandwidth / 1e9:.0f} GB/s, matrix product {peak / 1e9:.0f} GFLOP/s",
    )
    _points(
        axes,
        rows,
        lambda row: (row["flops"] / row["bytes"], row["flops"] / row["ms"]["median"] / 1e6),
    )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte of operands and result")
    axes.set_ylabel("GFLOP/s of the definition (Winograd multiplies less)")
    _plain_numbers(axes)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    return [figure]


def speedup(doc: dict, rows: list[dict]) -> list[Any]:
    """PyTorch's time over each contender's: geometric means over a network's layers."""
    summaries = [s for s in doc["summaries"] if "geomean_ratio" in s and s["against"] == PYTORCH]
    groups = list(dict.fromkeys(_group(s) for s in summaries))
    pages = -(-len(groups) // MOST_GROUPS)
    each = -(-len(groups) // pages) if pages else 0
    title = "PyTorch's time over each one's, geometric mean over layers"
    return [
        _bars(
            doc,
            title if pages == 1 else f"{title} ({page + 1} of {pages})",
            groups[page * each : (page + 1) * each],
            summaries,
        )
        for page in range(pages)
    ]


def _bars(doc: dict, title: str, groups: list[str], summaries: list[dict]) -> Any:
    """A group of bars for each of `groups`; of all summaries, so that every picture of a run has
    the same colours and the same scale."""
    names = list(dict.fromkeys(s["contender"] for s in summaries))
    styles = _styles([{"contender": name} for name in (PYTORCH, *names)])
    height = 1.6 + len(groups) * (0.16 * len(names) + 0.18)
    figure, axes = _figure(doc, title, 8, height)
    thickness = 0.8 / len(names)
    for i, name in enumerate(names):
        of = {_group(s): s["geomean_ratio"] for s in summaries if s["contender"] == name}
        places = [g for g in range(len(groups)) if groups[g] in of]
        values = [of[groups[g]] for g in places]
        bars = axes.barh(
            [g + (i - (len(names) - 1) / 2) * thickness for g in places],
            values,
            thickness * 0.9,
            color=styles[name]["color"],
            label=name,
        )
        # On white: the line at 1 runs through the labels of what is a little slower.
        behind = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        labels = [f"{v:.2f}" for v in values]
        axes.bar_label(bars, labels, fontsize=7, padding=3, bbox=behind, zorder=3)
    axes.axvline(1.0, color="0.3", linewidth=1, zorder=2)
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.set_xlim(0, 1.12 * max(s["geomean_ratio"] for s in summaries))
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel("above 1 is quicker than PyTorch in the same layout")
    axes.grid(False, axis="y")
    figure.legend(fontsize=8, loc="outside lower center", ncols=min(len(names), 5))
    return figure


def _group(summary: dict) -> str:
    s = summary
    return f"{s['net']} N={s['batch']} {s['direction']} {s['layout']}"


def error_and_time(doc: dict, rows: list[dict]) -> list[Any]:
    """Deviation from fp64 against time, relative to PyTorch's time on the same problem."""
    # Of convolutions alone: the other operations' errors are in units of their own.
    rows = [r for r in rows if r["op"] in _CONVOLUTIONS and "ratio" in r and "error" in r]
    rows = [r for r in rows if r["error"] is not None]
    if not rows:
        return []
    figure, axes = _figure(doc, "Error against fp64, and time", 8, 5.5)
    _points(axes, rows, lambda row: (1 / row["ratio"], max(row["error"], 1e-2)))
    axes.set(xscale="log", yscale="log", xlabel="time, PyTorch = 1")
    axes.set_ylabel("largest error, in units of u · Σ|x||w|")
    _plain_numbers(axes)
    figure.legend(fontsize=8, loc="outside lower center", ncols=6)
    return [figure]
