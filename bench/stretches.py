"""A run in stretches: each is a process of its own, and one that a problem takes down (a kernel
that faults takes the device's context with it, one that hangs is ended) is followed by another,
which goes on behind it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HUNG = "no answer"
RC_LOST = 75  # of a stretch that says so; one that is killed says nothing
COMMAND = (sys.executable, "-m", "bench")
RESTARTS = 4
# How long one contender may take over one problem, or be timed with others; those that compile
# first, longer.
HANGS_AFTER = 45.0
COMPILES_FOR = 120.0
COMPILED = ("compile", "triton")


class DeviceLost(RuntimeError):
    """Nothing runs on the device any more, in this process."""


class Progress:
    """What a run has so far: rows, the problems that are done, and who is not run any more. Where a
    path is given, also in a file, so that a fresh process can go on.

    A contender "" stands for all of a problem's: they were being timed together.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        empty: dict[str, Any] = {"rows": [], "done": [], "banned": [], "facts": {}, "ended": False}
        self.data = json.loads(path.read_text()) if path and path.exists() else empty
        self.rows: list[dict] = self.data["rows"]
        self.facts: dict[str, Any] = self.data["facts"]

    def overdue(self, seconds: float) -> bool:
        """Whether whoever is running has been for longer than that, and nothing was written since.
        Asked by the process that waits."""
        try:
            _, contender = json.loads(self._at.read_text())
            age = time.time() - self._at.stat().st_mtime
        except (OSError, ValueError):  # nobody is, or it is being written
            return False
        patience = max(seconds, COMPILES_FOR) if contender.startswith(COMPILED) else seconds
        return age > patience

    @property
    def _at(self) -> Path | None:
        """A file beside it: who is running is written far more often than rows are."""
        return self.path and self.path.with_suffix(".at")

    def save(self) -> None:
        if self.path is not None:
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.data))
            partial.replace(self.path)

    def enter(self, problem: str, contender: str) -> None:
        """Remembers who is running, in case nothing is run after it."""
        if self._at is not None:
            self._at.write_text(json.dumps([problem, contender]))

    def leave(self, problem: str) -> None:
        """The problem's rows are among `rows`."""
        self.data["done"].append(problem)
        if self._at is not None:
            self._at.unlink(missing_ok=True)
            self.save()

    def is_done(self, problem: str) -> bool:
        return problem in self.data["done"]

    def banned(self, problem: str) -> dict[str, str]:
        """Contender -> why it is not run."""
        return {name: why for at, name, why in self.data["banned"] if at == problem}

    def ban(self, reason: str) -> tuple[str, str] | None:
        """Leaves out who was running when the process ended; None if nobody was."""
        if self._at is None or not self._at.exists():
            return None
        problem, contender = json.loads(self._at.read_text())
        self.data["banned"].append([problem, contender, reason])
        self._at.unlink()
        self.save()
        return problem, contender

    def end(self) -> None:
        """The run came to its end by itself."""
        self.data["ended"] = True
        self.save()


def supervise(words: Sequence[str], restarts: int, hangs_after: float = HANGS_AFTER) -> int:
    """Runs `python -m bench <words>` in stretches. Returns the last one's exit code, 1 where that
    was taken down as well."""
    folder = Path(tempfile.mkdtemp(prefix="fastconv-bench-"))
    path = folder / "progress.json"
    command = [*COMMAND, *words, "--progress", str(path)]
    try:
        for stretch in range(restarts + 1):
            code, hung = _wait(command, Progress(path), hangs_after)
            progress = Progress(path)
            if progress.data["ended"]:
                return code
            said = f"exit code {code}" if code >= 0 else f"ended by signal {-code}"
            reason = progress.facts.pop("lost", None) or (HUNG if hung else said)
            culprit = progress.ban(f"took the device down: {reason}")
            if culprit is None:  # no contender's doing
                return code or 1
            name = culprit[1] or "the timing"
            left = "a fresh process goes on" if stretch < restarts else "no process is left"
            print(f"lost at {name} of {culprit[0]}: {reason}; {left}", flush=True)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(command: Sequence[str], progress: Progress, hangs_after: float) -> tuple[int, bool]:
    """The exit code, and whether it was ended because a contender hung. A Ctrl-C reaches the
    stretch as well, which ends by itself and writes what it has."""
    process = subprocess.Popen(command)
    hung = False
    while True:
        try:
            return process.wait(timeout=1.0), hung
        except subprocess.TimeoutExpired:
            if not hung and progress.overdue(hangs_after):
                hung = True
                process.kill()
        except KeyboardInterrupt:
            continue
