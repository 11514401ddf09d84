"""Measured winners, kept in memory and in one JSON file per environment.

The file lies under XDG_CACHE_HOME (or ~/.cache) in `fastconv/`, mode 0700, and is named after a
digest of everything that a measurement depends on besides the problem: fastconv and its build,
PyTorch, the processor. Instruction set, threads, dtype and problem make up the entry's key. Writers
merge under a file lock and replace the file atomically. A corrupt or foreign file is ignored, with
one warning, and rewritten by the next measurement; where nothing can be written, memory serves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastconv import _C, select
from fastconv._version import __version__
from fastconv.problem import ConvSpec

try:
    import fcntl
except ImportError:  # no file locks on this system: the atomic replace alone remains
    fcntl = None  # type: ignore[assignment]

FORMAT = 1


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


def cache_path() -> Path:
    """The file that winners are kept in (it may not exist yet)."""
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules have relative paths ignored.
    root = Path(base) if base and os.path.isabs(base) else Path.home() / ".cache"
    digest = hashlib.sha256(json.dumps(environment(), sort_keys=True).encode()).hexdigest()
    return root / "fastconv" / f"autotune-{digest[:16]}.json"


def entry_key(spec: ConvSpec, threads: int, isa: str) -> str:
    """The key of a problem in the file."""
    return f"{isa} threads {threads} {spec}"


class _Store:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.path: Path | None = None
        self.entries: dict[str, dict[str, Any]] = {}
        self.warned: set[str] = set()

    def warn(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(f"fastconv autotune cache: {text}", RuntimeWarning, stacklevel=2)

    def read(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict) or content.get("environment") != environment():
                raise ValueError("it belongs to another environment")
            entries = content["entries"]
            known = (*select.names("cpu"),)
            return {
                key: entry
                for key, entry in entries.items()
                if isinstance(entry, dict)
                and entry.get("winner") in known
                and isinstance(entry.get("seconds"), dict)
            }
        except FileNotFoundError:
            return {}
        except OSError as error:
            self.warn("read", f"{path} cannot be read ({error})")
        except (ValueError, KeyError, AttributeError) as error:
            self.warn("corrupt", f"{path} is ignored ({error}); it is rewritten when needed")
        return {}

    def current(self) -> dict[str, dict[str, Any]]:
        """The entries, loaded once per path (XDG_CACHE_HOME may change under tests)."""
        with self.lock:
            path = cache_path()
            if path != self.path:
                self.path, self.entries = path, self.read(path)
            return self.entries

    def put(self, key: str, entry: dict[str, Any]) -> None:
        with self.lock:
            self.current()[key] = entry
            path = self.path
            assert path is not None
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with self.exclusive(path.with_suffix(".lock")):
                    # Another process may have written since: its entries stay.
                    self.entries = {**self.read(path), **self.entries}
                    self.write(path)
            except OSError as error:
                self.warn("write", f"{path} cannot be written ({error}); results stay in memory")

    def write(self, path: Path) -> None:
        content = {"environment": environment(), "entries": self.entries}
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file, indent=1, sort_keys=True)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    @contextlib.contextmanager
    def exclusive(self, path: Path):
        # The kernel drops the lock with the process: no stale lock can hang a later one.
        with open(path, "w") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def clear(self) -> None:
        with self.lock:
            with contextlib.suppress(OSError):
                cache_path().unlink(missing_ok=True)
            self.path, self.entries = None, {}


_store = _Store()


def lookup(spec: ConvSpec, threads: int, isa: str) -> dict[str, Any] | None:
    """{"winner": name, "seconds": {name: median}} of a measured problem, else None."""
    if spec.device != "cpu":
        return None
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
    with _store.lock:
        _store.path, _store.entries = None, {}
    select.forget()


def _recorded(spec: ConvSpec, threads: int, isa: str) -> str | None:
    entry = lookup(spec, threads, isa)
    if entry is None:
        return None
    # Hand-edited or stale entries must not run what does not apply.
    applicable = {c.name for c in select.candidates(spec) if c.reason is None}
    return entry["winner"] if entry["winner"] in applicable else None


select.recorded = _recorded
