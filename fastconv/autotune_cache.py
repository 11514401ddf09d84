"""Measured winners, kept in memory and in one JSON file per environment (`json_store`).

The file's name stands for what a measurement depends on besides the problem: fastconv and its
build, PyTorch, the processor. Device (a GPU by its model), instruction set, threads, dtype and
problem make up the entry's key.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastconv import _C, gpu, select
from fastconv._version import __version__
from fastconv.json_store import JsonStore
from fastconv.problem import ConvSpec

FORMAT = 2  # 2: entries of GPUs


@cache
def environment() -> dict[str, Any]:
    """What measurements of this process depend on besides the problem."""
    from fastconv.info import cpu_model  # a program, imported when needed

    return {
        "format": FORMAT,
        "fastconv": __version__,
        "build": _C.build_id,
        "torch": torch.__version__,
        "cpu": cpu_model(),
    }


def _valid(entry: dict[str, Any]) -> bool:
    known = (*select.names("cpu"), *select.names("cuda"))
    winner = entry.get("winner")
    return (
        isinstance(winner, str)
        and winner.partition("/")[0] in known
        and isinstance(entry.get("seconds"), dict)
    )


# Through the module, so that tests can put another environment in its place.
_store = JsonStore("autotune", lambda: environment(), _valid)


def cache_path() -> Path:
    """The file that winners are kept in (it may not exist yet)."""
    return _store.file()


def entry_key(spec: ConvSpec, threads: int, isa: str) -> str:
    """The key of a problem in the file."""
    if not gpu.is_cuda(spec.device):
        return f"{isa} threads {threads} {spec}"
    return f"{gpu.describe(spec.device).identity} {spec}"


def lookup(spec: ConvSpec, threads: int, isa: str) -> dict[str, Any] | None:
    """{"winner": name, "seconds": {name: median}} of a measured problem, else None."""
    return _store.current().get(entry_key(spec, threads, isa))


def record(spec: ConvSpec, threads: int, isa: str, seconds: dict[str, float]) -> str:
    """Keeps the medians of a measurement; returns the winner's name."""
    winner = min(seconds, key=seconds.__getitem__)
    _store.put(entry_key(spec, threads, isa), {"winner": winner, "seconds": seconds})
    select.forget()
    return winner


def clear() -> None:
    """Forgets every measurement and deletes the file."""
    _store.clear()
    select.forget()


def reload() -> None:
    """Drops what is in memory; the file is read again when next needed."""
    _store.reload()
    select.forget()


def _recorded(spec: ConvSpec, threads: int, isa: str) -> str | None:
    entry = lookup(spec, threads, isa)
    if entry is None:
        return None
    # Hand-edited or stale entries must not run what does not apply.
    applicable = {c.name for c in select.candidates(spec) if c.reason is None}
    return entry["winner"] if entry["winner"] in applicable else None


select.recorded = _recorded
