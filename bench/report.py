"""Turns rows into summaries, JSON and markdown. Knows nothing of how rows are made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from bench.goals import GOALS, Goal, assess, describe
from bench.providers import PYTORCH

SCHEMA = 1


def summarise(rows: Iterable[dict]) -> list[dict]:
    """Per net, batch, direction, layout and contender: geometric mean of the ratios over distinct
    layers, the ratio of whole-network times (layers weighted by count), and the worst layer."""

    def key(row: dict) -> tuple:
        return tuple(row[k] for k in ("net", "batch", "direction", "layout", "contender"))

    order = {k: i for i, k in enumerate(dict.fromkeys(key(row) for row in rows))}
    summaries = []
    for group, members in groupby(sorted(rows, key=lambda row: order[key(row)]), key=key):
        members = list(members)
        timed = [row for row in members if row.get("status") == "ok"]
        if group[-1] == PYTORCH:
            continue
        summary = dict(
            zip(("net", "batch", "direction", "layout", "contender"), group, strict=True)
        )
        summary |= {
            "layers": len(members),
            "timed": len(timed),
            "wrong": sum(row["status"] in ("wrong", "error") for row in members),
        }
        if timed:
            worst = min(timed, key=lambda row: row["ratio"])
            ours = sum(row["count"] * row["ms"]["median"] for row in timed)
            theirs = sum(row["count"] * row["pytorch_ms"]["median"] for row in timed)
            summary |= {
                "geomean_ratio": math.exp(
                    sum(math.log(row["ratio"]) for row in timed) / len(timed)
                ),
                "total_ratio": theirs / ours,
                "worst_ratio": worst["ratio"],
                "worst_layer": worst["layer"],
            }
        summaries.append(summary)
    return summaries


CONVOLUTION = (
    "Convolution on the CPU",
    "Error: largest deviation from fp64, in units of `u * sum|x||w|`.",
)


def document(
    machine: dict,
    settings: dict,
    rows: list[dict],
    goals: Sequence[Goal] = GOALS,
    title: tuple[str, str] = CONVOLUTION,
) -> dict:
    """Everything about a run, JSON-ready. `title`: what was run, and what its errors mean."""
    return {
        "schema": SCHEMA,
        "title": list(title),
        "machine": machine,
        "settings": settings,
        "goals": assess(rows, goals),
        "summaries": summarise(rows),
        "rows": rows,
    }


def write_json(doc: dict, path: Path) -> None:
    """One row a line, so that two runs can be compared with diff. Infinite errors become null."""
    parts = []
    for name, value in doc.items():
        if isinstance(value, list):
            items = ",\n  ".join(json.dumps(_finite(item), allow_nan=False) for item in value)
            parts.append(f"{json.dumps(name)}: [\n  {items}\n]" if value else f'"{name}": []')
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(_finite(value), indent=2)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def milliseconds(ms: float) -> str:
    """Three significant digits."""
    return f"{ms:.3g}" if ms < 1000 else f"{ms:.0f}"


def cell(row: dict) -> dict[str, str]:
    """What a table prints of a row; a time and a ratio only if the answer was right."""
    error = row.get("error")
    texts = {
        "error": "-" if error is None else f"{error:.1f}",
        "ran": row["ran"] if row["ran"] != row["contender"] else "",
        "time": "-",
        "spread": "",
        "ratio": "-",
    }
    if row.get("status") == "ok":
        texts["time"] = milliseconds(row["ms"]["median"])
        texts["spread"] = "-".join(milliseconds(row["ms"][k]) for k in ("p20", "p80"))
        texts["ratio"] = f"{row['ratio']:.2f}"
    else:
        texts["time"] = {"wrong": "WRONG", "error": "ERROR"}.get(row.get("status", ""), "n/a")
    return texts


def goal_line(goal: dict) -> str:
    verdict = "PASS" if goal["passed"] else f"FAIL on {goal['missed']}"
    worst = goal["worst_ratio"]
    worst_text = "" if worst is None else f", worst {worst:.2f}"
    return f"{goal['goal']}: {verdict} of {goal['rows']} rows{worst_text}"


def markdown(doc: dict) -> str:
    """The run as a page: machine, goals, summaries, then every layer."""
    machine, settings = doc["machine"], doc["settings"]
    title, errors = doc["title"]
    lines = [
        f"# {title}",
        "",
        "Ratio: PyTorch's median time over ours, same run, same layout; above 1 we are quicker.",
        errors,
        "",
        *(f"- {key}: {value}" for key, value in {**machine, **settings}.items()),
        "",
        "## Goals",
        "",
    ]
    for goal in doc["goals"]:
        lines.append(f"- {goal_line(goal)}")
        lines += [f"  - {text}" for text in goal["missed_rows"]]
    header = ["net", "N", "direction", "layout", "algorithm", "layers timed", "geometric mean"]
    lines += ["", "## Summary", "", *_head([*header, "whole network", "worst", "worst layer"])]
    for s in doc["summaries"]:
        timed = f"{s['timed']} of {s['layers']}" + (f", {s['wrong']} WRONG" if s["wrong"] else "")
        numbers = [
            f"{s[k]:.2f}" if k in s else "-"
            for k in ("geomean_ratio", "total_ratio", "worst_ratio")
        ]
        head = [s["net"], s["batch"], s["direction"], s["layout"], s["contender"], timed]
        lines.append(_line([*head, *numbers, s.get("worst_layer", "-")]))
    header = ["net", "layer", "N", "direction", "layout", "algorithm", "ran", "error"]
    limits = ["of copy"] if any("of_copy" in row for row in doc["rows"]) else []
    lines += ["", "## Layers", "", *_head([*header, "ms", "p20-p80", "ratio", *limits])]
    for row in doc["rows"]:
        if row.get("status") == "not applicable":
            continue
        text = cell(row)
        head = [row["net"], row["layer"], row["batch"], row["direction"], row["layout"]]
        tail = [text[k] for k in ("ran", "error", "time", "spread", "ratio")]
        tail += [f"{row['of_copy']:.2f}" if "of_copy" in row else "-" for _ in limits]
        lines.append(_line([*head, row["contender"], *tail]))
    absent = [describe(row) for row in doc["rows"] if row.get("status") == "not applicable"]
    if absent:
        lines += ["", f"Not applicable: {len(absent)} rows (reasons are in the JSON)."]
    return "\n".join(lines) + "\n"


def _head(names: list[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(values: list[object]) -> str:
    return "| " + " | ".join(str(v) for v in values) + " |"
