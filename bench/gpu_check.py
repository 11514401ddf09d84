"""Is an answer right? Against float64 from the definition, where the tensors are: on a GPU an exact
answer takes milliseconds there. With the tests' tolerances.

The reference is `fastconv.reference`: loops over filter taps with products in float64 (cuBLAS's on
a GPU), in which no kernel of ours takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from bench.correctness import gemm_k
from bench.problem import Verdict
from bench.problems import ConvLayer
from fastconv import _C, reference
from fastconv.tolerances import conv_tolerance

# Of names of what ran that are no kernels of ours.
PYTORCH = ("pytorch", "pytorch_channels_last", "compile", "onednn", "aten")


@dataclass(frozen=True)
class Answer:
    """The exact result and sum|x||w| of each element, float64, on the operands' device."""

    value: Tensor
    magnitude: Tensor


def exact(
    layer: ConvLayer,
    direction: str,
    x: Tensor,
    w: Tensor,
    dy: Tensor,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Answer:
    """bias, [K], and relu: what fprop's epilogue adds."""
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def found(magnitude: bool) -> Tensor:
        if direction == "fprop":
            return reference.conv_fprop(x, w, bias, *geometry, magnitude=magnitude)
        if direction == "dgrad":
            return reference.conv_dgrad(dy, w, tuple(x.shape), *geometry, magnitude=magnitude)
        return reference.conv_wgrad(dy, x, tuple(w.shape), *geometry, magnitude=magnitude)

    value = found(False)
    return Answer(value.relu() if relu else value, found(True))


@cache
def _products() -> dict[str, str]:
    return {f"{row[0]}/{row[1]}": row[5].name for row in _C.cuda_instances()}


def products_of(kernel: str) -> str:
    """How a CUDA instance multiplies float32 operands: "ieee", "tf32x3" or "tf32"."""
    return _products().get(kernel, "ieee")


def rounding(ran: str, tf32: bool) -> str:
    """What ran, as `conv_tolerance` knows it. PyTorch may run anything: it is held to the loosest,
    that of Winograd with the larger tile."""
    algorithm, _, kernel = ran.partition("+")[0].partition("/")
    if algorithm in PYTORCH or algorithm not in _C.cpu_algorithms() + _C.cuda_algorithms():
        return "winograd_f4x4_3x3_tf32" if tf32 else "winograd_f4x4_3x3"
    if algorithm.startswith("winograd"):
        return algorithm + ("_tf32" if kernel.endswith("_tf32") else "")
    products = products_of(f"{algorithm}/{kernel}")
    return algorithm if products == "ieee" else products


def judge(
    result: Tensor,
    answer: Answer,
    ran: str,
    layer: ConvLayer,
    direction: str,
    batch: int,
    tf32: bool = False,
) -> Verdict:
    """The largest |error| / tolerance: right up to 1; inf for NaN or a wrong shape. How PyTorch
    rounds in between is its own business: its error is told, and no reason not to time it."""
    limit = float("inf") if ran.partition("+")[0] in PYTORCH else 1.0
    if result.shape != answer.value.shape:
        shapes = f"shape {tuple(result.shape)}, expected {tuple(answer.value.shape)}"
        return Verdict(float("inf"), limit, shapes)
    if result.numel() == 0:
        return Verdict(0.0, limit)
    terms = gemm_k(layer, direction, batch)
    operands = (answer.value, answer.magnitude, terms)
    bound = conv_tolerance(rounding(ran, tf32), direction, result.dtype, *operands)
    units = (result.detach().double() - answer.value).abs() / bound
    worst = float(torch.nan_to_num(units, nan=float("inf")).max())
    return Verdict(worst, limit, "NaN in the result" if bool(result.isnan().any()) else "")
