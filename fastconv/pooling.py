"""Max, average, sum, power-average and L2 pooling, with torch.nn.functional's signatures,
semantics and error texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastconv.ops import pool
from fastconv.ops.pool import Windows
from fastconv.pooling_call import (
    IntOrInts,
    as_autocast,
    batched,
    kept,
    like,
    picked,
    widened,
    windows_of,
    without_autocast,
)
from fastconv.pooling_plans import lp_plan, max_plan, recalled, remember, run, sum_plan
from fastconv.select_pool import ATEN, KINDS, PoolCall, choose, insist

_TORCH: dict[str, tuple[Callable[..., Any], ...]] = {
    "max_pool": (F.max_pool1d, F.max_pool2d, F.max_pool3d),
    "avg_pool": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    "lp_pool": (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d),
}
_NAMES = {name: [f"{name}{rank}d" for rank in (1, 2, 3)] for name in _TORCH}


def _call(kind: str, rank: int, input: Tensor, integers: bool = False) -> PoolCall:
    return PoolCall(KINDS[kind], _NAMES[kind][rank - 1], rank, input, integers)


def _fitting(
    input: Tensor, rank: int, kernel: Any, stride: Any, padding: Any, ceil_mode: Any
) -> Windows | None:
    """`windows_of` averages; in 3-D PyTorch refuses windows larger than the input, even padded."""
    windows = windows_of(input, rank, kernel, stride, padding, 1, ceil_mode)
    if windows is None or rank < 3:
        return windows
    fits = all(n >= k for n, k in zip(input.shape[-3:], windows.kernel, strict=True))
    return windows if fits else None


def _max(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
    algo: str,
) -> Any:
    args = (input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if has_torch_function_unary(input):
        return handle_torch_function(_MAX[rank - 1], (input,), *args, algo=algo)
    key = ("max", rank, input, args[1:5], args[5:], algo)
    plan = recalled(*key)
    if plan is not None:
        return run(plan, input, rank)
    input = as_autocast(input, "max_pool", rank, bool(return_indices))
    # PyTorch's 1-D maximum of integers exists with indices only.
    call = _call("max_pool", rank, input, rank > 1 or bool(return_indices))
    name = choose(call, algo)
    windows = None
    if name != ATEN and isinstance(return_indices, bool):
        windows = windows_of(input, rank, *args[1:6])
    if windows is None:
        y = _TORCH["max_pool"][rank - 1](input, *args[1:])
        insist(call, algo)
        return y
    if not return_indices:
        remember(*key, name, lambda x, rank: max_plan(x, rank, windows))
    index_kind = kept(input, windows, return_indices)
    y, index = pool.max_pool(batched(input, rank), windows, index_kind, name)
    return picked(y, index, input, rank, return_indices)


def _avg(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    algo: str,
) -> Tensor:
    args = (input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    if rank > 1:
        args = (*args, divisor_override)
    if has_torch_function_unary(input):
        return handle_torch_function(_AVG[rank - 1], (input,), *args, algo=algo)
    numbers = (kernel_size, stride, padding, divisor_override)
    key = ("avg", rank, input, numbers, (ceil_mode, count_include_pad), algo)
    plan = recalled(*key)
    if plan is not None:
        return run(plan, input, rank)
    input = as_autocast(input, "avg_pool", rank)
    call = _call("avg_pool", rank, input)
    name = choose(call, algo)
    windows = None
    if name != ATEN and isinstance(count_include_pad, bool):
        windows = _fitting(input, rank, kernel_size, stride, padding, ceil_mode)
    divisor = 0 if divisor_override is None else divisor_override
    if divisor_override is not None and (type(divisor) is not int or divisor == 0):
        windows = None
    if windows is None:
        # Without what stands at None, which not every rank takes.
        given = {} if stride is None else {"stride": stride}
        if divisor_override is not None:
            given["divisor_override"] = divisor_override
        y = _TORCH["avg_pool"][rank - 1](
            input,
            kernel_size,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            **given,
        )
        insist(call, algo)
        return y
    include, whole = count_include_pad, windows
    remember(*key, name, lambda x, rank: sum_plan(x, rank, whole, include, divisor))
    lists = (windows.kernel, windows.stride, windows.padding)
    rest = (ceil_mode, count_include_pad, divisor, name)
    return like(pool.sum_pool(batched(input, rank), *lists, *rest), input, rank)


def _lp(
    rank: int,
    input: Tensor,
    norm_type: float,
    kernel_size: Any,
    stride: Any,
    ceil_mode: bool,
    algo: str,
) -> Tensor:
    args = (input, norm_type, kernel_size, stride, ceil_mode)
    if has_torch_function_unary(input):
        return handle_torch_function(_LP[rank - 1], (input,), *args, algo=algo)
    numbers = (kernel_size, stride)
    key = (f"lp{norm_type!r}", rank, input, numbers, (ceil_mode,), algo)
    plan = recalled(*key)
    if plan is not None:
        return run(plan, input, rank)
    input = as_autocast(input, "lp_pool", rank)
    call = _call("lp_pool", rank, input)
    name = choose(call, algo)
    windows = None
    if (
        name != ATEN
        and isinstance(norm_type, (int, float))
        and not isinstance(norm_type, bool)
        and 0 < norm_type < math.inf
    ):
        windows = _fitting(input, rank, kernel_size, stride, 0, ceil_mode)
    if windows is None:
        y = _TORCH["lp_pool"][rank - 1](input, *args[1:])
        insist(call, algo)
        return y
    lists = (windows.kernel, windows.stride, windows.padding)
    remember(*key, name, lambda x, rank: lp_plan(x, rank, windows, float(norm_type), True))
    y = pool.lp_pool(batched(input, rank), *lists, ceil_mode, float(norm_type), True, name)
    return like(y, input, rank)


def max_pool1d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Any:
    return _max(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, algo)


def max_pool2d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Any:
    return _max(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, algo)


def max_pool3d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    algo: str = "auto",
) -> Any:
    return _max(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices, algo)


def avg_pool1d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    algo: str = "auto",
) -> Tensor:
    return _avg(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None, algo)


def avg_pool2d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    algo: str = "auto",
) -> Tensor:
    rest = (ceil_mode, count_include_pad, divisor_override, algo)
    return _avg(2, input, kernel_size, stride, padding, *rest)


def avg_pool3d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    algo: str = "auto",
) -> Tensor:
    rest = (ceil_mode, count_include_pad, divisor_override, algo)
    return _avg(3, input, kernel_size, stride, padding, *rest)


def sum_pool2d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    *,
    algo: str = "auto",
) -> Tensor:
    """The sum of each window; padding counts as 0.

    Arguments, shapes, dtypes, layouts, errors and gradients are those of `avg_pool2d` with
    divisor_override=1.
    """
    args = (input, kernel_size, stride, padding, ceil_mode)
    if has_torch_function_unary(input):
        return handle_torch_function(sum_pool2d, (input,), *args, algo=algo)
    return _avg(2, *args, True, 1, algo)


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    ceil_mode: bool = False,
    *,
    algo: str = "auto",
) -> Tensor:
    return _lp(1, input, norm_type, kernel_size, stride, ceil_mode, algo)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    ceil_mode: bool = False,
    *,
    algo: str = "auto",
) -> Tensor:
    return _lp(2, input, norm_type, kernel_size, stride, ceil_mode, algo)


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    ceil_mode: bool = False,
    *,
    algo: str = "auto",
) -> Tensor:
    return _lp(3, input, norm_type, kernel_size, stride, ceil_mode, algo)


def l2_pool2d(
    input: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    ceil_mode: bool = False,
    *,
    algo: str = "auto",
) -> Tensor:
    """The square root of each window's sum of squares; padding counts as 0.

    Unlike lp_pool2d, a partial window is not scaled up to a whole one. 16-bit inputs are squared
    and summed in float32, so that values of 300 do not overflow in float16. The gradient is 0 where
    the sum is. The dtype stays, also under autocast. Arguments, shapes, dtypes, layouts and errors
    are those of `avg_pool2d`.

    Source: Boureau, Ponce and LeCun, "A Theoretical Analysis of Feature Pooling in Visual
    Recognition" (ICML 2010), section 2.
    """
    args = (input, kernel_size, stride, padding, ceil_mode)
    if has_torch_function_unary(input):
        return handle_torch_function(l2_pool2d, (input,), *args, algo=algo)
    key = ("l2", 2, input, args[1:4], args[4:], algo)
    plan = recalled(*key)
    if plan is not None:
        return run(plan, input, 2)
    call = PoolCall(KINDS["l2_pool"], "l2_pool2d", 2, input)
    name = choose(call, algo)
    windows = None
    if name != ATEN:
        windows = windows_of(input, 2, kernel_size, stride, padding, 1, ceil_mode)
    if windows is None:
        with without_autocast(input):
            squares = widened(input).pow(2)
            squares = _avg(2, squares, kernel_size, stride, padding, ceil_mode, True, 1, ATEN)
            y = torch.relu(squares).pow(0.5).to(input.dtype)
        insist(call, algo)
        return y
    lists = (windows.kernel, windows.stride, windows.padding)
    remember(*key, name, lambda x, rank: lp_plan(x, rank, windows, 2.0, False))
    y = pool.lp_pool(batched(input, 2), *lists, ceil_mode, 2.0, False, name)
    return like(y, input, 2)


_MAX = (max_pool1d, max_pool2d, max_pool3d)
_AVG = (avg_pool1d, avg_pool2d, avg_pool3d)
_LP = (lp_pool1d, lp_pool2d, lp_pool3d)

_COMMON = """

    Args, shapes and errors: those of torch.nn.functional.{name}{rank}d. Input (N, C, {axes}) or,
    unbatched, (C, {axes}), any strides; the output is channels_last if the input is. algo: "auto"
    (our kernels where they apply, else PyTorch's function) or a name of
    `fastconv.select_pool.names()`, which raises RuntimeError with the reason where it does not
    apply; ValueError on an unknown one.

    float32, float64, bfloat16 and float16{more} run on our kernels (16-bit accumulates in float32);
    everything else goes to PyTorch. Differentiable to any order, also in forward mode; the same
    input gives the same bits, whatever the number of threads{layouts}.
    """
_MORE = {
    "max_pool": (
        "{rank}-D max pooling: the largest element of each window; (y, indices) with"
        " return_indices.\n\n    A NaN wins, the last of several; of ties the first stays. Training"
        " keeps one byte per output, unless\n    the indices are asked for or a window has more"
        " than 255 taps."
    ),
    "avg_pool": "{rank}-D average pooling.",
    "lp_pool": (
        "{rank}-D power-average pooling: (sum of x^p)^(1/p) over each window, for p > 0.\n\n    A"
        " partial window of ceil_mode is scaled as if it were whole; a negative sum gives NaN"
        " unless p is 1;\n    the gradient is 0 where the sum is."
    ),
}
for _name, _functions in (("max_pool", _MAX), ("avg_pool", _AVG), ("lp_pool", _LP)):
    for _rank, _function in enumerate(_functions, 1):
        _more = " (and integers of 8 to 64 bits)" if _name == "max_pool" else ""
        # A channels_last kernel adds in another order.
        _layouts = " and the layout" if _name == "max_pool" else ""
        _function.__doc__ = (_MORE[_name] + _COMMON).format(
            name=_name,
            rank=_rank,
            axes="D, H, W"[-3 * _rank + 2 :],
            more=_more,
            layouts=_layouts,
        )
