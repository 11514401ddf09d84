"""Runs the stages of a GPU run: each a process group of its own, with a time limit and a log.

A stage that fails, hangs or cannot start is a result like any other and stops nobody. Standard
library only, so that it can report that PyTorch is broken.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

PASSED, FAILED, TIMED_OUT, NOT_RUN = "passed", "failed", "timed out", "not run"
# Ended well, but something that it is for could not be done.
LIMITED = "limited"
RC_LIMITED = 77
GRACE_SECONDS = 3.0  # between asking a stage to end and ending it
TAIL_LINES = 25


@dataclass(frozen=True)
class Stage:
    """One command. `least`: seconds that are kept free for it while earlier stages run."""

    name: str
    command: Sequence[str] = ()
    limit: float = 60.0
    least: float = 10.0
    required: bool = True  # the run has passed only if this has
    env: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""  # set: it is not run, and this is why
    note: str = ""  # how what is run differs from the stage on a GPU


@dataclass
class Result:
    name: str
    status: str
    required: bool
    seconds: float = 0.0
    limit: float = 0.0
    code: int | None = None
    reason: str = ""
    summary: str = ""
    tail: str = ""
    telling: list[str] = field(default_factory=list)
    excused: bool = False  # not run, as planned

    @property
    def ok(self) -> bool:
        return self.status in (PASSED, LIMITED)

    def as_dict(self) -> dict:
        return asdict(self)


def not_run(stage: Stage, reason: str) -> Result:
    excused = bool(stage.reason) and reason == stage.reason
    return Result(stage.name, NOT_RUN, stage.required, reason=reason, excused=excused)


def say(text: str) -> None:
    """At once, also into a pipe: whoever reads it may have to act on it."""
    print(text, flush=True)


class Runner:
    """Runs groups of stages side by side, all of them before `deadline` (of time.monotonic)."""

    def __init__(
        self, folder: Path, root: Path, deadline: float, report: Callable[[str], None] = say
    ) -> None:
        self.folder, self.root, self.deadline, self.report = folder, root, deadline, report
        self.results: list[Result] = []
        self.running: list[subprocess.Popen] = []
        self.stopped = ""

    def run(self, group: Sequence[Stage], later: float = 0.0) -> list[Result]:
        """One group. `later`: seconds to leave for the groups that follow."""
        started = {}
        results: dict[str, Result] = {}
        for stage in group:
            left = self.deadline - time.monotonic() - later
            limit = min(stage.limit, max(left, min(stage.least, left + later)))
            if stage.reason or self.stopped:
                results[stage.name] = not_run(stage, stage.reason or self.stopped)
            elif limit < 1.0:
                results[stage.name] = not_run(stage, "no time was left")
            else:
                started[stage.name] = (stage, limit, time.monotonic(), self._start(stage, limit))
        while started:
            for name, (stage, limit, began, process) in list(started.items()):
                seconds = time.monotonic() - began
                if isinstance(process, str):
                    results[name] = Result(name, FAILED, stage.required, 0.0, limit, reason=process)
                elif process.poll() is not None or seconds > limit or self.stopped:
                    results[name] = self._finish(stage, limit, seconds, process)
                else:
                    continue
                del started[name]
                self._say(results[name])
            if started:
                time.sleep(0.05)
        for stage in group:
            if results[stage.name].status == NOT_RUN:
                self._say(results[stage.name])
        ordered = [results[stage.name] for stage in group]
        self.results += ordered
        return ordered

    def stop(self, reason: str) -> None:
        """Ends what runs; everything after it is not run."""
        self.stopped = reason

    def log_of(self, name: str) -> Path:
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}.log"

    def _start(self, stage: Stage, limit: float) -> subprocess.Popen | str:
        """The process in a session of its own, or why there is none."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **stage.env}
        environment["FASTCONV_STAGE_SECONDS"] = f"{limit:.1f}"
        try:
            with self.log_of(stage.name).open("wb") as log:
                process = subprocess.Popen(
                    list(stage.command),
                    cwd=self.root,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            return f"could not start {stage.command[0]}: {error}"
        self.running.append(process)
        return process

    def _finish(
        self, stage: Stage, limit: float, seconds: float, process: subprocess.Popen
    ) -> Result:
        on_time = process.poll() is not None
        end_group(process)
        self.running.remove(process)
        text = self.log_of(stage.name).read_text(errors="replace")
        result = Result(stage.name, PASSED, stage.required, seconds, limit, process.returncode)
        result.summary = summary_of(text)
        if not on_time:
            result.status = NOT_RUN if self.stopped else TIMED_OUT
            result.reason = self.stopped or f"killed after {limit:.0f} s"
            if process.poll() is None:
                result.reason += ", and did not end"
        elif process.returncode == RC_LIMITED:
            result.status, result.reason = LIMITED, stage.note
        elif process.returncode != 0:
            result.status, result.reason = FAILED, died(process.returncode)
        else:
            result.reason = stage.note
        if result.status != PASSED:
            result.tail = "\n".join(text.splitlines()[-TAIL_LINES:])
            result.telling = telling_lines(text)
        return result

    def _say(self, result: Result) -> None:
        words = [f"{result.name:<28} {result.status:<9} {result.seconds:6.1f} s"]
        self.report("  ".join([*words, result.summary, result.reason]).rstrip())


def end_group(process: subprocess.Popen) -> None:
    """Ends the process and whatever it started. One that the driver does not let go of (it waits
    for a kernel that hangs) is left behind: the others need the time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until and group_lives(process):
            time.sleep(0.02)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)


def group_lives(process: subprocess.Popen) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def died(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


# The last line that says what a stage found: pytest's, compute-sanitizer's, or one of ours.
_TELLING = re.compile(r"^(?:FAILED|ERROR|E  |lost at |error: |.*: (?:fatal )?error\b)|\berror:")
SHOWN_LINES, SHOWN_WIDTH = 5, 150


def telling_lines(text: str) -> list[str]:
    """The few lines of a log that say why, for those who see only the end of the output."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if _TELLING.search(line)] or lines[-3:]
    return [line[:SHOWN_WIDTH] for line in telling[:SHOWN_LINES]]


_SUMMARY = re.compile(
    r"^(?:=+ )?(?:"
    r"(?P<pytest>\d+ (?:passed|failed|error|tests? collected|/)[^=\n]*?)(?: in [\d.]+s.*)?"
    r"|=+ (?P<sanitizer>(?:ERROR|RACECHECK) SUMMARY: .*)"
    r"|summary: (?P<own>.*)"
    r")(?: =+)?$",
    re.MULTILINE,
)


def summary_of(text: str) -> str:
    found = list(_SUMMARY.finditer(text))
    return next((group for group in found[-1].groups() if group), "") if found else ""
