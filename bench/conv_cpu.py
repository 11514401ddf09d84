"""`python -m bench run`: the CPU convolutions against PyTorch, layer by layer."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fastconv
from bench import machine, providers, report
from bench.measure import measure, problems_of
from bench.problems import ConvLayer, conv_layers, source

RESULTS = Path(__file__).parent / "results"
ROWS_IN_VIEW = 24  # of the live table; every row is in the markdown
DTYPES = ("float32", "float64", "bfloat16", "float16")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _choices(known: tuple[str, ...]):
    def parse(text: str) -> list[str]:
        unknown = [word for word in _words(text) if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {unknown}; known: {', '.join(known)}")
        return _words(text)

    return parse


def _positive(text: str) -> list[int]:
    values = [int(word) for word in _words(text)]
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers above 0, got {text!r}")
    return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    many = "comma-separated"
    add = parser.add_argument
    add("--nets", type=_words, default=["resnet50", "vgg16", "googlenet"], help=f"{many} lists")
    add("--batch", type=_positive, default=[1, 8], help=f"{many}; ignored where a list fixes it")
    add("--algos", type=_words, default=["auto", "direct", "im2col", "winograd"], help=many)
    add("--directions", type=_choices(providers.DIRECTIONS), default=["fprop"], help=many)
    add("--layout", type=_choices(providers.LAYOUTS), default=list(providers.LAYOUTS), help=many)
    add("--dtype", choices=DTYPES, default="float32")
    add("--threads", type=int, default=machine.usable_cores())
    add("--seconds", type=float, default=0.25, help="time budget per contender and problem")
    add("--limit", type=int, help="only the first LIMIT layers of each list")
    add("--autotune", action="store_true", help="let auto measure its candidates first")
    add("--json", type=Path, help="default: bench/results/<machine>/conv_cpu.json")
    add("--markdown", type=Path, help="default: bench/results/<machine>/conv_cpu.md")


def run(args: argparse.Namespace) -> int:
    """Runs the benchmark. Returns 1 when any answer was wrong, else 0."""
    known = providers.known("cpu")
    unknown = [name for name in args.algos if name not in known]
    if unknown:
        print(f"unknown algorithms {unknown}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    try:
        work = _work(args.nets, args.batch, args.limit)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    facts = machine.describe(args.threads)
    settings = {
        "lists": "; ".join(f"{net}: {source(net)}" for net in args.nets),
        "dtype": args.dtype,
        "seconds": args.seconds,
        "autotune": args.autotune,
        "load_at_start": [round(v, 2) for v in os.getloadavg()],
    }
    started = time.monotonic()
    tuning = fastconv.autotune() if args.autotune else nullcontext()
    with torch.inference_mode(), tuning:
        rows = _measure_all(args, work)
    settings["wall_seconds"] = round(time.monotonic() - started)
    doc = report.document(facts, settings, rows)
    folder = RESULTS / machine.slug(facts)
    json_path = args.json or folder / "conv_cpu.json"
    markdown_path = args.markdown or folder / "conv_cpu.md"
    report.write_json(doc, json_path)
    markdown_path.parent.mkdir(parents=True, exist_ok=True)
    markdown_path.write_text(report.markdown(doc))
    _conclude(doc)
    print(f"written: {json_path}, {markdown_path}")
    return 1 if any(row["status"] in ("wrong", "error") for row in rows) else 0


def _work(nets: list[str], batches: list[int], limit: int | None) -> list[tuple[ConvLayer, int]]:
    work = []
    for net in nets:
        layers = conv_layers(net)[:limit]
        work += [(layer, layer.batch) for layer in layers if layer.batch]
        work += [(layer, batch) for batch in batches for layer in layers if not layer.batch]
    return work


def _measure_all(args: argparse.Namespace, work: list[tuple[ConvLayer, int]]) -> list[dict]:
    console = Console()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    task = progress.add_task("layers", total=len(work))
    view: deque[dict] = deque(maxlen=ROWS_IN_VIEW)
    rows: list[dict] = []
    dtype = getattr(torch, args.dtype)
    # Without a terminal a live table would be an unreadable log: there, a line per row instead.
    # No refresh thread: it would take a core away from what is being timed.
    live = console.is_terminal
    display = Live(console=console, auto_refresh=False, transient=True) if live else nullcontext()
    with display as screen:
        for layer, batch in work:
            progress.update(task, description=f"{layer.net} {layer.label} N={batch}")
            for problem, ref in problems_of(layer, batch, args.directions, args.layout, dtype):
                new = measure(problem, args.algos, ref, args.seconds)
                rows += new
                view.extend(new)
                if live:
                    screen.update(Group(_table(view), progress), refresh=True)
                else:
                    print("\n".join(_plain(row) for row in new), flush=True)
            progress.advance(task)
    return rows


def _table(rows: deque[dict]) -> Table:
    table = Table(expand=False)
    for name in ("net", "layer", "N", "direction", "layout", "algorithm", "ran"):
        table.add_column(name, no_wrap=True)
    for name in ("error", "ms", "p20-p80", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        text = report.cell(row)
        head = [row["net"], row["layer"], str(row["batch"]), row["direction"], row["layout"]]
        tail = [text[k] for k in ("ran", "error", "time", "spread", "ratio")]
        style = "red" if row["status"] in ("wrong", "error") else None
        table.add_row(*head, row["contender"], *tail, style=style)
    return table


def _plain(row: dict) -> str:
    text = report.cell(row)
    name = row["contender"] + (f" ({text['ran']})" if text["ran"] else "")
    where = f"{row['net']} {row['layer']} N={row['batch']} {row['direction']} {row['layout']}"
    return f"{where:58} {name:26} error {text['error']:>6}  {text['time']:>8} ms  x{text['ratio']}"


def _conclude(doc: dict) -> None:
    for s in doc["summaries"]:
        where = f"{s['net']} N={s['batch']} {s['direction']} {s['layout']} {s['contender']}"
        if "geomean_ratio" in s:
            print(
                f"{where:48} geometric mean {s['geomean_ratio']:.2f}, whole network "
                f"{s['total_ratio']:.2f}, worst {s['worst_ratio']:.2f} ({s['worst_layer']}), "
                f"{s['timed']} of {s['layers']} layers"
            )
        if s["wrong"]:
            print(f"{where:48} WRONG on {s['wrong']} layers")
    for goal in doc["goals"]:
        print(report.goal_line(goal))
        for text in goal["missed_rows"]:
            print(f"    {text}")
