"""The convolution problems that are timed: layers of real networks, and Baidu's DeepBench list.

The tables are JSON under `bench/problems/`, one layer a line, each with its source.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

FOLDER = Path(__file__).parent / "problems"
DEEPBENCH = "deepbench_"  # deepbench_training, deepbench_inference_server, ...


@dataclass(frozen=True)
class ConvLayer:
    """One convolution layer, of any rank 1-3, without its batch size.

    `count` is how often the layer occurs in its network; `batch` is set only where the source
    fixes it (DeepBench).
    """

    net: str
    C: int
    spatial: tuple[int, ...]  # D, H, W of the input
    K: int
    kernel: tuple[int, ...]  # T, R, S
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    count: int = 1
    batch: int | None = None

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def weight_size(self) -> tuple[int, ...]:
        return (self.K, self.C // self.groups, *self.kernel)

    def input_size(self, batch: int) -> tuple[int, ...]:
        return (batch, self.C, *self.spatial)

    def output_size(self, batch: int) -> tuple[int, ...]:
        out = (
            (extent + 2 * pad - dil * (k - 1) - 1) // stride + 1
            for extent, k, stride, pad, dil in zip(
                self.spatial, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return (batch, self.K, *out)

    def macs(self, batch: int) -> int:
        """Multiply-adds of one direction, padding counted."""
        return prod(self.output_size(batch)) * prod(self.weight_size[1:])

    def elements(self, batch: int) -> int:
        """Elements of x, w and y that have to cross the memory bus: each once, and of x only the
        pixels that a pointwise filter samples."""
        x = prod(self.input_size(batch))
        if set(self.kernel) == {1}:
            x = min(x, batch * self.C * prod(self.output_size(batch)[2:]))
        return x + prod(self.weight_size) + prod(self.output_size(batch))

    @property
    def label(self) -> str:
        """What the tables print, e.g. '64x56x56>256 3x3 /2 g32'."""
        text = f"{times((self.C, *self.spatial))}>{self.K} {times(self.kernel)}"
        if any(s != 1 for s in self.stride):
            text += f" /{once(self.stride)}"
        if any(d != 1 for d in self.dilation):
            text += f" d{once(self.dilation)}"
        return text + (f" g{self.groups}" if self.groups != 1 else "")

    def geometry(self, batch: int) -> dict:
        """What a row keeps of it, for whoever asks the cost models again."""
        return {
            "input_size": list(self.input_size(batch)),
            "weight_size": list(self.weight_size),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }

    @property
    def is_dense_3x3_stride_1(self) -> bool:
        return (
            self.kernel == (3, 3)
            and self.stride == (1, 1)
            and self.dilation == (1, 1)
            and self.groups == 1
        )


def times(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))


def once(values: tuple[int, ...]) -> str:
    """(2, 2) -> '2', (2, 1) -> '2x1'."""
    return str(values[0]) if len(set(values)) == 1 else times(values)


@cache
def networks() -> dict:
    """The networks' layers of every kind, as in the file."""
    return json.loads((FOLDER / "networks.json").read_text())["networks"]


@cache
def _deepbench() -> dict:
    return json.loads((FOLDER / "deepbench.json").read_text())


def net_names() -> tuple[str, ...]:
    """Every list of layers that `conv_layers` knows."""
    return (*networks(), *(DEEPBENCH + name for name in _deepbench()["sets"]))


def source(net: str) -> str:
    """Where a list comes from. Raises ValueError on an unknown name."""
    _check(net)
    return _deepbench()["source"] if net.startswith(DEEPBENCH) else networks()[net]["source"]


def conv_layers(net: str) -> list[ConvLayer]:
    """The distinct convolutions of a network or DeepBench set, in the network's order.

    Raises: ValueError on an unknown name, with the known ones.
    """
    _check(net)
    if net.startswith(DEEPBENCH):
        rows = _deepbench()["sets"][net.removeprefix(DEEPBENCH)]
    else:
        rows = [row for row in networks()[net]["layers"] if row["op"] == "conv"]
    return [layer_of(net, row) for row in rows]


def _check(net: str) -> None:
    if net not in net_names():
        raise ValueError(f"unknown list of layers {net!r}; known: {', '.join(net_names())}")


def layer_of(net: str, row: dict) -> ConvLayer:
    """A row of a problem file."""
    rank = len(row["spatial"])
    return ConvLayer(
        net=net,
        C=row["C"],
        spatial=tuple(row["spatial"]),
        K=row["K"],
        kernel=tuple(row["kernel"]),
        stride=tuple(row["stride"]),
        padding=tuple(row["padding"]),
        dilation=tuple(row.get("dilation", (1,) * rank)),
        groups=row.get("groups", 1),
        count=row.get("count", 1),
        batch=row.get("N"),
    )
