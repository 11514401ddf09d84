"""The public convolutions, with torch.nn.functional's signatures, semantics and error texts.

A call looks up one remembered plan by everything that the decision rests on; only a miss validates
in full. What our kernels do not take is given to PyTorch's own function, which computes it or
raises its own error; so the texts are PyTorch's by construction.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastconv import select
from fastconv.ops import conv
from fastconv.ops.conv_autograd import Fprop
from fastconv.ops.conv_library import cast_for_autocast
from fastconv.ops.conv_run import run_fprop
from fastconv.problem import NATIVE_DTYPES, ConvSpec, is_channels_last

PRECISIONS = (None, "ieee", "tf32", "tf32x3")

_TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_PLAN_LIMIT = 4096
_plans: dict[Any, _Plan] = select.forget_with({})

_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_any_autocast = torch._C._is_any_autocast_enabled
_grad_enabled = torch.is_grad_enabled
_threads = torch.get_num_threads
# Function.apply without its Python part, which looks for functorch; that is ruled out before.
_apply_fprop = super(torch.autograd.Function, Fprop).apply


class _Plan:
    """What one kind of call does.

    name: the algorithm of the forward pass. aten_dx, aten_dw: whether PyTorch's own gradient would
    be chosen. pad: F.pad's argument for the asymmetric part of padding='same', else None.
    """

    __slots__ = (
        "algo",
        "aten_dw",
        "aten_dx",
        "channels_last",
        "defaults",
        "geometry",
        "name",
        "pad",
        "plain",
        "unbatched",
    )

    def __init__(self, name, algo, geometry=None, pad=None, unbatched=False):
        self.name, self.algo, self.geometry = name, algo, geometry
        self.pad, self.unbatched = pad, unbatched
        self.plain = pad is None and not unbatched
        self.aten_dx = self.aten_dw = name == select.ATEN
        self.channels_last = False
        self.defaults = False


def _as_int(value: Any) -> Any:
    """An int or SymInt of what PyTorch accepts as one; None for anything else (also True)."""
    if isinstance(value, (int, torch.SymInt)):
        return None if isinstance(value, bool) else value
    try:
        return operator.index(value)  # NumPy's integers
    except (TypeError, ValueError, RuntimeError):
        return None


def _as_ints(value: Any, rank: int) -> tuple[Any, ...] | None:
    """One entry per axis of an int or a list as PyTorch accepts them; None where it may not."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) == 1:
        values = values * rank
    ints = tuple(_as_int(v) for v in values)
    return None if len(ints) != rank or None in ints else ints


def arguments(
    rank: int, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[conv.Geometry, list[int] | None] | None:
    """The geometry with numeric padding, and F.pad's argument; None when PyTorch must decide."""
    strides, dilations = _as_ints(stride, rank), _as_ints(dilation, rank)
    if strides is None or dilations is None or weight.dim() != rank + 2:
        return None
    groups = _as_int(groups)
    if groups is None:
        return None
    pad = None
    if isinstance(padding, str):
        if padding == "valid":
            paddings: tuple[Any, ...] | None = (0,) * rank
        elif padding == "same" and all(s == 1 for s in strides):
            totals = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
            paddings = tuple(t // 2 for t in totals)
            if any(t % 2 for t in totals):  # PyTorch puts the odd zero behind
                pad = [side for t in reversed(totals) for side in (0, t % 2)]
        else:
            return None
    else:
        paddings = _as_ints(padding, rank)
    if paddings is None:
        return None
    return conv.Geometry(strides, paddings, dilations, groups), pad


def check_with_torch(rank: int, args: tuple[Any, ...]) -> None:
    """Raises PyTorch's error on bad arguments; good ones are not computed."""
    shapes = [t.detach().to("meta") if isinstance(t, Tensor) else t for t in args[:3]]
    try:
        _TORCH[rank](*shapes, *args[3:])
    except (RuntimeError, TypeError):
        with torch.no_grad():
            _TORCH[rank](*args)  # the device's own text is more telling than that for shapes


def _fits(rank: int, args: tuple[Any, ...], geometry: conv.Geometry, pad: Any) -> bool:
    """Whether PyTorch accepts these shapes."""
    input, weight, bias = args[:3]
    x_size, w_size = tuple(input.shape), tuple(weight.shape)
    if 0 in x_size or 0 in w_size:  # the rules are intricate there, and nothing is computed
        try:
            with torch.no_grad():
                _TORCH[rank](*args)
        except (RuntimeError, TypeError):
            return False
        return True
    if len(x_size) == rank + 1:
        x_size = (1, *x_size)
    if len(x_size) != rank + 2 or geometry.groups < 1:
        return False
    if w_size[0] % geometry.groups or x_size[1] != w_size[1] * geometry.groups:
        return False
    if bias is not None and tuple(bias.shape) != (w_size[0],):
        return False
    for axis in range(rank):
        extra = pad[2 * (rank - 1 - axis) + 1] if pad else 0
        stride, padding, dilation = (values[axis] for values in geometry[:3])
        if stride < 1 or padding < 0 or dilation < 1:
            return False
        if x_size[2 + axis] + 2 * padding + extra < dilation * (w_size[2 + axis] - 1) + 1:
            return False
    return True


def refusal(input: Any, weight: Any, bias: Any) -> str | None:
    """Why our kernels cannot take these tensors whatever their shapes; None if they can."""
    tensors = [input, weight] if bias is None else [input, weight, bias]
    for t in tensors:
        if not isinstance(t, Tensor):
            return f"expected tensors, got {type(t).__name__}"
        if t.layout != torch.strided or t.is_nested:
            return f"a tensor has layout {t.layout}; only dense strided tensors are supported"
        if t.device.type != "cpu":
            return f"runs on the CPU, a tensor is on {t.device}"
        if t.dtype not in NATIVE_DTYPES:
            return (
                "dtype must be float32, float64, bfloat16 or float16, got"
                f" {str(t.dtype).removeprefix('torch.')}"
            )
        if t.dtype != input.dtype:
            return f"tensors differ in dtype: {input.dtype} and {t.dtype}"
        if t.is_quantized:
            return "quantised tensors are not supported"
    return None


def _foreign_dispatch(*tensors: Tensor | None) -> str | None:
    """A subclass that implements PyTorch's operators itself knows nothing of ours."""
    for t in tensors:
        cls = type(t)
        if t is None or cls in (Tensor, torch.nn.Parameter) or conv.is_fake(t):
            continue
        if cls.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:
            return f"a tensor is a {cls.__name__}, which implements PyTorch's operators itself"
    return None


_OPTIONAL = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _call_torch(rank: int, args: tuple[Any, ...], algo: str, reason: str | None) -> Tensor:
    """PyTorch's own function, for what is not ours: it computes, or raises its own error."""
    # Its texts list what it was given: leave out what stands at its default, name the rest.
    given = {
        name: value
        for (name, default), value in zip(_OPTIONAL.items(), args[2:], strict=True)
        if value is not default
    }
    y = _TORCH[rank](*args[:2], **given)
    if algo in (select.AUTO, select.ATEN):
        return y
    raise RuntimeError(f"conv{rank}d: algorithm {algo!r} does not apply: {reason}")


def check_options(algo: Any, precision: Any) -> None:
    if not isinstance(algo, str):
        raise ValueError(f"algo must be a string, got {algo!r}")
    select.check_name(algo)
    if precision not in PRECISIONS:
        known = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision must be one of {known}, got {precision!r}")


def _make_plan(
    rank: int, args: tuple[Any, ...], algo: str
) -> tuple[_Plan | None, str | None, Tensor | None]:
    """A plan for these arguments; or the reason why not."""
    input, weight, bias, stride, padding, dilation, groups = args
    reason = refusal(input, weight, bias) or _foreign_dispatch(input, weight, bias)
    if reason is not None:
        return None, reason
    numbers = arguments(rank, weight, stride, padding, dilation, groups)
    if numbers is None:
        return None, "the arguments are not integers, one per axis"
    geometry, pad = numbers
    if not _fits(rank, args, geometry, pad):
        return None, "the shapes do not fit together"
    x = input if input.dim() == rank + 2 else input.unsqueeze(0)
    plan = _Plan("", algo, geometry, pad, x is not input)
    if pad is not None:
        x = F.pad(x, pad)
    plan.channels_last = is_channels_last(x, weight)
    spec = ConvSpec(
        "fprop",
        "cpu",
        input.dtype,
        tuple(x.shape),
        tuple(weight.shape),
        *geometry,
        plan.channels_last,
    )
    real = not any(conv.is_fake(t) for t in (input, weight, bias))
    plan.name = select.resolve(spec, algo, (x.detach(), weight.detach(), bias) if real else None)

    def aten(direction: str) -> bool:
        toward = spec.toward(direction)
        if algo == select.AUTO and not select.settled(toward):
            return False  # measured in the backward pass, on the real gradient
        return select.resolve(toward, conv.inherited(algo)) == select.ATEN

    plan.aten_dx, plan.aten_dw = aten("dgrad"), aten("wgrad")
    return plan, None


def _plan_or_torch(
    rank: int, key: Any, args: tuple[Any, ...], algo: str, precision: str | None
) -> tuple[_Plan | None, Tensor | None]:
    """The slow path of a call: a new plan, or the result where PyTorch has to compute it."""
    check_options(algo, precision)
    plan, reason = _make_plan(rank, args, algo)
    y = None
    if plan is None:
        y = _call_torch(rank, args, algo, reason)
        plan = _Plan(select.ATEN, algo)  # PyTorch accepts this kind of call
    plan.defaults = args[3:] == (1, 0, 1, 1)
    if key is not None:
        if len(_plans) >= _PLAN_LIMIT:
            _plans.clear()
        _plans[key] = plan
    return plan, y


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
) -> Tensor:
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            _PUBLIC[rank], (input, weight, bias), input, weight, bias, stride, padding, dilation,
            groups, algo=algo, precision=precision,
        )  # fmt: skip
    if (
        _is_compiling()
        or _transforms_active()
        or forward_ad._current_level >= 0
        or _dispatch_modes()
        or _any_autocast()
    ):
        args = (input, weight, bias, stride, padding, dilation, groups)
        return _conv_special(rank, args, algo, precision)
    return _conv_eager(
        rank, input, weight, bias, stride, padding, dilation, groups, algo, precision
    )


def _conv_eager(rank, input, weight, bias, stride, padding, dilation, groups, algo, precision):
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
            _threads(),
        )
        plan = _plans.get(key)
    except (TypeError, AttributeError, RuntimeError, NotImplementedError):
        key = plan = None  # no tensors, no strides, or sizes that are not numbers yet
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
    if plan.name == "aten" and (
        not grad
        or (
            (plan.aten_dx or not input.requires_grad) and (plan.aten_dw or not weight.requires_grad)
        )
    ):
        if plan.defaults:  # parsing the rest takes PyTorch a microsecond
            return _TORCH[rank](input, weight, bias)
        return _TORCH[rank](input, weight, bias, stride, padding, dilation, groups)
    if plan.plain:
        x = input
    else:
        x = input.unsqueeze(0) if plan.unbatched else input
        if plan.pad is not None:
            x = F.pad(x, plan.pad)
    if grad:
        y = _apply_fprop(x, weight, bias, plan.geometry, plan.algo, plan.name, plan.channels_last)
    else:
        y = run_fprop(x, weight, bias, *plan.geometry, plan.name)
    return y.squeeze(0) if plan.unbatched else y


def _conv_special(rank: int, args: tuple[Any, ...], algo: str, precision: str | None) -> Tensor:
    """Calls under autocast, functorch, forward-mode AD, dispatch modes, or while being traced."""
    check_options(algo, precision)
    input, weight, bias, *rest = args
    traced = conv.tracing() or conv.is_fake(input)
    if isinstance(input, Tensor) and isinstance(weight, Tensor):
        device = input.device.type
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            input, weight, bias = (
                cast_for_autocast(t, device, dtype) for t in (input, weight, bias)
            )
            args = (input, weight, bias, *rest)
        if not traced and not conv.transforming():
            return _conv_eager(rank, *args, algo, precision)
    if algo == select.ATEN:
        return _TORCH[rank](*args)
    if _is_compiling() and conv.transforming():
        # A traced op has one backward and no forward-mode rule: tangents would be dropped silently.
        transforms = "functorch transforms inside a compiled function are computed by PyTorch"
        return _call_torch(rank, args, algo, transforms)
    reason = refusal(input, weight, bias)
    if reason is None and not traced:
        reason = _foreign_dispatch(input, weight, bias)
    numbers = None if reason else arguments(rank, weight, *rest)
    if numbers is None:
        return _call_torch(rank, args, algo, reason)
    geometry, pad = numbers
    if not traced and not _fits(rank, args, geometry, pad):
        return _call_torch(rank, args, algo, "the shapes do not fit together")
    if input.dim() not in (rank + 1, rank + 2):
        return _call_torch(rank, args, algo, reason)
    unbatched = input.dim() == rank + 1
    x = input.unsqueeze(0) if unbatched else input
    if pad is not None:
        x = F.pad(x, pad)
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
        precision: None, "ieee", "tf32" or "tf32x3": how float32 products are rounded on devices
            that have a choice. The CPU always computes in IEEE arithmetic.

    Returns:
        (N, K, {out}) or (K, {out}); channels_last if input or weight is.

    float32, float64, bfloat16 and float16 run on our kernels (16-bit accumulates in float32); under
    "auto", other dtypes, devices and tensor types go to PyTorch. Differentiable to any order, also
    in forward mode. Our algorithms return the same bits for the same input.

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
