"""The convolutions of `select_triton` by name, on real tensors: no autograd, no choice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastconv import cost_triton, gpu, select_triton
from fastconv._triton import conv, depthwise
from fastconv._triton.conv_geometry import Config
from fastconv.problem import ConvSpec


@lru_cache(1024)
def _parsed(name: str) -> tuple[Any, Any, str]:
    """(launchers, configuration, precision) of "<algorithm>/<configuration>[+<precision>]"."""
    full, _, precision = name.partition("+")
    algorithm = full.partition("/")[0]
    module = depthwise if algorithm == select_triton.DEPTHWISE else conv
    return module, select_triton.config_of(full), precision or "ieee"


@lru_cache(4096)
def _split(config: Config, device: torch.device, *facts: Any) -> Config:
    """As many ranges of pixels as the problem asks for. facts: as a ConvSpec has them."""
    spec = ConvSpec("wgrad", gpu.device_key(device), *facts)
    return config._replace(split=cost_triton.splits(spec, config))


def fprop(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    name: str,
    epilogue: tuple[Any, ...] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """y (N, K, *out). epilogue: (activation's number, slope, residual, residual_after, None, None).
    out: where to put y, a channel slice of a dense tensor."""
    module, config, precision = _parsed(name)
    if module is conv and epilogue is not None and epilogue[2] is not None:
        config = cost_triton.with_residual(config)
    return module.conv_fprop(
        x, w, bias, stride, padding, dilation, groups, config=config, precision=precision,
        epilogue=epilogue, out=out,
    )  # fmt: skip


def stats(
    x: Tensor, w: Tensor, bias: Tensor | None, geometry: tuple[Any, ...], name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, m2): the convolution, each channel's mean, and its sum of squares about it."""
    module, config, precision = _parsed(name)
    return module.conv_stats(x, w, bias, *geometry, config=config, precision=precision)


def dgrad(
    dy: Tensor,
    w: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    name: str,
) -> Tensor:
    """dx (N, C, *in)."""
    module, config, precision = _parsed(name)
    return module.conv_dgrad(
        dy, w, input_size, stride, padding, dilation, groups, config=config, precision=precision,
        channels_last=channels_last,
    )  # fmt: skip


def wgrad(
    dy: Tensor,
    x: Tensor,
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    channels_last: bool,
    name: str,
) -> Tensor:
    """dw (K, C/groups, *kernel)."""
    module, config, precision = _parsed(name)
    if module is conv:
        config = _split(
            config, x.device, x.dtype, tuple(x.shape), tuple(weight_size), tuple(stride),
            tuple(padding), tuple(dilation), groups, channels_last,
        )  # fmt: skip
    return module.conv_wgrad(
        dy, x, weight_size, stride, padding, dilation, groups, config=config, precision=precision,
        channels_last=channels_last,
    )  # fmt: skip
