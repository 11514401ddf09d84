"""The demo's picture: the losses of the trainings, and the speed of every algorithm per layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display needed; before pyplot

import matplotlib.pyplot as plt
import numpy as np

from bench.demo_layers import Comparison
from bench.demo_training import Run
from bench.providers import PYTORCH

# Colour-blind safe (Okabe and Ito); `auto` in black, since it is what a user gets.
COLOURS = {
    "auto": "#000000",
    "direct": "#E69F00",
    "im2col": "#56B4E9",
    "winograd_f2x2_3x3": "#009E73",
    "winograd_f4x4_3x3": "#CC79A7",
}


def draw(runs: Sequence[Run], comparisons: Sequence[Comparison], path: Path) -> None:
    """Writes the PNG. The first run is PyTorch's, the yardstick of the differences."""
    directions = list(next(iter(comparisons[0].rows.values()))) if comparisons else []
    figure, axes = plt.subplot_mosaic(
        [["loss", "gap"], *([name, name] for name in directions)],
        figsize=(14, 4 + 3.6 * len(directions)),
        layout="constrained",
    )
    _draw_losses(axes["loss"], runs)
    _draw_gaps(axes["gap"], runs)
    for direction in directions:
        _draw_ratios(axes[direction], comparisons, direction, direction == directions[-1])
    if directions:
        handles, labels = axes[directions[0]].get_legend_handles_labels()
        axes[directions[0]].legend(
            handles, labels, ncols=len(labels), loc="lower left", bbox_to_anchor=(0, 1.0),
            frameon=False, borderaxespad=0.2,
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_losses(axis: plt.Axes, runs: Sequence[Run]) -> None:
    # The curves lie on each other where all is well: widths and dashes keep each visible.
    styles = (("-", 5.0, "#bbbbbb"), ("-", 2.0, "#0072B2"), ("--", 1.2, "#D55E00"))
    for run, (line, width, colour) in zip(runs, styles, strict=False):
        label = f"{run.name}: {run.accuracy:.2%} right, {run.seconds:.1f} s"
        axis.plot(run.losses, line, lw=width, color=colour, label=label)
    axis.set(title="Training loss, handwritten digits", xlabel="step", yscale="log")
    axis.set_ylabel("cross-entropy")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)


def _draw_gaps(axis: plt.Axes, runs: Sequence[Run]) -> None:
    baseline = np.array(runs[0].losses)
    for run, colour in zip(runs[1:], ("#0072B2", "#D55E00"), strict=False):
        gap = np.abs(np.array(run.losses) - baseline) / np.abs(baseline)
        axis.plot(np.maximum(gap, 1e-9), lw=1.2, color=colour, label=run.name)
    axis.set(title=f"Relative difference of the loss from {runs[0].name}'s", xlabel="step")
    axis.set_yscale("log")
    axis.legend(frameon=False, loc="lower right")
    axis.grid(alpha=0.3)


def _draw_ratios(
    axis: plt.Axes, comparisons: Sequence[Comparison], direction: str, last: bool
) -> None:
    names = [name for name in comparisons[0].rows if name != PYTORCH]
    spare = iter(plt.get_cmap("tab10").colors)
    width = 0.8 / len(names)
    seen = [0.5, 2.0]
    for index, name in enumerate(names):
        ratios = np.array([c.rows[name][direction].get("ratio", np.nan) for c in comparisons])
        seen += [ratio for ratio in ratios if ratio == ratio]
        places = np.arange(len(ratios)) + (index - (len(names) - 1) / 2) * width
        colour = COLOURS.get(name) or next(spare)
        # From 1 upwards or downwards; the mark at the end keeps a bar of ratio 1 visible, where no
        # mark means that the algorithm does not apply.
        axis.bar(places, ratios - 1, width * 0.9, bottom=1, color=colour, label=name)
        axis.hlines(ratios, places - width * 0.45, places + width * 0.45, color=colour, lw=2)
    axis.axhline(1.0, color="#666666", lw=1)
    axis.set(ylabel=f"{direction}: speed / PyTorch's", xlim=(-0.6, len(comparisons) - 0.4))
    axis.set_yscale("log")
    axis.set_ylim(min(seen) / 1.15, max(seen) * 1.15)
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
    ticks = [t for t in ticks if min(seen) / 1.15 <= t <= max(seen) * 1.15]
    axis.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axis.minorticks_off()
    axis.set_axisbelow(True)
    axis.grid(axis="y", alpha=0.3)
    if last:
        titles = [_two_lines(c) for c in comparisons]
        axis.set_xticks(range(len(titles)), titles, rotation=30, ha="right", fontsize=8)
    else:
        axis.set_xticks(range(len(comparisons)), [""] * len(comparisons))


def _two_lines(comparison: Comparison) -> str:
    return f"{comparison.layer.net}\n{comparison.layer.label}"
