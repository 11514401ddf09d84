"""Turns a GPU run into JSON, markdown and a short table. Knows nothing of how it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import report

SCHEMA = 1
SHOWN_LINES = 40  # of why stages failed: who calls from afar may see little of the output
DRY = "DRY RUN: no kernel ran on a GPU and nothing was measured; what ran was rehearsed on the CPU."


# Contenders of the suite under the names that they have here.
EAGER = {"pytorch": "eager"}
LEFT_OUT = ("copy", "gemm")  # no answers to a convolution


def benchmark(result: dict) -> dict:
    """What `python -m bench run` wrote of convolutions, as `document` takes it: a problem's rows in
    both layouts together, a contender with its layout."""
    rows = [row_of(row) for row in result.get("rows", []) if row["contender"] not in LEFT_OUT]
    ceilings = result.get("settings", {}).get("ceilings", {})
    return {"ceilings": ceilings, "rows": rows, "goals": result.get("goals", [])}


def row_of(row: dict) -> dict:
    arithmetic = report.arithmetic(row)
    name = EAGER.get(row["contender"], row["contender"])
    where = f"{row['net']} {row['layer']} N={row['batch']} {row['direction']} {arithmetic}"
    if row.get("epilogue", "none") != "none":
        where += f" {row['epilogue']}"
    found = {
        "problem": where,
        "direction": row["direction"],
        "arithmetic": arithmetic,
        "contender": f"{name}@{row['layout']}",
        "ran": "aten" if row["ran"].startswith("aten") else EAGER.get(row["ran"], row["ran"]),
        "status": row["status"],
        "excess": row.get("error"),  # in units of the tolerance
    }
    return found | {key: row[key] for key in ("reason", "ms", "floor_ms") if key in row}


def by_problem(rows: Iterable[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["problem"], []).append(row)
    return found


def median(row: dict | None) -> float | None:
    return row["ms"]["median"] if row and "ms" in row else None


def quickest(rows: Iterable[dict]) -> dict | None:
    timed = [row for row in rows if "ms" in row]
    return min(timed, key=lambda row: row["ms"]["median"]) if timed else None


def who(row: dict) -> str:
    return row["contender"].rpartition("@")[0]


def is_ours(row: dict) -> bool:
    """Neither PyTorch nor `auto` having chosen PyTorch."""
    return who(row) not in ("eager", "compile") and row["ran"] != "aten"


def summary_row(key: str, rows: list[dict]) -> dict:
    """One problem in numbers: PyTorch's ways, the quickest of ours, auto, and the floor. Times in
    milliseconds; `ratio`: strongest PyTorch over our quickest, `auto_ratio`: over auto."""
    named = {row["contender"]: row for row in rows}
    ours = quickest(row for row in rows if is_ours(row))
    auto = quickest(row for row in rows if who(row) == "auto")
    theirs = quickest(row for row in rows if who(row) in ("eager", "compile"))
    floor = next((row["floor_ms"] for row in rows if "floor_ms" in row), None)

    def ratio(mine: dict | None) -> float | None:
        return median(theirs) / median(mine) if theirs and mine else None

    return {
        "problem": key,
        "direction": rows[0]["direction"],
        "arithmetic": rows[0]["arithmetic"],
        "eager_nchw": median(named.get("eager@nchw")),
        "eager_channels_last": median(named.get("eager@channels_last")),
        "compile": median(named.get("compile@channels_last")),
        "ours": median(ours),
        "ours_ran": f"{ours['ran']}@{ours['contender'].rpartition('@')[2]}" if ours else None,
        "auto": median(auto),
        "auto_ran": auto["ran"] if auto else None,
        "ratio": ratio(ours),
        "auto_ratio": ratio(auto),
        "floor": floor,
        "of_floor": floor / median(ours) if floor and ours else None,
        "wrong": sum(row["status"] in ("wrong", "error") and is_ours(row) for row in rows),
    }


def geometric_mean(values: Iterable[float | None]) -> float | None:
    logs = [math.log(value) for value in values if value]
    return math.exp(sum(logs) / len(logs)) if logs else None


def overall(problems: list[dict]) -> list[dict]:
    """Per arithmetic and direction, in the order of the problems."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in problems:
        groups.setdefault((row["arithmetic"], row["direction"]), []).append(row)
    return [
        {
            "arithmetic": arithmetic,
            "direction": direction,
            "problems": len(rows),
            "ratio": geometric_mean(row["ratio"] for row in rows),
            "auto_ratio": geometric_mean(row["auto_ratio"] for row in rows),
            "of_floor": geometric_mean(row["of_floor"] for row in rows),
            "wrong": sum(row["wrong"] for row in rows),
        }
        for (arithmetic, direction), rows in groups.items()
    ]


def document(
    dry: bool,
    machine: dict,
    stages: list[dict],
    benchmarks: list[dict],
    selftest: dict | None,
    assumptions: Sequence[dict] = (),
) -> dict:
    """Everything about a run. `benchmarks`: as from `benchmark`; their rows are merged.
    `selftest`: what `fastconv.selftest` wrote; `assumptions`: what `gpu_assumptions` found. A dry
    run has no ratios: they would be of nothing."""
    rows = [row for part in benchmarks for row in part.get("rows", [])]
    problems = [summary_row(key, found) for key, found in by_problem(rows).items()]
    failed = [s["name"] for s in stages if s["required"] and not passed(s, dry)]
    return {
        "schema": SCHEMA,
        "dry_run": dry,
        "note": DRY if dry else "",
        "passed": bool(stages) and not failed,
        "failed": failed,
        "machine": machine,
        "stages": stages,
        "ceilings": next((p["ceilings"] for p in benchmarks if p.get("ceilings")), {}),
        "assumptions": list(assumptions),
        "selftest": failures_of(selftest),
        "overall": [] if dry else overall(problems),
        "goals": [] if dry else [goal for part in benchmarks for goal in part.get("goals", [])],
        "problems": problems,
        "rows": rows,
    }


def failures_of(selftest: dict | None) -> dict | None:
    """How many instances ran, whether that is all, and which failed; more is in selftest.json."""
    if selftest is None:
        return None
    outcomes = selftest.get("outcomes", [])
    failed = [f"{o['instance']}: {o['error']}" for o in outcomes if o.get("error")]
    return {
        "build": selftest.get("build"),
        "complete": selftest.get("complete", False),
        "instances": len(outcomes),
        "failed": failed,
    }


def passed(stage: dict, dry: bool) -> bool:
    """In a dry run what needs a device is rightly not run."""
    return stage["status"] in ("passed", "limited") or (dry and stage["excused"])


def write_json(doc: dict, path: Path) -> None:
    """A list's items a line each; infinities and NaN become null."""
    parts = []
    for name, value in doc.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n  ".join(json.dumps(finite(item), allow_nan=False) for item in value)
            parts.append(f"{json.dumps(name)}: [\n  {items}\n]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(finite(value), indent=2)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def micro(ms: float | None) -> str:
    return "-" if ms is None else f"{ms * 1e3:.1f}"


def line(values: Iterable[object]) -> str:
    return "| " + " | ".join(str(value).replace("|", "/") for value in values) + " |"


def head(names: list[str]) -> list[str]:
    return [line(names), "|" + "---|" * len(names)]


def markdown(doc: dict) -> str:
    """The run as a page."""
    machine = doc["machine"]
    title = machine.get("device") or "no CUDA device"
    lines = [f"# GPU run: {title}", ""]
    lines += [f"**{doc['note']}**", ""] if doc["dry_run"] else []
    verdict = "passed" if doc["passed"] else f"FAILED: {', '.join(doc['failed']) or 'no stage ran'}"
    lines += [f"Outcome: {verdict}.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items() if value not in (None, [], {})]
    lines += ["", "## Stages", "", *head(["stage", "outcome", "s", "limit", "found", "remark"])]
    for s in doc["stages"]:
        times = [f"{s['seconds']:.0f}", f"{s['limit']:.0f}"] if s["limit"] else ["", ""]
        lines.append(line([s["name"], s["status"], *times, s["summary"], s["reason"]]))
    for s in doc["stages"]:
        if s["tail"]:
            lines += ["", f"{s['name']}, the end of its log:", "", "```", s["tail"], "```"]
    lines += assumptions_markdown(doc["assumptions"], doc["dry_run"])
    if doc["selftest"] and doc["selftest"]["failed"]:
        lines += ["", "## Kernels that failed the self-test", ""]
        lines += [f"- {text}" for text in doc["selftest"]["failed"]]
    if doc["selftest"] and not doc["selftest"]["complete"]:
        lines += ["", f"The self-test was ended after {doc['selftest']['instances']} instances."]
    if doc["rows"]:
        lines += benchmark_markdown(doc)
    return "\n".join(lines) + "\n"


def assumptions_markdown(found: list[dict], dry: bool) -> list[str]:
    """What does not hold first: a kernel that rests on it is not worth looking into before that."""
    if not found:
        return []
    bad = [a for a in found if a["outcome"] not in ("held", "not applicable") and not a["rate"]]
    held = [a["name"] for a in found if a["outcome"] == "held" and not a["rate"]]
    lines = ["", "## What the kernels take the device to do", ""]
    lines += head(["assumption", "outcome", "found", "what rests on it"]) if bad else []
    for a in bad:
        claim = f"{a['name']}: {a['claim']}"
        lines.append(line([claim, a["outcome"], a["measured"], a["rests"]]))
    lines += [""] if bad else []
    lines.append(f"Held: {', '.join(held) or 'nothing'}.")
    if not dry:
        lines += ["", *head(["rate", "outcome", "measured"])]
        rates = [a for a in found if a["rate"]]
        lines += [line([a["claim"], a["outcome"], a["measured"]]) for a in rates]
    return lines


def benchmark_markdown(doc: dict) -> list[str]:
    c = doc["ceilings"]
    lines = ["", "## Benchmark", ""]
    if doc["dry_run"]:
        timed = sum("ms" in row for row in doc["rows"])
        found = f"{timed} right answers of {len(doc['rows'])} calls on tiny problems on the CPU"
        return [*lines, f"Rehearsed: {found}. Their times say nothing."]
    if c:
        rates = [
            f"triad {c['triad_bytes_per_s'] / 1e12:.3g} TB/s",
            *(
                f"{name} product {c[f'gemm_{name}_flops'] / 1e12:.3g} TFLOP/s"
                for name in ("bfloat16", "float32", "tf32")
            ),
            f"an empty call {c['empty_call_ms'] * 1e3:.1f} µs",
        ]
        lines += [f"Ceilings of the same run: {', '.join(rates)}.", ""]
    lines += [
        "Median microseconds, cold L2. `ratio`: the strongest of PyTorch's three ways over the",
        "quickest of our kernels; `auto`: over what a user gets. `of floor`: the share of the",
        "time that triad and matrix product of the same run would need.",
        "",
        *head(["arithmetic", "direction", "problems", "ratio", "auto", "of floor", "wrong"]),
    ]
    for o in doc["overall"]:
        ratios = [number(o[k]) for k in ("ratio", "auto_ratio", "of_floor")]
        wrong = o["wrong"] or ""
        lines.append(line([o["arithmetic"], o["direction"], o["problems"], *ratios, wrong]))
    if doc["goals"]:
        lines += ["", *head(["goal", "met", "rows", "missed", "worst"])]
    for g in doc["goals"]:
        met = "yes" if g["passed"] else "no"
        lines.append(line([g["goal"], met, g["rows"], g["missed"], number(g["worst_ratio"])]))
    if doc.get("model"):
        lines += ["", "### The cost model", "", *doc["model"]["text"]]
    names = ["problem", "eager NCHW", "eager channels_last", "compile", "ours", "by", "auto", "ran"]
    lines += ["", *head([*names, "ratio", "auto ratio", "of floor"])]
    for p in doc["problems"]:
        times = [micro(p[k]) for k in ("eager_nchw", "eager_channels_last", "compile", "ours")]
        tail = [number(p[k]) for k in ("ratio", "auto_ratio", "of_floor")]
        auto = [micro(p["auto"]), p["auto_ran"] or "-"]
        lines.append(line([p["problem"], *times, p["ours_ran"] or "-", *auto, *tail]))
    bad = [row for row in doc["rows"] if row["status"] in ("wrong", "error")]
    if bad:
        lines += ["", "Wrong or failed:", ""]
        for row in bad:
            said = row.get("reason") or f"error {row.get('excess')} times the tolerance"
            lines.append(f"- {row['problem']} {row['contender']}: {row['status']}, {said}")
    return lines


def table(doc: dict) -> str:
    """What is printed last."""
    lines = [""]
    for s in doc["stages"]:
        remark = s["summary"] or s["reason"]
        lines.append(f"{s['name']:<28} {s['status']:<9} {s['seconds']:6.1f} s  {remark}"[:118])
    why = [
        f"{s['name']}: {text}" if i == 0 else f"  {text}"
        for s in doc["stages"]
        for i, text in enumerate(s["telling"])
    ]
    lines += ["", *why[:SHOWN_LINES]] if why else []
    lines += [f"... and {len(why) - SHOWN_LINES} lines more"] if len(why) > SHOWN_LINES else []
    for o in doc["overall"]:
        ratios = f"ratio {number(o['ratio'])}, auto {number(o['auto_ratio'])}"
        words = f"{o['arithmetic']} {o['direction']}: {o['problems']} problems, {ratios}"
        lines.append(f"{words}, of floor {number(o['of_floor'])}, wrong {o['wrong']}")
    for g in doc["goals"]:
        met = "met" if g["passed"] else f"missed by {g['missed']} of {g['rows']}"
        lines.append(f"goal {met}, worst {number(g['worst_ratio'])}: {g['goal']}"[:118])
    if doc.get("model"):
        lines.append(doc["model"]["text"][0])
    lines += [doc["note"]] if doc["dry_run"] else []
    verdict = "passed" if doc["passed"] else f"FAILED ({', '.join(doc['failed'])})"
    return "\n".join([*lines, f"outcome: {verdict}"])
