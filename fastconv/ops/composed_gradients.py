"""Gradients that are to be differentiated again, of an operation that is also known composed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def composed_gradients(
    function: Callable[..., Tensor],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    dz: Tensor,
) -> list[Tensor | None]:
    """The gradients of function(*tensors) in those that `needs` marks, recorded themselves."""
    # Views: a gradient asked for in them stops there, whatever the tensors themselves come from.
    views = [None if t is None else t.view_as(t) for t in tensors]
    wanted = [i for i, needed in enumerate(needs) if needed]
    with torch.enable_grad():
        z = function(*views)
        found = torch.autograd.grad(z, [views[i] for i in wanted], dz, create_graph=True)
    result: list[Tensor | None] = [None] * len(views)
    for i, gradient in zip(wanted, found, strict=True):
        result[i] = gradient
    return result
