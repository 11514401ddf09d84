"""What the machine reaches in this run on the two plainest kernels: memory triad, matrix product.

Every result of the run is also given as a fraction of these, because datasheet rates are reached by
nobody, and clocks differ from machine to machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from bench.problem import Problem
from bench.timing import quantile

# Bytes of each of the triad's three arrays, well beyond the caches, and extents of the product.
TRIAD_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
GEMM_EXTENT = {"cuda": 8192, "cpu": 1024}
SMALL_BYTES, SMALL_EXTENT = 1 << 16, 64

# (call, how many times back to back) -> milliseconds per call, several samples
RateSamples = Callable[[Callable[[], object], int], list[float]]


def triad_bytes_per_second(samples: RateSamples, device: str, small: bool = False) -> float:
    """a = b + s * c in fp32: three arrays once through the memory."""
    size = SMALL_BYTES if small else TRIAD_BYTES[device]
    a, b, c = (torch.rand(size // 4, device=device) for _ in range(3))
    ms = quantile(samples(lambda: torch.add(b, c, alpha=1.5, out=a), 5), 0.5)
    return 3 * size / (ms * 1e-3)


def gemm_flops_per_second(
    samples: RateSamples, device: str, dtype: torch.dtype, tf32: bool = False, small: bool = False
) -> float:
    """A square product through PyTorch on random numbers: zeros run faster."""
    n = SMALL_EXTENT if small else GEMM_EXTENT[device]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        calls = 10 if dtype != torch.float32 or tf32 else 3
        ms = quantile(samples(lambda: torch.mm(a, b, out=out), calls), 0.5)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2.0 * n**3 / (ms * 1e-3)


def measured(
    samples: RateSamples, device: str, arithmetics: tuple[str, ...], small: bool = False
) -> dict[str, float]:
    """Rates per second. arithmetics: dtypes' names, "tf32", or "tf32x3", whose ceiling is a
    third of that. small: a rehearsal."""
    arithmetics = tuple(dict.fromkeys("tf32" if a == "tf32x3" else a for a in arithmetics))
    rates = {"triad_bytes_per_s": triad_bytes_per_second(samples, device, small)}
    for name in arithmetics:
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        rate = gemm_flops_per_second(samples, device, dtype, name == "tf32", small)
        rates[f"gemm_{name}_flops"] = rate
    return rates


def floor_of(flops: float, moved: float, arithmetic: str, ceilings: Mapping[str, float]) -> float:
    """Milliseconds that the same run's triad and matrix product leave for this work: no kernel
    should beat it by much, except Winograd, which multiplies less, and what stays in the caches."""
    if arithmetic == "tf32x3":
        rate = ceilings.get("gemm_tf32_flops", 0.0) / 3
    else:
        rate = ceilings.get(f"gemm_{arithmetic}_flops")
    return 1e3 * max(flops / rate if rate else 0.0, moved / ceilings["triad_bytes_per_s"])


def floor_ms(problem: Problem, ceilings: Mapping[str, float]) -> float:
    """`floor_of` a problem in its own arithmetic."""
    arithmetic = str(problem.x.dtype).removeprefix("torch.")
    precision = getattr(problem, "precision", "ieee")
    if precision != "ieee":
        arithmetic = precision
    return floor_of(problem.flops(), problem.bytes(), arithmetic, ceilings)
