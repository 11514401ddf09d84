"""Convolution, activation and addition in one call, where nothing normalises, for ranks 1 to 3.

Without gradients the kernels do the rest where they store the convolution's result; with them the
operations are separate, since the backward pass of an activation needs its own pass either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastconv import fused
from fastconv.activations import Activation, named
from fastconv.fused import NO_NORM
from fastconv.ops import conv
from fastconv.ops.conv_library import cast_for_autocast
from fastconv.ops.fused_run import conv_epilogue, ending


def conv_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = "relu",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
    algo: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """act(conv(input, weight) + bias + residual), of 1 to 3 spatial axes.

    Args:
        input: (N, C, *in); weight: (K, C/groups, *kernel); bias: (K,) or None. As in
            fastconv.conv2d, but always with a batch axis.
        stride, padding, dilation, groups, algo, precision: as in fastconv.conv2d.
        activation: "relu", "leaky_relu" (with negative_slope), "relu6", "silu", "none" or None.
        residual: added before the activation, or behind it with residual_after; as in a sum, its
            shape may be one that broadcasts.

    Returns:
        (N, K, *out), channels_last if input or weight is.

    float32, float64, bfloat16 and float16. One operation where no gradient is wanted; else, and
    under function transforms, composed of fastconv.conv2d and PyTorch's. Deterministic.

    Raises:
        RuntimeError, ValueError, TypeError: as torch.nn.functional.conv2d, in its words; ValueError
            for an unknown activation.
    """
    tensors = (input, weight, bias, residual)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            conv_act, tensors, input, weight, bias, stride=stride, padding=padding,
            dilation=dilation, groups=groups, activation=activation,
            negative_slope=negative_slope, residual=residual, residual_after=residual_after,
            algo=algo, precision=precision,
        )  # fmt: skip
    end = named(activation, negative_slope)
    if weight.dim() not in fused._CONV or input.dim() != weight.dim():
        fused._refuse_dimensions(input, weight)
    moves = (stride, padding, dilation, groups)
    if not fused._wants_gradient(input, weight, bias, NO_NORM, residual):
        y = _at_once(input, weight, bias, residual, moves, end, residual_after, algo, precision)
        if y is not None:
            return y
    y = fused._CONV[weight.dim()](input, weight, bias, *moves, algo=algo, precision=precision)
    if residual is None:
        return end(y)
    return end(y) + residual if residual_after else end(y + residual)


def _at_once(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, moves: tuple,
    end: Activation, residual_after: bool, algo: str, precision: str | None,
) -> Tensor | None:  # fmt: skip
    """By one kernel, or as one op of a graph; None where it has to be composed."""
    if conv.transforming() or torch.jit.is_tracing():
        return None
    device = input.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight, bias = (cast_for_autocast(t, device, dtype) for t in (input, weight, bias))
    if torch.compiler.is_compiling():
        return fused._recorded(
            input, weight, bias, NO_NORM, residual, moves, end, residual_after, algo, precision
        )
    if conv.tracing():
        return None
    call = fused._planned(input, weight, bias, moves, algo, precision)
    if call is None or not fused._fusible(input, NO_NORM, residual):
        return None
    size = fused._output_size(call)
    added = None if residual is None else fused._broadcast(residual, size)
    if 0 in size or (residual is not None and added is None):
        return None
    return conv_epilogue(input, weight, bias, added, call, ending(end, residual_after))
