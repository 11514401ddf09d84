"""The GPU command without a GPU: its dry run, its time limits, and that it always reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from bench import gpu_report, gpu_run, gpu_sanitize, gpu_stages
from bench.gpu_stages import FAILED, LIMITED, NOT_RUN, PASSED, TIMED_OUT, Runner, Stage
from fastconv import _C

ROOT = Path(__file__).resolve().parent.parent
ON_DEVICE = (
    "tests: streams, graphs",
    "tests: functions",
    "tests: pooling",
    "tests: pooling functions",
    "tests: fused operations",
    "tests: 2^31 elements",
    "tests: pooling 2^31",
    "selftest",
    "benchmark",
    "benchmark: suite",
    "benchmark: goals",
    "benchmark: networks",
    "tests: Triton convolutions",
    "selftest: Triton",
    "benchmark: Triton",
    *(f"compute-sanitizer: {tool}" for tool in gpu_sanitize.TOOLS),
)


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def runner(folder: Path, seconds: float = 60.0) -> Runner:
    return Runner(folder, ROOT, time.monotonic() + seconds, report=lambda text: None)


# --- the dry run ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("dry") / "out"
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        # Half a minute on two idle cores; busy ones are no failure.
        ["bash", "bench/gpu_run.sh", str(folder), "--dry-run", "--skip-build", "--seconds", "500"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=530,
    )
    return folder, done


@pytest.mark.slow
@pytest.mark.skipif("torch.cuda.is_available()", reason="this is about machines without a GPU")
def test_dry_run(dry) -> None:
    folder, done = dry
    assert done.returncode == 0, done.stdout + done.stderr
    written = {f"gpu_run.{kind}" for kind in ("json", "md", "log")}
    written |= {"gpu_benchmark.json"}
    written |= {f"gpu_suite.{kind}" for kind in ("json", "md", "csv")}
    assert {path.name for path in folder.iterdir()} == written
    doc = json.loads((folder / "gpu_run.json").read_text())
    assert doc["dry_run"] and doc["passed"] and doc["failed"] == []
    stages = {stage["name"]: stage for stage in doc["stages"]}
    rehearsed = ("assumptions", "tests", "sanitized", "benchmark", "suite")
    others = ("machine", "tests: collected", "selftest: starts")
    for name in (*others, *(f"{name}: rehearsal" for name in rehearsed)):
        assert stages[name]["status"] == PASSED, stages[name]
    for name in (*ON_DEVICE, *(f"tests: {a}" for a in _C.cuda_algorithms())):
        assert (stages[name]["status"], stages[name]["reason"]) == (NOT_RUN, "no CUDA device")
    machine = doc["machine"]
    assert machine["revision"] and machine["torch"] == torch.__version__
    assert machine["device"] is None and machine["cuda_instances"] == len(_C.cuda_instances())
    assert machine["cuda_pool_instances"] == len(_C.cuda_pool_instances())
    rows = [row for row in doc["rows"] if row["status"] == "ok"]
    assert {row["direction"] for row in rows} == {"fprop", "dgrad", "wgrad"}
    assert all(row["ms"]["median"] > 0 and row["excess"] >= 0 for row in rows)
    assert doc["overall"] == []
    assert {a["outcome"] for a in doc["assumptions"]} == {"held"} and len(doc["assumptions"]) > 50
    page = (folder / "gpu_run.md").read_text()
    assert gpu_report.DRY in page and "no CUDA device" in page
    assert done.stdout.rstrip().splitlines()[-2] == "outcome: passed"
    assert gpu_report.DRY in done.stdout


# --- stages -----------------------------------------------------------------------------------


def test_stages_report_whatever_becomes_of_them(tmp_path: Path) -> None:
    stages = [
        Stage("good", python("print('=== 3 passed, 1 skipped in 0.1s ===')")),
        Stage("bad", python("print('what went wrong'); raise SystemExit(3)")),
        Stage("sleeps", python("import time; print('asleep', flush=True); time.sleep(600)"), 1.5),
        Stage("crashes", python("import os; os.kill(os.getpid(), 11)")),
        Stage("missing", ("/no/such/program",)),
        Stage("unneeded", reason="no CUDA device"),
        Stage("half", python("raise SystemExit(77)"), note="a part"),
    ]
    began = time.monotonic()
    found = {r.name: r for r in runner(tmp_path).run(stages)}
    assert time.monotonic() - began < 20
    assert {name: r.status for name, r in found.items()} == {
        "good": PASSED,
        "bad": FAILED,
        "sleeps": TIMED_OUT,
        "crashes": FAILED,
        "missing": FAILED,
        "unneeded": NOT_RUN,
        "half": LIMITED,
    }
    assert found["good"].summary == "3 passed, 1 skipped"
    assert (found["bad"].reason, found["bad"].tail) == ("exit code 3", "what went wrong")
    assert "killed after" in found["sleeps"].reason and found["sleeps"].tail == "asleep"
    assert "SIGSEGV" in found["crashes"].reason
    assert "/no/such/program" in found["missing"].reason
    assert found["unneeded"].reason == "no CUDA device"


def test_a_stage_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Also what ignores a polite request, and what outlives the process that started it."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    code = f"""
import subprocess, sys
p = subprocess.Popen([sys.executable, "-c", {child!r}])
open({str(tmp_path / "pid")!r}, "w").write(str(p.pid))
"""
    stages = [Stage("leaves", python(code)), Stage("waits", python(code + "p.wait()"), 2.0)]
    for stage in stages:
        runner(tmp_path).run([stage])
        pid = int((tmp_path / "pid").read_text())
        state = Path(f"/proc/{pid}/stat")
        # Dead, if not yet buried by whoever inherits it.
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_deadline_shortens_and_drops_stages(tmp_path: Path) -> None:
    sleep = python("import time; time.sleep(600)")
    r = runner(tmp_path, seconds=5.0)
    (first,) = r.run([Stage("long", sleep, limit=100, least=1)], later=2.5)
    assert first.status == TIMED_OUT and first.seconds < 4
    (second,) = r.run([Stage("kept", python("print('summary: here')"), least=2)])
    assert (second.status, second.summary) == (PASSED, "here")
    r.deadline = time.monotonic() + 0.5
    (third,) = r.run([Stage("late", sleep)])
    assert (third.status, third.reason) == (NOT_RUN, "no time was left")


def test_stages_of_a_group_run_side_by_side_and_know_their_time(tmp_path: Path) -> None:
    code = "import os, time; time.sleep(2); print('summary:', os.environ['FASTCONV_STAGE_SECONDS'])"
    began = time.monotonic()
    found = runner(tmp_path).run([Stage(f"s{i}", python(code), limit=30) for i in range(3)])
    assert time.monotonic() - began < 5.5
    assert [r.summary for r in found] == ["30.0"] * 3


def run_with(groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, dict]:
    """A real run's report over other stages."""
    work = tmp_path / "work"
    work.mkdir()
    args = Namespace(folder=tmp_path / "out", dry_run=False, skip_build=True, seconds=60.0, only="")
    run = gpu_run.GpuRun(args, work)
    monkeypatch.setattr(run, "groups", lambda: groups(work))
    return run.run(), json.loads((tmp_path / "out" / "gpu_run.json").read_text())


def test_a_failing_stage_fails_the_run_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def groups(work: Path):
        facts = {"device": "NVIDIA Test", "torch": "2"}
        row = {"net": "n", "layer": "l", "batch": 1, "direction": "fprop", "layout": "nchw"}
        row |= {"dtype": "bfloat16", "contender": "auto", "ran": "im2col/a", "status": "ok"}
        row |= {"error": 0.5, "ms": {"median": 1.0}, "floor_ms": 0.5}
        rows = json.dumps({"settings": {"ceilings": {}}, "rows": [row]})
        write = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
        return [
            lambda: [Stage("build", python("raise SystemExit(1)"))],
            lambda: [Stage("machine", (*python(write), f"{work}/machine.json", json.dumps(facts)))],
            lambda: [Stage("hangs", python("import time; time.sleep(600)"), 1.0)],
            lambda: [Stage("benchmark", (*python(write), f"{work}/benchmark.json", rows))],
            lambda: [Stage("optional", python("raise SystemExit(1)"), required=False)],
        ]

    passed, doc = run_with(groups, tmp_path, monkeypatch)
    assert not passed and doc["failed"] == ["build", "hangs"]
    assert [s["status"] for s in doc["stages"]] == [FAILED, PASSED, TIMED_OUT, PASSED, FAILED]
    assert doc["machine"]["device"] == "NVIDIA Test"
    assert [row["contender"] for row in doc["rows"]] == ["auto@nchw"]
    page = (tmp_path / "out" / "gpu_run.md").read_text()
    assert "# GPU run: NVIDIA Test" in page and "FAILED: build, hangs" in page
    assert "DRY" not in page
    assert "outcome: FAILED (build, hangs)" in capsys.readouterr().out


def test_without_a_device_a_real_run_fails_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = Namespace(folder=tmp_path, dry_run=False, skip_build=True, seconds=60.0, only="")
    run = gpu_run.GpuRun(args, tmp_path)
    run.machine = {"device": None}
    stages = [s for g in (run.device_tests, run.selftest, run.benchmark) for s in g()]
    assert stages and all(s.reason == "no CUDA device" and s.required for s in stages)
    results = [gpu_stages.not_run(s, s.reason).as_dict() for s in stages]
    assert not gpu_report.document(False, {}, results, [], None)["passed"]
    assert gpu_report.document(True, {}, results, [], None)["passed"]


def test_every_file_of_device_tests_is_a_stages(tmp_path: Path) -> None:
    args = Namespace(folder=tmp_path, dry_run=False, skip_build=True, seconds=60.0, only="")
    run = gpu_run.GpuRun(args, tmp_path)
    named = [word for s in (*run.device_tests(), *run.watched()) for word in s.command]
    files = sorted(path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
    assert files and sorted({Path(w).name for w in named if "tests/gpu/test_" in w}) == files


def test_only_what_is_named_runs(tmp_path: Path) -> None:
    """And may take the time that the others leave; what it needs runs as ever."""
    facts = {"device": "NVIDIA Test", "cuda_algorithms": ["tma", "halo"]}
    args = Namespace(folder=None, dry_run=False, skip_build=True, seconds=60.0, only="tma,selftest")
    run = gpu_run.GpuRun(args, tmp_path)
    run.machine = facts
    stages = {s.name: s for group in run.groups() for s in run.chosen(group())}
    going = {name for name, s in stages.items() if s.reason != gpu_run.NOT_NAMED}
    assert going == {"build", "machine", "tests: tma", "selftest", "selftest: Triton"}
    assert stages["tests: tma"].limit == 3 * run.device_tests()[0].limit
    assert stages["tests: halo"].reason and not stages["tests: halo"].required
    run.save()
    assert run.folder == ROOT / "build" / "gpu_run"  # a part is no result of the device


def test_the_end_of_the_output_says_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = "a\nFAILED tests/x.py::test_a - assert 1\n" + "noise\n" * 100
    stages = [
        Stage("bad", python(f"print({log!r}); raise SystemExit(1)")),
        Stage("compiles", python("print('a.cu(7): error: no\\n' * 99); raise SystemExit(1)")),
        Stage("silent", python("raise SystemExit(1)")),
    ]
    found = [r.as_dict() for r in runner(tmp_path).run(stages)]
    text = gpu_report.table(gpu_report.document(False, {}, found * 20, [], None))
    assert "bad: FAILED tests/x.py::test_a - assert 1" in text and "noise" not in text
    assert "compiles: a.cu(7): error: no" in text
    assert text.rstrip().splitlines()[-2].startswith("... and ") and len(text) < 12_000


def test_a_long_log_keeps_both_ends() -> None:
    log = b"first" + bytes(gpu_run.LOG_BYTES * 3) + b"last"
    short = gpu_run.shortened(log)
    assert short.startswith(b"first") and short.endswith(b"last")
    assert len(short) < 2 * gpu_run.LOG_BYTES + 10 and gpu_run.shortened(b"all") == b"all"


def test_an_interrupted_run_still_reports(tmp_path: Path) -> None:
    """The wrapper's time limit sends SIGTERM."""
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "bench.gpu_run", str(folder), "--dry-run", "--skip-build"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines, sent = [], False
    for text in process.stdout:
        lines.append(text)
        if text.startswith("machine") and not sent:  # the table at the end names it once more
            process.send_signal(signal.SIGTERM)
            sent = True
    assert process.wait(timeout=60) == 1, lines
    doc = json.loads((folder / "gpu_run.json").read_text())
    reasons = {s["name"]: s["reason"] for s in doc["stages"]}
    assert reasons["tests: rehearsal"] == "interrupted"
    assert not doc["passed"] and "tests: rehearsal" in doc["failed"]


def test_what_a_sanitizer_says_is_in_the_log_at_once(tmp_path: Path) -> None:
    """The stage's end may find it in a kernel that hangs."""
    hangs = python("import time; print('direct/a', flush=True); time.sleep(600)")
    code = f"import os; from bench.gpu_sanitize import passed_on; passed_on({hangs}, os.environ)"
    (found,) = runner(tmp_path).run([Stage("sanitizer", python(code), 6.0)])
    assert (found.status, found.tail) == (TIMED_OUT, "direct/a")
    text, ended = gpu_sanitize.passed_on(python("print('a'); raise SystemExit(66)"), os.environ)
    assert (text, ended) == ("a\n", 66)


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ("sanitized: 9 of 9 instances\n========= ERROR SUMMARY: 0 errors", 0, 0),
        ("sanitized: 9 of 9 instances\n========= ERROR SUMMARY: 2 errors", 66, 1),
        ("========= ERROR SUMMARY: 0 errors", 0, 1),  # the program broke off
        ("sanitized: 9 of 9 instances", 0, 1),  # the tool did not
        ("sanitized: 1 of 1 instances\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, "
         "0 warnings)", 0, 0),
        ("sanitized: 1 of 1 instances\n========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, "
         "0 warnings)", 66, 1),
        ("========= Error: Device not supported\n========= ERROR SUMMARY: 1 error", 1, 77),
    ],
)  # fmt: skip
def test_verdict_on_a_sanitizer(text: str, code: int, expected: int) -> None:
    assert gpu_sanitize.verdict(text, code)[0] == expected
