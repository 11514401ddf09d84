"""Estimated time of PyTorch's own convolution on the CPU, to weigh against the kernels' `cost`.

seconds = call + 2 macs / rate + elements of x and y * act + elements of w * weight, where the last
two stand for the copies into oneDNN's blocked layouts (none for channels_last activations) or for
unfolding. Measured with torch 2.13 on an AMD Zen 3 (AVX2), per direction and memory format. The
tables for one thread come from 58 float32 problems of ResNet, MobileNet and GoogLeNet sizes and 18
of the other dtypes, leaning to the fastest times seen; float32 on several threads has its own.
float32 goes to oneDNN; float64 and, without AVX-512, the 16-bit types to PyTorch's own loops, which
take one group after the other.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch

from fastconv import _C
from fastconv.problem import ConvSpec


class _Model(NamedTuple):
    """call in µs; rates in GFLOP/s of one core by shape of the problem; act, weight in ns."""

    call: float
    pointwise: float
    dense: float
    narrow: float  # fewer than 16 channels on a side
    grouped: float
    depthwise: float
    act: float
    weight: float


# (dtype, direction) -> (contiguous, channels_last)
_F32 = {
    "fprop": (_Model(6, 85, 75, 32, 31, 13, 0.15, 0.4), _Model(8, 82, 87, 43, 40, 27, 0.0, 0.8)),
    "dgrad": (_Model(15, 84, 84, 36, 40, 24, 0.45, 0.5), _Model(17, 77, 80, 43, 42, 25, 0.25, 0.5)),
    "wgrad": (_Model(15, 84, 55, 31, 20, 15, 0.11, 0.0), _Model(22, 83, 66, 37, 40, 30, 0.05, 0.0)),
}
_F64 = {
    "fprop": (_Model(8, 30, 33, 21, 13, 3.6, 0.0, 0.6), _Model(17, 60, 28, 12, 9, 0.2, 1.6, 2.4)),
    "dgrad": (_Model(15, 60, 42, 26, 14, 2.8, 1.2, 2.5), _Model(30, 60, 39, 15, 10, 0.2, 1.2, 1.1)),
    "wgrad": (_Model(16, 35, 39, 21, 13, 3.6, 0.1, 0.0), _Model(20, 33, 28, 10, 11, 0.2, 0.0, 0.2)),
}
_16_BIT = {
    "fprop": (_Model(7, 3, 1.9, 3, 2.8, 1.2, 0.0, 15), _Model(15, 12, 10, 3, 3.5, 0.15, 5.0, 0.0)),
    "dgrad": (_Model(13, 12, 10, 8, 5, 1.0, 0.3, 5.0), _Model(20, 2.8, 3, 2, 1.5, 0.15, 0.0, 25)),
    "wgrad": (_Model(12, 14, 13, 21, 11, 5.5, 0.1, 40), _Model(20, 15, 15, 6, 6, 0.2, 0.0, 3.0)),
}
# float32 on several threads: layers of ResNet-50, VGG-16, GoogLeNet, MobileNetV2 and ResNeXt-50 at
# N = 1 and 8 on the two cores of a virtual machine, four of five estimates within 30%. `call` is
# mostly oneDNN's parallel regions, one for each tensor that is reordered.
_F32_THREADS = {
    "fprop": (
        _Model(88, 87, 80, 81, 57, 57, 0.46, 1.1),
        _Model(52, 82, 87, 74, 63, 33, 0.06, 1.0),
    ),
    "dgrad": (
        _Model(122, 78, 80, 20, 45, 41, 0.36, 1.1),
        _Model(85, 80, 85, 20, 45, 49, 0.07, 0.6),
    ),
    "wgrad": (
        _Model(96, 73, 60, 78, 40, 45, 0.52, 0.5),
        _Model(96, 68, 40, 45, 40, 34, 0.04, 0.75),
    ),
}
SECOND_CORE = 0.85  # of the first one's rate; seen with oneDNN on two cores
FORK = 3e-6  # seconds to start and join threads, for problems that are worth it
WORTH_THREADS = 2e5  # multiply-adds


def _model(spec: ConvSpec, threaded: bool) -> _Model:
    # bfloat16 and float16 run on oneDNN where the processor has AVX-512.
    wide = "avx512" in _C.cpu_isas()
    if spec.dtype == torch.float32 or (wide and spec.dtype != torch.float64):
        table = _F32_THREADS if threaded else _F32
    else:
        table = _F64 if spec.dtype == torch.float64 else _16_BIT
    return table[spec.direction][spec.channels_last]


def _rate(spec: ConvSpec, model: _Model) -> float:
    channels, filters = spec.weight_size[1], spec.weight_size[0] // spec.groups
    if spec.groups > 1:
        return model.depthwise if channels == 1 else model.grouped
    if channels < 16 or filters < 16:
        return model.narrow
    return model.pointwise if prod(spec.weight_size[2:]) == 1 else model.dense


def seconds(spec: ConvSpec, threads: int) -> float:
    """Estimated seconds of `aten` for this problem on `threads` threads."""
    threaded = threads > 1 and spec.macs > WORTH_THREADS
    model = _model(spec, threaded)
    work = 2e-9 * spec.macs / _rate(spec, model)
    moved = prod(spec.input_size) + prod(spec.output_size)
    work += 1e-9 * (moved * model.act + prod(spec.weight_size) * model.weight)
    if threaded:
        work = FORK + work / (1 + SECOND_CORE * (threads - 1))
    return 1e-6 * model.call + work
