"""Batching rules: a pooling of a batch of batches is one pooling of the joined batch.

But for sampling, which goes one by one: its draws count the outputs of one call, and the batch's
randomness may be the same for every entry (one seed) or not (one for each).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# How many tensors lead an op's arguments, where it is not one.
_TENSORS = {
    "max_pool_dx": 2,
    "max_pool_take": 2,
    "max_unpool": 2,
    "max_unpool_dx": 2,
    "lp_pool_dx": 3,
}
# Ops whose first argument behind the tensors is a full shape.
_SIZED = ("max_pool_dx", "max_unpool", "sum_pool_dx")


def _join(t: Tensor, dim: int | None, batch: int) -> Tensor:
    """(B, N, ...) -> (B N, ...), B expanded where the tensor has none."""
    t = t.unsqueeze(0).expand(batch, *t.shape) if dim is None else t.movedim(dim, 0)
    return t.reshape(batch * t.shape[1], *t.shape[2:])


def _split(t: Tensor, batch: int) -> Tensor:
    """(B N, ...) -> (B, N, ...)."""
    return t.reshape(batch, t.shape[0] // batch, *t.shape[1:])


def _sampled(run: Callable[..., Any]) -> Callable[..., Any]:
    def rule(info, in_dims, *args):
        def entry(b: int) -> list[Any]:
            picked = [
                t if d is None else t.select(d, b) for t, d in zip(args[:2], in_dims, strict=False)
            ]
            return [*picked, *args[2:]]

        pairs = [run(*entry(b)) for b in range(info.batch_size)]
        return tuple(torch.stack(outs) for outs in zip(*pairs, strict=True)), (0, 0)

    return rule


def batched(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule of an op; `run` computes the joined batch."""
    if name == "sample_pool":
        return _sampled(run)
    count = _TENSORS.get(name, 1)

    def rule(info, in_dims, *args):
        batch = info.batch_size
        tensors = [_join(t, d, batch) for t, d in zip(args[:count], in_dims, strict=False)]
        rest = list(args[count:])
        if name in _SIZED:
            rest[0] = (batch * rest[0][0], *rest[0][1:])
        out = run(*tensors, *rest)
        if not isinstance(out, tuple):
            return _split(out, batch), 0
        y, index = out
        if index.dim() == 1:  # nothing was kept
            return (_split(y, batch), index), (0, None)
        return (_split(y, batch), _split(index, batch)), (0, 0)

    return rule
