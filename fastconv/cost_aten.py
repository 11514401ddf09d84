"""Estimated time of PyTorch's own convolution on the CPU, to weigh against the kernels' `cost`."""

from __future__ import annotations

import torch

from fastconv.problem import ConvSpec

CALL = 7e-6  # seconds: dispatch, descriptor look-up and the output's allocation


def seconds(spec: ConvSpec, threads: int) -> float:
    """Estimated seconds of `aten` for this problem on `threads` threads."""
    if spec.dtype == torch.float32:
        rate = 40e9
    elif spec.dtype == torch.float64:
        rate = 8e9
    else:
        rate = 1e9
    return CALL + spec.macs / (rate * min(threads, 2))
