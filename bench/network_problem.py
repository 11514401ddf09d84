"""Whole networks at inference, as a user converts them: ResNet-50 and VGG-16 in evaluation, on
random weights. Errors are relative to the result's norm, in units of the dtype's roundoff."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bench.problem import Once, Problem, Verdict, with_layout

SOURCE = (
    "He et al., Deep Residual Learning (2015), table 1; Simonyan and Zisserman, Very Deep"
    " Convolutional Networks (2014), configuration D"
)
DIRECTIONS = ("inference",)
ROUNDOFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# Fifty layers round one after another; in float32 Winograd's tiles besides.
TOLERANCE = {2: 12.0, 4: 400.0}
CLASSES = 1000
RESNET_BLOCKS = (3, 4, 6, 3)
VGG_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def normalised(C: int, K: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(C, K, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(K)]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut around them; the stride is the 3x3's."""

    def __init__(self, C: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(*normalised(C, width, 1), nn.ReLU()),
            *(*normalised(width, width, 3, stride), nn.ReLU()),
            *normalised(width, 4 * width, 1),
        )
        alike = stride == 1 and 4 * width == C
        self.shortcut = (
            nn.Identity() if alike else nn.Sequential(*normalised(C, 4 * width, 1, stride))
        )
        self.relu = nn.ReLU()
        nn.init.constant_(self.branch[-1].weight, 0.25)  # so that sums stay in range

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.branch(x) + self.shortcut(x))


def resnet50(width: int = 64) -> nn.Module:
    stem = [*normalised(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, C = [], width
    for stage, count in enumerate(RESNET_BLOCKS):
        for i in range(count):
            wide = width << stage
            blocks.append(Bottleneck(C, wide, 2 if stage > 0 and i == 0 else 1))
            C = 4 * wide
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, CLASSES)
    )


def vgg16(width: int = 64) -> nn.Module:
    layers: list[nn.Module] = []
    C = 3
    for filters, count in VGG_BLOCKS:
        for _ in range(count):
            K = filters * width // 64
            layers += [nn.Conv2d(C, K, 3, padding=1), nn.ReLU()]
            C = K
        layers.append(nn.MaxPool2d(2))
    hidden = 64 * width
    return nn.Sequential(
        *(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten()),
        *(nn.Linear(49 * C, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, CLASSES),
    )


@dataclass(frozen=True)
class NetworkLayer:
    """One network. width: of its first layers, of which the others are multiples."""

    name: str
    extent: int = 224
    width: int = 64
    net: str = "networks"
    count: int = 1
    batch: int | None = None

    @property
    def label(self) -> str:
        narrow = "" if self.width == 64 else f" of width {self.width}"
        return f"{self.name}{narrow} 3x{self.extent}x{self.extent}"

    def input_size(self, batch: int) -> tuple[int, ...]:
        return (batch, 3, self.extent, self.extent)

    def output_size(self, batch: int) -> tuple[int, ...]:
        return (batch, CLASSES)

    def build(self) -> nn.Module:
        return {"resnet50": resnet50, "vgg16": vgg16}[self.name](self.width)

    def make(self) -> nn.Module:
        """In evaluation; the same weights each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
            for part in model.modules():
                if isinstance(part, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        return model.eval()


@cache
def extents(layer: NetworkLayer) -> tuple[int, int]:
    """(multiply-adds of one image's convolutions and products, weights)."""
    total = 0

    def count(part: nn.Module, inputs: Any, y: Tensor) -> None:
        nonlocal total
        per_output = part.weight.numel() // part.weight.shape[0]
        total += y.numel() * per_output

    with torch.device("meta"), torch.no_grad():
        model = layer.build().eval()
        for part in model.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.register_forward_hook(count)
        model(torch.empty(1, 3, layer.extent, layer.extent))
    return total, sum(w.numel() for w in model.parameters())


@dataclass(frozen=True)
class NetworkProblem(Problem):
    """x: [N, 3, H, W] normal random numbers; make: the network on x's device, in its dtype and the
    problem's layout."""

    make: Callable[[], nn.Module]

    family: ClassVar[str] = "network"
    op: ClassVar[str] = "network"
    layer: NetworkLayer

    def judge(self, result: Any, ran: str) -> Verdict:
        exact = self.answer.value
        tolerance = TOLERANCE[2 if self.x.element_size() == 2 else 4]
        if tuple(result.shape) != tuple(exact.shape):
            return Verdict(float("inf"), tolerance, f"shape {tuple(result.shape)}")
        off = (result.detach().double().to(exact.device) - exact).norm() / exact.norm()
        unit = ROUNDOFF.get(self.x.dtype, 2.0**-24)
        return Verdict(float((off / unit).nan_to_num(nan=float("inf"))), tolerance)

    def bytes(self) -> int:
        return (self.x.numel() + extents(self.layer)[1]) * self.x.element_size()

    def flops(self) -> float:
        return 2.0 * self.batch * extents(self.layer)[0]


def networks() -> list[NetworkLayer]:
    return [NetworkLayer("resnet50"), NetworkLayer("vgg16")]


def problems_of(
    layer: NetworkLayer,
    batch: int,
    directions: Sequence[str],
    layouts: Sequence[str],
    dtype: torch.dtype,
    device: str = "cpu",
) -> Iterator[NetworkProblem]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layer.input_size(batch), generator=generator).to(device, dtype)

    def made(layout: str) -> nn.Module:
        last = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        return layer.make().to(device, dtype).to(memory_format=last)

    def exact() -> Tensor:
        """In float64, of the rounded weights."""
        with torch.no_grad():
            return made("nchw").double()(x.double())

    answer = Once(exact)
    for direction, layout in product(directions, layouts):
        yield NetworkProblem(
            layer,
            batch,
            direction,
            layout,
            with_layout(x, layout),
            answer,
            lambda layout=layout: made(layout),
        )
