"""The fused ops in traced graphs: `fastconv::conv_act`, and fake kernels of the bare ones.

`conv_act` is the fused convolution of evaluation and chooses its algorithm when it runs; a graph
that trains is composed of `fastconv::conv` and PyTorch's batch_norm, which its compiler fuses.
"""

from __future__ import annotations

import torch

from fastconv.activations import NAMES, Activation
from fastconv.ops.conv_call import call_for
from fastconv.ops.conv_library import promised
from fastconv.ops.conv_run import run_fprop
from fastconv.ops.fused_run import Ending, conv_epilogue
from fastconv.problem import conv_output_size, dense_strides, is_channels_last, unpacked_moves
from fastconv.problem import suggests_channels_last as _channels_last
from fastconv.select_fused import admitted

_lib = torch.library.Library("fastconv", "FRAGMENT")
_lib.define(
    "conv_act(Tensor x, Tensor w, Tensor? bias, Tensor? residual, SymInt[] stride,"
    " SymInt[] padding, SymInt[] dilation, SymInt groups, int activation, float slope,"
    " bool residual_after, str algo) -> Tensor"
)


def _conv_act(x, w, bias, residual, stride, padding, dilation, groups, code, slope, after, algo):
    channels_last = is_channels_last(x, w)
    geometry = (stride, padding, dilation, groups)
    call = call_for(
        "fprop", x, x.shape, w.shape, *geometry, channels_last, algo, (x, w, bias), "epilogue"
    )
    if call.aten and not admitted(call, x):
        y = run_fprop(x, w, bias, *call.geometry, call.name, call.packed)
        y = y if residual is None or after else y + residual
        y = Activation(NAMES[code], slope)(y)
        y = y + residual if after and residual is not None else y
    else:
        y = conv_epilogue(x, w, bias, residual, call, Ending(code, slope, after))
    return promised(y, channels_last)


_lib.impl("conv_act", _conv_act, "CompositeExplicitAutograd")


def _fake_conv(x, w, bias, residual, stride, padding, dilation, groups, *_):
    size = conv_output_size(x.shape, w.shape, stride, padding, dilation)
    return x.new_empty_strided(size, dense_strides(size, is_channels_last(x, w)))


def _fake_conv_packed(x, w, bias, residual, moves, *_):
    return _fake_conv(x, w, bias, residual, *unpacked_moves(moves, x.dim() - 2))


def _fake_into(*_):
    return None


def _fake_conv_stats(x, w, bias, stride, padding, dilation, groups, algo):
    y = _fake_conv(x, w, bias, None, stride, padding, dilation, groups)
    return (y, *_fake_stats(y))


def _fake_stats(y, *_):
    dtype = torch.float64 if y.dtype == torch.float64 else torch.float32
    return y.new_empty([y.shape[1]], dtype=dtype), y.new_empty([y.shape[1]], dtype=dtype)


def _fake_norm(y, *_):
    return y.new_empty_strided(y.shape, dense_strides(y.shape, _channels_last(y)))


def _fake_sums(dz, y, *_):
    return _fake_stats(y)


def _fake_dgrad(dz, y, *rest):
    dy = _fake_norm(y)
    return dy, (_fake_norm(y) if rest[-1] else y.new_empty([0]))


for _name, _fake in (
    ("conv_act", _fake_conv),
    ("conv_epilogue_fprop", _fake_conv),
    ("conv_epilogue_fprop.packed", _fake_conv_packed),
    ("conv_epilogue_into", _fake_into),
    ("conv_epilogue_into.packed", _fake_into),
    ("conv_stats_fprop", _fake_conv_stats),
    ("norm_act_stats", _fake_stats),
    ("norm_act_fprop", _fake_norm),
    ("epilogue_into", _fake_into),
    ("norm_act_sums", _fake_sums),
    ("norm_act_dgrad", _fake_dgrad),
):
    torch.library.register_fake(f"fastconv::{_name}", _fake, lib=_lib)
