"""What the device tests share: the kernel instances, operands on the device, poison and canaries.

Where there is no GPU the same test bodies run on CPU tensors: `FASTCONV_GPU_REHEARSAL=cpu` takes
the CPU algorithms in the place of the instances, which is quick; `=emulated` takes the instances
themselves, emulated. Tests of streams, graphs and synchronisation have no rehearsal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from cases import (
    CONV_CASES,
    DEPTHWISE_CASES,
    DIRECTIONS,
    HALO_CASES,
    ROWS_CASES,
    ConvCase,
    channels_last,
)
from conv_runner import native_problem, operand_sizes, refusal, run_conv
from torch import Tensor

from fastconv import _C
from fastconv.problem import is_channels_last

REHEARSAL = os.environ.get("FASTCONV_GPU_REHEARSAL", "")
ON_CPU_KERNELS, EMULATED = REHEARSAL == "cpu", REHEARSAL == "emulated"
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")
LAYOUTS = ("NCHW", "NHWC")
CASES = tuple(c for c in (*CONV_CASES, *DEPTHWISE_CASES) if "empty" not in c.tags)
# A rehearsal is of the tests, not of the kernels: a few problems will do.
REHEARSED_CASES = 3
CASE = {case.id: case for case in CONV_CASES}
REHEARSED_DTYPES = (torch.float32, torch.bfloat16)


def marks() -> list[Any]:
    """For `pytestmark` of a file whose tests can be rehearsed."""
    import pytest

    return [] if REHEARSAL else [pytest.mark.gpu]


@dataclass(frozen=True)
class Instance:
    """One kernel instance, or (rehearsal) a CPU algorithm with a direction, dtype and layout."""

    algorithm: str
    name: str
    direction: str
    dtype: torch.dtype
    layout: str
    products: str  # of `ConvSpec.products`

    @property
    def algo(self) -> str:
        """What forces it through the ops."""
        return f"{self.algorithm}/{self.name}" if self.name else self.algorithm

    @property
    def tolerance(self) -> str:
        """How it rounds, as `conv_tolerance` calls it."""
        if self.algorithm.startswith("winograd"):
            return self.algorithm + ("_tf32" if self.name.endswith("_tf32") else "")
        return self.algorithm if self.products == "ieee" else self.products

    @property
    def channels_last(self) -> bool:
        return self.layout == "NHWC"

    def refusal(self, case: ConvCase) -> str:
        """Why it cannot run the case, or why the ops cannot ask it to; empty when it runs."""
        if ON_CPU_KERNELS:
            reason = refusal(self.algorithm, case, self.direction, self.dtype)
        else:
            reason = _C.cuda_refusal(self.algorithm, self.name, native_problem(case))
        return reason or ("" if reaches_layout(case, self) else "the shape has no such layout")

    def __str__(self) -> str:
        where = f"{self.direction}_{str(self.dtype).removeprefix('torch.')}_{self.layout.lower()}"
        return self.algo if self.name else f"{self.algo}/{where}"


@cache
def instances() -> tuple[Instance, ...]:
    """Every CUDA kernel instance of this build; empty where it has none. Of one algorithm only
    where FASTCONV_GPU_ALGORITHM names it."""
    if ON_CPU_KERNELS:
        return tuple(
            Instance(algorithm, "", direction, dtype, layout, "ieee")
            for algorithm in _C.cpu_algorithms()
            for direction in DIRECTIONS
            for dtype, layout in zip(REHEARSED_DTYPES, LAYOUTS, strict=True)
        )
    only = os.environ.get("FASTCONV_GPU_ALGORITHM")
    # Where there is no GPU, the tests of this list see all.
    major, minor = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    present = 10 * major + minor
    return tuple(
        Instance(
            algorithm, name, direction.name, getattr(torch, dtype.name), layout.name, products.name
        )
        for algorithm, name, direction, dtype, layout, products in _C.cuda_instances()
        if only in (None, algorithm)
        if not present or _C.cuda_capability(algorithm, name) in (0, present)
    )


@cache
def one_of_each() -> tuple[Instance, ...]:
    """One instance per algorithm, direction, dtype, layout and arithmetic: for the tests of what
    surrounds a kernel."""
    found: dict[Any, Instance] = {}
    for i in instances():
        found.setdefault((i.algorithm, i.direction, i.dtype, i.layout, i.products), i)
    return tuple(found.values())


def laid_out(t: Tensor, layout: str) -> Tensor:
    return channels_last(t) if layout == "NHWC" else t.contiguous()


@cache
def reaches_layout(case: ConvCase, instance: Instance) -> bool:
    """Whether the ops can be brought to run this case in the instance's layout. Gradients say their
    format; fprop follows the strides, which tell nothing apart where extents are 1."""
    if instance.direction != "fprop":
        return case.rank > 1 or not instance.channels_last
    x, w = (
        laid_out(torch.empty(size, device="meta"), instance.layout)
        for size in operand_sizes(case, "fprop")
    )
    return is_channels_last(x, w) == instance.channels_last


@cache
def applicable_cases(instance: Instance) -> list[ConvCase]:
    cases = CASES + {"halo": HALO_CASES, "rows": ROWS_CASES}.get(instance.algorithm, ())
    cases = tuple(case for case in cases if not instance.refusal(case))
    if not REHEARSAL:
        return list(cases)
    return sorted(cases, key=lambda c: c.gemm_k("fprop") * c.gemm_k("wgrad"))[-REHEARSED_CASES:]


def first_cases(instance: Instance, count: int) -> list[ConvCase]:
    """A few cases spread over those that apply."""
    cases = applicable_cases(instance)
    return cases[:: max(1, len(cases) // count)][:count]


def on_device(t: Tensor, instance: Instance, device: torch.device = DEVICE) -> Tensor:
    """A copy in the instance's dtype and layout (a bias has none)."""
    t = t.to(instance.dtype)
    return (laid_out(t, instance.layout) if t.dim() > 2 else t).to(device)


def run(
    instance: Instance, case: ConvCase, operands: tuple[Tensor, Tensor], bias: Tensor | None
) -> Tensor:
    """Operands as they are, on their device, through the op that the instance is for."""
    return run_algo(instance.algo, case, instance.direction, operands, bias, instance.channels_last)


def run_algo(
    algo: str,
    case: ConvCase,
    direction: str,
    operands: tuple[Tensor, Tensor],
    bias: Tensor | None = None,
    channels_last: bool = False,
) -> Tensor:
    """As `conv_runner.run_conv`, by the emulated ops where they stand for the device's."""
    return run_conv(algo, case, direction, operands, bias, channels_last, device_ops())


@cache
def device_ops() -> Any:
    """The package's bare ops, or (rehearsal) the emulated ones in their place."""
    if not EMULATED:
        return torch.ops.fastconv
    from emulator.build_ops import build_ops

    torch.ops.load_library(str(build_ops()))
    return torch.ops.fastconv_emulated


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory starts as NaN (bytes as 255) while this is open."""
    was_on = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def embedded(t: Tensor, offset: int) -> Tensor:
    """The same values and strides inside a larger allocation of NaN (integers: of ones in all
    bits), `offset` elements in: a read past either end shows in the result, and an odd offset takes
    the alignment away."""
    assert t.numel() > 0
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    fill = torch.nan if t.is_floating_point() else 255 if t.dtype == torch.uint8 else -1
    store = torch.full((span + 2 * offset,), fill, dtype=t.dtype, device=t.device)
    return store.as_strided(t.shape, t.stride(), offset).copy_(t)


class Canaries:
    """A row of equal blocks around a hole that the next result of that size is likely to take.

    CANARY is no float that a kernel computes. `check` finds any block changed.
    """

    CANARY = 0xA5

    def __init__(self, bytes_each: int, device: torch.device, blocks: int = 9) -> None:
        row = [self._block(bytes_each, device) for _ in range(blocks)]
        hole = row.pop(blocks // 2)
        hole.fill_(0xFF)  # NaN in every dtype: what the kernel leaves unwritten
        self.hole = hole.data_ptr()
        self.kept = row

    def _block(self, size: int, device: torch.device) -> Tensor:
        return torch.full((size,), self.CANARY, dtype=torch.uint8, device=device)

    def check(self, note: str) -> None:
        for place, block in enumerate(self.kept):
            wrong = (block != self.CANARY).nonzero()
            assert not len(wrong), (
                f"{note}: wrote {len(wrong)} bytes into neighbour {place}, first at byte"
                f" {int(wrong[0])} of {block.numel()}"
            )


def losses_of_training(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> list[float]:
    """Of twenty steps on one batch of [16, 3, 20, 20], four classes, in mixed precision."""
    x = torch.randn(16, 3, 20, 20).to(DEVICE)
    target = (torch.arange(16) % 4).to(DEVICE)
    losses = []
    for _ in range(20):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x).float(), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses
