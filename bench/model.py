"""`python -m bench model result.json ...`: what the cost models say, against what was measured.

Of every convolution in the files: the model's estimate for each algorithm or kernel instance that
has a time, today's model on the machine of the file. Three things come of it:

- the ratio of measured to estimated time, per algorithm: its median is a factor that the choice
  within the algorithm does not see, its spread is what the model does not know;
- order: of two kernels on one problem, how often the model has the faster one before the other;
- regret: the time of the model's choice over the best time measured on the same problem, among ours
  (`choice`), and of what `auto` ran over the best of all, PyTorch included (`auto`).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench import lists
from bench.contenders import LIMITS, PYTORCH
from bench.conv_problem import PARTS
from bench.gpu_report import geometric_mean
from bench.report import arithmetic, problem_key
from bench.timing import quantile
from fastconv import _C, cost_aten, cost_aten_cuda, gpu, select_triton
from fastconv.problem import NATIVE_DIRECTIONS, NATIVE_DTYPES, ConvSpec

ATEN = "aten"
APART = 1.1  # two times that differ by less have no order
WORST = 10
GEOMETRY = ("input_size", "weight_size", "stride", "padding", "dilation")


class Unknown(ValueError):
    """Nothing is known of a file or a row; the reason is the message."""


@dataclass(frozen=True)
class Machine:
    """Where a file was measured. gpu: None for the CPU."""

    threads: int
    isa: str
    gpu: gpu.Gpu | None

    @staticmethod
    def of(facts: Mapping) -> Machine:
        found = facts.get("gpu") or {}
        device = None
        if found.get("device"):
            major, minor = found["capability"]
            device = gpu.Gpu(found["device"], 10 * major + minor, found["sm_count"], 0)
        return Machine(facts["threads"], facts["fastconv_isa"], device)

    @contextmanager
    def described(self) -> Iterator[None]:
        """Costs on the CPU are those of the file's instruction set.

        Raises: Unknown where this processor does not have it.
        """
        before = _C.cpu_isa()
        if self.isa not in _C.cpu_isas():
            raise Unknown(f"measured with {self.isa}, which this processor does not have")
        _C.set_cpu_isa(self.isa)
        try:
            yield
        finally:
            _C.set_cpu_isa(before)


def spec_of(row: Mapping) -> ConvSpec:
    """Raises: Unknown where the row's layer is in none of the lists."""
    geometry = row.get("geometry") or _listed(row["net"]).get(row["layer"])
    if geometry is None:
        raise Unknown(f"no list has the layer {row['net']} {row['layer']}")
    sizes = {name: tuple(geometry[name]) for name in GEOMETRY}
    sizes["input_size"] = (row["batch"], *sizes["input_size"][1:])
    rank = len(sizes["stride"])
    cuda = row["device"] != "cpu"
    return ConvSpec(
        direction=row["direction"],
        device="cuda:0" if cuda else "cpu",
        dtype=getattr(torch, row["dtype"]),
        groups=geometry["groups"],
        channels_last=row["layout"] == "channels_last" and rank > 1,
        products=row.get("precision", "ieee") if cuda else "ieee",
        **sizes,
    )


_known: dict[str, dict[str, dict]] = {}


def _listed(net: str) -> dict[str, dict]:
    """Of results without geometry: the layers of a network by label."""
    if net not in _known:
        own = lists.layers(net, ("conv",)) if net in lists.names() else []
        _known[net] = {layer.label: layer.geometry(1) for layer in own}
    return _known[net]


def estimates(spec: ConvSpec, machine: Machine) -> dict[str, float]:
    """Seconds that the models give to every candidate that applies, by name."""
    dtype, direction = NATIVE_DTYPES.get(spec.dtype), NATIVE_DIRECTIONS[spec.direction]
    if dtype is None:
        raise Unknown(f"no cost model is for {spec.dtype}")
    if machine.gpu is None:
        found = {
            name: _C.cpu_cost(name, spec.native, dtype, direction, machine.threads)
            for name in _C.cpu_algorithms()
            if not _C.cpu_applicable(name, spec.native, dtype, direction)
        }
        return {**found, ATEN: cost_aten.seconds(spec, machine.threads)}
    device = (machine.gpu.capability, machine.gpu.sm_count)
    layout = _C.Layout.NHWC if spec.channels_last else _C.Layout.NCHW
    products = getattr(_C.Products, spec.products)
    rows = _C.cuda_candidates(spec.native, dtype, direction, layout, products, *device)
    found = {f"{name}/{instance}": cost for name, instance, why, cost, _ in rows if not why}
    found |= select_triton.estimates(spec, machine.gpu)
    return {**found, ATEN: cost_aten_cuda.seconds_on(spec, machine.gpu)}


@dataclass(frozen=True)
class Timed:
    """A kernel on a problem. Both in milliseconds."""

    name: str
    measured: float
    estimated: float


@dataclass(frozen=True)
class Verdict:
    """A problem. choice: what the model has first of those that were timed; best: what was fastest
    of them. unmeasured: what it has before its choice, without a time. auto_regret: None where
    `auto` has no time."""

    problem: str
    timed: tuple[Timed, ...]
    choice: Timed
    best: Timed
    unmeasured: str
    auto: str
    auto_regret: float | None

    @property
    def regret(self) -> float:
        return self.choice.measured / self.best.measured

    def pairs(self) -> Iterator[bool]:
        """Of each two of ours that differ, whether the model has them in their order."""
        ours = (t for t in self.timed if t.name != ATEN)
        ordered = sorted(ours, key=lambda t: t.measured)
        for i, fast in enumerate(ordered):
            for slow in ordered[i + 1 :]:
                if slow.measured > APART * fast.measured:
                    yield fast.estimated < slow.estimated


def verdict(rows: Sequence[Mapping], machine: Machine) -> Verdict | None:
    """Of the rows of one problem; None where less than two kernels of ours have a time."""
    times: dict[str, float] = {}
    auto, everyone = None, []
    for row in rows:
        if row.get("status") != "ok" or "ms" not in row or row["contender"] in LIMITS:
            continue
        ms = row["ms"]["median"]
        if row["ours"] or row["contender"] in (PYTORCH, "pytorch_channels_last"):
            everyone.append(ms)
        if not row["ours"] and row["contender"] != PYTORCH:
            continue
        name = row["ran"].partition("+")[0] if row["ours"] else ATEN
        times[name] = min(ms, times.get(name, math.inf))
        if row["contender"] == "auto":
            auto = (name, ms)
    spec = spec_of(rows[0])
    known = estimates(spec, machine)
    timed = tuple(Timed(n, ms, 1e3 * known[n]) for n, ms in times.items() if n in known)
    ours = [t for t in timed if t.name != ATEN]
    if len(ours) < 2:
        return None
    choice = min(ours, key=lambda t: t.estimated)
    first = min((name for name in known if name != ATEN), key=known.__getitem__)
    where = ("net", "layer", "direction", "layout")
    words = (*(rows[0][name] for name in where[:2]), f"N={rows[0]['batch']}")
    return Verdict(
        " ".join((*words, *(rows[0][name] for name in where[2:]), arithmetic(rows[0]))),
        timed,
        choice,
        min(ours, key=lambda t: t.measured),
        "" if first == choice.name else first,
        auto[0] if auto else "",
        auto[1] / min(everyone) if auto else None,
    )


def verdicts(document: Mapping) -> tuple[list[Verdict], Counter]:
    """Of every problem in a result file, and why others have none."""
    machine = Machine.of(document["machine"])
    problems: dict[tuple, list[Mapping]] = {}
    for row in document["rows"]:
        alone = row["op"] in ("conv1d", "conv2d", "conv3d") and row["direction"] in PARTS
        if alone and row.get("epilogue", "none") == "none":
            problems.setdefault(problem_key(row), []).append(row)
    found, left_out = [], Counter()
    with machine.described():
        for rows in problems.values():
            try:
                one = verdict(rows, machine)
            except Unknown as reason:
                left_out[str(reason)] += 1
                continue
            if one is None:
                left_out["fewer than two kernels of ours have a time"] += 1
            else:
                found.append(one)
    return found, left_out


def summary(found: Sequence[Verdict], left_out: Mapping[str, int]) -> dict:
    """The figures of all problems together, JSON-ready."""
    ratios: dict[str, list[float]] = {}
    for one in found:
        for t in one.timed:
            name = t.name.partition("/")[0]
            ratios.setdefault(name, []).append(t.measured / t.estimated)
    pairs = [right for one in found for right in one.pairs()]
    auto = [one.auto_regret for one in found if one.auto_regret is not None]
    worst = sorted(found, key=lambda one: -one.regret)
    return {
        "problems": len(found),
        "left_out": dict(left_out),
        "regret": geometric_mean(one.regret for one in found) if found else None,
        "worst_regret": worst[0].regret if found else None,
        "within_a_tenth": sum(one.regret <= APART for one in found),
        "auto_regret": geometric_mean(auto) if auto else None,
        "unmeasured_choices": sum(bool(one.unmeasured) for one in found),
        "pairs": len(pairs),
        "pairs_in_order": sum(pairs),
        "ratios": {
            name: {
                "rows": len(r),
                **{f"p{round(100 * q)}": quantile(r, q) for q in (0.1, 0.5, 0.9)},
            }
            for name, r in sorted(ratios.items())
        },
        "worst": [
            {"problem": one.problem, "regret": one.regret, "unmeasured": one.unmeasured}
            | {"choice": asdict(one.choice), "best": asdict(one.best)}
            for one in worst[:WORST]
            if one.regret > 1
        ],
    }


def markdown(of: Mapping) -> list[str]:
    """A summary as lines."""
    if not of["problems"]:
        return ["No problem has times of two kernels.", *_left_out(of)]
    lines = [
        f"{of['problems']} problems. The model's choice takes {of['regret']:.3f} times the best of"
        f" ours that was timed (geometric mean; at worst {of['worst_regret']:.2f}), and is within a"
        f" tenth of it on {of['within_a_tenth']}. {of['pairs_in_order']} of {of['pairs']} pairs of"
        " kernels are in the order of their times.",
    ]
    if of["auto_regret"] is not None:
        lines.append(f"`auto` ran {of['auto_regret']:.3f} times the best, PyTorch's included.")
    if of["unmeasured_choices"]:
        lines.append(f"On {of['unmeasured_choices']} the model's first choice has no time.")
    lines += _left_out(of)
    lines += ["", "Measured over estimated time:", ""]
    lines += ["| algorithm | rows | p10 | median | p90 | p90 / p10 |", "|---|---|---|---|---|---|"]
    for name, r in of["ratios"].items():
        spread = r["p90"] / r["p10"]
        cells = (f"{r[q]:.2f}" for q in ("p10", "p50", "p90"))
        lines.append(f"| {name} | {r['rows']} | {' | '.join(cells)} | {spread:.2f} |")
    if of["worst"]:
        lines += ["", "| problem | regret | choice | µs, estimated | best | µs, estimated |"]
        lines.append("|---|---|---|---|---|---|")
    for one in of["worst"]:
        sides = (
            f"{t['name']} | {1e3 * t['measured']:.1f}, {1e3 * t['estimated']:.1f}"
            for t in (one["choice"], one["best"])
        )
        lines.append(f"| {one['problem']} | {one['regret']:.2f} | {' | '.join(sides)} |")
    return lines


def _left_out(of: Mapping) -> list[str]:
    return [f"Left out: {count} problems, {why}." for why, count in of["left_out"].items()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="+", help="of `python -m bench run`")
    parser.add_argument("--json", type=Path, help="the figures, besides printing them")


def run(args: argparse.Namespace) -> int:
    """Returns 2 where a file is no result or of an unknown machine, 1 where no problem in them has
    times of two kernels, else 0."""
    found: list[Verdict] = []
    left_out: Counter = Counter()
    for path in args.files:
        try:
            some, without = verdicts(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path} is no result to compare with: {error}", file=sys.stderr)
            return 2
        found += some
        left_out += without
    of = summary(found, left_out)
    text = markdown(of)
    print("\n".join(text))
    if args.json is not None:
        args.json.write_text(json.dumps(of | {"text": text}, indent=1) + "\n")
    return 0 if found else 1
