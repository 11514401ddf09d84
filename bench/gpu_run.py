"""`bash bench/gpu_run.sh [FOLDER] [--dry-run]`: all that only a GPU can tell, in one command.

Builds, tests, sanitizes, self-tests and measures on the first CUDA device, each stage in its own
process with its own time limit, the whole within nine minutes. Writes gpu_run.json, gpu_run.md,
gpu_run.log, gpu_suite.* and selftest.json into FOLDER, else $OUT, else bench/results/<device>/. The
exit code is 0 only when every stage that counts has passed; the benchmark against torch.compile
does not.

`--dry-run` needs no GPU: it runs what can run on the CPU and says of the rest that it did not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench import gpu_machine, gpu_report
from bench.gpu_machine import ROOT
from bench.gpu_sanitize import TOOLS
from bench.gpu_stages import Runner, Stage

SECONDS = 520.0  # the wrapper ends everything at 540
DRY_SECONDS = 115.0
NO_DEVICE = "no CUDA device"
# Of each stage's log, from its beginning and its end: all of them fit in 16 MiB.
LOG_BYTES = 1 << 17
# For tests that may take longer than others before they count as hanging.
LARGE = {"FASTCONV_GPU_TEST_SECONDS": "80"}
PATIENT = {"Triton convolutions": {"FASTCONV_GPU_TEST_SECONDS": "90"}}
NEEDED = ("build", "machine")  # by every other stage
NOT_NAMED = "--only names others"
ONLY_LIMIT = 3.0
# Ten processes share the cores; none of them has much to compute on the host.
FEW_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
PYTHON = sys.executable
PYTEST = (
    # A broken kernel fails each of hundreds of tests: 200 name it, more would only spend the time.
    *("-q", "-rf", "--tb=short", "--maxfail=200", "--color=no"),
    *("--confcutdir", "tests/gpu", "-p", "no:cacheprovider"),
)


def tests(*names: str) -> list[str]:
    files = (f"tests/gpu/test_gpu_{name}.py" for name in names)
    return [PYTHON, "-m", "bench.gpu_tests", *PYTEST, *files]


def shortened(log: bytes) -> bytes:
    if len(log) <= 2 * LOG_BYTES:
        return log
    return log[:LOG_BYTES] + b"\n[...]\n" + log[-LOG_BYTES:]


def built() -> bool:
    package = ROOT / "fastconv"
    return (package / "libfastconv_ops.so").exists() and any(package.glob("_C*.so"))


class GpuRun:
    """The stages in order, and the report, written again after every group."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.dry: bool = args.dry_run
        self.started = time.time()
        self.deadline = time.monotonic() + args.seconds
        self.runner = Runner(work, ROOT, self.deadline)
        self.machine: dict = {}
        self.clocks: dict = {}
        self.folder: Path | None = args.folder

    # --- the stages -----------------------------------------------------------------------------

    def build(self) -> list[Stage]:
        """With the question whether the device is what the kernels take it for: it needs nothing of
        what is built, and its answer is there before any kernel of ours has run."""
        return [*self.assumptions(), *self.extension()]

    def assumptions(self) -> list[Stage]:
        words = ("--json", str(self.work / "assumptions.json"))
        command = (PYTHON, "-m", "bench.gpu_assumptions", *words)
        if self.dry:
            note = "rehearsed on the CPU"
            command = (*command, "--emulated")
            return [Stage("assumptions: rehearsal", command, self.args.seconds, 10, note=note)]
        return [Stage("assumptions", command, 100, 40)]

    def extension(self) -> list[Stage]:
        environment = {"FASTCONV_CUDA": "1", "PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}"}
        reason = "--skip-build" if self.args.skip_build else ""
        if self.dry:
            environment["FASTCONV_CUDA"] = "1" if gpu_machine.find_nvcc() else "0"
            if built():
                reason = reason or "the build in place is used"
        arch = gpu_machine.architecture()
        if arch and "TORCH_CUDA_ARCH_LIST" not in os.environ:
            environment["TORCH_CUDA_ARCH_LIST"] = arch
        command = (PYTHON, "setup.py", "-q", "build_ext", "--inplace")
        # Asked to skip it, one vouches for the build: that is no failure.
        required = not self.args.skip_build
        return [Stage("build", command, 120, 60, required, environment, reason)]

    def look(self) -> list[Stage]:
        command = (PYTHON, "-m", "bench.gpu_machine", str(self.work / "machine.json"))
        return [Stage("machine", command, 60 if not self.dry else self.args.seconds, 15)]

    def device_tests(self) -> list[Stage]:
        """Side by side: they wait for the host most of the time. One process per algorithm (the
        poolings count as one, and their Triton kernels as another; so do the fused operations), so
        that one that takes the device down does not take the others' results."""
        algorithms = self.machine.get("cuda_algorithms") or [""]
        stages = [
            self._on_device(
                f"tests: {algorithm or 'instances'}",
                tests("instances"),
                130,
                60,
                env={"FASTCONV_GPU_ALGORITHM": algorithm} if algorithm else None,
            )
            for algorithm in algorithms
        ]
        for name, *files in (
            ("streams, graphs", "streams"),
            ("functions", "ops"),
            ("pooling", "pool"),
            ("pooling functions", "pool_ops"),
            ("fused operations", "fused", "inception"),
            ("Triton convolutions", "triton"),
        ):
            stages.append(
                self._on_device(f"tests: {name}", tests(*files), 130, 60, env=PATIENT.get(name))
            )
        return stages

    def watched(self) -> list[Stage]:
        stages = [
            self._on_device("tests: 2^31 elements", tests("large"), 90, 40, env=LARGE),
            self._on_device("tests: pooling 2^31", tests("pool_large"), 90, 40, env=LARGE),
        ]
        missing = "" if gpu_machine.find_sanitizer() else "compute-sanitizer was not found"
        for tool in TOOLS:
            command = (PYTHON, "-m", "bench.gpu_sanitize", tool)
            stage = self._on_device(f"compute-sanitizer: {tool}", command, 90, 40)
            # A tool that is not there is no fault of the kernels.
            stages.append(stage if stage.reason or not missing else _without(stage, missing))
        return stages

    def selftest(self) -> list[Stage]:
        # Each has its answer within a second or two; one that hangs may not take all of the time.
        words = ("--seconds-each", "20", "--json", str(self.work / "selftest.json"))
        command = (PYTHON, "-m", "fastconv.selftest", *words)
        return [self._on_device("selftest", command, 80, 40)]

    def triton(self) -> list[Stage]:
        """What is compiled on the device first: the check of each configuration that `auto` is
        likely to meet. It writes no file: what is vouched for are kernels of a build."""
        words = ("--seconds-each", "60", "--only", "triton")
        command = (PYTHON, "-m", "fastconv.selftest", *words)
        return [self._on_device("selftest: Triton", command, 150, 30, False)]

    def triton_benchmark(self) -> list[Stage]:
        words = "--device cuda --lists gpu --dtype bfloat16 --layout channels_last"
        words += " --providers triton_implicit_gemm,triton_depthwise --seconds 0.03"
        return [self._on_device("benchmark: Triton", self._bench(words, "triton"), 150, 30, False)]

    def benchmark(self) -> list[Stage]:
        """Every algorithm on the list of convolutions, and every instance on its first layer."""
        words = "--device cuda --lists gpu --providers auto,ours --every-instance 1"
        command = self._bench(f"{words} --seconds 0.03", "benchmark")
        return [self._on_device("benchmark", command, 200, 90)]

    def goals(self) -> list[Stage]:
        """The problems that goals are about, by every kernel instance of theirs: what tuning of the
        kernels and of the cost model starts from."""
        words = "--device cuda --lists gpu_goals --layout channels_last --every-instance 99"
        words += " --providers auto,tma,halo,im2col,gemm --seconds 0.03"
        return [self._on_device("benchmark: goals", self._bench(words, "goals"), 110, 40)]

    def networks(self) -> list[Stage]:
        """`auto` has measured its kernels before: networks have too many layers to check each."""
        words = "--device cuda --lists networks --batch 32 --dtype bfloat16 --layout channels_last"
        words += " --providers auto,compile --autotune --seconds 0.3"
        return [
            self._on_device("benchmark: networks", self._bench(words, "networks"), 200, 30, False)
        ]

    def cost_model(self) -> list[Stage]:
        """What the models said of what has been measured."""
        known = (self.work / f"{name}.json" for name in ("benchmark", "goals", "triton"))
        files = tuple(str(path) for path in known if path.exists())
        command = (PYTHON, "-m", "bench", "model", *files, "--json", str(self.work / "model.json"))
        reason = "" if files and not self.dry else "nothing was measured"
        return [Stage("cost model", command, 60, 5, False, {}, reason)]

    def against_compile(self) -> list[Stage]:
        words = "--device cuda --lists gpu_compiled --providers compile --layout channels_last"
        command = self._bench(f"{words} --seconds 0.03", "compiled")
        return [self._on_device("benchmark: torch.compile", command, 110, 40, False)]

    def suite(self) -> list[Stage]:
        """What `python -m bench run` measures on the device: pools and inception modules."""
        words = (
            "--device cuda --dtype bfloat16 --batch 32 --lists family,inception,resnet50,googlenet"
        )
        words += " --ops pool,inception --providers auto,direct,triton,compile --seconds 0.03"
        return [self._on_device("benchmark: suite", self._bench(words, "suite"), 75, 30)]

    def _bench(self, words: str, name: str) -> tuple[str, ...]:
        options = (*words.split(), "--until", "stage", "--json", str(self.work / f"{name}.json"))
        return (PYTHON, "-m", "bench", "run", *options)

    def rehearsals(self) -> list[list[Stage]]:
        """What a dry run does in the place of the stages that need a device."""
        environment = {"FASTCONV_GPU_REHEARSAL": "cpu", "OMP_WAIT_POLICY": "passive"}
        note = "rehearsed on the CPU"
        limit = self.args.seconds  # a busy machine is no failure: only the whole has a limit
        collect = (PYTHON, "-m", "pytest", *PYTEST, "--collect-only", "tests/gpu")
        bench = "--lists gpu_rehearsal --reference definition --providers auto,ours --restarts 1"
        return [
            [
                Stage("tests: collected", collect, limit),
                Stage("selftest: starts", (PYTHON, "-m", "fastconv.selftest", "--help"), limit),
            ],
            [
                Stage(
                    "tests: rehearsal",
                    (PYTHON, "-m", "bench.gpu_tests", *PYTEST, "-m", "not gpu", "tests/gpu"),
                    *(limit, 10, True),
                    environment,
                    note=note,
                )
            ],
            [
                Stage(
                    "sanitized: rehearsal",
                    (PYTHON, "tests/gpu/sanitized.py", "--seconds", "4"),
                    *(limit, 10, True),
                    environment,
                    note=note,
                ),
                Stage(
                    "benchmark: rehearsal",
                    self._bench(f"{bench} --seconds 0.001", "benchmark"),
                    *(limit, 10, True),
                    {"OMP_WAIT_POLICY": "passive"},
                    note=note,
                ),
                Stage(
                    "suite: rehearsal",
                    self._bench("--lists family --limit 1 --seconds 0.001", "suite"),
                    *(limit, 10, True),
                    {"OMP_WAIT_POLICY": "passive"},
                    note=note,
                ),
            ],
        ]

    def _on_device(
        self,
        name: str,
        command: Sequence[str],
        limit: float,
        least: float,
        required: bool = True,
        env: dict | None = None,
    ) -> Stage:
        reason = "" if self.machine.get("device") and not self.dry else NO_DEVICE
        environment = {**(FEW_THREADS if name.startswith(("tests", "compute")) else {})}
        environment |= env or {}
        return Stage(name, tuple(command), limit, least, required, environment, reason)

    # --- the run --------------------------------------------------------------------------------

    def groups(self) -> list[Callable[[], list[Stage]]]:
        on_device = [
            self.device_tests,
            self.watched,
            self.selftest,
            self.goals,
            self.benchmark,
            self.cost_model,
            self.suite,
            self.against_compile,
            self.triton,
            self.triton_benchmark,
            self.networks,
        ]
        if not self.dry:
            return [self.build, self.look, *on_device]
        rehearsed = [lambda group=group: group for group in self.rehearsals()]
        return [self.build, self.look, *rehearsed, *on_device]

    def run(self) -> bool:
        """Every group, whatever the others did. Returns whether the run passed."""
        groups = self.groups()
        for index, group in enumerate(groups):
            rest = [self.chosen(g()) for g in groups[index + 1 :]]
            kept = ([s.least for s in g if s.reason != NOT_NAMED] for g in rest)
            later = sum(max(seconds, default=0.0) for seconds in kept)
            stages = self.chosen(group())
            if any(s.name == "benchmark" and not s.reason for s in stages):
                self.clocks["before"] = gpu_machine.nvidia_smi(gpu_machine.CLOCKS)
            self.runner.run(stages, later if not self.dry else 0.0)
            if any(s.name == "benchmark" and not s.reason for s in stages):
                self.clocks["after"] = gpu_machine.nvidia_smi(gpu_machine.CLOCKS)
            if any(s.name == "machine" for s in stages):
                self.machine = self._json("machine") or {}
            doc = self.save()
        print(gpu_report.table(doc))
        print(f"written: {self.folder}")
        return doc["passed"]

    def chosen(self, stages: list[Stage]) -> list[Stage]:
        """What `--only` names may take the time of what it does not name."""
        names = [name for name in (self.args.only or "").split(",") if name]
        if not names:
            return stages
        found = []
        for stage in stages:
            if any(name in stage.name for name in names):
                limit = stage.limit if self.dry else ONLY_LIMIT * stage.limit
                found.append(replace(stage, limit=limit))
            elif stage.name in NEEDED:
                found.append(stage)
            else:
                found.append(_without(stage, NOT_NAMED))
        return found

    def save(self) -> dict:
        folder = self._folder()
        folder.mkdir(parents=True, exist_ok=True)
        machine = {**self.machine, "benchmark_clocks": self.clocks}
        machine["wall_seconds"] = round(time.time() - self.started)
        machine["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started))
        parts = self._benchmarks()
        selftest = self._json("selftest")
        results = [r.as_dict() for r in self.runner.results]
        assumptions = self._json("assumptions") or []
        doc = gpu_report.document(self.dry, machine, results, parts, selftest, assumptions)
        doc["model"] = self._json("model")
        gpu_report.write_json(doc, folder / "gpu_run.json")
        (folder / "gpu_run.md").write_text(gpu_report.markdown(doc))
        if selftest is not None:
            shutil.copyfile(self.work / "selftest.json", folder / "selftest.json")
        # Whole: what `bench model` and `bench compare` read.
        for name in ("suite.*", "goals.*", "networks.*", "benchmark.json"):
            for written in self.work.glob(name):
                shutil.copyfile(written, folder / f"gpu_{written.name}")
        with (folder / "gpu_run.log").open("wb") as out:
            for result in self.runner.results:
                log = self.runner.log_of(result.name)
                out.write(f"===== {result.name}: {result.status}\n".encode())
                out.write(shortened(log.read_bytes()) if log.exists() else b"")
        return doc

    def _folder(self) -> Path:
        if self.folder is None:
            results = ROOT / "bench" / "results"
            if not self.machine:
                return self.work  # not yet known: the build runs first
            if self.dry or self.args.only or not self.machine.get("device"):
                self.folder = ROOT / "build" / "gpu_run"  # no result to commit
            else:
                self.folder = results / gpu_machine.slug(self.machine)
        return self.folder

    def _benchmarks(self) -> list[dict]:
        """Of the others only what they are for: PyTorch was timed in the first as well."""
        found = []
        parts = (
            ("benchmark", ""),
            ("goals", ""),
            ("networks", ""),
            ("compiled", "compile@"),
            ("triton", "triton_"),
        )
        for name, only in parts:
            result = self._json(name)
            if result is not None:
                part = gpu_report.benchmark(result)
                part["rows"] = [r for r in part["rows"] if r["contender"].startswith(only)]
                found.append(part)
        return found

    def _json(self, name: str) -> dict | None:
        try:
            return json.loads((self.work / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None


def _without(stage: Stage, reason: str) -> Stage:
    return Stage(stage.name, stage.command, required=False, reason=reason)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bash bench/gpu_run.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", nargs="?", type=Path, default=os.environ.get("OUT") or None)
    add("--dry-run", action="store_true", help="no GPU: rehearse on the CPU")
    add("--skip-build", action="store_true", help="use the build in place")
    add("--seconds", type=float, help="for the whole run")
    only = "run these stages alone, and those that they need; commas between parts of their names"
    add("--only", default="", metavar="NAMES", help=only)
    args = parser.parse_args()
    args.folder = Path(args.folder).resolve() if args.folder else None
    args.seconds = args.seconds or (DRY_SECONDS if args.dry_run else SECONDS)
    with tempfile.TemporaryDirectory(prefix="fastconv-gpu-run-") as work:
        gpu_run = GpuRun(args, Path(work))
        signal.signal(signal.SIGTERM, lambda *_: gpu_run.runner.stop("interrupted"))
        signal.signal(signal.SIGINT, lambda *_: gpu_run.runner.stop("interrupted"))
        return 0 if gpu_run.run() else 1


if __name__ == "__main__":
    sys.exit(main())
