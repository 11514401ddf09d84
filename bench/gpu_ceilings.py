"""What the device reaches in this run on the two plainest kernels: memory triad, matrix product.

Every result of the run is also given as a fraction of these, because datasheet rates are reached by
nobody, and clocks differ from machine to machine.
"""

from __future__ import annotations

import torch

from bench.gpu_timing import CudaTimer, HostTimer
from bench.timing import quantile

TRIAD_BYTES = 2 << 30  # of each of the three arrays
GEMM_EXTENT = 8192
REHEARSED_BYTES, REHEARSED_EXTENT = 1 << 16, 64


def triad_bytes_per_second(timer: CudaTimer | HostTimer) -> float:
    """a = b + s * c in fp32: three arrays once through the memory."""
    size = TRIAD_BYTES if timer.device == "cuda" else REHEARSED_BYTES
    a, b, c = (torch.rand(size // 4, device=timer.device) for _ in range(3))
    ms = quantile(timer.rate_samples(lambda: torch.add(b, c, alpha=1.5, out=a), 5), 0.5)
    return 3 * size / (ms * 1e-3)


def gemm_flops_per_second(timer: CudaTimer | HostTimer, dtype: torch.dtype, tf32: bool) -> float:
    """A square product through PyTorch (cuBLAS) on random numbers: zeros run faster."""
    n = GEMM_EXTENT if timer.device == "cuda" else REHEARSED_EXTENT
    a, b = (torch.randn(n, n, device=timer.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        calls = 10 if dtype != torch.float32 or tf32 else 3
        ms = quantile(timer.rate_samples(lambda: torch.mm(a, b, out=out), calls), 0.5)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2.0 * n**3 / (ms * 1e-3)


def empty_call_ms(timer: CudaTimer | HostTimer) -> float:
    """What a sample of next to nothing takes: the part of every time that is not the kernel."""
    x = torch.zeros(32, device=timer.device)
    ready = {"empty": timer.prepare("empty", lambda: x.add_(1.0))}
    return quantile(timer.samples(ready, 15)["empty"], 0.5)


def measured(timer: CudaTimer | HostTimer) -> dict[str, float]:
    """Keys as in the report; rates per second."""
    return {
        "triad_bytes_per_s": triad_bytes_per_second(timer),
        "gemm_bfloat16_flops": gemm_flops_per_second(timer, torch.bfloat16, False),
        "gemm_float32_flops": gemm_flops_per_second(timer, torch.float32, False),
        "gemm_tf32_flops": gemm_flops_per_second(timer, torch.float32, True),
        "empty_call_ms": empty_call_ms(timer),
    }


def floor_ms(macs: float, moved: float, arithmetic: str, ceilings: dict[str, float]) -> float:
    """The time that the same run's triad and matrix product leave: no kernel should beat it by
    much, except Winograd, which multiplies less. arithmetic: a dtype's name, or 'tf32'."""
    flops = ceilings.get(f"gemm_{arithmetic}_flops")
    compute = 2.0 * macs / flops if flops else 0.0
    return 1e3 * max(compute, moved / ceilings["triad_bytes_per_s"])
