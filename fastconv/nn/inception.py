"""Inception: GoogLeNet's module, with its normalisation or without, as one operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastconv import select_triton
from fastconv.fused import folded_layers
from fastconv.inception import inception
from fastconv.nn.conv import Conv2d, check_algo
from fastconv.nn.fused import has_hooks, run_chain
from fastconv.nn.pool import MaxPool2d

_EPS = 0.001  # of BN-Inception's layers in torchvision


class InceptionUnit(nn.Module):
    """One convolution of the module, with bias, or with normalisation instead; then ReLU.

    Children `conv` and, with batch_norm, `bn`, as in torchvision's BasicConv2d.
    """

    def __init__(
        self, C: int, K: int, extent: int, batch_norm: bool, algo: str, **placed: Any
    ) -> None:
        super().__init__()
        self.conv = Conv2d(
            C, K, extent, padding=extent // 2, bias=not batch_norm, algo=algo, **placed
        )
        if batch_norm:
            self.bn = nn.BatchNorm2d(K, eps=_EPS, **placed)
        else:
            self.bn = None

    def forward(self, x: Tensor) -> Tensor:
        if self.bn is None or has_hooks(self.conv) or has_hooks(self.bn):
            y = self.conv(x)
            return nn.functional.relu(y if self.bn is None else self.bn(y))
        return run_chain(self.conv, self.bn, x, "relu")


def _has_hooks_in(module: nn.Module) -> bool:
    """As `any(map(has_hooks, module.modules()))`, which takes longer than a small convolution."""
    return has_hooks(module) or any(map(_has_hooks_in, module._modules.values()))


class Inception(nn.Module):
    """GoogLeNet's inception module; ReLU behind every convolution.

    Args:
        in_channels: C of the input.
        ch1x1, ch3x3red, ch3x3, ch5x5red, ch5x5, pool_proj: filters of the 1x1, of the 3x3's
            reduction, the 3x3, the 5x5's reduction, the 5x5, and the pool's projection.
        batch_norm: a normalisation (eps 0.001) behind each convolution instead of a bias.
        kernel5: the extent of the 5x5; torchvision's GoogLeNet has 3 in its place.
        algo: of the convolutions, as in fastconv.conv2d; with a Triton algorithm the pool is
            Triton's, too.

    Children branch1, branch2, branch3 and branch4 with torchvision's names inside, so that a
    state_dict of its GoogLeNet's module loads as it is (with batch_norm, and kernel5=3).

    Shapes: input (N, C, H, W); output (N, ch1x1 + ch3x3 + ch5x5 + pool_proj, H, W).
    In evaluation, and when training without batch_norm, the whole is fastconv.inception; when
    training with it each convolution is one with its normalisation. A hook on a child makes the
    children run one by one. Dtypes, layouts, determinism: those of fastconv.inception.

    Raises:
        ValueError: for arguments torch.nn.Conv2d refuses, an even kernel5, an unknown algo.

    Source: Szegedy et al., "Going Deeper with Convolutions", 2015, figure 2(b).
    """

    def __init__(
        self,
        in_channels: int,
        ch1x1: int,
        ch3x3red: int,
        ch3x3: int,
        ch5x5red: int,
        ch5x5: int,
        pool_proj: int,
        batch_norm: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        kernel5: int = 5,
        algo: str = "auto",
    ) -> None:
        super().__init__()
        check_algo(algo)
        if kernel5 % 2 == 0:
            raise ValueError(f"kernel5 must be odd to keep the extents, got {kernel5}")
        placed = {"device": device, "dtype": dtype}

        def unit(C: int, K: int, extent: int) -> InceptionUnit:
            return InceptionUnit(C, K, extent, batch_norm, algo, **placed)

        self.algo = algo
        self.branch1 = unit(in_channels, ch1x1, 1)
        self.branch2 = nn.Sequential(unit(in_channels, ch3x3red, 1), unit(ch3x3red, ch3x3, 3))
        self.branch3 = nn.Sequential(unit(in_channels, ch5x5red, 1), unit(ch5x5red, ch5x5, kernel5))
        pool = MaxPool2d(3, 1, 1, algo=select_triton.pools_of(algo))
        self.branch4 = nn.Sequential(pool, unit(in_channels, pool_proj, 1))

    @classmethod
    def from_torchvision(cls, module: nn.Module) -> Inception:
        """A copy of torchvision's GoogLeNet `Inception`: the same parameters, values and mode."""
        kernel5 = module.branch3[1].conv.kernel_size[0]
        layers = (
            module.branch1,
            *module.branch2,
            *module.branch3,
            module.branch4[1],
        )
        weight = module.branch1.conv.weight
        ours = cls(
            module.branch1.conv.in_channels,
            *(layer.conv.out_channels for layer in layers),
            batch_norm=True,
            kernel5=kernel5,
            device=weight.device,
            dtype=weight.dtype,
        )
        ours.load_state_dict(module.state_dict())
        for layer, theirs in zip(ours._units(), layers, strict=True):
            layer.bn.eps, layer.bn.momentum = theirs.bn.eps, theirs.bn.momentum
        return ours.train(module.training)

    def _units(self) -> tuple[InceptionUnit, ...]:
        """In the order of fastconv.inception's weights."""
        branches = (self.branch2, self.branch3)
        return (self.branch1, *(u for b in branches for u in b), self.branch4[1])

    def _watched(self) -> bool:
        return any(map(_has_hooks_in, self._modules.values()))

    def forward(self, input: Tensor) -> Tensor:
        layers = [folded_layers(unit.conv, unit.bn, input) for unit in self._units()]
        if None in layers or self._watched():
            branches = (self.branch1, self.branch2, self.branch3, self.branch4)
            return torch.cat([branch(input) for branch in branches], 1)
        weights, biases = zip(*layers, strict=True)
        return inception(input, weights, biases, algo=self.algo)

    def extra_repr(self) -> str:
        return "" if self.algo == "auto" else f"algo={self.algo}"
