"""Who can run a convolution: PyTorch, or fastconv with a given algorithm.

A provider turns a problem into a call without arguments, so that the timer sees nothing but the
call itself. `PROVIDERS` may be extended (a test adds a wrong one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastconv.functional
from bench import correctness
from bench.problems import ConvLayer
from fastconv import select
from fastconv.ops import conv as ops
from fastconv.problem import ConvSpec

PYTORCH = "pytorch"  # the yardstick: eager, same layout
DIRECTIONS = ("fprop", "dgrad", "wgrad")
LAYOUTS = ("nchw", "channels_last")


@dataclass(frozen=True)
class Problem:
    """One layer with its batch, direction, dtype, layout and tensors.

    x: [N, C, *spatial], w: [K, C/groups, *kernel], dy: [N, K, *out]; normal random numbers.
    """

    layer: ConvLayer
    batch: int
    direction: str
    layout: str
    x: Tensor
    w: Tensor
    dy: Tensor

    @property
    def spec(self) -> ConvSpec:
        layer = self.layer
        return ConvSpec(
            direction=self.direction,
            device=self.x.device.type,
            dtype=self.x.dtype,
            input_size=tuple(self.x.shape),
            weight_size=tuple(self.w.shape),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            channels_last=self.layout == "channels_last" and layer.rank > 1,
        )


Provider = Callable[[Problem], Callable[[], Tensor]]


def make_tensors(
    layer: ConvLayer, batch: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """x, w, dy of a layer, NCHW: the same numbers for the same sizes, whatever the device."""
    generator = torch.Generator().manual_seed(0)
    sizes = (layer.input_size(batch), layer.weight_size, layer.output_size(batch))
    x, w, dy = (
        torch.randn(size, generator=generator, dtype=torch.float32).to(device, dtype)
        for size in sizes
    )
    return x, w, dy


def with_layout(tensor: Tensor, layout: str) -> Tensor:
    """The tensor in a layout; 1-D problems have only one."""
    if layout == "channels_last" and tensor.dim() > 3:
        last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        return tensor.contiguous(memory_format=last)
    return tensor.contiguous()


def pytorch(problem: Problem) -> Callable[[], Tensor]:
    p = problem
    return lambda: correctness.convolution(p.layer, p.direction, p.x, p.w, p.dy)


def fastconv_with(algo: str) -> Provider:
    """fastconv through the functions that its layers call, with one algorithm (or 'auto')."""

    def provider(problem: Problem) -> Callable[[], Tensor]:
        p, layer = problem, problem.layer
        geometry = (list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups)
        channels_last = p.spec.channels_last
        if p.direction == "fprop":
            names = ("conv1d", "conv2d", "conv3d")
            forward = getattr(fastconv.functional, names[layer.rank - 1])
            return lambda: forward(p.x, p.w, None, *geometry, algo=algo)
        if p.direction == "dgrad":
            size = list(p.x.shape)
            return lambda: ops.conv_dgrad(p.dy, p.w, size, *geometry, channels_last, algo)
        size = list(p.w.shape)
        return lambda: ops.conv_wgrad(p.dy, p.x, size, *geometry, channels_last, algo)

    return provider


PROVIDERS: dict[str, Provider] = {PYTORCH: pytorch}


def provider(name: str) -> Provider:
    return PROVIDERS.get(name) or fastconv_with(name)


def known(device: str = "cpu") -> tuple[str, ...]:
    """Names that `--algos` takes."""
    return ("auto", *select.names(device), *(n for n in PROVIDERS if n != PYTORCH))


def what_runs(name: str, problem: Problem) -> str:
    """The concrete algorithm behind a name ('auto', 'winograd'); raises RuntimeError with the
    reason when it does not apply."""
    if name in PROVIDERS:
        return name
    return select.resolve(problem.spec, name)
