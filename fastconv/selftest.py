"""Runs every CUDA kernel instance of this build on the present GPU against the float64 reference.

    python -m fastconv.selftest [--device cuda:0] [--json FILE] [--only SUBSTRING]

Kernels are proven on the CPU by emulation, which knows nothing of a chip's memory ordering or
rounding: `auto` uses an instance on a GPU only after it passed here (`fastconv.trust`). Prints a
table, remembers the outcomes per device, driver and build, and exits with 1 if an instance failed.

Those of Triton, which have to be compiled first, run with `--only triton`.

An instance that takes the device down (an illegal access), or that has not ended after
`--seconds-each`, alone is blamed: the process replaces itself by a fresh one, which goes on with
the next instance.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastconv import (
    _C,
    gpu,
    reference,
    select_triton,
    selftest_fused,
    selftest_inception,
    selftest_pool,
    selftest_triton,
    trust,
)
from fastconv.ops.norm_run import TRITON
from fastconv.problem import NATIVE_DTYPES
from fastconv.select_inception import InceptionFamily
from fastconv.selftest_fused import NormInstance
from fastconv.selftest_pool import PoolInstance
from fastconv.selftest_problems import PROBLEMS, Problem
from fastconv.selftest_triton import TritonInstance
from fastconv.selftest_watch import Watch
from fastconv.tolerances import conv_tolerance

_DTYPES = {native: dtype for dtype, native in NATIVE_DTYPES.items()}
_SEED = 20


OPS = torch.ops.fastconv
QUICK = 2  # problems of a quick check
FULL = 6


@dataclass(frozen=True)
class Instance:
    """One kernel instance of this build."""

    algorithm: str
    kernel: str
    direction: str
    dtype: torch.dtype
    channels_last: bool
    products: str  # of `ConvSpec.products`

    @property
    def name(self) -> str:
        """As `algo=` takes it."""
        return f"{self.algorithm}/{self.kernel}"

    @property
    def tolerance(self) -> str:
        """As `conv_tolerance` takes it."""
        if self.algorithm.startswith("winograd"):  # 16-bit kernels may use TF32 products as well
            return self.algorithm + ("_tf32" if self.kernel.endswith("_tf32") else "")
        return self.algorithm if self.products == "ieee" else self.products

    @property
    def capability(self) -> int:
        """The only one that its code is for; 0: all."""
        return _C.cuda_capability(self.algorithm, self.kernel)

    def problems(self) -> Iterator[Problem]:
        """Those it can run."""
        for problem in PROBLEMS:
            if self.channels_last and len(problem.input_size) < 4:
                continue  # PyTorch has no name for that memory format
            if not _C.cuda_refusal(self.algorithm, self.kernel, problem.native):
                yield problem


@dataclass(frozen=True)
class Outcome:
    """problems: how many it ran on. error: empty when all were right. inconclusive: the error says
    nothing of the instance. device_lost: nothing runs on the device any more, in this process."""

    instance: str
    problems: int
    error: str
    worst: float  # largest error in units of the bound
    inconclusive: bool = False
    device_lost: bool = False

    @property
    def passed(self) -> bool:
        return not self.error and self.problems > 0


def torch_device(key: str) -> torch.device:
    """The device behind a key of `gpu.device_key`."""
    return torch.device(key)


@cache
def instances() -> tuple[Instance, ...]:
    """Every CUDA convolution kernel instance of this build."""
    return tuple(
        Instance(
            algorithm,
            kernel,
            direction.name,
            _DTYPES[dtype],
            layout == _C.Layout.NHWC,
            products.name,
        )
        for algorithm, kernel, direction, dtype, layout, products in _C.cuda_instances()
    )


AnyInstance = Instance | PoolInstance | NormInstance | TritonInstance | InceptionFamily


def all_instances() -> tuple[AnyInstance, ...]:
    """Those of convolution and of pooling, the passes of normalisation, inception modules."""
    more = (selftest_pool, selftest_fused, selftest_inception)
    return (*instances(), *(i for module in more for i in module.instances()))


def instance_named(name: str) -> AnyInstance:
    """The instance behind a name of `fastconv.trust`."""
    known = (*all_instances(), *selftest_fused.instances(TRITON))
    return selftest_triton.parsed(name) or next(i for i in known if i.name == name)


def chosen(only: str, device: str) -> tuple[AnyInstance, ...]:
    """Those whose name contains `only`, and whose code is for the device."""
    triton = only.startswith("triton")
    capability = gpu.describe(device).capability
    found: tuple[AnyInstance, ...] = all_instances()
    if triton:
        found = (*selftest_triton.instances(device), *selftest_fused.instances(TRITON))
    return tuple(
        i for i in found if only in i.name and getattr(i, "capability", 0) in (0, capability)
    )


def _sizes(problem: Problem, direction: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    output = problem.spec("fprop", "cpu", torch.float32, False).output_size
    return {
        "fprop": (problem.input_size, problem.weight_size),
        "dgrad": (output, problem.weight_size),
        "wgrad": (output, problem.input_size),
    }[direction]


@cache
def _operands(problem: Problem, direction: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(a, b, expected, magnitude) on the CPU; the last two in float64."""
    generator = torch.Generator().manual_seed(_SEED)
    a, b = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for size in _sizes(problem, direction)
    )
    args = (problem.stride, problem.padding, problem.dilation, problem.groups)

    def compute(magnitude: bool) -> Tensor:
        if direction == "fprop":
            return reference.conv_fprop(a, b, None, *args, magnitude=magnitude)
        if direction == "dgrad":
            return reference.conv_dgrad(a, b, problem.input_size, *args, magnitude=magnitude)
        return reference.conv_wgrad(a, b, problem.weight_size, *args, magnitude=magnitude)

    return a, b, compute(False), compute(True)


def _gemm_k(problem: Problem, direction: str) -> int:
    taps = prod(problem.weight_size[2:])
    if direction == "fprop":
        return problem.weight_size[1] * taps
    if direction == "dgrad":
        return problem.weight_size[0] // problem.groups * taps
    output = problem.spec("fprop", "cpu", torch.float32, False).output_size
    return output[0] * prod(output[2:])


def _as_format(t: Tensor, channels_last: bool) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if not channels_last or t.dim() not in formats:
        return t.contiguous()
    return t.contiguous(memory_format=formats[t.dim()])


def launch(
    instance: Instance | TritonInstance,
    problem: Problem,
    device: torch.device,
    a: Tensor,
    b: Tensor,
) -> Tensor:
    """The instance on tensors of the device: (x, w), (dy, w) or (dy, x) as its direction says."""
    a, b = (_as_format(t.to(device), instance.channels_last) for t in (a, b))
    if isinstance(instance, TritonInstance):
        return instance.launch(problem, a, b)
    args = (problem.stride, problem.padding, problem.dilation, problem.groups)
    if instance.direction == "fprop":
        # The format of the result follows x, where that says nothing (extents of 1) the weight.
        return OPS.conv_fprop(a, b, None, *args, instance.name)
    size = problem.input_size if instance.direction == "dgrad" else problem.weight_size
    op = OPS.conv_dgrad if instance.direction == "dgrad" else OPS.conv_wgrad
    return op(a, b, size, *args, instance.channels_last, instance.name)


def launch_stats(
    instance: AnyInstance, problem: Problem, device: torch.device, x: Tensor, w: Tensor
) -> tuple[Tensor, ...] | None:
    """(y, mean, m2) on the CPU, where the instance takes statistics along."""
    triton = isinstance(instance, TritonInstance) and instance.direction == "fprop"
    if not triton and instance.name not in _C.cuda_stats_instances():
        return None
    x, w = (_as_format(t.to(device), instance.channels_last) for t in (x, w))
    if isinstance(instance, TritonInstance):
        return instance.launch_stats(problem, x, w)
    args = (problem.stride, problem.padding, problem.dilation, problem.groups)
    return tuple(t.cpu() for t in OPS.conv_stats_fprop(x, w, None, *args, instance.name))


def launch_epilogue(
    instance: Instance | TritonInstance, problem: Problem, device: torch.device, x: Tensor,
    w: Tensor, like: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(result, bias, residual), on the CPU: the instance with a bias, a residual before ReLU."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    bias, residual = (
        torch.randn(size, generator=generator).to(instance.dtype)
        for size in (like.shape[1:2], like.shape)
    )
    x, w, r = (_as_format(t.to(device), instance.channels_last) for t in (x, w, residual))
    if isinstance(instance, TritonInstance):
        z = instance.launch_epilogue(problem, x, w, bias.to(device), r)
        return z.cpu(), bias, residual
    args = (problem.stride, problem.padding, problem.dilation, problem.groups)
    z = OPS.conv_epilogue_fprop(x, w, bias.to(device), r, *args, 1, 0.0, False, instance.name)
    return z.cpu(), bias, residual


def check(instance: AnyInstance, device: torch.device, limit: int) -> Outcome:
    """Runs the instance on its first `limit` problems: within tolerance, twice the same bits."""
    if isinstance(instance, PoolInstance):
        return Outcome(instance.name, *selftest_pool.check(instance, device, limit))
    if isinstance(instance, NormInstance):
        return Outcome(instance.name, *selftest_fused.check(instance, device, limit))
    if isinstance(instance, InceptionFamily):
        return Outcome(instance.name, *selftest_inception.check(instance, device, limit))
    if isinstance(instance, TritonInstance):
        limit = min(limit, selftest_triton.LIMIT)
    count, worst = 0, 0.0
    for problem in instance.problems():
        if count == limit:
            break
        a, b, expected, magnitude = _operands(problem, instance.direction, instance.dtype)
        formats = [_as_format(t, instance.channels_last) for t in (a, b)]
        if instance.channels_last and all(t.is_contiguous() for t in formats):
            continue  # both formats at once: the op would take it for the other one
        try:
            first = launch(instance, problem, device, a, b).cpu()
            again = launch(instance, problem, device, a, b).cpu()
            stats = launch_stats(instance, problem, device, a, b)
            if instance.direction == "fprop":
                fused = launch_epilogue(instance, problem, device, a, b, expected)
        except RuntimeError as error:
            text = f"{problem.name}: {error}"
            return Outcome(instance.name, count, text, float("inf"), gpu.out_of_memory(error))
        count += 1
        bound = conv_tolerance(
            instance.tolerance,
            instance.direction,
            instance.dtype,
            expected,
            magnitude,
            _gemm_k(problem, instance.direction),
        )
        error = (first.double() - expected).abs()
        ratio = float((error / bound).nan_to_num(nan=float("inf")).max())
        worst = max(worst, ratio)
        if not ratio <= 1:
            text = f"{problem.name}: off by {float(error.max()):.3g}, {ratio:.3g} times the bound"
            return Outcome(instance.name, count, text, worst)
        if instance.direction == "fprop" and not selftest_fused.epilogue_fits(*fused, first, bound):
            text = f"{problem.name}: the epilogue's result is not that of its parts"
            return Outcome(instance.name, count, text, worst)
        if stats is not None and not selftest_fused.statistics_fit(first, *stats):
            text = f"{problem.name}: the statistics are not those of the result"
            return Outcome(instance.name, count, text, worst)
        if not torch.equal(first, again):
            return Outcome(
                instance.name, count, f"{problem.name}: two runs differ in their bits", worst
            )
    if count == 0:
        return Outcome(instance.name, 0, "no problem of the self-test fits this instance", worst)
    return Outcome(instance.name, count, "", worst)


def check_and_probe(instance: AnyInstance, device: torch.device, limit: int) -> Outcome:
    """`check`, and after a failure whether the device still works. It did before: the caller has
    seen to that."""
    outcome = check(instance, device, limit)
    lost = "" if outcome.passed else gpu.loss(device)
    if not lost:
        return outcome
    text = f"{outcome.error.partition(chr(10))[0]}; nothing runs on the device after it"
    return replace(outcome, error=text, inconclusive=False, device_lost=True)


def run(
    device: torch.device,
    only: str = "",
    limit: int = FULL,
    done: Collection[str] = (),
    watch: Callable[[str], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Outcome]:
    """Checks every instance whose name contains `only`, those in `done` excepted, and remembers the
    outcomes. Ends after one that took the device down. Each is checked within `watch(its name)`.

    Raises RuntimeError where the device does not work to begin with.
    """
    key = gpu.device_key(device)
    lost = gpu.loss(device)
    if lost:
        raise RuntimeError(f"{key} does not work: {lost}")
    outcomes: list[Outcome] = []
    try:
        for instance in chosen(only, key):
            if instance.name not in done:
                with watch(instance.name):
                    outcomes.append(check_and_probe(instance, device, limit))
                yield outcomes[-1]
                if outcomes[-1].device_lost:
                    return
    finally:
        trust.record(key, {o.instance: o.error for o in outcomes if not o.inconclusive})


def replace_process(command: list[str]) -> None:
    """Never returns. What this process holds of the device goes with it."""
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in os.listdir("/proc/self/fd"):
        if int(descriptor) > 2:
            try:
                os.set_inheritable(int(descriptor), False)
            except OSError:  # that of the listing itself
                continue
    os.execv(command[0], command)


def resume_command(argv: list[str] | None, state: dict[str, Any]) -> list[str]:
    """The command of this process once more, to go on from `state`, a file that it deletes."""
    own = [*sys.orig_argv[1:]] if argv is None else ["-m", "fastconv.selftest", *argv]
    if own[-2:-1] == ["--resume"]:
        del own[-2:]
    handle, path = tempfile.mkstemp(prefix="fastconv-selftest-", suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(state, file)
    return [sys.executable, *own, "--resume", path]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastconv.selftest", description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path, help="write the outcomes there")
    parser.add_argument("--only", default="", help="instances whose name contains this")
    add = parser.add_argument
    add("--seconds-each", type=float, help="until an instance counts as hanging; 60, Triton's 300")
    add("--resume", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    triton = arguments.only.startswith("triton")
    if not triton and not all_instances():
        print("this build has no CUDA kernels (FASTCONV_CUDA=0)", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 2
    key = gpu.device_key(torch.device(arguments.device))
    device = torch_device(key)
    refused = select_triton.machine_refusal(key, torch.float32) if triton else gpu.refusal(key)
    if refused:
        print(refused, file=sys.stderr)
        return 2
    lost = gpu.loss(device)
    if lost:
        print(f"{key} does not work: {lost}", file=sys.stderr)
        return 2
    identity = gpu.describe(key).identity
    outcomes: list[Outcome] = []
    before = 0.0  # seconds of earlier processes
    if arguments.resume:
        state = json.loads(arguments.resume.read_text())
        arguments.resume.unlink()
        outcomes, before = [Outcome(**o) for o in state["outcomes"]], state["seconds"]
    else:
        count = len(chosen(arguments.only, key))
        print(f"{identity}: {count} kernel instances, build {_C.build_id}")
    start = time.perf_counter() - before
    wanted = [i.name for i in chosen(arguments.only, key)]

    def write() -> None:
        if arguments.json:
            facts = {
                "device": identity,
                "capability": gpu.describe(key).capability,
                "build": _C.build_id,
                "torch": torch.__version__,
                "complete": len(outcomes) == len(wanted),
                "outcomes": [asdict(o) for o in outcomes],
            }
            arguments.json.write_text(json.dumps(facts, indent=1) + "\n")

    write()

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        verdict = "ok    " if outcome.passed else "FAILED"
        print(
            f"{verdict} {outcome.instance:<72} {outcome.problems} problems,"
            f" error {outcome.worst:.2f} of the bound {outcome.error}",
            flush=True,
        )
        write()  # whoever ends the process finds what is known

    def conclude() -> int:
        """The exit code, or never returns, where a fresh process has to go on."""
        seconds = time.perf_counter() - start
        if len(outcomes) < len(wanted):
            print("the device is lost to this process: going on in a fresh one", flush=True)
            state = {"outcomes": [asdict(o) for o in outcomes], "seconds": seconds}
            replace_process(resume_command(argv, state))
        failed = [o for o in outcomes if not o.passed]
        passed = len(outcomes) - len(failed)
        print(f"{passed} of {len(outcomes)} passed in {seconds:.1f} s", flush=True)
        return 1 if failed else 0

    def hung(name: str) -> None:
        """In a thread: the one that waits for the device is not heard of again."""
        tell(Outcome(name, 0, f"no answer within {patience:.0f} s", math.inf, device_lost=True))
        trust.record(key, {o.instance: o.error for o in outcomes if not o.inconclusive})
        os._exit(conclude())

    patience = arguments.seconds_each or (300.0 if triton else 60.0)
    watch = Watch(patience, hung)
    done = {o.instance for o in outcomes}
    for outcome in run(device, arguments.only, done=done, watch=watch.over):
        tell(outcome)
    return conclude()


if __name__ == "__main__":
    sys.exit(main())
