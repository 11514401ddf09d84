"""The speed goals on the CPU, each a limit on a number of a row, and how a run meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


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
        return row.get("status") == "ok" and row[self.of] >= self.at_least


def _wide_3x3(row: dict) -> bool:
    return (
        row["dense_3x3_stride_1"] and min(row["C"], row["K"]) >= 128 and row["dtype"] == "float32"
    )


GOALS = (
    Goal("auto >= 0.95 on every layer", "auto", 0.95),
    Goal("im2col >= 0.5 on 3x3 stride 1, C, K >= 128", "im2col", 0.5, _wide_3x3),
    Goal("winograd >= 1.0 on 3x3 stride 1, C, K >= 128", "winograd", 1.0, _wide_3x3),
    Goal("direct >= 0.2 on every layer", "direct", 0.2),
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
        ratios = [row[goal.of] for row in covered if row.get("status") == "ok"]
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
    first = f" (first {row['first_ratio']:.2f})" if "first_ratio" in row else ""
    return text + f"{row[of]:.2f}{first if of == 'ratio' else ''}"
