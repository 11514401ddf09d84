"""GoogLeNet's inception modules as problems: four branches on one input, concatenated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.correctness import ROUNDING, UNIT
from bench.problem import Once, Problem, Verdict, with_layout

SOURCE = "Szegedy et al., Going Deeper with Convolutions (CVPR 2015), table 1"
DIRECTIONS = ("forward",)
# Sums of up to 832 * 9 terms twice over, relative to the same module on absolute values.
TOLERANCE = 16.0

# name, extent, C, 1x1, 3x3 reduction, 3x3, 5x5 reduction, 5x5, pool projection
_MODULES = (
    ("3a", 28, 192, 64, 96, 128, 16, 32, 32),
    ("3b", 28, 256, 128, 128, 192, 32, 96, 64),
    ("4a", 14, 480, 192, 96, 208, 16, 48, 64),
    ("4b", 14, 512, 160, 112, 224, 24, 64, 64),
    ("4c", 14, 512, 128, 128, 256, 24, 64, 64),
    ("4d", 14, 512, 112, 144, 288, 32, 64, 64),
    ("4e", 14, 528, 256, 160, 320, 32, 128, 128),
    ("5a", 7, 832, 256, 160, 320, 32, 128, 128),
    ("5b", 7, 832, 384, 192, 384, 48, 128, 128),
)


@dataclass(frozen=True)
class InceptionLayer:
    """One module. K: filters of 1x1, 3x3 reduction, 3x3, 5x5 reduction, 5x5, pool projection."""

    name: str
    extent: int
    C: int
    K: tuple[int, int, int, int, int, int]
    net: str = "inception"
    count: int = 1
    batch: int | None = None

    @property
    def label(self) -> str:
        return f"{self.name} {self.C}x{self.extent}x{self.extent}"

    @property
    def filters(self) -> tuple[tuple[int, int, int], ...]:
        """(C, K, extent) of each convolution, in the order of K."""
        one, red3, three, red5, five, proj = self.K
        pairs = ((self.C, one, 1), (self.C, red3, 1), (red3, three, 3), (self.C, red5, 1))
        return (*pairs, (red5, five, 5), (self.C, proj, 1))

    def input_size(self, batch: int) -> tuple[int, ...]:
        return (batch, self.C, self.extent, self.extent)

    def output_size(self, batch: int) -> tuple[int, ...]:
        one, _, three, _, five, proj = self.K
        return (batch, one + three + five + proj, self.extent, self.extent)


def modules() -> list[InceptionLayer]:
    return [InceptionLayer(row[0], row[1], row[2], row[3:]) for row in _MODULES]


def inception(conv: Any, max_pool: Any, x: Tensor, w: Sequence[Tensor]) -> Tensor:
    """The module out of one library's conv2d and max_pool2d; no bias, ReLU after each."""

    def branch(t: Tensor, weight: Tensor) -> Tensor:
        return conv(t, weight, None, 1, weight.shape[-1] // 2).relu_()

    pooled = max_pool(x, 3, 1, 1)
    branches = (
        branch(x, w[0]),
        branch(branch(x, w[1]), w[2]),
        branch(branch(x, w[3]), w[4]),
        branch(pooled, w[5]),
    )
    return torch.cat(branches, 1)


@dataclass(frozen=True)
class InceptionProblem(Problem):
    """x: [N, C, H, W] normal random numbers; w: the six filters, scaled to keep their variance."""

    w: tuple[Tensor, ...]

    family: ClassVar[str] = "inception"
    op: ClassVar[str] = "inception"
    layer: InceptionLayer

    def judge(self, result: Any, ran: str) -> Verdict:
        exact, scale = self.answer.value
        if tuple(result.shape) != tuple(exact.shape):
            return Verdict(float("inf"), TOLERANCE, f"shape {tuple(result.shape)}")
        # Two roundings on the way in 16-bit types.
        rounding = 2 * ROUNDING.get(result.dtype, 0.0)
        error = (result.detach().cpu().double() - exact).abs()
        error = (error - rounding * scale).clamp(min=0.0)
        worst = float((error / (UNIT[result.dtype] * scale)).nan_to_num(nan=float("inf")).max())
        return Verdict(worst, TOLERANCE)

    def bytes(self) -> int:
        count = self.x.numel() + sum(w.numel() for w in self.w)
        return (count + prod(self.layer.output_size(self.batch))) * self.x.element_size()

    def flops(self) -> float:
        pixels = self.batch * self.layer.extent**2
        return 2.0 * pixels * sum(c * k * r * r for c, k, r in self.layer.filters)


def problems_of(
    layer: InceptionLayer,
    batch: int,
    directions: Sequence[str],
    layouts: Sequence[str],
    dtype: torch.dtype,
    device: str = "cpu",
) -> Iterator[InceptionProblem]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layer.input_size(batch), generator=generator).to(device, dtype)
    w = [
        (torch.randn(k, c, r, r, generator=generator) * (2.0 / (c * r * r)) ** 0.5).to(
            device, dtype
        )
        for c, k, r in layer.filters
    ]

    def exact() -> tuple[Tensor, Tensor]:
        wide = [t.detach().cpu().double() for t in (x, *w)]
        value = inception(F.conv2d, F.max_pool2d, wide[0], wide[1:])
        positive = [t.abs() for t in wide]
        return value, inception(F.conv2d, F.max_pool2d, positive[0], positive[1:])

    answer = Once(exact)
    for direction, layout in product(directions, layouts):
        tensors = [with_layout(t, layout) for t in (x, *w)]
        yield InceptionProblem(
            layer, batch, direction, layout, tensors[0], answer, tuple(tensors[1:])
        )
