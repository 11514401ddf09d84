"""Convolution, batch normalisation and activation in one call, for ranks 1 to 3.

In inference the normalisation is folded into weights and bias, once per state of the parameters,
and the rest happens where the convolution stores its result. In training: ops/fused_autograd.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastconv import functional, gpu, select, sync_stats
from fastconv.activations import Activation, named
from fastconv.arguments import check_options, fits, foreign_dispatch, geometry_of, refusal
from fastconv.derived import Derived, Entry
from fastconv.functional import _all_int
from fastconv.ops import conv, fused_library  # noqa: F401
from fastconv.ops.conv_call import Call, call_for
from fastconv.ops.conv_library import cast_for_autocast
from fastconv.ops.fused_autograd import Training, composed, conv_norm_act, statistics_type
from fastconv.ops.fused_run import Ending, conv_epilogue, ending
from fastconv.plans import NO_KEY, Plans
from fastconv.problem import conv_output_size, is_channels_last
from fastconv.select_fused import admitted

_CONV = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_autocast = torch._C._is_any_autocast_enabled
_jit_tracing = torch._C._get_tracing_state
_grad_enabled = torch.is_grad_enabled
_threads = torch.get_num_threads
_plans: Plans = select.forget_with(Plans())  # (call, stride, padding and dilation as given)


class _Short(NamedTuple):
    """An evaluation with folded weights that has been through every check."""

    call: Call
    end: Ending
    moves: tuple[Any, Any, Any]  # the very objects that were checked


class Norm(NamedTuple):
    """A batch normalisation's tensors and eps."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    eps: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[:4]


NO_NORM = Norm(None, None, None, None, 0.0)


def conv_bn_relu(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = "relu",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
    process_group: Any | None = None,
    recompute: bool = False,
    algo: str = "auto",
    precision: str | None = None,
) -> Tensor:
    """act(batch_norm(conv(input, weight) + bias) + residual), of 1 to 3 spatial axes.

    Args:
        input: (N, C, *in); weight: (K, C/groups, *kernel); bias: (K,) or None. As in
            fastconv.conv2d, but always with a batch axis.
        bn_weight, bn_bias: (K,) or None; running_mean, running_var: (K,), updated in place when
            training, or None. As in torch.nn.functional.batch_norm.
        training: normalise by this batch's statistics; else by the running ones.
        momentum: the weight of this batch in the running statistics.
        stride, padding, dilation, groups: as in fastconv.conv2d.
        activation: "relu", "leaky_relu" (with negative_slope), "relu6", "silu", "none" or None.
        residual: added before the activation, or behind it with residual_after; as in a sum, its
            shape may be one that broadcasts.
        process_group: a torch.distributed group, or "world", over which a training step takes its
            statistics, as torch.nn.SyncBatchNorm does.
        recompute: when training, do not keep the convolution's result for the backward pass but
            compute it a second time, for one more convolution: a third of the memory of separate
            layers also where the input comes from elsewhere.
        algo, precision: of the convolution, as in fastconv.conv2d.

    Returns:
        (N, K, *out), channels_last if input or weight is.

    float32, float64, bfloat16 and float16; 16-bit inputs may have float32 normalisation parameters.
    Without gradients, in evaluation, folded weights are kept until one of the tensors that they
    come from changes its version (writes through `.data` do not show; `forget_folded` drops them).
    Differentiable in everything: training in fused passes, further derivatives composed of separate
    operations. Deterministic.

    When training, input and the convolution's result are kept for the backward pass. An input that
    another such call without residual returned, unchanged, is not: backward makes it anew from what
    that call kept, in one pass and with the same bits. A chain so keeps one tensor per layer.
    Hooks of torch.autograd.graph.saved_tensors_hooks see the input itself, which is then kept.

    Raises:
        RuntimeError, ValueError, TypeError: as torch.nn.functional.conv2d and batch_norm, in their
            words; ValueError for an unknown activation.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015; He et al., "Deep Residual Learning",
    2015 (the residual before the activation).
    """
    if has_torch_function_variadic(
        input, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual
    ):
        tensors = (input, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual)
        return handle_torch_function(
            conv_bn_relu, tensors, *tensors[:7], training=training, momentum=momentum, eps=eps,
            stride=stride, padding=padding, dilation=dilation, groups=groups,
            activation=activation, negative_slope=negative_slope, residual=residual,
            residual_after=residual_after, process_group=process_group, recompute=recompute,
            algo=algo, precision=precision,
        )  # fmt: skip
    entry = key = None
    if not (
        training
        or _is_compiling()
        or _transforms_active()
        or forward_ad._current_level >= 0
        or _dispatch_modes()
        or _any_autocast()
        or _jit_tracing() is not None
    ):
        entry = _folded.entry(
            weight, bias, bn_weight, bn_bias, running_mean, running_var, number=eps
        )
    if entry is not None:
        key = _short_key(
            input, residual, stride, padding, dilation, groups, activation, negative_slope,
            residual_after, algo, precision,
        )  # fmt: skip
        try:
            short = entry.plans.get(key)
        except TypeError:  # no hash: the long way says what is wrong
            key = short = None
        if (
            short is not None
            and _same_moves(short.moves, stride, padding, dilation)
            and not (
                _grad_enabled()
                and _any_requires_grad(input, weight, bias, bn_weight, bn_bias, residual)
            )
        ):
            return conv_epilogue(input, *entry.value, residual, short.call, short.end)

    end = named(activation, negative_slope)
    if weight.dim() not in _CONV or input.dim() != weight.dim():
        _refuse_dimensions(input, weight)
    norm = Norm(bn_weight, bn_bias, running_mean, running_var, eps)
    group = sync_stats.resolved(process_group) if training else None
    moves = (stride, padding, dilation, groups)

    device = input.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight, bias = (cast_for_autocast(t, device, dtype) for t in (input, weight, bias))

    call = None
    if not (_is_compiling() or conv.transforming() or conv.tracing() or torch.jit.is_tracing()):
        call = _planned(input, weight, bias, moves, algo, precision, training)
    evaluating = not training and not _wants_gradient(input, weight, bias, norm, residual)
    if call is not None and evaluating and residual is None:
        # What is kept has been through the checks below.
        pair = _folded.kept(weight, bias, *norm.tensors, number=eps)
        if pair is not None:
            short = _Short(call, ending(end, residual_after), moves[:3])
            _remember(entry, key, short)
            return conv_epilogue(input, *pair, None, call, short.end)
    if call is not None and _fusible(input, norm, residual):
        _check_norm(norm, weight.shape[0], training)
        size = _output_size(call)
        added = None if residual is None else _broadcast(residual, size)
        if 0 not in size and (residual is None or added is not None):
            if training:
                _check_batch(size, group)
                step = Training(
                    call, end, residual_after, running_mean, running_var, momentum, eps, group,
                    recompute,
                )  # fmt: skip
                return conv_norm_act(input, weight, bias, bn_weight, bn_bias, added, step)
            if evaluating:
                w, b = folded(weight, bias, norm)
                short = _Short(call, ending(end, residual_after), moves[:3])
                if added is residual:
                    _remember(entry, key, short)
                return conv_epilogue(input, w, b, added, call, short.end)
    if group is not None:
        raise RuntimeError(
            "conv_bn_relu: synchronised statistics need tensors that fastconv's kernels take,"
            " outside of function transforms and of compiled graphs"
        )
    if _is_compiling() and not training and not conv.transforming():
        y = _recorded(
            input, weight, bias, norm, residual, moves, end, residual_after, algo, precision
        )
        if y is not None:
            return y

    def convolve(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return _CONV[w.dim()](x, w, b, *moves, algo=algo, precision=precision)

    return composed(
        input, weight, bias, bn_weight, bn_bias, residual, convolve, (running_mean, running_var),
        training, momentum, eps, end, residual_after,
    )  # fmt: skip


def _moves_key(stride: Any, padding: Any, dilation: Any, groups: Any) -> tuple[Any, ...]:
    """True and 1.0 equal 1 but are errors."""
    return (
        stride.__class__, tuple(stride) if stride.__class__ is list else stride,
        padding.__class__, tuple(padding) if padding.__class__ is list else padding,
        dilation.__class__, tuple(dilation) if dilation.__class__ is list else dilation,
        groups.__class__, groups,
    )  # fmt: skip


def _same_moves(known: tuple[Any, ...], stride: Any, padding: Any, dilation: Any) -> bool:
    """(True, 1) equals (1, 1), which stands in the key, but is an error."""
    return (
        (stride is known[0] or _all_int(stride))
        and (padding is known[1] or _all_int(padding))
        and (dilation is known[2] or _all_int(dilation))
    )


def _short_key(
    input: Tensor, residual: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: Any,
    activation: Any, negative_slope: Any, residual_after: Any, algo: Any, precision: Any,
) -> Any:  # fmt: skip
    """All that a call in evaluation rests on besides its folded weights; None: go the long way."""
    if negative_slope.__class__ is not float:
        return None
    try:
        key = (
            input.__class__, input.shape, input.stride(), input.dtype, input.device,
            *_moves_key(stride, padding, dilation, groups), activation, negative_slope,
            residual_after, algo, precision,
            None if residual is None else (
                residual.__class__, residual.shape, residual.dtype, residual.device, residual.layout
            ),
            gpu.tf32_allowed() if input.is_cuda else _threads(), select.generation,
        )  # fmt: skip
    except NO_KEY:
        return None
    return key


def _remember(entry: Entry | None, key: Any, short: _Short) -> None:
    if entry is not None and key is not None:
        entry.plans.remember(key, short)


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    for t in tensors:  # noqa: SIM110 (a generator costs as much as the rest)
        if t is not None and t.requires_grad:
            return True
    return False


def conv_epilogue_auto(
    input: Tensor, weight: Tensor, bias: Tensor, activation: Activation, algo: str = "auto"
) -> Tensor | None:
    """act(conv(input, weight) + bias) with stride 1 and no padding, by the algorithm that is
    chosen, without a gradient; None where our kernels do not take it."""
    if conv.transforming() or conv.tracing() or torch.is_autocast_enabled(input.device.type):
        return None
    call = _planned(input, weight, bias, (1, 0, 1, 1), algo, None)
    if call is None or 0 in _output_size(call):
        return None
    return conv_epilogue(input, weight, bias, None, call, ending(activation, False))


def _recorded(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    residual: Tensor | None,
    moves: tuple,
    end: Activation,
    residual_after: bool,
    algo: str,
    precision: str | None,
) -> Tensor | None:
    """Evaluation inside a graph, as one op after the folding; None where it has to be composed."""
    if _wants_gradient(input, weight, bias, norm, residual) or refusal(input, weight, bias):
        return None
    evaluates = norm.running_mean is not None and norm.running_var is not None
    if not (evaluates or norm is NO_NORM) or not _fusible(input, norm, residual):
        return None
    numbers = geometry_of(weight.dim() - 2, weight, *moves)
    if numbers is None or numbers[1] is not None or weight.shape[1] == 0:
        return None
    geometry = numbers[0]
    size = conv_output_size(input.shape, weight.shape, *geometry[:3])
    if residual is not None and list(residual.shape) != size:
        return None
    w, b = (weight, bias) if norm is NO_NORM else fold(weight, bias, norm)
    request = select.with_precision(algo, precision)
    ending_ = ending(end, residual_after)
    return torch.ops.fastconv.conv_act(input, w, b, residual, *geometry, *ending_, request)


def _refuse_dimensions(input: Tensor, weight: Tensor) -> None:
    if weight.dim() in _CONV and input.dim() != weight.dim() - 1:
        _CONV[weight.dim()](input, weight)  # raises
    expected = "2D or 3D" if weight.dim() == 3 else f"{weight.dim()}D"
    raise ValueError(f"expected {expected} input (got {input.dim()}D input)")


def _planned(
    input: Tensor, weight: Tensor, bias: Tensor | None, moves: tuple, algo: str,
    precision: str | None, training: bool = False,
) -> Call | None:  # fmt: skip
    """The convolution's call, remembered; None where our kernels do not take it."""
    key = (
        input.shape, input.stride(), input.dtype, input.device, weight.shape, weight.stride(),
        weight.dtype, None if bias is None else (bias.shape, bias.dtype, bias.device),
        *_moves_key(*moves), algo, precision, training, input.__class__, weight.__class__,
        gpu.tf32_allowed() if input.is_cuda else _threads(),
    )  # fmt: skip
    found = _plans.get(key)
    if found is not None and _same_moves(found[1], *moves[:3]):
        return found[0]
    check_options(algo, precision)
    rank = weight.dim() - 2
    if refusal(input, weight, bias) or foreign_dispatch(input, weight, bias):
        return None
    numbers = geometry_of(rank, weight, *moves)
    if numbers is None or numbers[1] is not None:  # an odd 'same' pads first: composed
        return None
    geometry = numbers[0]
    if not fits(rank, (input, weight, bias, *moves), geometry, None):
        return None
    call = call_for(
        "fprop", input, input.shape, weight.shape, *geometry, is_channels_last(input, weight),
        select.with_precision(algo, precision), (input.detach(), weight.detach(), bias),
        "statistics" if training else "epilogue",
    )  # fmt: skip
    if not admitted(call, input):
        return None
    _plans.remember(key, (call, moves[:3]))
    return call


def _fusible(input: Tensor, norm: Norm, residual: Tensor | None) -> bool:
    """Whether the remaining tensors are such that the kernels take them."""
    allowed = (input.dtype, statistics_type(input.dtype))
    for t in norm.tensors:
        if t is not None and (t.dtype not in allowed or t.device != input.device):
            return False
    return residual is None or (
        residual.dtype == input.dtype
        and residual.device == input.device
        and residual.layout == torch.strided
    )


def _check_norm(norm: Norm, K: int, training: bool) -> None:
    if not training and (norm.running_mean is None or norm.running_var is None):
        # PyTorch's text
        F.batch_norm(torch.empty(2, 1, device="meta"), None, None, None, None, False)
    for name, t in zip(("weight", "bias", "running_mean", "running_var"), norm, strict=False):
        if t is not None and t.numel() != K:
            raise RuntimeError(f"{name} should contain {K} elements not {t.numel()}")


def _check_batch(size: tuple[int, ...], group: Any) -> None:
    values = size[0]
    for extent in size[2:]:
        values *= extent
    if values == 1 and group is None:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size"
            f" {torch.Size(size)}"
        )


def _output_size(call: Call) -> tuple[int, ...]:
    return tuple(conv_output_size(call.input_size, call.weight_size, *call.geometry[:3]))


def _broadcast(residual: Tensor, size: tuple[int, ...]) -> Tensor | None:
    """The residual in the result's shape; None where the sum would have another."""
    if tuple(residual.shape) == size:
        return residual
    try:
        return residual.expand(size)
    except RuntimeError:
        return None


def _wants_gradient(input, weight, bias, norm: Norm, residual) -> bool:
    return _grad_enabled() and _any_requires_grad(
        input, weight, bias, norm.weight, norm.bias, residual
    )


def fold(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that has the normalisation of evaluation in it.

    Worked out in float32 (float64 for float64), stored in weight's dtype. Differentiable.
    """
    kind = statistics_type(weight.dtype)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.to(kind) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(kind)
    shift = -norm.running_mean.to(kind) if bias is None else bias.to(kind) - norm.running_mean
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(kind)
    w = weight.to(kind) * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return w.to(weight.dtype), shift.to(weight.dtype)


def _fold(weight, bias, bn_weight, bn_bias, mean, var, eps=0.0):
    return fold(weight, bias, Norm(bn_weight, bn_bias, mean, var, eps))


_folded = Derived(_fold)


def folded(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """`fold`, kept until one of its sources changes."""
    return _folded(weight, bias, *norm.tensors, number=norm.eps)


def folded_layers(
    conv: torch.nn.Module, norm: torch.nn.Module | None, input: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Weight and bias that amount to both layers, for this input.

    None where there are none: the normalisation takes the batch's statistics, a gradient is wanted,
    which folded weights do not carry, or a graph is being traced.
    """
    w, b = conv.weight, conv.bias
    if norm is None:
        return w, torch.zeros(w.shape[0], dtype=w.dtype, device=w.device) if b is None else b
    if norm.training or norm.running_mean is None or _is_compiling():
        return None
    values = Norm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    return None if _wants_gradient(input, w, b, values, None) else folded(w, b, values)


def forget_folded() -> None:
    """Drops every folded weight: for parameters that were changed through `.data`."""
    _folded.forget()
