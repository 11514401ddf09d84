"""Which pooling kernels of this build may run on a CUDA device.

Trust goes by family: all instances of a pass, kind and dtype. So one check serves every later
shape, also inside a compiled function or while a CUDA graph is captured.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from fastconv import _C, gpu, select, trust
from fastconv.arguments import constant_in_graphs
from fastconv.problem import NATIVE_DTYPES

# (pass, kind) of the bare ops, by the names of _C.PoolPass and _C.PoolKind.
OPS = {
    "max_pool_fprop": ("forward", "max"),
    "max_pool_dgrad": ("backward", "max"),
    "max_pool_at": ("gather", "max"),
    "max_unpool_fprop": ("unpool", "max"),
    "sum_pool_fprop": ("forward", "sum"),
    "sum_pool_dgrad": ("backward", "sum"),
    "lp_pool_fprop": ("forward", "lp"),
    "lp_pool_dgrad": ("backward", "lp"),
    "sample_pool_fprop": ("forward", "sample"),
    "expectation_pool_fprop": ("forward", "expectation"),
}
# What the self-test and the records of trust put before an instance's name.
PREFIX = "pool/"

_refusals: dict[Any, str | None] = select.forget_with({})


@cache
def instances() -> dict[tuple[str, torch.dtype], tuple[str, ...]]:
    """The instances' names by bare op and dtype."""
    found: dict[tuple[str, torch.dtype], list[str]] = {}
    dtypes = {native: dtype for dtype, native in NATIVE_DTYPES.items()}
    ops = {names: op for op, names in OPS.items()}
    for name, pool_pass, kind, dtype, _ in _C.cuda_pool_instances():
        op = ops[pool_pass.name, kind.name]
        found.setdefault((op, dtypes[dtype]), []).append(PREFIX + name)
    return {key: tuple(names) for key, names in found.items()}


def _untrusted(device: str, name: str, forced: bool) -> str | None:
    error = trust.error_of(device, name)
    if error is None and not forced and not trust.admit(device, name):
        error = trust.error_of(device, name) or "it could not be checked now"
    return f"CUDA kernel {name} failed its check on this device: {error}" if error else None


def _family_refusal(device: str, op: str, dtype: torch.dtype, forced: bool) -> str | None:
    names = instances().get((op, dtype), ())
    if not names:
        return f"this build has no CUDA kernel for {op} in {str(dtype).removeprefix('torch.')}"
    return next(filter(None, (_untrusted(device, name, forced) for name in names)), None)


# torch.compile takes the answer as it stands.
@constant_in_graphs
def refusal(device: str, ops: tuple[str, ...], dtype: torch.dtype, forced: bool) -> str | None:
    """Why the kernels of these ops may not run on the device; None if they may.

    What nothing is known of is checked first, unless the algorithm was named (`forced`).
    """
    reason = gpu.refusal(device)
    if reason is not None:
        return reason
    key = (device, ops, dtype, forced)
    if key in _refusals:
        return _refusals[key]
    reason = next(filter(None, (_family_refusal(device, op, dtype, forced) for op in ops)), None)
    # What a graph capture kept from being checked is decided anew outside of it.
    if not trust.capturing():
        _refusals[key] = reason
    return reason
