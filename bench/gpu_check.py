"""Is a device's answer right? Against float64, on the device, with the tests' tolerances.

The reference is `fastconv.reference`: loops over filter taps with cuBLAS products in float64, in
which no kernel of ours takes part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.conv_problem import ConvProblem
from bench.correctness import gemm_k
from bench.gpu_contenders import tf32_kernels
from fastconv import reference
from fastconv.tolerances import conv_tolerance


@dataclass(frozen=True)
class Answer:
    """The exact result and sum|x||w| of each element, float64, on the problem's device."""

    value: Tensor
    magnitude: Tensor


def exact(problem: ConvProblem) -> Answer:
    p, layer = problem, problem.layer
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    if p.direction == "fprop":
        both = (reference.conv_fprop(p.x, p.w, None, *geometry, magnitude=m) for m in (0, 1))
    elif p.direction == "dgrad":
        size = tuple(p.x.shape)
        both = (reference.conv_dgrad(p.dy, p.w, size, *geometry, magnitude=m) for m in (0, 1))
    else:
        size = tuple(p.w.shape)
        both = (reference.conv_wgrad(p.dy, p.x, size, *geometry, magnitude=m) for m in (0, 1))
    return Answer(*both)


def rounding(ran: str, tf32: bool) -> str:
    """What ran, as `conv_tolerance` knows it. PyTorch may run anything: it is held to the loosest,
    that of Winograd with the larger tile."""
    algorithm, _, kernel = ran.partition("/")
    if algorithm in ("eager", "compile", "aten"):
        return "winograd_f4x4_3x3_tf32" if tf32 else "winograd_f4x4_3x3"
    if algorithm.startswith("winograd"):
        return algorithm + ("_tf32" if kernel.endswith("_tf32") else "")
    return "tf32" if ran in tf32_kernels() else algorithm


def excess(result: Tensor, answer: Answer, ran: str, problem: ConvProblem, tf32: bool) -> float:
    """The largest |error| / tolerance: right up to 1. inf for NaN or a wrong shape."""
    if result.shape != answer.value.shape:
        return float("inf")
    terms = gemm_k(problem.layer, problem.direction, problem.batch)
    bound = conv_tolerance(
        rounding(ran, tf32),
        problem.direction,
        result.dtype,
        answer.value,
        answer.magnitude,
        terms,
    )
    units = (result.double() - answer.value).abs() / bound
    return float(torch.nan_to_num(units, nan=float("inf")).max()) if units.numel() else 0.0
