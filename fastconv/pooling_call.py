"""What the arguments of a pooling say, for all of the public functions.

What our kernels do not take is given to PyTorch's own function, which computes it or raises its own
error; so the texts are PyTorch's by construction. That is: devices without our kernels, dtypes
other than float32, float64, bfloat16, float16 (maxima also of integers), empty planes, tensor
types that implement PyTorch's operators themselves, torch.jit.trace, and functorch transforms
inside a compiled function.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastconv.arguments import as_ints
from fastconv.ops import pool
from fastconv.ops.pool import Windows
from fastconv.plans import Plans

IntOrInts = int | Sequence[int]

_HALVES = (torch.bfloat16, torch.float16)
_any_autocast = torch._C._is_any_autocast_enabled

_known = Plans()


def plain(value: Any) -> bool:
    """Whether this may stand in a key: True and 1.0 equal 1 but are errors."""
    if value.__class__ is tuple:
        return all(v.__class__ is int for v in value)
    return value.__class__ is int or value is None


def windows_of(
    input: Tensor, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> Windows | None:
    """The windows, if PyTorch accepts them for this input; else None."""
    if (
        pool.tracing()  # sizes may be symbols
        or not (plain(kernel) and plain(stride) and plain(padding) and plain(dilation))
        or ceil_mode.__class__ is not bool
    ):
        return _windows(input.shape, rank, kernel, stride, padding, dilation, ceil_mode)
    key = (rank, input.shape, kernel, stride, padding, dilation, ceil_mode)
    if key in _known:
        return _known[key]
    windows = _windows(input.shape, rank, kernel, stride, padding, dilation, ceil_mode)
    _known.remember(key, windows)
    return windows


def _windows(size, rank, kernel, stride, padding, dilation, ceil_mode) -> Windows | None:
    if stride is None or (isinstance(stride, (tuple, list)) and len(stride) == 0):
        stride = kernel
    lists = [as_ints(values, rank) for values in (kernel, stride, padding, dilation)]
    if None in lists or not isinstance(ceil_mode, bool):
        return None
    windows = Windows(*lists, ceil_mode)
    for k, s, p, d in zip(*windows[:4], strict=True):
        # Some of PyTorch's functions measure padding against the dilated window, some do not.
        if k < 1 or s < 1 or d < 1 or p < 0 or 2 * p > k:
            return None
    if any(n < 1 for n in size[-rank - 1 :]):
        return None
    return windows if all(n > 0 for n in windows.out_extents(size[-rank:])) else None


def kept(input: Tensor, windows: Windows, return_indices: bool) -> int:
    """What a pooling that picks elements has to keep of its choice."""
    if return_indices:
        return pool.KEEP_PLACE
    if input.is_floating_point() and (
        pool.transforming() or (torch.is_grad_enabled() and input.requires_grad)
    ):
        taps = windows.taps(input.shape[-len(windows.kernel) :])
        return pool.KEEP_BYTE if taps <= pool.MAX_BYTE_TAPS else pool.KEEP_PLACE
    return pool.KEEP_NOTHING


def batched(input: Tensor, rank: int) -> Tensor:
    """(N, C, *in) of (N, C, *in) or (C, *in)."""
    return input if input.dim() == rank + 2 else input.unsqueeze(0)


def like(result: Tensor, input: Tensor, rank: int) -> Tensor:
    """A result for `batched(input)` as one for the input."""
    return result if input.dim() == rank + 2 else result.squeeze(0)


def picked(
    y: Tensor, index: Tensor, input: Tensor, rank: int, return_indices: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """What a pooling that picks elements returns, as the input was batched."""
    y = like(y, input, rank)
    return (y, like(index, input, rank)) if return_indices else y


def as_autocast(input: Any, kind: str, rank: int, return_indices: bool = False) -> Any:
    """What autocast makes of the input of one of PyTorch's poolings: float32 of some 16-bit ones.

    On the CPU autocast lists unpooling and the 3-D functions (but not max_pool3d with indices), on
    CUDA devices the power of lp_pool. Our own functions keep the dtype.
    """
    if getattr(input, "dtype", None) not in _HALVES or not _any_autocast():
        return input
    device = input.device.type
    if device == "cpu":
        widens = kind == "max_unpool" or (rank == 3 and not (kind == "max_pool" and return_indices))
    else:
        widens = device == "cuda" and kind == "lp_pool"
    return input.float() if widens and torch.is_autocast_enabled(device) else input


def widened(input: Tensor) -> Tensor:
    """float32 of 16-bit tensors, whose squares overflow; others as they are."""
    return input.float() if input.dtype in _HALVES else input


def without_autocast(input: Tensor) -> AbstractContextManager[Any]:
    """Within, operators keep the dtype they are given."""
    if _any_autocast() and input.device.type in ("cpu", "cuda"):
        return torch.autocast(input.device.type, enabled=False)
    return nullcontext()
