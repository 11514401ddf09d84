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

# Per SM and second, dense: FMA pipe, tensor cores by operand type (sm_80, sm_90).
_FMA = {8: 1.8e11, 9: 4.3e11}
_TENSOR_16 = {8: 2.5e12, 9: 6e12}
_TENSOR_TF32 = {8: 1.25e12, 9: 3e12}
_FP64 = {8: 9e10, 9: 2.1e11}
_BYTES = {8: 1.5e12, 9: 4.0e12}
EFFICIENCY = 0.6  # of either roof
NARROW = 0.25  # of the arithmetic roof, where channels do not fill a tensor-core tile
DEPTHWISE = 0.3  # of the memory roof
GROUPED = 0.1  # of the arithmetic roof
LAUNCHES = 8e-6  # the kernel, and a layout change or a reduction around it
LAUNCH = 3e-6  # one kernel behind another, as in csrc/cuda/device_rates.h


def statistics_pass(spec: ConvSpec) -> float:
    """Estimated seconds of a pass over y that takes its statistics: of all that a kernel without
    them adds to one that leaves parts of them, which are merged as well."""
    chip = 9 if gpu.describe(spec.device).capability >= 90 else 8
    return prod(spec.output_size) * spec.dtype.itemsize / _BYTES[chip] + LAUNCH


def seconds(spec: ConvSpec) -> float:
    """Estimated seconds of `aten` for this problem."""
    return seconds_on(spec, gpu.describe(spec.device))


def seconds_on(spec: ConvSpec, device: gpu.Gpu) -> float:
    """The same on such a device."""
    chip = 9 if device.capability >= 90 else 8
    if spec.dtype == torch.float64:
        rate = _FP64[chip]
    elif spec.dtype == torch.float32:
        rate = _TENSOR_TF32[chip] if spec.tf32 else _FMA[chip]
    else:
        rate = _TENSOR_16[chip]
    rate *= device.sm_count * EFFICIENCY
    moved = prod(spec.input_size) + prod(spec.output_size) + prod(spec.weight_size)
    bandwidth = _BYTES[chip] * EFFICIENCY
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
