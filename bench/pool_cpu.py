"""`python -m bench pool`: the CPU poolings against PyTorch, layer by layer."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import live, machine, pool_correctness, pool_providers, report
from bench.conv_cpu import DTYPES, RESULTS, choices, positive, words
from bench.pool_goals import GOALS
from bench.pool_problems import FAMILY, PoolLayer, pool_layers, source
from bench.pool_providers import COPY, DIRECTIONS, PoolProblem
from bench.providers import LAYOUTS, PYTORCH, with_layout
from bench.timing import interleaved

NETS = [FAMILY, "resnet50", "vgg16", "googlenet", "densenet121", "efficientnet_b0"]
TITLE = (
    "Pooling on the CPU",
    "Error: maxima, whether equal (0); sums and norms, largest deviation from fp64 in units of"
    " `u * |y|`; stochastic, of the mean from its expectation in standard errors. Of copy: the time"
    " of a copy of the bytes that the problem has to move, over ours. Stochastic pooling's PyTorch"
    " is a composition of unfold, multinomial and gather.",
)
AGAIN = 4  # a ratio below its goal is measured again with this many times the budget


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pool`."""
    many = "comma-separated"
    add = parser.add_argument
    add("--nets", type=words, default=NETS, help=f"{many} lists")
    add("--batch", type=positive, default=[1, 8], help=many)
    add("--algos", type=words, default=["auto"], help=many)
    add("--directions", type=choices(DIRECTIONS), default=list(DIRECTIONS), help=many)
    add("--layout", type=choices(LAYOUTS), default=list(LAYOUTS), help=many)
    add("--dtype", choices=DTYPES, default="float32")
    add("--threads", type=int, default=machine.usable_cores())
    add("--seconds", type=float, default=0.25, help="time budget per contender and problem")
    add("--json", type=Path, help="default: bench/results/<machine>/pool.json")
    add("--markdown", type=Path, help="default: bench/results/<machine>/pool.md")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark. Returns 1 when any answer was wrong, else 0."""
    try:
        layers = [layer for net in args.nets for layer in pool_layers(net)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    facts = machine.describe(args.threads)
    settings = {
        "lists": "; ".join(f"{net}: {source(net)}" for net in args.nets),
        "dtype": args.dtype,
        "seconds": args.seconds,
        "load_at_start": [round(v, 2) for v in os.getloadavg()],
    }
    started = time.monotonic()
    rows = live.collect(
        [(layer, batch) for batch in args.batch for layer in layers],
        lambda item: f"{item[0].net} {item[0].label} N={item[1]}",
        lambda item: (
            measure(problem, args.algos, args.seconds) for problem in problems(*item, args)
        ),
    )
    settings["wall_seconds"] = round(time.monotonic() - started)
    doc = report.document(facts, settings, rows, GOALS, TITLE)
    folder = RESULTS / machine.slug(facts)
    json_path = args.json or folder / "pool.json"
    markdown_path = args.markdown or folder / "pool.md"
    report.write_json(doc, json_path)
    markdown_path.parent.mkdir(parents=True, exist_ok=True)
    markdown_path.write_text(report.markdown(doc))
    live.conclude(doc)
    print(f"written: {json_path}, {markdown_path}")
    return 1 if any(row["status"] in ("wrong", "error") for row in rows) else 0


def problems(layer: PoolLayer, batch: int, args: argparse.Namespace) -> Iterator[PoolProblem]:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, args.dtype)
    x = torch.rand(layer.input_size(batch), generator=generator).to(dtype)
    dy = torch.rand(layer.output_size(batch), generator=generator).to(dtype)
    for direction in args.directions:
        for layout in args.layout:
            tensors = (with_layout(t, layout) for t in (x, dy))
            yield PoolProblem(layer, batch, direction, layout, *tensors)


def measure(problem: PoolProblem, names: list[str], seconds: float) -> list[dict]:
    """Rows of all contenders on one problem, PyTorch's first. Only right answers have a time."""
    rows, calls = {}, {}
    for name in (PYTORCH, *names):
        rows[name] = _check(name, problem)
        if rows[name]["status"] == "ok":
            calls[name] = pool_providers.call_of(name, problem)
    if PYTORCH not in calls:
        raise RuntimeError(f"PyTorch itself fails on {problem.layer.label}: {rows[PYTORCH]}")
    calls[COPY] = pool_providers.call_of(COPY, problem)
    _record(rows, interleaved(calls, seconds))
    doubtful = [
        name
        for name in calls
        if name in names and any(g.covers(rows[name]) and not g.met(rows[name]) for g in GOALS)
    ]
    if doubtful:
        first = {name: rows[name]["ratio"] for name in doubtful}
        again = {name: calls[name] for name in (PYTORCH, *doubtful, COPY)}
        _record(rows, interleaved(again, AGAIN * seconds, min_rounds=9))
        for name in doubtful:
            rows[name]["first_ratio"] = first[name]
    return list(rows.values())


def _check(name: str, problem: PoolProblem) -> dict:
    row = _row(problem, name)
    try:
        verdict = pool_correctness.judge(name, problem)
    except RuntimeError as reason:
        return row | {"status": "not applicable", "reason": str(reason)}
    except Exception as error:  # a crash of one contender is a result, not the end of the run
        return row | {"status": "error", "reason": f"{type(error).__name__}: {error}"}
    row |= {"error": verdict.error, "tolerance": verdict.tolerance}
    if not verdict.ok:
        return row | {"status": "wrong", "reason": verdict.reason}
    return row | {"status": "ok"}


def _record(rows: dict[str, dict], timings: dict) -> None:
    yardstick, copy = timings[PYTORCH], timings[COPY]
    for name, timing in timings.items():
        if name == COPY:
            continue
        row = rows[name]
        row["ms"] = timing.as_dict()
        row["pytorch_ms"] = yardstick.as_dict()
        row["ratio"] = yardstick.median / timing.median
        row["of_copy"] = copy.median / timing.median
        row["gb_per_second"] = row["bytes"] / timing.median * 1e-6


def _row(problem: PoolProblem, name: str) -> dict:
    layer = problem.layer
    return {
        "net": layer.net,
        "layer": layer.label,
        "kind": layer.kind,
        "count": layer.count,
        "bytes": layer.elements(problem.batch, problem.direction) * problem.x.element_size(),
        "batch": problem.batch,
        "direction": problem.direction,
        "layout": problem.layout,
        "dtype": str(problem.x.dtype).removeprefix("torch."),
        "contender": name,
        "ran": name,
    }
