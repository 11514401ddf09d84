"""`python -m bench run` and `conv`: problems against contenders, and the files that come of it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fastconv
from bench import (
    ceilings,
    conv_problem,
    gpu_machine,
    lists,
    live,
    machine,
    pool_problem,
    providers,
    report,
)
from bench.goals import GOALS
from bench.gpu_timing import CudaTimer, timings
from bench.lists import Layer
from bench.measure import Timer, host_timer, measure
from bench.problem import DTYPES, LAYOUTS
from bench.providers import COPY, PYTORCH, Provider
from bench.timing import Timing, rate_samples

RESULTS = Path(__file__).parent / "results"
DIRECTIONS = tuple(dict.fromkeys((*conv_problem.DIRECTIONS, *pool_problem.DIRECTIONS)))
# What takes under three minutes on two cores.
DEFAULT_LISTS = ["resnet50", "family"]
DEFAULT_PROVIDERS = ["auto"]
OVERHEAD_SECONDS = 0.08  # of a problem's checks, besides its exact answer
EXACT_FLOPS = 2e9  # per second and thread, in fp64
INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """What to run, from the command line."""

    work: list[tuple[Layer, int]]
    contenders: list[Provider]
    directions: list[str] | None
    layouts: list[str]
    dtype: str
    epilogue: str
    precision: str
    device: str
    threads: int
    seconds: float
    autotune: bool
    until: float | None  # seconds


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
    add("--lists", "--nets", type=words, default=DEFAULT_LISTS, help=f"{many}; see `list`")
    add("--ops", type=choices(lists.FAMILIES), default=list(lists.FAMILIES), help=many)
    add("--model", help="instead of lists: module:callable that makes a torch model")
    add("--input", type=positive, help="the model's input size, e.g. 1,3,224,224")
    add("--batch", type=positive, default=[1], help=f"{many}; ignored where a list fixes it")
    add("--limit", type=int, help="only the first LIMIT layers of each list")
    add("--directions", type=choices(DIRECTIONS), help=f"{many}; default: each operation's usual")
    add_common_arguments(parser)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that `run` shares with a single problem."""
    many = "comma-separated"
    add = parser.add_argument
    add("--providers", "--algos", type=words, default=DEFAULT_PROVIDERS, help=f"{many}; see `list`")
    add("--layout", type=choices(LAYOUTS), default=list(LAYOUTS), help=many)
    add("--dtype", choices=DTYPES, default="float32")
    add("--epilogue", choices=conv_problem.EPILOGUES, default="none", help="of fprop")
    add("--precision", choices=conv_problem.PRECISIONS, default="ieee", help="float32 on CUDA")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=machine.usable_cores())
    add("--seconds", type=float, default=0.1, help="time budget per contender and problem")
    add("--until", type=float, help="stop after so many seconds; what is left out is said")
    add("--autotune", action="store_true", help="let auto measure its candidates first")
    add("--json", type=Path, help="default: bench/results/<machine>/run.json")
    add("--markdown", type=Path, help="default: beside the JSON")
    add("--csv", type=Path, help="default: beside the JSON")


def from_lists(args: argparse.Namespace) -> int:
    """`run`. Returns 1 when an answer of ours was wrong, 2 on bad arguments, else 0."""
    try:
        if args.model:
            if not args.input:
                raise ValueError("--model needs --input, e.g. --input 1,3,224,224")
            layers = lists.model_layers(args.model, args.input)
            layers = [layer for layer in layers if lists.family_of(layer) in args.ops]
            work = [(layer, args.input[0]) for layer in layers[: args.limit]]
            sources = {args.model: "a model given on the command line"}
        else:
            work = list(_listed(args.lists, args.ops, args.batch, args.limit))
            sources = {name: lists.source(name) for name in args.lists}
        options = _options(args, work, args.directions)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return run(options, sources, args)


def single(args: argparse.Namespace) -> int:
    """`conv`: one convolution."""
    try:
        layer, directions = lists.single_convolution(args)
        options = _options(args, [(layer, args.n)], directions)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return run(options, {"command line": "command line"}, args)


def _options(
    args: argparse.Namespace, work: list[tuple[Layer, int]], directions: list[str] | None
) -> Options:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device")
    names = list(dict.fromkeys((PYTORCH, *args.providers, COPY)))
    return Options(
        work,
        [providers.provider(name, args.device) for name in names],
        directions,
        args.layout,
        args.dtype,
        args.epilogue,
        args.precision,
        args.device,
        args.threads,
        args.seconds,
        args.autotune,
        args.until,
    )


def _listed(
    names: list[str], families: list[str], batches: list[int], limit: int | None
) -> Iterator[tuple[Layer, int]]:
    for name in names:
        layers = lists.layers(name, families)[:limit]
        fixed = [layer for layer in layers if getattr(layer, "batch", None)]
        yield from ((layer, layer.batch) for layer in fixed)
        for batch in batches:
            yield from ((layer, batch) for layer in layers if layer not in fixed)


def estimate(options: Options) -> float:
    """Seconds that a run takes, roughly: the timing's budget, and the exact answers in fp64."""
    total = 0.0
    for layer, batch in options.work:
        directions = lists.directions_of(layer, options.directions)
        each = options.seconds * len(options.contenders) + OVERHEAD_SECONDS
        total += len(directions) * len(options.layouts) * each
        if lists.family_of(layer) == "conv":
            total += len(directions) * 2.0 * layer.macs(batch) / (EXACT_FLOPS * options.threads)
    return total


def _command() -> str:
    """As typed, but for where the results go."""
    files = ("--json", "--markdown", "--csv")
    words, skip = [], False
    for word in sys.argv[1:]:
        if skip or word.startswith(tuple(f"{name}=" for name in files)):
            skip = False
        elif word in files:
            skip = True
        else:
            words.append(word)
    return " ".join(words)


def _clock(device: str) -> tuple[Timer, ceilings.RateSamples]:
    """How calls are timed there: by the host's clock, or as CUDA-graph replays between events."""
    if device == "cpu":
        return host_timer, rate_samples
    cuda = CudaTimer()

    def timed(
        calls: Mapping[str, providers.Call], seconds: float, least: int
    ) -> Mapping[str, Timing]:
        ready = {name: cuda.prepare(name, run) for name, run in calls.items()}
        return timings(cuda, ready, seconds)

    return timed, cuda.rate_samples


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def run(options: Options, sources: dict[str, str], args: argparse.Namespace) -> int:
    """Measures, writing what there is after every layer: an interrupted run loses no rows."""
    torch.set_num_threads(options.threads)
    facts = machine.describe(options.threads)
    if options.device == "cuda":
        facts |= {"gpu": gpu_machine.describe()}
    json_path = args.json or RESULTS / machine.slug(facts) / "run.json"
    files = report.Files(
        json_path,
        args.markdown or json_path.with_suffix(".md"),
        args.csv or json_path.with_suffix(".csv"),
    )
    settings: dict[str, Any] = {
        "command": _command(),
        "lists": "; ".join(f"{name}: {text}" for name, text in sources.items()),
        "dtype": options.dtype,
        "precision": options.precision,
        "seconds": options.seconds,
        "autotune": options.autotune,
        "load_at_start": [round(v, 2) for v in os.getloadavg()],
    }
    limit = "" if options.until is None else f", stopping after {duration(options.until)}"
    print(f"{len(options.work)} layers, about {duration(estimate(options))}{limit}", flush=True)
    started = time.monotonic()
    timer, samples = _clock(options.device)
    arithmetic = "tf32" if options.precision == "tf32" else options.dtype
    rates = ceilings.measured(samples, options.device, (arithmetic,))
    settings["ceilings"] = {name: float(f"{rate:.4g}") for name, rate in rates.items()}
    if options.device == "cuda":  # warm from the ceilings; what an idle device says means little
        settings["clocks_at_start"] = gpu_machine.nvidia_smi(gpu_machine.CLOCKS)
    dtype = getattr(torch, options.dtype)
    rows: list[dict] = []

    def rows_of(item: tuple[Layer, int]) -> Iterator[list[dict]]:
        layer, batch = item
        for problem in lists.problems_of(
            layer,
            batch,
            options.directions,
            options.layouts,
            dtype,
            options.device,
            options.epilogue,
            options.precision,
        ):
            yield measure(problem, options.contenders, options.seconds, ceilings=rates, timer=timer)

    def write() -> dict:
        settings["wall_seconds"] = round(time.monotonic() - started)
        if options.device == "cuda":
            settings["clocks_at_end"] = gpu_machine.nvidia_smi(gpu_machine.CLOCKS)
        doc = report.document(facts, settings, rows, GOALS)
        files.write(doc)
        return doc

    def out_of_time() -> bool:
        return options.until is not None and time.monotonic() - started > options.until

    tuning = fastconv.autotune() if options.autotune else nullcontext()
    with torch.inference_mode(False), torch.no_grad(), tuning:
        left = live.collect(
            options.work,
            rows,
            describe=lambda item: f"{item[0].net} {item[0].label} N={item[1]}",
            measure=rows_of,
            each=write,
            stop=out_of_time,
        )
    if left:
        settings["left_out"] = f"{left} of {len(options.work)} layers"
    doc = write()
    live.conclude(doc)
    print(f"written: {', '.join(map(str, files.paths()))}")
    wrong = any(row["status"] in ("wrong", "error") and row["ours"] for row in rows)
    return 1 if wrong else INTERRUPTED if left and not out_of_time() else 0
