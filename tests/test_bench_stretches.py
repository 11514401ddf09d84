"""A benchmark in stretches: who takes the device or the process down is left out, and a fresh
process goes on behind it with what was measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import providers, run, stretches
from bench.gpu_stages import RC_LIMITED
from bench.problem import Problem
from bench.providers import PYTORCH, Call, Provider
from fastconv import gpu

TESTS = Path(__file__).parent
ERROR = "CUDA error: an illegal memory access was encountered"


class Faulty(Provider):
    """Right but for one direction, in which nothing runs on the device after it."""

    name = "faulty"
    ours = True

    def conv(self, problem: Problem) -> Call:
        if problem.direction != "dgrad":
            return providers.Fastconv("direct").conv(problem)

        def fault() -> None:
            gpu.loss = lambda device: ERROR
            raise RuntimeError(ERROR)

        return fault


class Killed(Provider):
    """Right when it is checked; its process ends while it is timed."""

    name = "killed"
    ours = True
    calls = 0

    def conv(self, problem: Problem) -> Call:
        right = providers.Fastconv("direct").conv(problem)

        def call():
            self.calls += 1
            if problem.direction == "wgrad" and self.calls > 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return right()

        self.calls = 0
        return call


class Cheated(Provider):
    """An error that leaves the device as it is."""

    name = "cheated"
    ours = True

    def conv(self, problem: Problem) -> Call:
        raise ValueError("no room")


def bench(
    tmp_path: Path, *more: str, **environment: str
) -> tuple[subprocess.CompletedProcess, dict]:
    path = tmp_path / "out.json"
    words = "run --lists gpu_rehearsal --layout nchw --seconds 0.001 --reference definition"
    command = [sys.executable, "-m", "bench", *words.split(), "--json", str(path), *more]
    done = subprocess.run(
        command,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}", **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done, json.loads(path.read_text())


def keys(doc: dict, contender: str) -> list[tuple]:
    names = ("layer", "direction", "dtype", "precision")
    return [tuple(r[n] for n in names) for r in doc["rows"] if r["contender"] == contender]


@pytest.mark.slow
def test_a_run_goes_on_behind_who_takes_it_down(tmp_path: Path) -> None:
    name = __name__
    contenders = f"direct,{name}:Faulty,{name}:Killed,{name}:Cheated"
    done, doc = bench(tmp_path, "--providers", contenders, "--restarts", "5")
    assert done.returncode == 1, done.stdout + done.stderr
    # The one layer with gradients, in two dtypes: each ends two processes.
    assert done.stdout.count("a fresh process goes on") == 4
    assert "lost at faulty of conv2d rehearsal 4x8x8>6 3x3 2 dgrad nchw cpu bfloat16" in done.stdout
    assert "lost at the timing of conv2d rehearsal 4x8x8>6 3x3 2 wgrad" in done.stdout
    # Every problem once, in the list's order, whatever happened in between.
    expected = [
        (item.layer.label, item.directions[0], item.dtype, item.precision)
        for item in run._by_value("gpu_rehearsal")
    ]
    for contender in (PYTORCH, "direct", "faulty", "killed", "cheated", "copy"):
        assert keys(doc, contender) == expected, contender
    for row in doc["rows"]:
        down = "took the device down: "
        if row["direction"] == "wgrad":  # timed together: nobody knows whose doing it was
            assert (row["status"], row["reason"]) == ("error", f"{down}ended by signal 9")
        elif (row["contender"], row["direction"]) == ("faulty", "dgrad"):
            assert (row["status"], row["reason"]) == ("error", down + ERROR)
        elif row["contender"] == "cheated":
            assert (row["status"], row["reason"]) == ("error", "ValueError: no room")
        else:
            assert row["status"] == "ok" and row["ms"]["median"] > 0, row
    assert "left_out" not in doc["settings"]


@pytest.mark.slow
def test_processes_run_out(tmp_path: Path) -> None:
    """What there is stays, and the exit code says that it is not all."""
    done, doc = bench(tmp_path, "--providers", f"{__name__}:Faulty", "--restarts", "1")
    assert done.returncode == 1 and "no process is left" in done.stdout
    found = keys(doc, PYTORCH)
    assert len(found) == 8 and found[-1][1:3] == ("wgrad", "bfloat16")


def test_the_time_of_a_stage(tmp_path: Path) -> None:
    stage = {run.STAGE_SECONDS: "0"}
    done, doc = bench(tmp_path, "--until", "stage", "--restarts", "1", **stage)
    assert done.returncode == RC_LIMITED, done.stdout + done.stderr
    assert doc["rows"] == [] and doc["settings"]["left_out"] == "12 of 12 layers"


def test_seconds_until(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run.STAGE_SECONDS, "200")
    assert (run.until("12.5"), run.until("stage")) == (12.5, 200 - run.MARGIN_SECONDS)
    monkeypatch.setenv(run.STAGE_SECONDS, "20")
    assert run.until("stage") == 15


def test_who_hangs_is_ended_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The first process never comes back from a contender, the second one finds it banned."""
    script = tmp_path / "bench.py"
    script.write_text(
        f"import sys, time; sys.path[:0] = [{str(TESTS.parent)!r}]\n"
        "import pathlib\nfrom bench.stretches import Progress\n"
        "progress = Progress(pathlib.Path(sys.argv[-1]))\n"
        "if not progress.banned('p'):\n"
        "    progress.enter('p', 'x')\n    time.sleep(600)\n"
        "print(progress.banned('p'))\nprogress.end()\n"
    )
    monkeypatch.setattr(stretches, "COMMAND", (sys.executable, str(script)))
    assert stretches.supervise([], 2, hangs_after=0.5) == 0
    assert "lost at x of p: no answer; a fresh process goes on" in capsys.readouterr().out


def test_what_compiles_has_longer(tmp_path: Path) -> None:
    progress = stretches.Progress(tmp_path / "progress.json")
    assert not progress.overdue(0.0)  # nobody is running
    for name, late in (("auto", True), ("", True), ("compile", False), ("triton_depthwise", False)):
        progress.enter("p", name)
        old = time.time() - 60
        os.utime(tmp_path / "progress.at", (old, old))
        assert progress.overdue(45.0) is late, name


def test_progress_is_what_another_process_reads(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    first = stretches.Progress(path)
    first.enter("a", "x")
    first.rows.append({"of": "a"})
    first.leave("a")
    first.enter("b", "x")
    first.enter("b", "y")
    second = stretches.Progress(path)
    assert second.rows == [{"of": "a"}] and second.is_done("a") and not second.is_done("b")
    assert second.ban("why") == ("b", "y") and second.ban("again") is None
    third = stretches.Progress(path)
    assert third.banned("b") == {"y": "why"} and third.banned("a") == {}
    third.enter("b", "x")
    third.leave("b")
    assert stretches.Progress(path).ban("nobody was running") is None
