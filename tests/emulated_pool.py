"""Runs the CUDA pooling kernels on the CPU: every registered instance, on torch tensors.

for instance in pool_instances():
    if not instance.refusal(case, options):
        y, index = run_pool(instance, case, options, {"x": x}, seed=1)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from emulated import CAPABILITY, PLACEMENTS, SM_COUNT, emulation, source_lines
from torch import Tensor

from fastconv.pool_checks import INDEX_DTYPES, PoolCase, PoolOptions


def _native(options: PoolOptions) -> Any:
    return emulation().PoolOptions(
        options.index, options.include_pad, options.divisor, options.power, options.rescale
    )


@dataclass(frozen=True)
class PoolInstance:
    """One kernel instance of the table."""

    name: str
    pass_: str  # forward, backward, gather, unpool
    kind: str  # max, sum, lp, sample, expectation
    dtype: torch.dtype
    layout: str  # NCHW or NHWC
    native: Any

    @property
    def group(self) -> tuple[str, str, torch.dtype, str]:
        """What an op asks for: the first instance of it that applies runs."""
        return self.pass_, self.kind, self.dtype, self.layout

    def refusal(self, case: PoolCase, options: PoolOptions, address: int = 256) -> str:
        """Why it cannot run the case with its operands at `address`; empty when it can."""
        return self.native.refusal(native_problem(case), _native(options), address)

    def choice(self, case: PoolCase, options: PoolOptions, address: int = 256) -> str:
        """The name of the instance that an op runs whose group this one is in."""
        module, native = emulation(), self.native
        return module.choose_pool(
            native.pass_, native.kind, native.dtype, native.layout, native_problem(case),
            _native(options), address,
        )  # fmt: skip

    def __str__(self) -> str:
        return self.name


@cache
def pool_instances() -> tuple[PoolInstance, ...]:
    """Every pooling kernel instance there is, in order of preference."""
    return tuple(
        PoolInstance(
            native.name,
            native.pass_.name,
            native.kind.name,
            getattr(torch, native.dtype.name),
            native.layout.name,
            native,
        )
        for native in emulation().pool_instances()
    )


def problem_arguments(case: PoolCase) -> list[Any]:
    """What the emulation's PoolProblem is made of."""
    n, c = case.input_size[:2]
    _, stride, padding, dilation = case.lists
    out = list(case.windows.out)
    return [n, c, list(case.extents), out, list(case.longest), stride, padding, dilation]


@cache
def native_problem(case: PoolCase) -> Any:
    return emulation().PoolProblem(*problem_arguments(case))


def placement_for(instance: PoolInstance, case: PoolCase, options: PoolOptions, seed: int) -> str:
    """Where the buffers lie; at the start of a page if the instance needs more alignment than the
    seed's placement gives."""
    placement = PLACEMENTS[seed % len(PLACEMENTS)]
    n, c = case.input_size[:2]
    sizes = (n * c * case.windows.place.shape[0], torch.Size(case.input_size).numel())
    element = instance.dtype.itemsize
    address = element  # what every operand is aligned to at least
    while all(size * element % (2 * address) == 0 for size in sizes) and address < 256:
        address *= 2
    index = INDEX_DTYPES.get(options.index)
    if index is not None and sizes[0] * index.itemsize % 16:
        address = min(address, index.itemsize)
    if placement != "start" and instance.refusal(case, options, address):
        return "start"
    return placement


def run_pool(
    instance: PoolInstance,
    case: PoolCase,
    options: PoolOptions,
    operands: dict[str, Tensor],
    seed: int = 1,
    *,
    workers: int = 1,
    placement: str | None = None,
    check_accesses: bool = True,
    statistics: list[Any] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One pooling through a kernel instance.

    Args:
        operands: x, y, dy, index, seed, whichever the pass reads, in PyTorch's axis order.
        seed: of the order in which CUDA threads and blocks run, and of where the buffers lie
            (`emulated.run_instance`).
        statistics: receives the launches.

    Returns:
        (result, index that was written or None), contiguous. What is unwritten is poison.

    Raises:
        RuntimeError: the kernel did something that a GPU would not take or not promise.
    """
    module = emulation()
    if placement is None:
        placement = placement_for(instance, case, options, seed)
    with source_lines(module):
        result, index, counted = module.run_pool(
            instance.name,
            native_problem(case),
            _native(options),
            {name: operand_bytes(t, instance.layout) for name, t in operands.items()},
            module.Device(CAPABILITY, SM_COUNT),
            seed=seed,
            workers=workers,
            placement=getattr(module.Placement, placement),
            check_accesses=check_accesses,
        )
    if statistics is not None:
        statistics += counted.records
    to_input = instance.pass_ in ("backward", "unpool")
    size = case.input_size if to_input else case.output_size
    y = _from_bytes(result, size, instance.layout, instance.dtype)
    if index is None:
        return y, None
    return y, _from_bytes(index, size, instance.layout, INDEX_DTYPES[options.index])


@dataclass(frozen=True)
class PlannedPool:
    """A 2-D pooling of any size, to be planned and not run. side: of the input."""

    batch: int
    channels: int
    side: int
    kernel: int
    stride: int
    padding: int = 0

    @property
    def out(self) -> int:
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1


# What an instance reads beside its index, by pass and kind.
_READ = {
    ("forward", "sample"): ("x", "seed"),
    ("backward", "max"): ("dy",),
    ("backward", "sum"): ("dy",),
    ("backward", "lp"): ("dy", "x", "y"),
}


def planned_pool_launches(
    instance: PoolInstance,
    pool: PlannedPool,
    placement: str = "start",
    capability: int = CAPABILITY,
) -> list[Any]:
    """What the instance launches for a problem of any size: (kernel, blocks, threads per block,
    dynamic_bytes) each; nothing if it does not take it. Nothing is run, no memory is touched."""
    module, native = emulation(), instance.native
    two = lambda value: [value, value]  # noqa: E731
    problem = module.PoolProblem(
        pool.batch, pool.channels, two(pool.side), two(pool.out), two(pool.kernel),
        two(pool.stride), two(pool.padding), [1, 1],
    )  # fmt: skip
    keeps = instance.kind == "max" or instance.kind == "sample"
    index = 2 if instance.pass_ == "unpool" else 1 if keeps else 0
    options = module.PoolOptions(index, power=2.0 if instance.kind == "lp" else 1.0)
    address = 256 if placement == "start" else instance.dtype.itemsize
    if native.refusal(problem, options, address):
        return []
    planes = pool.batch * pool.channels
    ins, outs = planes * pool.side**2, planes * pool.out**2
    counts = {"x": outs if instance.pass_ == "unpool" else ins, "dy": outs, "y": outs}
    names = _READ.get((instance.pass_, instance.kind), ("x",))
    operands = {
        name: (counts[name] * instance.dtype.itemsize, []) for name in names if name != "seed"
    }
    if "seed" in names:
        operands["seed"] = (8, [])
    if index and instance.pass_ != "forward":
        operands["index"] = (outs * (8 if index == 2 else 1), [])
    _, _, counted = module.run_pool(
        instance.name,
        problem,
        options,
        operands,
        module.Device(capability, SM_COUNT),
        [],
        block_limit=0,
        placement=getattr(module.Placement, placement),
    )
    return counted.records


def operand_bytes(t: Tensor, layout: str) -> np.ndarray:
    """As the kernel gets it: dense in the layout."""
    if layout == "NHWC" and t.dim() > 1:
        t = t.movedim(1, -1)
    return t.contiguous().flatten().view(torch.uint8).numpy()


def _from_bytes(data: np.ndarray, size: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    values = torch.from_numpy(data).view(dtype)
    if layout == "NCHW":
        return values.view(size)
    return values.view(size[0], *size[2:], size[1]).movedim(-1, 1).contiguous()
