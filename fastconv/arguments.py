"""What the arguments of a call say, and whether our kernels can take them.

What they do not take is given to PyTorch's own function, which computes it or raises its own error;
so the texts are PyTorch's by construction.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv import gpu, select
from fastconv.ops import conv
from fastconv.ops.conv_call import Geometry
from fastconv.problem import NATIVE_DTYPES

PRECISIONS = (None, "ieee", "tf32", "tf32x3")

TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _as_int(value: Any) -> Any:
    """An int or SymInt of what PyTorch accepts as one; None for anything else (also True)."""
    if isinstance(value, (int, torch.SymInt)):
        return None if isinstance(value, bool) else value
    try:
        return operator.index(value)  # NumPy's integers
    except (TypeError, ValueError, RuntimeError):
        return None


def constant_in_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function whose answer torch.compile takes as it stands.

    What torch.compiler.assume_constant_result does, without its import of the whole compiler, for
    which everybody who imports this package would wait.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def as_ints(value: Any, rank: int) -> tuple[Any, ...] | None:
    """One entry per axis of an int or a list as PyTorch accepts them; None where it may not."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) == 1:
        values = values * rank
    ints = tuple(_as_int(v) for v in values)
    return None if len(ints) != rank or None in ints else ints


def geometry_of(
    rank: int, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[Geometry, list[int] | None] | None:
    """The geometry with numeric padding, and F.pad's argument; None when PyTorch must decide."""
    strides, dilations = as_ints(stride, rank), as_ints(dilation, rank)
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
        paddings = as_ints(padding, rank)
    if paddings is None:
        return None
    return Geometry(strides, paddings, dilations, groups), pad


def check_with_torch(rank: int, args: tuple[Any, ...]) -> None:
    """Raises PyTorch's error on bad arguments; good ones are not computed."""
    shapes = [t.detach().to("meta") if isinstance(t, Tensor) else t for t in args[:3]]
    try:
        TORCH[rank](*shapes, *args[3:])
    except (RuntimeError, TypeError):
        with torch.no_grad():
            TORCH[rank](*args)  # the device's own text is more telling than that for shapes


def fits(rank: int, args: tuple[Any, ...], geometry: Geometry, pad: Any) -> bool:
    """Whether PyTorch accepts these shapes."""
    input, weight, bias = args[:3]
    x_size, w_size = tuple(input.shape), tuple(weight.shape)
    if 0 in x_size or 0 in w_size:  # the rules are intricate there, and nothing is computed
        try:
            with torch.no_grad():
                TORCH[rank](*args)
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
        if t.device != input.device:
            return f"tensors are on different devices: {input.device} and {t.device}"
        if t.device.type != "cpu":
            reason = gpu.refusal(gpu.device_key(t.device))
            if reason is not None:
                return reason
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


def foreign_dispatch(*tensors: Tensor | None) -> str | None:
    """A subclass that implements PyTorch's operators itself knows nothing of ours."""
    for t in tensors:
        cls = type(t)
        if t is None or cls in (Tensor, torch.nn.Parameter) or conv.is_fake(t):
            continue
        if cls.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:
            return f"a tensor is a {cls.__name__}, which implements PyTorch's operators itself"
    return None


_OPTIONAL = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def call_torch(rank: int, args: tuple[Any, ...], algo: str, reason: str | None) -> Tensor:
    """PyTorch's own function, for what is not ours: it computes, or raises its own error."""
    # Its texts list what it was given: leave out what stands at its default, name the rest.
    given = {
        name: value
        for (name, default), value in zip(_OPTIONAL.items(), args[2:], strict=True)
        if value is not default
    }
    y = TORCH[rank](*args[:2], **given)
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
