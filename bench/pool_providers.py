"""Who can run a pooling: PyTorch, fastconv with a given algorithm, and a copy of as many bytes.

A provider turns a problem into a call without arguments, so that the timer sees nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv
from bench.pool_problems import LP_POWER, PoolLayer
from bench.providers import PYTORCH

COPY = "copy"  # the physical limit: it moves the problem's minimal bytes
DIRECTIONS = ("forward", "forward+backward")


@dataclass(frozen=True)
class PoolProblem:
    """x: [N, C, H, W], dy: as the output. Both random in (0, 1): stochastic pooling has something
    to draw from, and no sum cancels, so that errors can be relative."""

    layer: PoolLayer
    batch: int
    direction: str
    layout: str
    x: Tensor
    dy: Tensor


Pool = Callable[[Tensor], Tensor]
Provider = Callable[[PoolProblem], Callable[[], object]]


def windows_of(x: Tensor, layer: PoolLayer) -> Tensor:
    """[N, C, windows, taps]; padding is 0."""
    taps = layer.kernel[0] * layer.kernel[1]
    columns = F.unfold(x, layer.kernel, 1, layer.padding, layer.stride)
    return columns.view(x.shape[0], x.shape[1], taps, -1).transpose(2, 3)


def composed_stochastic(x: Tensor, layer: PoolLayer) -> Tensor:
    """What users write for want of an operation: unfold, multinomial, gather."""
    windows = windows_of(x, layer)
    taps = windows.shape[-1]
    drawn = torch.multinomial(windows.detach().reshape(-1, taps), 1)
    y = windows.gather(-1, drawn.view(*windows.shape[:-1], 1))
    return y.view(layer.output_size(x.shape[0]))


def _pytorch(layer: PoolLayer) -> Pool:
    window = (layer.kernel, layer.stride)
    if layer.kind == "max":
        return lambda x: F.max_pool2d(x, *window, layer.padding, 1, layer.ceil_mode)
    if layer.kind == "avg":
        return lambda x: F.avg_pool2d(x, *window, layer.padding, layer.ceil_mode)
    if layer.kind == "lp":
        return lambda x: F.lp_pool2d(x, LP_POWER, *window, layer.ceil_mode)
    if layer.kind == "adaptive_avg":
        return lambda x: F.adaptive_avg_pool2d(x, layer.kernel)
    return lambda x: composed_stochastic(x, layer)


def _fastconv(layer: PoolLayer, algo: str) -> Pool:
    window = (layer.kernel, layer.stride)
    rest = (layer.padding, layer.ceil_mode)
    if layer.kind == "max":
        return lambda x: fastconv.max_pool2d(x, *window, layer.padding, 1, rest[1], algo=algo)
    if layer.kind == "avg":
        return lambda x: fastconv.avg_pool2d(x, *window, *rest, algo=algo)
    if layer.kind == "lp":
        return lambda x: fastconv.lp_pool2d(x, LP_POWER, *window, layer.ceil_mode, algo=algo)
    if layer.kind == "adaptive_avg":
        return lambda x: fastconv.adaptive_avg_pool2d(x, layer.kernel, algo=algo)
    return lambda x: fastconv.stochastic_pool2d(x, *window, *rest, algo=algo)


def pool_of(name: str, layer: PoolLayer) -> Pool:
    return _pytorch(layer) if name == PYTORCH else _fastconv(layer, name)


def gradient_call(pool: Pool, problem: PoolProblem) -> Callable[[], tuple[Tensor, Tensor]]:
    """(y, dx) of one training step of the pool."""
    x = problem.x.detach().requires_grad_()

    def call() -> tuple[Tensor, Tensor]:
        y = pool(x)
        return y, torch.autograd.grad(y, x, problem.dy)[0]

    return call


def call_of(name: str, problem: PoolProblem) -> Callable[[], object]:
    if name == COPY:
        count = problem.layer.elements(problem.batch, problem.direction) // 2
        source = torch.ones(count, dtype=problem.x.dtype, device=problem.x.device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    pool = pool_of(name, problem.layer)
    if problem.direction != "forward":
        return gradient_call(pool, problem)

    def forward() -> Tensor:
        with torch.no_grad():
            return pool(problem.x)

    return forward
