"""The self-test's part for the Triton convolutions; `fastconv.trust` uses it.

A configuration is compiled anew for each direction, dtype, layout and rounding, so that is what an
instance is. `python -m fastconv.selftest --only triton` checks those that `auto` is likely to meet;
any other is checked when it is first wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastconv import cost_triton, gpu, select_triton
from fastconv.ops import triton_run
from fastconv.problem import DIRECTIONS
from fastconv.selftest_problems import PROBLEMS, Problem

LIMIT = 2  # problems of an instance: each costs compilations


@dataclass(frozen=True)
class TritonInstance:
    """One configuration for one direction, dtype, layout and rounding of products."""

    algorithm: str
    kernel: str
    direction: str
    dtype: torch.dtype
    channels_last: bool
    rounds: str = "ieee"

    @property
    def name(self) -> str:
        """As `select_triton.trust_name` has it."""
        dtype = str(self.dtype).removeprefix("torch.")
        layout = "nhwc" if self.channels_last else "nchw"
        tail = f" {self.rounds}" if self.rounds != "ieee" else ""
        return f"{self.algorithm}/{self.kernel} {self.direction} {dtype} {layout}{tail}"

    @property
    def algo(self) -> str:
        """The name that it is launched under."""
        tail = f"+{self.rounds}" if self.rounds != "ieee" else ""
        return f"{self.algorithm}/{self.kernel}{tail}"

    @property
    def tolerance(self) -> str:
        """As `conv_tolerance` takes it."""
        return self.algorithm if self.rounds == "ieee" else self.rounds

    def problems(self) -> Iterator[Problem]:
        """Those it can run."""
        config = select_triton.CONFIGS[self.algorithm][self.kernel]
        for problem in PROBLEMS:
            if self.channels_last and len(problem.input_size) < 4:
                continue  # PyTorch has no name for that memory format
            spec = problem.spec(self.direction, "cpu", self.dtype, self.channels_last)
            if select_triton.config_refusal(self.algorithm, config, spec) is None:
                yield problem

    def launch(self, problem: Problem, a: Tensor, b: Tensor) -> Tensor:
        """On tensors of the device, laid out: (x, w), (dy, w) or (dy, x) as the direction says."""
        geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
        if self.direction == "fprop":
            return compiled(triton_run.fprop, a, b, None, *geometry, self.algo)
        if self.direction == "dgrad":
            rest = (problem.input_size, *geometry, self.channels_last, self.algo)
            return compiled(triton_run.dgrad, a, b, *rest)
        rest = (problem.weight_size, *geometry, self.channels_last, self.algo)
        return compiled(triton_run.wgrad, a, b, *rest)

    def launch_epilogue(
        self, problem: Problem, x: Tensor, w: Tensor, bias: Tensor, residual: Tensor
    ) -> Tensor:
        """relu(conv(x, w) + bias + residual)."""
        geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
        end = (1, 0.0, residual, False, None, None)
        return compiled(triton_run.fprop, x, w, bias, *geometry, self.algo, end)

    def launch_stats(self, problem: Problem, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        """(y, mean, m2) on the CPU."""
        geometry = (problem.stride, problem.padding, problem.dilation, problem.groups)
        return tuple(t.cpu() for t in compiled(triton_run.stats, x, w, None, geometry, self.algo))


def compiled(run: Callable[..., Any], *args: Any) -> Any:
    """run(*args); what Triton's compiler raises, of whatever type, says that it cannot."""
    try:
        return run(*args)
    except RuntimeError:
        raise
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {str(error).strip()[-300:]}") from error


def parsed(name: str) -> TritonInstance | None:
    """The instance of this name; None where it is none of these."""
    if not select_triton.is_ours(name):
        return None
    kernel, direction, dtype, layout, *rounds = name.split(" ")
    algorithm, _, config = kernel.partition("/")
    last = layout == "nhwc"
    kind = getattr(torch, dtype)
    return TritonInstance(algorithm, config, direction, kind, last, *rounds)


def instances(device: str = "cuda:0") -> tuple[TritonInstance, ...]:
    """What `auto` is likely to meet on the device; nothing where Triton does not run there."""
    if select_triton.machine_refusal(device, torch.bfloat16) is not None:
        return ()
    capability = gpu.describe(device).capability if gpu.is_cuda(device) else 90
    found: list[TritonInstance] = []

    def add(algorithm: str, kernel: str, dtype: torch.dtype, last: bool, rounds: str = "ieee"):
        found.extend(
            TritonInstance(algorithm, kernel, direction, dtype, last, rounds)
            for direction in DIRECTIONS
        )

    names = cost_triton.names_for(capability)
    for kernel in names:
        add(select_triton.IMPLICIT_GEMM, kernel, torch.bfloat16, True)
    small = "64x64x32_w4_s4"
    for dtype, last, rounds in (
        (torch.float16, True, "ieee"),
        (torch.float32, True, "tf32"),
        (torch.float32, False, "tf32x3"),
        (torch.float32, False, "ieee"),
    ):
        add(select_triton.IMPLICIT_GEMM, small, dtype, last, rounds)
    for kernel, config in cost_triton.DEPTHWISE.items():
        add(select_triton.DEPTHWISE, kernel, torch.bfloat16, config.block_c > 1)
    # Of a configuration that is not for a direction there is no problem.
    return tuple(i for i in found if next(i.problems(), None) is not None)
