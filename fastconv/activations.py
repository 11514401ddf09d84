"""The activations that a fused operation can end in, by name.

Numbers are those of csrc/common/epilogue.h; a call is the same in PyTorch's own operations, for
the paths that are composed, and for references.

Gradients at corners are PyTorch's. Where it has two it is its scalar code's: of ReLU6 at NaN the
vectors of its CPU kernel say 0, the tails of these and its CUDA kernel let dz pass, as ours do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ("none", "relu", "leaky_relu", "relu6", "silu")


class Activation(NamedTuple):
    """name: one of NAMES. slope: of leaky_relu below zero, else 0."""

    name: str
    slope: float = 0.0

    @property
    def code(self) -> int:
        return NAMES.index(self.name)

    def __call__(self, x: Tensor) -> Tensor:
        if self.name == "relu":
            return F.relu(x)
        if self.name == "leaky_relu":
            return F.leaky_relu(x, self.slope)
        if self.name == "relu6":
            return F.relu6(x)
        return F.silu(x) if self.name == "silu" else x


def named(activation: str | None, negative_slope: float = 0.01) -> Activation:
    """The activation of this name; None is "none".

    Raises ValueError, listing the known names, for any other.
    """
    name = "none" if activation is None else activation
    if name not in NAMES:
        known = ", ".join(map(repr, NAMES))
        raise ValueError(f"unknown activation {activation!r}; expected None or one of: {known}")
    return Activation(name, float(negative_slope) if name == "leaky_relu" else 0.0)


def of_module(module: nn.Module) -> Activation | None:
    """What this layer computes, if it is one of PyTorch's activations that can be fused."""
    kind = type(module)
    if kind is nn.Identity:
        return Activation("none")
    if kind is nn.LeakyReLU:
        return Activation("leaky_relu", float(module.negative_slope))
    plain = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}
    return Activation(plain[kind]) if kind in plain else None
