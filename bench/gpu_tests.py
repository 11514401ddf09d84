"""`python -m bench.gpu_tests PYTEST-ARGUMENTS`: tests of the device, of which none costs another's
answer. Where one hangs, or takes the process or the device down, a fresh process goes on behind it.

Each test has FASTCONV_GPU_TEST_SECONDS. The last line sums up all processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_machine import ROOT
from bench.gpu_stages import died

sys.path.append(str(ROOT / "tests" / "gpu"))
import journal

RESTARTS = 12
NO_TESTS = 5  # pytest's exit code
TRACE_LINES = 12
# Until a process is given up: one whose test took too long, and any when the stage's time is up,
# of which the runner leaves three seconds.
ENDING_SECONDS = 10.0
STOPPING_SECONDS = 1.0


def results(path: Path) -> tuple[Counter[str], list[str], int]:
    """How many tests ended how, which ones began and did not end, how many never began."""
    outcomes: Counter[str] = Counter()
    unfinished: list[str] = []
    left = 0
    for line in journal.read(path):
        if "left" in line:
            left = line["left"]
        elif "begins" in line:
            unfinished.append(line["begins"])
            left -= 1
        else:
            unfinished.remove(line["ends"])
            outcomes[line["outcome"]] += 1
    return outcomes, unfinished, left


def short(nodeid: str) -> str:
    return nodeid.rpartition("/")[2]


def summary(path: Path) -> str:
    outcomes, unfinished, left = results(path)
    words = [
        f"{outcomes[name]} {name}" for name in ("failed", "passed", "skipped") if outcomes[name]
    ]
    if unfinished:
        words.append(f"no answer: {', '.join(map(short, unfinished))}")
    words += [f"{left} not run"] if left else []
    return ", ".join(words) or "no tests"


class Tests:
    def __init__(self, words: Sequence[str], path: Path) -> None:
        self.words, self.path = words, path
        self.stopped = False

    def stop(self, *_: object) -> None:
        """The stage's time is up; pytest has been told so, too."""
        self.stopped = True

    def one_process(self) -> int:
        """Its exit code. One that should have ended and does not (the driver may hold a process
        whose kernel hangs) is not waited for."""
        environment = {**os.environ, "FASTCONV_GPU_JOURNAL": str(self.path)}
        process = subprocess.Popen([sys.executable, "-m", "pytest", *self.words], env=environment)
        until = float("inf")
        while time.monotonic() < until:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if self.stopped:
                    until = min(until, time.monotonic() + STOPPING_SECONDS)
                elif self.trace():
                    until = min(until, time.monotonic() + ENDING_SECONDS)
        process.kill()
        return -signal.SIGKILL

    def trace(self) -> list[str]:
        """Where a test was that took too long."""
        path = self.path.with_suffix(".trace")
        return path.read_text().splitlines() if path.exists() else []

    def run(self) -> int:
        known = 0  # tests without an answer
        for _ in range(RESTARTS + 1):
            code = self.one_process()
            outcomes, unfinished, left = results(self.path)
            if self.stopped or len(unfinished) == known:
                break
            known = len(unfinished)
            trace = self.trace()
            why = "hung" if trace else died(code)
            print("\n".join(trace[:TRACE_LINES]))
            print(f"FAILED {unfinished[-1]}: {why}; a fresh process goes on", flush=True)
            if not left:
                code = 1
                break
        outcomes, unfinished, left = results(self.path)
        bad = outcomes["failed"] or unfinished or left or not outcomes
        if code not in (0, 1, NO_TESTS) and not known and not self.stopped:
            return code  # pytest could not begin
        return 1 if bad else 0


def main(words: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="fastconv-gpu-tests-") as folder:
        tests = Tests(words, Path(folder) / "journal")
        signal.signal(signal.SIGTERM, tests.stop)
        code = tests.run()
        # On a line of its own, also where pytest was ended in one.
        print(f"\nsummary: {summary(tests.path)}", flush=True)
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
