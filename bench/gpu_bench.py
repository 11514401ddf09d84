"""`python -m bench.gpu_bench`: every algorithm on the device against PyTorch, layer by layer.

Writes its rows after each problem, so that what was measured survives a crash. A kernel that takes
the device down with it is recorded and left out, and the run starts itself again behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import ceilings, gpu_check, gpu_contenders
from bench.conv_problem import ConvProblem
from bench.gpu_contenders import AUTO, COMPILED, EAGER, LAYOUTS
from bench.gpu_layers import Timed, rehearsed_layers, timed_layers
from bench.gpu_stages import RC_LIMITED
from bench.gpu_timing import CudaTimer, HostTimer, timings
from bench.problem import Once
from bench.timing import Timing, quantile

SECONDS_EACH = 0.03  # of samples, per contender and problem
SLOW_SECONDS = 0.05  # a call that takes longer is sampled once
RESTARTS = 4
MARGIN_SECONDS = 15.0  # between the end of the measuring and the stage's limit
LOST = ("CUDA error", "device-side assert", "illegal", "misaligned", "launch failure")


class State:
    """What is known so far; the file that it is kept in is the result."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        empty = {"device": device, "ceilings": {}, "rows": [], "done": [], "banned": [], "at": None}
        self.data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else empty
        self.data.setdefault("restarts", 0)

    def save(self) -> None:
        rows = self.data["rows"]
        head = json.dumps({k: v for k, v in self.data.items() if k != "rows"})[:-1]
        text = ",\n".join(json.dumps(row) for row in rows)
        partial = self.path.with_suffix(".partial")
        partial.write_text(f'{head}, "rows": [\n{text}\n]}}\n')
        partial.replace(self.path)

    def enter(self, key: str, name: str) -> None:
        """Remembers who is running, in case nothing is run after it."""
        self.data["at"] = [key, name]
        self.save()


def key_of(item: Timed, direction: str, arithmetic: str) -> str:
    layer = item.layer
    return f"{layer.net} {layer.label} N={item.batch} {direction} {arithmetic}"


def work(layers: list[Timed]) -> Iterator[tuple[Timed, str, str]]:
    """(layer, direction, arithmetic), most telling first."""
    for arithmetic in ("bfloat16", "float32"):
        yield from ((item, "fprop", arithmetic) for item in layers)
    for arithmetic in ("bfloat16", "float32"):
        for item in layers:
            if item.gradients:
                yield from ((item, direction, arithmetic) for direction in ("dgrad", "wgrad"))
    yield from ((item, "fprop", "tf32") for item in layers if item.gradients)


def make_problem(item: Timed, direction: str, arithmetic: str, device: str) -> ConvProblem:
    """NCHW, normal random numbers made on the device."""
    layer = item.layer
    dtype = torch.float32 if arithmetic == "tf32" else getattr(torch, arithmetic)
    generator = torch.Generator(device).manual_seed(0)
    sizes = (layer.input_size(item.batch), layer.weight_size, layer.output_size(item.batch))
    x, w, dy = (
        torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype)
        for size in sizes
    )
    answer = Once(lambda: gpu_check.exact(problem))
    problem = ConvProblem(layer, item.batch, direction, "nchw", x, answer, w, dy)
    return problem


def names_for(direction: str, arithmetic: str, device: str, every_instance: bool) -> list[str]:
    """Who runs; on one layer every kernel instance, to see how well the cheapest is chosen."""
    ours = [f"{a}@{la}" for a in gpu_contenders.algorithms(device) for la in LAYOUTS]
    if every_instance and device != "cpu":
        ours += gpu_contenders.instances_of(direction, arithmetic)
    return [*EAGER, *AUTO, *ours]


def rounded(timing: Timing) -> dict[str, float]:
    """To tenths of a nanosecond."""
    return {k: round(v, 7) if isinstance(v, float) else v for k, v in timing.as_dict().items()}


def measured_ceilings(timer: CudaTimer | HostTimer) -> dict[str, float]:
    """The ceilings, and what a sample of next to nothing takes: the part of every time that is not
    the kernel."""
    arithmetics = ("bfloat16", "float32", "tf32")
    small = timer.device != "cuda"
    rates = ceilings.measured(timer.rate_samples, timer.device, arithmetics, small)
    x = torch.zeros(32, device=timer.device)
    ready = {"empty": timer.prepare("empty", lambda: x.add_(1.0))}
    return rates | {"empty_call_ms": quantile(timer.samples(ready, 15)["empty"], 0.5)}


def set_tf32(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


class Bench:
    def __init__(self, state: State, timer: CudaTimer | HostTimer, deadline: float) -> None:
        self.state, self.timer, self.deadline = state, timer, deadline

    def time_is_up(self) -> bool:
        return time.monotonic() > self.deadline

    def measure(self, item: Timed, direction: str, arithmetic: str, names: list[str]) -> None:
        """All contenders on one problem: right first, then timed together."""
        key = key_of(item, direction, arithmetic)
        tf32 = arithmetic == "tf32"
        set_tf32(False)  # for the reference too
        problem = make_problem(item, direction, arithmetic, self.timer.device)
        answer = problem.answer.value
        arranged = {la: gpu_contenders.arrange(problem, la) for la in LAYOUTS}
        set_tf32(tf32)
        rows: dict[str, dict] = {}
        ready: dict[str, Any] = {}
        banned = {name for at, name in self.state.data["banned"] if at == key}
        for name in names:
            here = arranged[name.rpartition("@")[2]]
            rows[name] = self._row(item, direction, arithmetic, name)
            if name in banned:
                rows[name] |= {"status": "error", "reason": "took the device down"}
                continue
            self.state.enter(key, name)
            prepared = self._prepare(name, here, answer, tf32, rows[name])
            if prepared is not None:
                ready[name] = prepared
        found = timings(self.timer, ready, SECONDS_EACH) if ready else {}
        moved = sum(t.numel() * t.element_size() for t in (problem.x, problem.w, problem.dy))
        floor = ceilings.floor_of(
            2.0 * item.layer.macs(item.batch), moved, arithmetic, self.state.data["ceilings"]
        )
        for name, timing in found.items():
            rows[name] |= {"ms": rounded(timing), "floor_ms": floor, "how": self.timer.how[name]}
        self.state.data["rows"] += rows.values()

    def _prepare(self, name, problem, answer, tf32: bool, row: dict):
        """The contender's timed call if it is right; `row` learns why not."""
        try:
            run, row["ran"] = gpu_contenders.call(name, problem)
            began = time.monotonic()
            result = run()
            if result.is_cuda:
                torch.cuda.synchronize()
            ours = row["ran"] not in ("eager", "compile", "aten")
            slow = time.monotonic() - began > SLOW_SECONDS and ours
            row["excess"] = gpu_check.excess(result, answer, row["ran"], problem, tf32)
            del result
            if row["excess"] > 1.0 and ours:
                row["status"] = "wrong"
                return None
            return (self.timer.once if slow else self.timer.prepare)(name, run)
        except Exception as error:
            text = str(error).strip() or repr(error)
            if any(word in text for word in LOST):
                raise
            refused = "does not apply" in text
            row["status"] = "not applicable" if refused else "error"
            row["reason"] = text.splitlines()[0][:300]
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            return None

    @staticmethod
    def _row(item: Timed, direction: str, arithmetic: str, name: str) -> dict:
        return {
            "problem": key_of(item, direction, arithmetic),
            "direction": direction,
            "arithmetic": arithmetic,
            "contender": name,
            "ran": name.rpartition("@")[0],
            "status": "ok",
        }

    def run(self, layers: list[Timed], compiled: bool) -> int:
        """Everything in order until the time is up. Returns the number of problems left out."""
        todo = list(work(layers))
        if compiled:
            todo = [entry for entry in todo if entry[0].compiled and entry[2] != "tf32"]
        left = 0
        for item, direction, arithmetic in todo:
            key = key_of(item, direction, arithmetic)
            if key in self.state.data["done"]:
                continue
            if self.time_is_up():
                left += 1
                continue
            every = item is layers[0]
            names = names_for(direction, arithmetic, self.timer.device, every)
            try:
                self.measure(item, direction, arithmetic, [COMPILED] if compiled else names)
            except torch.OutOfMemoryError as error:
                self._note(item, direction, arithmetic, error)
            self.state.data["done"].append(key)
            self.state.data["at"] = None
            self.state.save()
            print(f"{key}: {self._best(key)}", flush=True)
        return left

    def _note(self, item: Timed, direction: str, arithmetic: str, error: Exception) -> None:
        row = self._row(item, direction, arithmetic, "all@nchw")
        reason = str(error).splitlines()[0][:300]
        self.state.data["rows"].append(row | {"status": "error", "reason": reason})
        torch.cuda.empty_cache()

    def _best(self, key: str) -> str:
        rows = [r for r in self.state.data["rows"] if r["problem"] == key and "ms" in r]
        rows.sort(key=lambda row: row["ms"]["median"])
        return ", ".join(f"{r['contender']} {r['ms']['median'] * 1e3:.1f} us" for r in rows[:3])


def wrong(rows: list[dict]) -> list[dict]:
    """Of ours; what PyTorch cannot do is its own business."""
    ours = (row for row in rows if not gpu_contenders.is_pytorch(row["contender"]))
    return [row for row in ours if row["status"] in ("wrong", "error")]


def restarted(state: State, error: Exception) -> None:
    """Leaves out who was running and starts this program again: the device's context is gone."""
    text = str(error).splitlines()[0][:300]
    print(f"the device was lost at {state.data['at']}: {text}", flush=True)
    lost = any(word in str(error) for word in LOST)
    if not lost or state.data["at"] is None or state.data["restarts"] >= RESTARTS:
        raise error
    state.data["banned"].append(state.data["at"])
    state.data["restarts"] += 1
    state.save()
    os.execv(sys.executable, [sys.executable, "-m", "bench.gpu_bench", *sys.argv[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_bench", description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--until", type=float, help="of the system's clock; set at a restart")
    parser.add_argument("--compiled", action="store_true", help="torch.compile alone")
    parser.add_argument("--rehearse", action="store_true", help="tiny problems on the CPU")
    args = parser.parse_args()
    limit = float(os.environ.get("FASTCONV_STAGE_SECONDS", "180"))
    if args.until is None:
        args.until = time.time() + limit - min(MARGIN_SECONDS, limit / 4)
        sys.argv += ["--until", str(args.until)]
    device = "cpu" if args.rehearse else "cuda"
    timer = HostTimer() if args.rehearse else CudaTimer()
    state = State(args.json, device)
    bench = Bench(state, timer, time.monotonic() + args.until - time.time())
    layers = rehearsed_layers() if args.rehearse else timed_layers()
    with torch.inference_mode():
        try:
            if not state.data["ceilings"]:
                state.data["ceilings"] = measured_ceilings(timer)
                state.save()
            left = bench.run(layers, args.compiled)
        except RuntimeError as error:
            restarted(state, error)
    state.data["left"] = left
    state.data["how"] = sorted(set(timer.how.values()))
    state.save()
    bad = wrong(state.data["rows"])
    for row in bad:
        print("WRONG" if row["status"] == "wrong" else "ERROR", json.dumps(row))
    rows = sum("ms" in row for row in state.data["rows"])
    print(
        f"summary: {rows} times of {len(state.data['done'])} problems, {left} problems left out,"
        f" {len(bad)} wrong or failed"
    )
    return 1 if bad else RC_LIMITED if left else 0


if __name__ == "__main__":
    sys.exit(main())
