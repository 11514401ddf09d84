"""Runs the CUDA convolution kernels on the CPU: every registered instance, on torch tensors.

    for instance in instances():
        if not instance.refusal(case):
            y = run_instance(instance.algorithm, instance.name, case, instance.direction, (x, w),
                             bias, seed=1)

The emulation (tests/emulator) is compiled when something it is made of has changed.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from cases import ConvCase
from emulator import build
from torch import Tensor

# How the buffers lie in memory that faults around them; a run takes one by its seed.
PLACEMENTS = ("end", "start", "end_aligned")
CAPABILITY, SM_COUNT = 90, 132


@cache
def emulation(variant: str = "plain") -> ModuleType:
    """The compiled module, brought up to date first."""
    spec = importlib.util.spec_from_file_location(build.module_name(variant), build.build(variant))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Instance:
    """One kernel instance of the registry."""

    algorithm: str
    name: str
    direction: str
    dtype: torch.dtype
    layout: str  # NCHW or NHWC, of all operands and the result
    tf32: bool
    native: Any

    def refusal(self, case: ConvCase) -> str:
        """Why it cannot run the case; empty when it can."""
        return self.native.refusal(native_problem(case))

    def workspace(self, case: ConvCase) -> int:
        return self.native.workspace(native_problem(case), CAPABILITY, SM_COUNT)

    def cost(self, case: ConvCase) -> float:
        return self.native.cost(native_problem(case), CAPABILITY, SM_COUNT)

    @property
    def arithmetic(self) -> str:
        """The name under which `tolerances.conv_tolerance` knows how it rounds."""
        if self.algorithm.startswith("winograd"):
            return self.algorithm + ("_tf32" if self.name.endswith("_tf32") else "")
        return "tf32" if self.tf32 else self.algorithm

    def __str__(self) -> str:
        return f"{self.algorithm}/{self.name}"


@cache
def instances() -> tuple[Instance, ...]:
    """Every kernel instance there is."""
    return tuple(
        Instance(
            algorithm,
            native.name,
            native.direction.name,
            getattr(torch, native.dtype.name),
            native.layout.name,
            native.tf32,
            native,
        )
        for algorithm, native in emulation().instances()
    )


def find_instance(algorithm: str, name: str) -> Instance:
    for instance in instances():
        if (instance.algorithm, instance.name) == (algorithm, name):
            return instance
    raise KeyError(f"no kernel instance {algorithm}/{name}")


@cache
def native_problem(case: ConvCase) -> Any:
    stride, padding, dilation, groups = case.params
    return emulation().ConvProblem(
        list(case.input_size), list(case.weight_size), stride, padding, dilation, groups
    )


def run_instance(
    algorithm: str,
    instance: str,
    case: ConvCase,
    direction: str,
    operands: tuple[Tensor, Tensor],
    bias: Tensor | None = None,
    seed: int = 1,
    *,
    workers: int = 2,
    placement: str | None = None,
    variant: str = "plain",
    capability: int = CAPABILITY,
    sm_count: int = SM_COUNT,
    statistics: dict[str, int] | None = None,
) -> Tensor:
    """One convolution through a kernel instance.

    Args:
        operands: (x, w) for fprop, (dy, w) for dgrad, (dy, x) for wgrad, in PyTorch's axis order
            and the instance's dtype; any strides.
        seed: of the order in which CUDA threads and blocks run. It also decides where the buffers
            lie (against a guard page behind them, before them, or aligned to 16 bytes), unless
            `placement` does.
        workers: OS threads.
        statistics: receives launches, blocks, threads, switches, shared_bytes, workspace.

    Returns:
        y, dx or dw, contiguous. What the kernel left unwritten is NaN.

    Raises:
        RuntimeError: the kernel did something that a GPU would not take or not promise; the text
            has the kernel, block and thread.
    """
    found = find_instance(algorithm, instance)
    assert found.direction == direction, f"{found} is for {found.direction}"
    module = emulation(variant)
    a, b = (_to_bytes(t, found) for t in operands)
    result, counted, workspace = module.run_conv(
        algorithm,
        instance,
        native_problem(case) if variant == "plain" else _problem(module, case),
        a,
        b,
        None if bias is None else _to_bytes(bias, found),
        seed=seed,
        workers=workers,
        placement=getattr(module.Placement, placement or PLACEMENTS[seed % len(PLACEMENTS)]),
        capability=capability,
        sm_count=sm_count,
    )
    if statistics is not None:
        names = ("launches", "blocks", "threads", "switches", "shared_bytes")
        statistics.update({name: getattr(counted, name) for name in names}, workspace=workspace)
    size = {
        "fprop": case.output_size,
        "dgrad": case.input_size,
        "wgrad": case.weight_size,
    }[direction]
    return _from_bytes(result, size, found)


def _problem(module: ModuleType, case: ConvCase) -> Any:
    stride, padding, dilation, groups = case.params
    return module.ConvProblem(
        list(case.input_size), list(case.weight_size), stride, padding, dilation, groups
    )


def _to_bytes(t: Tensor, instance: Instance) -> np.ndarray:
    assert t.dtype == instance.dtype, f"{instance} computes in {instance.dtype}, got {t.dtype}"
    if instance.layout == "NHWC" and t.dim() > 1:
        t = t.movedim(1, -1)
    return t.contiguous().flatten().view(torch.uint8).numpy()


def _from_bytes(data: np.ndarray, size: tuple[int, ...], instance: Instance) -> Tensor:
    values = torch.from_numpy(data).view(instance.dtype)
    if instance.layout == "NCHW":
        return values.view(size)
    return values.view(size[0], *size[2:], size[1]).movedim(-1, 1).contiguous()
