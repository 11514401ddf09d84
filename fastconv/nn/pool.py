"""Pooling layers: subclasses of torch.nn's that compute with fastconv's functions.

Everything but the computation is inherited: arguments, attributes, printed form, and the (empty)
state_dict are PyTorch's by construction. Each layer also takes the keyword `algo`. Shapes, dtypes,
layouts, determinism and errors are those of the functions. Layers that torch.nn has not are in
nn/pool_more.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastconv import pooling, pooling_adaptive, select_pool


class PoolNd(nn.Module):
    """What all pooling layers share: the choice of algorithm.

    `algo` is a default of the class and enters an instance only where it differs, so that a layer's
    `__dict__` is otherwise the one of torch.nn's layer.
    """

    algo: str = "auto"

    def __init__(self, *args: Any, algo: str = "auto", **kwargs: Any) -> None:
        select_pool.check_name(algo)
        super().__init__(*args, **kwargs)
        if algo != "auto":
            self.algo = algo

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.algo == "auto" else f"{text}, algo={self.algo}"

    def __prepare_scriptable__(self):
        # torch.jit.script calls this first; without it the failure is a compile error deep inside.
        raise RuntimeError(
            f"torch.jit.script: fastconv.nn.{type(self).__name__} cannot be scripted, because its"
            " algorithm is chosen in Python. Use torch.compile, torch.export or torch.jit.trace, or"
            " call fastconv.revert(model) before scripting."
        )


def _max(function: Any, layer: Any, input: Tensor) -> Any:
    return function(
        input,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        ceil_mode=layer.ceil_mode,
        return_indices=layer.return_indices,
        algo=layer.algo,
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


def _unpool(
    function: Any, layer: Any, input: Tensor, indices: Tensor, output_size: list[int] | None
) -> Tensor:
    args = (layer.kernel_size, layer.stride, layer.padding, output_size)
    return function(input, indices, *args, algo=layer.algo)


class MaxPool1d(PoolNd, nn.MaxPool1d):
    """torch.nn.MaxPool1d computed by fastconv.max_pool1d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Any:
        return _max(pooling.max_pool1d, self, input)


class MaxPool2d(PoolNd, nn.MaxPool2d):
    """torch.nn.MaxPool2d computed by fastconv.max_pool2d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Any:
        return _max(pooling.max_pool2d, self, input)


class MaxPool3d(PoolNd, nn.MaxPool3d):
    """torch.nn.MaxPool3d computed by fastconv.max_pool3d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Any:
        return _max(pooling.max_pool3d, self, input)


class AvgPool1d(PoolNd, nn.AvgPool1d):
    """torch.nn.AvgPool1d computed by fastconv.avg_pool1d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.avg_pool1d(input, *_avg(self), algo=self.algo)


class AvgPool2d(PoolNd, nn.AvgPool2d):
    """torch.nn.AvgPool2d computed by fastconv.avg_pool2d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.avg_pool2d(input, *_avg(self), self.divisor_override, algo=self.algo)


class AvgPool3d(PoolNd, nn.AvgPool3d):
    """torch.nn.AvgPool3d computed by fastconv.avg_pool3d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.avg_pool3d(input, *_avg(self), self.divisor_override, algo=self.algo)


class LPPool1d(PoolNd, nn.LPPool1d):
    """torch.nn.LPPool1d computed by fastconv.lp_pool1d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.lp_pool1d(input, *_lp(self), algo=self.algo)


class LPPool2d(PoolNd, nn.LPPool2d):
    """torch.nn.LPPool2d computed by fastconv.lp_pool2d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.lp_pool2d(input, *_lp(self), algo=self.algo)


class LPPool3d(PoolNd, nn.LPPool3d):
    """torch.nn.LPPool3d computed by fastconv.lp_pool3d; same arguments, and `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling.lp_pool3d(input, *_lp(self), algo=self.algo)


class AdaptiveMaxPool1d(PoolNd, nn.AdaptiveMaxPool1d):
    """torch.nn.AdaptiveMaxPool1d computed by fastconv.adaptive_max_pool1d; also takes `algo`."""

    def forward(self, input: Tensor) -> Any:
        args = (self.output_size, self.return_indices)
        return pooling_adaptive.adaptive_max_pool1d(input, *args, algo=self.algo)


class AdaptiveMaxPool2d(PoolNd, nn.AdaptiveMaxPool2d):
    """torch.nn.AdaptiveMaxPool2d computed by fastconv.adaptive_max_pool2d; also takes `algo`."""

    def forward(self, input: Tensor) -> Any:
        args = (self.output_size, self.return_indices)
        return pooling_adaptive.adaptive_max_pool2d(input, *args, algo=self.algo)


class AdaptiveMaxPool3d(PoolNd, nn.AdaptiveMaxPool3d):
    """torch.nn.AdaptiveMaxPool3d computed by fastconv.adaptive_max_pool3d; also takes `algo`."""

    def forward(self, input: Tensor) -> Any:
        args = (self.output_size, self.return_indices)
        return pooling_adaptive.adaptive_max_pool3d(input, *args, algo=self.algo)


class AdaptiveAvgPool1d(PoolNd, nn.AdaptiveAvgPool1d):
    """torch.nn.AdaptiveAvgPool1d computed by fastconv.adaptive_avg_pool1d; also takes `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling_adaptive.adaptive_avg_pool1d(input, self.output_size, algo=self.algo)


class AdaptiveAvgPool2d(PoolNd, nn.AdaptiveAvgPool2d):
    """torch.nn.AdaptiveAvgPool2d computed by fastconv.adaptive_avg_pool2d; also takes `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling_adaptive.adaptive_avg_pool2d(input, self.output_size, algo=self.algo)


class AdaptiveAvgPool3d(PoolNd, nn.AdaptiveAvgPool3d):
    """torch.nn.AdaptiveAvgPool3d computed by fastconv.adaptive_avg_pool3d; also takes `algo`."""

    def forward(self, input: Tensor) -> Tensor:
        return pooling_adaptive.adaptive_avg_pool3d(input, self.output_size, algo=self.algo)


class MaxUnpool1d(PoolNd, nn.MaxUnpool1d):
    """torch.nn.MaxUnpool1d computed by fastconv.max_unpool1d; same arguments, and `algo`."""

    def forward(
        self, input: Tensor, indices: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        return _unpool(pooling_adaptive.max_unpool1d, self, input, indices, output_size)


class MaxUnpool2d(PoolNd, nn.MaxUnpool2d):
    """torch.nn.MaxUnpool2d computed by fastconv.max_unpool2d; same arguments, and `algo`."""

    def forward(
        self, input: Tensor, indices: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        return _unpool(pooling_adaptive.max_unpool2d, self, input, indices, output_size)


class MaxUnpool3d(PoolNd, nn.MaxUnpool3d):
    """torch.nn.MaxUnpool3d computed by fastconv.max_unpool3d; same arguments, and `algo`."""

    def forward(
        self, input: Tensor, indices: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        return _unpool(pooling_adaptive.max_unpool3d, self, input, indices, output_size)
