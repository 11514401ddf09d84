"""Small networks, one per family of architecture, to be converted and trained by the tests.

Each keeps what is peculiar to its family (kernel shapes, strides, groups, how paths join) at a
width that runs in milliseconds. Every forward ends in class scores [N, 5] unless noted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

CLASSES = 5


def _conv_bn(in_channels: int, out_channels: int, kernel: int, **kwargs) -> nn.Sequential:
    kwargs.setdefault("padding", kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, bias=False, **kwargs),
        nn.BatchNorm2d(out_channels),
    )


class Plain(nn.Module):
    """VGG: stacked 3x3 convolutions with bias, max pooling between."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (8, "pool", 12, 12, "pool", 16):
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(16 * 3 * 3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 12, 12]
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv_bn(in_channels, out_channels, 3, stride=stride)
        self.conv2 = _conv_bn(out_channels, out_channels, 3)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else _conv_bn(in_channels, out_channels, 1, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 down, 3x3 (possibly grouped), 1x1 up, and a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        out_channels = 2 * width
        self.reduce = _conv_bn(in_channels, width, 1)
        self.conv = _conv_bn(width, width, 3, stride=stride, groups=groups)
        self.expand = _conv_bn(width, out_channels, 1)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else _conv_bn(in_channels, out_channels, 1, stride=stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(torch.relu(self.reduce(x))))
        return torch.relu(self.expand(y) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """MobileNetV2: 1x1 up, depthwise 3x3, linear 1x1 down."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = in_channels * ratio
        self.expand = _conv_bn(in_channels, hidden, 1)
        self.depthwise = _conv_bn(hidden, hidden, 3, stride=stride, groups=hidden)
        self.project = _conv_bn(hidden, out_channels, 1)
        self.joins = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.expand(x))
        y = self.project(nn.functional.relu6(self.depthwise(y)))
        return x + y if self.joins else y


class Pooled(nn.Module):
    """Stem, body, global average, linear classifier: the frame of the residual families."""

    def __init__(self, stem: nn.Module, body: nn.Module, channels: int) -> None:
        super().__init__()
        self.stem, self.body = stem, body
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 12, 12]
        return self.fc(self.body(torch.relu(self.stem(x))).mean((2, 3)))


def resnet_basic() -> nn.Module:
    body = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 12, 2))
    return Pooled(_conv_bn(3, 8, 7, stride=2), body, 12)


def resnet_bottleneck() -> nn.Module:
    return Pooled(_conv_bn(3, 8, 3), nn.Sequential(Bottleneck(8, 6, 1), Bottleneck(12, 8, 2)), 16)


def resnext() -> nn.Module:
    body = nn.Sequential(Bottleneck(8, 8, 1, groups=4), Bottleneck(16, 12, 2, groups=4))
    return Pooled(_conv_bn(3, 8, 3), body, 24)


def mobilenet() -> nn.Module:
    body = nn.Sequential(InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 12, 2, 3))
    return Pooled(_conv_bn(3, 8, 3, stride=2), body, 12)


class InceptionBlock(nn.Module):
    """Parallel paths joined along the channels, with 1x5/5x1 factors as in later Inceptions."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.single = nn.Conv2d(in_channels, 4, 1)
        self.triple = nn.Sequential(
            nn.Conv2d(in_channels, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding="same")
        )
        self.factored = nn.Sequential(
            nn.Conv2d(in_channels, 3, 1),
            nn.ReLU(),
            nn.Conv2d(3, 3, (1, 5), padding=(0, 2)),
            nn.Conv2d(3, 4, (5, 1), padding=(2, 0)),
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(in_channels, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        paths = (self.single, self.triple, self.factored, self.pooled)
        return torch.relu(torch.cat([path(x) for path in paths], 1))


def inception() -> nn.Module:
    body = nn.Sequential(InceptionBlock(8), nn.MaxPool2d(2), InceptionBlock(16))
    return Pooled(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), body, 16)


class Speech(nn.Module):
    """One-dimensional: a wide strided front end on samples, then dilated residual layers."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, 8, 16, stride=4)
        self.dilated = nn.ModuleList(
            nn.Conv1d(8, 8, 3, padding=d, dilation=d, padding_mode="replicate") for d in (1, 2, 4)
        )
        self.head = nn.Conv1d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:  # [N, 1, 100]
        x = torch.relu(self.front(x))
        for layer in self.dilated:
            x = x + torch.tanh(layer(x))
        return self.head(x).mean(2)


class Video(nn.Module):
    """C3D: 3x3x3 convolutions over frames, and one (2+1)-D pair."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 6, 3, padding=1)
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.space = nn.Conv3d(6, 6, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(6, 8, (3, 1, 1), stride=(2, 1, 1), bias=False)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # [N, 2, 5, 8, 8]
        x = self.pool(torch.relu(self.conv1(x)))
        x = torch.relu(self.time(self.space(x)))
        return self.fc(x.mean((2, 3, 4)))


class UNet(nn.Module):
    """Down, up with a transposed convolution, skip joined by concatenation; [N, 5, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(6, 12, 3, padding=1, padding_mode="circular"),
            nn.GroupNorm(3, 12),
            nn.ReLU(),
        )
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.leave = nn.ModuleDict(
            {"mix": nn.Conv2d(12, 8, 3, padding=1), "score": nn.Conv2d(8, CLASSES, 1)}
        )

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 12, 12]
        skip = self.enter(x)
        joined = torch.cat([skip, self.up(self.down(skip))], 1)
        return self.leave["score"](torch.relu(self.leave["mix"](joined)))


class Architecture(NamedTuple):
    """How to make one model (fp32, training mode), what it takes, what is in it.

    convolutions, poolings: how many layers conversion changes. transposed: how many it must leave.
    """

    make: Callable[[], nn.Module]
    input_size: tuple[int, ...]
    convolutions: int
    poolings: int = 0
    transposed: int = 0

    @property
    def layers(self) -> int:
        return self.convolutions + self.poolings


ARCHITECTURES = {
    "plain": Architecture(Plain, (2, 3, 12, 12), 4, poolings=2),
    "resnet_basic": Architecture(resnet_basic, (2, 3, 12, 12), 6),
    "resnet_bottleneck": Architecture(resnet_bottleneck, (2, 3, 12, 12), 9),
    "resnext": Architecture(resnext, (2, 3, 12, 12), 9),
    "mobilenet": Architecture(mobilenet, (2, 3, 12, 12), 7),
    "inception": Architecture(inception, (2, 3, 12, 12), 15, poolings=3),
    "speech": Architecture(Speech, (2, 1, 100), 5),
    "video": Architecture(Video, (2, 2, 5, 8, 8), 3, poolings=1),
    "unet": Architecture(UNet, (2, 3, 12, 12), 4, poolings=1, transposed=1),
}
