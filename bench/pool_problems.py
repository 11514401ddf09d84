"""The pooling problems that are timed: the pools of the networks, and every kind on one stem."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from bench.problems import networks, once, times

# Every kind over the windows that networks use, on the activations of a residual network's stem.
FAMILY = "family"
FAMILY_SOURCE = "C=64, 112x112: the output of the stem of He et al. (CVPR 2016), table 1"
FAMILY_WINDOWS = ((3, 2, 1), (2, 2, 0), (3, 1, 1))  # kernel, stride, padding
KINDS = ("max", "avg", "lp", "stochastic")
LP_POWER = 2.0


@dataclass(frozen=True)
class PoolLayer:
    """One 2-D pooling without its batch size. kind: one of KINDS, or "adaptive_avg", whose `kernel`
    is the output's size."""

    net: str
    kind: str
    C: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    ceil_mode: bool = False
    count: int = 1

    @property
    def window(self) -> str:
        """E.g. 'max 3x3/2'."""
        if self.kind == "adaptive_avg":
            return f"avg to {times(self.kernel)}"
        return f"{self.kind} {times(self.kernel)}/{once(self.stride)}"

    @property
    def label(self) -> str:
        return f"{times((self.C, *self.spatial))} {self.window}"

    def input_size(self, batch: int) -> tuple[int, ...]:
        return (batch, self.C, *self.spatial)

    def output_size(self, batch: int) -> tuple[int, ...]:
        if self.kind == "adaptive_avg":
            return (batch, self.C, *self.kernel)
        out = []
        for n, k, s, p in zip(self.spatial, self.kernel, self.stride, self.padding, strict=True):
            count = (n + 2 * p - k + (s - 1 if self.ceil_mode else 0)) // s + 1
            out.append(count - ((count - 1) * s >= n + p))
        return (batch, self.C, *out)

    def elements(self, batch: int, direction: str) -> int:
        """Elements that have to cross the memory bus: x and y once; with the backward also dy and
        dx, and for Lp x and y again. What training keeps of a maximum is a byte and not counted."""
        x, y = prod(self.input_size(batch)), prod(self.output_size(batch))
        if direction == "forward":
            return x + y
        return 3 * (x + y) if self.kind == "lp" else 2 * (x + y)


def pool_layers(net: str) -> list[PoolLayer]:
    """The distinct pools of a network, or FAMILY. A network without any gives an empty list.

    Raises: ValueError on an unknown name, with the known ones.
    """
    if net == FAMILY:
        return [
            # lp_pool2d has no padding.
            PoolLayer(
                net, kind, 64, (112, 112), (k,) * 2, (s,) * 2, (0 if kind == "lp" else p,) * 2
            )
            for k, s, p in FAMILY_WINDOWS
            for kind in KINDS
        ]
    if net not in networks():
        known = ", ".join((FAMILY, *networks()))
        raise ValueError(f"unknown list of layers {net!r}; known: {known}")
    kinds = {"MaxPool2d": "max", "AvgPool2d": "avg", "AdaptiveAvgPool2d": "adaptive_avg"}
    layers = []
    for row in networks()[net]["layers"]:
        if row["op"] not in kinds or row.get("output") == row["spatial"]:  # the latter is a copy
            continue
        layers.append(
            PoolLayer(
                net,
                kinds[row["op"]],
                row["C"],
                tuple(row["spatial"]),
                tuple(row.get("kernel", row.get("output"))),
                tuple(row.get("stride", ())),
                tuple(row.get("padding", ())),
                row.get("ceil_mode", False),
                row["count"],
            )
        )
    return layers


def source(net: str) -> str:
    """Where a list comes from."""
    return FAMILY_SOURCE if net == FAMILY else networks()[net]["source"]
