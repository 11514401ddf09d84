"""Is the answer right? Asked of every contender before its time is taken.

The reference is PyTorch's convolution in fp64, one image at a time (its fp64 path unfolds whole
batches, which at 8x64x224x224 would be 2 GB). The error is measured in units of
`u * sum|x||w|`, with u the unit roundoff of the accumulator: this is the scale that rounding errors
of a sum of products have, whatever the values; an error relative to |y| would blow up at
cancellations.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor

from bench.problem import Verdict
from bench.problems import ConvLayer

# Units of u * sum|x||w|; a sum of products in any order stays below 8 in fp32 in practice
# (3.2 is the largest observed for 9 to 18,432 terms). Winograd multiplies transformed tiles, whose
# entries are larger than the data they cancel back to, the more so the larger the tile; on the
# normal random numbers used here 2 to 5 and 5 to 12 were observed.
TOLERANCE = 8.0
# An element's error comes from its whole tile, so the
# scale is the largest sum|x||w| of its channel and image (of its filter's taps in wgrad).
WINOGRAD_TOLERANCE = {"winograd_f2x2_3x3": 16.0, "winograd_f4x4_3x3": 64.0}

UNIT = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-24,  # 16-bit types accumulate in fp32 ...
    torch.float16: 2.0**-24,
}
TF32_UNIT = 2.0**-11  # float32 operands rounded to TF32's mantissa
# ... and round once at the end, by at most this fraction of the result (and, in fp16, of the
# smallest normal number, where subnormals are absolute).
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Reference:
    """The exact answer and the scale of its unavoidable error, both fp64 in the result's shape."""

    value: Tensor
    scale: Tensor  # sum|x||w| of each element


def convolution(layer: ConvLayer, direction: str, x: Tensor, w: Tensor, dy: Tensor) -> Tensor:
    """PyTorch's own convolution in one direction: y, dx or dw."""
    rank = layer.rank
    stride, padding, dilation = list(layer.stride), list(layer.padding), list(layer.dilation)
    if direction == "fprop":
        forward = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        return forward(x, w, None, stride, padding, dilation, layer.groups)
    mask = [direction == "dgrad", direction == "wgrad", False]
    dx, dw, _ = torch.ops.aten.convolution_backward.default(
        dy, x, w, None, stride, padding, dilation, False, [0] * rank, layer.groups, mask
    )
    return dx if direction == "dgrad" else dw


def reference(
    layer: ConvLayer,
    direction: str,
    x: Tensor,
    w: Tensor,
    dy: Tensor,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Reference:
    """The fp64 answer for these tensors (any layout; converted to fp64 NCHW here). bias, [K], and
    relu: what fprop's epilogue adds."""

    def in_fp64(x: Tensor, w: Tensor, dy: Tensor) -> Tensor:
        w = w.double()
        images = (
            convolution(layer, direction, x[i : i + 1].double(), w, dy[i : i + 1].double())
            for i in range(x.shape[0])
        )
        if direction != "wgrad":
            return torch.cat(list(images))
        total = torch.zeros(w.shape, dtype=torch.float64)
        for image in images:
            total += image
        return total

    x, w, dy = (t.detach().cpu().contiguous() for t in (x, w, dy))
    # The scale needs no more than a few digits: fp32, which is far quicker, will do.
    scale = convolution(layer, direction, *(t.float().abs() for t in (x, w, dy)))
    value, scale = in_fp64(x, w, dy), scale.double()
    if bias is not None:
        along = bias.detach().cpu().double().view(-1, *(1,) * layer.rank)
        value, scale = value + along, scale + along.abs()
    return Reference(value.relu() if relu else value, scale)


def gemm_k(layer: ConvLayer, direction: str, batch: int) -> int:
    """Terms in the sum of one element of the result, at most."""
    taps = prod(layer.kernel)
    if direction == "fprop":
        return layer.C // layer.groups * taps
    if direction == "dgrad":
        return layer.K // layer.groups * taps
    return prod(layer.output_size(batch)) // layer.K


def tolerance(algorithm: str, dtype: torch.dtype, terms: int) -> float:
    """The limit for an algorithm, in units of u * sum|x||w|."""
    limit = WINOGRAD_TOLERANCE.get(algorithm, TOLERANCE)
    if dtype in ROUNDING or dtype == torch.float64:
        # An fp64 reference is no more exact than what it judges; 16-bit inputs leave sums whose
        # partial results are rounded wherever the blocking puts them.
        limit = max(limit, 2 * TOLERANCE, sqrt(terms))
    return limit


def judge(
    result: Tensor, ref: Reference, algorithm: str, terms: int, unit: float | None = None
) -> Verdict:
    """Compares one result with the reference; `terms` is gemm_k. unit: of the operands' rounding,
    where that is coarser than the accumulator's."""
    limit = tolerance(algorithm, result.dtype, terms)
    if tuple(result.shape) != tuple(ref.value.shape):
        shapes = f"shape {tuple(result.shape)}, expected {tuple(ref.value.shape)}"
        return Verdict(float("inf"), limit, shapes)
    rounding = ROUNDING.get(result.dtype, 0.0)
    excess = (result.detach().cpu().double() - ref.value).abs()
    if rounding:
        excess = (excess - rounding * ref.value.abs().clamp(min=2.0**-14)).clamp(min=0.0)
    # 0/0 is a right zero; anything else over 0 is inf; NaN stays NaN and is reported as such.
    if excess.numel() == 0:
        return Verdict(0.0, limit)
    scale = ref.scale
    if algorithm in WINOGRAD_TOLERANCE:
        scale = scale.amax(dim=tuple(range(2, scale.dim())), keepdim=True)
    units = torch.where(excess == 0, 0.0, excess / ((unit or UNIT[result.dtype]) * scale))
    if torch.isnan(units).any():
        return Verdict(float("inf"), limit, "NaN in the result")
    return Verdict(float(units.max()), limit)
