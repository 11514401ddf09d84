"""What the tests of pooling share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastconv

RANKS = (1, 2, 3)
# C spans less than a vector, whole vectors and a remainder; the row ends inside one.
SHAPES = {1: (2, 3, 19), 2: (2, 19, 7, 13), 3: (1, 5, 5, 6, 7)}
LAYOUTS = [(1, False), (2, False), (2, True), (3, False), (3, True)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def pair(name: str, rank: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Our function and PyTorch's."""
    return getattr(fastconv, f"{name}{rank}d"), getattr(F, f"{name}{rank}d")


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    if not channels_last:
        return x
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.to(memory_format=last)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and NaN where the other is."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def as_integers(x: Tensor) -> Tensor:
    """The bits of floating-point numbers, in one layout."""
    return x.contiguous().view(_INTEGERS[x.dtype.itemsize])


def gradient(f: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    return torch.autograd.grad(f(leaf), leaf, dy)[0]


def errors_alike(theirs: Callable[[], Any], ours: Callable[[], Any]) -> None:
    """Both raise the same type of error with the same text."""
    caught = []
    for call in (theirs, ours):
        try:
            call()
        except Exception as error:
            caught.append((type(error), str(error)))
        else:
            caught.append((None, "nothing was raised"))
    assert caught[0][0] is not None
    assert caught[1] == caught[0]
