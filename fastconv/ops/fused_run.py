"""Convolution with an epilogue or with statistics, by one named algorithm, on real tensors.

`aten` is PyTorch's own convolution followed by our pass over its result, in C++ or in Triton as
`Call.passes` says. Triton's convolutions have the same epilogues as those of C++.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastconv.activations import Activation
from fastconv.ops import triton_run
from fastconv.ops.conv_call import Call
from fastconv.ops.conv_run import run_fprop
from fastconv.ops.norm_run import norm_pass
from fastconv.select_triton import is_ours as _is_triton

_ops = torch.ops.fastconv
_conv_epilogue = _ops.conv_epilogue_fprop.default._op
_conv_epilogue_packed = _ops.conv_epilogue_fprop.packed._op
_conv_epilogue_into = _ops.conv_epilogue_into.default._op
_conv_epilogue_into_packed = _ops.conv_epilogue_into.packed._op
_conv_stats = _ops.conv_stats_fprop.default._op
_inception = _ops.inception_fprop.default._op


class Ending(NamedTuple):
    """What follows the sum: `activation`, and the residual before it or (`after`) behind it."""

    code: int
    slope: float
    after: bool


def ending(activation: Activation, residual_after: bool) -> Ending:
    return Ending(activation.code, activation.slope, residual_after)


def _triton_end(residual: Tensor | None, end: Ending) -> tuple[object, ...]:
    return (end.code, end.slope, residual, end.after, None, None)


def conv_epilogue(
    x: Tensor, w: Tensor, bias: Tensor | None, residual: Tensor | None, call: Call, end: Ending
) -> Tensor:
    """act(conv(x, w) + bias), with the residual where `end` says."""
    if _is_triton(call.name):
        return triton_run.fprop(x, w, bias, *call.geometry, call.name, _triton_end(residual, end))
    if not call.aten:
        if call.packed is None:
            return _conv_epilogue(x, w, bias, residual, *call.geometry, *end, call.name)
        groups = call.geometry.groups
        return _conv_epilogue_packed(x, w, bias, residual, *call.packed, groups, *end, call.name)
    y = run_fprop(x, w, bias, *call.geometry, call.name, call.packed)
    if residual is not None or end.code:
        norm_pass("epilogue_into", call.passes)(y, residual, y, *end)
    return y


def conv_epilogue_into(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    call: Call,
    end: Ending,
) -> None:
    """`conv_epilogue` into `out`, a channel slice of a tensor that is dense in y's layout."""
    if _is_triton(call.name):
        epilogue = _triton_end(residual, end)
        triton_run.fprop(x, w, bias, *call.geometry, call.name, epilogue, out)
        return
    if not call.aten:
        if call.packed is None:
            _conv_epilogue_into(x, w, bias, residual, out, *call.geometry, *end, call.name)
            return
        moves = (*call.packed, call.geometry.groups)
        _conv_epilogue_into_packed(x, w, bias, residual, out, *moves, *end, call.name)
        return
    y = run_fprop(x, w, bias, *call.geometry, call.name, call.packed)
    norm_pass("epilogue_into", call.passes)(y, residual, out, *end)


def inception(
    x: Tensor,
    joined: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    end: Ending,
    name: str,
) -> tuple[Tensor, Tensor]:
    """(result, reductions) of an inception module, by one instance of its kernels; `joined`: weight
    and bias of the 1x1 convolutions of x, the reductions last."""
    parts = (t for i in (2, 4, 5) for t in (weights[i], biases[i]))
    return _inception(x, *joined, *parts, end.code, end.slope, name)


def conv_stats(
    x: Tensor, w: Tensor, bias: Tensor | None, call: Call
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, m2): the convolution, each channel's mean, and its sum of squares about it."""
    if _is_triton(call.name):
        return triton_run.stats(x, w, bias, call.geometry, call.name)
    if not call.aten:
        return _conv_stats(x, w, bias, *call.geometry, call.name)
    y = run_fprop(x, w, bias, *call.geometry, call.name, call.packed)
    return (y, *norm_pass("norm_act_stats", call.passes)(y))
