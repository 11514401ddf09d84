"""`python -m bench run` and `conv`: problems against contenders, and the files that come of it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import fastconv
from bench import (
    ceilings,
    conv_problem,
    gpu_layers,
    gpu_machine,
    lists,
    live,
    machine,
    pool_problem,
    providers,
    report,
    stretches,
)
from bench.goals import GOALS
from bench.gpu_stages import RC_LIMITED
from bench.gpu_timing import CudaTimer, timings
from bench.lists import Layer
from bench.measure import Timer, host_timer, measure
from bench.problem import DTYPES, LAYOUTS, Problem
from bench.providers import COPY, PYTORCH, Provider
from bench.timing import Timing, quantile, rate_samples
from fastconv import select, select_triton

RESULTS = Path(__file__).parent / "results"
DIRECTIONS = tuple(dict.fromkeys((*conv_problem.DIRECTIONS, *pool_problem.DIRECTIONS)))
# What takes under three minutes on two cores.
DEFAULT_LISTS = ["resnet50", "family"]
DEFAULT_PROVIDERS = ["auto"]
OVERHEAD_SECONDS = 0.08  # of a problem's checks, besides its exact answer
EXACT_FLOPS = 2e9  # per second and thread, in fp64
INTERRUPTED = 130
STAGE_SECONDS = "FASTCONV_STAGE_SECONDS"  # what a stage of the GPU command is given
MARGIN_SECONDS = 15.0
SLOW_SECONDS = 0.05  # a call on the GPU that takes longer is sampled once, and not captured
# As a provider: every algorithm of ours on the device but Triton's, which each kind of problem
# compiles for seconds.
OURS = "ours"


@dataclass(frozen=True)
class Work:
    """A layer with its batch, and what of it is timed. directions: None for the usual ones."""

    layer: Layer
    batch: int
    directions: list[str] | None
    dtype: str
    precision: str
    epilogue: str = "none"

    @property
    def arithmetic(self) -> str:
        return self.dtype if self.precision == "ieee" else self.precision

    def __str__(self) -> str:
        return f"{self.layer.net} {self.layer.label} N={self.batch}"


@dataclass(frozen=True)
class Options:
    """What to run, from the command line."""

    work: list[Work]
    contenders: list[Provider]
    layouts: list[str]
    device: str
    threads: int
    seconds: float
    autotune: bool
    until: float | None  # seconds
    every_instance: int
    reference: str | None


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


def until(text: str) -> float:
    """Seconds; "stage": what the GPU command's stage has, less what it takes to end well."""
    if text != "stage":
        return float(text)
    limit = float(os.environ.get(STAGE_SECONDS, "180"))
    return limit - min(MARGIN_SECONDS, limit / 4)


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
    add("--until", type=until, help="stop after so many seconds; what is left out is said")
    add("--every-instance", type=int, default=0, metavar="LAYERS", help="CUDA: of the first ones")
    add("--reference", choices=conv_problem.REFERENCES, help="of convolutions' exact answers")
    add("--restarts", type=int, help="processes after one that a kernel takes down; CUDA: 4")
    add("--progress", type=Path, help=argparse.SUPPRESS)  # this process is one stretch of a run
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
            work = [_work(args, layer, args.input[0]) for layer in layers[: args.limit]]
            sources = {args.model: "a model given on the command line"}
        else:
            work = list(_listed(args))
            sources = {name: lists.source(name) for name in args.lists}
        options = _options(args, work)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return run(options, sources, args)


def single(args: argparse.Namespace) -> int:
    """`conv`: one convolution."""
    try:
        layer, directions = lists.single_convolution(args)
        args.directions = directions
        options = _options(args, [_work(args, layer, args.n)])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return run(options, {"command line": "command line"}, args)


def _work(args: argparse.Namespace, layer: Layer, batch: int) -> Work:
    return Work(layer, batch, args.directions, args.dtype, args.precision, args.epilogue)


def _options(args: argparse.Namespace, work: list[Work]) -> Options:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no CUDA device")
    others = (select.ATEN, select.WINOGRAD)  # the latter stands for one of two
    others += select_triton.ALGORITHMS
    ours = [name for name in select.names(args.device) if name not in others]
    named = [n for name in args.providers for n in (ours if name == OURS else [name])]
    names = list(dict.fromkeys((PYTORCH, *named, COPY)))
    return Options(
        work,
        [providers.provider(name, args.device) for name in names],
        args.layout,
        args.device,
        args.threads,
        args.seconds,
        args.autotune,
        args.until,
        args.every_instance if args.device == "cuda" else 0,
        args.reference,
    )


def _listed(args: argparse.Namespace) -> Iterator[Work]:
    for name in args.lists:
        if name in gpu_layers.names():
            yield from islice(_by_value(name), args.limit)
            continue
        layers = lists.layers(name, args.ops)[: args.limit]
        fixed = [layer for layer in layers if getattr(layer, "batch", None)]
        yield from (_work(args, layer, layer.batch) for layer in fixed)
        for batch in args.batch:
            yield from (_work(args, layer, batch) for layer in layers if layer not in fixed)


def _by_value(name: str) -> Iterator[Work]:
    """A list that fixes everything, most telling first."""
    for layer, direction, arithmetic, epilogue in gpu_layers.work(name):
        rounded = arithmetic.startswith("tf32")
        dtype, precision = ("float32", arithmetic) if rounded else (arithmetic, "ieee")
        yield Work(layer, layer.batch, [direction], dtype, precision, epilogue)


def estimate(options: Options) -> float:
    """Seconds that a run takes, roughly: the timing's budget, and the exact answers in fp64."""
    total = 0.0
    for item in options.work:
        layer, directions = item.layer, lists.directions_of(item.layer, item.directions)
        each = options.seconds * len(options.contenders) + OVERHEAD_SECONDS
        total += len(directions) * len(options.layouts) * each
        if lists.family_of(layer) == "conv" and options.device == "cpu":
            macs = layer.macs(item.batch)
            total += len(directions) * 2.0 * macs / (EXACT_FLOPS * options.threads)
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

    def prepared(name: str, run: providers.Call) -> providers.Call:
        began = time.monotonic()
        run()
        torch.cuda.synchronize()
        slow = time.monotonic() - began > SLOW_SECONDS
        return (cuda.once if slow else cuda.prepare)(name, run)

    def timed(
        calls: Mapping[str, providers.Call], seconds: float, least: int
    ) -> Mapping[str, Timing]:
        ready = {}
        for name, run in calls.items():
            try:
                ready[name] = prepared(name, run)
            except torch.OutOfMemoryError:  # a captured graph keeps its workspace: it has no time
                torch.cuda.empty_cache()
        return timings(cuda, ready, seconds) if ready else {}

    return timed, cuda.rate_samples


def measured_rates(options: Options, samples: ceilings.RateSamples) -> dict[str, float]:
    """The ceilings of every arithmetic that is run; on a GPU also what a sample of next to nothing
    takes, the part of every time that is not the kernel."""
    arithmetics = tuple(dict.fromkeys(item.arithmetic for item in options.work))
    small = all(item.layer.net == gpu_layers.REHEARSAL for item in options.work)
    rates = ceilings.measured(samples, options.device, arithmetics, small)
    if options.device == "cuda":
        x = torch.zeros(32, device=options.device)
        cuda = CudaTimer()
        ready = {"empty": cuda.prepare("empty", lambda: x.add_(1.0))}
        rates["empty_call_ms"] = quantile(cuda.samples(ready, 15)["empty"], 0.5)
    return {name: float(f"{rate:.4g}") for name, rate in rates.items()}


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def run(options: Options, sources: dict[str, str], args: argparse.Namespace) -> int:
    """Measures, writing what there is after every layer: an interrupted run loses no rows. On a
    GPU in stretches (bench/stretches.py)."""
    restarts = args.restarts
    if restarts is None:
        restarts = stretches.RESTARTS if options.device == "cuda" else 0
    if restarts and args.progress is None:
        patience = stretches.HANGS_AFTER + 60 * options.seconds  # all contenders are timed together
        return stretches.supervise(args.words, restarts, patience)
    return Run(options, sources, args).run()


class Run:
    """One process' share of a run: all of it, or a stretch."""

    def __init__(self, options: Options, sources: dict[str, str], args: argparse.Namespace) -> None:
        self.options, self.progress = options, stretches.Progress(args.progress)
        torch.set_num_threads(options.threads)
        self.facts = machine.describe(options.threads)
        if options.device == "cuda":
            self.facts |= {"gpu": gpu_machine.describe()}
        path = args.json or RESULTS / machine.slug(self.facts) / "run.json"
        more = (args.markdown or path.with_suffix(".md"), args.csv or path.with_suffix(".csv"))
        self.files = report.Files(path, *more)
        self.settings: dict[str, Any] = {
            "command": _command(),
            "lists": "; ".join(f"{name}: {text}" for name, text in sources.items()),
            "dtype": ", ".join(dict.fromkeys(item.dtype for item in options.work)),
            "precision": ", ".join(dict.fromkeys(item.precision for item in options.work)),
            "seconds": options.seconds,
            "autotune": options.autotune,
            "load_at_start": [round(v, 2) for v in os.getloadavg()],
        }
        # Of the whole run, by the system's clock: a stretch does not begin anew.
        self.started = self.progress.facts.setdefault("started", time.time())
        self.timer, samples = _clock(options.device)
        if "ceilings" not in self.progress.facts:
            self.progress.facts["ceilings"] = measured_rates(options, samples)
            if options.device == "cuda":  # warm from that; an idle device's say little
                self.progress.facts["clocks"] = gpu_machine.nvidia_smi(gpu_machine.CLOCKS)
        self.rates = self.settings["ceilings"] = self.progress.facts["ceilings"]
        self.progress.save()

    def write(self) -> dict:
        self.settings["wall_seconds"] = round(time.time() - self.started)
        if self.options.device == "cuda":
            self.settings["clocks_at_start"] = self.progress.facts["clocks"]
            self.settings["clocks_at_end"] = gpu_machine.nvidia_smi(gpu_machine.CLOCKS)
        doc = report.document(self.facts, self.settings, self.progress.rows, GOALS)
        self.files.write(doc)
        return doc

    def out_of_time(self) -> bool:
        limit = self.options.until
        return limit is not None and time.time() - self.started > limit

    def contenders(self, item: Work, problem: Problem) -> list[Provider]:
        """Of some layers every kernel instance besides, to see how well the cheapest is chosen."""
        first = dict.fromkeys(each.layer for each in self.options.work)
        if item.layer not in islice(first, self.options.every_instance):
            return self.options.contenders
        names = providers.instances_of(problem, item.precision)
        return [*self.options.contenders, *map(providers.Fastconv, names)]

    def rows_of(self, item: Work) -> Iterator[list[dict]]:
        try:
            yield from self._rows_of(item)
        except torch.OutOfMemoryError as error:  # of the operands
            torch.cuda.empty_cache()
            yield [self._no_room(item, error)]

    def _no_room(self, item: Work, error: Exception) -> dict:
        layer = item.layer
        row = {"op": lists.family_of(layer), "net": layer.net, "layer": layer.label}
        row |= {"count": layer.count, "batch": item.batch, "layout": "any", "bytes": 0, "flops": 0}
        row |= {"direction": "any", "device": self.options.device, "dtype": item.dtype}
        row |= {"precision": item.precision, "contender": "all", "ours": True, "ran": "all"}
        return row | {"status": "error", "reason": str(error).splitlines()[0][:300]}

    def _rows_of(self, item: Work) -> Iterator[list[dict]]:
        o = self.options
        where = (o.layouts, getattr(torch, item.dtype), o.device)
        more = (item.epilogue, item.precision, o.reference)
        for problem in lists.problems_of(item.layer, item.batch, item.directions, *where, *more):
            key = " ".join(map(str, report.problem_key(problem.facts())))
            if self.progress.is_done(key):
                continue
            banned = self.progress.banned(key)
            contenders = self.contenders(item, problem)
            if "" in banned:  # somebody among those that were timed together
                banned = {each.name: banned[""] for each in contenders}
            yield measure(
                problem,
                contenders,
                o.seconds,
                ceilings=self.rates,
                timer=self.timer,
                enter=lambda name, key=key: self.progress.enter(key, name),
                banned=banned,
            )
            self.progress.leave(key)

    def run(self) -> int:
        o = self.options
        limit = "" if o.until is None else f", stopping after {duration(o.until)}"
        print(f"{len(o.work)} layers, about {duration(estimate(o))}{limit}", flush=True)
        tuning = fastconv.autotune() if o.autotune else nullcontext()
        try:
            with torch.inference_mode(False), torch.no_grad(), tuning:
                left = live.collect(
                    o.work,
                    self.progress.rows,
                    describe=str,
                    measure=self.rows_of,
                    each=self.write,
                    stop=self.out_of_time,
                )
        except stretches.DeviceLost as lost:
            self.progress.facts["lost"] = str(lost)
            self.progress.save()
            return stretches.RC_LOST
        if left:
            self.settings["left_out"] = f"{left} of {len(o.work)} layers"
        doc = self.write()
        live.conclude(doc)
        print(f"written: {', '.join(map(str, self.files.paths()))}")
        self.progress.end()
        bad = (row["status"] in ("wrong", "error") and row["ours"] for row in self.progress.rows)
        if any(bad):
            return 1
        if left and not self.out_of_time():
            return INTERRUPTED
        return RC_LIMITED if left and STAGE_SECONDS in os.environ else 0
