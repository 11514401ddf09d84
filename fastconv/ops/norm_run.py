"""The passes of normalisation and epilogue by the name of who runs them: no autograd, real tensors.

NATIVE holds the bare C++ ops, which dispatch on the tensors' device. The Triton launchers have the
same names, arguments and results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

DIRECT, TRITON = "direct", "triton"
_ops = torch.ops.fastconv
NATIVE: dict[str, Callable[..., Any]] = {
    # Without the Python frame of OpOverload.__call__, which adds nothing to the operator.
    name: getattr(_ops, name).default._op
    for name in (
        "norm_act_stats",
        "norm_act_fprop",
        "norm_act_sums",
        "norm_act_dgrad",
        "epilogue_into",
    )
}


def norm_pass(name: str, passes: str | None) -> Callable[..., Any]:
    """The pass of this name; passes: DIRECT (None means the same) or TRITON."""
    if passes != TRITON:
        return NATIVE[name]
    from fastconv._triton import norm

    return getattr(norm, name)
