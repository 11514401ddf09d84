"""Pooling layers: subclasses of torch.nn's that compute with fastconv's functions.

Everything but the computation is inherited: arguments, attributes, printed form, and the (empty)
state_dict are PyTorch's by construction. Shapes, dtypes, layouts, determinism and errors are those
of the functions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastconv import pooling


class MaxPool1d(nn.MaxPool1d):
    """torch.nn.MaxPool1d computed by fastconv.max_pool1d; same arguments."""

    def forward(self, input: Tensor) -> Any:
        return _max(pooling.max_pool1d, self, input)


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d computed by fastconv.max_pool2d; same arguments."""

    def forward(self, input: Tensor) -> Any:
        return _max(pooling.max_pool2d, self, input)


class MaxPool3d(nn.MaxPool3d):
    """torch.nn.MaxPool3d computed by fastconv.max_pool3d; same arguments."""

    def forward(self, input: Tensor) -> Any:
        return _max(pooling.max_pool3d, self, input)


class AvgPool1d(nn.AvgPool1d):
    """torch.nn.AvgPool1d computed by fastconv.avg_pool1d; same arguments."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.avg_pool1d(input, *_avg(self))


class AvgPool2d(nn.AvgPool2d):
    """torch.nn.AvgPool2d computed by fastconv.avg_pool2d; same arguments."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.avg_pool2d(input, *_avg(self), self.divisor_override)


class AvgPool3d(nn.AvgPool3d):
    """torch.nn.AvgPool3d computed by fastconv.avg_pool3d; same arguments."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.avg_pool3d(input, *_avg(self), self.divisor_override)


class LPPool1d(nn.LPPool1d):
    """torch.nn.LPPool1d computed by fastconv.lp_pool1d; same arguments."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.lp_pool1d(input, *_lp(self))


class LPPool2d(nn.LPPool2d):
    """torch.nn.LPPool2d computed by fastconv.lp_pool2d; same arguments."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.lp_pool2d(input, *_lp(self))


class LPPool3d(nn.LPPool3d):
    """torch.nn.LPPool3d computed by fastconv.lp_pool3d; same arguments."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.lp_pool3d(input, *_lp(self))


class _WindowPool2d(nn.Module):
    """Arguments of a 2-D pooling that torch.nn has no layer for."""

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride if stride is not None else kernel_size
        self.padding = padding
        self.ceil_mode = ceil_mode

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding},"
            f" ceil_mode={self.ceil_mode}"
        )


class SumPool2d(_WindowPool2d):
    """The sum of each window (fastconv.sum_pool2d)."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.sum_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode
        )


class L2Pool2d(_WindowPool2d):
    """The square root of each window's sum of squares (fastconv.l2_pool2d)."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.l2_pool2d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode)


def _max(function: Any, layer: Any, input: Tensor) -> Any:
    return function(
        input,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        ceil_mode=layer.ceil_mode,
        return_indices=layer.return_indices,
    )


def _avg(layer: Any) -> tuple[Any, ...]:
    return (
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.ceil_mode,
        layer.count_include_pad,
    )


def _lp(layer: Any) -> tuple[Any, ...]:
    return float(layer.norm_type), layer.kernel_size, layer.stride, layer.ceil_mode
