"""Estimated seconds of PyTorch's own convolution (cuDNN) on a CUDA device.

Roofs at the fraction that cuDNN commonly reaches of them, plus launches; only good enough to see
where ours is far ahead. Not measured on a GPU: `select` keeps `aten` unless ours is predicted to be
twice as fast, and autotuning measures.
"""

from __future__ import annotations

from math import prod

import torch

from fastconv import gpu
from fastconv.problem import ConvSpec

EFFICIENCY = 0.6  # of either roof
NARROW = 0.25  # of the arithmetic roof, where channels do not fill a tensor-core tile
DEPTHWISE = 0.3  # of the memory roof
GROUPED = 0.1  # of the arithmetic roof
LAUNCHES = 8e-6  # the kernel, and a layout change or a reduction around it


def statistics_pass(spec: ConvSpec) -> float:
    """Estimated seconds of a pass over y that takes its statistics: of all that a kernel without
    them adds to one that leaves parts of them, which are merged as well."""
    device = gpu.describe(spec.device)
    rates = gpu.rates(device.capability, device.sm_count)
    return prod(spec.output_size) * spec.dtype.itemsize / rates.bytes_per_s + rates.launch_s


def seconds(spec: ConvSpec) -> float:
    """Estimated seconds of `aten` for this problem."""
    return seconds_on(spec, gpu.describe(spec.device))


def seconds_on(spec: ConvSpec, device: gpu.Gpu) -> float:
    """The same on such a device."""
    rates = gpu.rates(device.capability, device.sm_count)
    if spec.dtype == torch.float64:
        rate = rates.fp64_flops
    elif spec.dtype == torch.float32:
        rate = rates.best_tf32_flops if spec.tf32 else rates.fma_flops
    else:
        rate = rates.best_16_flops
    rate *= EFFICIENCY
    moved = prod(spec.input_size) + prod(spec.output_size) + prod(spec.weight_size)
    bandwidth = rates.bytes_per_s * EFFICIENCY
    channels, filters = spec.weight_size[1], spec.weight_size[0] // spec.groups
    if spec.groups > 1:
        if channels == 1:
            bandwidth *= DEPTHWISE / EFFICIENCY
        rate *= GROUPED
    elif min(channels, filters) < 16:
        rate *= NARROW
    flops = 2 * spec.macs
    if spec.groups > 1 and channels == 1:
        flops = 0  # bound by memory
    return max(flops / rate, moved * spec.dtype.itemsize / bandwidth) + LAUNCHES
