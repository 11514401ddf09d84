"""Adaptive pooling, whose windows follow from the number of outputs, and max unpooling; with
torch.nn.functional's signatures, semantics and error texts.

Output i of `out` over an axis of extent `in` reduces [floor(i in / out), ceil((i + 1) in / out)).
Where `in` divides evenly these are ordinary windows, and global pooling is one window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastconv.arguments import as_ints
from fastconv.ops import pool
from fastconv.ops.pool import Windows
from fastconv.pooling_call import IntOrInts, as_autocast, batched, kept, like, picked
from fastconv.pooling_plans import max_plan, recalled, remember, run, sum_plan
from fastconv.select_pool import ATEN, KINDS, PoolCall, choose, insist

OutputSize = int | None | Sequence[int | None]

_TORCH: dict[str, tuple[Callable[..., Any], ...]] = {
    "adaptive_max_pool": (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    "adaptive_avg_pool": (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    "max_unpool": (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d),
}


def _call(kind: str, rank: int, input: Tensor) -> PoolCall:
    return PoolCall(KINDS[kind], f"{kind}{rank}d", rank, input)


def _adaptive_windows(input: Tensor, rank: int, output_size: Any) -> Windows | None:
    """The windows, if PyTorch accepts this output size for this input; else None."""
    extents = input.shape[-rank:]
    if any(n < 1 for n in input.shape[-rank - 1 :]):
        return None
    if isinstance(output_size, (tuple, list)):
        if len(output_size) != rank:
            return None
        if rank > 1:
            output_size = [n if o is None else o for o, n in zip(output_size, extents, strict=True)]
    outs = as_ints(output_size, rank)
    if outs is None or any(o < 1 for o in outs):
        return None
    kernel, stride = [], []
    for n, out in zip(extents, outs, strict=True):
        # A symbolic extent is not asked for its divisors: each answer would be a guard.
        even = out == 1 if isinstance(n, torch.SymInt) else n % out == 0
        kernel.append(n // out if even else out)
        stride.append(n // out if even else 0)
    return Windows(tuple(kernel), tuple(stride), (0,) * rank, (1,) * rank, False)


def _adaptive_max(
    rank: int, input: Tensor, output_size: Any, return_indices: bool, algo: str
) -> Any:
    args = (input, output_size, return_indices)
    if has_torch_function_variadic(input):
        return handle_torch_function(_MAX[rank - 1], (input,), *args, algo=algo)
    key = ("adaptive_max", rank, input, (output_size,), (return_indices,), algo)
    plan = recalled(*key)
    if plan is not None:
        return run(plan, input, rank)
    input = as_autocast(input, "adaptive_max_pool", rank)
    call = _call("adaptive_max_pool", rank, input)
    name = choose(call, algo)
    windows = None
    if name != ATEN and isinstance(return_indices, bool):
        windows = _adaptive_windows(input, rank, output_size)
    if windows is None:
        y = _TORCH["adaptive_max_pool"][rank - 1](input, *args[1:])
        insist(call, algo)
        return y
    if not return_indices:
        remember(*key, name, lambda x, rank: max_plan(x, rank, windows))
    index_kind = kept(input, windows, return_indices)
    y, index = pool.max_pool(batched(input, rank), windows, index_kind, name)
    return picked(y, index, input, rank, return_indices)


def _adaptive_avg(rank: int, input: Tensor, output_size: Any, algo: str) -> Tensor:
    if has_torch_function_variadic(input):
        return handle_torch_function(_AVG[rank - 1], (input,), input, output_size, algo=algo)
    key = ("adaptive_avg", rank, input, (output_size,), (), algo)
    plan = recalled(*key)
    if plan is not None:
        return run(plan, input, rank)
    input = as_autocast(input, "adaptive_avg_pool", rank)
    call = _call("adaptive_avg_pool", rank, input)
    name = choose(call, algo)
    windows = None if name == ATEN else _adaptive_windows(input, rank, output_size)
    if windows is None:
        y = _TORCH["adaptive_avg_pool"][rank - 1](input, output_size)
        insist(call, algo)
        return y
    remember(*key, name, lambda x, rank: sum_plan(x, rank, windows, True, 0))
    lists = (windows.kernel, windows.stride, windows.padding)
    return like(pool.sum_pool(batched(input, rank), *lists, False, True, 0, name), input, rank)


def _unpooled_extents(
    input: Tensor, rank: int, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> list[int] | None:
    """The result's spatial extents, if PyTorch accepts the arguments; else None."""
    lists = [as_ints(v, rank) for v in (kernel_size, stride, padding)]
    if None in lists or any(n < 1 for n in input.shape[-rank - 1 :]):
        return None
    steps, extents = lists[1], input.shape[-rank:]
    default = [(n - 1) * s + k - 2 * p for n, k, s, p in zip(extents, *lists, strict=True)]
    if output_size is None:
        found = default
    else:
        given = list(output_size) if isinstance(output_size, (tuple, list)) else []
        found = as_ints(given[2:] if len(given) == rank + 2 else given, rank)
        if len(given) not in (rank, rank + 2) or found is None:
            return None
        if not all(d - s < o < d + s for o, d, s in zip(found, default, steps, strict=True)):
            return None
    return list(found) if all(n > 0 for n in found) else None


def _unpool(
    rank: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    output_size: Any,
    algo: str,
) -> Tensor:
    args = (input, indices, kernel_size, stride, padding, output_size)
    if has_torch_function_variadic(input, indices):
        return handle_torch_function(_UNPOOL[rank - 1], (input, indices), *args, algo=algo)
    input = as_autocast(input, "max_unpool", rank)
    call = _call("max_unpool", rank, input)
    name = choose(call, algo)
    extents = None
    if (
        name != ATEN
        and isinstance(indices, Tensor)
        and indices.dtype == torch.int64
        and indices.shape == input.shape
        and indices.device == input.device
    ):
        step = kernel_size if stride is None else stride
        extents = _unpooled_extents(input, rank, kernel_size, step, padding, output_size)
    if extents is None:
        y = _TORCH["max_unpool"][rank - 1](input, *args[1:])
        insist(call, algo)
        return y
    x, index = batched(input, rank), batched(indices, rank)
    return like(pool.max_unpool(x, index, [*x.shape[:2], *extents], name), input, rank)


def adaptive_max_pool1d(
    input: Tensor, output_size: IntOrInts, return_indices: bool = False, *, algo: str = "auto"
) -> Any:
    return _adaptive_max(1, input, output_size, return_indices, algo)


def adaptive_max_pool2d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False, *, algo: str = "auto"
) -> Any:
    return _adaptive_max(2, input, output_size, return_indices, algo)


def adaptive_max_pool3d(
    input: Tensor, output_size: OutputSize, return_indices: bool = False, *, algo: str = "auto"
) -> Any:
    return _adaptive_max(3, input, output_size, return_indices, algo)


def adaptive_avg_pool1d(input: Tensor, output_size: IntOrInts, *, algo: str = "auto") -> Tensor:
    return _adaptive_avg(1, input, output_size, algo)


def adaptive_avg_pool2d(input: Tensor, output_size: OutputSize, *, algo: str = "auto") -> Tensor:
    return _adaptive_avg(2, input, output_size, algo)


def adaptive_avg_pool3d(input: Tensor, output_size: OutputSize, *, algo: str = "auto") -> Tensor:
    return _adaptive_avg(3, input, output_size, algo)


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    output_size: Sequence[int] | None = None,
    *,
    algo: str = "auto",
) -> Tensor:
    return _unpool(1, input, indices, kernel_size, stride, padding, output_size, algo)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    output_size: Sequence[int] | None = None,
    *,
    algo: str = "auto",
) -> Tensor:
    return _unpool(2, input, indices, kernel_size, stride, padding, output_size, algo)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    output_size: Sequence[int] | None = None,
    *,
    algo: str = "auto",
) -> Tensor:
    return _unpool(3, input, indices, kernel_size, stride, padding, output_size, algo)


_MAX = (adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d)
_AVG = (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)
_UNPOOL = (max_unpool1d, max_unpool2d, max_unpool3d)

_COMMON = """

    Args, shapes and errors: those of torch.nn.functional.{name}{rank}d. Input (N, C, {axes}) or,
    unbatched, (C, {axes}), any strides; the output is channels_last if the input is. algo: as in
    `max_pool{rank}d`.

    float32, float64, bfloat16 and float16 run on our kernels (16-bit accumulates in float32);
    everything else goes to PyTorch. Differentiable to any order, also in forward mode; the same
    input gives the same bits{but}.
    """
_MORE = {
    "adaptive_max_pool": (
        "{rank}-D max pooling to a given number of outputs; (y, indices) with return_indices.\n\n"
        "    NaN, ties and what training keeps: as in `max_pool{rank}d`."
    ),
    "adaptive_avg_pool": "{rank}-D average pooling to a given number of outputs.",
    "max_unpool": (
        "{rank}-D partial inverse of max pooling: each element goes to its place, the rest is 0."
        "\n\n    Of several elements sent to one place the last of the plane stays. A place outside"
        " of the output\n    raises on the CPU, as in PyTorch; on a GPU its element is left out."
    ),
}
_BUT = "; in second derivatives only where no place is named twice"
for _name, _functions in (
    ("adaptive_max_pool", _MAX),
    ("adaptive_avg_pool", _AVG),
    ("max_unpool", _UNPOOL),
):
    for _rank, _function in enumerate(_functions, 1):
        _axes = "D, H, W"[-3 * _rank + 2 :]
        _function.__doc__ = (_MORE[_name] + _COMMON).format(
            name=_name, rank=_rank, axes=_axes, but=_BUT if _name == "max_unpool" else ""
        )
