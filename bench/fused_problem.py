"""Convolution, batch normalisation and ReLU in a row: the layers of the networks once more.

"inference" normalises by running statistics, "training" by the batch's and takes every gradient.
Errors are in units of `u * max|reference|` of each result: a batch's statistics mix its values, so
that no element has a scale of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.conv_problem import make_tensors
from bench.correctness import ROUNDING, UNIT
from bench.problem import Once, Problem, Verdict, with_layout
from bench.problems import ConvLayer
from fastconv.ops.fused_autograd import statistics_type

DIRECTIONS = ("inference", "training")
# Units of u * max|reference|; sums of up to 4608 terms, a few per cent of whose sum|x||w| the
# result is, and Winograd's tiles on top.
TOLERANCE = 1600.0
EPS = 1e-5


@dataclass(frozen=True)
class FusedLayer(ConvLayer):
    """A convolution with normalisation and ReLU behind it."""


def fused(layer: ConvLayer) -> FusedLayer:
    return FusedLayer(**{f.name: getattr(layer, f.name) for f in fields(ConvLayer)})


@dataclass(frozen=True)
class FusedProblem(Problem):
    """x: [N, C, *spatial], w: [K, C/groups, *kernel], dy: [N, K, *out]; norm: weight, bias, running
    mean and variance, [K]. The result of "training" is (z, dweight, dbias, dx, dw)."""

    w: Tensor
    dy: Tensor
    norm: tuple[Tensor, Tensor, Tensor, Tensor]

    family: ClassVar[str] = "fused"
    op: ClassVar[str] = "conv_bn_relu"
    layer: FusedLayer

    def judge(self, result: Any, ran: str) -> Verdict:
        results = result if isinstance(result, tuple) else (result,)
        worst = 0.0
        for given, exact in zip(results, self.answer.value, strict=True):
            if tuple(given.shape) != tuple(exact.shape):
                return Verdict(float("inf"), TOLERANCE, f"shape {tuple(given.shape)}")
            error = (given.detach().double() - exact).abs().max()
            scale = exact.abs().max()
            # Several 16-bit tensors lie between the operands and a gradient.
            rounding = 8 * ROUNDING.get(self.x.dtype, 0.0)
            units = max(float(error - rounding * scale), 0.0) / float(UNIT[self.x.dtype] * scale)
            worst = max(worst, units) if units == units else float("inf")
        return Verdict(worst, TOLERANCE)

    def bytes(self) -> int:
        x, w, y = self.x.numel(), self.w.numel(), self.dy.numel()
        # Forward reads x and writes z; backward reads dz and x and writes dx; w with each.
        count = x + w + y if self.direction == "inference" else 3 * x + 3 * w + 2 * y
        return count * self.x.element_size()

    def flops(self) -> float:
        parts = 1 if self.direction == "inference" else 3
        return 2.0 * self.layer.macs(self.batch) * parts

    def run(self, convolve: Any, gamma: Tensor, beta: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """The three operations one after another, out of a library's convolution."""
        layer, training = self.layer, self.direction == "training"
        y = convolve(x, w, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        mean, var = self.norm[2:]
        z = F.batch_norm(y, mean, var, gamma, beta, training, 0.0, EPS)
        return F.relu(z, inplace=True)


def problems_of(
    layer: FusedLayer,
    batch: int,
    directions: Sequence[str],
    layouts: Sequence[str],
    dtype: torch.dtype,
    device: str = "cpu",
) -> Iterator[FusedProblem]:
    """One per direction and layout; the exact answer is shared by the layouts of a direction."""
    x, w, dy, _ = make_tensors(layer, batch, dtype, device)
    generator = torch.Generator().manual_seed(1)
    draws = [torch.rand(layer.K, generator=generator) for _ in range(4)]
    kind = statistics_type(dtype)
    scale = float(layer.C // layer.groups) * float(torch.tensor(layer.kernel).prod())
    weight, bias, mean, var = (
        t.to(device, kind)
        for t in (draws[0] + 0.5, draws[1] - 0.5, draws[2] - 0.5, scale * (draws[3] + 0.5))
    )

    def exact(direction: str) -> tuple[Tensor, ...]:
        wide = [t.detach().double() for t in (weight, bias, x, w)]
        norm = tuple(t.detach().double() for t in (weight, bias, mean, var))
        problem = FusedProblem(layer, batch, direction, "nchw", wide[2], Once(tuple), wide[3],
                               dy.double(), norm)  # fmt: skip
        forward = (F.conv1d, F.conv2d, F.conv3d)[layer.rank - 1]
        if direction == "inference":
            return (problem.run(forward, *wide),)
        leaves = [t.requires_grad_() for t in wide]
        with torch.enable_grad():
            z = problem.run(forward, *leaves)
        return (z.detach(), *torch.autograd.grad(z, leaves, problem.dy))

    for direction in directions:
        answer = Once(lambda direction=direction: exact(direction))
        for layout in layouts:
            if layout == "channels_last" and layer.rank == 1 and "nchw" in layouts:
                continue  # a 1-D problem has one layout
            tensors = [with_layout(t, layout) for t in (x, w, dy)]
            yield FusedProblem(layer, batch, direction, layout, tensors[0], answer, tensors[1],
                               tensors[2], (weight, bias, mean, var))  # fmt: skip
