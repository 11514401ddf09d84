"""The tables of operations and algorithms in the documents, generated from the registry.

``python -m fastconv.catalogue`` prints them, ``--write`` puts them between the markers of
``README.md`` and ``kernels/README.md`` in a source tree, ``--check`` fails when those are stale.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from fastconv import _C, select, select_pool, select_pool_cuda, select_triton
from fastconv.problem import NATIVE_DIRECTIONS, NATIVE_DTYPES, ConvSpec

DIRECTIONS = ("fprop", "dgrad", "wgrad")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BACKENDS = ("cpu", "cuda", "triton")
_SM_90 = (90, 132)  # capability and SMs; what applies does not depend on them
# Documents that carry a generated table, relative to the source tree.
DOCUMENTS = {
    "README.md": ("operations", "emulated"),
    "kernels/README.md": ("algorithms", "resources"),
}
ROOT = Path(__file__).resolve().parent.parent
# What every CUDA kernel uses, written and checked by the static checks.
BUDGETS = Path("tests/static/budgets.json")


def _spec(direction: str, rank: int, dtype: torch.dtype = torch.float32, **change) -> ConvSpec:
    """A mid-sized 3-wide problem of this rank, with changes, to ask the registry about."""
    values = {"kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 1, "channels": 32}
    values |= change
    channels, extent = values["channels"], 14
    return ConvSpec(
        direction=direction,
        device="cpu",
        dtype=dtype,
        input_size=(2, channels, *([extent] * rank)),
        weight_size=(64, channels // values["groups"], *([values["kernel"]] * rank)),
        stride=(values["stride"],) * rank,
        padding=(values["padding"],) * rank,
        dilation=(values["dilation"],) * rank,
        groups=values["groups"],
        channels_last=False,
    )


def _applies(spec: ConvSpec, backend: str) -> dict[str, str | None]:
    """Algorithm name -> None if it runs `spec`, else the reason why not."""
    if backend == "cpu":
        return {c.name: c.reason for c in select.candidates(spec) if c.backend == "cpu"}
    # In either layout, and whatever device is present.
    if backend == "triton":
        return {name: _triton_reason(name, spec) for name in select_triton.ALGORITHMS}
    reasons: dict[str, str | None] = dict.fromkeys(_C.cuda_algorithms(), "no kernel")
    arguments = (spec.native, NATIVE_DTYPES[spec.dtype], NATIVE_DIRECTIONS[spec.direction])
    for layout in (_C.Layout.NCHW, _C.Layout.NHWC):
        for name, _, reason, *_ in _C.cuda_candidates(
            *arguments, layout, _C.Products.tf32, *_SM_90
        ):
            if reasons[name] is not None:
                reasons[name] = reason or None
    return reasons


def _triton_reason(algorithm: str, spec: ConvSpec) -> str | None:
    """None if a configuration of the algorithm takes `spec`, else why the last one does not."""
    reason = None
    for last in (False, True):
        laid_out = replace(spec, channels_last=last)
        for config in select_triton.CONFIGS[algorithm].values():
            reason = select_triton.config_refusal(algorithm, config, laid_out)
            if reason is None:
                return None
    return reason


def _names(direction: str, rank: int, backend: str, **change) -> str:
    """Our algorithms for the plain 3-wide problem: those of fp32, then those of 16 bits alone."""
    usual, short = (
        {
            name: reason is None
            for name, reason in _applies(_spec(direction, rank, dtype, **change), backend).items()
        }
        for dtype in (torch.float32, torch.bfloat16)
    )
    names = [f"`{name}`" for name, takes in usual.items() if takes]
    names += [f"`{name}` (16-bit)" for name, takes in short.items() if takes and not usual[name]]
    return ", ".join(names) or "—"


def operations_table() -> str:
    """Operations against backends: which of our algorithms run the plain 3-wide problem."""
    lines = [
        "| operation | direction | CPU | CUDA | Triton | PyTorch |",
        "|---|---|---|---|---|---|",
    ]
    for rank, kind, change in (
        (1, "", {}),
        (2, "", {}),
        (2, ", depthwise", {"groups": 32}),
        (2, ", three channels", {"channels": 3}),
        (3, "", {}),
    ):
        for direction in DIRECTIONS:
            cells = [_names(direction, rank, backend, **change) for backend in BACKENDS]
            operation = f"`conv{rank}d`{kind}"
            lines.append(f"| {operation} | {direction} | {' | '.join(cells)} | `aten` |")
    return "\n".join([*lines, *_fused_rows(), *_pool_rows()])


def _fused_rows() -> list[str]:
    """Fused operations: a backend has them where their ops are registered for it, and then with
    every algorithm of its convolution."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    rows = []
    for operation, direction, op in (
        ("conv_act", "inference", "conv_epilogue_fprop"),
        ("conv_bn_relu", "inference", "conv_epilogue_fprop"),
        ("conv_bn_relu", "training", "norm_act_dgrad"),
        ("inception", "forward", "conv_epilogue_into"),
        ("inception", "backward", "conv_dgrad"),
    ):
        cells = []
        for backend in BACKENDS:
            # Triton's convolutions have the epilogues themselves, and its passes no op.
            known = backend == "triton" or has(f"fastconv::{op}", backend.upper())
            cell = _names("dgrad" if op == "conv_dgrad" else "fprop", 2, backend) if known else "—"
            grids = (operation, direction) == ("inception", "forward")
            if grids and backend == "cuda" and has("fastconv::inception_fprop", "CUDA"):
                cell = f"two grids, or {cell}"
            cells.append(cell)
        rows.append(f"| `{operation}` | {direction} | {' | '.join(cells)} | composed |")
    return rows


def _pool_rows() -> list[str]:
    """Poolings against backends; `composed`: of PyTorch's operators, where it has no function."""
    families: dict[str, list[str]] = {}
    for function in select_pool.FUNCTIONS:
        families.setdefault(re.sub(r"\dd$", "", function), []).append(function)
    instances = select_pool_cuda.instances()
    rows = []
    for functions in families.values():
        kind = select_pool.KINDS[select_pool.FUNCTIONS[functions[0]]]
        operation = ", ".join(f"`{function}`" for function in functions)
        theirs = "`aten`" if hasattr(torch.nn.functional, functions[0]) else "composed"
        for direction, op in zip(("fprop", "dgrad"), kind.ops, strict=True):
            cuda = "`direct`" if (op, torch.float32) in instances else "—"
            triton = "`triton`" if kind.triton else "—"
            rows.append(f"| {operation} | {direction} | `direct` | {cuda} | {triton} | {theirs} |")
    return rows


def algorithms_table() -> str:
    """Every algorithm: ranks, directions, dtypes, and what it refuses."""
    variations = {
        "stride 2": {"stride": 2},
        "dilation 2": {"dilation": 2},
        "groups 4": {"groups": 4},
        "depthwise": {"groups": 32, "channels": 32},
        "dense": {},
        "kernel 1": {"kernel": 1, "padding": 0},
        "kernel 5": {"kernel": 5, "padding": 2},
        "32 channels": {"channels": 32},
    }
    lines = [
        "| backend | algorithm | ranks | directions | dtypes | refuses |",
        "|---|---|---|---|---|---|",
    ]
    for backend in BACKENDS:
        for name in _applies(_spec("fprop", 2), backend):
            # An algorithm may be for depthwise problems or few channels alone, or for one dtype.
            takes: dict
            usual, takes = next(
                (dtype, change)
                for dtype in DTYPES
                for change in ({}, *variations.values(), {"channels": 4})
                if _applies(_spec("fprop", 2, dtype, **change), backend)[name] is None
            )

            def runs(
                name=name, backend=backend, takes=takes, dtype=usual, direction="fprop", rank=2,
                **change,
            ):  # fmt: skip
                spec = _spec(direction, rank, dtype, **{**takes, **change})
                return _applies(spec, backend)[name] is None

            ranks = [r for r in (1, 2, 3) if runs(rank=r)]
            by_dtype = {
                str(t).removeprefix("torch."): [d for d in DIRECTIONS if runs(dtype=t, direction=d)]
                for t in DTYPES
                if runs(dtype=t)
            }
            directions = max(by_dtype.values(), key=len)
            fewer = "".join(
                f"; {t}: {', '.join(some)}" for t, some in by_dtype.items() if some != directions
            )
            refused = [
                label
                for label, change in variations.items()
                if not runs(**({"groups": 1} if label == "dense" else change))
            ]
            lines.append(
                f"| {backend} | `{name}` | {', '.join(map(str, ranks))} |"
                f" {', '.join(directions)}{fewer} | {', '.join(by_dtype)} |"
                f" {', '.join(refused) or '—'} |"
            )
    return "\n".join(lines)


def _range(values: list[float], unit: str = "") -> str:
    low, high = min(values), max(values)
    return f"{low:g}{unit}" if low == high else f"{low:g}–{high:g}{unit}"


def resources_table() -> str:
    """CUDA kernels by family: what ptxas gave their instances, and the occupancy that follows."""
    if not (ROOT / BUDGETS).exists():
        return f"({BUDGETS} is part of the source tree only)"
    families: dict[str, list[dict]] = {}
    for row in json.loads((ROOT / BUDGETS).read_text())["kernels"]:
        families.setdefault(row["kernel"].split("<")[0], []).append(row)
    lines = [
        "| kernel | instances | threads | shared KiB | registers sm_80 | sm_90a"
        " | occupancy sm_80 | sm_90a |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in sorted(families.items()):
        newest = [row["sm_90a"] for row in rows]
        launched = [r for r in newest if "occupancy" in r]
        shared = [round((r["shared"] + r["dynamic_shared"]) / 1024, 1) for r in launched]
        cells = [
            f"`{name}`",
            str(len(rows)),
            _range([r["threads"] for r in launched]) if launched else "—",
            _range(shared) if launched else "—",
        ]
        for what, scale, unit in (("registers", 1, ""), ("occupancy", 100, "%")):
            for arch in ("sm_80", "sm_90a"):
                values = [round(row[arch][what] * scale) for row in rows if what in row[arch]]
                cells.append(_range(values, unit) if values else "—")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def emulated_line() -> str:
    """How many CUDA kernel instances there are; tests/test_emulated_conv.py and
    tests/test_emulated_pool.py run each."""
    names = [algorithm for algorithm, *_ in _C.cuda_instances()]
    counts = ", ".join(f"{names.count(name)} of `{name}`" for name in _C.cuda_algorithms())
    taking = Counter(name.partition("/")[0] for name in _C.cuda_stats_instances())
    stats = ", ".join(f"{count} of `{name}`" for name, count in taking.items())
    ways = Counter(way.name for _, way, *_ in _C.cuda_pool_instances())
    pools = ", ".join(f"{count} {way}" for way, count in ways.items())
    return (
        f"{len(names)} CUDA convolution kernel instances run in the emulation: {counts}. So do"
        f" {sum(ways.values())} pooling kernel instances: {pools}. And"
        f" {len(_C.cuda_inceptions())} of inception modules. Training with batch"
        f" normalisation takes the statistics in the convolution where its instance forms them"
        f" along with y: {stats}."
    )


TABLES = {
    "operations": operations_table,
    "emulated": emulated_line,
    "algorithms": algorithms_table,
    "resources": resources_table,
}


def fill(text: str, name: str, table: str) -> str:
    """`text` with what stands between the markers of table `name` replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in text or end not in text:
        raise ValueError(f"no markers {begin} … {end} in the document")
    pattern = re.escape(begin) + r".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)


def stale_documents(root: Path, write: bool = False) -> list[str]:
    """Documents whose table differs from the registry's; with `write`, they are brought up."""
    stale = []
    for path, names in DOCUMENTS.items():
        text = fresh = (root / path).read_text()
        for name in names:
            fresh = fill(fresh, name, TABLES[name]())
        if fresh != text:
            stale.append(path)
            if write:
                (root / path).write_text(fresh)
    return stale


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastconv.catalogue", description=__doc__)
    parser.add_argument("--write", action="store_true", help="update the documents")
    parser.add_argument("--check", action="store_true", help="exit 1 when a document is stale")
    parser.add_argument("--root", type=Path, default=ROOT)
    arguments = parser.parse_args(argv)
    if arguments.write or arguments.check:
        stale = stale_documents(arguments.root, arguments.write)
        print("\n".join(f"{'written' if arguments.write else 'stale'}: {p}" for p in stale))
        return 1 if stale and not arguments.write else 0
    print("\n\n".join(table() for table in TABLES.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
