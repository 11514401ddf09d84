"""Runs the CUDA convolution kernels on the CPU: every registered instance, on torch tensors.

    for instance in instances():
        if not instance.refusal(case):
            y = run_instance(instance.algorithm, instance.name, case, instance.direction, (x, w),
                             bias, seed=1)

The emulation (tests/emulator) is compiled when something it is made of has changed.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
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
def emulation(module: str = "kernels", variant: str = "plain") -> ModuleType:
    """The compiled module (`kernels` or `planted`), brought up to date first."""
    path = build.build(module, variant)
    spec = importlib.util.spec_from_file_location(build.module_name(module), path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


# In the order of csrc/common/epilogue.h.
ACTIVATIONS = ("none", "relu", "leaky_relu", "relu6", "silu")


@dataclass(frozen=True)
class Epilogue:
    """What follows the bias of fprop; with y_channels, y is the channels from `first` on of a
    tensor of so many."""

    activation: str = "none"
    slope: float = 0.25
    residual: str = ""  # "before" or "after" the activation
    y_channels: int = 0
    first: int = 0
    residual_off: bool = False  # of convolutions: the residual alone is off its alignment

    @property
    def arguments(self) -> list[Any]:
        """What the emulation's Epilogue is made of."""
        number = ACTIVATIONS.index(self.activation)
        after = self.residual == "after"
        return [number, self.slope, after, self.y_channels, self.first, self.residual_off]

    def native(self) -> Any:
        return emulation().Epilogue(*self.arguments)


@dataclass(frozen=True)
class Instance:
    """One kernel instance of the registry."""

    algorithm: str
    name: str
    direction: str
    dtype: torch.dtype
    layout: str  # NCHW or NHWC, of all operands and the result
    products: str  # of `ConvSpec.products`
    native: Any

    def refusal(self, case: ConvCase) -> str:
        """Why it cannot run the case; empty when it can."""
        return self.native.refusal(native_problem(case))

    def workspace(self, case: ConvCase) -> int:
        return self.native.workspace(native_problem(case), _device())

    def cost(self, case: ConvCase) -> float:
        return self.native.cost(native_problem(case), _device())

    @property
    def takes_stats(self) -> bool:
        """Whether fprop forms mean and sum of squares of y's channels along with y."""
        return self.native.takes_stats

    @property
    def tf32(self) -> bool:
        return self.products == "tf32"

    @property
    def arithmetic(self) -> str:
        """The name under which `tolerances.conv_tolerance` knows how it rounds."""
        if self.algorithm.startswith("winograd"):
            return self.algorithm + ("_tf32" if self.name.endswith("_tf32") else "")
        return self.algorithm if self.products == "ieee" else self.products

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
            native.products.name,
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
    check_accesses: bool = True,
    capability: int = CAPABILITY,
    sm_count: int = SM_COUNT,
    statistics: dict[str, int] | None = None,
    epilogue: Epilogue | None = None,
    residual: Tensor | None = None,
    moments: list[Tensor] | None = None,
) -> Tensor:
    """One convolution through a kernel instance.

    Args:
        operands: (x, w) for fprop, (dy, w) for dgrad, (dy, x) for wgrad, in PyTorch's axis order
            and the instance's dtype; any strides.
        seed: of the order in which CUDA threads and blocks run. It also decides where the buffers
            lie (against a guard page behind them, before them, or aligned to 16 bytes), unless
            `placement` does, one of PLACEMENTS or "offset" (operands aligned to one element only).
        workers: OS threads.
        check_accesses: look for races and bounds at every access (three times slower).
        statistics: receives launches, blocks, threads, switches, shared_bytes, workspace.
        epilogue, residual: of fprop.
        moments: receives mean and sum of squares about it of every channel, of fprop by an instance
            that takes statistics along.

    Returns:
        y (the whole tensor that it is a slice of), dx or dw, contiguous. What the kernel left
        unwritten is NaN.

    Raises:
        RuntimeError: the kernel did something that a GPU would not take or not promise; the text
            has the kernel, block and thread.
    """
    found = find_instance(algorithm, instance)
    assert found.direction == direction, f"{found} is for {found.direction}"
    module = emulation()
    a, b = (operand_bytes(t, found) for t in operands)
    with source_lines(module):
        result, counted, workspace, *more = module.run_conv(
            algorithm,
            instance,
            native_problem(case),
            a,
            b,
            None if bias is None else operand_bytes(bias, found),
            module.Device(capability, sm_count),
            seed=seed,
            workers=workers,
            placement=getattr(module.Placement, placement or PLACEMENTS[seed % len(PLACEMENTS)]),
            check_accesses=check_accesses,
            epilogue=None if epilogue is None else epilogue.native(),
            residual=None if residual is None else operand_bytes(residual, found),
            stats=moments is not None,
        )
    if moments is not None:
        wide = torch.float64 if found.dtype == torch.float64 else torch.float32
        moments += [torch.from_numpy(part).view(wide) for part in more]
    if statistics is not None:
        names = ("launches", "blocks", "threads", "switches", "shared_bytes")
        statistics.update({name: getattr(counted, name) for name in names}, workspace=workspace)
    size = {
        "fprop": case.output_size,
        "dgrad": case.input_size,
        "wgrad": case.weight_size,
    }[direction]
    if epilogue is not None and epilogue.y_channels:
        size = (size[0], epilogue.y_channels, *size[2:])
    return _from_bytes(result, size, found)


def planned_launches(
    instance: Instance,
    case: ConvCase,
    placement: str = "start",
    capability: int = CAPABILITY,
    stats: bool = False,
) -> list[Any]:
    """What the instance launches for a problem of any size: (kernel, blocks, threads per block,
    dynamic_bytes) each; with `stats`, where it takes statistics along. Nothing is run, and no
    memory is touched."""
    module, element = emulation(), instance.dtype.itemsize
    first, second = {
        "fprop": (case.input_size, case.weight_size),
        "dgrad": (case.output_size, case.weight_size),
        "wgrad": (case.output_size, case.input_size),
    }[instance.direction]
    _, counted, _ = module.run_conv(
        instance.algorithm,
        instance.name,
        native_problem(case),
        (math.prod(first) * element, []),
        (math.prod(second) * element, []),
        None,
        module.Device(capability, SM_COUNT),
        [],
        block_limit=0,
        placement=getattr(module.Placement, placement),
        stats=stats,
    )
    return counted.records


def _device() -> Any:
    return emulation().Device(CAPABILITY, SM_COUNT)


@contextmanager
def source_lines(module: ModuleType) -> Iterator[None]:
    """Puts file and line (with the functions inlined around it) for the code addresses in an
    error's text, where binutils is installed."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            re.sub(r"<\+(0x[0-9a-f]+)>", lambda m: _source_line(module, m[1]), str(error))
        ) from None


def _source_line(module: ModuleType, address: str) -> str:
    if shutil.which("addr2line") is None:
        return f"(code at {address})"
    command = ["addr2line", "-i", "-s", "-e", module.__file__, address]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
    places = [re.sub(r" \(discriminator.*", "", line) for line in lines if line]
    return "(" + " in ".join(dict.fromkeys(places)) + ")"


def operand_bytes(t: Tensor, instance: Instance) -> np.ndarray:
    """As the kernel gets it: dense in the instance's layout."""
    assert t.dtype == instance.dtype, f"{instance} computes in {instance.dtype}, got {t.dtype}"
    if instance.layout == "NHWC" and t.dim() > 1:
        t = t.movedim(1, -1)
    return t.contiguous().flatten().view(torch.uint8).numpy()


def _from_bytes(data: np.ndarray, size: tuple[int, ...], instance: Instance) -> Tensor:
    values = torch.from_numpy(data).view(instance.dtype)
    if instance.layout == "NCHW":
        return values.view(size)
    return values.view(size[0], *size[2:], size[1]).movedim(-1, 1).contiguous()
