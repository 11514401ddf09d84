"""The public pooling functions, with torch.nn.functional's signatures, semantics and error texts.

What our kernels do not take is given to PyTorch's own function, which computes it or raises its own
error; so the texts are PyTorch's by construction. That is: tensors outside the CPU, dtypes other
than float32, float64, bfloat16, float16 (maxima also of integers), empty planes, tensor types that
implement PyTorch's operators themselves, 16-bit tensors under autocast, torch.jit.trace, and
functorch transforms inside a compiled function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fastconv.arguments import as_ints, foreign_dispatch
from fastconv.ops import pool
from fastconv.ops.pool import Windows
from fastconv.problem import NATIVE_DTYPES

_IntOrInts = int | Sequence[int]

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_HALVES = (torch.bfloat16, torch.float16)
_is_compiling = torch.compiler.is_compiling
_any_autocast = torch._C._is_any_autocast_enabled
_jit_tracing = torch._C._get_tracing_state

_TORCH: dict[str, tuple[Callable[..., Any], ...]] = {
    "max": (F.max_pool1d, F.max_pool2d, F.max_pool3d),
    "avg": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    "lp": (F.lp_pool1d, F.lp_pool2d, F.lp_pool3d),
}


def _takes(input: Any, rank: int, integers: bool) -> bool:
    """Whether our kernels can take this tensor, its extents aside."""
    if not isinstance(input, Tensor) or input.dim() not in (rank + 1, rank + 2):
        return False
    if input.device.type != "cpu" or input.layout != torch.strided or input.is_nested:
        return False
    if input.dtype not in NATIVE_DTYPES and not (integers and input.dtype in _INTEGERS):
        return False
    if input.dtype in _HALVES and _any_autocast():
        return False
    if _is_compiling():  # a recorded op has one backward and no forward-mode rule
        return not pool.transforming()
    return _jit_tracing() is None and foreign_dispatch(input) is None


def _windows(
    input: Tensor, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> Windows | None:
    """The windows, if PyTorch accepts them for this input; else None."""
    if stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0):
        stride = kernel
    lists = [as_ints(values, rank) for values in (kernel, stride, padding, dilation)]
    if None in lists or not isinstance(ceil_mode, bool):
        return None
    windows = Windows(*lists, ceil_mode)
    for k, s, p, d in zip(*windows[:4], strict=True):
        if k < 1 or s < 1 or d < 1 or p < 0 or 2 * p > d * (k - 1) + 1:
            return None
    extents = input.shape[-rank:]
    if any(n < 1 for n in (*extents, input.shape[-rank - 1])):
        return None
    return windows if all(n > 0 for n in windows.out_extents(extents)) else None


def _batched(input: Tensor, rank: int) -> Tensor:
    return input if input.dim() == rank + 2 else input.unsqueeze(0)


def _like(result: Tensor, input: Tensor, rank: int) -> Tensor:
    return result if input.dim() == rank + 2 else result.squeeze(0)


def _max(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    args = (input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if has_torch_function_unary(input):
        return handle_torch_function(_MAX[rank - 1], (input,), *args)
    windows = None
    # PyTorch's 1-D maximum of integers exists with indices only.
    if _takes(input, rank, integers=rank > 1 or bool(return_indices)):
        windows = _windows(input, rank, *args[1:6])
    if windows is None or not isinstance(return_indices, bool):
        return _TORCH["max"][rank - 1](
            input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
        )
    kept = pool.KEEP_NOTHING
    if return_indices:
        kept = pool.KEEP_PLACE
    elif input.is_floating_point() and (
        pool.transforming() or (torch.is_grad_enabled() and input.requires_grad)
    ):
        kept = pool.KEEP_BYTE if windows.taps <= pool.MAX_BYTE_TAPS else pool.KEEP_PLACE
    y, index = pool.max_pool(_batched(input, rank), windows, kept)
    if return_indices:
        return _like(y, input, rank), _like(index, input, rank)
    return _like(y, input, rank)


def _avg(
    rank: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    args = (input, kernel_size, stride, padding, ceil_mode, count_include_pad)
    if rank > 1:
        args = (*args, divisor_override)
    if has_torch_function_unary(input):
        return handle_torch_function(_AVG[rank - 1], (input,), *args)
    windows = None
    if _takes(input, rank, integers=False) and isinstance(count_include_pad, bool):
        windows = _windows(input, rank, kernel_size, stride, padding, 1, ceil_mode)
    divisor = 0 if divisor_override is None else divisor_override
    if divisor_override is not None and (type(divisor) is not int or divisor == 0):
        windows = None
    if windows is None:
        # Without what stands at None, which not every rank takes.
        given = {} if stride is None else {"stride": stride}
        if divisor_override is not None:
            given["divisor_override"] = divisor_override
        return _TORCH["avg"][rank - 1](
            input,
            kernel_size,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            **given,
        )
    lists = (windows.kernel, windows.stride, windows.padding)
    y = pool.sum_pool(_batched(input, rank), *lists, ceil_mode, count_include_pad, divisor)
    return _like(y, input, rank)


def _lp(
    rank: int, input: Tensor, norm_type: float, kernel_size: Any, stride: Any, ceil_mode: bool
) -> Tensor:
    args = (input, norm_type, kernel_size, stride, ceil_mode)
    if has_torch_function_unary(input):
        return handle_torch_function(_LP[rank - 1], (input,), *args)
    windows = None
    if (
        isinstance(norm_type, (int, float))
        and not isinstance(norm_type, bool)
        and 0 < norm_type < math.inf
        and _takes(input, rank, integers=False)
    ):
        windows = _windows(input, rank, kernel_size, stride, 0, 1, ceil_mode)
    if windows is None:
        return _TORCH["lp"][rank - 1](input, norm_type, kernel_size, stride, ceil_mode)
    lists = (windows.kernel, windows.stride, windows.padding)
    y = pool.lp_pool(_batched(input, rank), *lists, ceil_mode, float(norm_type), True)
    return _like(y, input, rank)


def max_pool1d(
    input: Tensor,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    padding: _IntOrInts = 0,
    dilation: _IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    return _max(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(
    input: Tensor,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    padding: _IntOrInts = 0,
    dilation: _IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    return _max(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(
    input: Tensor,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    padding: _IntOrInts = 0,
    dilation: _IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    return _max(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def avg_pool1d(
    input: Tensor,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    padding: _IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    return _avg(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    padding: _IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    return _avg(
        2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def avg_pool3d(
    input: Tensor,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    padding: _IntOrInts = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    return _avg(
        3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )


def sum_pool2d(
    input: Tensor,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    padding: _IntOrInts = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """The sum of each window; padding counts as 0.

    Arguments, shapes, dtypes, layouts, errors and gradients are those of `avg_pool2d` with
    divisor_override=1.
    """
    return _avg(2, input, kernel_size, stride, padding, ceil_mode, True, 1)


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    return _lp(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    return _lp(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    return _lp(3, input, norm_type, kernel_size, stride, ceil_mode)


def l2_pool2d(
    input: Tensor,
    kernel_size: _IntOrInts,
    stride: _IntOrInts | None = None,
    padding: _IntOrInts = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """The square root of each window's sum of squares; padding counts as 0.

    Unlike lp_pool2d, a partial window is not scaled up to a whole one. 16-bit inputs are squared
    and summed in float32, so that values of 300 do not overflow in float16. The gradient is 0 where
    the sum is. Arguments, shapes, dtypes, layouts and errors are those of `avg_pool2d`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            l2_pool2d, (input,), input, kernel_size, stride, padding, ceil_mode
        )
    windows = None
    if _takes(input, 2, integers=False):
        windows = _windows(input, 2, kernel_size, stride, padding, 1, ceil_mode)
    if windows is None:
        squares = _avg(2, input.pow(2), kernel_size, stride, padding, ceil_mode, True, 1)
        return torch.relu(squares).pow(0.5)
    lists = (windows.kernel, windows.stride, windows.padding)
    return _like(pool.lp_pool(_batched(input, 2), *lists, ceil_mode, 2.0, False), input, 2)


_MAX = (max_pool1d, max_pool2d, max_pool3d)
_AVG = (avg_pool1d, avg_pool2d, avg_pool3d)
_LP = (lp_pool1d, lp_pool2d, lp_pool3d)

_COMMON = """

    Args, shapes and errors: those of torch.nn.functional.{name}{rank}d. Input (N, C, {axes}) or,
    unbatched, (C, {axes}), any strides; the output is channels_last if the input is.

    float32, float64, bfloat16 and float16{more} run on our kernels (16-bit accumulates in float32)
    on the CPU; everything else goes to PyTorch. Differentiable to any order, also in forward mode;
    the same input gives the same bits, whatever the number of threads.
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
        _function.__doc__ = (_MORE[_name] + _COMMON).format(
            name=_name, rank=_rank, axes="D, H, W"[-3 * _rank + 2 :], more=_more
        )
