"""`python -m bench run`: the CPU convolutions against PyTorch, layer by layer."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

import fastconv
from bench import live, machine, providers, report
from bench.measure import measure, problems_of
from bench.problems import ConvLayer, conv_layers, source

RESULTS = Path(__file__).parent / "results"
DTYPES = ("float32", "float64", "bfloat16", "float16")


def words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def choices(known: tuple[str, ...]):
    def parse(text: str) -> list[str]:
        unknown = [word for word in words(text) if word not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {unknown}; known: {', '.join(known)}")
        return words(text)

    return parse


def positive(text: str) -> list[int]:
    values = [int(word) for word in words(text)]
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"expected whole numbers above 0, got {text!r}")
    return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    many = "comma-separated"
    add = parser.add_argument
    add("--nets", type=words, default=["resnet50", "vgg16", "googlenet"], help=f"{many} lists")
    add("--batch", type=positive, default=[1, 8], help=f"{many}; ignored where a list fixes it")
    add("--algos", type=words, default=["auto", "direct", "im2col", "winograd"], help=many)
    add("--directions", type=choices(providers.DIRECTIONS), default=["fprop"], help=many)
    add("--layout", type=choices(providers.LAYOUTS), default=list(providers.LAYOUTS), help=many)
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
    live.conclude(doc)
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
    dtype = getattr(torch, args.dtype)

    def rows_of(item: tuple[ConvLayer, int]) -> Iterator[list[dict]]:
        for problem, ref in problems_of(*item, args.directions, args.layout, dtype):
            yield measure(problem, args.algos, ref, args.seconds)

    return live.collect(work, lambda item: f"{item[0].net} {item[0].label} N={item[1]}", rows_of)
