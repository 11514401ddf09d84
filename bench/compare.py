"""`python -m bench compare old.json new.json`: what became slower beyond noise."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import LIMITS, PYTORCH
from bench.report import problem_key

LEAST_CHANGE = 0.10  # below this a difference is never called one


@dataclass(frozen=True)
class Change:
    """One row in both runs. slowdown: new time over old, after taking out what the machine did to
    PyTorch on the same problem. noise: what the two runs' own spread explains."""

    name: str
    slowdown: float
    noise: float

    @property
    def regression(self) -> bool:
        return self.slowdown > 1 + max(self.noise, LEAST_CHANGE)

    @property
    def improvement(self) -> bool:
        return 1 / self.slowdown > 1 + max(self.noise, LEAST_CHANGE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--absolute", action="store_true", help="do not correct by PyTorch's times")


def run(args: argparse.Namespace) -> int:
    """Returns 1 where something became slower or wrong, 2 where a file is no result, else 0."""
    documents = []
    for path in (args.old, args.new):
        try:
            documents.append(json.loads(path.read_text()))
            documents[-1]["rows"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{path} is no result of `python -m bench run`: {error}", file=sys.stderr)
            return 2
    old, new = documents
    for what in ("cpu", "threads", "fastconv_isa"):
        sides = [doc.get("machine", {}).get(what) for doc in documents]
        if sides[0] != sides[1]:
            print(f"note: {what} differs: {sides[0]} and {sides[1]}")
    changes, broken = compare(old["rows"], new["rows"], absolute=args.absolute)
    slower = sorted((c for c in changes if c.regression), key=lambda c: -c.slowdown)
    quicker = sum(c.improvement for c in changes)
    for change in slower:
        print(f"SLOWER {change.slowdown:5.2f}x (noise {change.noise:.0%})  {change.name}")
    for text in broken:
        print(f"BROKEN {text}")
    print(
        f"{len(changes)} rows in both: {len(slower)} slower, {quicker} quicker,"
        f" {len(changes) - len(slower) - quicker} the same within noise, {len(broken)} broken"
    )
    return 1 if slower or broken else 0


def compare(
    old: list[dict], new: list[dict], absolute: bool = False
) -> tuple[list[Change], list[str]]:
    """(changes of rows timed in both, rows that were right and no longer are)."""
    before, after = ({_key(row): row for row in rows} for rows in (old, new))
    changes, broken = [], []
    for key, row in after.items():
        was = before.get(key)
        if was is None or row["contender"] in LIMITS or was["status"] != "ok":
            continue
        name = " ".join(map(str, key))
        if row["status"] in ("wrong", "error"):
            broken.append(f"{name}: {row['status']} {row.get('reason', '')}")
        if row["status"] != "ok":
            continue
        slowdown = row["ms"]["median"] / was["ms"]["median"]
        noise = _spread(row["ms"]) + _spread(was["ms"])
        if (
            not absolute
            and row["contender"] != PYTORCH
            and "pytorch_ms" in row
            and "pytorch_ms" in was
        ):
            # The machine of the second run may be quicker or slower as a whole.
            slowdown /= row["pytorch_ms"]["median"] / was["pytorch_ms"]["median"]
            noise += _spread(row["pytorch_ms"]) + _spread(was["pytorch_ms"])
        elif not absolute and row["contender"] == PYTORCH:
            continue  # it is the yardstick
        changes.append(Change(name, slowdown, noise))
    return changes, broken


def _key(row: dict) -> tuple:
    return (*problem_key(row), row["contender"])


def _spread(ms: dict) -> float:
    """How far the middle 60% of the samples reach from the median, as a fraction of it."""
    return max(ms["p80"] - ms["median"], ms["median"] - ms["p20"]) / ms["median"]
