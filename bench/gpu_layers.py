"""The fixed lists of convolutions that a GPU run times, most telling first: when the time is up,
what is left out is the end of the list. They fix batch, direction and arithmetic as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from bench.problems import ConvLayer, conv_layers

REHEARSAL = "rehearsal"  # a network of problems whose times say nothing


@dataclass(frozen=True)
class Timed:
    """A layer with its batch. `gradients`: dgrad and wgrad are timed too. `compiled`: also against
    torch.compile, whose search takes seconds a layer."""

    layer: ConvLayer
    batch: int
    gradients: bool = False
    compiled: bool = False


# (network, the layer's label, batch, marks)
_LISTED = (
    ("resnet50", "64x56x56>64 3x3", 32, "gradients compiled"),
    ("resnet50", "256x14x14>256 3x3", 32, "gradients compiled"),
    ("vgg16", "256x56x56>256 3x3", 32, "gradients compiled"),
    ("resnet50", "64x56x56>256 1x1", 32, "gradients compiled"),
    ("resnet50", "3x224x224>64 7x7 /2", 32, "gradients compiled"),
    ("mobilenet_v2", "384x14x14>384 3x3 g384", 32, "gradients compiled"),
    ("resnet50", "128x56x56>128 3x3 /2", 32, "gradients compiled"),
    ("resnext50_32x4d", "128x56x56>128 3x3 g32", 32, "gradients compiled"),
    ("c3d", "64x16x56x56>128 3x3x3", 8, "gradients compiled"),
    ("mobilenet_v2", "96x112x112>96 3x3 /2 g96", 32, "gradients"),
    ("vgg16", "64x224x224>64 3x3", 32, ""),
    ("vgg16", "512x28x28>512 3x3", 32, ""),
    ("resnet50", "512x7x7>512 3x3", 32, "compiled"),
    ("resnet50", "2048x7x7>512 1x1", 32, "compiled"),
    ("mobilenet_v2", "32x112x112>32 3x3 g32", 32, ""),
    ("convnext_tiny", "96x56x56>96 7x7 g96", 32, ""),
    ("googlenet", "64x56x56>192 3x3", 32, ""),
    ("googlenet", "16x28x28>32 3x3", 32, ""),
    ("googlenet", "480x14x14>192 1x1", 32, ""),
    ("resnet50", "128x28x28>128 3x3", 32, ""),
    ("resnet50", "256x56x56>512 1x1 /2", 32, ""),
    ("resnet50", "64x56x56>64 1x1", 32, ""),
    ("alexnet", "64x27x27>192 5x5", 32, ""),
    ("vgg16", "3x224x224>64 3x3", 32, ""),
    ("vgg16", "128x112x112>128 3x3", 32, ""),
    ("c3d", "128x8x28x28>256 3x3x3", 8, ""),
    ("c3d_grouped", "64x8x56x56>64 3x3x3 g64", 8, ""),
    ("resnet50", "64x56x56>64 3x3", 1, ""),
)


def _conv3d(net: str, channels: int, spatial: tuple[int, ...], filters: int, groups: int = 1):
    ones = (1, 1, 1)
    return ConvLayer(net, channels, spatial, filters, (3, 3, 3), ones, ones, ones, groups)


# Tran et al., "Learning Spatiotemporal Features with 3D Convolutional Networks", on clips of
# 16x112x112; and a depthwise layer of the same kind.
_THREE_AXES = (
    _conv3d("c3d", 64, (16, 56, 56), 128),
    _conv3d("c3d", 128, (8, 28, 28), 256),
    _conv3d("c3d_grouped", 64, (8, 56, 56), 64, groups=64),
)


def timed_layers() -> list[Timed]:
    """The list. Raises KeyError on a layer that its network does not have."""
    known = {(layer.net, layer.label): layer for layer in _THREE_AXES}
    for net in dict.fromkeys(net for net, *_ in _LISTED):
        if not any(net == layer.net for layer in _THREE_AXES):
            known |= {(net, layer.label): layer for layer in conv_layers(net)}
    return [
        Timed(known[net, label], batch, "gradients" in marks, "compiled" in marks)
        for net, label, batch, marks in _LISTED
    ]


def rehearsed_layers() -> list[Timed]:
    """A few tiny problems, to run the benchmark itself where there is no GPU."""
    ones = (1, 1)
    plane = ConvLayer(REHEARSAL, 4, (8, 8), 6, (3, 3), ones, ones, ones)
    depthwise = ConvLayer(REHEARSAL, 6, (9, 7), 6, (3, 3), (2, 2), ones, ones, 6)
    volume = _conv3d(REHEARSAL, 2, (3, 5, 4), 3)
    return [Timed(plane, 2, gradients=True), Timed(depthwise, 1), Timed(volume, 1)]


def by_value(layers: list[Timed]) -> Iterator[tuple[Timed, str, str]]:
    """(layer, direction, arithmetic: a dtype, "tf32" or "tf32x3"), most telling first."""
    for arithmetic in ("bfloat16", "float32"):
        yield from ((item, "fprop", arithmetic) for item in layers)
    for arithmetic in ("bfloat16", "float32"):
        for item in layers:
            if item.gradients:
                yield from ((item, direction, arithmetic) for direction in ("dgrad", "wgrad"))
    for arithmetic in ("tf32", "tf32x3"):
        yield from ((item, "fprop", arithmetic) for item in layers if item.gradients)


class Listed(NamedTuple):
    """What a list fixes of a problem. arithmetic: a dtype, "tf32" or "tf32x3"."""

    layer: ConvLayer
    direction: str
    arithmetic: str
    epilogue: str = "none"


# What the goals of goals.py for a GPU are about, 32 images each.
_DENSE = (("vgg16", "256x56x56>256 3x3"), ("resnet50", "256x14x14>256 3x3"),
          ("vgg16", "512x28x28>512 3x3"), ("resnet50", "512x7x7>512 3x3"))  # fmt: skip
_NARROW = (("resnet50", "64x56x56>64 3x3"), ("googlenet", "16x28x28>32 3x3"),
           ("vgg16", "64x112x112>128 3x3"))  # fmt: skip
_POINTWISE = (("resnet50", "64x56x56>256 1x1"), ("resnet50", "64x56x56>64 1x1"),
              ("resnet50", "256x56x56>64 1x1"))  # fmt: skip


def goal_work() -> Iterator[Listed]:
    """The problems of the goals, each kind's first one first."""
    from bench.fused_problem import fused  # not of those who want this file's names alone

    kinds = (
        (_DENSE, "fprop", "bfloat16", "none"),
        (_NARROW, "fprop", "bfloat16", "bias+relu"),
        (_POINTWISE, "inference", "bfloat16", "none"),
        (_DENSE, "fprop", "tf32x3", "none"),
    )
    for rank in range(max(len(layers) for layers, *_ in kinds)):
        for layers, direction, arithmetic, epilogue in kinds:
            if rank >= len(layers):
                continue
            net, label = layers[rank]
            layer = next(each for each in conv_layers(net) if each.label == label)
            layer = replace(fused(layer) if direction == "inference" else layer, batch=32)
            yield Listed(layer, direction, arithmetic, epilogue)


# Name -> (the layers, whether torch.compile, whose search takes seconds, is to be compared with).
LISTS = {
    "gpu": (timed_layers, False),
    "gpu_compiled": (timed_layers, True),
    "gpu_rehearsal": (rehearsed_layers, False),
}
GOALS = "gpu_goals"
SOURCE = "layers of the other lists, and of C3D (Tran et al., ICCV 2015), by what they tell"


def names() -> tuple[str, ...]:
    """The lists of this file."""
    return (*LISTS, GOALS)


def work(name: str) -> Iterator[Listed]:
    """A list's problems, layers with their batch, most telling first."""
    if name == GOALS:
        yield from goal_work()
        return
    make, compiled = LISTS[name]
    for item, direction, arithmetic in by_value(make()):
        if not compiled or (item.compiled and not arithmetic.startswith("tf32")):
            yield Listed(replace(item.layer, batch=item.batch), direction, arithmetic)


def layers(name: str) -> list[ConvLayer]:
    """A list's distinct layers."""
    return list(dict.fromkeys(each.layer for each in work(name)))
