"""`python -m bench readme`: the README's measured tables, from the committed result files."""

from __future__ import annotations

import json
from pathlib import Path

from bench.pool_problems import FAMILY
from bench.providers import PYTORCH
from bench.report import goal_line
from fastconv.catalogue import fill

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
CONTENDERS = ("auto", "im2col", "winograd", "direct")
# Results from before runs recorded their command.
COMMAND = (
    "run --lists resnet50,vgg16,googlenet --ops conv --batch 1,8 --providers"
    " auto,direct,im2col,winograd"
)
SHOWN_POOL = "3x3/2"  # of the family; the others are in the page


def _cell(summary: dict | None) -> str:
    if summary is None or "geomean_ratio" not in summary:
        return "—"
    part = "" if summary["timed"] == summary["layers"] else f" ({summary['timed']} layers)"
    return f"{summary['geomean_ratio']:.2f}{part}"


def section(path: Path) -> str:
    """One result file as a sentence on where it was measured, a table, and the goals."""
    doc = json.loads(path.read_text())
    machine, settings = doc["machine"], doc["settings"]
    present = {summary["contender"] for summary in doc["summaries"]}
    shown = [name for name in CONTENDERS if name in present]
    autotuned = ", after autotuning" if settings.get("autotune") else ""
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['fastconv_isa']}, torch"
        f" {machine['torch']}, {settings['dtype']}{autotuned}, revision"
        f" `{machine['revision'][:10]}` ([all rows]({path.relative_to(ROOT).with_suffix('.md')}))."
        " PyTorch's time over ours in the same run, geometric mean over the distinct layers:",
        "",
        "| network | N | direction | layout | " + " | ".join(shown) + " | worst of auto |",
        "|---|---|---|---|" + "---|" * (len(shown) + 1),
    ]
    groups: dict[tuple, dict[str, dict]] = {}
    for summary in doc["summaries"]:
        if summary["net"] == FAMILY or summary.get("against", PYTORCH) != PYTORCH:
            continue
        key = tuple(summary[k] for k in ("net", "batch", "direction", "layout"))
        groups.setdefault(key, {})[summary["contender"]] = summary
    for key, by_name in groups.items():
        cells = [_cell(by_name.get(name)) for name in shown]
        worst = by_name.get("auto", {}).get("worst_ratio")
        cells.append("—" if worst is None else f"{worst:.2f}")
        lines.append(f"| {' | '.join(map(str, (*key, *cells)))} |")
    lines += [*_pools(doc), "", *(f"- {goal_line(goal)}" for goal in doc["goals"])]
    lines += ["", f"Repeat with `python -m bench {settings.get('command', COMMAND)}`."]
    return "\n".join(lines)


def _pools(doc: dict) -> list[str]:
    """The pools' family, row by row: there is no network to sum it up over."""
    rows = [
        row
        for row in doc["rows"]
        if row["net"] == FAMILY and row["contender"] == "auto" and SHOWN_POOL in row["layer"]
    ]
    if not rows:
        return []
    lines = [
        "",
        "| pooling | N | direction | layout | auto | of a copy's speed |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        where = [row["layer"], row["batch"], row["direction"], row["layout"]]
        numbers = [f"{row['ratio']:.2f}", f"{row['of_copy']:.2f}"] if "ratio" in row else ["—"] * 2
        lines.append(f"| {' | '.join(map(str, (*where, *numbers)))} |")
    return lines


def measured() -> str:
    """Every committed result file."""
    sections = [section(path) for path in sorted(RESULTS.glob("*/*.json"))]
    end = "Written by `python -m bench readme`. No GPU figure: not measured on a GPU."
    return "\n\n".join([*sections, end])


def write() -> None:
    """Brings the README's section up to the result files."""
    README.write_text(fill(README.read_text(), "measured", measured()))
