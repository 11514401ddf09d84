"""Runs the CUDA kernels of the inception module on the CPU, on torch tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from emulated import ACTIVATIONS, PLACEMENTS, emulation, source_lines
from torch import Tensor


class InceptionSize(NamedTuple):
    """An input [N, C, H, W] and the branches' channels, as InceptionCall has them."""

    N: int
    C: int
    H: int
    W: int
    K1: int
    R3: int
    K3: int
    R5: int
    K5: int
    KP: int
    extent3: int = 3
    extent5: int = 5

    @property
    def outputs(self) -> int:
        return self.K1 + self.K3 + self.K5 + self.KP

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of InceptionCall's operands."""
        joined = self.K1 + self.R3 + self.R5
        return {
            "x": (self.N, self.C, self.H, self.W),
            "joined": (joined, self.C, 1, 1),
            "joined_bias": (joined,),
            "w3": (self.K3, self.R3, self.extent3, self.extent3),
            "b3": (self.K3,),
            "w5": (self.K5, self.R5, self.extent5, self.extent5),
            "b5": (self.K5,),
            "wp": (self.KP, self.C, 1, 1),
            "bp": (self.KP,),
        }


@dataclass(frozen=True)
class InceptionInstance:
    name: str
    dtype: torch.dtype
    layout: str
    products: str

    def refusal(self, size: InceptionSize) -> str:
        return emulation().inception_refusal(self.name, list(size))

    def cost(self, size: InceptionSize) -> float:
        return emulation().inception_cost(self.name, list(size))

    def __str__(self) -> str:
        return self.name


@cache
def inception_instances() -> tuple[InceptionInstance, ...]:
    return tuple(
        InceptionInstance(name, getattr(torch, dtype.name), layout.name, products.name)
        for name, dtype, layout, products in emulation().inception_instances()
    )


def inception_bytes(t: Tensor, layout: str) -> Any:
    """As the launcher finds the tensor in memory."""
    t = t.permute(0, 2, 3, 1) if layout == "NHWC" and t.dim() == 4 else t
    return t.contiguous().flatten().view(torch.uint8).numpy()


def inception_args(
    instance: InceptionInstance, size: InceptionSize, operands: dict[str, Tensor]
) -> list[Any]:
    for name, shape in size.shapes.items():
        assert operands[name].shape == shape and operands[name].dtype == instance.dtype, name
    given = {name: inception_bytes(t, instance.layout) for name, t in operands.items()}
    return [instance.name, list(size), given]


def run_inception(
    instance: InceptionInstance,
    size: InceptionSize,
    operands: dict[str, Tensor],
    activation: str = "relu",
    slope: float = 0.25,
    seed: int = 1,
    placement: str | None = None,
    launches: list[Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, reductions). Raises ValueError where the instance refuses the call."""
    module = emulation()
    with source_lines(module):
        y, reductions, counted = module.run_inception(
            *inception_args(instance, size, operands),
            ACTIVATIONS.index(activation),
            slope,
            seed=seed,
            placement=getattr(module.Placement, placement or PLACEMENTS[seed % len(PLACEMENTS)]),
        )
    if launches is not None:
        launches += counted.records

    def tensor(data: Any, channels: int) -> Tensor:
        values = torch.from_numpy(data).view(instance.dtype)
        if instance.layout == "NCHW":
            return values.view(size.N, channels, size.H, size.W)
        return values.view(size.N, size.H, size.W, channels).permute(0, 3, 1, 2)

    return tensor(y, size.outputs), tensor(reductions, size.R3 + size.R5)


def inception_launches(
    instance: InceptionInstance, size: InceptionSize, placement: str = "start"
) -> list[Any]:
    """What it launches, planned and not run; empty where it refuses the call."""
    module = emulation()
    item = instance.dtype.itemsize
    operands = {name: (torch.Size(shape).numel() * item, []) for name, shape in size.shapes.items()}
    try:
        *_, counted = module.run_inception(
            instance.name, list(size), operands,
            placement=getattr(module.Placement, placement), block_limit=0,
        )  # fmt: skip
    except ValueError:
        return []
    return counted.records
