"""The public convolutions, with torch.nn.functional's signatures, semantics and error texts.

A call looks up one remembered plan by everything that the decision rests on; only a miss validates
in full. What our kernels do not take is given to PyTorch's own function, which computes it or
raises its own error; so the texts are PyTorch's by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastconv import gpu, select
from fastconv.arguments import (
    TORCH,
    call_torch,
    check_options,
    fits,
    foreign_dispatch,
    geometry_of,
    refusal,
)
from fastconv.ops import conv
from fastconv.ops.conv_autograd import Fprop
from fastconv.ops.conv_call import Call, inherited
from fastconv.ops.conv_library import cast_for_autocast
from fastconv.ops.conv_run import run_fprop
from fastconv.plans import NO_KEY, Plans
from fastconv.problem import ConvSpec, is_channels_last

_plans: Plans = select.forget_with(Plans())

_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_autocast = torch._C._is_any_autocast_enabled
_jit_tracing = torch._C._get_tracing_state
_grad_enabled = torch.is_grad_enabled
_threads = torch.get_num_threads
# Function.apply without its Python part, which looks for functorch; that is ruled out before.
_apply_fprop = super(torch.autograd.Function, Fprop).apply


class _Plan:
    """What one kind of call does.

    call: the forward pass (None where it is PyTorch's). aten_dx, aten_dw: whether PyTorch's own
    gradient would be chosen. pad: F.pad's argument for the asymmetric part of padding='same', else
    None. stride, padding, dilation: the very objects that were checked.
    """

    __slots__ = (
        "aten",
        "aten_dw",
        "aten_dx",
        "call",
        "defaults",
        "dilation",
        "pad",
        "padding",
        "plain",
        "stride",
        "unbatched",
    )

    def __init__(self, call: Call | None, pad=None, unbatched=False):
        self.call, self.pad, self.unbatched = call, pad, unbatched
        self.aten = self.aten_dx = self.aten_dw = call is None or call.name == select.ATEN
        self.plain = pad is None and not unbatched
        self.defaults = False
        self.stride = self.padding = self.dilation = None


def _make_plan(
    rank: int, args: tuple[Any, ...], algo: str
) -> tuple[_Plan | None, str | None, Tensor | None]:
    """A plan for these arguments; or the reason why not."""
    input, weight, bias, stride, padding, dilation, groups = args
    reason = refusal(input, weight, bias) or foreign_dispatch(input, weight, bias)
    if reason is not None:
        return None, reason
    numbers = geometry_of(rank, weight, stride, padding, dilation, groups)
    if numbers is None:
        return None, "the arguments are not integers, one per axis"
    geometry, pad = numbers
    if not fits(rank, args, geometry, pad):
        return None, "the shapes do not fit together"
    x = input if input.dim() == rank + 2 else input.unsqueeze(0)
    device = gpu.device_key(input.device)
    unbatched = x is not input
    if pad is not None:
        x = F.pad(x, pad)
    channels_last = is_channels_last(x, weight)
    spec = ConvSpec(
        "fprop",
        device,
        input.dtype,
        tuple(x.shape),
        tuple(weight.shape),
        *geometry,
        channels_last,
        select.products_for(device, input.dtype, algo),
    )
    real = not any(conv.is_fake(t) for t in (input, weight, bias))
    name = select.resolve(spec, algo, (x.detach(), weight.detach(), bias) if real else None)
    call = Call("fprop", name, algo, geometry, channels_last, x.shape, weight.shape)
    plan = _Plan(call, pad, unbatched)

    def aten(direction: str) -> bool:
        toward = spec.toward(direction)
        if select.split_precision(algo)[0] == select.AUTO and not select.settled(toward):
            return False  # measured in the backward pass, on the real gradient
        return select.resolve(toward, inherited(algo)) == select.ATEN

    plan.aten_dx, plan.aten_dw = aten("dgrad"), aten("wgrad")
    return plan, None


def _plan_or_torch(
    rank: int, key: Any, args: tuple[Any, ...], algo: str, precision: str | None
) -> tuple[_Plan | None, Tensor | None]:
    """The slow path of a call: a new plan, or the result where PyTorch has to compute it."""
    check_options(algo, precision)
    plan, reason = _make_plan(rank, args, select.with_precision(algo, precision))
    y = None
    if plan is None:
        y = call_torch(rank, args, algo, reason)
        plan = _Plan(None)  # PyTorch accepts this kind of call
    plan.defaults = args[3:] == (1, 0, 1, 1)
    plan.stride, plan.padding, plan.dilation = args[3:6]
    if key is not None:
        _plans.remember(key, plan)
    return plan, y


def _all_int(value: Any) -> bool:
    """Whether a list has no True or 1.0 in it, which equal the numbers of a remembered plan."""
    return value.__class__ not in (tuple, list) or all(v.__class__ is int for v in value)


# One long function: a frame of ten arguments costs a tenth of a small convolution.
def _conv(
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    algo: str,
    precision: str | None,
    ordinary: bool = False,
) -> Tensor:
    """ordinary: the caller has ruled out that anything records or transforms this call."""
    if not ordinary:
        if has_torch_function_variadic(input, weight, bias):
            return handle_torch_function(
                _PUBLIC[rank], (input, weight, bias), input, weight, bias, stride, padding,
                dilation, groups, algo=algo, precision=precision,
            )  # fmt: skip
        if (
            _is_compiling()
            or _transforms_active()
            or forward_ad._current_level >= 0
            or _dispatch_modes()
            or _any_autocast()
            or _jit_tracing() is not None
        ):
            args = (input, weight, bias, stride, padding, dilation, groups)
            return _conv_special(rank, args, algo, precision)
    try:
        key = (
            rank,
            input.__class__,
            input.shape,
            input.stride(),
            input.dtype,
            input.device,
            weight.__class__,
            weight.shape,
            weight.stride(),
            weight.dtype,
            weight.device,
            None if bias is None else (bias.__class__, bias.shape, bias.dtype, bias.device),
            # True and 1.0 equal 1 but are errors.
            stride.__class__,
            tuple(stride) if stride.__class__ is list else stride,
            padding.__class__,
            tuple(padding) if padding.__class__ is list else padding,
            dilation.__class__,
            tuple(dilation) if dilation.__class__ is list else dilation,
            groups.__class__,
            groups,
            algo,
            precision,
            gpu.tf32_allowed() if input.is_cuda else _threads(),
        )
        plan = _plans.get(key)
        if plan is not None:
            # (True, 1) equals (1, 1), which stands in the key, but is an error.
            if stride is not plan.stride:
                plan = plan if _all_int(stride) else None
            if padding is not plan.padding:
                plan = plan if _all_int(padding) else None
            if dilation is not plan.dilation:
                plan = plan if _all_int(dilation) else None
    except NO_KEY:
        key = plan = None
    if plan is None:
        args = (input, weight, bias, stride, padding, dilation, groups)
        if key is None and conv.is_fake(input):
            return _conv_special(rank, args, algo, precision)
        plan, y = _plan_or_torch(rank, key, args, algo, precision)
        if y is not None:
            return y
    grad = _grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if plan.aten and (
        not grad
        or (
            (plan.aten_dx or not input.requires_grad) and (plan.aten_dw or not weight.requires_grad)
        )
    ):
        if plan.defaults:  # parsing the rest takes PyTorch a microsecond
            return TORCH[rank](input, weight, bias)
        return TORCH[rank](input, weight, bias, stride, padding, dilation, groups)
    if plan.plain:
        x = input
    else:
        x = input.unsqueeze(0) if plan.unbatched else input
        if plan.pad is not None:
            x = F.pad(x, plan.pad)
    if grad:
        y = _apply_fprop(x, weight, bias, plan.call)
    else:
        call = plan.call
        y = run_fprop(x, weight, bias, *call.geometry, call.name, call.packed)
    return y.squeeze(0) if plan.unbatched else y


@contextmanager
def _plain_sizes() -> Iterator[None]:
    """While torch.jit.trace records, sizes are tensors whose use would be recorded; not in here."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


def _conv_special(rank: int, args: tuple[Any, ...], algo: str, precision: str | None) -> Tensor:
    """Calls under autocast, functorch, forward-mode AD, dispatch modes, or while being traced."""
    check_options(algo, precision)
    input, weight, bias, *rest = args
    recording = _jit_tracing() is not None
    traced = conv.tracing() or conv.is_fake(input) or recording
    if isinstance(input, Tensor) and isinstance(weight, Tensor):
        device = input.device.type
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            input, weight, bias = (
                cast_for_autocast(t, device, dtype) for t in (input, weight, bias)
            )
            args = (input, weight, bias, *rest)
        if not traced and not conv.transforming():
            return _conv(rank, *args, algo, precision, True)
    if algo == select.ATEN:
        return TORCH[rank](*args)
    if _is_compiling() and conv.transforming():
        # A traced op has one backward and no forward-mode rule: tangents would be dropped silently.
        transforms = "functorch transforms inside a compiled function are computed by PyTorch"
        return call_torch(rank, args, algo, transforms)
    with _plain_sizes() if recording else nullcontext():
        reason = refusal(input, weight, bias)
        if reason is None and (recording or not traced):
            reason = foreign_dispatch(input, weight, bias)
        numbers = None if reason else geometry_of(rank, weight, *rest)
        fitting = numbers is None or (traced and not recording) or fits(rank, args, *numbers)
    if numbers is None:
        return call_torch(rank, args, algo, reason)
    geometry, pad = numbers
    if not fitting:
        return call_torch(rank, args, algo, "the shapes do not fit together")
    if input.dim() not in (rank + 1, rank + 2):
        return call_torch(rank, args, algo, reason)
    unbatched = input.dim() == rank + 1
    x = input.unsqueeze(0) if unbatched else input
    if pad is not None:
        x = F.pad(x, pad)
    algo = select.with_precision(algo, precision)
    if traced and not (conv.transforming() and not _is_compiling()):
        y = torch.ops.fastconv.conv(x, weight, bias, *geometry, algo)
    else:
        y = conv.conv_fprop(x, weight, bias, *geometry, algo)
    return y.squeeze(0) if unbatched else y


_DOC = """{rank}-D convolution; torch.nn.functional.conv{rank}d with a choice of algorithm.

    Args:
        input: (N, C, {axes}) or, unbatched, (C, {axes}); any strides.
        weight: (K, C/groups, {kernel}), input's dtype.
        bias: (K,) or None.
        stride, dilation: an int or one per axis.
        padding: an int, one per axis, 'valid' or 'same' (an odd total puts its extra zero behind).
        groups: divides C and K.
        algo: "auto" (the measured winner if autotuning has recorded one, else the lowest estimated
            cost, PyTorch's own convolution included), or a name of `fastconv.select.names()`. A
            named algorithm is also used for the gradients where it applies to them, else "auto".
        precision: how float32 products are rounded on CUDA devices: "ieee", "tf32" (operands keep
            10 bits of mantissa), "tf32x3" (operands are split into two such parts and multiplied
            three times on tensor cores: about as accurate as "ieee"; infinities give NaN), or None
            for what torch.backends.cudnn.allow_tf32 says. The CPU always
            computes in IEEE arithmetic.

    Returns:
        (N, K, {out}) or (K, {out}); channels_last if input or weight is.

    float32, float64, bfloat16 and float16 run on our kernels (16-bit accumulates in float32), on
    the CPU and on CUDA devices; under "auto", other dtypes, devices and tensor types go to PyTorch.
    Differentiable to any order, also in forward mode. Our algorithms return the same bits for the
    same input.

    Raises:
        RuntimeError, TypeError: as torch.nn.functional.conv{rank}d, in its words; or the named
            algorithm does not apply (with the reason).
        ValueError: unknown `algo` or `precision`.
    """


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    algo: str = "auto",
    precision: str | None = None,
) -> Tensor:
    return _conv(1, input, weight, bias, stride, padding, dilation, groups, algo, precision)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    algo: str = "auto",
    precision: str | None = None,
) -> Tensor:
    return _conv(2, input, weight, bias, stride, padding, dilation, groups, algo, precision)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    algo: str = "auto",
    precision: str | None = None,
) -> Tensor:
    return _conv(3, input, weight, bias, stride, padding, dilation, groups, algo, precision)


_PUBLIC = {1: conv1d, 2: conv2d, 3: conv3d}
for _rank, _axes, _kernel, _out in ((1, "W", "S", "Q"), (2, "H, W", "R, S", "P, Q"),
                                    (3, "D, H, W", "T, R, S", "O, P, Q")):  # fmt: skip
    _PUBLIC[_rank].__doc__ = _DOC.format(rank=_rank, axes=_axes, kernel=_kernel, out=_out)
