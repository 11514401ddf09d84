"""Training of convolution, batch normalisation and activation as one differentiable operation.

    y = conv(x, w) + b,   pre = (y - mean) rstd weight + bias (+ residual),
    z = act(pre) (+ residual)

Forward is a convolution that takes its statistics along, and one pass over y. Backward is one pass
for two sums per channel, one for dy, and the convolution's two gradients. x and y are kept, of the
rest only vectors: z is not needed, since the activation's slope follows from y. Where x is the z of
another such layer, its recipe is kept instead (fused_recipe.py), which leaves y alone; with
`recompute` y is not kept but computed once more, which leaves x alone.

dy is written once and read by both of the convolution's gradients; neither works it out as it
loads. They read every element some times over, once per tap and tile of channels that meets it,
and would read y and dz in dy's place, and apply the activation's slope, each time; and a gathered
element of a tile comes to shared memory without passing a register. What that would save, one pass
over dy, is the smaller part. Not measured on a GPU.

A gradient that is itself to be differentiated, functorch, forward mode and graphs take the composed
path: fastconv's convolution and PyTorch's batch_norm, derivatives of any order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fastconv import sync_stats
from fastconv.activations import Activation
from fastconv.ops import conv
from fastconv.ops.composed_gradients import composed_gradients
from fastconv.ops.conv_autograd import sum_to_bias
from fastconv.ops.conv_call import Call
from fastconv.ops.conv_run import aten_gradients, dgrad_by, run_fprop, wgrad_by
from fastconv.ops.fused_recipe import Origin, keep_recipe
from fastconv.ops.fused_run import conv_stats, ending
from fastconv.ops.norm_run import norm_pass
from fastconv.select import ATEN


class Training(NamedTuple):
    """What a training step is told beside its tensors.

    momentum: the weight of this batch in the running statistics. group: over whose processes the
    statistics go; None: this one alone.
    """

    call: Call
    activation: Activation
    residual_after: bool
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float
    eps: float
    group: object | None
    recompute: bool


def statistics_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _as_statistics(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if t is None else t.detach().to(statistics_type(dtype)).contiguous()


def update_running(step: Training, mean: Tensor, m2: Tensor, count: float | Tensor) -> None:
    """PyTorch's rule: the running variance takes the unbiased estimate."""
    if step.running_mean is not None:
        step.running_mean.mul_(1 - step.momentum).add_(mean.to(step.running_mean.dtype),
                                                       alpha=step.momentum)  # fmt: skip
    if step.running_var is not None:
        unbiased = m2 / (count - 1)
        step.running_var.mul_(1 - step.momentum).add_(unbiased.to(step.running_var.dtype),
                                                      alpha=step.momentum)  # fmt: skip


def conv_norm_act(
    x: Tensor,
    w: Tensor,
    conv_bias: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    step: Training,
) -> Tensor:
    """z, differentiable."""
    z = ConvNormAct.apply(x, w, conv_bias, weight, bias, residual, step)
    # As a residual before the activation x is kept anyway.
    if z.grad_fn is not None and residual is not x:
        keep_recipe(z.grad_fn, x, at=0)
    return z


class ConvNormAct(Function):
    """z of (x, w, conv_bias, weight, bias, residual)."""

    @staticmethod
    def forward(ctx, x, w, conv_bias, weight, bias, residual, step):
        end = ending(step.activation, step.residual_after)
        y, mean, m2 = conv_stats(x, w, conv_bias, step.call)
        count: float | Tensor = y.numel() // max(y.shape[1], 1)
        if step.group is not None:
            mean, m2, count = sync_stats.merged(mean, m2, count, step.group)
        update_running(step, mean, m2, count)
        rstd = (m2 / count + step.eps).rsqrt_()
        gamma, beta = _as_statistics(weight, y.dtype), _as_statistics(bias, y.dtype)
        passes = step.call.passes
        fprop = norm_pass("norm_act_fprop", passes)
        z = fprop(y, mean, rstd, gamma, beta, residual, *end)
        # Where the residual enters before the activation it decides the slope.
        needed = None if step.residual_after or end.code == 0 else residual
        ctx.save_for_backward(
            x, w, conv_bias, weight, bias, needed, None if step.recompute else y, mean, rstd
        )
        ctx.step, ctx.end, ctx.count = step, end, count
        ctx.has_residual = residual is not None
        if residual is None and not step.recompute:
            ctx.fastconv_origin = Origin(z, y, mean, rstd, gamma, beta, end, passes)
        return z

    @staticmethod
    def backward(ctx, dz):
        x, w, conv_bias, weight, bias, residual, y, mean, rstd = ctx.saved_tensors
        step, end, needs = ctx.step, ctx.end, ctx.needs_input_grad
        if torch.is_grad_enabled() or conv.transforming() or conv.tracing():
            saved = (x, w, conv_bias, weight, bias, residual)
            return (*_composed_gradients(saved, dz, step, needs, ctx.has_residual), None)
        call = step.call
        if y is None:
            y = run_fprop(x, w, conv_bias, *call.geometry, call.name, call.packed)
        gamma, beta = _as_statistics(weight, y.dtype), _as_statistics(bias, y.dtype)
        norm = (mean, rstd, gamma, beta, residual)
        sum_g, sum_gy = norm_pass("norm_act_sums", call.passes)(dz, y, *norm, *end)
        dweight = (sum_gy * rstd).to(weight.dtype) if needs[3] else None
        dbias = sum_g.to(bias.dtype) if needs[4] else None
        dx = dw = dconv_bias = dresidual = None
        if any(needs[:3]) or (needs[5] and not step.residual_after):
            count = ctx.count
            if step.group is not None:
                sum_g, sum_gy = sync_stats.averaged(sum_g, sum_gy, count, step.group)
                count = 1.0
            want = needs[5] and not step.residual_after
            dgrad = norm_pass("norm_act_dgrad", call.passes)
            dy, dresidual = dgrad(dz, y, *norm, sum_g, sum_gy, float(count), *end, want)
            dx, dw = _conv_gradients(call, dy, x, w, needs)
            if needs[2]:
                dconv_bias = sum_to_bias(dy)
            if not want:
                dresidual = None
        if needs[5] and step.residual_after:
            dresidual = dz
        return dx, dw, dconv_bias, dweight, dbias, dresidual, None


def _conv_gradients(call: Call, dy: Tensor, x: Tensor, w: Tensor, needs) -> tuple:
    toward_x = call.gradient("dgrad", dy, w) if needs[0] else None
    toward_w = call.gradient("wgrad", dy, x) if needs[1] else None
    if toward_x is not None and toward_w is not None and toward_x.name == toward_w.name == ATEN:
        return aten_gradients(dy, x, w, *call.geometry, (True, True))
    dx = None if toward_x is None else dgrad_by(toward_x, dy, w)
    dw = None if toward_w is None else wgrad_by(toward_w, dy, x)
    return dx, dw


def composed(
    x: Tensor,
    w: Tensor,
    conv_bias: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    convolve,
    running: tuple[Tensor | None, Tensor | None],
    training: bool,
    momentum: float,
    eps: float,
    activation: Activation,
    residual_after: bool,
) -> Tensor:
    """The same out of separate operations; `convolve(x, w, conv_bias)` is the convolution."""
    y = convolve(x, w, conv_bias)
    z = F.batch_norm(y, *running, weight, bias, training, momentum, eps)
    if residual is None:
        return activation(z)
    return activation(z) + residual if residual_after else activation(z + residual)


def _composed_gradients(saved, dz, step: Training, needs, has_residual: bool) -> list:
    """Gradients that are themselves differentiable."""
    if step.group is not None:
        raise RuntimeError(
            "conv_bn_relu: synchronised statistics have no second derivative (as SyncBatchNorm)"
        )
    x, w, conv_bias, weight, bias, residual = saved
    if has_residual and residual is None:
        # Its value was not kept because no gradient hangs on it.
        residual = torch.zeros((), dtype=dz.dtype, device=dz.device).expand(dz.shape)
        residual = residual.detach().requires_grad_(needs[5])
    call = step.call

    def convolve(x, w, b):
        return conv.conv_fprop(x, w, b, *call.geometry, call.algo)

    def function(*tensors):
        rest = (True, 0.0, step.eps, step.activation, step.residual_after)
        return composed(*tensors, convolve, (None, None), *rest)

    tensors = (x, w, conv_bias, weight, bias, residual)
    return composed_gradients(function, tensors, needs[:6], dz)
