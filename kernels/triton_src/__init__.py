"""Triton kernels and their launchers; part of the package as `fastconv._triton`.

Nothing here imports Triton before a kernel is launched, so that fastconv works without it. With
TRITON_INTERPRET=1 in the environment when this package is first imported, the kernels run in
Triton's interpreter, also on CPU tensors (slowly: it is for tests).
"""

from __future__ import annotations

import importlib.util
import os
import re
from functools import cache
from importlib import metadata
from typing import Any

import torch

# Read when the kernels are defined, so it can only be chosen once per process.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "y", "yes", "on", "true")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPERATIONS = ("max_pool", "sum_pool", "lp_pool", "sample_pool", "expectation_pool")
# Triton's own limit is 7.0; bfloat16 arithmetic and what the tests compile for begin at 8.0.
MIN_CAPABILITY = (8, 0)
# The oldest that the kernels were interpreted and compiled with.
MIN_VERSION = (3, 6)


@cache
def version() -> str | None:
    """Triton's version, or None where it is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:  # built from source, or under another name
        return "unknown"


def version_refusal() -> str | None:
    """Why there is no Triton that the kernels are for; None if there is one."""
    found = version()
    if found is None:
        return "Triton is not installed"
    numbers = re.match(r"(\d+)\.(\d+)", found)  # what was built from source may have none
    if numbers is not None and tuple(map(int, numbers.groups())) < MIN_VERSION:
        oldest = ".".join(map(str, MIN_VERSION))
        return f"Triton {found} is installed, the kernels need {oldest} or later"
    return None


@cache
def applicable(device: torch.device, dtype: torch.dtype) -> str | None:
    """None if the kernels take tensors of this device and dtype, else the reason why not.

    Windows, strides, paddings, dilations and sizes are never a reason.
    """
    reason = version_refusal()
    if reason is not None:
        return reason
    if dtype not in DTYPES:
        return f"the Triton kernels have no {str(dtype).removeprefix('torch.')}"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"Triton kernels run on CUDA, not on {device.type} (but with TRITON_INTERPRET=1)"
    if torch.version.hip is not None:
        return "the Triton kernels were never compiled for AMD"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"the device's capability {capability[0]}.{capability[1]} is below 8.0"
    return None


def status() -> dict[str, Any]:
    """Whether Triton works on this machine and, if not, why; `fastconv.info` shows it.

    On a CUDA device a small kernel is compiled and run.
    """
    found, reason = version(), version_refusal()
    if reason is None and not INTERPRETED and not torch.cuda.is_available():
        reason = "torch sees no CUDA device (TRITON_INTERPRET=1 runs on the CPU)"
    elif reason is None:
        reason = _probe(torch.device("cpu" if INTERPRETED else "cuda"))
    return {"installed": found is not None, "version": found, "reason": reason}


def _probe(device: torch.device) -> str | None:
    reason = applicable(device, torch.float32)
    if reason is not None:
        return reason
    try:
        from . import pool

        x = torch.arange(8.0, device=device).reshape(1, 1, 8)
        y, _ = pool.max_pool_fprop(x, [2], [2], [0], [1], False, 0)
        wrong = y.flatten().tolist() != [1, 3, 5, 7]
    except Exception as error:  # a missing compiler, a driver that is too old, ...
        return f"a small kernel failed: {type(error).__name__}: {str(error).strip()[:200]}"
    return "a small kernel returned a wrong result" if wrong else None
