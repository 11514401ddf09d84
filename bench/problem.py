"""What the benchmark asks of a problem, whatever its operation, and of a verdict on an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

LAYOUTS = ("nchw", "channels_last")
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Verdict:
    """`error` in the operation's units (inf for NaN or a wrong shape), against `tolerance`."""

    error: float
    tolerance: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        return not self.reason and self.error <= self.tolerance


class Once:
    """A value that is computed when it is first asked for, shared by the layouts of a problem."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute = compute

    @cached_property
    def value(self) -> Any:
        return self.compute()


@dataclass(frozen=True)
class Problem(ABC):
    """One layer with its batch, direction, layout and tensors.

    layer: has net, label, count and batch-dependent sizes. answer: the exact result, as `judge` of
    the subclass reads it.
    """

    layer: Any
    batch: int
    direction: str
    layout: str
    x: Tensor
    answer: Once = field(repr=False, compare=False)

    family: ClassVar[str]  # the name of the providers' method that runs it
    op: ClassVar[str]

    @abstractmethod
    def judge(self, result: Any, ran: str) -> Verdict:
        """Compares one answer of `ran` with the exact one."""

    @abstractmethod
    def bytes(self) -> int:
        """What has to cross the memory bus: every operand and result once."""

    def flops(self) -> float:
        """Twice the multiply-adds of the definition; 0 where memory alone limits."""
        return 0.0

    def facts(self) -> dict:
        """What a row says of the problem."""
        return {
            "op": self.op,
            "net": self.layer.net,
            "layer": self.layer.label,
            "count": self.layer.count,
            "batch": self.batch,
            "direction": self.direction,
            "layout": self.layout,
            "device": self.x.device.type,
            "dtype": str(self.x.dtype).removeprefix("torch."),
            "bytes": self.bytes(),
            "flops": self.flops(),
        }


def with_layout(tensor: Tensor, layout: str) -> Tensor:
    """The tensor in a layout; 1-D problems have only one."""
    if layout == "channels_last" and tensor.dim() > 3:
        last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        return tensor.contiguous(memory_format=last)
    return tensor.contiguous()
