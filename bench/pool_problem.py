"""One pooling of the benchmark: its tensors, its exact answer, its limits.

Maxima must be exact. Averages and norms are compared with PyTorch's in fp64; the error is in units
of `u * |reference|`, the scale of a sum of positive numbers. A stochastic pooling's every output
must be an element of its window and have been drawn often enough to believe its probabilities: the
mean over all outputs of (value - expectation), in standard errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.correctness import ROUNDING, UNIT
from bench.pool_problems import LP_POWER, PoolLayer
from bench.problem import Once, Problem, Verdict, with_layout

DIRECTIONS = ("forward", "forward+backward")
TOLERANCE = 32.0  # units of u |reference|: a window has at most 49 terms here, 784 when global
STANDARD_ERRORS = 5.0


@dataclass(frozen=True)
class PoolProblem(Problem):
    """x: [N, C, H, W], dy: as the output. Both random in (0, 1): stochastic pooling has something
    to draw from, and no sum cancels, so that errors can be relative. The result of
    "forward+backward" is (y, dx)."""

    dy: Tensor

    family: ClassVar[str] = "pool"
    layer: PoolLayer

    @property
    def op(self) -> str:
        return f"{self.layer.kind}_pool2d"

    def judge(self, result: Any, ran: str) -> Verdict:
        results = result if isinstance(result, tuple) else (result,)
        if self.layer.kind == "stochastic":
            return self._judge_drawn(*results)
        kinds = (self.layer.kind, "gradient")
        verdicts = [
            _compare(*each) for each in zip(results, self.answer.value, kinds, strict=False)
        ]
        return max(verdicts, key=lambda v: (not v.ok, v.error))

    def _judge_drawn(self, y: Tensor, dx: Tensor | None = None) -> Verdict:
        def wrong(reason: str) -> Verdict:
            return Verdict(float("inf"), STANDARD_ERRORS, reason)

        if tuple(y.shape) != tuple(self.dy.shape):
            return wrong(f"shape {tuple(y.shape)}, expected {tuple(self.dy.shape)}")
        if dx is not None:  # every dy is sent to exactly one place
            sent, given = float(dx.double().sum()), float(self.dy.double().sum())
            if not abs(sent - given) <= 1e-4 * given * (100 if dx.element_size() == 2 else 1):
                return wrong(f"dx sums to {sent}, dy to {given}")
        windows = windows_of(self.x.detach().cpu().double(), self.layer)
        values = y.detach().cpu().double().reshape(windows.shape[:-1])
        if not bool((windows == values.unsqueeze(-1)).any(-1).all()):
            return wrong("an output is no element of its window")
        total = windows.sum(-1)
        mean = (windows**2).sum(-1) / total
        variance = (windows**3).sum(-1) / total - mean**2
        error = float((values - mean).sum().abs() / variance.sum().clamp(min=1e-300).sqrt())
        return Verdict(error, STANDARD_ERRORS)

    def bytes(self) -> int:
        return self.layer.elements(self.batch, self.direction) * self.x.element_size()

    def facts(self) -> dict:
        return super().facts() | {"kind": self.layer.kind}


def _compare(result: Tensor, exact: Tensor, kind: str) -> Verdict:
    if tuple(result.shape) != tuple(exact.shape):
        shapes = f"shape {tuple(result.shape)}, expected {tuple(exact.shape)}"
        return Verdict(float("inf"), TOLERANCE, shapes)
    limit = 0.0 if kind == "max" else TOLERANCE
    error = (result.detach().cpu().double() - exact).abs()
    # A norm's gradient divides by the norm, which was rounded before.
    rounding = ROUNDING.get(result.dtype, 0.0) * (2 if kind == "gradient" else 1)
    if kind != "max":
        error = (error - rounding * exact.abs()).clamp(min=0.0)
    units = torch.where(error == 0, 0.0, error / (UNIT[result.dtype] * exact.abs()))
    worst = float(units.nan_to_num(nan=float("inf")).max())
    return Verdict(worst, limit, "NaN in the result" if torch.isnan(result).any() else "")


def windows_of(x: Tensor, layer: PoolLayer) -> Tensor:
    """[N, C, windows, taps]; padding is 0."""
    taps = layer.kernel[0] * layer.kernel[1]
    columns = F.unfold(x, layer.kernel, 1, layer.padding, layer.stride)
    return columns.view(x.shape[0], x.shape[1], taps, -1).transpose(2, 3)


def pytorch_pool(layer: PoolLayer, x: Tensor) -> Tensor:
    """PyTorch's own; for stochastic pooling what users write for want of one."""
    window = (layer.kernel, layer.stride)
    if layer.kind == "max":
        return F.max_pool2d(x, *window, layer.padding, 1, layer.ceil_mode)
    if layer.kind == "avg":
        return F.avg_pool2d(x, *window, layer.padding, layer.ceil_mode)
    if layer.kind == "lp":
        return F.lp_pool2d(x, LP_POWER, *window, layer.ceil_mode)
    if layer.kind == "adaptive_avg":
        return F.adaptive_avg_pool2d(x, layer.kernel)
    windows = windows_of(x, layer)
    drawn = torch.multinomial(windows.detach().reshape(-1, windows.shape[-1]), 1)
    y = windows.gather(-1, drawn.view(*windows.shape[:-1], 1))
    return y.view(layer.output_size(x.shape[0]))


def problems_of(
    layer: PoolLayer,
    batch: int,
    directions: Sequence[str],
    layouts: Sequence[str],
    dtype: torch.dtype,
    device: str = "cpu",
) -> Iterator[PoolProblem]:
    """One per direction and layout; the exact answer is shared by the layouts of a direction."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (
        torch.rand(size, generator=generator).to(device, dtype)
        for size in (layer.input_size(batch), layer.output_size(batch))
    )

    def exact(direction: str) -> tuple[Tensor, ...]:
        wide = x.detach().cpu().double().requires_grad_()
        with torch.enable_grad():
            y = pytorch_pool(layer, wide)
        if direction == "forward":
            return (y.detach(),)
        return y.detach(), torch.autograd.grad(y, wide, dy.cpu().double())[0]

    for direction in directions:
        answer = Once(lambda direction=direction: exact(direction))
        for layout in layouts:
            tensors = [with_layout(t, layout) for t in (x, dy)]
            yield PoolProblem(layer, batch, direction, layout, tensors[0], answer, tensors[1])
