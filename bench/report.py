"""Turns rows into summaries, JSON, CSV and markdown. Knows nothing of how rows are made."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from bench.contenders import LIMITS, PYTORCH
from bench.goals import GOALS, Goal, assess

SCHEMA = 2
GROUP = ("net", "batch", "direction", "layout", "contender")


def summarise(rows: Iterable[dict]) -> list[dict]:
    """Per net, batch, direction, layout and contender of ours, against every other that has times
    there: geometric mean of the ratios over distinct layers, the ratio of whole-network times
    (layers weighted by count), and the worst layer. PyTorch in the same layout comes first.

    A net's operations are summed up together, as a network runs them; arithmetics apart.
    """
    rows = list(rows)
    where = {(*problem_key(row), row["contender"]): row for row in rows if row["status"] == "ok"}
    groups: dict[tuple, list[dict]] = {}
    several = len({arithmetic(row) for row in rows}) > 1
    for row in rows:
        group = tuple(row[k] for k in GROUP)
        if several:  # told apart where the direction is
            group = tuple(f"{v} {arithmetic(row)}" if k == "direction" else v
                          for k, v in zip(GROUP, group, strict=True))  # fmt: skip
        groups.setdefault(group, []).append(row)
    rivals = [name for name in dict.fromkeys(r["contender"] for r in rows) if name not in LIMITS]
    ours = {row["contender"] for row in rows if row["ours"]}
    summaries = []
    for group, members in groups.items():
        if group[-1] in (PYTORCH, *LIMITS):
            continue
        against = [PYTORCH] if group[-1] != "auto" else [n for n in rivals if n != "auto"]
        if group[-1] not in ours:
            against = [PYTORCH]
        for rival in against:
            pairs = [
                (row, where[(*problem_key(row), rival)])
                for row in members
                if row["status"] == "ok" and (*problem_key(row), rival) in where
            ]
            if pairs or rival == PYTORCH:
                summaries.append(_summary(group, members, rival, pairs))
    return summaries


def arithmetic(row: dict) -> str:
    """The dtype, or "tf32" or "tf32x3" where float32 is multiplied so."""
    precision = row.get("precision", "ieee")  # older results have none
    return row["dtype"] if precision == "ieee" else precision


def problem_key(row: dict) -> tuple:
    """What makes two rows rows of one problem in one layout."""
    names = ("op", "net", "layer", "batch", "direction", "layout", "device", "dtype")
    # Older results have no precision.
    more = (row.get("precision", "ieee"), row.get("epilogue", "none"))
    return (*(row[name] for name in names), *more)


def _summary(group: tuple, members: list[dict], rival: str, pairs: list[tuple[dict, dict]]) -> dict:
    summary = dict(zip(GROUP, group, strict=True)) | {
        "against": rival,
        "layers": len(members),
        "timed": len(pairs),
        "wrong": sum(row["status"] in ("wrong", "error") for row in members),
    }
    if pairs:
        # A row that was measured again has PyTorch's time of that measurement.
        of = "pytorch_ms" if rival == PYTORCH else "ms"
        pairs = [(ours, ours if rival == PYTORCH else theirs) for ours, theirs in pairs]
        ratios = [theirs[of]["median"] / ours["ms"]["median"] for ours, theirs in pairs]
        worst = min(range(len(pairs)), key=ratios.__getitem__)
        mine = sum(ours["count"] * ours["ms"]["median"] for ours, _ in pairs)
        total = sum(theirs["count"] * theirs[of]["median"] for _, theirs in pairs)
        summary |= {
            "geomean_ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)),
            "total_ratio": total / mine,
            "worst_ratio": ratios[worst],
            "worst_layer": pairs[worst][0]["layer"],
        }
    return summary


def document(
    machine: dict, settings: dict, rows: list[dict], goals: Sequence[Goal] = GOALS
) -> dict:
    """Everything about a run, JSON-ready."""
    return {
        "schema": SCHEMA,
        "machine": machine,
        "settings": settings,
        "goals": assess(rows, goals),
        "summaries": summarise(rows),
        "rows": rows,
    }


@dataclass(frozen=True)
class Files:
    """Where a run's results go. Each is replaced at once: a reader never sees half of one."""

    json: Path
    markdown: Path
    csv: Path

    def paths(self) -> tuple[Path, ...]:
        return (self.json, self.markdown, self.csv)

    def write(self, doc: dict) -> None:
        for path, write in zip(self.paths(), (write_json, write_markdown, write_csv), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            write(doc, partial)
            partial.replace(path)


def write_json(doc: dict, path: Path) -> None:
    """One row a line, so that two runs can be compared with diff. Infinite errors become null."""
    parts = []
    for name, value in doc.items():
        if isinstance(value, list):
            items = ",\n  ".join(json.dumps(_finite(item), allow_nan=False) for item in value)
            parts.append(f"{json.dumps(name)}: [\n  {items}\n]" if value else f'"{name}": []')
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(_finite(value), indent=2)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def write_markdown(doc: dict, path: Path) -> None:
    path.write_text(markdown(doc))


def write_csv(doc: dict, path: Path) -> None:
    """A row a line; nested times as columns ms_median, ms_p20, …"""
    flat = [_flat(row) for row in doc["rows"]]
    names = list(dict.fromkeys(name for row in flat for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(flat)


def _flat(row: dict) -> dict:
    flat = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{part}": each for part, each in value.items()}
        else:
            flat[name] = value
    return flat


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
        "of_limit": "-",
    }
    if row.get("status") == "ok":
        texts["time"] = milliseconds(row["ms"]["median"])
        texts["spread"] = "-".join(milliseconds(row["ms"][k]) for k in ("p20", "p80"))
        texts |= {k: f"{row[k]:.2f}" for k in ("ratio", "of_limit") if k in row}
    else:
        texts["time"] = {"wrong": "WRONG", "error": "ERROR"}.get(row.get("status", ""), "n/a")
    return texts


def goal_line(goal: dict) -> str:
    verdict = "PASS" if goal["passed"] else f"FAIL on {goal['missed']}"
    worst = goal["worst_ratio"]
    worst_text = "" if worst is None else f", worst {worst:.2f}"
    return f"{goal['goal']}: {verdict} of {goal['rows']} rows{worst_text}"


HEAD = (
    "Ratio: PyTorch's median time over this one's, same run, same layout; above 1 is quicker.",
    "Of limit: the time that this run's own triad and matrix product leave for the problem's bytes"
    " and FLOPs, over the time it took (above 1: its operands stay in a cache, or it is Winograd,"
    " which multiplies less). Of copy: the same against a copy of as many bytes, cache and all.",
    "Error: convolutions, the largest deviation from fp64 in units of `u * sum|x||w|`; sums and"
    " norms, in units of `u * |y|`; maxima have to be equal; draws, of their mean from its"
    " expectation in standard errors.",
)


def markdown(doc: dict) -> str:
    """The run as a page: machine, goals, summaries, then every layer."""
    machine, settings = doc["machine"], doc["settings"]
    lines = ["# Benchmark", "", *(line for text in HEAD for line in (text, ""))]
    lines += [f"- {key}: {value}" for key, value in {**machine, **settings}.items()]
    lines += ["", "## Goals", ""]
    for goal in doc["goals"]:
        lines.append(f"- {goal_line(goal)}")
        lines += [f"  - {text}" for text in goal["missed_rows"]]
    header = ["net", "N", "direction", "layout", "provider", "against", "layers timed"]
    header += ["geometric mean", "whole network", "worst", "worst layer"]
    lines += ["", "## Summary", "", *_head(header)]
    for s in doc["summaries"]:
        timed = f"{s['timed']} of {s['layers']}" + (f", {s['wrong']} WRONG" if s["wrong"] else "")
        numbers = [
            f"{s[k]:.2f}" if k in s else "-"
            for k in ("geomean_ratio", "total_ratio", "worst_ratio")
        ]
        head = [*(s[k] for k in GROUP), s["against"], timed]
        lines.append(_line([*head, *numbers, s.get("worst_layer", "-")]))
    header = ["net", "layer", "N", "direction", "layout", "provider", "ran", "error"]
    header += ["ms", "p20-p80", "ratio", "of limit", "of copy"]
    for op, members in groupby(doc["rows"], key=lambda row: row["op"]):
        shown = [row for row in members if row["status"] != "not applicable"]
        if not shown:
            continue
        lines += ["", f"## {op}", "", *_head(header)]
        for row in shown:
            text = cell(row)
            head = [row["net"], row["layer"], row["batch"], row["direction"], row["layout"]]
            tail = [text[k] for k in ("ran", "error", "time", "spread", "ratio", "of_limit")]
            tail.append(f"{row['of_copy']:.2f}" if "of_copy" in row else "-")
            lines.append(_line([*head, row["contender"], *tail]))
    absent = sum(row["status"] == "not applicable" for row in doc["rows"])
    if absent:
        lines += ["", f"Not applicable: {absent} rows (reasons are in the JSON)."]
    return "\n".join(lines) + "\n"


def _head(names: list[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(values: list[object]) -> str:
    return "| " + " | ".join(str(v) for v in values) + " |"
