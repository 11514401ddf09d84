"""Is a pooling's answer right? Asked of every contender before its time is taken.

Maxima must be exact. Averages and norms are compared with PyTorch's in fp64; the error is in units
of `u * |reference|`, the scale of a sum of positive numbers. A stochastic pooling's every output
must be an element of its window and have been drawn often enough to believe its probabilities: the
mean over all outputs of (value - expectation), in standard errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench import pool_providers
from bench.correctness import ROUNDING, UNIT, Verdict
from bench.pool_providers import PoolProblem
from bench.providers import PYTORCH

TOLERANCE = 32.0  # units of u |reference|: a window has at most 49 terms here, 784 when global
STANDARD_ERRORS = 5.0


def judge(name: str, problem: PoolProblem) -> Verdict:
    """Runs the contender once and compares."""
    pool = pool_providers.pool_of(name, problem.layer)
    if problem.layer.kind == "stochastic":
        return _judge_drawn(pool, problem)
    exact = _exact(problem)
    if problem.direction == "forward":
        with torch.no_grad():
            return _compare(pool(problem.x), exact[0], problem.layer.kind)
    y, dx = pool_providers.gradient_call(pool, problem)()
    first = _compare(y, exact[0], problem.layer.kind)
    return first if not first.ok else _compare(dx, exact[1], "gradient")


def _exact(problem: PoolProblem) -> tuple[Tensor, Tensor | None]:
    torchs = pool_providers.pool_of(PYTORCH, problem.layer)
    x = problem.x.detach().cpu().double().contiguous().requires_grad_()
    y = torchs(x)
    if problem.direction == "forward":
        return y.detach(), None
    return y.detach(), torch.autograd.grad(y, x, problem.dy.cpu().double())[0]


def _compare(result: Tensor, exact: Tensor, kind: str) -> Verdict:
    if tuple(result.shape) != tuple(exact.shape):
        shapes = f"shape {tuple(result.shape)}, expected {tuple(exact.shape)}"
        return Verdict(float("inf"), TOLERANCE, shapes)
    limit = 0.0 if kind == "max" else TOLERANCE
    error = (result.detach().cpu().double() - exact).abs()
    rounding = ROUNDING.get(result.dtype, 0.0)
    if kind != "max":
        error = (error - rounding * exact.abs()).clamp(min=0.0)
    units = torch.where(error == 0, 0.0, error / (UNIT[result.dtype] * exact.abs()))
    worst = float(units.nan_to_num(nan=float("inf")).max())
    return Verdict(worst, limit, "NaN in the result" if torch.isnan(result).any() else "")


def _judge_drawn(pool: pool_providers.Pool, problem: PoolProblem) -> Verdict:
    if problem.direction == "forward":
        with torch.no_grad():
            y = pool(problem.x)
    else:
        y, dx = pool_providers.gradient_call(pool, problem)()
        # Every dy is sent to exactly one place.
        sent, given = float(dx.double().sum()), float(problem.dy.double().sum())
        if not abs(sent - given) <= 1e-4 * float(problem.dy.double().abs().sum()):
            return Verdict(float("inf"), STANDARD_ERRORS, f"dx sums to {sent}, dy to {given}")
    windows = pool_providers.windows_of(problem.x.detach().cpu().double(), problem.layer)
    values = y.detach().cpu().double().reshape(windows.shape[:-1])
    if not bool((windows == values.unsqueeze(-1)).any(-1).all()):
        return Verdict(float("inf"), STANDARD_ERRORS, "an output is no element of its window")
    total = windows.sum(-1)
    mean = (windows**2).sum(-1) / total
    variance = (windows**3).sum(-1) / total - mean**2
    error = float((values - mean).sum().abs() / variance.sum().clamp(min=1e-300).sqrt())
    return Verdict(error, STANDARD_ERRORS)
